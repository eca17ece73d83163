"""The coordinate convention: the only place where a coordinate is scaled, warped or sampled.

Points are ``(x, y)``, x right, y down, in pixels of a named image; the centre of the top-left
pixel is (0, 0), so an image of width W spans -0.5 to W - 0.5. ``size`` is (width, height),
``shape`` is (height, width). A homography says its direction: ``H_0to1`` maps points of view 0
to view 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

__all__ = [
    "CELL_MAP",
    "PIXEL_MAP",
    "MapGeometry",
    "average_map",
    "orient_points",
    "random_homography",
    "resample_map",
    "resize_homography",
    "resize_matrix",
    "resize_points",
    "sample_descriptors",
    "sample_map",
    "warp_points",
]


@dataclass(frozen=True)
class MapGeometry:
    """Where the positions of a map lie in its image: ``image_xy = stride * map_xy + offset``.

    The same two numbers serve both axes. Map position (0, 0) is the centre of the map's
    top-left element.
    """

    stride: float
    offset: float

    def to_image(self, map_xy):
        """Map positions (..., 2) to image pixels (..., 2); arrays or tensors."""
        return map_xy * self.stride + self.offset

    def to_map(self, image_xy):
        """Image pixels (..., 2) to map positions (..., 2); arrays or tensors."""
        return (image_xy - self.offset) / self.stride


PIXEL_MAP = MapGeometry(1, 0)
"""One element per pixel, as a full-resolution score map."""

CELL_MAP = MapGeometry(8, 3.5)
"""One element per cell of 8x8 pixels, at the cell's centre."""


def resize_matrix(size_from: tuple[int, int], size_to: tuple[int, int]) -> np.ndarray:
    """The (3, 3) float64 matrix that maps pixels of an image to pixels of its resized version.

    Resizing by s moves a point to ``s * (x + 0.5) - 0.5`` on each axis.
    """
    sx, sy = size_to[0] / size_from[0], size_to[1] / size_from[1]
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]])


def resize_points(points, size_from: tuple[int, int], size_to: tuple[int, int]) -> np.ndarray:
    """Points (N, 2) of an image of ``size_from`` in pixels of the same image at ``size_to``."""
    scale = np.array(size_to, np.float64) / np.array(size_from, np.float64)
    return (scale * (np.asarray(points, np.float64) + 0.5) - 0.5).astype(np.float32)


def orient_points(points, stored_size: tuple[int, int], orientation: int) -> np.ndarray:
    """Points (N, 2) of an image as its file stores it in pixels of the upright one.

    Args:
        orientation: of EXIF, 1 to 8; ``data.images.orient_image`` turns the pixels.
    """
    x, y = np.asarray(points, np.float32).reshape(-1, 2).T
    width, height = stored_size
    if orientation > 4:
        x, y, width, height = y, x, height, width
    if orientation in (2, 3, 6, 7):
        x = width - 1 - x
    if orientation in (3, 4, 7, 8):
        y = height - 1 - y
    return np.stack([x, y], axis=1)


def resize_homography(
    H_0to1: np.ndarray,
    size0_from: tuple[int, int],
    size0_to: tuple[int, int],
    size1_from: tuple[int, int],
    size1_to: tuple[int, int],
) -> np.ndarray:
    """The homography between two views after each has been resized, (3, 3) float64."""
    H = resize_matrix(size1_from, size1_to) @ H_0to1 @ resize_matrix(size0_to, size0_from)
    return H / H[2, 2]


def warp_points(points, H_0to1: np.ndarray) -> np.ndarray:
    """Points (N, 2) of view 0 mapped to view 1; (N, 2) float64.

    A point on the horizon of ``H_0to1`` comes back as infinity or nan, without a warning.
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    warped = points @ H_0to1[:, :2].T + H_0to1[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return warped[:, :2] / warped[:, 2:]


def random_homography(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.6, 0.9),
    rotation: float = 30.0,
    perspective: float = 0.2,
    tilt: float = 1.0,
) -> np.ndarray:
    """A random view that lies wholly inside a photograph of ``size``.

    The view's frame is a centred rectangle of the photograph, shrunk by ``scale``, its corners
    moved by up to ``perspective`` of its sides, rotated by up to ``rotation`` degrees either way,
    foreshortened in a random direction and shifted; candidates that leave the photograph are drawn
    again, ever smaller. A camera that looks askance at a plane sees it foreshortened, most by
    ``tilt``, the absolute tilt of ASIFT (Morel and Yu, 2009); its area stays what ``scale`` says.

    Returns:
        ``H_view_to_photo`` (3, 3) float64: pixels of the view, which has the photograph's size, to
        pixels of the photograph.
    """
    width, height = size
    frame = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)
    centre = frame.mean(0)
    for attempt in range(1000):
        shrink = 0.995**attempt
        corners = (frame - centre) * rng.uniform(*scale) * shrink
        moved = rng.uniform(-0.5, 0.5, (4, 2)) * perspective * np.abs(corners) * 2
        corners = corners + moved * shrink
        angle = np.deg2rad(rng.uniform(-rotation, rotation)) * shrink
        cos, sin = np.cos(angle), np.sin(angle)
        corners = corners @ np.array([[cos, sin], [-sin, cos]])
        if tilt > 1:
            drawn = tilt ** rng.uniform(0, shrink)
            corners = corners @ _foreshortening(rng.uniform(0, np.pi), drawn)
        corners = corners + centre
        room_low, room_high = -corners.min(0), np.array([width - 1, height - 1]) - corners.max(0)
        if (room_high >= room_low).all():
            corners = corners + rng.uniform(room_low, room_high)
            return _homography_from_points(frame, corners)
    raise ValueError(
        f"no view fits into a photograph of {width}x{height} with scale {scale}, rotation "
        f"{rotation}, perspective {perspective} and tilt {tilt}; lower one of them"
    )


def _foreshortening(direction: float, tilt: float) -> np.ndarray:
    """A symmetric (2, 2) of determinant 1 that stretches by ``tilt`` in a direction (radians)."""
    along = np.array([np.cos(direction), np.sin(direction)])
    return np.eye(2) / np.sqrt(tilt) + (np.sqrt(tilt) - 1 / np.sqrt(tilt)) * np.outer(along, along)


def _homography_from_points(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """The homography through four correspondences (4, 2), as (3, 3) float64 with H[2, 2] = 1."""
    rows, values = [], []
    for (x, y), (u, v) in zip(points0, points1, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)


def sample_map(
    values: torch.Tensor, points: torch.Tensor, geometry: MapGeometry, *, padding: str = "border"
) -> torch.Tensor:
    """Bilinear samples of maps at image points, differentiable in ``values`` and ``points``.

    Args:
        values: (B, C, h, w) float maps with ``geometry``.
        points: (B, N, 2) float (x, y) in image pixels.
        padding: what lies outside the map: "border" repeats it, "zeros" fades to zero.

    Returns:
        (B, N, C) samples, not normalised.
    """
    height, width = values.shape[-2:]
    last = torch.tensor([max(width - 1, 1), max(height - 1, 1)]).to(points)
    grid = 2 * geometry.to_map(points) / last - 1  # align_corners=True: -1, 1 are outer centres
    samples = F.grid_sample(
        values, grid[:, None].to(values.dtype), "bilinear", padding, align_corners=True
    )
    return samples[:, :, 0].transpose(1, 2)


def sample_descriptors(
    descriptor_map: torch.Tensor, keypoints: np.ndarray, geometry: MapGeometry = CELL_MAP
) -> np.ndarray:
    """The descriptors (N, D) float32 of unit length at keypoints (N, 2) float32, in NumPy.

    Args:
        descriptor_map: (D, h, w) with ``geometry``; its edge repeats beyond it.
    """
    points = torch.from_numpy(keypoints).to(descriptor_map.device)
    samples = sample_map(descriptor_map[None], points[None], geometry)[0]
    return F.normalize(samples, dim=1).cpu().numpy()


def resample_map(
    values: torch.Tensor,
    geometry: MapGeometry,
    onto: MapGeometry,
    shape: tuple[int, int],
) -> torch.Tensor:
    """Maps sampled bilinearly at the positions of another grid over the same images.

    Args:
        values: (B, C, h, w) float maps with ``geometry``.
        onto: where the positions of the new grid lie.
        shape: (height, width) of the new grid; beyond the edge of ``values`` the edge repeats.

    Returns:
        (B, C, *shape), not normalised.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    points = onto.to_image(torch.stack([columns, rows], -1).float().flatten(0, 1)).to(values.device)
    samples = sample_map(values, points.expand(len(values), -1, -1), geometry)
    return samples.transpose(1, 2).unflatten(2, shape)


def average_map(values: torch.Tensor, border: int, cell: int = 8) -> torch.Tensor:
    """Per-pixel maps that lack ``border`` pixels at each side, averaged over cells of the image.

    Args:
        values: (B, C, h, w) float maps at ``MapGeometry(1, border)``.
        cell: pixels of a cell's side.

    Returns:
        (B, C, (h + 2 * border) // cell, ...) at ``CELL_MAP`` for cells of 8; the edge of ``values``
        repeats over the border. Not normalised.
    """
    return F.avg_pool2d(F.pad(values, [border] * 4, mode="replicate"), cell)
