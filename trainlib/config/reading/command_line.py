"""The parsing of command-line arguments that `launch run` and the training program share."""

from __future__ import annotations

from collections.abc import Sequence

from trainlib.config.reading.merge import is_override


def mark_bare_resume(words: Sequence[str]) -> list[str]:
    """Rewrite `--resume` as `--resume=` where the next word is a config, an override or an option, not a checkpoint.

    A checkpoint is a folder: a path, or the name of one, `step-00000123`. So `--resume train.epochs=30` and
    `--resume quickstart` mean the newest checkpoint.
    """
    result = []
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        bare = word == "--resume" and not _names_checkpoint(following)
        result.append("--resume=" if bare else word)
    return result


def _names_checkpoint(word: str) -> bool:
    if word.startswith("-") or is_override(word) or word.endswith((".yaml", ".yml")):
        return False
    return "/" in word or word.startswith("step-")
