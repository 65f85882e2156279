"""The learning rate over a run: torch's schedulers, one after another, stepped once per optimizer step or per epoch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from trainlib.config import SchedulerConfig
from trainlib.data.batches.plan import to_steps
from trainlib.errors import UserError
from trainlib.models.optimizers.build import KERNEL_OPTIONS

# What a scheduler that is as long as the schedule itself calls its length.
LENGTH_ARGUMENT = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}

# Options of a parameter group that no scheduler changes.
NOT_SCHEDULED = ("params", *KERNEL_OPTIONS)

Options = dict[str, Any]


class Schedule:
    """Sets the options of the optimizer's groups: `lr`, and with CyclicLR and OneCycleLR the momentum too.

    A list of schedulers runs in sequence. Each lasts its `duration`, the last one to the end of the run, and begins
    from the optimizer's configured options; a boundary is a milestone of torch's SequentialLR. Everything is counted
    in optimizer steps that were applied. Without a scheduler nothing changes.
    """

    def __init__(
        self,
        config: SchedulerConfig | list[SchedulerConfig] | None,
        optimizer: Optimizer,
        *,
        total_steps: int,
        steps_per_epoch: int,
    ):
        """`optimizer` is fresh: its options are the ones that every scheduler begins from.

        `config` is resolved: all but the last of a list have a duration, and ReduceLROnPlateau has its metric.

        Raises UserError for a value that torch refuses, in any of the schedulers.
        """
        self._elements = [] if config is None else [config] if isinstance(config, SchedulerConfig) else list(config)
        self._optimizer = optimizer
        self._steps_per_epoch = steps_per_epoch
        self._starts = _starts(self._elements, steps_per_epoch)
        self._ends = [*self._starts[1:], total_steps]
        self._base = _options(optimizer)
        self._step = 0  # optimizer steps applied
        self._index = 0  # the scheduler whose turn it is
        self._current: lr_scheduler.LRScheduler | None = None
        for index in range(len(self._elements)):
            self._try(index)
        if self._elements:
            self._begin(0)

    @property
    def lr(self) -> float:
        """The learning rate of the optimizer's first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        """Call after every optimizer step that was applied."""
        self._step += 1
        if self._index + 1 < len(self._starts) and self._step == self._starts[self._index + 1]:
            self._begin(self._index + 1)
        elif self._elements and self._elements[self._index].interval == "step":
            self._advance()

    def after_epoch(self, metrics: Mapping[str, float]) -> None:
        """Call after the last step of every epoch. `metrics`: `val/loss` and the like, for ReduceLROnPlateau."""
        # A scheduler whose turn began with this epoch's last step is at its own epoch 0.
        if (
            self._elements
            and self._elements[self._index].interval == "epoch"
            and self._step > self._starts[self._index]
        ):
            self._advance(metrics)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on from here: plain numbers, strings, lists and dictionaries."""
        return {
            "step": self._step,
            "index": self._index,
            "scheduler": _plain(self._current.state_dict()) if self._current else {},
            "groups": _options(self._optimizer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called, before or after the optimizer's own state is loaded.

        A scheduler goes on with the lengths that it began with (`T_max`, `total_steps`), though the run be extended.
        Where they were the run's own, it stays at its last value from there on.
        """
        self._step = state["step"]
        if self._elements:
            self._begin(state["index"])
            assert self._current is not None
            self._current.load_state_dict(state["scheduler"])
        _set_options(self._optimizer, state["groups"])
        # torch warns of a scheduler that moves before the optimizer has: it has, in the process that saved the state.
        if self._step > 0:
            self._optimizer._opt_called = True  # type: ignore[attr-defined]

    def _try(self, index: int) -> None:
        """Make a scheduler and move it once, so that a value that torch refuses is told before training."""
        config = self._elements[index]
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
        """Hand over to a scheduler: its constructor sets the learning rate of its step or epoch 0."""
        config = self._elements[index]
        args = config.args
        length = LENGTH_ARGUMENT.get(config.name)
        if length is not None and not {length, "epochs", "steps_per_epoch"} & args.keys():
            args[length] = self._length(index)
        _set_options(self._optimizer, self._base)
        self._current = getattr(lr_scheduler, config.name)(self._optimizer, **args)
        self._index = index

    def _advance(self, metrics: Mapping[str, float] | None = None) -> None:
        scheduler, config = self._current, self._elements[self._index]
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            assert metrics is not None, "ReduceLROnPlateau has interval epoch"
            assert config.metric is not None, "resolved with the configuration"
            scheduler.step(metrics[config.metric])
        elif not self._is_over():
            assert scheduler is not None
            scheduler.step()

    def _is_over(self) -> bool:
        """Whether the scheduler has come to its last value, to stay there."""
        scheduler = self._current
        if isinstance(scheduler, lr_scheduler.OneCycleLR):
            return bool(scheduler.last_epoch + 1 >= scheduler.total_steps)  # torch goes past it, and then fails
        if isinstance(scheduler, lr_scheduler.CosineAnnealingLR) and "T_max" not in self._elements[self._index].args:
            return bool(scheduler.last_epoch >= scheduler.T_max)  # torch climbs up again, as a T_max asks for
        return False

    def _length(self, index: int) -> int:
        """How long a scheduler runs, in its own interval's unit; an epoch that has begun counts."""
        steps = max(1, self._ends[index] - self._starts[index])
        return steps if self._elements[index].interval == "step" else -(-steps // self._steps_per_epoch)


def _starts(elements: list[SchedulerConfig], steps_per_epoch: int) -> list[int]:
    """The optimizer step at which each scheduler begins."""
    starts = [0]
    for element in elements[:-1]:
        assert element.duration is not None, "every scheduler of a list but the last has a duration"
        starts.append(starts[-1] + to_steps(element.duration, steps_per_epoch))
    return starts


def _options(optimizer: Optimizer) -> list[Options]:
    return [
        {key: value for key, value in group.items() if key not in NOT_SCHEDULED} for group in optimizer.param_groups
    ]


def _set_options(optimizer: Optimizer, options: list[Options]) -> None:
    """Give every group exactly these options: what one scheduler leaves there must not reach the next."""
    for group, values in zip(optimizer.param_groups, options, strict=True):
        kept = {key: value for key, value in group.items() if key in NOT_SCHEDULED}
        group.clear()
        group.update(values, **kept)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """What changes as a scheduler runs. Its milestones, phases and functions come from its arguments again."""
    return {key: value for key, value in state.items() if isinstance(value, int | float | str | list | None)}
