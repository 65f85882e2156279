"""The benchmark: what it compares computes the same, its intervals are right, and it runs from its command."""

import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_images

from bench.intervals import bootstrap, ratio
from bench.loops import UnequalCurvesError, _require_equal_curves

REPOSITORY = Path(__file__).parent.parent


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
    assert table.count("\n| ") == 5  # the heading and four arms
    assert (tmp_path / "results" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_another_curve_is_refused() -> None:
    curve = [2.3, 2.2, 2.1]
    _require_equal_curves({"bare loop": (1.0, curve), "ours": (1.0, [2.3001, 2.2, 2.1])}, 1)
    _require_equal_curves({"bare loop": (1.0, curve), "one repeated batch": (1.0, [2.3, 1.0, 0.5])}, 1)
    with pytest.raises(UnequalCurvesError, match=r"ours: round 3, step 2: loss 2.15, expected 2.1"):
        _require_equal_curves({"bare loop": (1.0, curve), "ours": (1.0, [2.3, 2.2, 2.15])}, 3)


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
