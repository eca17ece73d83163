"""Matches between the features of two images: nearest neighbors of descriptors, or LightGlue."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..data.features import Features
from ..errors import InputError
from ..networks.lightglue import LightGlueMatcher

__all__ = ["MATCHERS", "NEAREST", "Matcher", "match_both_ways", "match_mutual"]

BLOCK = 1024
"""Rows of a distance matrix that are in memory at a time."""


MATCHERS = {"nearest": "mutual nearest neighbors", "lightglue": "LightGlue's matches"}
"""Name -> what it finds, for the report."""


@dataclass(frozen=True)
class Matcher:
    """One of ``MATCHERS`` by its name, and the device on which LightGlue runs: small enough to be
    sent to another process."""

    name: str = "nearest"
    device: str = "auto"

    @property
    def finds(self) -> str:
        """What it finds, for the report."""
        return MATCHERS[self.name]

    def __call__(self, features0: Features, features1: Features) -> np.ndarray:
        """Matches (K, 2) intp, rows of both.

        Raises:
            InputError: no descriptors, or not alike, or not made for LightGlue; no kornia.
            NotFoundError: the weights of LightGlue are not there.
        """
        if self.name == "lightglue":
            return _lightglue(self.device).match(features0, features1)[0]
        if features0.descriptors is None or features1.descriptors is None:
            raise InputError(
                "matching needs descriptors in both views; the model gives no descriptors"
            )
        return match_mutual(features0.descriptors, features1.descriptors)


NEAREST = Matcher()


@lru_cache(maxsize=1)
def _lightglue(device: str) -> LightGlueMatcher:
    return LightGlueMatcher(device=device)


def match_both_ways(
    descriptors0: np.ndarray, descriptors1: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Nearest neighbors in both directions: L2 for real descriptors, Hamming for binary ones.

    Args:
        descriptors0, descriptors1: (N0, D) and (N1, D), both float or both bool, neither empty.

    Returns:
        ((indices0, ratios0), (indices1, ratios1)): for each row the nearest row of the other side,
        the first of equally near ones, and nearest over second nearest distance, 1 where the second
        is 0 or there is none.

    Raises:
        InputError: different widths or kinds.
    """
    _check_alike(descriptors0, descriptors1)
    binary = descriptors0.dtype == np.bool_
    # On bits the squared distance is Hamming's, and float32 counts them exactly.
    exact = np.float32 if binary else np.float64
    rows0, rows1 = descriptors0.astype(exact), descriptors1.astype(exact)
    norms0, norms1 = (np.einsum("nd,nd->n", rows, rows) for rows in (rows0, rows1))
    distances = (-2 * rows0) @ rows1.T
    distances += norms0[:, None]
    distances += norms1
    # In float64 equal distances differ by their rounding; float32 and the floor make them equal.
    distances = distances.astype(np.float32, copy=False)
    floor = 1e-13 * (norms0.max() + norms1.max())
    if distances.min() < floor:  # looking costs a fiftieth of writing
        np.copyto(distances, 0, where=distances < floor)
    if not binary:
        np.sqrt(distances, out=distances)
    opposite = np.ascontiguousarray(distances.T)
    return _two_nearest(distances), _two_nearest(opposite)


def match_mutual(descriptors0: np.ndarray, descriptors1: np.ndarray) -> np.ndarray:
    """Nearest neighbors that choose each other, in memory linear in the number of descriptors.

    Distances, arguments and errors are those of ``match_both_ways``; either may be empty.

    Returns:
        (K, 2) intp (row, column), rows ascending.
    """
    _check_alike(descriptors0, descriptors1)
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


def _check_alike(descriptors0: np.ndarray, descriptors1: np.ndarray) -> None:
    kinds = {descriptors0.dtype == np.bool_, descriptors1.dtype == np.bool_}
    if len(kinds) > 1 or descriptors0.shape[1] != descriptors1.shape[1]:
        raise InputError(
            f"cannot match {descriptors0.dtype} descriptors of width {descriptors0.shape[1]} with "
            f"{descriptors1.dtype} ones of width {descriptors1.shape[1]}; extract both views alike"
        )


def _two_nearest(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the smallest element of each row, which is overwritten, and its ratio to the
    second smallest."""
    rows = np.arange(len(distances))
    indices = distances.argmin(axis=1)
    nearest = distances[rows, indices]
    distances[rows, indices] = np.inf
    second = distances[rows, distances.argmin(axis=1)]
    ratios = np.ones(len(distances), np.float32)
    np.divide(nearest, second, out=ratios, where=(second > 0) & np.isfinite(second))
    return indices, ratios
