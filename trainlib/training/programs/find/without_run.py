"""A configured training that leaves no run directory, for programs that only try something out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from trainlib.config import Config
from trainlib.data import load_data
from trainlib.distributed import process_group
from trainlib.models.own_parts.code_parts import parts_of
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.machine import launch_variables
from trainlib.runs.own_code.loading import load_with_code
from trainlib.training.build.run_weights import pin_weights
from trainlib.training.build.training import build_inputs, build_training
from trainlib.training.trainer import Training


def load_trial(words: Sequence[str], code: Sequence[str], command: str) -> tuple[Config, CustomParts]:
    """Return the configuration that words give, and the parts of one's own that it names, as a new run has them.

    words     CONFIG... [key=value ...]
    code      the values of `--code`
    command   name of the command, for messages
    """
    config, _, parts = load_with_code(words, code, ["launch", command, *words])
    return pin_weights(config, fresh=True), parts_of(config, parts)


@contextmanager
def trial_training(config: Config, custom: CustomParts) -> Iterator[Training]:
    """Context manager: join the other ranks and build the training at its beginning, without validation samples.

    Raises UserError for what does not fit together.
    """
    process_group.check_device(config.train)
    is_main = launch_variables.rank() == 0
    dataset = load_data(config.data, config.seed, is_main=is_main, own=custom.load_dataset())
    with process_group.joined(config.train) as accelerator:
        training = build_training(build_inputs(config, dataset, accelerator, None, custom), None, custom)
        samples = replace(training.samples, val_ids=training.samples.val_ids[:0])
        yield replace(training, samples=samples)
