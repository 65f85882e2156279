"""Several runs on one page: their results and configurations side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from launch.report.compare import Ranking, config_differences
from launch.report.curves import colour_of
from launch.report.facts import RunFacts
from launch.report.markup import Content, element
from launch.report.tables import Cell, duration, number, sortable, table


def results(ranked: Ranking, now: datetime) -> Content:
    """One line for each run, the best value of each column marked."""
    runs = ranked.runs
    columns = [
        _marked([run.test() for run in runs], max),
        _marked([run.test("loss") for run in runs], min),
        _marked([_best(run, "accuracy") for run in runs], max),
        _marked([_best(run, "loss") for run in runs], min),
    ]
    rows: list[list[Cell | Content]] = [
        [
            Cell(_named(run, index)),
            Cell(element("span", run.run.status, class_=f"badge {run.run.status}")),
            *(column[index] for column in columns),
            f"{run.last_step:,}",
            Cell(duration(seconds), is_number=True, sort_by=seconds),
            len(run.attempts),
        ]
        for index, (run, seconds) in enumerate(zip(runs, [run.seconds(now) for run in runs], strict=True))
    ]
    headings = ["run", "status", "test accuracy", "test loss", "best val accuracy", "best val loss"]
    return sortable([*headings, "steps", "training time", "attempts"], rows)


def differences(runs: Sequence[RunFacts]) -> Content:
    """The keys that are not the same in all runs."""
    different = config_differences(runs)
    if not different:
        return element("p", "There are none: the configurations are the same but for their names.", class_="note")
    rows = [
        [Cell(element("code", key), heads_row=True), *(Cell(element("code", value)) for value in values)]
        for key, values in different
    ]
    return table(["key", *(_named(run, index) for index, run in enumerate(runs))], rows)


def classes(runs: Sequence[RunFacts]) -> Content:
    """F1 of each class in each run, where all runs were evaluated on the same split with the same classes."""
    evaluations = [run.evaluations[0] for run in runs if run.evaluations]
    if len(evaluations) < len(runs) or len({(each.split, *each.classes) for each in evaluations}) > 1:
        return None
    rows = [
        [Cell(name), *_marked([evaluation.per_class[index].f1 for evaluation in evaluations], max)]
        for index, name in enumerate(evaluations[0].classes)
    ]
    caption = f"F1 on the {evaluations[0].split} split."
    return [sortable(["class", *(run.name for run in runs)], rows), element("p", caption, class_="note")]


def _named(run: RunFacts, index: int) -> Content:
    """The run's name with the colour of its curves."""
    return [element("i", class_=f"swatch c{colour_of(index)}"), run.name]


def _best(run: RunFacts, key: str) -> float | None:
    best = run.best_val(key)
    return best[1] if best else None


def _marked(values: Sequence[float | None], best: Callable[[Iterable[float]], float]) -> list[Cell]:
    """Cells of numbers, the best marked unless all are equal."""
    present = [value for value in values if value is not None]
    chosen = best(present) if len(set(present)) > 1 else None
    return [Cell(number(value), is_number=True, best=value is not None and value == chosen) for value in values]
