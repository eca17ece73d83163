"""ALIKED: the network, its keypoints between pixels, its descriptors at given keypoints.

Zhao, Wu, Chen, Chen, Xu, Li: ALIKED: A Lighter Keypoint and Descriptor Extraction Network via
Deformable Transformation, IEEE T-IM 2023 (arXiv 2304.03608). A descriptor is made at a keypoint
alone, from places around it that the network chooses, so there is no descriptor map: the features
stay at the four resolutions where they are computed and are brought to pixels only where they are
needed.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.geometry import PIXEL_MAP
from ..data.keypoints import KeypointChoice
from ..data.stores.schema import Field
from ..errors import InputError
from .base import DenseMaps, Network
from .registry import PACKAGED, register
from .sparse import corners, distinct
from .weights import OfficialWeights, find_weights, fold_norm

__all__ = ["ALIKED", "ALIKEDConfig", "ALIKEDMaps", "deform_conv", "soft_argmax"]

STRIDES = (1, 2, 8, 32)
"""Pixels between elements at the four levels; images are padded to a multiple of the last."""

TEMPERATURE = 0.1
"""Of the softmax over the scores around a keypoint, which places it between pixels."""

# The taps of a 3x3 kernel, row by row, as (x, y).
TAPS = torch.tensor([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)])

# Released files that are not packaged, with their ids in the authors' repository.
OFFICIAL = {
    variant: OfficialWeights(
        model=f"ALIKED-{variant.upper()}",
        file=f"aliked-{variant}.pth",
        url=f"https://github.com/Shiaoming/ALIKED/raw/main/models/aliked-{variant}.pth",
        digest=f"git:{blob}",
        license="BSD-3-Clause",
    )
    for variant, blob in {
        "t16": "97822f50c8458b5a92a678f6d9ad747c5c1989c7",
        "n16rot": "5aad43f3a944dd9461ecc89e648f15f11dc0c9aa",
    }.items()
}


@dataclass(frozen=True)
class ALIKEDConfig:
    """The widths of the network; the default is ALIKED-N(32).

    Attributes:
        channels: at each level; the last is also the descriptors' dimension.
        places: around a keypoint from which its descriptor is made (M in the paper).
    """

    channels: tuple[int, int, int, int] = (16, 32, 64, 128)
    places: int = 32


@dataclass(frozen=True)
class ALIKEDMaps(DenseMaps):
    """A score map (B, 1, H, W), and what keypoints are described from.

    Attributes:
        levels: four (B, D / 4, h, w), channels last, of the padded image at ``STRIDES``.
        padding: columns and rows that the padded image has to the left and above.
    """

    levels: tuple[Tensor, ...] = ()
    padding: tuple[int, int] = (0, 0)


@register("aliked")
class ALIKED(Network):
    """Color image -> a score map, and features from which keypoints are described.

    ``aliked`` is ``aliked:n32``, whose keypoints repeat best; also ``aliked:n16``, which LightGlue
    was trained with, the small ``aliked:t16``, ``aliked:n16rot``, and files of the authors.
    """

    Config = ALIKEDConfig
    channels = 3
    usual_fields = ("sparse",)
    refine_radius = 2

    def __init__(self, config: ALIKEDConfig | None = None):
        super().__init__()
        self.config = config = config or ALIKEDConfig()
        c1, c2, c3, c4 = config.channels
        self.descriptor_dim = c4
        self.blocks = nn.ModuleList(
            [
                _Block(nn.Conv2d(3, c1, 3, 1, 1), nn.Conv2d(c1, c1, 3, 1, 1)),
                _Block(nn.Conv2d(c1, c2, 3, 1, 1), nn.Conv2d(c2, c2, 3, 1, 1), c1),
                _Block(_DeformConv(c2, c3), _DeformConv(c3, c3), c2),
                _Block(_DeformConv(c3, c4), _DeformConv(c4, c4), c3),
            ]
        )
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, c4 // 4, 1, bias=False) for width in config.channels
        )
        self.score_head = nn.ModuleList(
            [
                nn.Conv2d(c4, 8, 1, bias=False),
                nn.Conv2d(8, 4, 3, 1, 1, bias=False),
                nn.Conv2d(4, 4, 3, 1, 1, bias=False),
                nn.Conv2d(4, 1, 3, 1, 1, bias=False),
            ]
        )
        self.descriptor_head = _DescriptorHead(c4, config.places)

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "ALIKED":
        variant = source or "n32"
        packaged = {
            path.stem.removeprefix("aliked-"): path for path in PACKAGED.glob("aliked-*.s*")
        }
        if variant in OFFICIAL:
            path = find_weights(OFFICIAL[variant], weights)
        else:
            path = Path(weights or packaged.get(variant, variant))
        variants = sorted([*packaged, *OFFICIAL])
        if not path.is_file():
            raise InputError(f"aliked:{variant}: neither a file nor one of {', '.join(variants)}")
        network = cls.read(path)
        if variant in variants and variant != "n32":
            network.name = f"aliked:{variant}"
        return network

    @classmethod
    def from_official(cls, state):
        """Batch normalization is folded into the convolution before it."""
        widths = tuple(state[f"conv{level}.weight"].shape[1] for level in (1, 2, 3, 4))
        network = cls(ALIKEDConfig(widths, len(state["desc_head.agg_weights"])))
        head, found = "descriptor_head", {}
        copied = {f"{head}.offsets.{layer}": f"desc_head.offset_conv.{layer}" for layer in (0, 2)}
        for number in range(4):
            block = f"block{number + 1}"
            copied[f"laterals.{number}"] = f"conv{number + 1}"
            copied[f"score_head.{number}"] = f"score_head.{2 * number}"
            copied[f"blocks.{number}.shortcut"] = f"{block}.downsample"
            for conv in (1, 2):
                ours, theirs = f"blocks.{number}.conv{conv}", f"{block}.conv{conv}"
                if number >= 2:
                    copied[f"{ours}.offsets"] = f"{theirs}.offset_conv"
                    ours, theirs = f"{ours}.conv", f"{theirs}.regular_conv"
                found |= fold_norm(state, ours, theirs, f"{block}.bn{conv}")
        for name in network.state_dict():
            layer, _, kind = name.rpartition(".")
            if layer in copied:
                found[name] = state[f"{copied[layer]}.{kind}"]
        # Taps first, as ``_DescriptorHead`` lays a patch out.
        first, second = f"{head}.offsets.0.weight", f"{head}.offsets.2.weight"
        found[first] = found[first].permute(0, 2, 3, 1).flatten(1)
        found[second] = found[second].flatten(1)
        found[f"{head}.features.weight"] = state["desc_head.sf_conv.weight"].flatten(1)
        found[f"{head}.descriptor.weight"] = state["desc_head.agg_weights"].flatten(0, 1).T
        return network, {name: tensor.contiguous() for name, tensor in found.items()}

    def maps(self, images: Tensor) -> ALIKEDMaps:
        score_map, levels, padding = self.run(images)
        size = (images.shape[3], images.shape[2])
        return ALIKEDMaps(size, score_map, PIXEL_MAP, levels=levels, padding=padding)

    def detect(self, maps: DenseMaps, choice: KeypointChoice) -> list[tuple[Tensor, Tensor]]:
        """Keypoints (N, 2) between pixels, where scores are interpolated too: (N,)."""
        found = []
        whole = replace(choice, refine_radius=0)(maps.pixel_scores())
        for score_map, (pixels, _) in zip(maps.score_map[:, 0], whole, strict=True):
            pixels = pixels.to(score_map.device)
            keypoints, scores = soft_argmax(score_map, pixels, choice.refine_radius)
            order = scores.argsort(descending=True, stable=True)
            found.append((keypoints[order], scores[order]))
        return found

    def describe(self, maps: ALIKEDMaps, row: int, keypoints: Tensor) -> Tensor:
        """The descriptors (N, D) of unit length at keypoints (N, 2), between pixels or not."""
        return self.descriptor_head(_Features(maps, row), keypoints.to(self.device).float())

    def dense_fields(self, size: tuple[int, int]) -> dict[str, Field]:
        return {"score_map": Field(shape=(1, *size[::-1]), dtype="float16", geometry=PIXEL_MAP)}

    def forward(
        self, images: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor], tuple[int, int]]:
        """Score map, levels and padding, see ``ALIKEDMaps``, of (B, 3, H, W) float32 in [0, 1].

        Raises:
            InputError: an image smaller than what a descriptor looks at.
        """
        height, width = images.shape[2:]
        if min(height, width) < 4:
            raise InputError(
                f"image of {width}x{height} pixels: ALIKED needs at least 4 on each side"
            )
        rows, columns = -height % STRIDES[-1], -width % STRIDES[-1]
        left, top = columns // 2, rows // 2
        x = F.pad(images, (left, columns - left, top, rows - top), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        levels = []
        for block, pooling, lateral in zip(self.blocks, (1, 2, 4, 4), self.laterals, strict=True):
            x = block(F.avg_pool2d(x, pooling) if pooling > 1 else x)
            levels.append(F.selu_(lateral(x)))
        scores = self._scores(levels)[:, :, top : top + height, left : left + width]
        return scores, tuple(levels), (left, top)

    def _scores(self, levels: list[Tensor]) -> Tensor:
        """The probability of a keypoint at each pixel of the padded image, (B, 1, H, W) float32.

        In float32: equal scores of neighbors, which bfloat16 makes, would all be maxima.
        """
        first, *others = self.score_head
        size = levels[0].shape[2:]
        # A 1x1 convolution of the features at all pixels, done before they are spread to them.
        weights = first.weight.chunk(4, dim=1)
        parts = [F.conv2d(*part).float() for part in zip(levels, weights, strict=True)]
        with torch.autocast(parts[0].device.type, enabled=False):
            x = parts[0]
            for part in parts[1:]:
                x += F.interpolate(part, size=size, mode="bilinear", align_corners=True)
            for layer in others:
                x = layer(F.selu_(x))
            return x.sigmoid_()


class _Block(nn.Module):
    """Two convolutions, SELU after each, and a 1x1 convolution around both but in the first."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module, before: int | None = None):
        super().__init__()
        self.conv1, self.conv2 = conv1, conv2
        width = conv2.out_channels
        self.shortcut = nn.Conv2d(before, width, 1) if before is not None else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.selu_(self.conv1(x)))
        return F.selu_(y if self.shortcut is None else y.add_(self.shortcut(x)))


class _DeformConv(nn.Module):
    """A 3x3 convolution whose taps are moved by what another convolution says of each place."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.out_channels = after
        self.offsets = nn.Conv2d(before, 18, 3, 1, 1)
        self.conv = nn.Conv2d(before, after, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        limit = max(x.shape[2:]) / 4
        offsets = self.offsets(x).float().clamp(-limit, limit)
        return deform_conv(x, offsets, self.conv.weight, self.conv.bias)


def deform_conv(x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Deformable 3x3 convolution with padding 1 (Dai et al., ICCV 2017).

    Args:
        x: (B, C, H, W) float; outside it is zero.
        offsets: (B, 18, H, W) float32, for each tap, row by row, its (dy, dx) in elements.
        weight: (O, C, 3, 3) float.
        bias: (O,) float.

    Returns:
        (B, O, H, W), channels last.
    """
    batch, _, height, width = x.shape
    device = x.device
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    centers = torch.stack([columns, rows], -1).view(height, width, 1, 2)
    moved = offsets.view(batch, 9, 2, height, width).permute(0, 3, 4, 1, 2).flip(-1)
    places = centers + TAPS.to(device) + moved
    samples = _sample(x, places.flatten(1, 3)).view(batch, height, width, -1)
    kernel = weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(samples, kernel, bias).permute(0, 3, 1, 2)


def _sample(values: Tensor, places: Tensor) -> Tensor:
    """Bilinear samples (B, M, C) float32 of (B, C, H, W) at places (B, M, 2) (x, y); zero outside.

    A weighted sum of four rows of a table: many times faster on a CPU than ``grid_sample``.
    """
    batch, channels, height, width = values.shape
    rows, weights = corners(places, width, height)
    first = torch.arange(batch, device=rows.device)[:, None, None] * (height * width)
    samples = F.embedding_bag(
        (rows + first).view(-1, 4),
        _table(values).float(),
        per_sample_weights=weights.view(-1, 4),
        mode="sum",
    )
    return samples.view(batch, -1, channels)


def _table(values: Tensor) -> Tensor:
    """Maps (B, C, H, W) as a table (B * H * W, C) of their elements."""
    return values.permute(0, 2, 3, 1).flatten(0, 2)


class _Features:
    """The features of image ``row`` of a batch, computed at the pixels that are asked for."""

    def __init__(self, maps: ALIKEDMaps, row: int):
        self.height, self.width = maps.score_map.shape[2:]
        self.padding = torch.tensor(maps.padding, device=maps.score_map.device)
        finest, *coarser = (level[row : row + 1] for level in maps.levels)
        self.finest, self.padded = _table(finest), (finest.shape[3], finest.shape[2])
        self.coarser = [level.float() for level in coarser]

    def gather(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The features (K, D) float32, of unit length, at the distinct ones of ``pixels`` (...,),
        which are numbered row by row, and for each pixel the row (...,) of its features."""
        asked, rows = distinct(pixels, self.height * self.width)
        xy = torch.stack([asked % self.width, asked // self.width], -1) + self.padding
        parts = [self.finest[xy[:, 1] * self.padded[0] + xy[:, 0]].float()]
        for level in self.coarser:
            # As an upsampling whose outermost centers fall on each other.
            scale = [(level.shape[3 - axis] - 1) / (self.padded[axis] - 1) for axis in (0, 1)]
            parts.append(_sample(level, (xy * torch.tensor(scale, device=xy.device))[None])[0])
        features = torch.cat(parts, 1)
        return features.div_(features.norm(dim=1, keepdim=True).clamp_min_(1e-12)), rows


class _DescriptorHead(nn.Module):
    """The paper's SDDH: sparse deformable descriptor head."""

    def __init__(self, width: int, places: int):
        super().__init__()
        self.offsets = nn.Sequential(
            nn.Linear(9 * width, 2 * places), nn.SELU(), nn.Linear(2 * places, 2 * places)
        )
        self.features = nn.Linear(width, width, bias=False)
        self.descriptor = nn.Linear(places * width, width, bias=False)

    def forward(self, features: _Features, keypoints: Tensor) -> Tensor:
        """The descriptors (N, D) of unit length at keypoints (N, 2) (x, y) in pixels."""
        width, height = features.width, features.height
        # The 3x3 pixels around a keypoint; at the right and bottom the authors' code, which the
        # weights were trained with, stops one short of the edge.
        device = keypoints.device
        last = torch.tensor([width - 4, height - 4], device=device)
        corner = (keypoints.floor() - 1).long().clamp_min(0).minimum(last)
        x, y = (corner[:, None] + 1 + TAPS.to(device)).unbind(-1)
        table, rows = features.gather(y * width + x)
        limit = max(width, height) / 4
        offsets = self.offsets(table[rows].flatten(1)).clamp(-limit, limit)
        places = keypoints[:, None] + offsets.unflatten(1, (2, -1)).transpose(1, 2)
        pixels, weights = corners(places, width, height)
        table, rows = features.gather(pixels)
        sampled = F.embedding_bag(
            rows.view(-1, 4), table, per_sample_weights=weights.view(-1, 4), mode="sum"
        )
        sampled = F.selu_(self.features(sampled)).unflatten(0, places.shape[:2]).flatten(1)
        return F.normalize(self.descriptor(sampled), dim=1)


def soft_argmax(score_map: Tensor, keypoints: Tensor, radius: int = 2) -> tuple[Tensor, Tensor]:
    """ALIKED's keypoints between pixels: the softmax-weighted mean place of the scores around.

    Args:
        score_map: (H, W) float32.
        keypoints: (N, 2) integer or float (x, y), whole pixels.
        radius: half the side of the square around a keypoint; beyond the map scores are zero.

    Returns:
        (N, 2) float32 (x, y), and the scores (N,) there, interpolated.
    """
    steps = torch.arange(-radius, radius + 1, device=score_map.device)
    x, y = (keypoints.long() + radius).unbind(-1)
    padded = F.pad(score_map, [radius] * 4)
    around = padded[y[:, None, None] + steps[:, None], x[:, None, None] + steps]
    weights = (around.flatten(1) / TEMPERATURE).softmax(1).view_as(around)
    moves = torch.stack([weights.sum(1) @ steps.float(), weights.sum(2) @ steps.float()], -1)
    moved = keypoints.float() + moves
    return moved, _sample(score_map[None, None], moved[None])[0, :, 0]
