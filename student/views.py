"""Views of a photograph through a homography, and what a teacher's maps say of them.

A teacher sees each photograph once. A view of it (a crop, or a turned, tilted and zoomed part) gets
its targets by taking the teacher's maps along: the student learns to say of every view what the
teacher said of the one it saw.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.geometry import CELL_MAP, MapGeometry, random_homography, resize_matrix, sample_map

__all__ = [
    "cell_centres",
    "cell_peaks",
    "is_inside",
    "random_crop",
    "random_view",
    "to_cells",
    "to_view",
    "view_descriptors",
    "view_scores",
    "warp",
]

NEGLIGIBLE = 1e-3
"""Probabilities up to this are left to "no keypoint"."""


def random_crop(
    rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int]
) -> np.ndarray:
    """``H_view_to_photo`` (3, 3) of an upright crop that starts at a whole cell.

    Args:
        size, crop: (width, height) of the photograph and of the view, in multiples of 8.
    """
    left, top = (
        8 * int(rng.integers(0, (of - to) // 8 + 1)) for of, to in zip(size, crop, strict=True)
    )
    return np.array([[1, 0, left], [0, 1, top], [0, 0, 1]], np.float64)


def random_view(
    rng: np.random.Generator,
    size: tuple[int, int],
    crop: tuple[int, int],
    *,
    zoom: tuple[float, float],
    rotation: float,
    perspective: float,
    tilt: float,
) -> np.ndarray:
    """``H_view_to_photo`` (3, 3) of a random view that lies inside the photograph.

    Args:
        size, crop: (width, height) of the photograph and of the view.
        zoom: range of the photograph's pixels for one of the view, as far as the photograph goes.
        rotation, perspective, tilt: see ``random_homography``.
    """
    share = max(to / of for to, of in zip(crop, size, strict=True))
    scale = (min(share * zoom[0], 1.0), min(share * zoom[1], 1.0))
    H_whole_to_photo = random_homography(
        rng, size, scale=scale, rotation=rotation, perspective=perspective, tilt=tilt
    )
    return H_whole_to_photo @ resize_matrix(crop, size)


def view_descriptors(
    descriptor_map: Tensor,
    points: Tensor,
    H_view_to_photo: Tensor,
    geometry: MapGeometry = CELL_MAP,
) -> Tensor:
    """The teacher's descriptors at points of the views.

    Args:
        descriptor_map: (B, D, h, w) float with ``geometry`` in the photographs; beyond its edge the
            edge repeats.
        points: (N, 2) or (B * V, N, 2) float64, in pixels.
        H_view_to_photo: (B * V, 3, 3) float64, a photograph's views one after the other.

    Returns:
        (B * V, N, D) of unit length along D.
    """
    seen = warp(points, H_view_to_photo).float()
    of_photographs = seen.reshape(len(descriptor_map), -1, 2)
    samples = sample_map(descriptor_map, of_photographs, geometry)
    return F.normalize(samples, dim=2).reshape(*seen.shape[:2], -1)


def view_scores(score_map: Tensor, H_view_to_photo: Tensor, shape: tuple[int, int]) -> Tensor:
    """The teacher's distributions over the views' cells.

    Every pixel's probability moves to where the view shows it, shared by the four pixels around
    that point, so that peaks keep their place between pixels.

    Args:
        score_map: (B, 65, h, w) distributions over the cells of the photographs, see ``to_cells``.
        H_view_to_photo: (B, 3, 3) float64.
        shape: (height, width) of the views in cells.

    Returns:
        (B, 65, *shape) float32, distributions.
    """
    pixels = F.pixel_shuffle(score_map[:, :64], 8)[:, 0]
    height, width = (8 * side for side in shape)
    moved = pixels.new_zeros(len(pixels), height * width)
    H_photo_to_view = torch.linalg.inv(H_view_to_photo).to(pixels)
    for seen, image, H in zip(moved, pixels, H_photo_to_view, strict=True):
        row, column = (image > NEGLIGIBLE).nonzero(as_tuple=True)
        points = warp(torch.stack([column, row], 1).to(image), H[None])[0]
        for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
            pixel = points.floor() + torch.tensor(corner).to(points)
            share = (1 - (points - pixel).abs()).prod(1)
            x, y = pixel.long().unbind(1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            seen.index_add_(0, (y * width + x)[inside], (share * image[row, column])[inside])
    cells = F.pixel_unshuffle(moved.view(-1, 1, height, width), 8)
    # Where the view shrinks the photograph, one cell may get the keypoints of several.
    cells = cells / cells.sum(1, keepdim=True).clamp(min=1)
    nothing = (1 - cells.sum(1, keepdim=True)).clamp(min=0)
    return torch.cat([cells, nothing], dim=1)


def to_cells(score_map: Tensor, shape: tuple[int, int]) -> Tensor:
    """A teacher's scores as a distribution over each 8x8 cell and "no keypoint".

    Args:
        score_map: (B, 65, h, w), such a distribution already, or (B, 1, H, W), for each pixel
            inside a border its own probability of being a keypoint. Of a cell whose pixels are
            independent, the distribution says which one is the keypoint where one or none is: each
            pixel's odds against 1.
        shape: (height, width) of the photographs in cells.

    Returns:
        (B, 65, *shape) float.
    """
    if score_map.shape[1] == 65:
        return score_map
    border = (8 * shape[0] - score_map.shape[2]) // 2
    probability = F.pad(score_map.float().clamp(max=0.999), [border] * 4)
    odds = F.pixel_unshuffle(probability / (1 - probability), 8)
    cells = torch.cat([odds, torch.ones_like(odds[:, :1])], dim=1)
    return cells / cells.sum(1, keepdim=True)


def cell_centres(shape: tuple[int, int]) -> Tensor:
    """Those of a grid of ``shape`` cells in pixels, row by row, (h * w, 2) float64."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    return CELL_MAP.to_image(torch.stack([columns, rows], -1).flatten(0, 1).double())


def cell_peaks(cells: Tensor) -> Tensor:
    """The likeliest pixel of each cell, (B, h * w, 2) float64, cells row by row.

    Args:
        cells: (B, 65, h, w), distributions or their logits.
    """
    within = cells[:, :64].argmax(1).flatten(1)
    corners = cell_centres(cells.shape[2:]).to(cells.device) - 3.5
    return corners + torch.stack([within % 8, within // 8], -1)


def to_view(points: Tensor, H_view_to_photo: Tensor) -> Tensor:
    """Points (B, N, 2) of the photographs as the views show them, float32; see ``is_inside``."""
    return warp(points.double(), torch.linalg.inv(H_view_to_photo)).float()


def is_inside(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Which of the points (..., 2) lie on a view or map of that (width, height)."""
    x, y = points.unbind(-1)
    return (x > -0.5) & (y > -0.5) & (x < size[0] - 0.5) & (y < size[1] - 0.5)


def warp(points: Tensor, H_0to1: Tensor) -> Tensor:
    """Points (N, 2) or (B, N, 2) of views 0 in views 1, (B, N, 2)."""
    warped = points @ H_0to1[:, :, :2].mT + H_0to1[:, None, :, 2]
    return warped[..., :2] / warped[..., 2:]
