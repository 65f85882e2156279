"""Dropout and stochastic depth: arguments of a library's models reach the layers, and are recorded."""

from __future__ import annotations

import pytest
import torch

from trainlib.config import load_config
from trainlib.models import build_model


@pytest.mark.parametrize(
    ("section", "kind", "rates"),
    [
        ("{name: timm/resnet50, drop_path_rate: 0.05}", "DropPath", (0.0, 0.05)),
        ("{name: timm/convnext_atto, drop_path_rate: 0.2}", "DropPath", (0.0, 0.2)),
        ("{name: efficientnet_v2_s, stochastic_depth_prob: 0.2}", "StochasticDepth", (0.0, 0.2)),
        ("{name: convnext_tiny, stochastic_depth_prob: 0.3, layer_scale: 1.0e-5}", "StochasticDepth", (0.0, 0.3)),
        ("{name: vit_b_16, dropout: 0.15}", "Dropout", (0.0, 0.15)),
        ("{name: mobilenet_v3_large, dropout: 0.4}", "Dropout", (0.4, 0.4)),
    ],
)
def test_arguments_of_models_reach_their_layers(section: str, kind: str, rates: tuple[float, float]) -> None:
    if "timm/" in section:
        pytest.importorskip("timm")
    config = load_config(["quickstart", f"model={section}", "data.image_size=224"])
    with torch.device("meta"):
        module = build_model(config.model, 10, 224).module
    names = {"DropPath": "drop_prob", "StochasticDepth": "p", "Dropout": "p"}
    found = [float(getattr(m, names[kind])) for m in module.modules() if type(m).__name__ == kind]
    assert max(found) <= rates[1] + 1e-6
    assert max(found) >= 0.9 * rates[1], "the last block has nearly the whole rate"
    assert min(found) >= rates[0]
    assert config.model.args.items() <= config.model_dump()["model"].items()
