"""BatchNorm that normalises with the statistics of the global batch, over all ranks: `model.sync_batchnorm`.

A global batch is computed in pieces: one for each rank or, in elastic mode, one for each virtual shard. Each piece
takes the mean and the squared deviations of its own samples; these are gathered, and every rank combines them, in the
order of the pieces, to those of the whole batch. In the backward pass the gradients of mean and variance are gathered
likewise. So the result is the same whichever rank computes which piece. torch.nn.SyncBatchNorm is exact as well, but
adds in an order that depends on the ranks, and has no implementation for CPUs.

The combination is that of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances" (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from trainlib.errors import UserError
from trainlib.models.forward.recomputation import active_recomputation

_HALF = (torch.float16, torch.bfloat16)

Gather = Callable[[Tensor], Tensor]  # rows [K, F] of this rank's pieces -> rows [V, F] of all pieces, in their order


class PieceMoments(NamedTuple):
    """The statistics of one piece: float32 [C] each, and the number of values of a channel.

    deviation_C   sum of the squared differences from the piece's own mean
    """

    mean_C: Tensor
    deviation_C: Tensor
    num_values: int


class Moments(NamedTuple):
    """Mean and biased variance of the global batch, float32 [C], and the number of values of a channel, a scalar."""

    mean_C: Tensor
    variance_C: Tensor
    num_values: Tensor


Join = Callable[[PieceMoments], Moments]  # from the statistics of a piece to those of the global batch


class _Synchronized(_BatchNorm):
    """What BatchNorm layers of any dimension become in training; in eval mode they are what they were.

    join         how a piece's statistics become those of the global batch; None: the layer is not in use
    is_stand_in  True while the images stand for no samples: they take part in the exchange and count for nothing
    """

    join: Join | None
    is_stand_in: bool

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        """Normalise [N, C, ...]; see torch.nn.BatchNorm2d."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        piece = piece_moments(input)
        region = active_recomputation()
        if region is not None and region.is_replaying:
            moments = region.next_value()
        else:
            assert self.join is not None
            moments = self.join(PieceMoments(piece.mean_C, piece.deviation_C, 0) if self.is_stand_in else piece)
            self._track(moments)
            if region is not None:
                region.keep(Moments(*(tensor.detach() for tensor in moments)))
        output: Tensor = _Normalize.apply(input, moments.mean_C, moments.variance_C, self.weight, self.bias, self.eps)
        activation: Any = getattr(self, "act", None)  # timm's layer ends with one
        return output if activation is None else activation(self.get_submodule("drop")(output))

    @torch.no_grad()
    def _track(self, moments: Moments) -> None:
        """Move the running statistics, with the unbiased variance, as torch does."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        factor = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            factor = 1.0 / float(self.num_batches_tracked) if factor is None else factor
        assert factor is not None
        unbiased_C = moments.variance_C * (moments.num_values / (moments.num_values - 1).clamp(min=1))
        self.running_mean.mul_(1 - factor).add_(moments.mean_C, alpha=factor)
        self.running_var.mul_(1 - factor).add_(unbiased_C, alpha=factor)


def synchronize(module: nn.Module, join: Join | None) -> None:
    """Turn every BatchNorm layer of a module into a synchronised one, in place; names and parameters stay as they are.

    Raises UserError if there is none, or for a layer of another class that derives from BatchNorm.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    if not layers:
        raise UserError(
            f"model.sync_batchnorm: got true, but {type(module).__name__} has no BatchNorm layer: leave it out"
        )
    for name, layer in layers.items():
        cls = type(layer)
        if cls not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and cls.__name__ != "BatchNormAct2d":
            raise UserError(
                f"model.sync_batchnorm: got true, but {name} is a {cls.__name__}, which cannot be synchronised: use "
                "torch's BatchNorm, or leave it out"
            )
    found: list[Any] = list({type(layer) for layer in layers.values()})
    classes: dict[Any, Any] = {cls: type(f"Synchronized{cls.__name__}", (_Synchronized, cls), {}) for cls in found}
    for layer in layers.values():
        layer.__class__ = classes[type(layer)]
        layer.join, layer.is_stand_in = join, False  # type: ignore[assignment]


def make_plain(module: nn.Module) -> None:
    """Undo `synchronize`."""
    for layer in synchronized_layers(module):
        layer.__class__ = type(layer).__bases__[1]
        del layer.join, layer.is_stand_in


def synchronized_layers(module: nn.Module) -> list[_Synchronized]:
    """Return the layers of a module that are synchronised."""
    return [layer for layer in module.modules() if isinstance(layer, _Synchronized)]


@contextmanager
def standing_in(module: nn.Module) -> Iterator[None]:
    """Context manager: inside, the images of this rank stand for no samples, and its layers take part without them."""
    layers = synchronized_layers(module)
    for layer in layers:
        layer.is_stand_in = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_stand_in = False


def piece_moments(input_NCX: Tensor) -> PieceMoments:
    """Return the statistics of [N, C, ...], of N samples and any number of dimensions behind them."""
    mean_C, deviation_C = _PieceMoments.apply(input_NCX)
    return PieceMoments(mean_C, deviation_C, input_NCX.numel() // input_NCX.shape[1])


def join_moments(gather: Gather, pieces: Sequence[PieceMoments]) -> list[Moments]:
    """Return the statistics of the global batch, once for each of this rank's pieces.

    A collective, and so is the backward pass.
    """
    counts = tuple(piece.num_values for piece in pieces)
    tensors = [tensor for piece in pieces for tensor in piece[:2]]
    count, *joined = _JoinMoments.apply(gather, counts, *tensors)
    return [Moments(mean_C, variance_C, count) for mean_C, variance_C in zip(joined[::2], joined[1::2], strict=True)]


def _per_channel(values_C: Tensor, like: Tensor) -> Tensor:
    return values_C.view(1, -1, *[1] * (like.ndim - 2))


class _PieceMoments(torch.autograd.Function):
    """Mean and squared deviations of each channel."""

    @staticmethod
    def forward(ctx: Any, input_NCX: Tensor) -> tuple[Tensor, Tensor]:
        dims = [dim for dim in range(input_NCX.ndim) if dim != 1]
        values_NCX = input_NCX.float() if input_NCX.dtype in _HALF else input_NCX
        variance_C, mean_C = torch.var_mean(values_NCX, dims, correction=0)
        ctx.count = input_NCX.numel() // input_NCX.shape[1]
        ctx.save_for_backward(input_NCX, mean_C)
        return mean_C, variance_C * ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean_C: Tensor, of_deviation_C: Tensor) -> Tensor:
        input_NCX, mean_C = ctx.saved_tensors
        slope_C = 2 * of_deviation_C
        constant_C = of_mean_C / ctx.count - slope_C * mean_C
        slope, constant = (_per_channel(values_C, input_NCX) for values_C in (slope_C, constant_C))
        return torch.addcmul(constant, input_NCX.to(slope.dtype), slope).to(input_NCX.dtype)


class _JoinMoments(torch.autograd.Function):
    """From the means and deviations of pieces to mean and variance of the whole, the same for each piece.

    What the backward pass needs is kept as attributes and not by `save_for_backward`: layers that are recomputed do not
    join again.
    """

    @staticmethod
    def forward(ctx: Any, gather: Gather, counts: Sequence[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        mean_KC, deviation_KC = torch.stack(tensors[::2]), torch.stack(tensors[1::2])
        count_K1 = mean_KC.new_tensor(counts)[:, None]
        # A piece of no samples counts for nothing, whatever its images look like.
        is_empty_K1 = count_K1 == 0
        rows = torch.cat([mean_KC.masked_fill(is_empty_K1, 0), deviation_KC.masked_fill(is_empty_K1, 0), count_K1], 1)
        gathered = gather(rows)
        mean_VC, deviation_VC = gathered[:, :-1].chunk(2, dim=1)
        count_V1 = gathered[:, -1:]
        count = count_V1.sum()
        mean_C = (mean_VC * count_V1).sum(0) / count
        variance_C = (deviation_VC.sum(0) + (count_V1 * (mean_VC - mean_C).square()).sum(0)) / count
        ctx.gather, ctx.is_empty_K1 = gather, is_empty_K1
        ctx.offset_KC, ctx.share_K1, ctx.count = mean_KC - mean_C, count_K1 / count, count
        ctx.mark_non_differentiable(count)
        return count, *(values_C.clone() for _ in counts for values_C in (mean_C, variance_C))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows = torch.cat([torch.stack(gradients[::2]), torch.stack(gradients[1::2])], dim=1)
        of_mean_C, of_variance_C = ctx.gather(rows.masked_fill(ctx.is_empty_K1, 0)).sum(0).chunk(2)
        of_means_KC = ctx.share_K1 * (of_mean_C + 2 * ctx.offset_KC * of_variance_C)
        of_deviations_KC = (of_variance_C / ctx.count).expand_as(of_means_KC).masked_fill(ctx.is_empty_K1, 0)
        return None, None, *(tensor for pair in zip(of_means_KC, of_deviations_KC, strict=True) for tensor in pair)


class _Normalize(torch.autograd.Function):
    """BatchNorm's formula with mean and variance that are given, and their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        input_NCX: Tensor,
        mean_C: Tensor,
        variance_C: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.eps, ctx.is_affine = eps, weight is not None
        scale_C = torch.ones_like(mean_C) if weight is None else weight
        ctx.save_for_backward(input_NCX, mean_C, variance_C, scale_C)
        return torch.nn.functional.batch_norm(input_NCX, mean_C, variance_C, scale_C, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input_NCX, mean_C, variance_C, scale_C = ctx.saved_tensors
        of_input, of_scale_C, of_bias_C = torch.ops.aten.native_batch_norm_backward(
            gradient, input_NCX, scale_C, mean_C, variance_C, None, None, False, ctx.eps, [True, True, True]
        )
        inverse_C = torch.rsqrt(variance_C + ctx.eps)
        of_mean_C = -scale_C * inverse_C * of_bias_C
        of_variance_C = -0.5 * scale_C * of_scale_C * inverse_C.square()
        own = (of_scale_C, of_bias_C) if ctx.is_affine else (None, None)
        return of_input, of_mean_C, of_variance_C, *own, None
