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
        matches, correct: (K, 2) rows of the two, and (K,) bool.

    Returns:
        (H, W, 3) uint8.
    """
    canvas, width0 = _side_by_side([image0, image1])
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
    image: np.ndarray, keypoints: Sequence[np.ndarray], correct: Sequence[np.ndarray]
) -> np.ndarray:
    """An image (H, W) uint8 with one or two sets of keypoints, side by side: correct ones green,
    others yellow.

    Args:
        keypoints, correct: of each set (N, 2) float (x, y), and (N,) bool.

    Returns:
        (H, W, 3) uint8.
    """
    canvas, width0 = _side_by_side([image] * len(keypoints))
    for number, (points, is_correct) in enumerate(zip(keypoints, correct, strict=True)):
        points = points + np.array([number * width0, 0], np.float32)
        _draw_points(canvas, points[~is_correct], PLAIN, len(points) > MANY)
        _draw_points(canvas, points[is_correct], CORRECT, len(points) > MANY)
    return canvas


def _side_by_side(images: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """One or two gray images on a color canvas (H, W, 3), and where the second one begins."""
    height = max(map(len, images))
    padded = [
        np.pad(image, ((0, height - len(image)), (0, 0)), constant_values=255) for image in images
    ]
    return cv2.cvtColor(np.hstack(padded), cv2.COLOR_GRAY2RGB), images[0].shape[1]


def _fixed(point: np.ndarray) -> tuple[int, int]:
    return tuple(int(v) for v in np.rint(point * 2**SHIFT))


def _draw_points(canvas: np.ndarray, points: np.ndarray, color, as_dots: bool) -> None:
    radius, thickness = (1, cv2.FILLED) if as_dots else (3, 1)
    for point in points:
        cv2.circle(canvas, _fixed(point), radius << SHIFT, color, thickness, cv2.LINE_AA, SHIFT)
