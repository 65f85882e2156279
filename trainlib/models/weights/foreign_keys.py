"""Weights of the same network under other names: matched by the order and the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from trainlib.errors import WeightsError
from trainlib.models.architectures.layer_names import is_in
from trainlib.models.weights.files import State

SHOWN = 6  # rows of the two lists in a refusal, around the first difference
COUNTER = "num_batches_tracked"


def match_by_shapes(state: State, expected: State, heads: Sequence[str]) -> State:
    """Return the tensors of a file under a model's names: the i-th of the file is the i-th of the model.

    state      of the file, with names of its own
    expected   the model's state_dict, of the right shapes
    heads      names of the model's last layers

    BatchNorm's counters, which older files lack, are left out of the comparison. So is the last layer, which is the one
    that the file's last tensor belongs to: it is matched if it has the model's shapes and else left out, for a new one
    to take its place. Raises WeightsError, with both lists, if the numbers of tensors or any two shapes differ.
    """
    theirs = [name for name in state if not name.endswith(COUNTER)]
    last = theirs[-1].rpartition(".")[0] if theirs else ""
    of_model = [name for name in expected if not name.endswith(COUNTER)]
    backbone = [name for name in of_model if not is_in(name, heads)]
    theirs_of_backbone = [name for name in theirs if name.rpartition(".")[0] != last]
    rows = list(zip_longest(theirs_of_backbone, backbone))
    for index, (their, our) in enumerate(rows):
        if their is None or our is None or state[their].shape != expected[our].shape:
            raise WeightsError(_differ(rows, index, state, expected))
    matched = {our: state[their] for their, our in rows}
    in_heads = list(
        zip_longest((n for n in theirs if n not in theirs_of_backbone), (n for n in of_model if n not in backbone))
    )
    if all(their and our and state[their].shape == expected[our].shape for their, our in in_heads):
        matched |= {our: state[their] for their, our in in_heads}
    return matched


def _differ(rows: list[tuple[str | None, str | None]], index: int, state: State, expected: State) -> str:
    first = max(0, index - 2)
    shown = [
        f"  {number + 1:4}  {_described(their, state):58}  {_described(our, expected)}"
        for number, (their, our) in enumerate(rows[first : first + SHOWN], first)
    ]
    counts = [sum(row[side] is not None for row in rows) for side in (0, 1)]
    return (
        f"model.weights_keys: shapes: tensor {index + 1} of the file is not that of the model ({counts[0]} and "
        f"{counts[1]} tensors without the last layer):\n" + "\n".join([f"        {'file':58}  model", *shown])
    )


def _described(name: str | None, state: State) -> str:
    return "none" if name is None else f"{name} {'x'.join(map(str, state[name].shape)) or 'scalar'}"
