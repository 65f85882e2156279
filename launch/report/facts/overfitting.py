"""Whether the curves of a run say that it learned its training samples by heart. Pure: from points to a sentence."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from statistics import mean

from launch.report.facts.run_facts import RunFacts
from launch.report.facts.series import Points

EVALUATIONS = 3  # after the best one, at least: fewer may be noise
RISE = 0.05  # of the validation loss, as a part of its lowest value
FALL = 0.02  # of the training loss meanwhile, as a part of what it was then; or it is below any validation loss


def overfitting(run: RunFacts) -> str | None:
    """Return a sentence where the validation loss has risen since its lowest point, and the training loss has not."""
    train, val = run.points("loss", "train", "epoch"), run.points("loss", "val")
    found = parting(train, val)
    if found is None:
        return None
    best, now = found
    epoch = next((row.get("epoch") for row in run.rows.get(("val", None), []) if row["step"] == best[0]), None)
    where = f"step {best[0]:,}" + (f" (epoch {epoch})" if epoch is not None else "")
    tested = run.tested_step
    weights = (
        f" The weights of step {tested:,} were tested, not the last ones." if tested and tested < val[-1][0] else ""
    )
    meanwhile = f"fell from {best[2]:.3g} to {now[2]:.3g}" if now[2] < best[2] else f"is at {now[2]:.3g}"
    return (
        f"Overfitting: since {where} the validation loss has risen from {best[1]:.3g} to {now[1]:.3g}, while the "
        f"training loss {meanwhile}: what the model has learned since then, it has learned by heart.{weights} "
        "More pictures, more random changes (data.augment), weight decay or train.early_stopping help."
    )


def parting(train: Points, val: Points) -> tuple[tuple[int, float, float], tuple[int, float, float]] | None:
    """Return (step, validation loss, training loss) of the lowest validation loss and of the end; None if they agree.

    The end is the mean of the last evaluations, as single ones are noisy.
    """
    if len(val) <= EVALUATIONS or not train:
        return None
    best = min(range(len(val)), key=lambda index: (val[index][1], index))
    if len(val) - 1 - best < EVALUATIONS:
        return None
    step, lowest = val[best]
    last = mean(value for _, value in val[-EVALUATIONS:])
    before, after = _at(train, step), train[-1][1]
    has_parted = last > lowest + RISE * abs(lowest) and (after < before - FALL * abs(before) or after < lowest)
    return ((int(step), lowest, before), (int(val[-1][0]), last, after)) if has_parted else None


def _at(points: Points, step: float) -> float:
    """Return the value of the last point up to a step, or of the first point."""
    steps: Sequence[float] = [point[0] for point in points]
    return points[max(bisect_right(steps, step) - 1, 0)][1]
