"""Messages in the words of Python, for those who call `trainlib.fit`: `fresh=True`, not `--fresh`."""

from __future__ import annotations

import re

from trainlib.errors import TrainlaunchError

_WORDS = (
    (re.compile(r"--fresh\b"), "fresh=True"),
    (re.compile(r"--resume ([\w./-]*step-\w+)"), r'resume="\1"'),
    (re.compile(r"--resume\b"), 'resume=""'),
    (re.compile(r"another `--name`"), "another `name`"),
    (re.compile(r"--name ([\w.-]+)"), r'"name=\1"'),
    (re.compile(r"--name\b"), '"name=OTHER"'),
    (re.compile(r"--code FILE\.py \S+ or, in Python, "), ""),
    (re.compile(r"\(command line\)"), "(given as key=value)"),
)


def to_python_words(error: TrainlaunchError) -> None:
    """Change the message of an error from the options of `launch` to the arguments of `trainlib.fit`."""
    text = str(error)
    for pattern, words in _WORDS:
        text = pattern.sub(words, text)
    error.args = (text, *error.args[1:])
