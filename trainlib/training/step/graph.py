"""Training steps as one launch: a step is captured into a CUDA graph once, and replayed with new images after that.

A kernel in a graph has the memory, the sizes and the numbers that it was captured with. So what changes from step to
step lies in memory of its own, which the host fills before each replay: indices or images, labels, crops and flips,
and learning rates. Seeds are set before a replay, and the generators bring them into the graph.

What cannot be captured runs eagerly, and the log says so once, with the reason. The first replay is compared, in every
bit, with the same step run eagerly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.batches.loader import BatchLoader, MicroBatch
from trainlib.data.targets import Targets
from trainlib.randomness import key, seed_generators
from trainlib.training.metrics.sums import MicroBatchResult
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import StepResult, backward_one, clear_gradients, clip_gradients, train_step
from trainlib.training.step.update import DeviceCheckedUpdate, UpdateStatus

logger = logging.getLogger("trainlib")

WARM_UP = 3  # steps before the capture, in which optimizer and libraries allocate what they keep


class GraphSteps:
    """The steps of a run that are replayed: those of full batches, from the fourth one of a start on."""

    def __init__(self, state: TrainState, loader: BatchLoader, augmentation: Augmentation):
        self._state, self._loader, self._augmentation = state, loader, augmentation
        assert isinstance(state.update, DeviceCheckedUpdate), "asked for when it is built"
        self._update = state.update
        self._graph: torch.cuda.CUDAGraph | None = None
        self._off = False
        self._told_of_sizes = False
        self._seen = 0
        self._size = 0

    def step(self, step: int, raw_batches: Sequence[MicroBatch], denominator: float) -> StepResult | None:
        """Compute step `step`, from 0, of raw micro-batches (see `BatchLoader`); None where it must run eagerly."""
        audit = self._state.audit
        if self._off or len(raw_batches) != 1 or (audit is not None and audit.is_due(step)):
            return None
        [raw] = raw_batches
        self._size = self._size or len(raw.ids_N)
        if len(raw.ids_N) != self._size or self._state.objective.denominator(raw.targets.cpu_labels_N) == 0:
            if not self._told_of_sizes:
                logger.info("CUDA graph: not for batches of other sizes than %d", self._size)
            self._told_of_sizes = True
            return None
        self._seen += 1
        if self._seen <= WARM_UP:
            return None
        if self._graph is None:
            return self._begin(step, raw, denominator)
        if _options(self._update.stepped) != self._options:
            self.give_up("the schedule changes more than the learning rate")
            return None
        return self._replay(step, raw, denominator)

    @property
    def is_captured(self) -> bool:
        """True if there is a graph."""
        return self._graph is not None

    def finished(self, raw: MicroBatch) -> MicroBatch:
        """Return the micro-batch as a step that runs eagerly takes it."""
        return self._loader.finished(raw, self._augmentation)

    def give_up(self, reason: str) -> bool:
        """Run all steps eagerly from here on, and free the graph's memory; return True if there was a graph."""
        if not self._off:
            logger.info("CUDA graph: none, %s", reason)
        was_there, self._off, self._graph = self._graph is not None, True, None
        return was_there

    def _begin(self, step: int, raw: MicroBatch, denominator: float) -> StepResult | None:
        """Capture the step, run it eagerly, replay it from the same state, and give the graph up where bits differ."""
        try:
            self._capture(raw, denominator)
            before = [tensor.clone() for tensor in self._changed()]
            result = train_step(self._state, step, [self.finished(raw)], denominator)
        except RuntimeError as error:  # of an operation that cannot be captured, or of memory; nothing was changed
            clear_gradients(self._state)
            self.give_up(f"as the step cannot be captured: {str(error).splitlines()[0]}")
            return None
        try:
            after = [tensor.clone() for tensor in self._changed()]
        except torch.OutOfMemoryError:
            self.give_up("as memory ran out")
            return result
        _set(self._changed(), before)
        replayed = self._replay(step, raw, denominator)
        expected = [result.grad_norm, result.micro_batches[0].loss, result.micro_batches[0].num_correct]
        got = [replayed.grad_norm, replayed.micro_batches[0].loss, replayed.micro_batches[0].num_correct]
        same = all(map(torch.equal, self._changed(), after)) and all(
            torch.equal(a.double(), b) for a, b in zip(expected, got, strict=True)
        )
        if not same:
            _set(self._changed(), after)
            self.give_up("as a replayed step has other bits")
        else:
            logger.info("CUDA graph: steps of %d images are replayed", self._size)
        return result

    def _changed(self) -> list[Tensor]:
        """Return all that a step changes."""
        states = self._update.stepped.state.values()
        kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        flag: Tensor = self._update.stepped.found_inf  # type: ignore[attr-defined]
        return [*self._state.parameters, *self._state.model.buffers(), *kept, flag]

    @torch.no_grad()
    def _capture(self, raw: MicroBatch, denominator: float) -> None:
        state, device = self._state, raw.images_NCHW.device
        groups = self._update.stepped.param_groups
        self._options = _options(self._update.stepped)
        self._results = torch.zeros(3, dtype=torch.float64, device=device)
        self._rates = torch.zeros(len(groups), dtype=torch.float64, device=device)
        self._rates_there: list[float] = []
        places = None if raw.places_KN is None else raw.places_KN.clone()
        targets = Targets(raw.targets.labels_N.clone(), raw.targets.cpu_labels_N)
        self._inputs = raw._replace(images_NCHW=raw.images_NCHW.clone(), targets=targets, places_KN=places)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                batch = self.finished(self._inputs)
                measured: list[MicroBatchResult] = []
                state.reducer.start_step()
                with torch.enable_grad():
                    backward_one(state, batch, denominator, measured)
                state.reducer.finish_step()
                norm = clip_gradients(state)
                rates = list(self._rates.float())
                self._update.apply(norm, [measured[0].loss], rates)
                clear_gradients(state)
                values = (norm, measured[0].loss, measured[0].num_correct)
                self._results.copy_(torch.stack([value.double() for value in values]))
            finally:
                graph.capture_end()
        self._graph = graph

    def _replay(self, step: int, raw: MicroBatch, denominator: float) -> StepResult:
        assert self._graph is not None
        rates = [group["lr"] for group in self._update.stepped.param_groups]
        if rates != self._rates_there:
            # Pinned memory is new each time: the host may be many steps ahead of the device.
            self._rates.copy_(torch.tensor(rates, dtype=torch.float64, pin_memory=True), non_blocking=True)
            self._rates_there = rates
        self._inputs.images_NCHW.copy_(raw.images_NCHW)
        self._inputs.targets.labels_N.copy_(raw.targets.labels_N)
        if self._inputs.places_KN is not None and raw.places_KN is not None:
            self._inputs.places_KN.copy_(raw.places_KN)
        seed_generators(key(step, raw.shard, folded=self._state.step_key), self._rates.device)
        self._graph.replay()
        norm, loss, num_correct = self._results.clone().unbind()
        return StepResult([MicroBatchResult(raw.shard, denominator, loss, num_correct)], norm, UpdateStatus.PENDING)


@torch.no_grad()
def _set(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what a graph holds of the optimizer's options: all but the learning rates."""
    varying = ("params", "lr", "unscaled_lr", "initial_lr")
    return [{name: value for name, value in group.items() if name not in varying} for group in optimizer.param_groups]
