"""Commands and options of other tools, answered with the words to type here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

# {} stands for the words that follow, {0} for the first of them.
COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "fit", "start", "finetune", "learn", "training"), "launch run {}"),
    **dict.fromkeys(("test", "evaluate", "val", "evaluation", "score"), "launch eval {}"),
    "validate": "launch eval {} for the figures of a run, launch check {} for a configuration",
    **dict.fromkeys(("infer", "inference", "classify", "detect"), "launch predict {}"),
    **dict.fromkeys(("resume", "continue", "restart"), "launch run runs/{0}/config.yaml"),
    **dict.fromkeys(("ls", "ps", "runs", "show-runs"), "launch list"),
    **dict.fromkeys(("show", "info", "describe", "progress", "state"), "launch status {}"),
    **dict.fromkeys(("log", "tail", "attach", "follow"), "launch logs -f {}"),
    **dict.fromkeys(("kill", "abort", "terminate", "scancel"), "launch cancel {}"),
    **dict.fromkeys(("pause", "interrupt"), "launch stop {}"),
    **dict.fromkeys(("queue", "sbatch", "slurm", "enqueue", "srun"), "launch submit {}"),
    **dict.fromkeys(("tune", "hpo", "search", "grid", "hparams"), "launch sweep {}"),
    **dict.fromkeys(("convert", "onnx", "deploy"), "launch export {} --format onnx"),
    **dict.fromkeys(("tensorboard", "board", "tb"), "tensorboard --logdir runs"),
    **dict.fromkeys(("wandb", "sync", "upload"), "launch wandb-sync {}"),
    **dict.fromkeys(("new", "create", "setup", "configure"), "launch init {}"),
    **dict.fromkeys(("delete", "remove", "del", "clean"), "launch rm {}"),
    **dict.fromkeys(("compare", "plot", "results", "view", "html"), "launch report {}"),
    **dict.fromkeys(("lint", "dry-run", "dryrun", "config", "verify-config"), "launch check {}"),
    **dict.fromkeys(("env", "diagnose", "system", "hardware"), "launch doctor"),
    **dict.fromkeys(("dataset", "inspect", "explore", "stats"), "launch data {}"),
    **dict.fromkeys(("lr-find", "lr_find", "lrfind", "lr-finder", "auto-lr", "range-test"), "launch find-lr {}"),
    **dict.fromkeys(("scale-batch-size", "auto-batch-size", "autobatch", "batch-size"), "launch find-batch {}"),
    "version": "launch --version",
    "help": "launch --help",
}


_OF_SBATCH = (
    *("mem", "account", "qos", "constraint", "exclusive", "nodelist", "exclude", "gres", "ntasks"),
    *("cpus-per-task", "mail-type", "mail-user"),
)
# Options of one command, by its name and theirs.
OPTIONS: Mapping[tuple[str, str], str] = {
    **dict.fromkeys((("submit", name) for name in ("gpus", "devices", "nproc_per_node")), "--gpus-per-node {}"),
    **{("submit", name.replace("-", "_")): f"--sbatch {name}={{}}" for name in _OF_SBATCH},
    **dict.fromkeys((("logs", name) for name in ("tail", "lines", "last")), "-n {}"),
    **dict.fromkeys((("predict", name) for name in ("topk", "k", "top_k")), "--top {}"),
    **dict.fromkeys((("export", name) for name in ("out", "o", "output_file")), "--output {}"),
}


# What is said where an argument is missing, by its metavar's first word; {} stands for the words that are there.
MISSING: Mapping[str, str] = {
    "CONFIG...": "A YAML file or a shipped one, such as launch {} quickstart",
    **dict.fromkeys(("RUN", "RUN...", "RUN|CHECKPOINT"), "launch list shows the runs that there are"),
    "RUN...|SWEEP.yaml": "launch list shows the runs that there are",
    "IMAGE...": "A picture, such as launch {} photo.jpg",
    "FOLDER": "A folder that holds a folder of pictures for each class",
}


def for_missing(metavar: str, words: Sequence[str]) -> str | None:
    """Return what to give for an argument that is missing; None where its name says all.

    words   the whole command line
    """
    answer = MISSING.get(metavar.split(" ")[0])
    return answer.format(shlex.join(words)) if answer else None


def for_command(word: str, rest: Sequence[str], commands: Sequence[str]) -> str | None:
    """Return what to type for a command that there is not; None where nothing is like it.

    rest       the words behind it
    commands   those that there are
    """
    from trainlib.config import shipped_configs
    from trainlib.config.checking.suggest import nearest

    if template := COMMANDS.get(word.lower()):
        whole = shlex.join(rest)
        return " ".join(template.replace("{0}", rest[0] if rest else "NAME").replace("{}", whole).split())
    if os.path.isdir(word):
        return f"launch init {shlex.quote(word)}"
    if word.endswith((".yaml", ".yml")) or word in shipped_configs():
        return shlex.join(["launch", "run", word, *rest])
    guess = nearest(word, commands)
    return shlex.join(["launch", guess, *rest]) if guess else None


def for_option(option: str, words: Sequence[str], command: str) -> str | None:
    """Return a sentence on what to type for an option that there is not; None where nothing is like it.

    option   with its dashes; of `-lr` click says `-l`
    words    the whole command line
    command  the one that does not have it
    """
    from trainlib.config.checking.other_words import instead, is_key, sentence

    if not option.startswith("--"):
        option = next((word.partition("=")[0] for word in words if word.startswith(option)), option)
    name, value = option.lstrip("-"), ""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == option and not following.startswith("-"):
            value = following
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    if not is_key(name) and name.startswith(("no-", "no_")):
        name, value = name[3:], "false"
    if template := OPTIONS.get((command, name.replace("-", "_"))):
        return sentence(template.format(shlex.quote(value) if value else "..."))
    answer = instead(name, value) if is_key(name) else None
    return sentence(answer) if answer else None
