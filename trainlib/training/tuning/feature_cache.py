"""What frozen layers make of the images, computed once instead of in every epoch.

Where the images do not change and nothing before some submodule learns, that submodule gets the same input for a sample
in every epoch. Then the features, its inputs, are computed once and kept, and the training is of that submodule alone.

It must not change a bit, and whether it does is up to kernels: they add in another order in a batch of another size.
So it is tried out before: for each size of batch that comes up, one batch goes through the whole model, and through the
submodule from features that were computed as they will be, in batches of one size and in other company. Features are
used where all bits agree, in batches of other sizes they are computed each time. See docs/decisions/0011.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from trainlib.config import Augment, Config
from trainlib.data.batches.feature_loader import CachedFeatures, FeatureLoader
from trainlib.data.batches.loader import DataModule
from trainlib.data.batches.plan import Plan
from trainlib.data.datasets.framed import FramedImages
from trainlib.data.datasets.images import DEVICE_MEMORY_FRACTION, InMemoryImages, StreamedImages
from trainlib.distributed.process_group import broadcast_object, gather_objects
from trainlib.errors import StoppedError, UserError
from trainlib.models import Classifier
from trainlib.models.forward.bitwise_probe import BitwiseProbe, layers_before, same_bits, timed
from trainlib.models.weights.files import weights_sha256
from trainlib.platform.accelerators import free_memory
from trainlib.randomness import key, permutation
from trainlib.runs.machine import launch_variables
from trainlib.runs.machine.limits import available_memory

logger = logging.getLogger("trainlib")

MEMORY_FRACTION = 0.5  # of what is available on a machine: the processes' copies together
TIME_FRACTION = 0.5  # of what is left before the end of a job
LEAST_COVERED = 0.5  # of the images of an epoch


class _Without(Exception):  # noqa: N818 - a reason, and no error
    """Why there is no cache."""


@dataclass(frozen=True)
class TrainingInputs:
    """The model and the data of a run, before the optimizer is built around them."""

    config: Config
    classifier: Classifier
    plan: Plan
    samples: DataModule
    accelerator: Accelerator
    num_classes: int


@dataclass(frozen=True)
class Features:
    """trained: the submodule that is left to train; batches: of its inputs, for the samples of the training set."""

    trained: nn.Module
    batches: FeatureLoader


def cache_features(
    parts: TrainingInputs, steps_done: int, stop_requested: Callable[[], bool], heartbeat: Callable[[], None]
) -> Features | None:
    """Return the features of all samples that are trained or validated on; None where they change or do not pay.

    Which of the two is told in the log; with `model.cache_features: true` it is a UserError. Raises StoppedError, on
    every rank, when one of them is asked to stop. `heartbeat` is called whenever something was achieved. A collective.
    """
    choice = parts.config.model.cache_features
    if choice is False or parts.config.model.freeze is None:
        return None
    try:
        return _Cache(parts).fill(steps_done, stop_requested, heartbeat)
    except _Without as why:
        if choice is True:
            raise UserError(f"model.cache_features: got true, but {why}: mend that, or leave it out") from None
        if parts.accelerator.is_main_process:
            logger.info("what the frozen layers give is not kept: %s", why)
        return None


class _Cache:
    """An attempt to do without the frozen layers."""

    def __init__(self, parts: TrainingInputs):
        config, accelerator, samples = parts.config, parts.accelerator, parts.samples
        self.parts, self.images = parts, samples.train
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process
        self.ids_N = torch.cat([parts.plan.ids_N, samples.val_ids])
        rank_slice = samples.train.rank_slice
        steps = [micro_batch for batch in parts.plan.batches(0) for micro_batch in rank_slice.micro_batches(batch)]
        evaluation = [micro_batch for _, micro_batch in rank_slice.split(samples.val_ids, samples.eval_batch_size)]
        self.images_of_size: Counter[int] = Counter()
        for micro_batch in (*steps, *evaluation):
            self.images_of_size[len(micro_batch)] += len(micro_batch)
        micro_batches = [(micro_batch, True) for micro_batch in steps] + [
            (micro_batch, False) for micro_batch in evaluation
        ]
        self.probes = list(
            {
                (len(micro_batch), training): (micro_batch, training)
                for micro_batch, training in micro_batches
                if len(micro_batch)
            }.values()
        )
        self.chunk = max(gather_objects(max(map(len, steps))))
        self.probe = BitwiseProbe(parts.classifier, accelerator, config.seed)

    def fill(self, steps_done: int, stop_requested: Callable[[], bool], heartbeat: Callable[[], None]) -> Features:
        """Compute all features. Raises _Without, on every rank, where that is no use."""
        started = time.perf_counter()
        self._require_same_features()
        epochs = (self.parts.plan.total_steps - steps_done) / self.parts.plan.steps_per_epoch
        self._require_epochs(epochs)
        path, sizes, covered = self._choose(heartbeat)
        front = layers_before(self.parts.classifier.module, path)
        compute = partial(self.probe.frozen_features, front)
        seconds, first = self._first_chunk(path, compute)
        chunks = self._chunks()
        self._require_time(len(chunks) * seconds)
        rows = torch.empty(len(self.ids_N), *first.shape[1:], dtype=first.dtype, device=self._place(first))
        if self.is_main:
            logger.info("computing what %s gets of %d images, once ...", path, len(rows))
        self._compute(compute, chunks, rows, stop_requested, heartbeat)
        if self.is_main:
            step_seconds = min(timed(lambda: self.probe.run_submodule(path, first, training=True))[0] for _ in range(3))
            self._tell(rows, time.perf_counter() - started, len(chunks) * seconds * covered, (step_seconds, seconds))
        images = CachedFeatures(compute, self.images, self.ids_N, rows, sizes)
        return Features(self.parts.classifier.module.get_submodule(path), FeatureLoader(self.images, images))

    def _require_same_features(self) -> None:
        """Raise _Without where the images of a sample, or the frozen layers, are not the same in every epoch."""
        if self.parts.config.model.unfreeze is not None:
            raise _Without("model.unfreeze trains the frozen layers from some step on")
        if self.parts.config.data.augment != Augment():
            raise _Without("data.augment makes other images in every epoch")
        if self.parts.config.data.train_image_size not in (None, self.parts.config.data.image_size):
            raise _Without("data.train_image_size makes other images in training than in validation")
        if self.parts.config.evaluation.test_time != "none":
            raise _Without("evaluation.test_time looks at several views of an image")
        images = self.images.images
        pictures = images.pictures if isinstance(images, FramedImages) else images
        if not isinstance(pictures, InMemoryImages | StreamedImages):
            raise _Without("images that a data set given in Python fetches may be others each time")

    def _require_epochs(self, epochs: float) -> None:
        """Where nobody insists, it must save more images' passes than the trials and the cache itself take."""
        trial = (2 * sum(len(micro_batch) for micro_batch, _ in self.probes) + 4 * self.chunk) * self.world_size
        pays = broadcast_object((epochs - 1) * len(self.ids_N) > trial)
        if not pays and self.parts.config.model.cache_features == "auto":
            raise _Without(f"that takes longer than it saves in {epochs:.3g} epochs of {len(self.ids_N)} images")

    def _choose(self, heartbeat: Callable[[], None]) -> tuple[str, frozenset[int], float]:
        """Return the submodule to train: of those that hold all that is trained, the smallest that will do.

        Also the sizes of this rank's batches that keep their bits, and the part of all images that are in such.
        """
        paths = self.probe.submodules
        kept = self._kept(torch.cat([self.ids_N[:0], *(micro_batch for micro_batch, _ in self.probes)]), heartbeat)
        images = self.images.model_inputs([micro_batch for micro_batch, _ in self.probes])
        probes = ((images_NCHW, training) for images_NCHW, (_, training) in zip(images, self.probes, strict=True))
        result = self.probe.compare(probes, kept, heartbeat)
        sizes = {path: frozenset(self.images_of_size) - result.differing[path] for path in paths}
        covered = {path: sum(self.images_of_size[size] for size in sizes[path]) for path in paths}
        every = gather_objects((covered, sum(self.images_of_size.values()), result))
        why = "layers all over the model are trained"
        for path in paths:
            unfit = next((theirs.unsuitable[path] for _, _, theirs in every if path in theirs.unsuitable), None)
            share = sum(covered[path] for covered, _, _ in every) / sum(total for _, total, _ in every)
            if unfit is None and share >= LEAST_COVERED:
                return path, sizes[path], share
            others = sorted(set().union(*(theirs.differing[path] for _, _, theirs in every)))
            why = unfit or f"what {path} gets has other bits in batches of {others} images than of {self.chunk}"
        raise _Without(why)

    def _kept(self, ids_N: Tensor, heartbeat: Callable[[], None]) -> dict[str, Tensor]:
        """Return each submodule's inputs for these samples, computed in other batches than those of a step."""
        mixed = self._padded(torch.cat([ids_N, self.ids_N[: self.chunk]]))
        order = permutation(key("trials", self.parts.config.seed), len(mixed))
        kept: dict[str, list[Tensor]] = {path: [] for path in self.probe.submodules}
        for images_NCHW in self.images.model_inputs(list(torch.split(mixed[order], self.chunk))):
            for path, features in self.probe.run_model(images_NCHW, training=False).inputs.items():
                kept[path].append(features)
            heartbeat()
        place_N = order.argsort()[: len(ids_N)]
        return {path: torch.cat(rows)[place_N.to(rows[0].device)] for path, rows in kept.items() if rows}

    def _first_chunk(self, path: str, compute: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
        """How long it takes to compute the features of some samples, and what they are: the same on every rank."""
        images_NCHW = next(self.images.model_inputs([self.ids_N[: self.chunk]]))
        expected = self.probe.run_model(images_NCHW, training=False).inputs[path]
        seconds, first = timed(lambda: compute(images_NCHW))
        if not all(gather_objects(same_bits(first, expected))):
            raise _Without(f"what comes before {path} gives other bits alone than inside of the model")
        if len({*gather_objects(weights_sha256({"features": first}))}) > 1:
            raise _Without("the ranks compute other bits than each other")
        return broadcast_object(seconds), first

    def _require_time(self, seconds: float) -> None:
        """Raise _Without where a job would end before its features are computed, again and again."""
        end_time = launch_variables.job_end_time()
        left = broadcast_object(end_time - time.time() if end_time is not None else math.inf)
        if seconds > left * TIME_FRACTION:
            raise _Without(f"that takes about {seconds:.0f} s, and the job has {left:.0f} s left (slurm.time)")

    def _place(self, first: Tensor) -> torch.device:
        """Where there is room for the features of all samples: on the device or, else, in memory."""
        device, need = first.device, first[0].nbytes * len(self.ids_N)
        if need <= free_memory(device) * DEVICE_MEMORY_FRACTION:
            place, fits = device, True
        else:
            available = available_memory() / launch_variables.local_world_size()
            place, fits = torch.device("cpu"), need <= available * MEMORY_FRACTION
        if not all(gather_objects(fits)):
            raise _Without(f"that is {need / 1e9:.1f} GB for each process, and there is too little memory")
        return place

    def _padded(self, ids_N: Tensor, multiple: int = 1) -> Tensor:
        """Return these samples and some more, to make whole chunks: all are computed in batches of one size."""
        missing = -len(ids_N) % (self.chunk * multiple)
        return torch.cat([ids_N, self.ids_N[torch.arange(missing) % len(self.ids_N)]])

    def _chunks(self) -> Tensor:
        """Return the samples in the order in which they are computed: int64 [round, rank, chunk]."""
        return self._padded(self.ids_N, self.world_size).view(-1, self.world_size, self.chunk)

    def _compute(
        self,
        compute: Callable[[Tensor], Tensor],
        chunks: Tensor,
        rows: Tensor,
        stop_requested: Callable[[], bool],
        heartbeat: Callable[[], None],
    ) -> None:
        """Fill in the rows: in each round every rank computes a chunk and gets all of them. All ranks stop at once."""
        done = 0
        for images_NCHW in self.images.model_inputs(list(chunks[:, self.rank])):
            mine = compute(images_NCHW)
            every, stop = _gather(mine, stop_requested(), self.world_size)
            if stop:
                raise StoppedError(
                    "Stopped while computing frozen features, before training began. Run again to start over."
                )
            for theirs in every:
                rows[done : done + self.chunk].copy_(theirs[: len(rows) - done])
                done = min(done + self.chunk, len(rows))
            heartbeat()

    def _tell(self, rows: Tensor, seconds: float, saved: float, step_seconds: tuple[float, float]) -> None:
        """Log how long the features took, and when that is made up for. `saved`: seconds an epoch."""
        trained, frozen = (1000 * value for value in step_seconds)
        logger.info(
            "features of %d images cached in %.1f s (%.0f MB): a batch of %d images then takes about %.1f instead of "
            "%.1f ms, so that this pays from epoch %d on",
            len(rows),
            seconds,
            rows.nbytes / 1e6,
            self.chunk,
            trained,
            trained + frozen,
            max(2, int(seconds / saved) + 1),
        )


def _gather(rows: Tensor, stop: bool, world_size: int) -> tuple[list[Tensor], bool]:
    """Every rank's rows, and whether any of them is to stop. A synchronisation point."""
    if world_size == 1:
        return [rows], stop
    flag = torch.tensor([stop], dtype=torch.uint8, device=rows.device)
    mine = torch.cat([rows.flatten().view(torch.uint8), flag])  # gloo knows bytes, but not every type
    every = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(every, mine)
    stops = [bool(theirs[-1].item()) for theirs in every]
    return [theirs[:-1].view(rows.dtype).view(rows.shape) for theirs in every], any(stops)
