"""Samples of the tree-structured Parzen estimator (TPE, Bergstra et al., 2011), as Optuna draws them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from launch.sweep.search.space import Axis, is_whole, rounded
from trainlib.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MISSING = "sampler: tpe needs Optuna, which is not installed here: pip install 'trainlaunch[tune]', or sampler: random"


@dataclass(frozen=True)
class Told:
    """What TPE learns of an earlier trial.

    values     that were sampled for it
    results    its metric by the epoch of each rung that it came to; empty for one that has failed
    final      the metric at its end; None where it was stopped at a rung, or still trains
    """

    values: Mapping[str, Any]
    results: Mapping[int, float]
    final: float | None


def require_optuna() -> None:
    """Raise UserError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(MISSING) from error


def sample(
    space: Mapping[str, Axis], told: Sequence[Told], mode: Literal["min", "max"], seed: int, number: int
) -> dict[str, Any]:
    """Return the values of a trial: a pure function of the space, what is told, the seed and the trial's number."""
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=_seed(seed, number))
    study = optuna.create_study(sampler=sampler, direction="minimize" if mode == "min" else "maximize")
    distributions = {key: _distribution(axis) for key, axis in space.items()}
    states = optuna.trial.TrialState
    for trial in told:
        study.add_trial(
            optuna.trial.create_trial(
                state=states.PRUNED if trial.final is None else states.COMPLETE,
                value=trial.final,
                params={key: _told(space[key], value) for key, value in trial.values.items()},
                distributions=distributions,
                intermediate_values=dict(trial.results),
            )
        )
    drawn = study.ask(distributions).params
    return {key: _value(axis, drawn[key]) for key, axis in space.items()}


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, list):
        return CategoricalDistribution(range(len(axis)))  # a value may be a mapping, which Optuna does not take
    kind = IntDistribution if is_whole(axis) else FloatDistribution
    return kind(axis["min"], axis["max"], log=bool(axis.get("log")))


def _told(axis: Axis, value: Any) -> Any:
    return axis.index(value) if isinstance(axis, list) else value


def _value(axis: Axis, drawn: Any) -> Any:
    return axis[drawn] if isinstance(axis, list) else rounded(axis, drawn)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"tpe\0{seed}\0{number}".encode()).digest()[:4])
