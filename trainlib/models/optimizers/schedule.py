"""The learning-rate schedule: torch's schedulers, one after another, stepped once per optimizer step or per epoch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from trainlib.config import SchedulerConfig
from trainlib.data.batches.plan import to_steps
from trainlib.errors import UserError
from trainlib.models.optimizers.build import KERNEL_OPTIONS

# The argument for the length of a scheduler that may last as long as its part of the schedule.
LENGTH_ARGUMENT = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}

# Options of a parameter group that no scheduler changes.
NOT_SCHEDULED = ("params", *KERNEL_OPTIONS)

Options = dict[str, Any]


class Schedule:
    """The learning-rate schedule, which sets the `lr` of an optimizer's parameter groups; some also set the momentum.

    A list of schedulers runs in sequence. Each lasts its `duration`, the last one to the end of the run, and begins
    with the optimizer's configured options; a boundary is a milestone of torch's SequentialLR. Steps are optimizer
    steps that were applied. Without a scheduler nothing changes.
    """

    def __init__(
        self,
        config: SchedulerConfig | list[SchedulerConfig] | None,
        optimizer: Optimizer,
        *,
        total_steps: int,
        steps_per_epoch: int,
    ):
        """Start the schedule at step 0.

        config      resolved: all schedulers of a list but the last have a duration, and ReduceLROnPlateau a metric
        optimizer   new: its options are those that every scheduler begins with

        Raises UserError for an argument that torch refuses, in any of the schedulers.
        """
        self._configs = [] if config is None else [config] if isinstance(config, SchedulerConfig) else list(config)
        self._optimizer = optimizer
        self._steps_per_epoch = steps_per_epoch
        self._starts = _starts(self._configs, steps_per_epoch)
        self._ends = [*self._starts[1:], total_steps]
        self._base = _options(optimizer)
        self._step = 0  # optimizer steps applied
        self._index = 0  # of the current scheduler
        self._current: lr_scheduler.LRScheduler | None = None
        self._num_moves = 0  # of the current scheduler, with those after its last value
        self.has_followed = False  # in this process, a run that became longer
        for index in range(len(self._configs)):
            self._try(index)
        if self._configs:
            self._begin(0)

    @property
    def lr(self) -> float:
        """The learning rate of the optimizer's first parameter group, before a layer's scale."""
        group = self._optimizer.param_groups[0]
        return float(group.get("unscaled_lr", group["lr"]))

    def after_step(self) -> None:
        """Move the schedule by one step; to be called after every optimizer step that was applied."""
        self._step += 1
        if self._index + 1 < len(self._starts) and self._step == self._starts[self._index + 1]:
            self._begin(self._index + 1)
        elif self._configs and self._configs[self._index].interval == "step":
            self._advance()

    def after_epoch(self, metrics: Mapping[str, float]) -> None:
        """Move the schedule by one epoch; to be called after `after_step` of its last step.

        metrics   the epoch's metrics by name, such as `val/loss`, for ReduceLROnPlateau
        """
        # A scheduler whose turn began with this epoch's last step is at its own epoch 0.
        if self._configs and self._configs[self._index].interval == "epoch" and self._step > self._starts[self._index]:
            self._advance(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of plain numbers, strings, lists and dictionaries."""
        return {
            "step": self._step,
            "index": self._index,
            "num_moves": self._num_moves,
            "scheduler": _plain(self._current.state_dict()) if self._current else {},
            "groups": _options(self._optimizer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, before or after the optimizer's own state is loaded.

        A scheduler keeps the length that it began with (`T_max`, `total_steps`) if the run has been made longer, until
        `follow_length` is called. If it has ended and the list goes on, the next one begins, for which the optimizer's
        own state must have been loaded before.
        """
        self._step = state["step"]
        if self._configs:
            self._begin(state["index"])
            assert self._current is not None
            self._current.load_state_dict(state["scheduler"])
            self._num_moves = state.get("num_moves", self._current.last_epoch)
        _set_options(self._optimizer, state["groups"])
        while self._index + 1 < len(self._starts) and self._step >= self._starts[self._index + 1]:
            self._begin(self._index + 1)  # a scheduler that was added for the steps by which the run became longer
        # torch warns of a scheduler that moves before the optimizer has: it has, in the process that saved the state.
        if self._step > 0:
            self._optimizer._opt_called = True  # type: ignore[attr-defined]

    def follow_length(self) -> bool:
        """Give the current scheduler the length of a run that has become longer, if its configuration leaves it open.

        From here on its learning rates are those of a run that was as long from the beginning. Returns True if they are
        other ones than before.
        """
        if not self._configs or not self._is_open(self._index):
            return False
        assert self._current is not None
        if getattr(self._current, LENGTH_ARGUMENT[self._configs[self._index].name]) == self._length(self._index):
            return False
        num_moves = self._num_moves
        self._begin(self._index)
        for _ in range(num_moves):
            self._advance()
        self.has_followed = True
        return True

    def preview(self, total_steps: int) -> list[float]:
        """Return the largest learning rate of any parameter group in each step from here to `total_steps`.

        The schedule is left as it is. ReduceLROnPlateau, which follows a metric, is taken to stay where it is.
        """
        saved = copy.deepcopy(self.state_dict())
        rates = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler", UserWarning)
            while self._step < total_steps:
                rates.append(self.highest)
                self.after_step()
                is_plateau = isinstance(self._current, lr_scheduler.ReduceLROnPlateau)
                if self._step % self._steps_per_epoch == 0 and not is_plateau:
                    self.after_epoch({})
            self.load_state_dict(saved)
        return rates

    @property
    def highest(self) -> float:
        """The highest learning rate that any parameter group has now."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    @property
    def peak(self) -> float:
        """The learning rate that the current scheduler scales, or the highest that it comes to, of any group."""
        groups = self._optimizer.param_groups
        return max(float(group.get(key, 0.0)) for group in groups for key in ("lr", "initial_lr", "max_lr"))

    @property
    def start_of_last(self) -> int:
        """The optimizer step at which the last scheduler begins."""
        return self._starts[-1]

    def _try(self, index: int) -> None:
        """Make a scheduler and move it once, so that an argument that torch refuses is reported before training."""
        config = self._configs[index]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler", UserWarning)
                self._begin(index)
                self._advance({config.metric: 0.0} if config.metric else {})
        except ZeroDivisionError as error:
            raise UserError(f"scheduler {config.name}: a period, or a part of it, is 0 long: make it longer") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"scheduler {config.name}: {error}") from error

    def _begin(self, index: int) -> None:
        """Make a scheduler the current one: its constructor sets the learning rate of its step or epoch 0."""
        config = self._configs[index]
        args = config.args
        if self._is_open(index):
            args[LENGTH_ARGUMENT[config.name]] = self._length(index)
        _set_options(self._optimizer, self._base)
        with _unscaled(self._optimizer):
            self._current = getattr(lr_scheduler, config.name)(self._optimizer, **args)
        self._index = index
        self._num_moves = 0

    def _advance(self, metrics: Mapping[str, float] | None = None) -> None:
        scheduler, config = self._current, self._configs[self._index]
        self._num_moves += 1
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            assert metrics is not None, "ReduceLROnPlateau has interval epoch"
            assert config.metric is not None, "resolved with the configuration"
            with _unscaled(self._optimizer):
                scheduler.step(metrics[config.metric])
        elif not self._is_over():
            assert scheduler is not None
            with _unscaled(self._optimizer):
                scheduler.step()

    def _is_over(self) -> bool:
        """Return True if the scheduler has reached its last value, at which it stays."""
        scheduler = self._current
        if isinstance(scheduler, lr_scheduler.OneCycleLR):
            return bool(scheduler.last_epoch + 1 >= scheduler.total_steps)  # torch goes past it, and then fails
        if isinstance(scheduler, lr_scheduler.CosineAnnealingLR) and "T_max" not in self._configs[self._index].args:
            return bool(scheduler.last_epoch >= scheduler.T_max)  # torch climbs up again, as a T_max asks for
        return False

    def _is_open(self, index: int) -> bool:
        """Return True if the configuration leaves the length of a scheduler to its part of the run."""
        config = self._configs[index]
        length = LENGTH_ARGUMENT.get(config.name)
        return length is not None and not {length, "epochs", "steps_per_epoch"} & config.args.keys()

    def _length(self, index: int) -> int:
        """Return the length of a scheduler in steps or epochs, by its interval; a begun epoch counts as one."""
        steps = max(1, self._ends[index] - self._starts[index])
        return steps if self._configs[index].interval == "step" else -(-steps // self._steps_per_epoch)


def _starts(configs: list[SchedulerConfig], steps_per_epoch: int) -> list[int]:
    """Return the optimizer step at which each scheduler begins."""
    starts = [0]
    for config in configs[:-1]:
        assert config.duration is not None, "every scheduler of a list but the last has a duration"
        starts.append(starts[-1] + to_steps(config.duration, steps_per_epoch))
    return starts


def _options(optimizer: Optimizer) -> list[Options]:
    return [
        {key: value for key, value in group.items() if key not in NOT_SCHEDULED} for group in optimizer.param_groups
    ]


def _set_options(optimizer: Optimizer, options: list[Options]) -> None:
    """Set every group's options to exactly these, so that no option of one scheduler reaches the next."""
    for group, values in zip(optimizer.param_groups, options, strict=True):
        kept = {key: value for key, value in group.items() if key in NOT_SCHEDULED}
        group.clear()
        group.update(values, **kept)


@contextmanager
def _unscaled(optimizer: Optimizer) -> Iterator[None]:
    """Context manager: the groups have their learning rates without their layers' scales inside, for a scheduler."""
    scaled = [group for group in optimizer.param_groups if "lr_scale" in group]
    for group in scaled:
        group["lr"] = group["unscaled_lr"]
    yield
    for group in scaled:
        group["unscaled_lr"] = group["lr"]
        group["lr"] *= group["lr_scale"]


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a scheduler's state; its milestones and functions follow from its arguments."""
    return {key: value for key, value in state.items() if isinstance(value, int | float | str | list | None)}
