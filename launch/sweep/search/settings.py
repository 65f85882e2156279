"""What a sweep file says of a search: `space`, `trials`, `sampler`, `metric`, `rungs` and `reduction_factor`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from launch.sweep.search.space import wrong_axis
from trainlib.config import Config
from trainlib.config.checking.suggest import format_value, nearest
from trainlib.config.reading.yaml_source import Source
from trainlib.errors import ConfigError, Mistake

KEYS_OF_SEARCH = ("space", "trials", "sampler", "metric", "rungs", "reduction_factor")
RANDOM, TPE = SAMPLERS = ("random", "tpe")
REDUCTION_FACTOR = 3


@dataclass(frozen=True)
class Search:
    """How the trials of a sweep are sampled, and which of them go on.

    metric             a split and a quantity, as in checkpoint.best; mode: whether small or large values are good
    rungs              the epochs at whose end trials are compared, ascending; empty: every trial trains to its end
    reduction_factor   one in so many goes on
    trials             the number of samples; None without a space
    """

    metric: str
    mode: Literal["min", "max"]
    rungs: tuple[int, ...] = ()
    reduction_factor: int = REDUCTION_FACTOR
    space: Mapping[str, Any] = field(default_factory=dict)
    trials: int | None = None
    sampler: str = RANDOM
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Return what a search must not change when it goes on; the number of trials may."""
        kept = asdict(self)
        del kept["trials"]
        return kept | {"rungs": list(self.rungs)}


def has_search(content: Mapping[str, Any]) -> bool:
    """Return True if a sweep file samples values or stops trials early."""
    return content.get("space") is not None or content.get("rungs") is not None


def search_of(source: Source, seed: int, configs: Sequence[Config]) -> Search:
    """Return the search that a file without mistakes in its form describes.

    configs   of its trials
    Raises ConfigError for a rung that a trial does not reach, and where trials have no metric in common.
    """
    content = source.values
    rungs = tuple(int(rung[:-2]) for rung in content.get("rungs") or [])
    mistakes = []
    shortest = min((c.train.epochs for c in configs if c.train.epochs is not None), default=None)
    for index, rung in enumerate(rungs):
        if shortest is not None and rung > shortest:
            rule = f"got {rung}ep, must be at most {shortest}ep, the length of the runs: train longer, or take it out"
            mistakes.append(Mistake(f"rungs.{index}", rule, source.locate(f"rungs.{index}")))
    metrics = {
        (c.checkpoint.best.metric, c.checkpoint.best.mode or "max") if c.checkpoint.best else None for c in configs
    }
    metric = metrics.pop()
    if metric is None or metrics:
        rule = "is missing, and checkpoint.best names none" if metric is None else "is missing, and runs have several"
        mistakes.append(Mistake("metric", f"{rule}: must be a metric, such as val/accuracy", source.locate("")))
    if mistakes or metric is None:
        raise ConfigError(mistakes)
    factor = content.get("reduction_factor") or REDUCTION_FACTOR
    space, sampler = content.get("space") or {}, content.get("sampler") or RANDOM
    return Search(*metric, rungs, factor, space, content.get("trials"), sampler, seed)


def wrong_search(content: Mapping[str, Any], most_trials: int) -> Iterator[Mistake]:
    """Yield what is wrong with the keys of a search, apart from names of keys and the configurations."""
    space, trials, sampler = content.get("space"), content.get("trials"), content.get("sampler")
    if isinstance(space, dict):
        for key, axis in space.items():
            yield from wrong_axis(f"space.{key}", axis)
    if space is None:
        for key in ("trials", "sampler"):
            if content.get(key) is not None:
                yield Mistake(key, "needs a space, from which the trials are sampled: add one, or leave it out")
    elif trials is None:
        yield Mistake("trials", "is missing, must be the number of samples of the space, such as 16")
    elif not (type(trials) is int and 1 <= trials <= most_trials):
        yield Mistake("trials", f"got {format_value(trials)}, must be a whole number from 1 to {most_trials}")
    if sampler not in (None, *SAMPLERS):
        guess = nearest(str(sampler), SAMPLERS)
        rule = f"got {format_value(sampler)}, must be one of {', '.join(SAMPLERS)}"
        yield Mistake("sampler", rule + (f"; did you mean {guess}?" if guess else ""))
    for key in ("grid", "runs"):
        if sampler == TPE and content.get(key) is not None:
            yield Mistake(key, "cannot stand beside sampler: tpe, which learns from trial to trial: move it into space")
    metric = content.get("metric")
    if metric is not None and not isinstance(metric, str):
        yield Mistake("metric", f"got {format_value(metric)}, must be a metric, such as val/accuracy")
    yield from _wrong_rungs(content)


def _wrong_rungs(content: Mapping[str, Any]) -> Iterator[Mistake]:
    rungs, factor = content.get("rungs"), content.get("reduction_factor")
    if factor is not None and not (type(factor) is int and factor >= 2):
        yield Mistake("reduction_factor", f"got {format_value(factor)}, must be a whole number >= 2: one in so many")
    if rungs is None:
        if factor is not None:
            yield Mistake("reduction_factor", "needs rungs, where trials are compared: add them, or leave it out")
        return
    if not (isinstance(rungs, list) and rungs):
        yield Mistake("rungs", f"got {format_value(rungs)}, must be a list of epochs, such as [1ep, 3ep, 9ep]")
        return
    wrong = [i for i, rung in enumerate(rungs) if not re.fullmatch(r"[1-9][0-9]{0,8}ep", str(rung))]
    for index in wrong:
        rule = "must be whole epochs, such as 3ep: there the metric is known"
        yield Mistake(f"rungs.{index}", f"got {format_value(rungs[index])}, {rule}")
    for index in range(1, len(rungs)) if not wrong else ():
        if int(rungs[index][:-2]) <= int(rungs[index - 1][:-2]):
            yield Mistake(f"rungs.{index}", f"got {rungs[index]}, must be later than {rungs[index - 1]} before it")
