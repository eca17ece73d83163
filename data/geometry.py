"""The coordinate convention: the only place where a coordinate is scaled, warped or sampled.

Points are ``(x, y)``, x right, y down, in pixels of a named image; the center of the top-left
pixel is (0, 0), so an image of width W spans -0.5 to W - 0.5. ``size`` is (width, height),
``shape`` is (height, width). A homography says its direction: ``H_0to1`` maps points of view 0
to view 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import InputError

__all__ = [
    "CELL_MAP",
    "PIXEL_MAP",
    "Homographies",
    "MapGeometry",
    "average_map",
    "frame_corners",
    "invert",
    "is_inside",
    "orient_points",
    "place_frame",
    "resize_homography",
    "resize_matrix",
    "resize_points",
    "sample_map",
    "unwarp_points",
    "warp_points",
]


@dataclass(frozen=True)
class MapGeometry:
    """Where the positions of a map lie in its image: ``image_xy = stride * map_xy + offset``.

    The same two numbers serve both axes. Map position (0, 0) is the center of the map's
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
"""One element per cell of 8x8 pixels, at the cell's center."""


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


def warp_points(points, H_0to1):
    """Points of view 0 mapped to view 1; arrays or tensors.

    A point on the horizon of ``H_0to1`` comes back as infinity or nan, without a warning.

    Args:
        points: (N, 2), or tensors (B, N, 2).
        H_0to1: (3, 3), or a tensor (B, 3, 3), a homography for each of the B.

    Returns:
        (N, 2) float64 of arrays; (B, N, 2) of tensors, in their own dtype.
    """
    if not isinstance(points, torch.Tensor):
        points = np.asarray(points, np.float64).reshape(-1, 2)
    warped = points @ H_0to1[..., :2].swapaxes(-1, -2) + H_0to1[..., None, :, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return warped[..., :2] / warped[..., 2:]


def unwarp_points(points: torch.Tensor, H_0to1: torch.Tensor) -> torch.Tensor:
    """Points (B, N, 2) of views 1 where views 0 show them, (B, N, 2) float32.

    Args:
        H_0to1: (B, 3, 3) float64.
    """
    return warp_points(points.double(), invert(H_0to1)).float()


def invert(H_0to1: torch.Tensor) -> torch.Tensor:
    """``H_1to0`` (B, 3, 3); unlike ``inv``, asks no GPU whether a matrix is singular."""
    return torch.linalg.inv_ex(H_0to1).inverse


def is_inside(points, size: tuple[int, int]):
    """Which of the points (..., 2) lie on an image or map of that (width, height), (...) bool.

    Arrays or tensors; what is not a number does not.
    """
    x, y = points[..., 0], points[..., 1]
    return (x > -0.5) & (y > -0.5) & (x < size[0] - 0.5) & (y < size[1] - 0.5)


@dataclass(frozen=True)
class Homographies:
    """Random views of a photograph, as of cameras that look at it from anywhere.

    A view's frame is a rectangle of the photograph, shrunk by ``scale``, its corners moved, turned
    and foreshortened; at last it gets its place. A camera that looks askance at a plane sees it
    foreshortened, most by ``tilt``, the absolute tilt of ASIFT (Morel and Yu, 2009); the area stays
    what ``scale`` says.

    Attributes:
        scale: range of a frame's sides, in those of the photograph.
        rotation: degrees either way.
        perspective: how far a corner moves, in the frame's sides.
        tilt: how much a frame is foreshortened at most, in any direction.
        inside: candidates that leave the photograph are drawn again, ever smaller, so that all of a
            view is of the photograph; close-ups become common and strong turns and tilts rare.
            Otherwise every frame keeps its form, and what has no room in the photograph leaves it.
    """

    scale: tuple[float, float] = (0.6, 0.9)
    rotation: float = 30.0
    perspective: float = 0.2
    tilt: float = 1.0
    inside: bool = True

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """``H_view_to_photo`` (3, 3) float64 of a view, whose size is that of the photograph.

        Args:
            size: (width, height) of the photograph.

        Raises:
            InputError: no view fits inside.
        """
        return place_frame(rng, self.draw_frame(rng, size), size)

    def draw_frame(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """The corners (4, 2) of a view in the photograph, around (0, 0): all but its place."""
        frame = frame_corners(size)
        for attempt in range(1000):
            shrink = 0.995**attempt
            corners = (frame - frame.mean(0)) * rng.uniform(*self.scale) * shrink
            moved = rng.uniform(-0.5, 0.5, (4, 2)) * self.perspective * np.abs(corners) * 2
            corners = corners + moved * shrink
            angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation)) * shrink
            cos, sin = np.cos(angle), np.sin(angle)
            corners = corners @ np.array([[cos, sin], [-sin, cos]])
            if self.tilt > 1:
                drawn = self.tilt ** rng.uniform(0, shrink)
                corners = corners @ _foreshortening(rng.uniform(0, np.pi), drawn)
            if not self.inside or (np.ptp(corners, axis=0) <= np.subtract(size, 1)).all():
                return corners
        raise InputError(
            f"no view fits into a photograph of {size[0]}x{size[1]} with {self}; lower one of them"
        )


def frame_corners(size: tuple[int, int]) -> np.ndarray:
    """The centers of the four outermost pixels of an image, clockwise, (4, 2) float64."""
    right, bottom = size[0] - 1, size[1] - 1
    return np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], np.float64)


def place_frame(rng: np.random.Generator, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``H_view_to_photo`` (3, 3) of a view whose frame gets a random place in a photograph.

    On each axis it lies inside the photograph where it has room, and else covers all of it.

    Args:
        corners: (4, 2) of the frame around (0, 0), in pixels of the photograph.
        size: (width, height) of the photograph and of the view.
    """
    corners = corners + frame_corners(size).mean(0)
    room = -corners.min(0), np.subtract(size, 1) - corners.max(0)
    corners = corners + rng.uniform(np.minimum(*room), np.maximum(*room))
    return _homography_from_points(frame_corners(size), corners)


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
        (B, N, C) samples, not normalized.
    """
    height, width = values.shape[-2:]
    doubled = 2 * geometry.to_map(points)
    # Of align_corners=True: -1 and 1 are outer centers. Plain numbers need no copy to a GPU.
    x, y = doubled[..., 0] / max(width - 1, 1) - 1, doubled[..., 1] / max(height - 1, 1) - 1
    grid = torch.stack([x, y], -1)
    samples = F.grid_sample(
        values, grid[:, None].to(values.dtype), "bilinear", padding, align_corners=True
    )
    return samples[:, :, 0].transpose(1, 2)


def average_map(values: torch.Tensor, border: int) -> torch.Tensor:
    """Per-pixel maps that lack ``border`` pixels at each side, averaged over cells of the image.

    Args:
        values: (B, C, h, w) float maps at ``MapGeometry(1, border)``.

    Returns:
        (B, C, h', w') at ``CELL_MAP``; the edge of ``values`` repeats over the border. Not
        normalized.
    """
    return F.avg_pool2d(F.pad(values, [border] * 4, mode="replicate"), CELL_MAP.stride)
