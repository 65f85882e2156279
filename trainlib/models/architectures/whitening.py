"""The first convolution of cifar10_fast: fixed weights that decorrelate the colours of neighbouring pixels.

Its outputs are the principal components of 2 x 2 patches of the training images, each scaled to variance 1, and their
negatives, as the GELU behind it lets only one sign through (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
2024). They are computed once, at the beginning of a run; checkpoints hold them like any other weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.datasets.images import Pictures
from trainlib.models.architectures.cifar10_fast import PATCH_SIDE, Cifar10Fast

NUM_IMAGES = 5_000
BATCH_SIZE = 100
EPS = 5e-4  # added to variances, so that a component of almost no variance is not scaled up without limit


@torch.no_grad()
def init_whitening(module: nn.Module, images: Pictures, ids_N: Tensor, preprocess: Preprocess) -> None:
    """Fill in the whitening weights of a `Cifar10Fast` that has them; other models are left as they are.

    ids_N   int64: the training samples' indices in `images`
    """
    if isinstance(module, Cifar10Fast) and module.whitening:
        module.whiten.weight.copy_(whitening_weights(images, ids_N, preprocess))


def whitening_weights(images: Pictures, ids_N: Tensor, preprocess: Preprocess) -> Tensor:
    """Compute the whitening weights, float32 [8 C, C, 2, 2] on the CPU: a function of these images alone, in every bit.

    From at most 5,000 images, evenly spaced: class folders come one class after the other. Components are in order of
    their variance, the largest first; of each and its negative, that one is first whose first number of at least half
    the largest size is positive.
    """
    num_chosen = min(len(ids_N), NUM_IMAGES)
    covariance_PP = _patch_covariance(images, ids_N[torch.arange(num_chosen) * len(ids_N) // num_chosen], preprocess)
    variances_P, components_PP = torch.linalg.eigh(covariance_PP)  # ascending; the components are columns
    components_PP = components_PP.T
    sizes_PP = components_PP.abs()
    large_PP = sizes_PP >= 0.5 * sizes_PP.amax(dim=1, keepdim=True)
    first_P1 = large_PP.int().argmax(dim=1, keepdim=True)
    components_PP = components_PP * components_PP.gather(1, first_P1).sign()
    scaled_PP = (components_PP / (variances_P + EPS).sqrt()[:, None]).flip(0)
    return torch.cat([scaled_PP, -scaled_PP]).float().view(len(scaled_PP) * 2, -1, PATCH_SIDE, PATCH_SIDE)


def _patch_covariance(images: Pictures, ids_N: Tensor, preprocess: Preprocess) -> Tensor:
    """Compute the covariance, float64 [4C, 4C], of a patch's normalized numbers, ordered as in a convolution's weights.

    Sums are of whole numbers from 0 to 255, to which resized images are rounded. So float64 holds them exactly, and
    they are the same in any order: with any number of threads, on any CPU.
    """
    channels = len(preprocess.mean)
    numbers = channels * PATCH_SIDE**2
    to_pixels = Preprocess((0.0,) * channels, (1 / 255,) * channels, preprocess.image_size)  # from 0 to 255
    sum_P = torch.zeros(numbers, dtype=torch.float64)
    products_PP, count = torch.zeros(numbers, numbers, dtype=torch.float64), 0
    for images_NCHW in images.batches(torch.split(ids_N, BATCH_SIZE)):
        pixels_NCHW = to_pixels(images_NCHW.cpu()).round()
        patches_NPL = F.unfold(pixels_NCHW.double(), PATCH_SIDE)
        sum_P += patches_NPL.sum(dim=(0, 2))
        products_PP += (patches_NPL @ patches_NPL.mT).sum(dim=0)
        count += patches_NPL.shape[0] * patches_NPL.shape[2]
    mean_P = sum_P / count
    scale_P = (1 / (255 * torch.tensor(preprocess.std, dtype=torch.float64))).repeat_interleave(PATCH_SIDE**2)
    return (products_PP / count - torch.outer(mean_P, mean_P)) * torch.outer(scale_P, scale_P)
