"""What the page of a search shows above its runs: all trials, what matters, and the command of the best one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launch.sweep.file.grid import Sweep
from launch.sweep.results import best_command, key_importances, results_facts, results_table
from trainlib.runs import RUNS
from trainlib.runs.terminal.tables import Table

MOST = 12  # trials whose curves and configurations are shown


@dataclass(frozen=True)
class SearchView:
    """A search, as its page shows it.

    metric        by which trials are compared
    trials        a row for each, the best one first, as `launch sweep --results` has them
    importances   of each key, from 0 to 1, the most important one first; judged says by which results
    command       trains the best trial again; None where there is no result yet
    shown         names of the best trials that have begun
    """

    name: str
    metric: str
    trials: Table
    importances: Mapping[str, float]
    judged: str
    command: str | None
    shown: tuple[str, ...]


def view_of_search(sweep: Sweep) -> SearchView:
    """Return a search as its page shows it."""
    assert sweep.search is not None, "the caller has looked"
    rungs = sweep.search.rungs
    names = [fact["name"] for fact in results_facts(sweep)]
    return SearchView(
        name=sweep.name,
        metric=sweep.search.metric,
        trials=results_table(sweep),
        importances=key_importances(sweep),
        judged=f"after epoch {rungs[0]}" if rungs else "at the end",
        command=best_command(sweep),
        shown=tuple(name for name in names if (RUNS / name / "config.yaml").is_file())[:MOST],
    )
