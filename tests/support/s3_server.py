"""An S3 server on this machine (moto's), in a process of its own that can be killed, and trainings that use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import fsspec
import ranks
from botocore.exceptions import EndpointConnectionError
from patience import wait_until

BUCKET = "s3://bucket/some/path"


class S3Server:
    """The server, which forgets everything when it is killed."""

    def __init__(self) -> None:
        self._port = ranks.free_port()
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "canary-id",
            "AWS_SECRET_ACCESS_KEY": "canary-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.start()

    def start(self) -> None:
        """Begin to serve one empty bucket."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._makes_bucket)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def files(self) -> dict[str, bytes]:
        """All objects in the bucket by their names below BUCKET."""
        place = BUCKET.removeprefix("s3://")
        bucket, found = self._bucket(), dict[str, bytes]()
        for name in bucket.find(place):
            with suppress(FileNotFoundError):  # it is being copied to
                found[name.removeprefix(f"{place}/")] = bucket.cat_file(name)
        return found

    def steps(self) -> list[int]:
        """The checkpoints in the bucket that are whole."""
        names = self._bucket().find(BUCKET.removeprefix("s3://"))
        return [int(name.split("/")[-2].removeprefix("step-")) for name in names if name.endswith("/manifest.json")]

    def _bucket(self) -> Any:
        return fsspec.filesystem(
            "s3",
            endpoint_url=self.variables["AWS_ENDPOINT_URL"],
            key="x",
            secret="x",
            use_listings_cache=False,
        )

    def _makes_bucket(self) -> bool:
        try:
            self._bucket().mkdir(BUCKET.removeprefix("s3://").split("/")[0])
        except (ConnectionError, EndpointConnectionError):  # it does not listen yet
            return False
        return True


def train_with(variables: Mapping[str, str], arguments: list[str], pause: float = 0.0) -> int:
    """The training program with variables of the environment, inside a rank; it pauses after each step."""
    from trainlib.training.hooks import HeartbeatHook

    os.environ.update(variables)
    ranks.replace(HeartbeatHook, "on_progress", lambda hook: time.sleep(pause))
    return ranks.main(arguments)
