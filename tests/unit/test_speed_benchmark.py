"""The benchmark: what it compares computes the same, its intervals and verdicts are right, and it runs as a command."""

import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from soak import only_in_soak
from tiny import make_images

from bench.arms import ARMS, DOCUMENTED, TENSORS, TUTORIALS
from bench.growth import agreement_microseconds, order_milliseconds, step_milliseconds
from bench.intervals import Interval, bootstrap, ratio
from bench.loops import UnequalCurvesError, _require_equal_curves
from bench.scaling import CNN, all_reduce, efficiency, step_seconds
from bench.verdicts import Verdict, verdict_table, verdicts


@only_in_soak
def test_every_arm_trains_the_same_curve(tmp_path: Path) -> None:
    """Two rounds of our training, the bare loop and two of the peers, from class folders: no curve is refused."""
    make_images(tmp_path / "images")
    command = [sys.executable, "-m", "bench.run", "--quick", "--batch-size", "20", "--data", str(tmp_path / "images")]
    options = ["--parts", "speed", "--arms", "tutorial, 0 workers;Accelerate, tensors"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRAINLAUNCH_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *options, "--results", str(tmp_path / "results")],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "results" / "table.md").read_text()
    for arm in ("ours", "bare loop", "tutorial, 0 workers", "Accelerate, tensors"):
        assert f"\n| {arm} |" in table
    speed, verdicts_made = table.split("### verdicts")
    assert speed.count("\n| ") == 5  # the heading and four arms
    assert verdicts_made.count("\n| ours / ") == 3
    assert (tmp_path / "results" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_another_curve_is_refused() -> None:
    curve = [2.3, 2.2, 2.1]
    _require_equal_curves({"bare loop": (1.0, curve), "ours": (1.0, [2.3001, 2.2, 2.1])}, 1)
    _require_equal_curves({"bare loop": (1.0, curve), "one repeated batch": (1.0, [2.3, 1.0, 0.5])}, 1)
    with pytest.raises(UnequalCurvesError, match=r"ours: round 3, step 2: loss 2.15, expected 2.1"):
        _require_equal_curves({"bare loop": (1.0, curve), "ours": (1.0, [2.3, 2.2, 2.15])}, 3)


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """In 200 made-up benchmarks whose true ratio is 1.5, about 95 % of the intervals hold it, and none is a point."""
    generator = random.Random(3)
    covered = 0
    for _ in range(200):
        faster = [generator.lognormvariate(0, 0.05) for _ in range(15)]
        slower = [1.5 * time * generator.lognormvariate(0, 0.03) for time in faster]
        interval = ratio(slower, faster)
        assert interval.low < interval.median < interval.high
        assert interval.median == statistics.median(a / b for a, b in zip(slower, faster, strict=True))
        covered += interval.low <= 1.5 <= interval.high
    assert 0.88 <= covered / 200 <= 1.0


def test_rounds_that_agree_leave_no_doubt() -> None:
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.soak
def test_ranks_share_a_step(tmp_path: Path) -> None:
    """Two processes and one take turns, and the losses of both halves add up to those of the whole."""
    command = [sys.executable, "-m", "bench.run", "--quick", "--batch-size", "16", "--parts", "ranks"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRAINLAUNCH_NUM_THREADS": "1"}
    command += ["--results", str(tmp_path / "results")]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "results" / "table.md").read_text()
    assert "\n| 1 process |" in table
    assert "\n| 2 processes |" in table
    assert "| two processes / one with two threads |" in table


@pytest.mark.soak
def test_ranks_are_compared_with_gloo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.run", "--quick", "--batch-size", "16", "--parts", "gloo", "--cpu-time"]
    command += ["--models", "cnn,resnet18", "--results", str(tmp_path / "results")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRAINLAUNCH_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "results" / "table.md").read_text()
    for model in ("cnn", "resnet18"):
        assert f"\n| {model}, 2 processes: ours / DistributedDataParallel over gloo |" in table


def test_verdicts_name_arms_that_there_are() -> None:
    assert {*TUTORIALS, *DOCUMENTED, *TENSORS} <= {*ARMS}
    for name, arm in ARMS.items():
        module = arm.place.partition(":")[0]
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists(), name


@pytest.mark.parametrize(
    ("interval", "bound", "at_most", "answer"),
    [
        ((2.2, 2.0, 2.4), 2.0, False, "yes"),
        ((2.2, 1.99, 2.4), 2.0, False, "undecided"),
        ((1.9, 1.8, 2.0), 2.0, False, "undecided"),
        ((1.9, 1.8, 1.99), 2.0, False, "no"),
        ((1.2, 1.1, 1.25), 1.25, True, "yes"),
        ((1.2, 1.1, 1.26), 1.25, True, "undecided"),
        ((1.3, 1.26, 1.4), 1.25, True, "no"),
    ],
)
def test_a_bound_holds_with_its_whole_interval(
    interval: tuple[float, float, float], bound: float, at_most: bool, answer: str
) -> None:
    assert Verdict("", Interval(*interval), bound, at_most).answer == answer


def test_verdicts_are_those_of_the_seconds() -> None:
    """Rounds that agree, so that every ratio can be computed by hand."""
    speed = {
        "ours": 1.0,
        "bare loop": 0.99,
        "tutorial, 0 workers": 3.0,
        "tutorial, 1 worker": 2.5,
        "timm, tensors": 0.9,
    }
    speed |= {"timm, documented": 1.7, "tutorial, tensors": 0.5}
    overhead = {"ours": 0.5, "bare loop": 0.4, "Accelerate, tensors": 0.6, "Lightning, tensors": 0.45}
    measured = {
        "speed": {name: [seconds] * 3 for name, seconds in speed.items()},
        "overhead": {name: [seconds] * 3 for name, seconds in overhead.items()},
        "startup": {"launch run": [2.4] * 3, "imports and model": [2.0] * 3, "accelerate launch": [3.0] * 3},
        "ranks": {"1 process": [1.0] * 3, "2 processes": [1.25] * 3},
        "cnn, 4 processes": {"ours": [1.0] * 3, "DistributedDataParallel over gloo": [1.1] * 3},
    }
    found = {verdict.what: (round(verdict.interval.median, 9), verdict.answer) for verdict in verdicts(measured, 1000)}
    assert found == {
        "ours / the best tutorial, which has 1 worker": (2.5, "yes"),
        "ours / timm, documented": (1.7, "no"),
        "ours / timm, tensors": (0.9, "no"),
        "ours / bare loop": (0.99, "yes"),
        "Accelerate, tensors: its step takes longer than ours by": (100.0, "yes"),
        "Lightning, tensors: its step takes longer than ours by": (-50.0, "no"),
        "start-up / imports and model": (1.2, "yes"),
        "two processes / one with two threads": (0.8, "no"),
        "cnn, 4 processes: ours / DistributedDataParallel over gloo": (1.1, "yes"),
    }
    assert verdict_table(verdicts({}, 1)) == ""
    assert verdict_table(verdicts({"startup": measured["startup"]}, 1)).splitlines()[2:] == [
        "| start-up / imports and model | 1.200 (1.200 to 1.200) | <= 1.25 | yes |"
    ]


@pytest.mark.slow
def test_tables_of_the_model_are_those_of_its_page() -> None:
    command = [sys.executable, "-m", "bench.scaling"]
    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    page = (REPOSITORY / "bench" / "scaling.md").read_text()
    for table in printed.strip().split("\n\n"):
        assert table in page


def test_the_model_against_numbers_by_hand() -> None:
    # 64 GPUs add up a gigabyte: 40 ms of transfer, and 2 log2(64) hops of 5 us as a tree; a ring has 126 of them.
    assert all_reduce(1e9, 64) == pytest.approx(min(2 * 63 / 64 * 0.02 + 126 * 5e-6, 0.04 + 60e-6))
    assert all_reduce(1e9, 8) == pytest.approx(min(2 * 7 / 8 / 300 + 14 * 5e-6, 2 / 300 + 30e-6))
    assert all_reduce(1e9, 1) == 0.0
    # A step of the CNN lasts 1 ms at least; 1,023 pairs of hops of 25 us are longer.
    assert step_seconds(CNN, 1) == 1e-3
    assert step_seconds(CNN, 1024, every_step=True) == pytest.approx(2 * 1023 * 25e-6)
    assert efficiency(CNN, 1024) == pytest.approx(1e-3 / (1e-3 + all_reduce(4 * 145_578, 1024)))


@only_in_soak
def test_growth_is_measured() -> None:
    """Three times the side costs far more than three times as much; a hundred times the images take longer to order."""
    small, large = (step_milliseconds("cifar10_cnn", 4, size, repeats=3) for size in (32, 96))
    assert large > 3 * small
    assert order_milliseconds(1_000_000, repeats=2) > 3 * order_milliseconds(10_000, repeats=2)
    assert agreement_microseconds(2) > 1
