"""The reducer of elastic mode: the same bits on any number of ranks.

Every global batch is cut into V virtual shards. What a shard computes depends on the configuration, the seed, the step
and the shard, and on nothing else. A rank computes a contiguous range of shards, and their results are added up in one
fixed binary tree, whichever rank has which of its leaves:

                        0-7
                0-3             4-7             V = 8; on two ranks, each adds up one of the halves,
            0-1     2-3     4-5     6-7         on three, 0-2 (the nodes 0-1 and 2), 3-5 and 6-7
           0   1   2   3   4   5   6   7

Ranks send each other the nodes that they hold, each its own chunk of them; each rank finishes the tree for its chunk;
the chunks are gathered. That is as much traffic as a ring all-reduce where every rank holds a single node. All that a
step adds up is one vector: gradients, what BatchNorm learned, and how many samples it learned that from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from trainlib.data.batches.rank_slice import shards_of_rank
from trainlib.distributed.devices import hardware
from trainlib.distributed.process_group import all_gather, gather_objects
from trainlib.errors import RanksDifferError, UserError
from trainlib.models.weights.files import weights_sha256
from trainlib.models.weights.snapshot import Snapshot, is_all_finite
from trainlib.runs.machine.launch_variables import NUM_THREADS

_NOTHING: AbstractContextManager[None] = nullcontext()


class Node(NamedTuple):
    """A node of the tree of sums: shards from position * 2**level up to (position + 1) * 2**level."""

    level: int
    position: int


def push(nodes: list[Node], node: Node) -> int:
    """Append a node to those on its left, join siblings while there are any, and return how many were joined."""
    joined = 0
    while nodes and node.position % 2 and nodes[-1] == (node.level, node.position - 1):
        nodes.pop()
        node = Node(node.level + 1, node.position // 2)
        joined += 1
    nodes.append(node)
    return joined


def cover(shards: range) -> list[Node]:
    """Return the fewest nodes that make up a range of shards, from left to right."""
    nodes: list[Node] = []
    for shard in shards:
        push(nodes, Node(0, shard))
    return nodes


class TreeSum:
    """A sum of vectors in the order of the tree: vectors of whole nodes are added from left to right."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.vectors: list[Tensor] = []

    def add(self, node: Node, vector_F: Tensor) -> list[Tensor]:
        """Add a node's vector, summing siblings in place; return the vectors that are no longer needed."""
        done = []
        for _ in range(push(self.nodes, node)):
            left_F = self.vectors.pop()
            left_F += vector_F
            done.append(vector_F)
            vector_F = left_F
        self.vectors.append(vector_F)
        return done

    def total(self) -> Tensor:
        """Return the sum, once all shards are in. If V is no power of two, some nodes have no sibling on the right."""
        total_F = self.vectors[-1]
        for left_F in reversed(self.vectors[:-1]):
            left_F += total_F
            total_F = left_F
        return total_F


def require_alike(virtual_shards: int, accelerator: Accelerator, manifest: Mapping[str, Any] | None) -> None:
    """Check that every rank computes the same bits as any other would, now and in earlier attempts of the run.

    manifest   of the checkpoint to go on from; its number of threads becomes this attempt's
    Raises UserError, on every rank, where ranks differ, or are more than there are shards. A collective.
    """
    world_size = accelerator.num_processes
    if world_size > virtual_shards:
        raise UserError(
            f"train.virtual_shards: got {virtual_shards}, must be >= the {world_size} processes that there are; "
            "it is part of the result, so set it to the most processes that the run may ever have"
        )
    facts = require_equal_devices(accelerator, "train.reproducibility: elastic needs ranks that are alike")
    if manifest is not None and manifest["num_threads"] != facts["num_threads"]:
        if facts[NUM_THREADS]:
            raise UserError(
                f"{NUM_THREADS}: got {facts[NUM_THREADS]}, must be {manifest['num_threads']}, with which this run "
                "began: kernels add in another order with another number of threads; unset it"
            )
        torch.set_num_threads(manifest["num_threads"])


def require_equal_devices(accelerator: Accelerator, why: str) -> dict[str, Any]:
    """Raise UserError, on every rank, where ranks differ in what decides the bits of a step; return what does.

    why   they must not, which begins the message
    A collective.
    """
    facts = hardware.ingredients(accelerator.device, accelerator.num_processes)
    facts |= {NUM_THREADS: os.environ.get(NUM_THREADS)}
    every = gather_objects(facts)
    for rank, theirs in enumerate(every):
        for name in facts:
            if theirs[name] != every[0][name]:
                raise UserError(
                    f"{why}; {name} is {theirs[name]} on rank {rank} and {every[0][name]} on rank 0: give all of them "
                    "the same, or do without"
                )
    return facts


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bytes, by name."""
    return {name: weights_sha256({name: tensor}) for name, tensor in tensors.items()}


class ElasticReducer:
    """The reducer of elastic mode: one rank's virtual shards, their vectors, and the exchange with the other ranks.

    The parts of a batch are its virtual shards, which this rank computes in ascending order.
    """

    shard_name = "in virtual shard"
    gradient_scale = 1
    runs_empty_shards = False
    fixes_micro_batches = True

    def __init__(self, module: nn.Module, virtual_shards: int, world_size: int):
        """Raise UserError for a module whose parameters do not fit into one vector."""
        self._module = module
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        types = sorted({str(parameter.dtype) for parameter in self._parameters})
        if len(types) > 1:
            raise UserError(
                "train.reproducibility: elastic adds up all gradients as one vector, and this model's parameters are "
                f"of several types ({', '.join(types)}): give all of them one, or use exact"
            )
        self._before = Snapshot(b for b in module.buffers() if b.dtype != torch.bool and is_all_finite(b))
        self._buffers = [buffer for buffers, _ in self._before.groups for buffer in buffers]
        self.num_shards = virtual_shards
        self._covers = [cover(shards_of_rank(virtual_shards, world_size, r)) for r in range(world_size)]
        sizes = [tensor.numel() for tensor in (*self._parameters, *self._buffers)]
        self._offsets = list(accumulate(sizes, initial=0))
        self._chunk = -(-(sum(sizes) + 1) // world_size)
        self._tree = TreeSum()
        self._free: list[Tensor] = []
        self._changes: list[Tensor] = []
        self._count = torch.empty(0)

    def start_step(self) -> None:
        """Begin a new sum, and remember the buffers from which every pass starts."""
        self._tree = TreeSum()
        self._before.take()

    @contextmanager
    def shard(self, shard: int) -> Iterator[None]:
        """Let the backward passes inside add to a new vector: that of this shard.

        The vector begins as -0.0, which changes nothing that is added to it, while 0.0 would turn -0.0 into 0.0.
        """
        vector_F = self._free.pop() if self._free else self._new_vector()
        vector_F.fill_(-0.0)
        self._make_views(vector_F)
        yield
        self._free += self._tree.add(Node(0, shard), vector_F)

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return an empty context: no backward pass communicates, and all add to the shard's vector."""
        return _NOTHING

    def after_backward(self, num_samples: int) -> None:
        """Note how a pass over so many samples changed the buffers, and put the buffers back.

        So each pass begins from the same statistics, and a step makes one update of them, from the mean of what its
        passes would have made, weighted by their samples.
        """
        for buffers, before, changes in self._changes_by_type():
            changed = torch._foreach_sub(buffers, before)
            torch._foreach_add_(changes, [change.to(changes[0].dtype) for change in changed], alpha=num_samples)
        self._before.restore()
        self._count += num_samples

    def finish_step(self) -> None:
        """Leave every rank with the sum over all shards: as the parameters' gradients, and in the buffers."""
        total_F = self._tree.total() if len(self._covers) == 1 else self._exchange()
        self._make_views(total_F)
        for buffers, before, changes in self._changes_by_type():
            means = list(torch._foreach_div(changes, self._count))
            if not buffers[0].is_floating_point():
                means = [mean.to(buffers[0].dtype) for mean in torch._foreach_round(means)]
            torch._foreach_copy_(buffers, torch._foreach_add(before, means))
        self._free.append(total_F)  # the next shard begins when the gradients are no longer needed

    def needs_warm_up(self) -> bool:
        """Return False: the order of sums is the tree's, from the first step on."""
        return False

    def require_same_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise RanksDifferError, on every rank, where ranks hold different bits in these tensors. A collective.

        Only a fault brings that about: of a device or its memory, or of a kernel that is not what elastic mode needs.
        """
        every = gather_objects(digests(tensors))
        for rank, theirs in enumerate(every):
            differing = next((tensor for tensor, digest in theirs.items() if digest != every[0][tensor]), None)
            if differing is not None:
                raise RanksDifferError(
                    f"{differing} on rank {rank} is not what it is on rank 0, though all ranks computed "
                    "the same: a fault of one of their devices; the run ends here, and goes on from its last "
                    "checkpoint when it is started again"
                )

    def rebuilt(self, model: nn.Module) -> ElasticReducer:
        """Return a reducer of the same shards for the parameters that require gradients now."""
        return ElasticReducer(self._module, self.num_shards, len(self._covers))

    def _exchange(self) -> Tensor:
        """Send each rank its chunk of every node held here, add up this rank's chunks, and gather the sums."""
        mine, world_size = self._tree.vectors, len(self._covers)
        held = torch.stack([vector_F.view(world_size, -1) for vector_F in mine], dim=1) if len(mine) > 1 else mine[0]
        received_NC = held.new_empty(sum(map(len, self._covers)), self._chunk)
        dist.all_to_all_single(
            received_NC.flatten(),
            held.flatten(),
            [len(nodes) * self._chunk for nodes in self._covers],
            [len(mine) * self._chunk] * world_size,
        )
        tree = TreeSum()
        for node, chunk_C in zip(chain(*self._covers), received_NC, strict=True):
            tree.add(node, chunk_C)
        self._free += mine[1:]
        all_gather(mine[0], tree.total())
        return mine[0]

    def _changes_by_type(self) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """Yield the buffers of one type, what they were before the step, and how passes changed them so far."""
        changes = iter(self._changes)
        for buffers, before in self._before.groups:
            yield buffers, before, list(islice(changes, len(buffers)))

    def _new_vector(self) -> Tensor:
        first = self._parameters[0]
        return torch.empty(self._chunk * len(self._covers), dtype=first.dtype, device=first.device)

    def _make_views(self, vector_F: Tensor) -> None:
        """Make gradients, changes of buffers and the number of samples views of this vector from here on."""
        views = []
        for tensor, offset in zip((*self._parameters, *self._buffers), self._offsets, strict=False):
            views.append(vector_F.as_strided(tensor.shape, tensor.stride(), offset))
        for parameter, view in zip(self._parameters, views, strict=False):
            parameter.grad = view
        self._changes = views[len(self._parameters) :]
        self._count = vector_F[self._offsets[-1]]
