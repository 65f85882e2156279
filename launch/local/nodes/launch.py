"""`launch run --nodes MIN:MAX` on this machine: start its ranks, and start them again as machines join and leave."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launch.local.nodes.board_records import Member
from launch.local.nodes.membership import Rules
from launch.local.nodes.run import Nodes, RankStart
from launch.local.outcome.ending import Ending, host
from launch.local.ranks.one_process import supervise_one
from launch.local.ranks.supervise import supervise
from launch.local.start.command import Node, command_here, training_arguments
from launch.local.start.network import interface_to, own_interfaces
from launch.local.stop_request import StopRequest
from trainlib.config import Config, dump_config
from trainlib.errors import EXIT_USER_ERROR, UserError
from trainlib.runs import RUNS
from trainlib.runs.attempt.owner import new_identity
from trainlib.runs.attempt.record import RESTART
from trainlib.runs.attempt.secret import forget_unused, make_secret
from trainlib.runs.machine.environment import code_sha256
from trainlib.runs.records import failure_record


def run_on_nodes(
    config: Config, words: Sequence[str], processes: int, gpus: int, asked: Mapping[str, Any], rules: Rules
) -> int:
    """Train with the machines that come, for as long as there are enough of them; return the exit code.

    words       the configs and overrides
    processes   on this machine
    asked       the options of the first start, for `training_arguments`
    Raises UserError for a configuration whose result depends on the number of machines.
    """
    _require_elastic(config, processes, rules)
    directory, hang_seconds = RUNS / config.name, config.train.hang_seconds
    stop = StopRequest(directory)
    has_made_secret = False

    def start(order: RankStart) -> Ending:
        nonlocal has_made_secret
        entry = order.entry
        training = training_arguments(words, **asked)
        if entry.begun:  # as the options said, and only to be continued
            if order.number == 0:
                failure_record.clear_all(directory)
            training = training_arguments([str(directory / "config.yaml")], fresh=False, resume=None)
        count, node = len(entry.members), None
        if count > 1:
            interface = os.environ.get("GLOO_SOCKET_IFNAME") or interface_to(entry.address, own_interfaces())
            node = Node(count, order.number, (entry.address, entry.port), interface, f"entry-{entry.number}")
            if order.number == 0:
                has_made_secret |= make_secret(directory)
        variables = dict(order.variables) | ({RESTART: json.dumps(entry.restart)} if entry.restart else {})
        command = command_here(training, processes, gpus, node=node)
        if count * processes > 1:
            return supervise(
                command,
                directory,
                stop,
                node_rank=order.number,
                hang_seconds=hang_seconds,
                variables=variables,
                on_poll=order.on_poll,
            )
        variables = {**command.variables(os.environ), **variables}

        def train(more: dict[str, str]) -> int:
            os.execvpe(command.words[0], command.words, {**variables, **more})

        return supervise_one(train, directory, stop, hang_seconds, on_poll=order.on_poll)

    kind = _kind(config, processes)
    member = Member(new_identity(), host(), time.time(), own_addresses(), port=0, processes=processes, kind=kind)
    code = EXIT_USER_ERROR  # as that of an error that this raises
    try:
        with stop.catching_signals():
            code = Nodes(start, directory, stop, rules, member).run()
    finally:
        forget_unused(directory, is_refused=has_made_secret and code == EXIT_USER_ERROR)
    return code


def own_addresses() -> tuple[str, ...]:
    """Return the addresses of this machine that others may reach, those of the loopback last."""
    wanted = os.environ.get("GLOO_SOCKET_IFNAME")
    interfaces = own_interfaces()
    named = {wanted: interfaces[wanted]} if wanted in interfaces else interfaces
    found = [ipaddress.ip_address(address) for addresses in named.values() for address in addresses]
    usable = [address for address in found if not address.is_link_local]
    return tuple(map(str, sorted(usable, key=lambda address: (address.is_loopback, address.version))))


def _require_elastic(config: Config, processes: int, rules: Rules) -> None:
    train, nodes = config.train, f"{rules.least}:{rules.most}"
    if rules.least != rules.most and train.reproducibility != "elastic":
        raise UserError(
            f"--nodes {nodes}: got train.reproducibility={train.reproducibility}, must be elastic: only that gives the "
            "same bits on any number of machines"
        )
    most = rules.most * processes
    if train.reproducibility == "elastic" and most > train.virtual_shards:
        raise UserError(
            f"--nodes {nodes}: with {processes} processes on each makes {most}, must be at most "
            f"{train.virtual_shards}, which is train.virtual_shards: give fewer, or more shards, which are part of the "
            "result"
        )


def _kind(config: Config, processes: int) -> str:
    """Return a digest of what must be the same on all machines."""
    text = f"{code_sha256()} {processes} {dump_config(config)}"
    return hashlib.sha256(text.encode()).hexdigest()
