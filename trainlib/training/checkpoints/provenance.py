"""What a run depends on: compared with what it was before a resumed run goes on, and between all ranks of a start.

One rule. What decides which run this is (configuration and data) must be the same, or the start is refused. What only
decides the last bits (code, versions, processor, threads, number of ranks) may change, and is told: `resume_report` in
`trainlib/runs/machine/environment.py`. Where the data lie is neither.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trainlib.config import Config, differences, harmful, is_free, with_older_values
from trainlib.config.libraries.timm_models import packages_of
from trainlib.data.identity.listing import Listing, changes, dump_listing, parse_listing
from trainlib.distributed.process_group import broadcast_object, gather_objects
from trainlib.errors import CheckpointError, ConfigError, DataError, UserError
from trainlib.platform.regular_files import open_regular, read_regular
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import read_lines
from trainlib.runs.machine import environment
from trainlib.training.checkpoints.checkpoint import Checkpoint

logger = logging.getLogger("trainlib")

DATA_FILE = "data.jsonl"  # in the run directory: the listing of the data that it is trained on
CONTENT_FILES = "content-*.jsonl"  # the hashes of files that are streamed, by the rank that read them
MAX_LISTING_BYTES = 1 << 30
SHOWN_AT_MOST = 10
WAYS_ON = "use `--fresh` to begin again (the old run is kept aside) or `--name` for another run"


def require_same_config(config: Config, start: Checkpoint) -> None:
    """Raise CheckpointError where a checkpoint was made under a configuration that is not this one.

    So it is where config.yaml was edited, and where the checkpoint of another run was copied into this one.
    """
    values = start.manifest.get("config")
    if not isinstance(values, Mapping):
        return
    try:
        earlier = Config.model_validate(with_older_values(values))
    except (ValidationError, ConfigError) as error:
        raise CheckpointError(f"{start.path}: its configuration is not one of this version: {error}") from error
    changed = harmful(earlier, config)
    if changed:
        listed = "\n".join(f"  {change.key}: {change.old} there, {change.new} now" for change in changed)
        raise CheckpointError(
            f"{start.path} was trained with another configuration than this one:\n{listed}\n"
            "Was config.yaml edited by hand, or the checkpoint of another run copied here? Go back to its values, or "
            f"{WAYS_ON}."
        )


def require_same_data(run: RunDirectory, start: Checkpoint, listing: Listing) -> None:
    """Raise DataError, with the differences, where the data are not those that a checkpoint was trained on."""
    recorded = start.manifest.get("data")
    if not isinstance(recorded, Mapping):
        logger.info("on which data this run was trained so far was not recorded by the version that began it")
        return
    if listing.content is not None and recorded == listing.facts:  # without reading the list of a million files
        return
    if changed := data_changes(recorded, read_listing(run), listing):
        listed = "\n".join(f"  {change}" for change in changed)
        raise DataError(
            f"{run.path} was trained on other data than those that are there now:\n{listed}\n"
            f"Bring the data back as they were, or {WAYS_ON}."
        )


def data_changes(recorded: Mapping[str, Any], before: Listing | None, now: Listing) -> list[str]:
    """Return a sentence for each way in which data are not those of a checkpoint; empty where they are the same.

    recorded   `Listing.facts` of the data then, from the checkpoint's manifest
    before     the listing itself, from the run directory; None where it is lost
    """
    is_listed = before is not None and before.digest == recorded.get("listing")
    if recorded.get("listing") == now.digest:
        if recorded.get("content") == now.content is not None:
            return []
        found = changes(before, now) if is_listed and before is not None else []
        both_known = None not in (recorded.get("content"), now.content)
        return found or (["some files have other bytes"] if both_known else [])
    if is_listed and before is not None:
        return changes(before, now)
    return [f"which ones cannot be told: {DATA_FILE}, the list of its files, is lost"]


def read_listing(run: RunDirectory) -> Listing | None:
    """Return the listing of the data that a run is trained on, with all hashes that are known of its files.

    None where the file is missing or damaged.
    """
    try:
        listing = parse_listing(read_regular(run.path / DATA_FILE, MAX_LISTING_BYTES).decode())
    except (OSError, ValueError):
        return None
    streamed = known_content(run)
    return listing.with_known(streamed) if listing is not None and streamed else listing


def record_data(run: RunDirectory, listing: Listing) -> None:
    """Write the listing into the run directory, unless it is there already; hashes that are known stay."""
    if listing.content is not None and _recorded_facts(run) == listing.facts:
        return
    before = read_listing(run)
    if before is not None and before.digest == listing.digest:
        listing = listing.with_known(before.files.known())
    if before != listing:
        write_atomically(run.path / DATA_FILE, dump_listing(listing))


def _recorded_facts(run: RunDirectory) -> dict[str, Any]:
    """Return the digests in the first line of the listing in the run directory; empty where there are none."""
    try:
        with os.fdopen(open_regular(run.path / DATA_FILE), "rb") as file:
            head = json.loads(file.readline(MAX_LISTING_BYTES))
        return {name: head[name] for name in ("listing", "content")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def known_content(run: RunDirectory) -> dict[str, str]:
    """Return the SHA-256, by name, of each file that earlier attempts streamed."""
    lines = [line for path in run.path.glob(CONTENT_FILES) for line in read_lines(path)]
    return {str(line["file"]): str(line["sha256"]) for line in lines if {"file", "sha256"} <= line.keys()}


def require_alike(config: Config, listing: Listing, own_code: str = "") -> None:
    """Raise UserError, on every rank, where one has another configuration, code, version or data. A collective.

    own_code   of parts given in Python
    """
    own = environment.with_own_code("none", own_code)
    code = {"the code of trainlaunch": environment.code_sha256(), "the code of the parts given in Python": own}
    software = environment.versions(*packages_of(config.model.name)) | code
    decides = [d for d in differences(Config(name=config.name), config) if not is_free(d.key)]
    everywhere = gather_objects((decides, software, listing.facts))
    if all(facts == everywhere[0] for facts in everywhere):
        return
    reference, software_0, listing_0 = broadcast_object((config, software, listing))
    changed = [d for d in differences(reference, config) if not is_free(d.key)]
    found = [f"{d.key} is {d.new}, and {d.old} on rank 0" for d in changed]
    others = [name for name in software if software[name] != software_0[name]]
    found += [f"{name} is {software[name]}, and {software_0[name]} on rank 0" for name in others]
    found += [f"data: compared with rank 0, {change}" for change in changes(listing_0, listing)]
    lines = [
        f"  rank {rank} on {host}: {line}"
        for rank, (host, lines) in enumerate(gather_objects((socket.gethostname(), found)))
        for line in lines
    ]
    more = [f"  and {len(lines) - SHOWN_AT_MOST} more"] if len(lines) > SHOWN_AT_MOST else []
    raise UserError(
        "\n".join(["the ranks do not train the same; nothing was trained:", *lines[:SHOWN_AT_MOST], *more])
        + "\nStart all of them with one configuration, the same data and the same installation; code that makes data "
        "needs a seed for what it draws."
    )
