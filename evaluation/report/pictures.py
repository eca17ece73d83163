"""The report's pictures: matches and keypoints drawn into images."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["CORRECT", "WRONG", "Drawing", "draw_keypoints", "draw_matches"]

CORRECT, WRONG, PLAIN = (60, 190, 60), (220, 60, 50), (240, 200, 40)  # red, green, blue
MANY = 1000
"""Beyond so many keypoints they are drawn as dots."""
MAX_LINES = 200
SHIFT = 4
"""OpenCV draws in sixteenths of a pixel."""


@dataclass(frozen=True)
class Drawing:
    """One picture of the report: ``caption`` and an (H, W, 3) uint8 image."""

    title: str
    model: str
    caption: str
    image: np.ndarray


def draw_matches(
    image0: np.ndarray,
    image1: np.ndarray,
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    matches: np.ndarray,
    correct: np.ndarray,
) -> np.ndarray:
    """Two gray views side by side with matches between them: green correct, red wrong.

    Keypoints without a match are yellow. Of more than ``MAX_LINES`` matches so many are drawn, at
    even steps, correct ones on top.

    Args:
        image0, image1: (H, W) uint8.
        keypoints0, keypoints1: (N, 2) and (M, 2) float, (x, y).
        matches: (K, 2) rows of the two.
        correct: (K,) bool.

    Returns:
        (H, W, 3) uint8.
    """
    canvas, width0 = _side_by_side(image0, image1)
    keypoints1 = keypoints1 + np.array([width0, 0], np.float32)
    for keypoints in (keypoints0, keypoints1):
        _draw_points(canvas, keypoints, PLAIN, len(keypoints0) > MANY)
    shown = np.linspace(0, len(matches) - 1, min(len(matches), MAX_LINES)).round().astype(int)
    shown = shown[np.argsort(correct[shown], kind="stable")]
    for (row0, row1), is_correct in zip(matches[shown], correct[shown], strict=True):
        color = CORRECT if is_correct else WRONG
        ends = np.stack([keypoints0[row0], keypoints1[row1]])
        cv2.line(canvas, *map(_fixed, ends), color, 1, cv2.LINE_AA, SHIFT)
        _draw_points(canvas, ends, color, False)
    return canvas


def draw_keypoints(
    images: Sequence[np.ndarray], keypoints: Sequence[np.ndarray], correct: Sequence[np.ndarray]
) -> np.ndarray:
    """One or two gray images side by side with their keypoints: correct ones green, others yellow.

    Args:
        images: (H, W) uint8 each.
        keypoints: (N, 2) float (x, y) of each.
        correct: (N,) bool of each.

    Returns:
        (H, W, 3) uint8.
    """
    canvas, width0 = _side_by_side(*images)
    for number, (points, is_correct) in enumerate(zip(keypoints, correct, strict=True)):
        points = points + np.array([number * width0, 0], np.float32)
        _draw_points(canvas, points[~is_correct], PLAIN, len(points) > MANY)
        _draw_points(canvas, points[is_correct], CORRECT, len(points) > MANY)
    return canvas


def _side_by_side(image0: np.ndarray, image1: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """A color canvas (H, W, 3) with the images on it, and where the second one begins."""
    images = [image0] if image1 is None else [image0, image1]
    height, width0 = max(len(image) for image in images), image0.shape[1]
    canvas = np.full((height, sum(image.shape[1] for image in images), 3), 255, np.uint8)
    for image, left in zip(images, (0, width0), strict=False):
        canvas[: len(image), left : left + image.shape[1]] = image[..., None]
    return canvas, width0


def _fixed(point: np.ndarray) -> tuple[int, int]:
    return tuple(int(v) for v in np.rint(point * 2**SHIFT))


def _draw_points(canvas: np.ndarray, points: np.ndarray, color, as_dots: bool) -> None:
    radius, thickness = (1, cv2.FILLED) if as_dots else (3, 1)
    for point in points:
        cv2.circle(canvas, _fixed(point), radius << SHIFT, color, thickness, cv2.LINE_AA, SHIFT)
