"""Words of other tools are answered with the words to type here, and nothing is guessed: exit code 2."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launch.cli import cli, main
from launch.cli.command_line.other_words import COMMANDS
from trainlib.config import load_config
from trainlib.config.checking.other_words import instead
from trainlib.config.checking.vocabulary import KEYS, NO_KEY, VALUES
from trainlib.config.docs.reference import mistakes_of
from trainlib.config.schema.keys import all_keys
from trainlib.errors import ConfigError

WRONG = [
    # options
    ("run quickstart --epochs 5", "Type train.epochs=5"),
    ("run quickstart --epochs=5", "Type train.epochs=5"),
    ("run quickstart --max_epochs 5", "Type train.epochs=5"),
    ("run quickstart --lr 0.1", "Type optimizer.lr=0.1"),
    ("run quickstart --batch-size 64", "Type train.batch_size=64"),
    ("run quickstart -b 64", "Type train.batch_size=64"),
    ("run quickstart --gpus 2", "Type --processes 2"),
    ("run quickstart --nproc_per_node 2", "Type --processes 2"),
    ("run quickstart --optimizer.lr 0.1", "Type optimizer.lr=0.1"),
    ("run quickstart --amp", "Type train.precision=fp16"),
    ("run quickstart --bf16", "Type train.precision=bf16"),
    ("run quickstart --pretrained", "Type model.weights=pretrained"),
    ("run quickstart --no-wandb", "Type tracking.wandb.mode=disabled"),
    ("run quickstart --workers 4", "Leave it out: pictures are decoded on all cores"),
    ("run quickstart --device cuda:0", "Type train.device=cuda"),
    ("run quickstart --gpu 0", "Choose GPUs by the environment"),
    ("run quickstart --output-dir out", "Type --name out"),
    ("run --config x.yaml", "Type launch run x.yaml"),
    ("run quickstart -lr 0.1", "Type optimizer.lr=0.1"),
    ("submit quickstart --gpus 4", "Type --gpus-per-node 4"),
    ("submit quickstart --mem=32G", "Type --sbatch mem=32G"),
    ("submit quickstart --cpus-per-task 8", "Type --sbatch cpus-per-task=8"),
    ("logs mine --tail 20", "Type -n 20"),
    ("predict photo.jpg mine", "Type launch predict RUN photo.jpg"),
    ("submit quickstart --imgsz 64", "Type data.image_size=64"),
    # a key without its value
    ("run quickstart train.epochs 5", "Type train.epochs=5"),
    ("run quickstart train.epochs = 5", "Type train.epochs=5"),
    ("run quickstart train.epochs: 5", "Type train.epochs=5"),
    ("run quickstart train.epochs= 5", "Type train.epochs=5"),
    ("run quickstart epochs 5 seed=1", "Type train.epochs=5"),
    ("run quickstart optimizer.lr:0.1", "Type optimizer.lr=0.1"),
    ("run quickstart 'optimizer: adam'", "Type optimizer.name=Adam"),
    ("run quickstart train/epochs=5", "Type train.epochs=5"),
    ("run quickstart train:epochs=5", "Type train.epochs=5"),
    ("run quickstart +train.epochs=5", "Type train.epochs=5"),
    ("run quickstart ++trainer.max_epochs=5", "Type train.epochs=5"),
    ("run quickstart train.epochs==5", "Type train.epochs=5"),
    ("run quickstart 'train.epochs = 5'", "Type train.epochs=5"),
    ("run quickstart ~scheduler", "Type scheduler=null"),
    ("run quickstart resnet50", "Type model.name=resnet50"),
    # keys
    ("run quickstart lr=0.1", "Type optimizer.lr=0.1"),
    ("run quickstart epochs=5", "Type train.epochs=5"),
    ("run quickstart batch_size=64", "Type train.batch_size=64"),
    ("run quickstart train.lr=0.1", "Type optimizer.lr=0.1"),
    ("run quickstart optimizer.learning_rate=0.1", "Type optimizer.lr=0.1"),
    ("run quickstart trainer.max_epochs=5", "Type train.epochs=5"),
    ("run quickstart data=photos", "Type data.root=photos data.name=image_folder"),
    ("run quickstart data.path=photos", "Type data.root=photos data.name=image_folder"),
    ("run quickstart data=cifar", "Type data.name=cifar10"),
    ("run quickstart model=resnet50", "Type model.name=resnet50"),
    ("run quickstart model=timm/resnet50", "Type model.name=timm/resnet50"),
    ("run quickstart arch=resnet-50", "Type model.name=resnet50"),
    ("run quickstart model.pretrained=true", "Type model.weights=pretrained"),
    ("run quickstart optimizer=adam", "Type optimizer.name=Adam"),
    ("run quickstart optimizer=lars", "Type optimizer.name=NAME (NAME: Adafactor, "),
    ("run quickstart scheduler=cosine", "Type scheduler.name=CosineAnnealingLR"),
    ("run quickstart loss=ce", "Type loss.name=CrossEntropyLoss"),
    ("run quickstart tracking.wandb=false", "Type tracking.wandb.mode=disabled"),
    ("run quickstart wandb=true", "Type tracking.wandb.mode=online"),
    ("run quickstart precision=fp16", "Type train.precision=fp16"),
    ("run quickstart early_stopping=true", "Type train.early_stopping.patience=10"),
    ("run quickstart train.early_stopping=5", "Type train.early_stopping.patience=5"),
    ("run quickstart data.augment=randaugment", "Type data.augment.policy=randaugment"),
    ("run quickstart logger=wandb", "Trackers have keys of their own: tracking.wandb.mode=online"),
    ("run quickstart strategy=ddp", "Leave it out: --processes N"),
    ("run quickstart callbacks=[ModelCheckpoint]", "trainlib.fit(hooks=[...])"),
    ("run quickstart num_classes=3", "Leave it out: the classes are those of the data"),
    ("run quickstart warmup_epochs=5", "scheduler='[{name: LinearLR, start_factor: 0.1, duration: 1ep}"),
    ("run quickstart slurm.gpus=4", "Type slurm.gpus_per_node=4"),
    # values
    ("run quickstart optimizer.name=Adam_W", "Type optimizer.name=AdamW"),
    ("run quickstart scheduler.name=cosine", "Type scheduler.name=CosineAnnealingLR"),
    ("run quickstart loss.name=cross_entropy", "Type loss.name=CrossEntropyLoss"),
    ("run quickstart loss.name=FocalLoss", "A loss of your own: --code FILE.py loss.name=code:NAME"),
    ("run quickstart loss=FocalLoss", "A loss of your own: --code FILE.py loss.name=code:NAME"),
    ("run quickstart model.name=efficientnet-b0", "Type model.name=efficientnet_b0"),
    ("run quickstart train.precision=16-mixed", "Type train.precision=fp16"),
    ("run quickstart data.name=imagefolder", "Type data.name=image_folder"),
    ("run quickstart loss.weight=true", "Type loss.weight=balanced"),
    # commands
    ("train quickstart", "Type launch run quickstart"),
    ("fit quickstart seed=1", "Type launch run quickstart seed=1"),
    ("test mine --split val", "Type launch eval mine --split val"),
    ("resume mine", "Type launch run runs/mine/config.yaml"),
    ("tensorboard", "Type tensorboard --logdir runs"),
    ("ls", "Type launch list"),
    ("rnu quickstart", "Type launch run quickstart"),
    ("quickstart", "Type launch run quickstart"),
    ("folder", "Type launch init folder"),
    ("run folder", "launch init folder writes one"),
]


@pytest.mark.parametrize(("words", "answer"), WRONG, ids=[words for words, _ in WRONG])
def test_another_tools_words_are_answered_with_ours(
    words: str, answer: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "folder").mkdir()
    assert main(shlex.split(words)) == 2
    captured = capsys.readouterr()
    assert answer in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("words", "answer"),
    [(words, answer) for words, answer in WRONG if answer.startswith("Type ") and words.startswith("run quickstart")],
)
def test_the_words_of_an_answer_are_taken(words: str, answer: str) -> None:
    """The other direction: what is told to be typed is right, up to files, extras and arguments that are not there."""
    told = [word for word in shlex.split(answer.removeprefix("Type ")) if "=" in word]
    missing = ("needs it", "timm", "must be one of the two", "NAME", "weights")
    wrong = [str(m) for m in mistakes_of(shlex.join(told)) if not any(word in str(m) for word in missing)]
    assert not wrong


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("train.epochs=0", "train.epochs: got 0, must be >= 1 (command line)"),
        ("optimizer.lr=-1", "optimizer.lr: got -1, must be > 0 (command line)"),
        ("model.dropout=0.5", "(command line)"),
        ("scheduler.patience=3", "(command line)"),
    ],
)
def test_our_own_words_are_answered_as_before(words: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["quickstart", words])
    assert rule in str(caught.value)
    assert "Type " not in str(caught.value)


def test_in_a_file_the_answer_is_yaml(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("optimizer: adam\nlr: 0.1\n")
    with pytest.raises(ConfigError) as caught:
        load_config([str(file)])
    assert "Write optimizer: {name: Adam} (" in str(caught.value)
    assert "Write optimizer: {lr: 0.1} (" in str(caught.value)


def test_a_configuration_that_is_called_like_a_key_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed").write_text("seed: 3\n")
    assert load_config(["seed"]).seed == 3


def test_every_answer_of_the_tables_names_what_there_is() -> None:
    """The tables can be wrong: each key that they answer with is one of ours, or an argument of a class."""
    keys = {*all_keys(), "optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "model.dropout"}
    keys |= {"loss.label_smoothing", "loss.weight"}
    answers = [word for template in KEYS.values() for word in template.split()]
    assert {word.split("=")[0] for word in answers if "=" in word} <= keys
    assert set(VALUES) <= keys
    options = {option for command in ("run", "submit") for p in cli.commands[command].params for option in p.opts}
    assert {word for word in answers if word.startswith("--")} <= options
    assert not set(KEYS) & set(NO_KEY)
    commands = {template.split()[1] for template in COMMANDS.values() if template.startswith("launch ")}
    assert commands - {"--version", "--help"} <= set(cli.commands)
    assert not set(COMMANDS) & set(cli.commands)


def test_a_value_is_quoted_for_the_shell() -> None:
    assert instead("data", "my photos") == "data.root='my photos' data.name=image_folder"
