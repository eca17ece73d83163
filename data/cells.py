"""The 8x8-cell convention: a detector's 65 numbers a cell, to pixels and back.

DeTone, Malisiewicz, Rabinovich: SuperPoint, CVPRW 2018. An image is cut into cells of 8x8 pixels;
what lies beyond the last whole cell on the right and at the bottom is left out. A map of cells
(B, 65, h, w) has a channel for each pixel of a cell, row by row, and a last one for "no keypoint";
its positions are those of ``geometry.CELL_MAP``.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import CELL_MAP

__all__ = [
    "CELL",
    "CHANNELS",
    "NOTHING",
    "cell_centers",
    "cell_corners",
    "cell_peaks",
    "distributions",
    "from_pixels",
    "grid_shape",
    "image_shape",
    "occupied",
    "to_pixels",
    "with_nothing",
]

CELL = int(CELL_MAP.stride)
"""Pixels of a cell's side."""
NOTHING = CELL * CELL
"""The channel of "no keypoint"; those before it are the pixels of a cell."""
CHANNELS = NOTHING + 1


def grid_shape(image_shape) -> tuple[int, int]:
    """(height, width) of an image in pixels -> in whole cells."""
    height, width = image_shape
    return height // CELL, width // CELL


def image_shape(grid_shape) -> tuple[int, int]:
    """(height, width) of a map of cells -> in pixels."""
    height, width = grid_shape
    return height * CELL, width * CELL


def to_pixels(cells: Tensor) -> Tensor:
    """Maps of cells (B, 64 or 65, h, w), without "no keypoint" -> of pixels (B, 8h, 8w)."""
    return F.pixel_shuffle(cells[:, :NOTHING], CELL)[:, 0]


def from_pixels(pixels: Tensor) -> Tensor:
    """Maps of pixels (B, H, W), sides multiples of 8 -> the pixels of each cell (B, 64, h, w)."""
    return F.pixel_unshuffle(pixels[:, None], CELL)


def with_nothing(pixels: Tensor) -> Tensor:
    """Probabilities of the pixels of each cell -> distributions; "no keypoint" gets what is left.

    Args:
        pixels: (B, 64, h, w), not negative; where those of a cell sum to more than 1 they share it.

    Returns:
        (B, 65, h, w).
    """
    pixels = pixels / pixels.sum(1, keepdim=True).clamp(min=1)
    nothing = (1 - pixels.sum(1, keepdim=True)).clamp(min=0)
    return torch.cat([pixels, nothing], dim=1)


def occupied(cells: Tensor) -> Tensor:
    """Distributions (B, 65, h, w) -> how likely each cell has a keypoint (B, h, w)."""
    return 1 - cells[:, NOTHING]


def distributions(score_logits: Tensor) -> Tensor:
    """The softmax of (B, 65, h, w), step by step: ONNX Runtime's own would move channels about."""
    weights = (score_logits - score_logits.amax(1, keepdim=True)).exp()
    return weights / weights.sum(1, keepdim=True)


def cell_centers(shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Those of a grid of ``shape`` cells in pixels, row by row, (h * w, 2) float64."""
    axes = (torch.arange(side, device=device) for side in shape)
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return CELL_MAP.to_image(torch.stack([columns, rows], -1).flatten(0, 1).double())


def cell_corners(shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Where the outer edges of the cells cross, row by row, ((h + 1) * (w + 1), 2) float64."""
    return cell_centers((shape[0] + 1, shape[1] + 1), device) - CELL / 2


def cell_peaks(cells: Tensor) -> Tensor:
    """The likeliest pixel of each cell, (B, h * w, 2) float64, cells row by row.

    Args:
        cells: (B, 65, h, w), distributions or their logits.
    """
    within = cells[:, :NOTHING].argmax(1).flatten(1)
    top_left = cell_centers(cells.shape[2:], cells.device) - CELL_MAP.offset
    return top_left + torch.stack([within % CELL, within // CELL], -1)
