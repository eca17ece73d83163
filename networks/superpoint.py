"""SuperPoint v1: the network, which loads the official weights.

DeTone, Malisiewicz, Rabinovich: SuperPoint: Self-Supervised Interest Point Detection and
Description, CVPRW 2018. The layer names are those of the official state dict.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from ..data.cells import CHANNELS
from .base import DenseMaps, Network
from .registry import register
from .weights import OfficialWeights

__all__ = ["SuperPoint"]

# Every stage of the encoder except the last ends in a 2x2 max pooling.
ENCODER = {"1": (1, 64), "2": (64, 64), "3": (64, 128), "4": (128, 128)}


@register("superpoint")
class SuperPoint(Network):
    """Gray image -> the distribution of keypoints over each 8x8 cell, and a descriptor map."""

    descriptor_dim = 256
    official = OfficialWeights(
        model="SuperPoint",
        file="superpoint_v1.pth",
        url="https://github.com/magicleap/SuperPointPretrainedNetwork/raw/master/superpoint_v1.pth",
        digest="git:107a444ca318d487390137d619d49f2f0a3b1ad8",
        license="Magic Leap, academic or non-profit non-commercial research only",
    )

    def __init__(self):
        super().__init__()
        for stage, (before, after) in ENCODER.items():
            self.add_module(f"conv{stage}a", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"conv{stage}b", nn.Conv2d(after, after, 3, padding=1))
        self.convPa = nn.Conv2d(128, 256, 3, padding=1)
        self.convPb = nn.Conv2d(256, CHANNELS, 1)
        self.convDa = nn.Conv2d(128, 256, 3, padding=1)
        self.convDb = nn.Conv2d(256, 256, 1)

    def maps(self, images: Tensor) -> DenseMaps:
        logits, descriptor_map = self.run(images)
        size = (images.shape[3], images.shape[2])
        return DenseMaps(size, self.cell_distribution(logits), descriptor_map=descriptor_map)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score logits and descriptor map of a batch.

        Args:
            image: (B, 1, H, W) float32 in [0, 1]; rows and columns beyond a multiple of 8 at the
                bottom and right belong to no cell (pooling rounds down).

        Returns:
            score logits (B, 65, H//8, W//8) and descriptor map (B, 256, H//8, W//8) of unit
            length, both at ``CELL_MAP``.
        """
        x = image
        for stage in ENCODER:
            x = F.relu(getattr(self, f"conv{stage}a")(x))
            x = F.relu(getattr(self, f"conv{stage}b")(x))
            if stage != "4":
                x = F.max_pool2d(x, 2)
        logits = self.convPb(F.relu(self.convPa(x)))
        descriptors = self.convDb(F.relu(self.convDa(x)))
        return logits.float(), F.normalize(descriptors.float(), dim=1)

    @staticmethod
    def cell_distribution(logits: Tensor) -> Tensor:
        """Score logits (B, 65, h, w) -> the official distribution, which sums to just below 1."""
        exp = logits.exp()
        return exp / (exp.sum(1, keepdim=True) + 1e-5)
