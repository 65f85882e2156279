"""The ready configurations: what their headers say to type is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torchvision
from paths import REPOSITORY
from PIL import Image

from trainlib.config import Normalize, load_config, shipped_configs
from trainlib.config.libraries.catalog import weights_file
from trainlib.data import dataset_info
from trainlib.training.build.model import check_build

SHIPPED = shipped_configs()


def commands(path: Path) -> list[list[str]]:
    """The arguments of every `launch run` in a file's header; two spaces end a command, a backslash continues it."""
    header = re.sub(r" \\\n# +", " ", path.read_text().partition("\nname:")[0])
    return [shlex.split(re.split("  +", command)[0]) for command in re.findall("launch run (.*)", header)]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_command_of_a_header_loads(name: str) -> None:
    assert commands(SHIPPED[name])
    for arguments in commands(SHIPPED[name]):
        assert arguments[0] == name
        load_config(arguments)


@pytest.mark.parametrize("name", ["vgg16_finetune", "vgg16_append_head"])
def test_a_weights_file_goes_with_the_normalization_that_its_weights_have_by_name(name: str) -> None:
    by_name = load_config([name]).model
    transform = torchvision.models.get_model_weights(by_name.name)[str(by_name.weights)].transforms()
    configs = [load_config(arguments) for arguments in commands(SHIPPED[name])]
    with_files = [config for config in configs if config.model.weights and weights_file(config.model.weights)]
    assert [config.data.normalize for config in with_files] == [Normalize(mean=transform.mean, std=transform.std)]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_header_says_what_came_out(name: str) -> None:
    (result,) = [line for line in SHIPPED[name].read_text().splitlines() if line.startswith("# Time and result: ")]
    assert "MEASURED" not in result


def test_the_readme_names_every_configuration() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_everything_that_it_names_can_be_built(name: str, workdir: Path) -> None:
    for split in ("train", "test"):
        for label in ("cats", "dogs"):
            (workdir / "data" / split / label).mkdir(parents=True)
            for index in range(40):
                Image.new("RGB", (8, 8)).save(workdir / "data" / split / label / f"{index}.png")
    if name in ("resnet50_a1", "resnet50_a2", "resnet50_a3"):
        pytest.importorskip("timm")
    config = load_config([name, "data.root=data"])
    check_build(config, dataset_info(config.data, config.seed))
