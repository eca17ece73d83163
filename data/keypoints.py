"""From a score map to keypoints: border, non-maximum suppression, the best of the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import PredictSettings, override

__all__ = [
    "KeypointChoice",
    "refine_keypoints",
    "select_keypoints",
    "suppress_non_maxima",
    "thin_keypoints",
]


def suppress_non_maxima(
    keypoints: np.ndarray,
    scores: np.ndarray,
    size: tuple[int, int],
    radius: int,
    *,
    limit: int | None = None,
) -> np.ndarray:
    """Greedy non-maximum suppression, as of SuperPoint (DeTone et al., CVPRW 2018) and HF-Net.

    From the highest score to the lowest, a keypoint that still stands removes all others in the
    square of ``2 * radius + 1`` pixels around it. Equal scores are taken in the order given.

    Args:
        keypoints: (N, 2) float or int (x, y), rounded here to whole pixels.
        scores: (N,) float.
        size: (width, height) of the image.
        radius: in pixels; 0 keeps one keypoint per pixel.
        limit: stop after so many; None keeps all that stand.

    Returns:
        (K,) intp, the rows that stay, by descending score.

    Raises:
        ValueError: a keypoint lies outside the image.
    """
    pixels = np.rint(keypoints).astype(np.intp).reshape(-1, 2)
    outside = ((pixels < 0) | (pixels >= np.array(size))).any(axis=1)
    if outside.any():
        found = keypoints[outside.argmax()].tolist()
        raise ValueError(f"keypoint {found} lies outside the image of {size[0]}x{size[1]} pixels")
    order = np.argsort(-scores, kind="stable")
    stride, side = size[0] + 2 * radius, 2 * radius + 1
    free = np.ones((size[1] + 2 * radius, stride), bool)  # a margin spares clipping the squares
    free_flat = memoryview(free).cast("B")  # one element of it is read faster than of the array
    x, y = pixels[order].T
    centres = (y + radius) * stride + x + radius
    kept = []
    for row, centre, left, top in zip(
        order.tolist(), centres.tolist(), x.tolist(), y.tolist(), strict=True
    ):
        if free_flat[centre]:
            free[top : top + side, left : left + side] = False
            kept.append(row)
            if len(kept) == limit:
                break
    return np.array(kept, np.intp)


def select_keypoints(
    score_map: np.ndarray,
    *,
    threshold: float,
    nms_radius: int,
    border: int,
    max_num_keypoints: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The keypoints of a score map: above the threshold, off the border, apart, the best.

    In the order of HF-Net's export: first the border, then suppression, then the best.

    Args:
        score_map: (H, W) float, one element per pixel.
        threshold: scores must be above it.
        nms_radius: see ``suppress_non_maxima``.
        border: so many outermost rows and columns hold no keypoint.
        max_num_keypoints: at most so many keypoints; None for all.

    Returns:
        keypoints (N, 2) float32 (x, y) pixels and scores (N,) float32, descending; equal scores row
        by row.
    """
    height, width = score_map.shape
    inner = score_map[border : height - border, border : width - border]
    y, x = np.divmod(np.flatnonzero(inner > threshold), max(inner.shape[1], 1))
    keypoints = np.stack([x, y], axis=1) + border
    scores = inner[y, x].astype(np.float32)
    kept = suppress_non_maxima(
        keypoints, scores, (width, height), nms_radius, limit=max_num_keypoints
    )
    return keypoints[kept].astype(np.float32), scores[kept]


def refine_keypoints(score_map: np.ndarray, keypoints: np.ndarray, radius: int) -> np.ndarray:
    """Move each keypoint to the centre of gravity of the scores around it, between pixels.

    Args:
        score_map: (H, W) float, not negative, one element per pixel.
        keypoints: (N, 2) float32 (x, y), whole pixels.
        radius: half the side of the square that counts; beyond the image nothing does.

    Returns:
        (N, 2) float32, moved by less than ``radius`` pixels.
    """
    padded = np.pad(score_map, radius)
    steps = np.arange(-radius, radius + 1)
    x, y = keypoints.astype(np.intp).T + radius
    weights = padded[y[:, None, None] + steps[:, None], x[:, None, None] + steps]
    weights = weights / np.maximum(weights.sum(axis=(1, 2), keepdims=True), 1e-12)
    moves = np.stack([weights.sum(axis=1) @ steps, weights.sum(axis=2) @ steps], axis=1)
    return keypoints + moves.astype(np.float32)


@dataclass(frozen=True)
class KeypointChoice:
    """How keypoints are chosen from score maps: see ``select_keypoints``.

    Attributes:
        refine_radius: see ``refine_keypoints``; 0 leaves keypoints at whole pixels, None is what
            suits the network.
        rank_radius: half the side of the square whose summed scores rank keypoints; 0 ranks them by
            the score of one pixel, None is what suits the network.
    """

    threshold: float
    nms_radius: int
    border: int
    max_num_keypoints: int
    refine_radius: int | None = 0
    rank_radius: int | None = 0

    @classmethod
    def of(cls, settings: PredictSettings, max_num_keypoints: int, **options) -> "KeypointChoice":
        """What [predict] says, with some of its keys replaced.

        Raises:
            InputError: an option that is no key of [predict], or that it does not take.
        """
        told = override(settings, **options).model_dump(exclude={"precision"})
        return cls(max_num_keypoints=max_num_keypoints, **told)

    @classmethod
    def of_store(cls, settings: Mapping[str, float]) -> "KeypointChoice":
        """The choice that a store's keypoints were made with, by the names in its schema."""
        names = "threshold", "nms_radius", "border", "top_k", "refine_radius", "rank_radius"
        return cls(*(settings.get(name, 0) for name in names))

    def __call__(self, score_maps: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The keypoints (N, 2) and scores (N,) of each of the score maps (B, H, W)."""
        chosen = [self._choose(score_map) for score_map in score_maps.cpu().numpy()]
        return [(torch.from_numpy(points), torch.from_numpy(scores)) for points, scores in chosen]

    def _choose(self, score_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keypoints, scores = select_keypoints(
            score_map,
            threshold=self.threshold,
            nms_radius=self.nms_radius,
            border=self.border,
            max_num_keypoints=self.max_num_keypoints,
        )
        if self.refine_radius:
            keypoints = refine_keypoints(score_map, keypoints, self.refine_radius)
        return keypoints, scores


def thin_keypoints(
    keypoints: np.ndarray, scores: np.ndarray, size: tuple[int, int], choice: KeypointChoice
) -> np.ndarray:
    """What ``select_keypoints`` would keep of keypoints found by other means.

    Args:
        keypoints: (N, 2) float (x, y), whole pixels or between them, inside the image.
        scores: (N,) float.
        size: (width, height) of the image.

    Returns:
        (K,) intp, the rows that stay, by descending score.
    """
    pixels = np.rint(keypoints).reshape(-1, 2)
    low, high = choice.border, np.array(size) - choice.border
    inside = ((pixels >= low) & (pixels < high)).all(axis=1) & (scores > choice.threshold)
    rows = np.flatnonzero(inside)
    kept = suppress_non_maxima(
        pixels[rows], scores[rows], size, choice.nms_radius, limit=choice.max_num_keypoints
    )
    return rows[kept]
