"""Views of a photograph through homographies, and what a teacher's maps say of them.

A teacher sees each photograph once. A view of it (a crop, or a turned, tilted and zoomed part) gets
its targets by taking the teacher's maps along: the student learns to say of every view what the
teacher said of the one it saw.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.cells import (
    CELL,
    CHANNELS,
    cell_corners,
    from_pixels,
    image_shape,
    to_pixels,
    with_nothing,
)
from ..data.geometry import (
    CELL_MAP,
    Homographies,
    MapGeometry,
    invert,
    is_inside,
    place_frame,
    resize_matrix,
    sample_map,
    warp_points,
)

__all__ = [
    "ViewSampler",
    "cells_seen",
    "scatter_keypoints",
    "shared_part",
    "to_cells",
    "view_descriptors",
    "view_scores",
]

NEGLIGIBLE = 1e-3
"""Probabilities up to this are left to "no keypoint"."""
ATTEMPTS = 50
"""Places that a second view is tried at; the one that shares most is taken where none does."""


@dataclass(frozen=True)
class ViewSampler:
    """How the views of a photograph are drawn.

    Attributes:
        warped: share of the views that are seen through a homography; the others are upright crops
            that start at a whole cell.
        homographies: of those; ``scale`` in the photograph's pixels for one of the view.
        overlap: a second view gets another place until one of the two shows so much of the other; 0
            leaves it where it falls.
    """

    warped: float
    homographies: Homographies
    overlap: float = 0.0

    def draw(
        self, rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int], count: int
    ) -> Iterator[np.ndarray]:
        """``H_view_to_photo`` (3, 3) float64 of the views of one photograph, one after the other.

        Args:
            size, crop: (width, height) of the photograph and of the views.
        """
        form, share = self.homographies, max(to / of for to, of in zip(crop, size, strict=True))
        # In sides of the photograph; a frame that must lie inside is not larger than it.
        most = 1.0 if form.inside else math.inf
        form = replace(form, scale=tuple(min(share * zoom, most) for zoom in form.scale))
        first = None
        for _ in range(count):
            upright = self.warped == 0 or rng.random() >= self.warped
            # The form is drawn once: what is rejected for its place must not come back smaller.
            frame = None if upright else form.draw_frame(rng, size)
            view = _place(rng, frame, size, crop)
            if first is None:
                first = view
            elif self.overlap:
                shared = shared_part(first, view, crop)
                for _ in range(ATTEMPTS):
                    if shared >= self.overlap:
                        break
                    other = _place(rng, frame, size, crop)
                    if (part := shared_part(first, other, crop)) > shared:
                        view, shared = other, part
            yield view


def _place(rng, frame: np.ndarray | None, size, crop) -> np.ndarray:
    """A view at a random place; without a frame an upright crop that starts at a whole cell."""
    if frame is not None:
        return place_frame(rng, frame, size) @ resize_matrix(crop, size)
    left, top = (
        CELL * int(rng.integers(0, (of - to) // CELL + 1))
        for of, to in zip(size, crop, strict=True)
    )
    return np.array([[1, 0, left], [0, 1, top], [0, 0, 1]], np.float64)


def shared_part(first: np.ndarray, second: np.ndarray, size: tuple[int, int]) -> float:
    """How much of one view another shows, 0 to 1; of the two ways round, the larger.

    So a close-up in the middle of a wide view shares all with it.

    Args:
        first, second: ``H_view_to_photo`` (3, 3) of two views of a photograph.
        size: (width, height) of both.
    """
    # Of points spread evenly over a view.
    x, y = ((np.arange(12) + 0.5) * side / 12 - 0.5 for side in size)
    points, parts = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2), []
    for one, other in ((first, second), (second, first)):
        seen = warp_points(points, np.linalg.inv(other) @ one)
        parts.append(is_inside(seen, size).mean())
    return max(parts)


def cells_seen(
    H_view_to_photo: Tensor, shape: tuple[int, int], size: tuple[int, int], border: float = 0.0
) -> Tensor:
    """Which cells of the views show nothing but the photographs, (B, *shape) bool.

    Args:
        H_view_to_photo: (B, 3, 3) float64.
        shape: (height, width) of the views in cells.
        size: (width, height) of the photographs.
        border: so many pixels along their edges do not count.
    """
    x, y = warp_points(cell_corners(shape, H_view_to_photo.device), H_view_to_photo).unbind(-1)
    edge = border - 0.5 - 1e-6  # a cell's own edge may lie on the photograph's
    inside = (x >= edge) & (y >= edge) & (x <= size[0] - 1 - edge) & (y <= size[1] - 1 - edge)
    inside = inside.unflatten(1, (shape[0] + 1, shape[1] + 1))
    return inside[:, 1:, 1:] & inside[:, 1:, :-1] & inside[:, :-1, 1:] & inside[:, :-1, :-1]


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
    seen = warp_points(points, H_view_to_photo).float()
    of_photographs = seen.reshape(len(descriptor_map), -1, 2)
    samples = sample_map(descriptor_map, of_photographs, geometry)
    return F.normalize(samples, dim=2).reshape(*seen.shape[:2], -1)


def scatter_keypoints(points: Tensor, probability: Tensor, shape: tuple[int, int]) -> Tensor:
    """Keypoints between pixels -> distributions over cells, for a whole batch at once.

    The four pixels around a keypoint share its probability as bilinear weights; a cell's "no
    keypoint" gets what is left to 1, so that a sure keypoint stays surer than a faint one.

    Args:
        points: (B, N, 2) float (x, y) in pixels of the views, anywhere.
        probability: (B, N), 0 for a keypoint that does not count.
        shape: (height, width) of the views in cells.

    Returns:
        (B, 65, *shape) float32.
    """
    count, each = probability.shape
    views = torch.arange(count, device=points.device).repeat_interleave(each)
    return _scatter(points.flatten(0, 1), probability.flatten(), views, count, shape)


def _scatter(
    points: Tensor, probability: Tensor, views: Tensor, count: int, shape: tuple[int, int]
) -> Tensor:
    """``scatter_keypoints`` of points (N, 2), each of one of so many views (N,)."""
    height, width = image_shape(shape)
    # What lies far outside, or on the horizon, must neither overflow nor stay: nan * 0 is nan.
    points = points.float().nan_to_num(-2.0).clamp(-2.0, 2.0 * max(height, width))
    corner = points.floor()
    after = points - corner  # the weights of the pixel after, on either axis
    x, y = corner.long().unbind(1)
    outside = count * height * width
    indices, shares = [], []
    for dy, weight_y in ((0, 1 - after[:, 1]), (1, after[:, 1])):
        for dx, weight_x in ((0, 1 - after[:, 0]), (1, after[:, 0])):
            column, row = x + dx, y + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (views * height + row) * width + column
            indices.append(torch.where(inside, index, outside))
            shares.append(weight_x * weight_y * probability)
    moved = points.new_zeros(outside + 1)
    moved.scatter_add_(0, torch.cat(indices), torch.cat(shares))
    return with_nothing(from_pixels(moved[:-1].view(count, height, width)))


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
    pixels = to_pixels(score_map)
    # How many pixels count is the one thing that a GPU is asked, for all views at once.
    view, row, column = (pixels > NEGLIGIBLE).nonzero(as_tuple=True)
    points = torch.stack([column, row], 1)[:, None].to(pixels)
    points = warp_points(points, invert(H_view_to_photo).to(pixels)[view])[:, 0]
    return _scatter(points, pixels[view, row, column], view, len(pixels), shape)


def to_cells(score_map: Tensor, border: int = 0) -> Tensor:
    """A teacher's scores as a distribution over each cell and "no keypoint".

    Args:
        score_map: (B, 65, h, w), such a distribution already, or (B, 1, H, W), for each pixel
            inside the border its own probability of being a keypoint. Of a cell whose pixels are
            independent, the distribution says which one is the keypoint where one or none is: each
            pixel's odds against 1.
        border: pixels along the edge that the map lacks.

    Returns:
        (B, 65, h, w) float.
    """
    if score_map.shape[1] == CHANNELS:
        return score_map
    probability = F.pad(score_map.float().clamp(max=0.999), [border] * 4)
    odds = from_pixels((probability / (1 - probability))[:, 0])
    cells = torch.cat([odds, torch.ones_like(odds[:, :1])], dim=1)
    return cells / cells.sum(1, keepdim=True)
