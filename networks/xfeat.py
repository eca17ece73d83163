"""XFeat: the network, its choice of keypoints and its descriptors, as a peer to compare with.

Potje, Cadar, Araujo, Martins, Nascimento: XFeat: Accelerated Features for Lightweight Image
Matching, CVPR 2024. Its sparse features; the semi-dense ones and their refinement are not here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.cells import CELL, CHANNELS, image_shape
from ..data.keypoints import KeypointChoice
from ..data.stores.schema import Field
from ..errors import InputError
from .base import DenseMaps, Network
from .registry import register
from .weights import OfficialWeights, fold_norm

__all__ = ["XFeat"]

STRIDE = 32
"""The sides of the images that the network sees are multiples of it; others are resized."""


@dataclass(frozen=True)
class XFeatMaps(DenseMaps):
    """Maps of the images as the network sees them: resized to the next smaller multiple of 32.

    Attributes:
        reliability: (B, 1, h, w) in [0, 1] of the descriptors, by which keypoints are ranked too.
    """

    reliability: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        """Pixels of the resized image for one of the image, (x, y), on the device of the maps."""
        seen = torch.tensor(image_shape(self.score_map.shape[2:])[::-1])
        return (seen / torch.tensor(self.image_size)).to(self.score_map.device)


@register("xfeat")
class XFeat(Network):
    """Color image -> keypoints where their descriptors are reliable."""

    channels = 3
    descriptor_dim = 64
    usual_fields = ("sparse",)
    official = OfficialWeights(
        model="XFeat",
        file="xfeat.pt",
        url="https://github.com/verlab/accelerated_features/raw/main/weights/xfeat.pt",
        digest="git:9da942e9c7406b8add3746bf98d4b1840233cd92",
        license="Apache-2.0",
    )

    def __init__(self):
        super().__init__()
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(
            _layer(1, 4), _layer(4, 8, stride=2), _layer(8, 8), _layer(8, 24, stride=2)
        )
        self.block2 = nn.Sequential(_layer(24, 24), _layer(24, 24))
        self.block3 = nn.Sequential(_layer(24, 64, stride=2), _layer(64, 64), _layer(64, 64, 1))
        self.block4 = nn.Sequential(_layer(64, 64, stride=2), _layer(64, 64), _layer(64, 64))
        self.block5 = nn.Sequential(
            _layer(64, 128, stride=2), _layer(128, 128), _layer(128, 128), _layer(128, 64, 1)
        )
        self.block_fusion = nn.Sequential(_layer(64, 64), _layer(64, 64), nn.Conv2d(64, 64, 1))
        self.heatmap_head = nn.Sequential(_layer(64, 64, 1), _layer(64, 64, 1), nn.Conv2d(64, 1, 1))
        self.keypoint_head = nn.Sequential(
            _layer(64, 64, 1), _layer(64, 64, 1), _layer(64, 64, 1), nn.Conv2d(64, CHANNELS, 1)
        )

    @classmethod
    def from_official(cls, state):
        """Batch normalization is folded in; the refinement of semi-dense matches is left out."""
        network, found = cls(), {}
        for layer, module in network.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            official = layer.removesuffix(".0") + ".layer"
            if layer.count(".") == 1:  # a convolution alone, with a bias
                found |= {
                    f"{layer}.{kind}": state[f"{layer}.{kind}"] for kind in ("weight", "bias")
                }
            else:
                found |= fold_norm(state, layer, f"{official}.0", f"{official}.1")
        return network, found

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a batch (B, 3, H, W) float32 of any range, H and W multiples of 32.

        Returns:
            score logits (B, 65, h, w), descriptor map (B, 64, h, w) of unit length and the
            reliability of descriptors (B, 1, h, w) in [0, 1], all float32 at ``CELL_MAP``.
        """
        gray = F.instance_norm(images.mean(1, keepdim=True))
        x2 = self.block2(self.block1(gray) + self.skip1(gray))
        x3 = self.block3(x2)
        x4 = self.block4(x3)
        x5 = self.block5(x4)
        x4, x5 = (F.interpolate(x, x3.shape[2:], mode="bilinear") for x in (x4, x5))
        features = self.block_fusion(x3 + x4 + x5)
        reliability = self.heatmap_head(features).float().sigmoid()
        *layers, last = self.keypoint_head
        x = F.pixel_unshuffle(gray, CELL)
        for layer in layers:
            x = layer(x)
        # Neighbors whose scores bfloat16 makes equal would all be maxima.
        with torch.autocast(x.device.type, enabled=False):
            logits = last(x.float())
        return logits, F.normalize(features.float(), dim=1), reliability

    def maps(self, images: Tensor) -> XFeatMaps:
        height, width = images.shape[2:]
        if min(height, width) < STRIDE:
            raise InputError(
                f"image of {width}x{height} pixels: XFeat needs at least {STRIDE} on each side"
            )
        seen = (height // STRIDE * STRIDE, width // STRIDE * STRIDE)
        resized = F.interpolate(images, seen, mode="bilinear")
        logits, descriptor_map, reliability = self.run(resized)
        return XFeatMaps(
            (width, height),
            logits.softmax(1),
            descriptor_map=descriptor_map,
            reliability=reliability,
        )

    def detect(self, maps: XFeatMaps, choice: KeypointChoice) -> list[tuple[Tensor, Tensor]]:
        """The maxima of their neighborhoods, the most reliable of them: score x reliability."""
        scores, radius, border = maps.pixel_scores(), choice.nms_radius, choice.border
        around = F.max_pool2d(scores[:, None], 2 * radius + 1, 1, radius)[:, 0]
        is_maximum = (scores == around) & (scores > choice.threshold)
        # In the last row and column, too, the authors' rounding finds no score.
        (height, width), last = scores.shape[1:], max(border, 1)
        inside = torch.zeros_like(is_maximum)
        inside[:, border : height - last, border : width - last] = True
        is_maximum &= inside
        found = []
        for row, mask in enumerate(is_maximum):
            pixels = mask.nonzero().flip(1)
            reliability = _sample(maps.reliability[row], pixels.float(), "bilinear")[:, 0]
            ranked = scores[row, pixels[:, 1], pixels[:, 0]] * reliability
            best = ranked.argsort(descending=True, stable=True)[: choice.max_num_keypoints]
            found.append(((pixels[best] + 0.5) / maps.scale - 0.5, ranked[best]))
        return found

    def describe(self, maps: XFeatMaps, row: int, keypoints: Tensor) -> Tensor:
        values = maps.descriptor_map[row]
        seen = (keypoints.to(values) + 0.5) * maps.scale - 0.5
        return F.normalize(_sample(values, seen, "bicubic"), dim=1)

    def dense_fields(self, size: tuple[int, int]) -> dict[str, Field]:
        """None: its maps lie on the resized image, and its ranking is of no single map."""
        return {}


def _layer(before: int, after: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, side, stride, side // 2), nn.ReLU(inplace=True))


def _sample(values: Tensor, points: Tensor, mode: str) -> Tensor:
    """Samples (N, C) of a map (C, h, w) of cells at pixels (N, 2), where the authors take them.

    That is up to half a pixel off: they scale positions by the side less one, but mean it whole.
    """
    last = torch.tensor([side * CELL - 1 for side in values.shape[:0:-1]]).to(points)
    grid = (2 * points / last - 1)[None, None]
    return F.grid_sample(values[None], grid, mode, align_corners=False)[0, :, 0].T
