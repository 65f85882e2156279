"""The values of a sweep: none is lost on its way into a run, and a run's own are those that are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweep_files import written

from launch.sweep.file.grid import read_sweep
from launch.sweep.file.names import sweep_name
from launch.sweep.results import is_finished, require_same_values
from trainlib.config import dump_config, load_config
from trainlib.errors import ConfigError

SECTIONS = "configs: [quickstart]\ngrid: {optimizer: [{name: SGD, lr: 0.1}, {name: AdamW, lr: 0.1}]}\n"


@pytest.mark.usefixtures("workdir")
def test_a_key_goes_into_its_section_whichever_stands_first() -> None:
    """A sampled rate that the optimizer's section replaced would be in the table, and in no run."""
    sweep = read_sweep(written(f"{SECTIONS}space: {{optimizer.lr: [0.3, 0.4], seed: [0, 1, 2]}}\ntrials: 3\n"))
    assert len(sweep.elements) == 6
    for element in sweep.elements:
        assert element.config.optimizer.args["lr"] == element.values["optimizer.lr"]
        assert element.config.optimizer.name == element.values["optimizer"]["name"]


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        (SECTIONS, ["optimizer.momentum=0.5"], "optimizer.momentum: is varied by s.yaml"),
        (SECTIONS + "overrides: {optimizer.eps: 1e-3}", [], "overrides.optimizer.eps: is lost, as grid.optimizer repl"),
        ("configs: [quickstart]\nruns: [{train.epochs: 3}, {seed: 1}]", ["train.epochs=1"], "train.epochs: is varied"),
        ("configs: [quickstart]\nfolds: 2", ["data.fold=1/3"], "data.fold: is varied by s.yaml"),
        (f"configs: [quickstart]\nname: {'x' * 97}\nseeds: 2", [], "must be at most 94 characters"),
    ],
)
@pytest.mark.usefixtures("workdir")
def test_a_value_that_would_be_lost_is_refused(text: str, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(written(text), words)
    assert says in str(caught.value)


def test_names_of_sweeps_from_those_of_files() -> None:
    assert sweep_name("lr-and.seed.yaml") == "lr-and.seed"
    assert len({sweep_name(name) for name in ("größe.yaml", "grüße.yaml", "실험.yaml", "別.yaml")}) == 4
    assert sweep_name("別.yaml").startswith("sweep-")
    assert len(sweep_name(f"{'x' * 200}.yaml")) == 94


@pytest.mark.usefixtures("workdir")
def test_a_finished_run_stays_finished_where_its_data_or_weights_are_told_otherwise() -> None:
    """Its directory says what the start has made of `pretrained`; and the data may lie elsewhere by now."""
    model = "{name: resnet18, weights: pretrained}"
    written(f"configs: [quickstart]\ngrid: {{seed: [0]}}\noverrides: {{data.root: there, model: {model}}}\n")
    (element,) = read_sweep(Path("s.yaml")).elements
    config = element.config
    assert config.model.weights == "pretrained"
    explicit = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    told = [f"{key}={json.dumps(value)}" for key, value in {
        "model.weights": "IMAGENET1K_V1", "data.normalize": explicit, "data.root": "here", "data.resize.size": 256,
    }.items()]  # fmt: skip
    file = Path("runs") / element.name / "config.yaml"
    file.parent.mkdir(parents=True)
    (file.parent / "summary.json").write_text(json.dumps({"status": "completed"}))
    file.write_text(dump_config(load_config([*element.arguments, *told])))
    assert is_finished(element)
    require_same_values(read_sweep(Path("s.yaml")))
    for other in ("train.epochs=1", "optimizer.lr=0.7", "model.weights=null"):
        file.write_text(dump_config(load_config([*element.arguments, *told, other])))
        assert not is_finished(element)
