"""Where the ranks of a run find each other: a store of torch's at machine 0, on loopback where there is one machine.

torch's own rendezvous listens on all network interfaces and lets anybody in. This one is handed to `accelerate launch`
in its place: the store listens on one address, and the machines gather with the run's secret first (see `gathering`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from trainlib.distributed.rendezvous.gathering import Gathering, Machine, join
from trainlib.errors import UserError
from trainlib.runs.attempt.secret import read_secret, secret_file
from trainlib.runs.machine.launch_variables import node_seconds

BACKEND = "trainlaunch"  # for torchrun's --rdzv_backend
LOOPBACK = "127.0.0.1"
_STORE_SECONDS = 600.0  # for ranks to import torch and come
_BACKLOG = 4096


def register(
    machine: Machine, head: tuple[str, int], directory: Path | None, say: Callable[[str], None] = lambda line: None
) -> tuple[str, int]:
    """Gather with the other machines, open the store, and let torch know the rendezvous as BACKEND; return its address.

    head        (host, port) of the rendezvous, the same for all machines; not used where there is one machine
    directory   the run directory, which holds the secret; None where there is one machine
    say         shows a line to the user while machines are waited for
    Raises UserError and TrainlaunchError as `gathering` does, OSError where the head's port is taken.
    """
    if machine.count == 1:
        listener = socket.create_server((LOOPBACK, 0), backlog=_BACKLOG)
        address = (LOOPBACK, int(listener.getsockname()[1]))
    elif machine.rank == 0:
        listener, address = _listen(head), head
        _gather(listener, machine, directory, say)
    else:
        listener, address = None, head
        name = str(secret_file(_given(directory)))
        join(head, machine, lambda: read_secret(_given(directory)), name, node_seconds(), say)
    store = TCPStore(
        address[0],
        address[1],
        is_master=listener is not None,
        timeout=timedelta(seconds=_STORE_SECONDS),
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return _Rendezvous(store, machine, address, parameters.run_id)

    rendezvous_handler_registry.register(BACKEND, create)
    return address


def _gather(listener: socket.socket, machine: Machine, directory: Path | None, say: Callable[[str], None]) -> None:
    name = str(secret_file(_given(directory)))
    secret = read_secret(_given(directory))
    if secret is None:
        raise UserError(f"{name}: cannot be read on machine 0: mend its permissions, or remove it")
    Gathering(machine, secret, name, node_seconds(), say).run(listener)


def _given(directory: Path | None) -> Path:
    if directory is None:
        raise UserError("several machines: the secret of the run is needed, start it with `launch run --nodes`")
    return directory


def _listen(head: tuple[str, int]) -> socket.socket:
    """Return a socket that listens at the head's address or, if that is no address of this machine, on all of them."""
    host, port = head
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        is_loopback = str(address[0]).startswith("127.") or address[0] == "::1"
        if is_loopback and host not in (address[0], "localhost"):
            continue  # Debian has a machine's own name for 127.0.1.1, which the others cannot reach
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address[0], 0))
            except OSError:
                continue  # an address of a machine before this one, that forwards the port
        return socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
    dualstack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dualstack else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=dualstack)


class _Rendezvous(RendezvousHandler):
    """What torch's elastic agent asks for the store and this machine's place."""

    def __init__(self, store: TCPStore, machine: Machine, address: tuple[str, int], run_id: str):
        self._store, self._machine, self._address, self._run_id = store, machine, address, run_id

    def get_backend(self) -> str:
        """Return the name of the rendezvous."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """True: the ranks connect to this store, and open none of their own."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store and this machine's place; all machines are here already."""
        return RendezvousInfo(
            PrefixStore(self._run_id, self._store),
            self._machine.rank,
            self._machine.count,
            RendezvousStoreInfo(*self._address),
        )

    def is_closed(self) -> bool:
        """Return False: the rendezvous lasts as long as its process."""
        return False

    def set_closed(self) -> None:
        """Do nothing."""

    def num_nodes_waiting(self) -> int:
        """Return 0: no machine joins later."""
        return 0

    def get_run_id(self) -> str:
        """Return the name of the start."""
        return self._run_id

    def shutdown(self) -> bool:
        """Do nothing; return True."""
        return True
