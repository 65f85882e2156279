"""The arithmetic of the report's charts: thinning, smoothing, ticks and lines."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import training_rows, write_run

from launch.report.charts.chart import Chart, Line, Plot
from launch.report.charts.curves import charts_of
from launch.report.facts.run_facts import read_facts
from launch.report.facts.series import drawable, linear_ticks, log_ticks, smoothed, thinned, tick_label
from launch.report.page import templates

# Series and axes


def figure(chart: Chart) -> str:
    """The HTML of a chart."""
    return str(templates().get_template("figure.html.j2").module.figure(Plot(chart)))  # type: ignore[attr-defined]


def test_thinning_keeps_the_ends_and_every_extreme() -> None:
    """The oracle looks at each bucket by itself, with numpy."""
    values = np.random.default_rng(1).normal(size=20_000)
    values[12_345] = 50.0
    steps = np.arange(1, 20_001)
    kept = thinned(list(zip(steps.tolist(), values.tolist(), strict=True)), 300)
    buckets = ((steps - 1) * (300 / 19_999)).astype(int)
    expected = {0, 19_999}
    for bucket in np.unique(buckets):
        within = np.flatnonzero(buckets == bucket)
        expected |= {int(within[values[within].argmin()]), int(within[values[within].argmax()])}
    assert kept == [(int(steps[index]), values[index]) for index in sorted(expected)]
    assert thinned(kept[:600], 300) == kept[:600]


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    values = np.random.default_rng(2).normal(size=101)
    ours = smoothed(list(enumerate(values.tolist())), 9)
    theirs = [values[max(0, index - 4) : index + 5].mean() for index in range(101)]
    np.testing.assert_allclose([value for _, value in ours], theirs, rtol=1e-12, atol=1e-12)
    assert [step for step, _ in ours] == list(range(101))


def test_a_spike_leaves_no_trace_behind_its_window() -> None:
    """A loss of 1e30 in one step, as before a NaN; then the curve has the values of the training again."""
    values = [0.5] * 20 + [1e30] + [0.25] * 40 + [1e-20] * 20
    ours = [value for _, value in smoothed(list(enumerate(values)), 9)]
    assert (ours[15], ours[25:57], ours[65:]) == (0.5, [0.25] * 32, [1e-20] * 16)


def test_numbers_that_no_axis_shows(tmp_path: Path) -> None:
    assert drawable([(1, 1e300), (2, -1e300), (3, 5e-324), (4, 1e-45), (5, 3e38)]) == [(3, 0.0), (4, 1e-45), (5, 3e38)]
    rows = [
        {"step": step, "epoch": step, "split": "val", "loss": loss, "accuracy": 0.5, "count": 1, "time": ""}
        for step, loss in enumerate((5e-324, 1e308, -1e308, math.log(2), math.nextafter(math.log(2), 1)))
    ]
    facts = read_facts(write_run(tmp_path / "extreme", rows=rows))
    assert [step for step, _ in facts.points("loss", "val")] == [0, 3, 4]
    assert all(figure(chart) for chart in charts_of([facts]))
    ends = linear_ticks(math.log(2), math.nextafter(math.log(2), 1))  # of a network that stands still
    assert ends[0] < math.log(2) < ends[-1]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 2.4, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0, 939, [0, 200, 400, 600, 800, 1000]),
        (0.5, 0.5, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3e-5, 2e-5, [-3e-5, -2e-5, -1e-5, 0, 1e-5, 2e-5]),
    ],
)
def test_linear_ticks(low: float, high: float, expected: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.03, 2.4, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]),
        (1e-6, 0.1, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]),
        (0.5, 0.6, [0.5, 1]),
        (1, 1, [1, 2]),
    ],
)
def test_log_ticks(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("power", range(-12, 12))
def test_ticks_span_any_range(power: int) -> None:
    for mantissa in (1, 1.7, 2.5, 9.99):
        low, high = 10.0**power, mantissa * 1.5 * 10.0 ** (power + 2)
        for ticks in (linear_ticks(low, high), log_ticks(low, high)):
            assert ticks == sorted(set(ticks))
            assert ticks[0] <= low * 1.001
            assert ticks[-1] >= high * 0.999
            assert 2 <= len(ticks) <= 9


def test_tick_labels() -> None:
    values = [0, 0.25, 1000, 12_500, 2_500_000, 1e-5, -2.5e-7, 0.001]
    assert [tick_label(value) for value in values] == ["0", "0.25", "1000", "12.5k", "2.5M", "1e-5", "-2.5e-7", "0.001"]


def test_a_line_is_drawn_where_its_values_are() -> None:
    """Corners of the path against positions that are computed here from the axis: 0 to 4, and 1 to 5 (powers)."""
    line = Line("x", [(0, 1), (50, 3), (100, 4)], "smooth", 0, ("key",))
    text = figure(Chart("Loss", [line], from_zero=True))
    linear, log = re.findall(r'<path d="M([^"]*)" class="smooth c0" data-keys="key">', text)
    assert linear == "0 750L1000 250L2000 0"
    top = np.log(5)
    assert log == f"0 1000L1000 {1000 * (1 - np.log(3) / top):.0f}L2000 {1000 * (1 - np.log(4) / top):.0f}"


def test_a_logarithmic_axis_is_one_down_to_its_lowest_tick() -> None:
    """Equal ratios are equal distances, below the lowest value too; what has no logarithm lies on the edge."""
    text = figure(Chart("Loss", [Line("x", [(0, 0.3), (1, 0.0), (2, 4.0)], "smooth", 0, ())]))
    ticks = re.findall(r'class="y log" style="bottom:([\d.]*)%">([^<]*)<', text)
    values, places = np.array([float(label) for _, label in ticks]), np.array([float(place) for place, _ in ticks])
    assert values.tolist() == [0.2, 0.5, 1, 2, 5]
    np.testing.assert_allclose(places, 100 * np.log(values / 0.2) / np.log(25), atol=0.01)
    log = re.findall(r'<path d="M([^"]*)" class="smooth c0"', text)[1]
    heights = [1000 * (1 - np.log(value / 0.2) / np.log(25)) for value in (0.3, 0.2, 4.0)]
    assert log == "L".join(f"{across} {height:.0f}" for across, height in zip((0, 1000, 2000), heights, strict=True))


def test_a_chart_of_one_point_or_equal_values_is_drawn() -> None:
    for points in ([(5, 0.0)], [(1, 2.0), (2, 2.0)], [(0, -1.0), (1, 0.0)]):
        assert "nan" not in figure(Chart("Loss", [Line("x", points, "line", 0, ())]))


def test_a_short_run_has_curves(tmp_path: Path) -> None:
    """Of three epochs, with one row between: speed and learning rate go by the epochs, and the one row is a dot."""
    rows = [row for row in training_rows(60) if row.get("scope") != "step" or row["step"] == 50]
    charts = {chart.title: chart for chart in charts_of([read_facts(write_run(tmp_path / "short", rows=rows))])}
    assert [step for step, _ in charts["Learning rate"].lines[0].points] == [20, 40, 60]
    assert [step for step, _ in charts["Throughput, images per second"].lines[0].points] == [20, 40, 60]
    one = charts["Loss"].lines[0]
    assert (one.label, one.points[0][0], one.style) == ("train, steps", 50, "line")


def test_epochs_stand_below_the_steps_at_which_they_end(tmp_path: Path) -> None:
    """Not where they are not known: before the first row of an epoch, or where two runs have other ones."""
    whole = read_facts(write_run(tmp_path / "a", rows=training_rows(100)))
    assert Plot(charts_of([whole])[0]).epoch_ticks == [(1, 20), (2, 40), (3, 60), (4, 80), (5, 100)]
    assert Plot(charts_of([whole, whole])[0]).epoch_ticks
    young = read_facts(write_run(tmp_path / "b", rows=training_rows(10, tested=False)))
    assert Plot(charts_of([young])[0]).epoch_ticks == []
    assert Plot(charts_of([whole, young])[0]).epoch_ticks == []
