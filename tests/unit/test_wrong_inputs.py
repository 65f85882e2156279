"""Wrong inputs as people type them: one message each that names the value, the rule and the way out; exit code 2."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch.cli import main

FILES = {
    "empty.yaml": b"",
    "list.yaml": b"- a\n",
    "tab.yaml": b"train:\n\tepochs: 3\n",
    "wide.yaml": "seed: 1\n".encode("utf-16"),
    "latin.yaml": "name: gr\xfcn\n".encode("latin-1"),
    "two.yaml": b"seed: 1\n---\nseed: 2\n",
    "itself.yaml": b"a: &a [*a]\n",
    "twice.json": b'{"seed": 1, "seed": 2}',
    "quote.yaml": b"name: 'x\n",
    "brace.yaml": b"train: {epochs: 3\n",
    "indent.yaml": b"train:\n  epochs: 3\n batch_size: 4\n",
    "colon.yaml": b"train:\n  epochs:3\n",
    "photo.jpg": b"\xff\xd8\xff\xe0 no photo",
    "syntax.py": b"def f(:\n",
    "raises.py": b"raise RuntimeError('no')\n",
    "words.py": b"x = 1\n",
    "folder/a.txt": b"x",
    "runs/done/config.yaml": b"name: done\n",
    "runs/done/attempts.jsonl": b'{"event": "start", "attempt": 1}\n{"event": "end", "status": "stopped"}\n',
    "runs/done/logs/rank-0.log": b"hello\n",
}

WRONG = [
    # files
    ("run empty.yaml", "the file is empty: must hold at least one `key: value` (empty.yaml)"),
    ("run list.yaml", "got a list at the top level, must be keys with values, such as `seed: 0` (list.yaml line 1)"),
    ("run tab.yaml", "indent with spaces, not with a tab (tab.yaml line 2)"),
    ("run wide.yaml", "not a text file: must be YAML in UTF-8 (wide.yaml line 1)"),
    ("run latin.yaml", "not a text file: must be YAML in UTF-8 (latin.yaml line 1)"),
    ("run photo.jpg", "not a text file: must be YAML in UTF-8 (photo.jpg line 1)"),
    ("run two.yaml", "a second document begins here ('---'): must be one document (two.yaml line 2)"),
    ("run itself.yaml", "a.0: an alias must not lie inside what it stands for (itself.yaml line 1)"),
    ("run twice.json", "seed: appears twice, first on line 1: remove one (twice.json line 1)"),
    ("run quote.yaml", "a quote is not closed: end the text with the quote that it begins with (quote.yaml"),
    ("run brace.yaml", "a { is not closed, or a comma is missing before this (brace.yaml"),
    ("run indent.yaml", "indented as none before it: begin all keys of a section in one column (indent.yaml line 3)"),
    ("run colon.yaml", 'train: got "epochs:3", must be .* Put a space behind the colon: epochs: 3 (colon.yaml line 1)'),
    ("run folder", "folder: is a folder, must be a YAML file; launch init folder writes one for its pictures"),
    ("run nothing.yaml", "nothing.yaml: no such file (shipped configurations: .* quickstart"),
    ("labels nothing.yaml", "nothing.yaml: cannot be read: No such file or directory"),
    ("run done", "done is a run, and goes on with its own configuration: launch run runs/done/config.yaml"),
    ("run runs/done", "runs/done is a run, and goes on with its own configuration: launch run runs/done/config.yaml"),
    ("run colon", "colon: no such file; did you mean colon.yaml? (shipped configurations: "),
    ("run clon.yml", "clon.yml: no such file; did you mean colon.yaml? (shipped configurations: "),
    ("report colon.yaml", "is a run's configuration, and no sweep: launch run colon.yaml .* launch report colon shows"),
    ("run", "Missing argument 'CONFIG... [key=value ...]'. A YAML file or a shipped one, such as launch run quick"),
    ("status", "Missing argument 'RUN'. launch list shows the runs that there are"),
    ("predict done", "Missing argument 'IMAGE...'. A picture, such as launch predict done photo.jpg"),
    ("init", "Missing argument 'FOLDER'. A folder that holds a folder of pictures for each class"),
    # options
    ("run quickstart --processes 2.5", "got 2.5, must be auto or a whole number from 1 on"),
    ("run quickstart --nodes 4:2", "got 4:2, must be a whole number from 1 on, or MIN:MAX, like 2:4"),
    ("run quickstart --restarts -1", "got -1, must be a whole number from 0 on"),
    ("run quickstart --restarts some", "got some, must be a whole number from 0 on"),
    ("run quickstart --name ../x", 'name: got "../x", must be letters, digits'),
    ("run quickstart --name ''", "it names the folder runs/<name> (command line)"),
    ("run quickstart --fresh --resume", "one starts over, the other goes on; give one of them"),
    ("logs done -n -5", "got -5, must be a whole number from 0 on"),
    ("export done --format tflite", "'tflite' is not one of 'state_dict', 'safetensors', 'torch_export', 'onnx'"),
    ("eval done --split all", "'all' is not one of 'train', 'val', 'test'"),
    ("report done --output ''", "--output: got no name, must be a file"),
    ("data quickstart --html ''", "--html: got no name, must be a file"),
    ("data quickstart --batch out.txt", "--batch: got out.txt, must end in .png"),
    # own code
    ("run quickstart --code nothing.py", "--code nothing.py: cannot be read .* give FILE.py, or a module"),
    ("run quickstart --code folder", "--code folder: there is no folder.py .*|--code folder: .* must be"),
    ("run quickstart --code photo.jpg", "no photo.py and no package photo in .*; give FILE.py, or a module"),
    ("run quickstart loss.name=code:focal", "a part of your own: add `--code FILE.py`, which"),
    # values
    ("check quickstart =5", "got '=5', must be key=value with a dotted key, such as optimizer.lr=0.1"),
    ("check quickstart train.=5", "got 'train.=5', must be key=value with a dotted key"),
    ("check quickstart train.epochs=5e", 'train.epochs: got "5e", must be a whole number'),
    ("check quickstart seed=1,2,3", 'seed: got "1,2,3", must be a whole number'),
    ("check quickstart checkpoint.every=5min", "must be a duration: .* like 20ep or 500st; or auto"),
    ("check quickstart checkpoint.keep=0", "checkpoint.keep: got 0, must be >= 2"),
    ("check quickstart data.image_size=32x32", "must be a whole number of pixels from 8 to 4096, or two of them"),
    ("check quickstart data.val_fraction=10%", 'got "10%", must be a number. Type data.val_fraction=0.1'),
    ("check quickstart train.device=gpu", "must be one of auto, cpu, cuda, mps, xpu. Type train.device=cuda ("),
    ("check quickstart data.augment.flip=yes", "must be true, false or alternating. Type data.augment.flip=true ("),
    ("check quickstart tracking.tensorboard=off", "must be true or false. Type tracking.tensorboard=false ("),
    ("check quickstart checkpoint.best=val/loss", "Type checkpoint.best='{metric: val/loss}' ("),
    ("check quickstart mirror=s3:/bucket", "must have two slashes behind the colon, as s3://bucket/path"),
    ("check quickstart slurm.time=5h", 'slurm.time: got "5h", must be a time limit as SLURM writes it: 90 (minutes),'),
    ("check quickstart data.fold=6/5", "must be a fold and the number of folds, at least 2, like 1/5 to 5/5"),
    ("check quickstart 'data.augment={crop: {scale: [1, 0.1]}}'", "must be the smaller one first: [0.1, 1]"),
    ("check quickstart slurm.mem=lots", "must be an amount of memory, like 64G or 500M"),
    ("check quickstart 'slurm.setup=module load x'", "must be a list. Type slurm.setup='[\"module load x\"]' ("),
    ("check quickstart 'tracking.trackers=[nonsense]'", "trackers that Accelerate has: aim, "),
    ("check quickstart 'scheduler={name: ReduceLROnPlateau, metric: val/lss}'", "error: scheduler.metric: .* val/loss"),
    ("check quickstart 'train={epochs: 5'", "a { is not closed, or a comma is missing before this (command line)"),
    ("check quickstart 'train.epochs=[5'", "a [ is not closed, or a comma is missing before this (command line)"),
    # runs
    ("status don", "no run 'don' in .*: did you mean done?"),
    ("status nobody", "no run 'nobody' in .*: launch list shows the runs that there are"),
    ("logs done --rank 9", "rank-9.log: No such file or directory; there are rank-0.log"),
    ("stop done", "done is not running; launch status done tells how it ended"),
    ("rm done nobody", "no run 'nobody' in"),
    ("report done nobody", "no run 'nobody' in"),
    ("eval nobody", "no run 'nobody' in"),
    ("--runs", "--runs: needs the folder that holds the run directories"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[words for words, _ in WRONG])
def test_one_message_names_the_value_the_rule_and_the_way_out(
    words: str, said: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`.*` in what is said stands for anything; the rest is as it is printed."""
    for name, content in FILES.items():
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_bytes(content)
    assert main(shlex.split(words)) == 2
    captured = capsys.readouterr()
    pattern = "|".join(".*".join(map(re.escape, either.split(".*"))) for either in said.split("|"))
    assert re.search(pattern, " ".join(captured.err.split())), captured.err
    assert "Traceback" not in captured.err
    assert len(re.findall(r"(?m)^error: |^Error: ", captured.err)) == 1
    assert captured.out == ""
    assert (workdir / "runs/done/attempts.jsonl").read_bytes() == FILES["runs/done/attempts.jsonl"]
