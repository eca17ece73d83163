"""Matches between the descriptors of two images: nearest neighbours that choose each other.

The distances and tests of SiLK's evaluation (Gleize et al., ICCV 2023): the dot product or the
cosine, the ratio test, and the double softmax in place of either.
"""

import numpy as np

__all__ = [
    "cosine_distances",
    "dot_distances",
    "double_softmax_distances",
    "euclidean_distances",
    "match_nearest",
]


def dot_distances(descriptors0: np.ndarray, descriptors1: np.ndarray) -> np.ndarray:
    """One minus the dot product of each descriptor (N, D) with each of (M, D); (N, M)."""
    return 1 - descriptors0 @ descriptors1.T


def cosine_distances(descriptors0: np.ndarray, descriptors1: np.ndarray) -> np.ndarray:
    """One minus the cosine of the angle between descriptors (N, D) and (M, D); (N, M)."""
    return dot_distances(_unit(descriptors0), _unit(descriptors1))


def euclidean_distances(descriptors0: np.ndarray, descriptors1: np.ndarray) -> np.ndarray:
    """Lengths of the differences of descriptors (N, D) and (M, D); (N, M)."""
    squared0, squared1 = ((d * d).sum(1) for d in (descriptors0, descriptors1))
    squared = squared0[:, None] + squared1 - 2 * (descriptors0 @ descriptors1.T)
    return np.sqrt(np.maximum(squared, 0))


def double_softmax_distances(
    descriptors0: np.ndarray, descriptors1: np.ndarray, *, temperature: float
) -> np.ndarray:
    """One minus the probability that two descriptors choose each other, as of LoFTR; (N, M).

    Args:
        descriptors0, descriptors1: (N, D) and (M, D), of any length: SiLK's own have length 1.41.
        temperature: divides the dot products; SiLK's is 0.1.
    """
    similarities = descriptors0 @ descriptors1.T / temperature
    return 1 - _softmax(similarities, 0) * _softmax(similarities, 1)


def match_nearest(
    distances: np.ndarray,
    *,
    mutual: bool = True,
    max_ratio: float = 1.0,
    max_distance: float = np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """Match each row with the nearest column.

    Args:
        distances: (N, M), at least one column where there are rows.
        mutual: keep a match only if the row is also nearest to the column.
        max_ratio: keep a match only if its distance, divided by that of the row's second nearest
            column, is below this; 1 keeps all.
        max_distance: keep a match only below this distance.

    Returns:
        matches (K, 2) intp (row, column), rows ascending, and their distances (K,). After a ratio
        test these are still distances; SiLK's own code returns infinities.
    """
    if 0 in distances.shape:
        return np.zeros((0, 2), np.intp), np.zeros(0, distances.dtype)
    rows, nearest = np.arange(len(distances)), distances.argmin(1)
    best = distances[rows, nearest]
    keep = best < max_distance
    if mutual:
        keep &= distances.argmin(0)[nearest] == rows
    if max_ratio < 1 and distances.shape[1] > 1:
        second = np.partition(distances, 1, axis=1)[:, 1]
        keep &= best < max_ratio * second
    return np.stack([rows, nearest], axis=1)[keep], best[keep]


def _unit(descriptors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors / np.maximum(lengths, 1e-12)


def _softmax(values: np.ndarray, axis: int) -> np.ndarray:
    exp = np.exp(values - values.max(axis, keepdims=True))
    return exp / exp.sum(axis, keepdims=True)
