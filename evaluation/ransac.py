"""OpenCV's RANSAC homography, by OpenCV or by its faster replay; both give the same bits."""

import functools
from collections.abc import Callable

import cv2
import numpy as np

__all__ = ["THRESHOLD", "find_homography"]

THRESHOLD = 3.0
"""In pixels, of inliers."""


def find_homography(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """``cv2.findHomography(points0, points1, cv2.RANSAC, 3.0)[0]``, bit for bit.

    Args:
        points0, points1: (N, 2) float32, pixels; row i of one is matched with row i of the other.

    Returns:
        H_0to1 (3, 3) float64, or None where there is none, as for fewer than four matches.
    """
    replay = _find_replay()
    H_0to1 = None if replay is None else replay(points0, points1)
    return ask_opencv(points0, points1) if H_0to1 is None else H_0to1


def ask_opencv(points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """``find_homography`` by OpenCV itself."""
    if len(points0) < 4:
        return None
    cv2.setRNGSeed(0)
    return cv2.findHomography(points0, points1, cv2.RANSAC, THRESHOLD)[0]


@functools.cache
def _find_replay() -> Callable | None:
    """The replay, where Numba is installed (``pip install hfnet-distill[fast]``)."""
    try:
        from .replay import replay, replays_this_opencv
    except ImportError:
        return None
    return replay if replays_this_opencv() else None
