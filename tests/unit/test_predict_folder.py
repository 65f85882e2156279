"""`launch predict` around a model that is none: what a folder leaves out, and memory that runs out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from class_folders import save_classes, save_picture

from trainlib.config import DataConfig
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.inference import predict


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")


def use(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `launch predict` take this model, whatever it is asked for."""
    monkeypatch.setattr(predict, "find_checkpoint", lambda name: Path(name))
    monkeypatch.setattr(predict, "trained_model", lambda checkpoint, **_: model)


@pytest.mark.parametrize(
    ("count", "way_out"), [(5, "use --batch-size 2 "), (1, "use a device with more memory, or the")]
)
def test_memory_that_runs_out_in_a_prediction_is_told_with_a_batch_size_that_is_smaller(
    count: int, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_classes(tmp_path, {"cat": count})
    reader = PictureReader.of(DataConfig.model_validate({"image_size": 8}))
    model = SimpleNamespace(classes=("cat", "dog"), reader=reader, probabilities_of_images=full, thresholds=None)
    use(model, monkeypatch)
    assert predict.main(["run", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: a prediction of {count} images at a time does not fit into the memory of the dev")
    assert way_out in told


def test_a_folder_for_prediction_names_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_classes(tmp_path, {"cat": 2, ".thumbnails": 1, "cat/@eaDir": 1})
    save_picture(tmp_path / ".hidden.png")
    save_picture(tmp_path / "._hidden.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "cat/gone.png").symlink_to("nowhere.png")
    reader = PictureReader.of(DataConfig.model_validate({"image_size": 8}))
    probabilities = torch.full((2, 2), 0.5)
    model = SimpleNamespace(
        classes=("cat", "dog"),
        reader=reader,
        thresholds=None,
        probabilities_of_images=lambda images: probabilities,
        prediction=lambda row: SimpleNamespace(top=lambda count: [("cat", 0.5)]),
    )
    use(model, monkeypatch)
    assert predict.main(["run", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    left_out, junk, broken = printed.err.splitlines()
    assert (
        f"Files left out, not images by their names or outside of the class folders (1): {tmp_path}/notes" in left_out
    )
    assert junk == (
        "Left out, hidden or made by file managers, archives or drives (3): "
        f"{tmp_path}/.hidden.png, {tmp_path}/.thumbnails, {tmp_path}/cat/@eaDir."
    )
    assert broken.startswith(f"{tmp_path}/cat/gone.png: cannot be read: ")
