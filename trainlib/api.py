"""The function `trainlib.fit`, which trains from Python what `launch run` trains."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trainlib.config import Config, differences, is_free, keep_older_values, load_config, read_resolved
from trainlib.data import Dataset
from trainlib.data.augment.custom import Transform
from trainlib.data.datasets.images import InMemoryImages
from trainlib.distributed.devices.torch_settings import fresh_torch_settings
from trainlib.errors import EXIT_STOPPED, StoppedError, TrainlaunchError, UserError
from trainlib.inference.chosen_checkpoint import find_checkpoint
from trainlib.models.forward.recomputation import keep_activations
from trainlib.models.forward.synchronized_batchnorm import make_plain
from trainlib.models.losses import CustomLoss
from trainlib.models.own_parts.custom_parts import CustomParts, ModelSource, OwnMetric
from trainlib.models.weights.files import load_weights
from trainlib.runs import RUNS
from trainlib.runs.attempt.logs import logging_to_console
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.machine import launch_variables
from trainlib.runs.notebook.display import in_notebook
from trainlib.runs.notebook.run import Run
from trainlib.runs.terminal.python_words import to_python_words
from trainlib.train import train
from trainlib.training.build.run_weights import pin_weights
from trainlib.training.hooks import Hook

logger = logging.getLogger("trainlib")
_ALONE = threading.Lock()  # held while a call trains: torch's settings and generators are the process's


def fit(
    *config: str | os.PathLike[str] | Mapping[str, Any],
    model: ModelSource | None = None,
    dataset: Dataset | None = None,
    loss: CustomLoss | None = None,
    hooks: Sequence[Hook] = (),
    transform: Transform | None = None,
    optimizer: Callable[[Any], Optimizer] | None = None,
    metrics: Sequence[OwnMetric] = (),
    data: Dataset | None = None,
    fresh: bool = False,
    resume: str | None = None,
) -> Run:
    """Train to the end of the configuration, as `launch run` does, and return the finished run's directory.

    config    files, names of shipped configurations, mappings of the same form, and `key=value`, as for `launch run`
    model     a torch.nn.Module, which is trained in place, or a function or class that takes the number of classes and
              returns one (it is called with torch seeded); the module maps images float32 [N, 3, S, S], or
              [N, 1, S, S] with `data.channels: 1`, to logits [N, C]
    dataset   from `image_dataset`; the default of `data.image_size` is then the size of its images, if these are square
    loss      a function of logits float32 [N, C] and labels int64 [N] that returns the loss of each sample [N], or
              their mean
    hooks     objects of `trainlib.Hook`'s subclasses, which follow the training on every rank
    transform a random change of training images (see `trainlib.transform`), after those that `data.augment` names
    optimizer a function or class of parameter groups that returns a torch.optim.Optimizer
    metrics   functions of logits float32 [N, C] and labels int64 [N] of a whole split that return a number; they are
              called by their names in rows, and `val/NAME` may decide (`checkpoint.best`, with its `mode`)
    data      another name of `dataset`
    fresh     move an earlier run of this name aside and begin again
    resume    "" to accept harmless changes of the configuration, or the name of one of the run's checkpoints

    Each of model, dataset, loss and optimizer takes the place of the one that the configuration names. Under
    `torchrun` or `accelerate launch`, call it on every rank with the same arguments. An interrupted run is continued; a
    finished one is returned as it is. A module given as `model` holds the tested weights afterwards.

    Torch's global settings (default dtype and device, autocast, grad mode, determinism, threads, random generators ...)
    are those of a fresh process while it trains, and the caller's again afterwards.

    Raises:
        UserError: for a mistake in the arguments, the configuration or the data.
        TrainlaunchError: for any other failure.
        SystemExit: with code 75 if the run was asked to stop and has a checkpoint. So the lines of a script that
            follow the call only run when the run is finished.
        KeyboardInterrupt: in a notebook, in place of that; its `run` is the run, and so is `trainlib.open_run(name)`.
    """
    if data is not None and dataset is not None:
        raise UserError("data and dataset: are two names for one argument; give one of them")
    dataset = data if dataset is None else dataset
    functions = {"model": model, "loss": loss, "transform": transform, "optimizer": optimizer}
    _refuse_wrong_types(functions, dataset, hooks, metrics, fresh, resume)
    custom = CustomParts(model, dataset, loss, hooks, transform, optimizer, _by_name(metrics))
    with _alone():
        return _fit(config, custom, dataset, fresh, resume)


@contextmanager
def _alone() -> Iterator[None]:
    """Context manager: train. Raises UserError where another thread, or what called this, does so already."""
    if not _ALONE.acquire(blocking=False):
        raise UserError(
            "another fit trains in this process, and they would share torch's settings and random numbers: call them "
            "one after another, or in processes of their own"
        )
    try:
        yield
    finally:
        _ALONE.release()


def _refuse_wrong_types(
    functions: Mapping[str, object], dataset: object, hooks: object, metrics: object, fresh: object, resume: object
) -> None:
    """Raise UserError for the first argument that is not what it must be, before anything is made of it."""
    to_call = "a function, or another object to call; a name belongs into the configuration"
    rules = [(name, part, part is None or callable(part), to_call) for name, part in functions.items()]
    folder = '; a folder of pictures belongs into the configuration, "data.name=image_folder", "data.root=..."'
    rules += [
        ("dataset", dataset, isinstance(dataset, Dataset | None), f"what trainlib.image_dataset returns{folder}"),
        ("hooks", hooks, _is_list(hooks, lambda hook: isinstance(hook, Hook)), "a list of objects of trainlib.Hook"),
        ("metrics", metrics, _is_list(metrics, callable), "a list of functions"),
        ("resume", resume, isinstance(resume, str | None), 'the name of a checkpoint, or ""'),
    ]
    for name, given, is_right, rule in rules:
        if not is_right:
            got = repr(given) if isinstance(given, str | int | float) else f"a {type(given).__name__}"
            raise UserError(f"{name}: got {got}, must be {rule}")
    if fresh and resume is not None:
        raise UserError("fresh and resume: one starts over, the other goes on; give one of them")


def _is_list(given: object, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str) and all(map(is_right, given))


def _fit(
    config: Sequence[str | os.PathLike[str] | Mapping[str, Any]],
    custom: CustomParts,
    dataset: Dataset | None,
    fresh: bool,
    resume: str | None,
) -> Run:
    here = in_notebook()
    flag = StopFlag(keeps_process=here)
    flag.install()
    try:
        with logging_to_console(), fresh_torch_settings():
            resolved = load_config([*_image_size(dataset), *config], custom.names())
            run = Run(RUNS / resolved.name)
            if not fresh:
                resolved = keep_older_values(resolved, run.config_file)
            resolved = pin_weights(resolved, fresh=fresh)
            if not fresh and resume is None and _is_finished(run, resolved):
                _load_tested_weights(run, custom.model)
                return run
            rank = launch_variables.rank()
            try:
                done = train(resolved, flag, rank=rank, fresh=fresh, resume=resume, custom=custom)
            except StoppedError:
                if not here:
                    raise
                done = False
    except TrainlaunchError as error:
        to_python_words(error)
        raise
    finally:
        flag.uninstall()
        if isinstance(custom.model, nn.Module):
            make_plain(custom.model)
            keep_activations(custom.model)
    if not done:
        raise _interrupt(run) if here else SystemExit(EXIT_STOPPED)
    return run


def _interrupt(run: Run) -> KeyboardInterrupt:
    """Return what ends the cell of a notebook whose run was asked to stop; it keeps the run."""
    told = f"{run.name} has stopped; the same call goes on from where it was. trainlib.open_run({run.name!r}) shows it"
    interrupt = KeyboardInterrupt(told)
    interrupt.run = run  # type: ignore[attr-defined]
    return interrupt


def _by_name(metrics: Sequence[OwnMetric]) -> dict[str, OwnMetric]:
    """Return metrics by their names. Raises UserError for two of one name, which rows could not tell apart."""
    named = {str(getattr(metric, "__name__", type(metric).__name__)): metric for metric in metrics}
    if len(named) < len(metrics):
        raise UserError(f"metrics: got {len(metrics)} of the names {', '.join(named)}, must each have its own")
    return named


def _image_size(dataset: Dataset | None) -> list[dict[str, Any]]:
    """Return the configuration layer that sets `data.image_size` to the images' own size; none if not square."""
    if dataset is None or not isinstance(dataset.train.images, InMemoryImages):
        return []
    height, width = dataset.train.images.images_NCHW.shape[2:]
    return [{"data": {"image_size": height}}] if height == width else []


def _is_finished(run: Run, config: Config) -> bool:
    """Return True if this run is completed with this configuration, wherever the data lie: a script goes on then."""
    return run.is_finished and all(is_free(one.key) for one in differences(read_resolved(run.config_file), config))


def _load_tested_weights(run: Run, model: ModelSource | None) -> None:
    """Load the tested weights of a finished run into `model`, if that is a module."""
    logger.info("%s is finished", run.path)
    if isinstance(model, nn.Module):
        load_weights(model, find_checkpoint(run.path).checkpoint.model_state())
