"""The learning rate of the steps by which a resumed run becomes longer: told before training, refused if it is none."""

from __future__ import annotations

import yaml

from trainlib.config import Config, SchedulerConfig
from trainlib.data.batches.plan import to_steps
from trainlib.errors import RunDirectoryError
from trainlib.models.optimizers.schedule import Schedule

NEGLIGIBLE = 1e-4  # of the highest learning rate: smaller ones move no weight by much


def planned_steps(config: Config, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps of a run."""
    return config.train.steps if config.train.steps is not None else (config.train.epochs or 0) * steps_per_epoch


def describe_longer_run(schedule: Schedule, earlier: Config, config: Config, steps_per_epoch: int) -> str | None:
    """Return what the learning rate is in the steps that a configuration adds to an earlier one; None if it adds none.

    schedule   in the state of the checkpoint that the run goes on from

    Raises RunDirectoryError, with the ways out, if the schedule has ended by then, or if schedulers were added whose
    turn does not begin with the added steps.
    """
    planned, total = planned_steps(earlier, steps_per_epoch), planned_steps(config, steps_per_epoch)
    if total <= planned:
        return None
    old, new = list(earlier.schedulers()), list(config.schedulers())
    if len(new) > len(old):
        _require_boundary(new, len(old), planned, steps_per_epoch)
    rates = schedule.preview(total)[planned - total :]
    names = " and ".join(dict.fromkeys(scheduler.name for _, scheduler in new[len(old) - 1 :])) or "no scheduler"
    if max(rates) <= NEGLIGIBLE * schedule.peak or (len(new) == len(old) and _is_one_cycle(new)):
        raise RunDirectoryError(_refusal(schedule, config, planned, total, max(rates), steps_per_epoch))
    return (
        f"the run becomes longer, by {total - planned} steps: learning rate {rates[0]:.4g} in the first, "
        f"{rates[-1]:.4g} in the last, at most {max(rates):.4g} ({names})"
    )


def _is_one_cycle(schedulers: list[tuple[str, SchedulerConfig]]) -> bool:
    """Return True if the last scheduler is a cycle as long as the run was planned, which torch does not go beyond."""
    last = schedulers[-1][1] if schedulers else None
    return last is not None and last.name == "OneCycleLR" and not {"total_steps", "epochs"} & last.args.keys()


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
