"""Check of Weights & Biases: installed, logged in, reachable. The key itself is never shown."""

from __future__ import annotations

import netrc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from launch.doctor.finding import Finding, note, ok

SERVER = "https://api.wandb.ai"
_SECONDS = 4.0
_CLOCK_SECONDS = 60.0


def check_wandb() -> Iterator[Finding]:
    """Check the package, the key, the mode in the environment and the server. None of them can stop training."""
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        yield note("W&B", "not installed: runs are tracked locally", "pip install wandb")
        return
    server = os.environ.get("WANDB_BASE_URL") or SERVER
    source = key_source(server, os.environ, _netrc_path(os.environ))
    mode = os.environ.get("WANDB_MODE")
    text = f"wandb {version}, {f'key in {source}' if source else 'not logged in'}"
    text += f", WANDB_MODE={mode}" if mode else ""
    if mode in ("disabled", "offline"):
        yield ok("W&B", f"{text}: nothing is sent")
        return
    yield ok("W&B", text) if source else note("W&B", text, "to have runs shown online: wandb login")
    yield _reach(server)


def key_source(server: str, environment: Mapping[str, str], netrc_file: Path) -> str | None:
    """Return the place of a key for this server, None where there is none."""
    if environment.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    with suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(str(netrc_file)).authenticators(urlsplit(server).hostname or ""):
            return str(netrc_file)
    return None


def _netrc_path(environment: Mapping[str, str]) -> Path:
    return Path(os.path.expanduser(environment.get("NETRC") or "~/.netrc"))


def _reach(server: str) -> Finding:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    host = urlsplit(server).hostname or server
    start = time.perf_counter()
    try:
        with urlopen(Request(server, method="HEAD"), timeout=_SECONDS) as response:
            date = response.headers.get("Date")
    except HTTPError as error:  # it answered
        date = error.headers.get("Date")
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return note(
            "W&B server",
            f"{host} does not answer ({reason}): runs are tracked locally",
            "no network on compute nodes? tracking.wandb.mode: offline, and launch wandb-sync RUN later",
        )
    milliseconds = (time.perf_counter() - start) * 1000
    text = f"{host} answers in {milliseconds:.0f} ms"
    skew = time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0
    if abs(skew) > _CLOCK_SECONDS:
        return note("W&B server", f"{text}; this machine's clock is {skew:+.0f} s off", "set the clock (NTP)")
    return ok("W&B server", text)
