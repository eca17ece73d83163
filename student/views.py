"""Views of a photograph through homographies, and what a teacher's maps say of them.

A teacher sees each photograph once. A view of it (a crop, or a turned, tilted and zoomed part) gets
its targets by taking the teacher's maps along: the student learns to say of every view what the
teacher said of the one it saw.
"""

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
    is_inside,
    place_frame,
    resize_matrix,
    sample_map,
    warp_points,
)

__all__ = [
    "ViewSampler",
    "cells_seen",
    "random_crop",
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
        first = None
        for _ in range(count):
            upright = self.warped == 0 or rng.random() >= self.warped
            # The form is drawn once: what is rejected for its place must not come back smaller.
            frame = None if upright else self._scaled(size, crop).draw_frame(rng, size)
            view = _place(rng, frame, size, crop)
            if first is not None and self.overlap:
                view = self._place_beside(first, view, rng, frame, size, crop)
            first = view if first is None else first
            yield view

    def _place_beside(self, first, second, rng, frame, size, crop) -> np.ndarray:
        best, most = second, shared_part(first, second, crop)
        for _ in range(ATTEMPTS):
            if most >= self.overlap:
                break
            second = _place(rng, frame, size, crop)
            if (part := shared_part(first, second, crop)) > most:
                best, most = second, part
        return best

    def _scaled(self, size, crop) -> Homographies:
        """The homographies with ``scale`` in sides of the photograph, not larger than it is."""
        form, share = self.homographies, max(to / of for to, of in zip(crop, size, strict=True))
        low, high = (share * zoom for zoom in form.scale)
        scale = (min(low, 1.0), min(high, 1.0)) if form.inside else (low, high)
        return replace(form, scale=scale)


def _place(rng, frame: np.ndarray | None, size, crop) -> np.ndarray:
    if frame is None:
        return random_crop(rng, size, crop)
    return place_frame(rng, frame, size) @ resize_matrix(crop, size)


def random_crop(
    rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int]
) -> np.ndarray:
    """``H_view_to_photo`` (3, 3) of an upright crop that starts at a whole cell.

    Args:
        size, crop: (width, height) of the photograph and of the view, in whole cells.
    """
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
    parts = []
    for one, other in ((first, second), (second, first)):
        seen = warp_points(_grid(size), np.linalg.inv(other) @ one)
        parts.append(is_inside(seen, size).mean())
    return max(parts)


def _grid(size: tuple[int, int], count: int = 12) -> np.ndarray:
    """Points (count ** 2, 2) spread evenly over an image."""
    x, y = ((np.arange(count) + 0.5) * side / count - 0.5 for side in size)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


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
    corners = cell_corners(shape).to(H_view_to_photo)
    points = warp_points(corners, H_view_to_photo)
    edge = border - 0.5 - 1e-6  # a cell's own edge may lie on the photograph's
    last = torch.tensor([size[0] - 1 - edge, size[1] - 1 - edge]).to(points)
    inside = ((points >= edge) & (points <= last)).all(-1)
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
    height, width = image_shape(shape)
    # What lies far outside, or on the horizon, must neither overflow nor stay: nan * 0 is nan.
    points = points.float().nan_to_num(-2.0).clamp(-2.0, 2.0 * max(height, width))
    corner = points.floor()
    right = points - corner  # (B, N, 2): the weights of the corner after, on either axis
    x, y = corner.long().unbind(2)
    moved = points.new_zeros(len(points), height * width + 1)  # the last one takes all outside
    indices, shares = [], []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        inside = (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height)
        indices.append(torch.where(inside, (y + dy) * width + x + dx, height * width))
        weight_x, weight_y = (
            part if step else 1 - part for part, step in zip(right.unbind(2), (dx, dy), strict=True)
        )
        shares.append(weight_x * weight_y * probability)
    moved.scatter_add_(1, torch.cat(indices, 1), torch.cat(shares, 1))
    return with_nothing(from_pixels(moved[:, :-1].unflatten(1, (height, width))))


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
    height, width = image_shape(shape)
    moved = pixels.new_zeros(len(pixels), height * width)
    H_photo_to_view = torch.linalg.inv(H_view_to_photo).to(pixels)
    for seen, image, H in zip(moved, pixels, H_photo_to_view, strict=True):
        row, column = (image > NEGLIGIBLE).nonzero(as_tuple=True)
        points = warp_points(torch.stack([column, row], 1).to(image), H[None])[0]
        for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
            pixel = points.floor() + torch.tensor(corner).to(points)
            share = (1 - (points - pixel).abs()).prod(1)
            x, y = pixel.long().unbind(1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            seen.index_add_(0, (y * width + x)[inside], (share * image[row, column])[inside])
    # Where the view shrinks the photograph, one cell may get the keypoints of several.
    return with_nothing(from_pixels(moved.view(-1, height, width)))


def to_cells(score_map: Tensor, shape: tuple[int, int]) -> Tensor:
    """A teacher's scores as a distribution over each cell and "no keypoint".

    Args:
        score_map: (B, 65, h, w), such a distribution already, or (B, 1, H, W), for each pixel
            inside a border its own probability of being a keypoint. Of a cell whose pixels are
            independent, the distribution says which one is the keypoint where one or none is: each
            pixel's odds against 1.
        shape: (height, width) of the photographs in cells.

    Returns:
        (B, 65, *shape) float.
    """
    if score_map.shape[1] == CHANNELS:
        return score_map
    border = (image_shape(shape)[0] - score_map.shape[2]) // 2
    probability = F.pad(score_map.float().clamp(max=0.999), [border] * 4)
    odds = from_pixels((probability / (1 - probability))[:, 0])
    cells = torch.cat([odds, torch.ones_like(odds[:, :1])], dim=1)
    return cells / cells.sum(1, keepdim=True)
