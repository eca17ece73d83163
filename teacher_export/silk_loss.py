"""SiLK's self-supervised losses, in memory linear in the number of positions.

Gleize, Wang, Feiszli: SiLK: Simple Learned Keypoints, ICCV 2023. Every position of view 0 is
compared with every position of view 1: 21316 x 21316 similarities on SiLK's own 146 x 146 grid.
They are made block by block, reduced at once to what the losses need, and made again in the
backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.geometry import MapGeometry, warp_points

__all__ = [
    "MAX_SIMILARITY",
    "PairLosses",
    "homography_correspondences",
    "match_rates",
    "mutual_correspondences",
    "nearest_positions",
    "pair_losses",
]

MAX_SIMILARITY = 60.0
"""Exponentials of up to this, summed over a map, stay within float32; of its negative, too."""


class PairLosses(NamedTuple):
    """What ``pair_losses`` says about a pair of views with N positions in view 0.

    Attributes:
        descriptor: scalar, minus the mean log probability of the correct match, summed over both
            directions.
        keypoint: scalar, binary cross-entropy of the scores of positions with a correspondence
            against "matched with it", mean of both views.
        matches: (N,) int64, the most similar position of view 1 where the two choose each
            other, else -1.
    """

    descriptor: Tensor
    keypoint: Tensor
    matches: Tensor


def pair_losses(
    descriptors0: Tensor,
    descriptors1: Tensor,
    score_logits0: Tensor,
    score_logits1: Tensor,
    correspondences: Tensor,
    *,
    temperature: float,
    block_size: int = 256,
    bfloat16: bool = False,
) -> PairLosses:
    """The descriptor and keypoint losses of SiLK, and the matches that they are about.

    Args:
        descriptors0: (N, D) float32 at the positions of view 0.
        descriptors1: (M, D) likewise of view 1.
        score_logits0, score_logits1: (N,) and (M,).
        correspondences: (N,) int64, mutual: the position in view 1 of each of view 0, or -1.
        temperature: divides the similarities, which must not exceed ``MAX_SIMILARITY`` then; SiLK's
            0.1 goes with descriptors of length 1.41.
        block_size: rows of similarities made at a time; changes memory and speed, not the result.
        bfloat16: multiply in bfloat16, where the device can, and add in float32.

    Returns:
        see ``PairLosses``; a pair without correspondences has losses of 0.
    """
    descriptors0 = descriptors0 / temperature
    log_sums0, log_sums1, matches = _Compare.apply(descriptors0, descriptors1, block_size, bfloat16)
    # All positions are kept, for a GPU would be asked how many are visible.
    visible, other = correspondences >= 0, correspondences.clamp(min=0)
    count = visible.sum().clamp(min=1)
    similarities = (descriptors0 * descriptors1.index_select(0, other)).sum(1)
    log_sums = log_sums0 + log_sums1.index_select(0, other)
    descriptor = (visible * (log_sums - 2 * similarities)).sum() / count

    correct = (matches == correspondences).to(score_logits0.dtype)
    keypoint = sum(
        (visible * F.binary_cross_entropy_with_logits(logits, correct, reduction="none")).sum()
        for logits in (score_logits0, score_logits1.index_select(0, other))
    )
    return PairLosses(descriptor, keypoint / (2 * count), matches)


def match_rates(
    matches: Tensor, correspondences: Tensor, score_logits0: Tensor
) -> dict[str, Tensor]:
    """Shares that say how well a pair is matched, all scalars from 0 to 1.

    Args:
        matches, correspondences, score_logits0: (N,), as ``pair_losses`` gives and takes them.

    Returns:
        ``precision`` and ``recall`` as SiLK reports them, of being matched at all: the share of
        matched positions that have a correspondence, and of positions with a correspondence that
        are matched. ``round_trip``: the share of positions with a correspondence that are matched
        with it. ``match_precision``: the share of matches between such positions that are correct.
        ``detector_precision`` and ``detector_recall``: of "score logit above 0" for "matched with
        its correspondence", among positions that have one.
    """
    visible, matched, found = correspondences >= 0, matches >= 0, score_logits0 > 0
    correct = matched & (matches == correspondences)

    def share(part: Tensor, of: Tensor) -> Tensor:
        return (part & of).sum() / of.sum().clamp(min=1)

    return {
        "precision": share(visible, matched),
        "recall": share(matched, visible),
        "round_trip": share(correct, visible),
        "match_precision": share(correct, matched & visible),
        "detector_precision": share(correct, found & visible),
        "detector_recall": share(found, correct),
    }


class _Compare(torch.autograd.Function):
    """Log-sum-exp of the similarities of two sets of descriptors, and their mutual best matches."""

    @staticmethod
    def forward(ctx, descriptors0, descriptors1, block_size, bfloat16):
        sums0, best0, indices0 = [], [], []
        sums1 = descriptors1.new_zeros(len(descriptors1))
        best1 = descriptors1.new_full((len(descriptors1),), -torch.inf)
        with _matmul(bfloat16):
            for _, block in _similarities(descriptors0, descriptors1, block_size):
                best, indices = block.max(1)
                best0.append(best)
                indices0.append(indices)
                torch.maximum(best1, block.amax(0), out=best1)
                block.exp_()
                sums0.append(block.sum(1))
                sums1 += block.sum(0)
        sums0 = torch.cat(sums0)
        matches = _mutual(torch.cat(best0), torch.cat(indices0), best1)
        ctx.save_for_backward(descriptors0, descriptors1, sums0, sums1)
        ctx.how = block_size, bfloat16
        ctx.mark_non_differentiable(matches)
        return sums0.log(), sums1.log(), matches

    @staticmethod
    def backward(ctx, grad0, grad1, _):
        descriptors0, descriptors1, sums0, sums1 = ctx.saved_tensors
        block_size, bfloat16 = ctx.how
        weights0, weights1 = grad0 / sums0, grad1 / sums1
        grad_descriptors0 = torch.empty_like(descriptors0)
        grad_descriptors1 = torch.zeros_like(descriptors1)
        buffer = descriptors0.new_empty(min(block_size, len(descriptors0)), len(descriptors1))
        with _matmul(bfloat16):
            for span, block in _similarities(descriptors0, descriptors1, block_size):
                weights = torch.add(weights0[span, None], weights1, out=buffer[: len(block)])
                block.exp_().mul_(weights)
                torch.mm(block, descriptors1, out=grad_descriptors0[span])
                grad_descriptors1.addmm_(block.T, descriptors0[span])
        return grad_descriptors0, grad_descriptors1, None, None


def _similarities(
    descriptors0: Tensor, descriptors1: Tensor, block_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the similarity matrix, some at a time; every block lies in the same memory."""
    # Fresh memory for each block would cost more, in page faults, than what is computed in it.
    buffer = descriptors0.new_empty(min(block_size, len(descriptors0)), len(descriptors1))
    for start in range(0, len(descriptors0), block_size):
        span = slice(start, min(start + block_size, len(descriptors0)))
        block = buffer[: span.stop - start]
        yield span, torch.mm(descriptors0[span], descriptors1.T, out=block)


def _mutual(best0: Tensor, indices0: Tensor, best1: Tensor) -> Tensor:
    """For each row its best column if it is that column's best row too, else -1; (N,) int64.

    Of rows that share their best column, which is as similar to each, the first is matched:
    in flat parts of a photograph many positions have the very same descriptor.
    """
    rows = torch.arange(len(best0), device=best0.device)
    mutual = best0 == best1[indices0]
    first = rows.new_full((len(best1),), len(rows))
    first.scatter_reduce_(0, indices0, torch.where(mutual, rows, len(rows)), "amin")
    return torch.where(mutual & (first[indices0] == rows), indices0, -1)


@contextmanager
def _matmul(bfloat16: bool) -> Iterator[None]:
    """Within it float32 matrices may be multiplied in bfloat16 (TF32 on a GPU) if asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if bfloat16 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def homography_correspondences(
    H_0to1: np.ndarray, geometry: MapGeometry, shape: tuple[int, int]
) -> np.ndarray:
    """Which position of view 1's map shows what each of view 0's map shows.

    Args:
        H_0to1: (3, 3), between the pixels of the views.
        geometry: of both maps.
        shape: (height, width) of both maps.

    Returns:
        (height * width,) int64, row by row: the position in view 1, row by row, or -1; mutual.
    """
    rows, columns = np.indices(shape)
    image_xy = geometry.to_image(np.stack([columns.ravel(), rows.ravel()], axis=1))
    forward, backward = (
        nearest_positions(geometry.to_map(warp_points(image_xy, H)), shape)
        for H in (H_0to1, np.linalg.inv(H_0to1))
    )
    return mutual_correspondences(forward, backward)


def nearest_positions(map_xy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The element of a map of ``shape`` in which each (x, y) of (N, 2) lies; (N,) int64, -1 none.

    Elements are counted row by row; (0, 0) is the center of the first.
    """
    height, width = shape
    with np.errstate(invalid="ignore"):
        x, y = np.floor(np.asarray(map_xy).T + 0.5)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside, np.where(inside, y, 0) * width + np.where(inside, x, 0), -1).astype(
        np.int64
    )


def mutual_correspondences(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """(N,) and (M,) positions of each other's view -> (N,), -1 where the way back differs."""
    rows = np.arange(len(forward))
    return np.where((forward >= 0) & (backward[forward] == rows), forward, -1)
