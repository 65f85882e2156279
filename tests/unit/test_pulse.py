"""What `launch status` knows of a run at the moment: progress.json, which the thread of the lease writes."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.runs.as_json import run_facts, whole_run_facts
from launch.runs.show import now_text, run_details, runs_table
from trainlib.config import load_config
from trainlib.runs.attempt import owner
from trainlib.runs.attempt.pulse import PULSE_FILE, read_pulse, remove_pulse, write_pulse
from trainlib.runs.attempt.status import read_run
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import to_json
from trainlib.training.hooks import gpu_load
from trainlib.training.hooks.pulse import Pulse

NOW = {"phase": "training", "step": 70, "total": 200, "epoch": 1, "epochs": 2, "loss": 0.5, "seconds_left": 130.0}


def test_a_run_that_trains_tells_how_far_it_is(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "RENEW_SECONDS", 0.05)
    run = RunDirectory.open(load_config(["quickstart", "name=x"]))
    try:
        run.pulse = lambda: NOW
        deadline = time.monotonic() + 10
        while not read_pulse(run.path) and time.monotonic() < deadline:
            time.sleep(0.02)
        run.claim()
        found = read_run(run.path)
        assert found.status == "running"
        assert found.step == 70
        text = run_details(found, datetime.now(UTC), {})
        assert (
            "now:         training, step 70 of 200, epoch 1 of 2, loss 0.5000 over the last minute, 0:02:10 left"
            in text
        )
        table = str(runs_table([found], datetime.now(UTC), {}))
        assert "LEFT" in table
        assert "0:02:10" in table
        facts = run_facts(found, datetime.now(UTC), {})
        assert (facts["status"], facts["step"], facts["now"]["loss"]) == ("running", 70, 0.5)
        json.loads(to_json(whole_run_facts(found, datetime.now(UTC), {})))
    finally:
        run.close()
    assert not (run.path / PULSE_FILE).exists()
    assert read_run(run.path).pulse == {}


def test_while_pictures_are_decoded_their_number_is_told(tmp_path: Path) -> None:
    write_pulse(tmp_path, {"phase": "decoding pictures", "decoded": 1200, "pictures": 10000})
    assert now_text(read_pulse(tmp_path)) == "decoding pictures, decoded 1200 of 10000"


def test_what_is_old_or_damaged_says_nothing(tmp_path: Path) -> None:
    write_pulse(tmp_path, NOW)
    assert read_pulse(tmp_path)["step"] == 70
    old = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    for content in (to_json({"time": old} | NOW), "{", '{"time": 1, "phase": "x"}', to_json(NOW), ""):
        (tmp_path / PULSE_FILE).write_text(content)
        assert read_pulse(tmp_path) == {}
    remove_pulse(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_no_error(tmp_path: Path) -> None:
    write_pulse(tmp_path / "missing", NOW)
    assert read_pulse(tmp_path / "missing") == {}


def result(*losses: float) -> Any:
    parts = [SimpleNamespace(denominator=2.0) for _ in losses]
    return SimpleNamespace(micro_batches=parts, norm_and_losses=(9.0, *losses) if losses else ())


def test_loss_and_speed_are_those_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("trainlib.training.hooks.pulse.time.monotonic", lambda: now)
    pulse = Pulse(total_steps=1000, steps_per_epoch=100, step=0)
    trainer: Any = SimpleNamespace(progress=SimpleNamespace(step=0), plan=SimpleNamespace(global_batch_size=8))
    pulse.on_start(trainer)
    for step in range(1, 121):  # one a second, whose loss is its number; and half of it in a second micro-batch
        now += 1.0
        trainer.progress.step = step
        pulse.on_step_end(trainer, result(float(step), step / 2))
    found = pulse.now()
    assert (found["step"], found["total"], found["epoch"], found["epochs"]) == (120, 1000, 2, 10)
    assert found["images_per_second"] == pytest.approx(8.0)
    assert found["seconds_left"] == pytest.approx(880.0)
    recent = [0.75 * step for step in range(120 - 60 + 1, 121)]
    assert found["loss"] == pytest.approx(sum(recent) / len(recent), rel=0.05)


def test_where_the_host_does_not_know_the_loss_none_is_told() -> None:
    pulse = Pulse(total_steps=10, steps_per_epoch=5, step=0)
    trainer: Any = SimpleNamespace(progress=SimpleNamespace(step=1), plan=SimpleNamespace(global_batch_size=8))
    pulse.on_step_end(trainer, result())
    assert "loss" not in pulse.now()
    assert now_text(pulse.now()).startswith("training, step 1 of 10, epoch 1 of 2")


def test_the_phase_is_told() -> None:
    pulse = Pulse(total_steps=10, steps_per_epoch=5, step=0)
    trainer: Any = SimpleNamespace(progress=SimpleNamespace(step=5), plan=SimpleNamespace(global_batch_size=8))
    pulse.on_row({"split": "train", "scope": "epoch"})
    assert pulse.now()["phase"] == "validation"
    pulse.on_step_end(trainer, result(1.0))
    assert pulse.now()["phase"] == "training"
    pulse.on_stop(trainer)
    assert pulse.now()["phase"] == "test"


def test_a_model_that_is_compiled_is_told_until_its_first_step() -> None:
    pulse = Pulse(total_steps=10, steps_per_epoch=5, step=0, compiles=True)
    assert now_text(pulse.now()).startswith("compiling the model, step 0 of 10")
    trainer: Any = SimpleNamespace(progress=SimpleNamespace(step=1), plan=SimpleNamespace(global_batch_size=8))
    pulse.on_step_end(trainer, result(1.0))
    assert pulse.now()["phase"] == "training"


def test_the_load_of_gpus_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a thread of its own, which ends where there is nothing to ask."""
    busy = {"index": "0", "percent": 97.0, "memory_used": 35.2e9, "memory_total": 143.8e9}
    answers: Any = iter([[busy, {"index": "1"}], []])
    asked = threading.Event()

    def answer() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = next(answers)
        asked.set() if not found else None
        return found

    monkeypatch.setattr(gpu_load, "gpu_loads", answer)
    load = gpu_load.GpuLoad()
    pulse = Pulse(total_steps=10, steps_per_epoch=5, step=0, gpus=lambda: [busy, {"index": "1"}])
    write_pulse(tmp_path, pulse.now())
    assert now_text(read_pulse(tmp_path)).endswith(", GPU 0 97 % busy with 35.2 of 143.8 GB, GPU 1")
    monkeypatch.setattr(gpu_load, "EVERY", 0.0)
    load.on_start(SimpleNamespace())  # type: ignore[arg-type]
    assert asked.wait(60)
    load.close()


@pytest.mark.parametrize("loads", [{"index": "0"}, [{"percent": 1}], [{"index": "0", "percent": "much"}], ["0"]])
def test_a_load_that_is_damaged_says_nothing(loads: Any, tmp_path: Path) -> None:
    write_pulse(tmp_path, NOW | {"gpus": loads})
    assert read_pulse(tmp_path) == {}
