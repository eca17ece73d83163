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
    "match_mutual",
    "match_nearest",
]

BLOCK = 1024
"""Rows of a distance matrix that are in memory at a time."""


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


def match_mutual(descriptors0: np.ndarray, descriptors1: np.ndarray) -> np.ndarray:
    """Nearest neighbours that choose each other, in memory linear in the number of descriptors.

    The nearest is that of the smallest L2 distance, or Hamming distance between binary ones; the
    first of equally near ones.

    Args:
        descriptors0, descriptors1: (N, D) and (M, D), both float or both bool.

    Returns:
        (K, 2) intp (row, column), rows ascending.

    Raises:
        ValueError: different widths or kinds.
    """
    kinds = {descriptors0.dtype == np.bool_, descriptors1.dtype == np.bool_}
    if len(kinds) > 1 or descriptors0.shape[1] != descriptors1.shape[1]:
        raise ValueError(
            f"cannot match {descriptors0.dtype} descriptors of width {descriptors0.shape[1]} with "
            f"{descriptors1.dtype} ones of width {descriptors1.shape[1]}; extract both views alike"
        )
    if not len(descriptors0) or not len(descriptors1):
        return np.zeros((0, 2), np.intp)
    # On bits the squared L2 distance is Hamming's, and float32 counts them exactly.
    descriptors0 = descriptors0.astype(np.float32, copy=False)
    descriptors1 = descriptors1.astype(np.float32, copy=False)
    half0, half1 = ((d * d).sum(1) / 2 for d in (descriptors0, descriptors1))
    to1 = np.empty(len(descriptors0), np.intp)
    to0, best0 = np.zeros(len(descriptors1), np.intp), np.full(len(descriptors1), -np.inf)
    for start in range(0, len(descriptors0), BLOCK):
        rows = slice(start, start + BLOCK)
        # Half the squared distance is half0 + half1 - product; in a row half0 does not matter.
        products = descriptors0[rows] @ descriptors1.T
        to1[rows] = (products - half1).argmax(1)
        products -= half0[rows, None]
        nearest = products.argmax(0)
        value = products[nearest, np.arange(len(descriptors1))]
        better = value > best0
        to0[better], best0[better] = nearest[better] + start, value[better]
    mutual = to0[to1] == np.arange(len(descriptors0))
    return np.stack([np.flatnonzero(mutual), to1[mutual]], axis=1)


def _unit(descriptors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors / np.maximum(lengths, 1e-12)


def _softmax(values: np.ndarray, axis: int) -> np.ndarray:
    exp = np.exp(values - values.max(axis, keepdims=True))
    return exp / exp.sum(axis, keepdims=True)
