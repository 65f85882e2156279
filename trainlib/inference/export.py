"""Write a trained model for other programs: `python -m trainlib.inference.export RUN|CHECKPOINT --format FORMAT`.

state_dict, safetensors   the weights, under the names of the plain torchvision or torch model
torch_export, onnx        the whole network in eval mode, of any batch size: float32 images in 0..1,
                          RGB [N, 3, H, W] or grey [N, 1, H, W], to logits [N, C]; the normalisation of the training
                          is inside

Beside FILE comes FILE.json, with what is needed to use it: classes, image size, normalisation, the model's section of
the configuration. Every file is read back and compared with the model before it takes its place.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainlib.data.augment.preprocess import Preprocess
from trainlib.errors import EXIT_OK, TrainlaunchError, UserError
from trainlib.inference.chosen_checkpoint import ChosenCheckpoint, find_checkpoint
from trainlib.inference.trained_model import TrainedModel, trained_model
from trainlib.models.weights.files import for_safetensors, weights_sha256
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.terminal.printable import encode_anything, lines, print_error
from trainlib.runs.terminal.streams import end_program
from trainlib.training.programs.arguments import add_code

SUFFIXES = {"state_dict": ".pt", "safetensors": ".safetensors", "torch_export": ".pt2", "onnx": ".onnx"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_INPUT, ONNX_OUTPUT = "images", "logits"
TOLERANCE = 1e-4  # between the logits of the model and of the file, as a share of the largest
CHECKED_BATCH_SIZES = (1, 3)
_ANY_BATCH = ({0: torch.export.Dim("batch", min=1)},)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file and FILE.json; return the exit code."""
    options = _parse(arguments)
    encode_anything()
    try:
        chosen = find_checkpoint(options.model)
        output = Path(options.output or chosen.config.name + SUFFIXES[options.format])
        command = ["launch", "export", *(sys.argv[1:] if arguments is None else arguments)]
        message = export(chosen, options.format, output, force=options.force, code=options.code, command=command)
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    print(lines(message))
    return EXIT_OK


def export(
    chosen: ChosenCheckpoint,
    export_format: str,
    output: Path,
    *,
    force: bool = False,
    code: Sequence[str] = (),
    command: Sequence[str] = (),
) -> str:
    """Write the model to `output` and its description beside it; return one line that says what was written.

    force           replace existing files
    code, command   as for `trained_model`

    Raises UserError if a file exists already, or if a folder or a package is missing; TrainlaunchError if the exported
    network gives other numbers than the model.
    """
    description_file = output.parent / f"{output.name}.json"
    for path in (output, description_file):
        if path.is_dir():
            raise UserError(f"{path} is a folder, which no file replaces; --output names another file")
        if path.exists() and not force:
            raise UserError(f"{path} exists; --force replaces it, --output names another file")
    if not output.parent.is_dir():
        raise UserError(f"--output: {output.parent} is not a folder; make it first")
    model = trained_model(chosen, "cpu", code=code, command=command)
    model.module.to(memory_format=torch.contiguous_format)  # which every reader of the file expects
    description = describe(chosen, model, export_format)
    content, checked = _WRITERS[export_format](model, description)
    try:
        write_atomically(output, content)
        write_atomically(description_file, json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    return f"{output} ({len(content) / 1e6:.1f} MB, {chosen.weights} weights of step {model.step}; {checked})"


def describe(chosen: ChosenCheckpoint, model: TrainedModel, export_format: str) -> dict[str, Any]:
    """Return the contents of FILE.json: what someone needs to use the file without this package."""
    whole = export_format in ("torch_export", "onnx")
    preprocess, framing = model.preprocess, model.framing
    images = f"float32 [N, {len(preprocess.mean)}, {framing.height}, {framing.width}], {colours(preprocess)}, in 0..1"
    return {
        "format": export_format,
        "input": images if whole else f"{images}, then for each channel (value - mean) / std",
        "output": f"logits, float32 [N, {len(model.classes)}], in the order of the classes",
        "resize": framing.in_words(),
        "preprocessing": {
            "channels": colours(preprocess),
            "height": framing.height,
            "width": framing.width,
            "fit": framing.fit,
            "size": framing.shorter_side,
            "interpolation": framing.interpolation,
            "antialias": framing.interpolation != "nearest",
            "resampling": "uint8 by Pillow" if framing.pillow else "uint8 by torch.nn.functional.interpolate",
        },
        "normalisation": {"mean": preprocess.mean, "std": preprocess.std, "inside": whole},
        "task": "one class for each picture" if model.thresholds is None else "any number of classes for each picture",
        "classes": list(model.classes),
        **_decision(model),
        "model": model.config.model.model_dump(mode="json"),
        "run": model.config.name,
        "step": model.step,
        "weights_sha256": weights_sha256(model.module.state_dict()),
        "versions": chosen.checkpoint.manifest.get("versions", {}),
    }


def _decision(model: TrainedModel) -> dict[str, Any]:
    """Return how logits become an answer, where the largest of them is not the whole of it."""
    if model.thresholds is None:
        return {}
    return {
        "thresholds": list(model.thresholds),
        "answer": "every class whose probability, sigmoid(logit), is at least its threshold",
    }


def colours(preprocess: Preprocess) -> str:
    """Return the name of the model's channels, in their order."""
    return "RGB" if len(preprocess.mean) == 3 else "grey"


class Normalised(nn.Module):
    """The network behind its normalisation: float32 images in 0..1 to logits [N, C]."""

    mean_311: Tensor
    std_311: Tensor

    def __init__(self, module: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.network = module
        self.register_buffer("mean_311", torch.tensor(preprocess.mean).view(-1, 1, 1))
        self.register_buffer("std_311", torch.tensor(preprocess.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, C] of float32 images in 0..1, RGB [N, 3, H, W] or grey [N, 1, H, W]."""
        logits: Tensor = self.network((images - self.mean_311) / self.std_311)
        return logits


def _state_dict(model: TrainedModel, description: dict[str, Any]) -> tuple[bytes, str]:
    file = io.BytesIO()
    torch.save(dict(model.module.state_dict()), file)
    file.seek(0)
    return file.getvalue(), _same_weights(torch.load(file, weights_only=True), description)


def _safetensors(model: TrainedModel, description: dict[str, Any]) -> tuple[bytes, str]:
    metadata = {"format": "pt", "trainlaunch": json.dumps(description)}
    content = safetensors.torch.save(for_safetensors(model.module.state_dict()), metadata=metadata)
    return content, _same_weights(safetensors.torch.load(content), description)


def _torch_export(model: TrainedModel, description: dict[str, Any]) -> tuple[bytes, str]:
    network, example = Normalised(model.module, model.preprocess).eval(), _images(model, 2)
    with _refusal("torch_export"):
        program = torch.export.export(network, (example,), dynamic_shapes=_ANY_BATCH)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"description.json": json.dumps(description)})
    content = file.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()
    return content, _same_logits(model, network, loaded)


def _onnx(model: TrainedModel, description: dict[str, Any]) -> tuple[bytes, str]:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install 'trainlaunch[export]'")
    import onnxruntime

    network, example = Normalised(model.module, model.preprocess).eval(), _images(model, 2)
    # Attention is written as products of matrices in any case; torch cannot take some fused kinds apart (timm's BEiT).
    with _refusal("onnx"), warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[ONNX_INPUT],
            output_names=[ONNX_OUTPUT],
            dynamic_shapes=_ANY_BATCH,
        )
    assert program is not None
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = "trainlaunch", json.dumps(description)
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images_NCHW: Tensor) -> Tensor:
        return torch.from_numpy(session.run([ONNX_OUTPUT], {ONNX_INPUT: images_NCHW.numpy()})[0])

    return content, _same_logits(model, network, run)


@contextmanager
def _refusal(export_format: str) -> Iterator[None]:
    """Context manager: raise UserError, with the first cause, for whatever torch's exporter raises."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise UserError(
            f"--format {export_format}: torch's exporter does not take this network ({reason}); --format state_dict "
            "and safetensors write its weights"
        ) from error


_WRITERS: dict[str, Callable[[TrainedModel, dict[str, Any]], tuple[bytes, str]]] = {
    "state_dict": _state_dict,
    "safetensors": _safetensors,
    "torch_export": _torch_export,
    "onnx": _onnx,
}


def _images(model: TrainedModel, count: int) -> Tensor:
    """Return noise in 0..1, float32 [count, C, H, W], the same every time; torch's global generator is not used."""
    shape = (len(model.preprocess.mean), model.framing.height, model.framing.width)
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))


def _same_weights(state: dict[str, Tensor], description: dict[str, Any]) -> str:
    if weights_sha256(state) != description["weights_sha256"]:
        raise TrainlaunchError("the weights that were written are not those of the model; nothing was exported")
    return "read back: the same weights"


@torch.no_grad()
def _same_logits(model: TrainedModel, network: nn.Module, exported: Callable[[Tensor], Tensor]) -> str:
    """Compare the exported network with the model on batches of several sizes; return one line with the result."""
    largest = 0.0
    for count in CHECKED_BATCH_SIZES:
        images_NCHW = _images(model, count)
        expected_NC, found_NC = network(images_NCHW), exported(images_NCHW)
        scale = max(1.0, float(expected_NC.abs().max()))
        difference = float((expected_NC - found_NC).abs().max())
        if not difference <= TOLERANCE * scale:
            raise TrainlaunchError(
                f"the exported network gives other logits than the model, by {difference:g}; nothing was exported"
            )
        largest = max(largest, difference)
    return f"read back: logits differ by {largest:.1e} at most"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainlib.inference.export", description="Export a trained model.", allow_abbrev=False
    )
    parser.add_argument("model", metavar="RUN|CHECKPOINT")
    parser.add_argument("--format", choices=list(SUFFIXES), required=True)
    parser.add_argument("--output", metavar="FILE")
    parser.add_argument("--force", action="store_true")
    add_code(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    end_program(main)
