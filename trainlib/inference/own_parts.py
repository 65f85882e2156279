"""The parts of the user's own that a trained model needs, from the run's trusted copy of their code."""

from __future__ import annotations

from collections.abc import Sequence

from trainlib.config import is_code
from trainlib.inference.chosen_checkpoint import ChosenCheckpoint
from trainlib.models.own_parts.code_parts import parts_of
from trainlib.models.own_parts.custom_parts import NO_CUSTOM_PARTS, CustomParts
from trainlib.runs.own_code.loading import code_of_run


def own_parts(
    chosen: ChosenCheckpoint,
    named: Sequence[str],
    command: Sequence[str],
    *,
    evaluated: bool = False,
    data: bool = False,
) -> CustomParts:
    """Return the parts of one's own that are needed; nothing is imported where none is.

    named       the values of `--code`
    command     the words of the command that needs them, for messages
    evaluated   the loss and metrics are needed, beside the model
    data        the data set is needed

    Raises UserError where the run's code is missing, changed, not trusted, or not what `--code` names.
    """
    config = chosen.config
    needed = [config.model.name]
    needed += [config.loss.name, *config.evaluation.metrics] if evaluated else []
    needed += [config.data.name] if data else []
    if not (named or any(map(is_code, needed))):
        return NO_CUSTOM_PARTS
    parts = code_of_run(config.code, named, chosen.run_directory, command)
    return parts_of(chosen.config_with(parts), parts)
