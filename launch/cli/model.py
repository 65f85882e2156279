"""The commands that use a trained model: `launch eval`, `launch predict` and `launch export`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from launch.cli.command_line.arguments import WholeNumber, call, code_words, own_code, parse_processes
from launch.cli.command_line.completion import complete_run
from launch.cli.command_line.start_page import tell_next
from trainlib.errors import EXIT_OK, UserError

MODEL = "RUN|CHECKPOINT"


@click.command("eval")
@click.argument("model", metavar=MODEL, shell_complete=complete_run)
@own_code
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Of the run's data.  [default: test]")
@click.option("--data", metavar="DIR", help="Evaluate on DIR/<class>/* instead; some of the classes may be missing.")
@click.option(
    "--processes", default="1", callback=parse_processes, metavar="N|auto", help="Ranks here; auto: one for each GPU."
)
@click.option("--batch-size", type=WholeNumber(min=1), help="Images at a time, in each process.")
@click.option("--predictions", metavar="FILE.csv", help="Also write the answer to each sample, as a table.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the whole confusion matrix.")
def evaluate(
    model: str,
    code: tuple[str, ...],
    split: str | None,
    data: str | None,
    processes: int | None,
    batch_size: int | None,
    predictions: str | None,
    as_json: bool,
) -> int:
    """Compute exact figures of a trained model.

    Loss, accuracy, top-5 and balanced accuracy, macro F1, calibration error, a table of the classes, the confusion
    matrix; of a model of several labels, mean average precision, F1 and the accuracy of whole sets. RUN is a run's name
    or directory, and stands for its best weights, or its last where there are no best ones. The figures of one of its
    splits are also written to RUN/evaluation-SPLIT.json. CHECKPOINT is a directory runs/NAME/checkpoints/step-...
    """
    if split is not None and data is not None:
        raise click.UsageError("--split and --data: a split of the run's data, or other folders; give one of them")
    words = [
        _resolved(model),
        *code_words(code),
        "--split",
        split or "test",
        *(["--data", data] if data is not None else []),
    ]
    words += ["--predictions", predictions] if predictions is not None else []
    words += [*(["--batch-size", str(batch_size)] if batch_size else []), *(["--json"] if as_json else [])]
    exit_code = _evaluate(words, processes)
    if exit_code == EXIT_OK and not as_json:
        tell_next(
            shlex.join(["launch", "report", Path(words[0]).name]) if data is None else "launch predict RUN PICTURE"
        )
    return exit_code


@click.command()
@click.argument("model", metavar=MODEL, shell_complete=complete_run)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@own_code
@click.option(
    "--top",
    type=WholeNumber(min=1),
    default=1,
    show_default=True,
    help="How many classes to name; not of a model of several labels.",
)
@click.option("--batch-size", type=WholeNumber(min=1), default=64, show_default=True, help="Images at a time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def predict(
    model: str, images: tuple[str, ...], code: tuple[str, ...], top: int, batch_size: int, as_json: bool
) -> int:
    """Name the class of each image, and how probable it is; of a model of several labels, all above their thresholds.

    IMAGE is a file, a folder (all images in it, at any depth), or - for one image on standard input. Exit code 1: some
    files could not be read, which are named on standard error; 2: none could.
    """
    words = [*code_words(code), "--top", str(top), "--batch-size", str(batch_size), *(["--json"] if as_json else [])]
    return call("trainlib.inference.predict", [*words, "--", _resolved(model), *images])


@click.command()
@click.argument("model", metavar=MODEL, shell_complete=complete_run)
@own_code
@click.option(
    "--format",
    "export_format",
    type=click.Choice(["state_dict", "safetensors", "torch_export", "onnx"]),
    required=True,
    help="state_dict, safetensors: weights; torch_export (.pt2), onnx: the whole network.",
)
@click.option("--output", metavar="FILE", help="Where to.  [default: NAME.pt, .safetensors, .pt2 or .onnx, here]")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def export(model: str, code: tuple[str, ...], export_format: str, output: str | None, force: bool) -> int:
    """Write a trained model for other programs.

    Beside FILE comes FILE.json, which says how to use it.
    """
    words = [*code_words(code), "--format", export_format, *(["--output", output] if output is not None else [])]
    exit_code = call("trainlib.inference.export", [*words, *(["--force"] if force else []), "--", _resolved(model)])
    if exit_code == EXIT_OK:
        tell_next(shlex.join(["launch", "predict", model, "PICTURE"]))
    return exit_code


def _resolved(model: str) -> str:
    """Return the run's directory, or the checkpoint as given; refuse anything else before torch is imported."""
    from trainlib.runs.attempt.status import find_run

    path = Path(model)
    if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp") and not path.is_dir():
        raise UserError(f"{model} is a picture, and the run comes first. Type launch predict RUN {shlex.quote(model)}")
    if (path / "manifest.json").is_file() or (path.is_file() and model.endswith(".safetensors")):
        return model
    if path.parent.name == "checkpoints":
        whole = sorted(manifest.parent.name for manifest in path.parent.glob("step-*/manifest.json"))
        advice = f"take {' or '.join(whole)}" if whole else f"there is none in {path.parent}"
        raise UserError(f"{model}: no such checkpoint, or its manifest.json is lost; {advice}")
    return str(find_run(model))


def _evaluate(words: list[str], processes: int | None) -> int:
    from launch.local.ranks.program import run_program
    from launch.local.start.command import command_here
    from launch.local.start.devices import choose_processes
    from trainlib.runs.machine.gpus import count_gpus

    module = "trainlib.inference.evaluate"
    gpus = count_gpus()
    number = choose_processes(processes, gpus)
    command = command_here(words, number, gpus, module=module)
    if number == 1:  # in this interpreter, which need not import torch again
        return call(module, words, command.variables(os.environ))
    return run_program(command)
