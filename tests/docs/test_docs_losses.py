"""docs/losses-and-optimizers.md: every number in it is computed again with plain torch, and by this software."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import yaml
from paths import REPOSITORY
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer, lr_scheduler

from trainlib.config import LossConfig, load_config
from trainlib.config.libraries import catalog
from trainlib.config.schema.defaults import ACTIVATIONS
from trainlib.models.losses import DENSE_TARGETS, Objective
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.optimizers.muon import orthogonalize
from trainlib.models.optimizers.schedule import Schedule
from trainlib.models.weights.ema import ExponentialMovingAverage, update_decay

PAGE = (REPOSITORY / "docs/losses-and-optimizers.md").read_text()
EPOCHS, EPOCH_STEPS = 6, 4
STEPS = EPOCHS * EPOCH_STEPS


def table(header: str) -> list[list[str]]:
    """The cells of the table with this header, without the code marks."""
    (body,) = re.findall(rf"^\| {re.escape(header)} \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in body.splitlines()]


def numbers(cells: Sequence[str]) -> list[str]:
    return [number for cell in cells for number in re.findall(r"-?\d+\.\d+", cell)]


def printed(values: Sequence[float]) -> list[str]:
    return [f"{value:.4f}" for value in values]


EXAMPLE = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])
LOGITS, LABELS = torch.tensor(EXAMPLE["logits"]), torch.tensor(EXAMPLE["labels"])

TAKES = table("loss | target | activation by default | class weights | its own arguments")
LOSSES = {cells[0]: cells[1] for cells in table("loss | value")}


def plain_loss(text: str) -> float:
    """By the first table of the page, and torch.nn alone."""
    section = yaml.safe_load(text)
    target, default = next(cells[1:3] for cells in TAKES if cells[0] == section["name"])
    activation = section.pop("activation", default)
    inputs = {
        "none": LOGITS,
        "sigmoid": 1 / (1 + torch.exp(-LOGITS)),
        "softmax": torch.exp(LOGITS) / torch.exp(LOGITS).sum(1, keepdim=True),
        "log_softmax": LOGITS - torch.logsumexp(LOGITS, 1, keepdim=True),
    }[activation]
    loss = getattr(nn, section.pop("name"))(
        **{key: torch.tensor(value) if isinstance(value, list) else value for key, value in section.items()}
    )
    return float(loss(inputs, torch.eye(3)[LABELS] if target == "one-hot" else LABELS).mean())


@pytest.mark.parametrize("text", LOSSES)
def test_losses(text: str) -> None:
    ours = Objective(LossConfig.model_validate(resolved_loss(text)), 3, torch.device("cpu"))(LOGITS, LABELS)
    assert printed([plain_loss(text), ours.item()]) == [LOSSES[text]] * 2


def resolved_loss(text: str) -> dict[str, Any]:
    return load_config(["quickstart", f"loss={text}"]).loss.model_dump()


def test_what_each_loss_takes() -> None:
    assert {cells[0] for cells in TAKES} == set(catalog.LOSSES) == {yaml.safe_load(text)["name"] for text in LOSSES}
    for name, target, activation, weights, own in TAKES:
        assert (target == "one-hot") == (name in DENSE_TARGETS)
        assert activation == ACTIVATIONS[name]
        listed = set(re.findall(r"\w+", f"{weights} {own}"))
        assert listed == set(catalog.arguments("loss", name)), name


def test_cut_into_parts() -> None:
    weight = torch.tensor([1.0, 2.0, 0.5])
    section = PAGE.partition("### Cut into parts")[2].partition("\n## ")[0]
    each = F.cross_entropy(LOGITS, LABELS, reduction="none").tolist()
    assert numbers([section.partition("cross entropies")[2].partition(", and their labels")[0]]) == printed(each)
    means, sums = [], []
    for part in (slice(0, 2), slice(2, 3)):
        means.append(float(F.cross_entropy(LOGITS[part], LABELS[part], weight=weight)))
        sums.append(float(weight[LABELS[part]].sum()))
    assert [cells[1:] for cells in table("part | mean of the part | weight of the part")] == [
        [f"{m:.4f}", f"{s:.1f}"] for m, s in zip(means, sums, strict=True)
    ]
    whole = float(F.cross_entropy(LOGITS, LABELS, weight=weight))
    assert sum(m * s for m, s in zip(means, sums, strict=True)) / sum(sums) == pytest.approx(whole, rel=1e-6)
    formula = f"({means[0]:.4f} * {sums[0]} + {means[1]:.4f} * {sums[1]}) / {sum(sums)} = {whole:.4f}"
    assert formula in section.replace("\N{MULTIPLICATION SIGN}", "*")
    assert f"is {sum(means) / 2:.4f}." in section
    assert f"{whole:.4f}" == LOSSES["{name: CrossEntropyLoss, weight: [1.0, 2.0, 0.5]}"]


def test_steps_of_sgd_with_momentum() -> None:
    """Written out, without torch.optim; and what the page's configuration builds ends at the same place."""
    (text,) = re.findall(r"`optimizer: (\{name: SGD.*?\})`", PAGE)
    bias, buffer = torch.zeros(3, requires_grad=True), torch.zeros(3)
    ours = nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer(
        load_config(["quickstart", f"optimizer={text}"]).optimizer, nn.ParameterDict({"bias": ours})
    )
    for cells in table("step | loss before it | gradient | buffer | bias after it"):
        loss = F.cross_entropy(LOGITS + bias, LABELS)
        (gradient,) = torch.autograd.grad(loss, bias)
        by_hand = (torch.softmax(LOGITS + bias.detach(), 1) - torch.eye(3)[LABELS]).mean(0)
        assert torch.allclose(gradient, by_hand, atol=1e-6)
        buffer = 0.9 * buffer + gradient
        bias = (bias.detach() - 0.1 * buffer).requires_grad_()
        ours.grad = gradient
        optimizer.step()
        values = [loss.item(), *gradient.tolist(), *buffer.tolist(), *bias.tolist()]
        assert numbers(cells) == printed(values)
        assert printed(ours.tolist()) == printed(bias.tolist())


OPTIMIZERS = table("optimizer | 1 | 2 | 3")


@pytest.mark.parametrize("cells", OPTIMIZERS, ids=[cells[0] for cells in OPTIMIZERS])
def test_steps_of_one_weight(cells: list[str]) -> None:
    section = yaml.safe_load(cells[0])
    weights = [nn.Parameter(torch.tensor([1.0])) for _ in range(2)]
    plain = getattr(torch.optim, section.pop("name"))([weights[0]], **section)
    ours = build_optimizer(
        load_config(["quickstart", f"optimizer={cells[0]}"]).optimizer, nn.ParameterDict({"weight": weights[1]})
    )
    for expected in cells[1:]:
        for weight, optimizer in zip(weights, (plain, ours), strict=True):
            weight.grad = torch.tensor([0.5])
            optimizer.step()
            assert printed([weight.item()]) == [expected]


def test_arguments_of_muon() -> None:
    rows = table("argument | default | of what it orthogonalises | of the rest")
    taken = catalog.arguments("optimizer", "MuonSGD")
    assert [(cells[0], yaml.safe_load(cells[1])) for cells in rows] == [(key, a.default) for key, a in taken.items()]
    (example,) = re.findall(r"optimizer='(\{name: MuonSGD.*?\]\})'", PAGE)
    assert load_config(["quickstart", f"optimizer={example}"]).optimizer.param_groups[0].args["muon"] is False


@pytest.mark.parametrize("cells", table("singular value | 1 step | 3 steps | 5 steps"), ids=lambda cells: str(cells[0]))
def test_singular_values(cells: list[str]) -> None:
    """By the formula of the page, and of a matrix that has this one and another to make its norm 1."""
    (formula,) = re.findall(r"([\d.]+) x . ([\d.]+) x³ \+ ([\d.]+) x⁵", PAGE)
    a, b, c = map(float, formula)
    x = float(cells[0])
    matrix = torch.tensor([[[x, 0.0, 0.0], [0.0, (1 - x * x) ** 0.5, 0.0]]], dtype=torch.float64)
    for step in range(1, 6):
        x = a * x - b * x**3 + c * x**5
        if step in (1, 3, 5):
            assert printed([x, orthogonalize(matrix, step)[0, 0, 0].item()]) == [cells[1 + step // 2]] * 2


@pytest.mark.parametrize("cells", table("EMA | 1 | 2 | 3 | 4 | 5 | 6"), ids=lambda cells: str(cells[0]))
def test_averages(cells: list[str]) -> None:
    config = load_config(["quickstart", f"train.average={cells[0]}"]).train.average
    assert config is not None
    module = nn.ParameterDict({"weight": torch.zeros(1)})
    decay_of = partial(update_decay, decay=config.decay, every=config.every, warmup=config.warmup)
    ours, plain, updates = ExponentialMovingAverage(module, decay_of, config.every), 0.0, 0
    for step, expected in enumerate(cells[1:], 1):
        weight = 1.0 if step % 2 else 3.0
        with torch.no_grad():
            module["weight"].fill_(weight)
        ours.update()
        if step % config.every == 0:
            d = min(config.decay, (1 + updates) / (10 + updates))
            plain, updates = d * plain + (1 - d) * weight, updates + 1
        with ours.swapped_in():
            assert printed([plain, module["weight"].item()]) == [expected] * 2


def one_weight(momentum: float = 0.9) -> Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=momentum)


def plain_scheduler(section: dict[str, Any], optimizer: Optimizer, length: int) -> Any:
    """torch's scheduler; `length` is what the page says is filled in."""
    own = {key: value for key, value in section.items() if key not in ("name", "interval", "metric", "duration")}
    if section["name"] == "CosineAnnealingLR":
        own.setdefault("T_max", length)
    elif section["name"] == "OneCycleLR":
        own.setdefault("total_steps", length)
    return getattr(lr_scheduler, section["name"])(optimizer, **own)


def plain_rates(text: str, *, unit: str) -> list[float]:
    """The learning rate in every epoch or step, by torch's own schedulers, one after another in the same unit."""
    length = EPOCHS if unit == "epoch" else STEPS
    parsed = yaml.safe_load(text)
    sections = parsed if isinstance(parsed, list) else [parsed]
    found: list[float] = []
    for position, section in enumerate(sections):
        last = position == len(sections) - 1
        lasts = length - len(found) if last else int(section["duration"][:-2])
        if section.get("duration", "").endswith("st") and unit == "epoch":
            lasts //= EPOCH_STEPS
        optimizer = one_weight()
        scheduler = plain_scheduler(section, optimizer, lasts)
        for _ in range(lasts):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if section["name"] == "ReduceLROnPlateau":
                scheduler.step(VAL_LOSSES[len(found) - 1])
            elif not (section["name"] == "OneCycleLR" and len(found) == length):
                scheduler.step()
    return found


def our_rates(text: str, *, unit: str) -> list[float]:
    config = load_config(["quickstart", f"scheduler={text}"])
    optimizer = one_weight()
    schedule = Schedule(config.scheduler, optimizer, total_steps=STEPS, steps_per_epoch=EPOCH_STEPS)
    rates = []
    for epoch in range(EPOCHS):
        for _ in range(EPOCH_STEPS):
            rates.append(schedule.lr)
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch({"val/loss": VAL_LOSSES[epoch]})
    return rates[::EPOCH_STEPS] if unit == "epoch" else rates


SENTENCE = re.search(r"validation losses\s+of ([\d., and]+?):", PAGE)
assert SENTENCE is not None
VAL_LOSSES = [float(number) for number in numbers([SENTENCE[1]])]
BY_EPOCH = table("scheduler | 1 | 2 | 3 | 4 | 5 | 6")
BY_STEP = table("scheduler | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 24")


@pytest.mark.parametrize("cells", BY_EPOCH, ids=[cells[0] for cells in BY_EPOCH])
def test_learning_rates_of_epochs(cells: list[str]) -> None:
    assert f"{EPOCHS} epochs of {EPOCH_STEPS} steps, `lr: 0.1`" in PAGE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rates in (plain_rates(cells[0], unit="epoch"), our_rates(cells[0], unit="epoch")):
            assert printed(rates) == cells[1:]


@pytest.mark.parametrize("cells", BY_STEP, ids=[cells[0] for cells in BY_STEP])
def test_learning_rates_of_steps(cells: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rates in (plain_rates(cells[0], unit="step"), our_rates(cells[0], unit="step")):
            assert printed([*rates[:8], rates[23]]) == cells[1:]


def test_every_scheduler_kind_of_the_prose_is_in_a_table() -> None:
    prose = PAGE.partition("## Which scheduler moves when")[2]
    shown = {section["name"] for cells in BY_EPOCH + BY_STEP for section in as_list(yaml.safe_load(cells[0]))}
    assert set(re.findall(r"\b(\w+LR(?:OnPlateau)?)\b", prose)) <= shown
    assert shown <= set(catalog.names("scheduler"))


def as_list(sections: Any) -> list[dict[str, Any]]:
    return sections if isinstance(sections, list) else [sections]


def test_groups() -> None:
    (text,) = re.findall(r"optimizer='(\{name: SGD.*param_groups.*\})'", PAGE)
    (scheduler,) = re.findall(r"With (StepLR), step_size 1 and gamma 0.5", PAGE)
    config = load_config(
        ["quickstart", f"optimizer={text}", f"scheduler={{name: {scheduler}, step_size: 1, gamma: 0.5}}"]
    )
    parts = ("features", "classifier")
    module = nn.ModuleDict({part: nn.ModuleList([nn.ParameterDict({"weight": torch.zeros(1)})]) for part in parts})
    optimizer = build_optimizer(config.optimizer, module)
    schedule = Schedule(config.scheduler, optimizer, total_steps=STEPS, steps_per_epoch=EPOCH_STEPS)
    rates: list[list[float]] = []
    for _ in range(3):
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert schedule.lr == rates[-1][0]
        for _ in range(EPOCH_STEPS):
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch({})
    rows = table("group | epoch 1 | epoch 2 | epoch 3")
    assert [cells[1:] for cells in rows] == [printed(values) for values in zip(*rates, strict=True)]
    plain = [0.01 * 0.5**epoch for epoch in range(3)], [0.1 * 0.5**epoch for epoch in range(3)]
    assert [cells[1:] for cells in rows] == [printed(values) for values in plain]
