"""The losses of HF-Net (Sarlin et al., CVPR 2019), one function each, one value per image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "UncertaintyWeights",
    "descriptor_loss",
    "detector_loss",
    "global_descriptor_loss",
    "keypoint_loss",
    "weighted_mean",
]


def descriptor_loss(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Half the squared distance of a position's descriptors, mean over positions.

    Args:
        predicted, target: (B, D, h, w) of unit length along D.
        mask: (B, h, w) bool; other positions do not count.

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


def global_descriptor_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance of global descriptors (B, G) of unit length; (B,), 0 to 2."""
    return (predicted - target).square().sum(1) / 2


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(B, h, w) -> (B,), over the positions in the mask."""
    if mask is None:
        return values.mean((1, 2))
    mask = mask.to(values.dtype)
    return (values * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1e-6)


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
