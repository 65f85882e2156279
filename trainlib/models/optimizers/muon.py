"""MuonSGD, an optimizer that updates matrices and filters as Muon does, all other parameters as SGD does.

Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Filters of a fixed norm are from
their airbench94_muon, which trains CIFAR-10 in seconds. torch.optim.Muon takes only matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

# Of x, x³ and x⁵, by Jordan et al.: the polynomial is steep at 0, where most singular values are.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SMALLEST_NORM = 1e-7  # a smaller norm is taken for this one, so that zero stays zero


class MuonSGD(Optimizer):
    """An optimizer for a whole network: Muon for matrices and filters, SGD for all else.

    Every argument may differ from group to group. In a group with `muon`, a weight [O, ...] of two or more dimensions
    is taken as a matrix [O, I]. With its gradient G:

        buffer = momentum · buffer + G                     the first buffer is G
        U      = G + momentum · buffer, or the buffer without `nesterov`
        weight = weight · sqrt(O) / |weight| with `normalize_weights`, else weight · (1 - lr · weight_decay)
        weight = weight - lr · orthogonalize(U)

    The length of G does not change the size of the update. All other parameters are updated by torch's own SGD, in the
    same bits. A step never waits for the device. As in torch's fused optimizers, weights stay unchanged, but momentum
    does not, if the attribute `found_inf`, a tensor on the device, is 1.0.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        *,
        muon: bool = True,
        normalize_weights: bool = False,
        ns_steps: int = 5,
    ):
        """Set the defaults of all groups. Raises ValueError for a value that has no meaning.

        ns_steps   number of steps of the Newton-Schulz iteration
        """
        for name, value, smallest in (
            ("lr", lr, 0),
            ("momentum", momentum, 0),
            ("weight_decay", weight_decay, 0),
            ("ns_steps", ns_steps, 1),
        ):
            if not value >= smallest:
                raise ValueError(f"{name}: got {value}, must be >= {smallest}")
        if nesterov and momentum == 0:
            raise ValueError("nesterov: got true, but momentum is 0: set momentum, or nesterov=false")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "muon": muon,
            "normalize_weights": normalize_weights,
            "ns_steps": ns_steps,
        }
        super().__init__(params, defaults)
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have gradients; return the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            used = [parameter for parameter in group["params"] if parameter.grad is not None]
            smallest_ndim = 2 if group["muon"] else math.inf
            lr = self._rate(group)
            self._step_matrices(group, lr, [parameter for parameter in used if parameter.ndim >= smallest_ndim])
            self._step_others(group, lr, [parameter for parameter in used if parameter.ndim < smallest_ndim])
        return loss

    def _rate(self, group: dict[str, Any]) -> float | Tensor:
        """Return the learning rate; beside `found_inf` a scalar of the device, as kernels in a CUDA graph read it."""
        lr: float | Tensor = group["lr"]
        return lr if self.found_inf is None or isinstance(lr, Tensor) else torch.full_like(self.found_inf, lr)

    def _step_matrices(self, group: dict[str, Any], lr: float | Tensor, weights: list[Tensor]) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for weight, update in zip(weights, self._updates(group, weights), strict=True):
            # By index, not by place in memory: the matrix is the same in whichever layout the weight is.
            update_OI = update.reshape(len(update), -1)
            by_shape.setdefault(update_OI.shape, []).append((weight, update_OI))
        for pairs in by_shape.values():  # those of one shape at once: fewer and larger kernels
            updates_BOI = torch.stack([update_OI for _, update_OI in pairs])
            directions_BOI = orthogonalize(updates_BOI, group["ns_steps"])
            directions_BOI = self._unless_found(directions_BOI, 0.0)
            for (weight, _), direction_OI in zip(pairs, directions_BOI, strict=True):
                if group["normalize_weights"]:
                    norm = torch.linalg.vector_norm(weight).clamp(min=SMALLEST_NORM)
                    weight.mul_(self._unless_found(math.sqrt(len(weight)) / norm, 1.0))
                elif group["weight_decay"]:
                    weight.mul_(self._unless_found(1 - lr * group["weight_decay"], 1.0))
                direction = direction_OI.reshape(weight.shape)
                if isinstance(lr, Tensor):
                    weight.addcmul_(direction, lr, value=-1)
                else:
                    weight.add_(direction, alpha=-lr)

    def _unless_found(self, value: Any, otherwise: float) -> Any:
        """Return the value, or the other one if `found_inf` is 1."""
        return value if self.found_inf is None else torch.where(self.found_inf == 1, otherwise, value)

    def _updates(self, group: dict[str, Any], weights: list[Tensor]) -> list[Tensor]:
        """Return the gradients of weights, with momentum."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if not gradients or group["momentum"] == 0:
            return gradients
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        if not group["nesterov"]:
            return buffers
        return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))

    def _step_others(self, group: dict[str, Any], lr: float | Tensor, parameters: list[Tensor]) -> None:
        buffers = [self.state.get(parameter, {}).get("momentum_buffer") for parameter in parameters]
        sgd(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=lr,
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
            fused=self.found_inf is not None,
            found_inf=self.found_inf,
        )
        if group["momentum"] != 0:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                self.state[parameter]["momentum_buffer"] = buffer


def orthogonalize(matrices_BOI: Tensor, num_steps: int) -> Tensor:
    """Return the matrices [B, O, I] with singular values near 1 instead of their own; singular values of 0 stay 0.

    U S Vᵀ becomes U p(S) Vᵀ, with an odd polynomial of degree 5 applied `num_steps` times (a Newton-Schulz iteration).
    After five steps singular values that were above 0.002 of the matrix's norm are between 0.68 and 1.21; after three
    steps, those that were above 0.02.

    On GPUs it computes in bfloat16, which is far faster, and whose errors are smaller than that range; elsewhere in the
    dtype of the matrices. The result has the dtype of the computation.
    """
    norms_B11 = torch.linalg.vector_norm(matrices_BOI, dim=(1, 2), keepdim=True)
    x: Tensor = matrices_BOI / norms_B11.clamp(min=SMALLEST_NORM)  # no singular value is above 1
    if x.is_cuda:
        x = x.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:  # the product below is then the smaller one
        x = x.mT
    a, b, c = COEFFICIENTS
    for _ in range(num_steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x
