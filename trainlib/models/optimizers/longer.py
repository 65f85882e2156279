"""Warnings of a schedule that ends before the run does, and the extension of one whose run is made longer."""

from __future__ import annotations

import yaml

from trainlib.config import Config, SchedulerConfig
from trainlib.data.batches.plan import to_steps
from trainlib.errors import RunDirectoryError, UserError
from trainlib.models.optimizers.schedule import Schedule

NEGLIGIBLE = 1e-4  # of the highest learning rate: smaller ones move no weight by much
WASTED_SHARE = 0.2  # of a run's steps: from here on a schedule that ends early is told
LOOKED_AHEAD = 100_000  # steps: about a second


def planned_steps(config: Config, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps of a run."""
    return config.train.steps if config.train.steps is not None else (config.train.epochs or 0) * steps_per_epoch


def describe_early_end(schedule: Schedule, total_steps: int) -> str | None:
    """Return from which step on the learning rate is next to nothing, if that wastes much of a run; None else.

    schedule   at its beginning

    Runs of more than LOOKED_AHEAD steps are not looked at. Raises UserError if it is 0 in all steps.
    """
    if total_steps > LOOKED_AHEAD:
        return None
    peak, rates = schedule.peak, schedule.preview(total_steps)
    last = max((step for step, rate in enumerate(rates, 1) if rate > NEGLIGIBLE * peak), default=0)
    if rates and max(rates) == 0:
        raise UserError(
            f"scheduler: the learning rate is 0 in all {total_steps} steps, where the optimizer's is {peak:.4g}: "
            "nothing would be learned. Change the schedule"
        )
    wasted = total_steps - last
    if wasted < WASTED_SHARE * total_steps or not wasted:
        return None
    return (
        f"the learning rate is at most {max(rates[last:]):.4g} from step {last + 1} on, {peak:.4g} is the highest: the "
        f"last {wasted} of {total_steps} steps change next to nothing. Make the schedule longer, or the run shorter"
    )


def lengthen(schedule: Schedule, earlier: Config, config: Config, steps_per_epoch: int) -> str | None:
    """Let a schedule follow a run that becomes longer; return what the learning rate is then, None if nothing changes.

    schedule   in the state of the checkpoint that the run goes on from
    earlier    the configuration of that checkpoint

    Raises RunDirectoryError, with the ways out, if the schedule has ended before the added steps, or if schedulers were
    added whose turn does not begin with them.
    """
    planned, total = planned_steps(earlier, steps_per_epoch), planned_steps(config, steps_per_epoch)
    if total <= planned:
        return None
    old, new = list(earlier.schedulers()), list(config.schedulers())
    if len(new) > len(old):
        _require_boundary(new, len(old), planned, steps_per_epoch)
    before = schedule.highest
    has_followed = schedule.follow_length()
    rates = schedule.preview(total)
    added = rates[planned - total :]
    names = " and ".join(dict.fromkeys(scheduler.name for _, scheduler in new[len(old) - 1 :])) or "no scheduler"
    if max(added) <= NEGLIGIBLE * schedule.peak:
        raise RunDirectoryError(_refusal(schedule, config, planned, total, max(added), steps_per_epoch))
    told = (
        f"the run becomes longer, by {total - planned} steps: learning rate {added[0]:.4g} in the first, "
        f"{added[-1]:.4g} in the last, at most {max(added):.4g} ({names})"
    )
    if has_followed:
        told += (
            f". {names} is as long as the run, so it is spread over {total} steps from here on: the next step has "
            f"learning rate {rates[0]:.4g}, where it was {before:.4g} when the run was to end at step {planned}"
        )
    return told


def _require_boundary(
    schedulers: list[tuple[str, SchedulerConfig]], num_old: int, planned: int, steps_per_epoch: int
) -> None:
    durations = [scheduler.duration for _, scheduler in schedulers[:num_old]]
    ends = sum(to_steps(duration, steps_per_epoch) for duration in durations if duration is not None)
    if num_old and ends != planned:
        raise RunDirectoryError(
            f"{schedulers[num_old - 1][0]}.duration: got {durations[-1]}, with which the added scheduler begins after "
            f"step {ends}, must end at step {planned}, to which the run was planned"
        )


def _refusal(schedule: Schedule, config: Config, planned: int, total: int, highest: float, steps_per_epoch: int) -> str:
    schedulers = [scheduler for _, scheduler in config.schedulers()]
    length = _duration(planned - schedule.start_of_last, steps_per_epoch)
    kept = [*schedulers[:-1], schedulers[-1].model_copy(update={"duration": length})]
    sections = [scheduler.model_dump(exclude_defaults=True) for scheduler in kept] + [{"name": "CosineAnnealingLR"}]
    listed = yaml.safe_dump(sections, default_flow_style=True, sort_keys=False, width=10_000).strip()
    asked = f"train.steps={total}" if config.train.steps is not None else f"train.epochs={config.train.epochs}"
    return (
        f"{asked}: {schedulers[-1].name} has ended at step {planned}, to which the run was planned: the "
        f"{total - planned} steps more would be trained at a learning rate of at most {highest:.4g}, where "
        f"{schedule.peak:.4g} was the highest. Add a scheduler for them, `--resume {asked} scheduler='{listed}'`, or "
        f"begin a new run with the weights of this one, `--name NEW {asked} model.weights=run:{config.name}`"
    )


def _duration(steps: int, steps_per_epoch: int) -> str:
    epochs, rest = divmod(steps, steps_per_epoch)
    return f"{steps}st" if rest else f"{epochs}ep"
