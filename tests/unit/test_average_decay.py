"""The decay of train.average, update by update: timm's ModelEmaV3, and torchvision's training script written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlib.config import load_config
from trainlib.errors import ConfigError
from trainlib.models.weights.ema import ExponentialMovingAverage, scaled_decay, update_decay

STEPS = 60


def weights_of(step: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("warmup", ["timm", "none"])
def test_every_average_is_that_of_timm(decay: float, warmup: str) -> None:
    timm = pytest.importorskip("timm.utils.model_ema")
    module = nn.Linear(3, 4, bias=False, dtype=torch.float64)
    theirs = timm.ModelEmaV3(module, decay=decay, use_warmup=warmup == "timm")
    ours = ExponentialMovingAverage(module, lambda update: update_decay(update, decay, 1, warmup), 1)
    for step in range(1, STEPS):  # timm's script counts updates from 1
        with torch.no_grad():
            module.weight.copy_(weights_of(step))
        ours.update()
        theirs.update(module, step=step)
        assert update_decay(step, decay, 1, warmup) == pytest.approx(theirs.get_decay(step), abs=1e-15)
        (average,) = ours.tensors().values()
        assert torch.allclose(average, theirs.module.weight, rtol=1e-12, atol=1e-14), step


@pytest.mark.parametrize("decay", [0.5, 0.99998])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_every_average_is_that_of_torchvisions_script(decay: float, every: int, warmup_epochs: int) -> None:
    """In epochs of 8 steps. The script updates at the first of `every` steps, ours at the last."""
    epoch_steps, epochs, batch_size = 8, 20, 1024
    alpha = min(1.0, (1.0 - decay) * batch_size * every / epochs)
    ours_decay = scaled_decay(decay, every, batch_size, epochs)
    assert ours_decay == pytest.approx(1.0 - alpha, abs=1e-15)
    module = nn.Linear(3, 4, bias=False, dtype=torch.float64)
    peer = torch.optim.swa_utils.AveragedModel(
        module, avg_fn=lambda average, own, num: (1 - alpha) * average + alpha * own, use_buffers=True
    )
    warmup = warmup_epochs * epoch_steps or "none"
    ours = ExponentialMovingAverage(module, lambda update: update_decay(update, ours_decay, every, warmup), every)
    for step in range(STEPS):
        with torch.no_grad():
            module.weight.copy_(weights_of(step // every))
        if step % epoch_steps % every == 0:
            peer.update_parameters(module)
            if step // epoch_steps < warmup_epochs:
                peer.n_averaged.fill_(0)
        ours.update()
        if (step + 1) % every == 0:
            (average,) = ours.tensors().values()
            assert torch.allclose(average, peer.module.state_dict()["weight"], rtol=1e-9, atol=1e-12), step


def test_the_default_is_tensorflows() -> None:
    for update in range(1, 200):
        assert update_decay(update, 0.9, 3, "tensorflow") == min(0.9, (1 + (update - 1)) / (10 + (update - 1)))


def test_a_scaled_decay_is_never_below_0() -> None:
    assert scaled_decay(0.9, 32, 1024, 10) == 0.0
    assert scaled_decay(0.99998, 32, 1024, 600) == pytest.approx(1 - 2e-5 * 1024 * 32 / 600)


@pytest.mark.parametrize("warmup", ["5", "0ep", "tensor", 5, None])
def test_another_warmup_is_refused(warmup: object) -> None:
    text = "null" if warmup is None else warmup
    with pytest.raises(ConfigError, match=r"train.average.warmup: got .*, must be tensorflow, timm, none, or"):
        load_config(["quickstart", f"train.average={{warmup: {text}}}"])
