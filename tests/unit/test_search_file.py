"""What a sweep file says of a search: the trials that it stands for, and its mistakes, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_files import SEARCH, refused, written

from launch.cli import main
from launch.sweep.file.grid import read_sweep
from launch.sweep.search.space import samples


@pytest.mark.usefixtures("workdir")
def test_a_search_stands_for_these_trials() -> None:
    """Each sample with every combination of the grid; all have the full length, and the sweep's metric."""
    sweep = read_sweep(written(SEARCH))
    assert sweep.search is not None
    assert (sweep.search.metric, sweep.search.mode, sweep.search.seed) == ("val/loss", "min", 5)
    assert (sweep.search.rungs, sweep.search.reduction_factor) == ((1, 2), 2)
    drawn = samples(sweep.search.space, 5, 3)
    assert [element.name for element in sweep.elements] == [f"s-{number:03d}" for number in range(6)]
    for number, element in enumerate(sweep.elements):
        config, sample = element.config, drawn[number // 2]
        assert config.optimizer.args["lr"] == sample["optimizer.lr"]
        assert config.train.batch_size == sample["train.batch_size"]
        assert config.train.precision == ("fp32", "bf16")[number % 2]
        assert (config.train.epochs, config.seed) == (4, 5)
        assert config.checkpoint.best is not None
        assert config.checkpoint.best.metric == "val/loss"
    more = read_sweep(written(SEARCH.replace("trials: 3", "trials: 5")))
    assert more.elements[:6] == sweep.elements
    other = read_sweep(Path("s.yaml"), ["seed=6"])
    assert [element.values for element in other.elements] != [element.values for element in more.elements]


@pytest.mark.usefixtures("workdir")
def test_the_metric_is_that_of_the_best_checkpoint_unless_it_is_given() -> None:
    sweep = read_sweep(written(SEARCH.replace("metric: val/loss\n", "")))
    assert sweep.search is not None
    assert (sweep.search.metric, sweep.search.mode) == ("val/accuracy", "max")


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        (
            """\
configs: [quickstart]
overrides: {seed: 1}
grid: {train.batch_size: [1, 2]}
space:
  optimizer.lr: {min: 0.1, max: 0.01, lg: true}
  optimizer.momentum: {min: 0, max: 0.9, log: true}
  optimizer.weight_decay: {max: .nan, log: 1}
  train.batch_size: []
  seed: 3
  name: [a]
trials: 0
sampler: tbe
metric: 3
rungs: [2ep, 1ep]
reduction_factor: 1
""",
            [
                "space.name: must not be set here: it is made from the sweep's own name (s.yaml line 10)",
                "space.train.batch_size: is in grid, too: take it out of one of them (s.yaml line 8)",
                "space.seed: is in overrides, too: take it out of one of them (s.yaml line 9)",
                "space.optimizer.lr.lg: unknown key; did you mean log? (s.yaml line 5)",
                "space.optimizer.lr.min: got 0.1, must be below max, 0.01 (s.yaml line 5)",
                "space.optimizer.momentum.min: got 0, must be > 0 with log: true (s.yaml line 6)",
                "space.optimizer.weight_decay.log: got 1, must be true or false (s.yaml line 7)",
                "space.optimizer.weight_decay.min: is missing, must be a list of values, or a range",
                "space.optimizer.weight_decay.max: got .nan, must be a finite number (s.yaml line 7)",
                "space.train.batch_size: got [], must be a list of values, or a range",
                "space.seed: got 3, must be a list of values, or a range",
                "trials: got 0, must be a whole number from 1 to 1000 (s.yaml line 11)",
                'sampler: got "tbe", must be one of random, tpe; did you mean tpe? (s.yaml line 12)',
                "metric: got 3, must be a metric, such as val/accuracy (s.yaml line 13)",
                "reduction_factor: got 1, must be a whole number >= 2: one in so many (s.yaml line 15)",
                "rungs.1: got 1ep, must be later than 2ep before it (s.yaml line 14)",
            ],
        ),
        (
            "configs: [quickstart]\ngrid: {seed: [1, 2]}\ntrials: 3\nsampler: tpe\nreduction_factor: 3\n",
            [
                "trials: needs a space, from which the trials are sampled: add one, or leave it out (s.yaml line 3)",
                "sampler: needs a space, from which the trials are sampled: add one, or leave it out (s.yaml line 4)",
                "grid: cannot stand beside sampler: tpe, which learns from trial to trial: move it into space",
                "reduction_factor: needs rungs, where trials are compared: add them, or leave it out (s.yaml line 5)",
            ],
        ),
        (
            "configs: [quickstart]\nspace: {optimizer.lr: {min: 1, max: 2}}\nrungs: [500st, 3, 0ep]\n",
            [
                "trials: is missing, must be the number of samples of the space, such as 16",
                'rungs.0: got "500st", must be whole epochs, such as 3ep: there the metric is known (s.yaml line 3)',
                "rungs.1: got 3, must be whole epochs, such as 3ep: there the metric is known (s.yaml line 3)",
                'rungs.2: got "0ep", must be whole epochs, such as 3ep: there the metric is known (s.yaml line 3)',
            ],
        ),
        (
            "configs: [quickstart]\nrungs: [1ep]\n",
            ["has neither grid, runs, space, folds nor seeds: must have one of them"],
        ),
        ("configs: [quickstart]\ngrid: {seed: [1]}\nrungs: 3ep\n", ['rungs: got "3ep", must be a list of epochs']),
        (
            "configs: [quickstart]\nspace: {seed: [1, 2]}\ntrials: 3\n",
            ["trials: got 3, must be at most 2, the number of different samples of the space (s.yaml line 3)"],
        ),
        (
            "configs: [quickstart]\ngrid: {train.epochs: [9, 5]}\nrungs: [1ep, 6ep, 7ep]\n",
            [
                "rungs.1: got 6ep, must be at most 5ep, the length of the runs: train longer, or take it out",
                "rungs.2: got 7ep, must be at most 5ep, the length of the runs: train longer, or take it out",
            ],
        ),
        (
            "configs: [quickstart]\nmetric: val/acuracy\nspace:\n  optimizer.lrr: [1]\n"
            "  data.val_fraction: {min: 0.0, max: 1.5}\ntrials: 1\n",
            [
                'metric: got "val/acuracy", must be one of',
                "data.val_fraction: got 1.5",  # an end of a range that no sample reaches
                "optimizer.lrr: ",
            ],
        ),
        (
            "configs: [quickstart]\noverrides: {checkpoint.best: null}\ngrid: {seed: [1, 2]}\nrungs: [1ep]\n",
            ["metric: is missing, and checkpoint.best names none: must be a metric, such as val/accuracy"],
        ),
    ],
    ids=["form", "without a space", "kinds of rungs", "no trials", "one rung", "few", "length", "values", "no metric"],
)
@pytest.mark.usefixtures("workdir")
def test_all_mistakes_at_once_each_with_its_place(
    text: str, mistakes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = refused(text, [["--local"]], capsys)
    assert len(found) == len(mistakes), found
    for expected in mistakes:
        assert any(said.startswith(expected) for said in found), (expected, found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=3"], "no sbatch on this machine"),
        (["--parallel", "2"], "--parallel and --processes: only with --local"),
        (["--local", "optimizer.lr=1"], "optimizer.lr: is varied by s.yaml: take it out there, or here (command line)"),
    ],
)
@pytest.mark.usefixtures("workdir")
def test_mistakes_of_the_command_line(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    written(SEARCH)
    assert main(["sweep", "s.yaml", *words]) == 2
    assert message in capsys.readouterr().err
