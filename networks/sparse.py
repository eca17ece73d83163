"""Values at a few places of a map, computed or read only where they are needed."""

import torch
from torch import Tensor

__all__ = ["corners", "distinct"]


def corners(places: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The four elements around places (..., 2) of a map: numbers (..., 4) int64, weights (..., 4).

    An element is numbered row by row; one outside the map weighs nothing.
    """
    low = places.floor()
    part = places - low
    x, y = (torch.stack([low, low + 1], -2)).long().unbind(-1)
    weight_x, weight_y = torch.stack([1 - part, part], -2).unbind(-1)
    weight_x = weight_x * ((x >= 0) & (x < width))
    weight_y = weight_y * ((y >= 0) & (y < height))
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    numbers = y[..., :, None] * width + x[..., None, :]
    return numbers.flatten(-2), (weight_y[..., :, None] * weight_x[..., None, :]).flatten(-2)


def distinct(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The elements (K,) among numbers (...) below ``count``, ascending; for each its row (...)."""
    asked = torch.zeros(count, dtype=torch.bool, device=numbers.device)
    asked[numbers] = True
    return asked.nonzero()[:, 0], (asked.cumsum(0) - 1)[numbers]
