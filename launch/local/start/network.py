"""The address of a run's first machine, the head, and the network interface of this machine that leads to it."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from trainlib.errors import UserError

DEFAULT_PORT = 29500  # torchrun's


def parse_head(text: str) -> tuple[str, int]:
    """Parse `HOST`, `HOST:PORT` or `[IPv6]:PORT` into (host, port). Raises UserError for any other text."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        host, port = text, str(DEFAULT_PORT)
    bare_ipv6 = ":" in host and not host.startswith("[")
    host = host.removeprefix("[").removesuffix("]")
    if bare_ipv6 or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"--head: got {text}, must be HOST or HOST:PORT, like node0:29500 or [2001:db8::5]:29500")
    return host, int(port)


def interface_to(host: str, interfaces: Mapping[str, Sequence[str]]) -> str | None:
    """Return the name of this machine's network interface that leads to `host`, or None if there is none.

    host         a name or an address, which may be of this machine itself
    interfaces   addresses of each interface of this machine, by its name

    Gloo otherwise binds to whatever the machine's own name resolves to, often the loopback, which no other machine
    reaches. Nothing is sent. Raises UserError for a host that cannot be found or reached.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            ours = str(probe.getsockname()[0])
    except OSError as error:
        raise UserError(
            f"--head: {host} cannot be reached from here ({error.strerror}); give a name or an address of the first "
            "machine that all machines reach"
        ) from error
    for target in (str(address[0]), ours):  # on the head the first one: its way to itself leads through the loopback
        for name, addresses in interfaces.items():
            if target in addresses:
                return name
    return None


def own_interfaces() -> dict[str, list[str]]:
    """Return the addresses of each network interface of this machine, by its name."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }
