"""LAMB, Adam whose step for each parameter is as long as the parameter, for large batches.

You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (2019). In the form of timm, of
whose recipes it is a part, but for the clipping of the gradient: that is `train.clip_grad_norm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LAMB(Optimizer):
    """Adam, with the update of each parameter scaled to the parameter's own norm.

        M, V   = the averages of the gradient and of its square, as in Adam, divided by their bias corrections
        U      = M / (sqrt(V) + eps) + weight_decay * weight
        weight = weight - lr * U * |weight| / |U|

    The factor |weight| / |U| is 1 where either is 0 and, unless `always_adapt`, in groups without weight decay; with
    `trust_clip` it is at most 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        trust_clip: bool = False,
        always_adapt: bool = False,
    ):
        """Set the defaults of all groups. Raises ValueError for a value that has no meaning."""
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}: got {value}, must be >= 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: got {list(betas)}, must be >= 0 and < 1")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have gradients; return the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_age: dict[int, list[Tensor]] = {}  # a parameter counts the steps since its first gradient
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state |= {"step": 0, "exp_avg": torch.zeros_like(parameter)}
                        state["exp_avg_sq"] = torch.zeros_like(parameter)
                    state["step"] += 1
                    by_age.setdefault(state["step"], []).append(parameter)
            for age, parameters in by_age.items():
                self._step(group, age, parameters)
        return loss

    def _step(self, group: dict[str, Any], age: int, parameters: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self.state[parameter]["exp_avg"] for parameter in parameters]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, (1 - beta2**age) ** 0.5)
        torch._foreach_add_(scales, group["eps"])
        updates = torch._foreach_div(averages, 1 - beta1**age)
        torch._foreach_div_(updates, scales)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["weight_decay"] or group["always_adapt"]:
            lengths = zip(torch._foreach_norm(parameters), torch._foreach_norm(updates), strict=True)
            ratios = [torch.where((own > 0) & (new > 0), own / new, torch.ones_like(own)) for own, new in lengths]
            torch._foreach_mul_(updates, [ratio.clamp(max=1.0) if group["trust_clip"] else ratio for ratio in ratios])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
