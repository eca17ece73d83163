"""The losses, one function each, one value per image: HF-Net's (Sarlin et al., CVPR 2019), and one
between two views."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.geometry import CELL_MAP, sample_map
from .views import is_inside, warp

__all__ = [
    "UncertaintyWeights",
    "correspondence_loss",
    "descriptor_loss",
    "detector_loss",
    "global_descriptor_loss",
    "keypoint_loss",
    "localization_loss",
    "weighted_mean",
]

SAME = 4
"""Pixels. Suppression leaves no two keypoints nearer to each other."""
KEYPOINTS, LEAST = 100, 0.005
"""So many of a view's keypoints have their places compared, and what their scores are above."""


def descriptor_loss(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Half the squared distance of a position's descriptors, mean over positions.

    Args:
        predicted, target: (B, D, ...) of unit length along D.
        mask: (B, ...) bool, other positions do not count; or float, how much each one does.

    Returns:
        (B,), 0 to 2: one minus their cosine.
    """
    return _mean((predicted - target).square().sum(1) / 2, mask)


def detector_loss(score_logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of each cell's distribution against the teacher's, mean over cells.

    Args:
        score_logits: (B, 65, h, w).
        target: (B, 65, h, w), a distribution over each cell's pixels and "no keypoint".
        mask: (B, h, w) bool; other cells do not count.

    Returns:
        (B,).
    """
    return _mean(-(target * score_logits.log_softmax(1)).sum(1), mask)


def keypoint_loss(score_logits: Tensor, keypoint_map: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of each cell's distribution against one keypoint in it, or none.

    Args:
        score_logits: (B, 65, h, w).
        keypoint_map: (B, 8h, 8w) bool; of several in a cell the first, row by row, counts.
        mask: (B, h, w) bool; other cells do not count.

    Returns:
        (B,).
    """
    cells = F.pixel_unshuffle(keypoint_map[:, None].float(), 8)
    nothing = torch.full_like(cells[:, :1], 0.5)  # wins where no pixel has a keypoint
    labels = torch.cat([cells, nothing], 1).argmax(1)
    return _mean(F.cross_entropy(score_logits, labels, reduction="none"), mask)


def correspondence_loss(
    descriptor_maps: tuple[Tensor, Tensor],
    points: Tensor,
    weights: Tensor,
    H_0to1: Tensor,
    *,
    temperature: float = 0.05,
) -> Tensor:
    """How surely a point of view 0 is told from all others of view 1, and the other way round.

    InfoNCE (van den Oord et al., 2018) over the similarities of descriptors at points of view 0
    and where they are in view 1. Points less than ``SAME`` pixels apart need not be told apart.

    Args:
        descriptor_maps: of views 0 and 1, (B, D, h, w) each, of unit length along D.
        points: (B, N, 2) float64, in pixels of view 0.
        weights: (B, N), how much each of them counts.
        H_0to1: (B, 3, 3) float64.

    Returns:
        (B,), 0 where the views share nothing.
    """
    height, width = (8 * side for side in descriptor_maps[1].shape[2:])
    places = points.float(), warp(points, H_0to1).float()
    seen = is_inside(places[1], (width, height))
    descriptors = [
        F.normalize(sample_map(maps, at, CELL_MAP), dim=2)
        for maps, at in zip(descriptor_maps, places, strict=True)
    ]
    similarity = descriptors[0] @ descriptors[1].mT / temperature
    same = torch.cdist(places[0], places[0]) < SAME
    same.diagonal(dim1=1, dim2=2).fill_(False)
    ignored = same | ~(seen[:, :, None] & seen[:, None, :])
    similarity = similarity.masked_fill(ignored, -1e4)
    right = similarity.diagonal(dim1=1, dim2=2)
    surprise = (similarity.logsumexp(1) + similarity.logsumexp(2)) / 2 - right
    return _mean(surprise, weights * seen)


def localization_loss(score_logits: tuple[Tensor, Tensor], H_0to1: Tensor) -> Tensor:
    """How far apart two views see the same keypoint, mean over keypoints.

    A keypoint is the highest score within ``SAME`` pixels, at the centre of gravity of the scores
    there (see ``data.keypoints.refine_keypoints``); two are the same where each is the nearest to
    the other and at most ``SAME`` pixels away.

    Args:
        score_logits: of views 0 and 1, (B, 65, h, w) each.
        H_0to1: (B, 3, 3) float64.

    Returns:
        (B,), in pixels of view 0 and of view 1, their mean; 0 where nothing is seen twice.
    """
    (points0, found0), (points1, found1) = (
        _best_keypoints(_pixel_scores(logits.float())) for logits in score_logits
    )
    offsets1 = warp(points0, H_0to1)[:, :, None] - points1[:, None]
    offsets0 = points0[:, :, None] - warp(points1, torch.linalg.inv(H_0to1))[:, None]
    apart = (offsets1.square().sum(3) + 1e-6).sqrt()
    nearest = (apart == apart.amin(1, keepdim=True)) & (apart == apart.amin(2, keepdim=True))
    apart_in_0 = (offsets0.square().sum(3) + 1e-6).sqrt()
    same = nearest & (apart < SAME) & found0[:, :, None] & found1[:, None]
    return _mean((apart + apart_in_0).float() / 2, same)


def _pixel_scores(score_logits: Tensor) -> Tensor:
    """Score logits (B, 65, h, w) -> the probability of each pixel (B, 8h, 8w)."""
    return F.pixel_shuffle(score_logits.softmax(1)[:, :64], 8)[:, 0]


def _best_keypoints(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best of score maps (B, H, W): (B, K, 2) float64 between pixels, (B, K) bool if any."""
    width, side = scores.shape[2], 2 * SAME + 1
    with torch.no_grad():
        # Along rows, then along columns: a third of the time of the square at once.
        of_rows = F.max_pool2d(scores[:, None], (1, side), 1, (0, SAME))
        is_highest = scores == F.max_pool2d(of_rows, (side, 1), 1, (SAME, 0))[:, 0]
        highest = (scores * is_highest).flatten(1)
        best, pixels = highest.topk(min(KEYPOINTS, highest.shape[1]))
        x, y = pixels % width, pixels // width
        steps = torch.arange(side, device=scores.device)
        padded_width = width + 2 * SAME
        square = (steps[:, None] * padded_width + steps).flatten()
        around = (y * padded_width + x)[:, :, None] + square
    weights = F.pad(scores, [SAME] * 4).flatten(1).gather(1, around.flatten(1))
    weights = weights.view(*pixels.shape, side, side)
    weights = weights / weights.sum((2, 3), keepdim=True).clamp(min=1e-12)
    moves = torch.stack([(weights.sum(dim) * (steps - SAME)).sum(2) for dim in (2, 3)], 2)
    return (torch.stack([x, y], 2) + moves).double(), best > LEAST


def global_descriptor_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance of global descriptors (B, G) of unit length; (B,), 0 to 2."""
    return (predicted - target).square().sum(1) / 2


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(B, ...) -> (B,), over the positions in the mask."""
    if mask is None:
        return values.flatten(1).mean(1)
    mask = mask.to(values.dtype)
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-6)


def weighted_mean(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Scalar losses by name -> their mean under fixed weights by name."""
    return sum(weights[name] * loss for name, loss in losses.items()) / sum(weights.values())


class UncertaintyWeights(nn.Module):
    """Loss weights learned with the network: Kendall, Gal, Cipolla, CVPR 2018.

    Each loss L has a learned w, 1 at the start, and adds ``exp(-w) * L + w``; the detector's, a
    classification, adds twice its share of L, as in HF-Net.
    """

    def __init__(self, names: list[str]):
        super().__init__()
        self.names = names
        self.log_variances = nn.Parameter(torch.ones(len(names)))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Scalar losses by name -> their sum."""
        return sum(
            (2.0 if name == "detector" else 1.0) * (-w).exp() * losses[name] + w
            for name, w in zip(self.names, self.log_variances, strict=True)
        )
