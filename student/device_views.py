"""Views cut and augmented on the device: what OpenCV does in the loader, for a whole batch at once.

The loader decodes photographs and draws homographies and photometric changes; nothing here waits
for a GPU. Pictures are those of ``data.images.view_through`` and ``data.augment`` but for roundings
and the noise, whose numbers are others of the same distribution.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.augment import KERNEL, Photometric
from ..data.geometry import PIXEL_MAP, sample_map, warp_points
from ..data.images import shrink_for_view

__all__ = ["cut_views", "describe_views"]

_OF_VIEWS = ("full", "shrunk", "H_view_to_shrunk", "levels", "shading", "kernel", "noise", "seed")


def describe_views(
    photograph: np.ndarray,
    canvas: tuple[int, int],
    homographies: list[np.ndarray],
    size: tuple[int, int],
    changes: list[Photometric],
) -> dict[str, np.ndarray]:
    """What ``cut_views`` makes V views of a photograph from.

    Args:
        photograph: (H, W) uint8.
        canvas: (width, height) to which it is padded, the same for all of a batch.
        homographies: (3, 3) float64 each, from pixels of a view to those of the photograph.
        size: (width, height) of the views.
        changes: of each view.

    Returns:
        The padded ``photograph``; of each view its (width, height) ``full`` and ``shrunk``, as it
        is sampled, ``H_view_to_shrunk``, and the changes ``levels``, ``shading``, ``kernel``,
        ``noise`` and ``seed``.
    """
    full, plain = photograph.shape[::-1], np.ones((3, 4), np.float32)
    shrunk, H_view_to_shrunk = zip(
        *(shrink_for_view(full, H, size) for H in homographies), strict=True
    )
    return {
        "photograph": np.pad(photograph, [(0, canvas[1] - full[1]), (0, canvas[0] - full[0])]),
        "full": np.array([full] * len(shrunk)),
        "shrunk": np.array(shrunk),
        "H_view_to_shrunk": np.stack(H_view_to_shrunk),
        "levels": np.stack([each.levels for each in changes]),
        "shading": np.stack([plain if c.shading is None else c.shading for c in changes]),
        "kernel": np.stack([change.kernel() for change in changes]),
        "noise": np.array([change.noise for change in changes], np.float32),
        "seed": np.array([change.seed for change in changes]),
    }


def cut_views(batch: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """All views of a batch, (B * V, 1, h, w) float32, whole gray values from 0 to 255.

    An image finer than a view is averaged down first, and goes on beyond its edge as its mirror
    image.

    Args:
        batch: of ``describe_views``, with a leading axis of B photographs; it is taken out.
        size: (width, height) of the views.
    """
    photographs = batch.pop("photograph").float()
    full, shrunk, H, levels, shading, kernel, noise, seed = (
        batch.pop(name).flatten(0, 1) for name in _OF_VIEWS
    )
    images, steps = photographs.repeat_interleave(len(H) // len(photographs), 0), full / shrunk
    images = _average_rows(_average_rows(images, steps[:, 1]).mT, steps[:, 0]).mT.round()
    width, height = size
    axes = (torch.arange(side, device=H.device, dtype=H.dtype) for side in (height, width))
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    places = warp_points(torch.stack([columns, rows], -1).view(1, -1, 2), H)
    last = (shrunk[:, None] - 1).clamp(min=1)
    mirrored = last - (places % (2 * last) - last).abs()
    values = sample_map(images[:, None], mirrored, PIXEL_MAP)[:, :, 0].round()
    views = levels.gather(1, values.long()).view(-1, height, width).float()
    field = F.interpolate(shading[:, None], (height, width), mode="bicubic")[:, 0]
    views = _to_gray_values(views * field)
    padded = F.pad(views[None], [KERNEL // 2] * 4, mode="reflect")
    views = _to_gray_values(F.conv2d(padded, kernel[:, None], groups=len(views))[0])
    drawn = _normal_numbers(seed, width * height).view_as(views)
    return _to_gray_values(views + (drawn * noise[:, None, None]).round())[:, None]


def _average_rows(images: Tensor, steps: Tensor) -> Tensor:
    """Images (N, H, W) averaged over (N,) rows each, at the top of as many as they had."""
    rows, steps = images.shape[1], steps[:, None, None]
    sums = F.pad(images.cumsum(1), (0, 0, 1, 0))  # up to each row's upper edge
    edges = torch.arange(rows + 1, device=images.device)[:, None] * steps
    edges = edges.clamp(max=rows).expand(-1, -1, images.shape[2])
    above = edges.long().clamp(max=rows - 1)
    at_edges = torch.lerp(sums.gather(1, above), sums.gather(1, above + 1), edges - above)
    return at_edges.diff(dim=1) / steps


def _to_gray_values(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255)


def _normal_numbers(seeds: Tensor, count: int) -> Tensor:
    """Normally distributed numbers (N, count) that follow from the seeds (N,), on every device.

    Box and Muller (1958), of Wellons' 32-bit hash of where each number stands.
    """
    bits = seeds[:, None] * 0x9E3779B1 + torch.arange(2 * count, device=seeds.device)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits = bits & 0xFFFFFFFF
        bits = (bits ^ (bits >> shift)) * factor
    uniform = ((bits & 0xFFFFFFFF) + 0.5) / 2**32
    first, second = uniform.view(len(seeds), 2, count).unbind(1)
    return (-2 * first.log()).sqrt() * (2 * torch.pi * second).cos()
