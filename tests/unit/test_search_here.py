"""A search on this machine: the tuner is killed wherever it writes, and still comes to the same table.

The trials are not trained here: each writes the rows that a table holds for it.
"""

from __future__ import annotations

import html
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sweep_files import written

from launch.cli import main
from launch.sweep import tuner
from launch.sweep.file.grid import Element, Sweep, read_sweep, with_samples
from launch.sweep.results import results_facts, results_table
from launch.sweep.search import journal
from launch.sweep.shares import Shares
from trainlib.config import dump_config
from trainlib.errors import UserError
from trainlib.runs.machine.launch_variables import STOP_AT

SEARCH = """\
name: s
configs: [quickstart]
overrides: {train.epochs: 9}
space: {optimizer.lr: {min: 1e-4, max: 1, log: true}, optimizer.momentum: {min: 0.1, max: 0.9}}
trials: 10
rungs: [1ep, 3ep]
"""
FAILING = ("s-002", "s-007")  # after their first epoch
REFUSED: set[str] = set()  # as without their data
MACHINE = Shares(1, None, (), 2)


class Killed(BaseException):
    """What stands for the end of the process."""


class Pool:
    """In place of processes: a trial writes its rows when it is waited for."""

    asked = asked_again = False

    def __init__(self, size: int, generator: random.Random):
        self._size, self._generator = size, generator
        self._jobs: dict[str, tuple[Element, str]] = {}

    @property
    def running(self) -> set[str]:
        return set(self._jobs)

    @property
    def has_room(self) -> bool:
        return len(self._jobs) < self._size

    def start(self, element: Element, until: str) -> None:
        self._jobs[element.name] = element, until

    def wait(self) -> tuple[str, int | None]:
        name = self._generator.choice(sorted(self._jobs))
        element, until = self._jobs.pop(name)
        if name in REFUSED:
            return name, 2
        epochs = int(until[:-2]) if until else 9
        if name in FAILING:
            write_run(element, 1)
            return name, 1
        write_run(element, epochs)
        return name, 75 if epochs < 9 else 0


def write_run(element: Element, epochs: int) -> None:
    directory = Path("runs") / element.name
    lr = element.config.optimizer.args["lr"]
    rows = [
        {"split": "val", "epoch": epoch, "step": epoch, "loss": 1.0, "accuracy": round(1 - abs(lr - 0.1) / epoch, 4)}
        for epoch in range(1, epochs + 1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = "completed" if epochs == 9 else "failed" if element.name in FAILING else "stopped"
    ends = [{"event": "start", "attempt": 1}, {"event": "end", "attempt": 1, "status": status, "reason": "as asked"}]
    (directory / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ends))
    if epochs == 9:
        (directory / "summary.json").write_text(json.dumps({"status": "completed"}))


def prepare(elements: Sequence[Element]) -> int:
    for element in elements:
        directory = Path("runs") / element.name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.yaml").write_text(dump_config(element.config))
    return 0


def searched(parallel: int = 1, seed: int = 0, kills: float = 0.0, code: int = 0) -> Sweep:
    """Search to the end, with a new start after each kill: before or after so many of the lines of the journal.

    code   with which it is to end
    """
    generator = random.Random(seed)
    note = journal.note

    def noting(folder: Path, event: str, **facts: Any) -> None:
        if generator.random() < kills / 2:
            raise Killed
        note(folder, event, **facts)
        if generator.random() < kills / 2:
            raise Killed

    @contextmanager
    def pooled(size: int) -> Iterator[Pool]:
        yield Pool(size, generator)

    def start(pool: Pool, element: Element, shares: Shares, variables: Mapping[str, str], output: Path) -> None:
        pool.start(element, variables[STOP_AT])

    for _ in range(200):
        sweep = read_sweep(Path("s.yaml"))
        with suppress(Killed), pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "note", noting)
            patch.setattr(tuner, "passing_signals_on", pooled)
            patch.setattr(tuner, "start", start)
            assert tuner.search_here(sweep, parallel, MACHINE, prepare) == code
            return with_samples(sweep)
    raise AssertionError("it came to no end")


def forget() -> None:
    for path in Path("runs").rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize("sampler", [pytest.param("random", marks=pytest.mark.slow), "tpe"])
@pytest.mark.usefixtures("workdir")
def test_killed_wherever_it_writes_it_comes_to_the_same_table(sampler: str) -> None:
    """Two trials fail, and count as the worst. Random samples give the same table for any number at a time."""
    written(SEARCH + f"sampler: {sampler}\n")
    sweep = searched()
    table = str(results_table(sweep))
    facts = results_facts(sweep)
    assert len(facts) == 10
    states = [fact["status"] for fact in facts]
    assert (states[0], states.count("failed")) == ("completed", 2)
    assert states.count("out") > 4
    for parallel, seed, kills in ((1, 1, 0.3), (3, 2, 0.3), (5, 3, 0.0)):
        if parallel == 1 or sampler == "random":
            forget()
            assert str(results_table(searched(parallel, seed, kills))) == table


@pytest.mark.usefixtures("workdir")
def test_complete_trials_are_ranked_by_the_figure_that_is_shown() -> None:
    """That of the best checkpoint, which is the one that is tested: not of the last epoch."""
    written(SEARCH.replace("rungs: [1ep, 3ep]", "").replace("trials: 10", "trials: 2"))
    sweep = searched()
    assert [fact["name"] for fact in results_facts(sweep)] == ["s-001", "s-000"]
    best = {"metric": "val/accuracy", "value": 0.999, "step": 2}
    Path("runs/s-000/summary.json").write_text(json.dumps({"status": "completed", "best": best}))
    assert [fact["name"] for fact in results_facts(sweep)] == ["s-000", "s-001"]


@pytest.mark.usefixtures("workdir")
def test_a_grown_search_goes_on_and_a_changed_one_is_refused() -> None:
    written(SEARCH)
    first = {fact["name"]: fact for fact in results_facts(searched())}
    written(SEARCH.replace("trials: 10", "trials: 11"))
    grown = {fact["name"]: fact for fact in results_facts(searched())}
    assert len(grown) == 11
    assert all(grown[name]["rungs"]["1ep"] == fact["rungs"]["1ep"] for name, fact in first.items())
    written(SEARCH.replace("rungs: [1ep, 3ep]", "rungs: [1ep, 2ep]"))
    with pytest.raises(UserError, match=r"rungs was \[1, 3\], is \[1, 2\]. Go on with the earlier"):
        searched()
    with (Path("runs/s/journal.jsonl")).open("a") as file:
        file.write('{"event": "start", "tri')  # a crash has cut it off
    written(SEARCH.replace("trials: 10", "trials: 11"))
    assert {fact["name"]: fact for fact in results_facts(searched())} == grown


@pytest.mark.usefixtures("workdir")
def test_trials_that_were_refused_have_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the data were away for a while, the table is the one that it would have been."""
    written(SEARCH)
    table = str(results_table(searched()))
    forget()
    monkeypatch.setattr(sys.modules[__name__], "REFUSED", {f"s-{number:03d}" for number in range(2, 10)})
    searched(code=2)
    assert journal.failed(journal.read(Path("runs/s"))) == {}
    REFUSED.clear()
    assert str(results_table(searched())) == table


@pytest.mark.usefixtures("workdir")
def test_results_of_an_edited_file_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The table would show values that no run was trained with, and the command of the best one, too."""
    written(SEARCH)
    searched()
    written(SEARCH.replace("max: 1,", "max: 2,"))
    for words in (["sweep", "s.yaml", "--results"], ["sweep", "s.yaml", "--results", "--json"], ["report", "s.yaml"]):
        assert main(words) == 2
        assert "s-000 was trained with optimizer.lr 0." in capsys.readouterr().err
    written(SEARCH.replace("{train.epochs: 9}", "{train.epochs: 9, train.batch_size: 8}"))
    assert main(["sweep", "s.yaml", "--results"]) == 0
    assert "best: " not in capsys.readouterr().err


@pytest.mark.usefixtures("workdir")
def test_results_as_a_table_and_as_json_with_the_command_of_the_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    written(SEARCH)
    sweep = searched()
    capsys.readouterr()
    assert main(["sweep", "s.yaml", "--results"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[2:] == [
        *("STATUS", "STEP", "at", "1ep", "at", "3ep", "val/accuracy", "test/accuracy", "RUN")
    ]
    assert main(["sweep", "s.yaml", "--results", "--json"]) == 0
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert err.splitlines()[-1] == f"best: {facts[0]['command']}"
    assert re.fullmatch(r"importance, from 0 to 1: lr [01]\.\d\d, momentum [01]\.\d\d", err.splitlines()[0])
    assert facts[0]["command"].startswith("launch run quickstart train.epochs=9 optimizer.lr=")
    named = {element.name: element for element in sweep.elements}
    assert [fact["name"] for fact in facts] == [line.split()[-1] for line in out.splitlines()[1:]]
    for fact in facts:
        lr = named[fact["name"]].values["optimizer.lr"]
        assert fact["rungs"]["1ep"] == pytest.approx(1 - abs(lr - 0.1), abs=1e-4)


@pytest.mark.usefixtures("workdir")
def test_the_page_of_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    """All trials in the table's order, the importance of both keys, the command of the best; curves of the best 12."""
    written(SEARCH.replace("trials: 10", "trials: 14"))
    sweep = searched()
    facts = results_facts(sweep)
    assert main(["report", "s.yaml"]) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = html.unescape(Path("report.html").read_text())
    trials, _, rest = page.partition("<h2>Trials</h2>")[2].partition("</section>")
    assert re.findall(r"<td>(s-\d+)</td>", trials) == [fact["name"] for fact in facts]
    assert f'<pre class="command">{facts[0]["command"]}</pre>' in page
    assert page.index("<code>optimizer.lr</code>") < page.index("<code>optimizer.momentum</code>")
    assert "What follows is of the best 12 alone." in trials
    assert [name for name in (fact["name"] for fact in facts) if name in rest] == [f["name"] for f in facts[:12]]


@pytest.mark.usefixtures("workdir")
def test_only_one_tuner_at_a_time() -> None:
    written(SEARCH)
    Path("runs/s").mkdir(parents=True)
    program = "import fcntl, sys; f = open('runs/s/lock', 'w'); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="another `launch sweep` runs this search"):
            searched()
        other.communicate()
