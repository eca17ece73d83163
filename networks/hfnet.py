"""HF-Net: one image in; score logits, a descriptor map and a global descriptor out.

Sarlin, Cadena, Siegwart, Dymczyk: From Coarse to Fine: Robust Hierarchical Localization at Large
Scale, CVPR 2019. The layers are those of its TensorFlow code: MobileNetV2's inverted residuals in
a table of HF-Net's own, TensorFlow's SAME padding, and a NetVLAD head on the deepest layer.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..data.cells import CHANNELS, distributions, occupied
from .base import DenseMaps, Student, StudentOutput
from .registry import register
from .sparse import corners, distinct

__all__ = ["HFNet", "HFNetConfig", "LocalVLAD"]

# (channels at width 1, stride) of the blocks up to the local heads, at stride 8, and after them.
LOCAL_BLOCKS = [(16, 1), (24, 2), (24, 1), (32, 2), (64, 1), (128, 1)]
GLOBAL_BLOCKS = [
    *[(64, 2), (64, 1), (64, 1), (64, 1)],
    *[(96, 1), (96, 1), (96, 1)],
    *[(160, 2), (160, 1), (160, 1), (320, 1)],
]
EXPANSION = 6
BN_EPSILON = 1e-3
# oneDNN's convolution with a fused ReLU6, which works while the results are still in the cache.
# torch.compile uses it, too, but needs a C++ compiler.
FUSES_ACTIVATION = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise"
)
SPARSE_SHARE = 0.6
"""Of all cells: where keypoints lie among more, the whole descriptor map takes no longer."""
# TF-slim's decay of 0.997 needs thousands of steps to settle; this averages over a few hundred.
BN_MOMENTUM = 0.01


@dataclass(frozen=True)
class HFNetConfig:
    """What the student is built from; kept in its checkpoint.

    Attributes:
        width: multiplies the channels of the backbone.
        descriptor_dim: of the local descriptors.
        detector_skip: the detector also sees the first block's map at stride 2, which shows better
            where in a cell a corner is; HF-Net has none.
        context_block: one more block at stride 8 with a 5x5 filter, before both heads, which then
            see 107 pixels instead of 75; HF-Net has none.
        global_dim: of the global descriptor; 0 leaves the global branch out.
        global_pooling: what the global descriptor is pooled from: ``deep`` layers of its own, as in
            HF-Net, or the ``local`` descriptors, which takes fewer weights and no layers.
        clusters: of the NetVLAD layer.
        global_rank: of the projection to the global descriptor, as the product of two matrices; 0
            for HF-Net's single matrix, which has most of its weights.
    """

    width: float = 0.75
    descriptor_dim: int = 256
    detector_skip: bool = False
    context_block: bool = False
    global_dim: int = 0
    global_pooling: str = "deep"
    clusters: int = 32
    global_rank: int = 0


@dataclass(frozen=True)
class LocalMaps(DenseMaps):
    """Maps of which descriptors are computed only around the keypoints, on a CPU.

    Attributes:
        features: (B, C, h, w) float32, from which the head makes the descriptor map.
        descriptor_head: of a network ``for_inference``.
    """

    features: Tensor | None = None
    descriptor_head: nn.Sequential | None = None

    def describe(self, row: int, keypoints: Tensor) -> Tensor:
        features = self.features[row : row + 1]
        height, width = features.shape[2:]
        last = torch.tensor([width - 1, height - 1])
        places = self.descriptor_geometry.to_map(keypoints).clamp_min(0).minimum(last)
        around, weights = corners(places, width, height)
        cells, rows = distinct(around, height * width)
        if len(cells) > SPARSE_SHARE * height * width:
            whole = F.normalize(self.descriptor_head(features), dim=1)
            return DenseMaps(self.image_size, descriptor_map=whole).describe(0, keypoints)
        conv, last = self.descriptor_head[0].conv, self.descriptor_head[1]
        table = F.pad(features[0].permute(1, 2, 0), (0, 0, 1, 1, 1, 1)).flatten(0, 1)
        steps = torch.arange(3)[:, None] * (width + 2) + torch.arange(3)
        first = cells + 2 * (cells // width)  # a padded row has two more
        patches = table[first[:, None] + steps.flatten()].flatten(1)
        hidden = F.relu6(F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias))
        found = F.normalize(F.linear(hidden, last.weight.flatten(1), last.bias), dim=1)
        sampled = F.embedding_bag(rows, found, per_sample_weights=weights, mode="sum")
        return F.normalize(sampled, dim=1)


@register("hfnet")
class HFNet(Student):
    """The student network of HF-Net."""

    Config = HFNetConfig
    refine_radius = 4
    GLOBAL_PARTS = ("global_blocks", "vlad", "projection")
    MAY_BE_NEW = ("detector_skip", "context_block", "descriptor_head.1")
    """What can be added to a student, and the last layer of its descriptors, of another length."""

    def __init__(self, config: HFNetConfig = HFNetConfig()):
        super().__init__()
        self.config = config
        self.descriptor_dim, self.global_dim = config.descriptor_dim, config.global_dim
        channels = scale_channels(32, config.width)
        self.stem = ConvBN(1, channels, 3, stride=2)
        self.local_blocks, channels = _make_blocks(LOCAL_BLOCKS, channels, config.width)
        if config.context_block:
            self.context_block = InvertedResidual(channels, channels, 1, 4, kernel=5)
        if config.detector_skip:
            fine = 16 * scale_channels(LOCAL_BLOCKS[0][0], config.width)
            self.detector_skip = ConvBN(fine, channels, 1, activate=False)
        self.descriptor_head = nn.Sequential(
            ConvBN(channels, 256, 3), nn.Conv2d(256, config.descriptor_dim, 1)
        )
        self.detector_head = nn.Sequential(ConvBN(channels, 128, 3), nn.Conv2d(128, CHANNELS, 1))
        if config.global_dim:
            if config.global_pooling == "deep":
                self.global_blocks, channels = _make_blocks(GLOBAL_BLOCKS, channels, config.width)
                self.vlad = NetVLAD(channels, config.clusters)
            else:
                channels = config.descriptor_dim
                self.vlad = LocalVLAD(channels, config.clusters)
            self.projection = _make_projection(channels * config.clusters, config)
        self.apply(_initialize)
        # What HF-Net lacks starts at zero, so that it can be added to a trained student.
        if config.detector_skip:
            nn.init.zeros_(self.detector_skip.norm.weight)
        if config.context_block:
            nn.init.zeros_(self.context_block.project.norm.weight)

    @classmethod
    def make_config(cls, global_pooling="auto", global_rank=0, **values):
        return HFNetConfig(**values)  # the other two are of the global branch, see ``extend``

    @classmethod
    def extend(cls, config, values, teacher):
        if teacher is None:
            return config
        if values.get("global_pooling", "auto") == "deep" or teacher.words is None:
            rank = values.get("global_rank", config.global_rank)
            return replace(config, global_dim=teacher.dim, global_pooling="deep", global_rank=rank)
        return replace(teacher.with_words(config), global_pooling="local", global_rank=0)

    def adopt_vlad(self, parameters) -> None:
        if self.config.global_pooling == "local":
            self.vlad.start_from(self.projection, parameters)

    def for_inference(self) -> "HFNet":
        """A copy without normalizations: the same numbers to float32's accuracy, twice as fast."""
        folded = copy.deepcopy(self).eval()
        for module in list(folded.modules()):
            for name, child in module.named_children():
                if isinstance(child, ConvBN):
                    setattr(module, name, FoldedConv(child))
        return folded

    def forward(self, image: Tensor) -> StudentOutput:
        """Run a batch of images (B, 1, H, W) float32 in [0, 1].

        Rows and columns beyond a multiple of 8 are cropped at the bottom and right, as HF-Net does.

        Raises:
            InputError: an image of less than 8x8 pixels.
        """
        features, score_logits = self._local(image)
        descriptors = F.normalize(self.descriptor_head(features).float(), dim=1)
        if not self.config.global_dim:
            return StudentOutput(score_logits, descriptors, None)
        if self.config.global_pooling == "local":
            vlad = self.vlad(score_logits, descriptors)
        else:
            vlad = self.vlad(self.global_blocks(features))
        return StudentOutput(score_logits, descriptors, self._project(vlad))

    def describe_globally(self, image: Tensor) -> Tensor:
        """The global descriptors (B, G) of a batch of images alone; see ``forward``."""
        if self.config.global_pooling == "local":
            return self(image).global_descriptor
        return self._project(self.vlad(self.global_blocks(self._features(image)[0])))

    def sparse_maps(self, images: Tensor) -> DenseMaps:
        """Without a descriptor map where descriptors at the keypoints alone take less time."""
        is_folded = isinstance(self.descriptor_head[0], FoldedConv)
        is_plain = self.device.type == "cpu" and self.precision == "float32"
        if self.config.global_dim or not (is_folded and is_plain):
            return self.maps(images)
        features, score_logits = self.run(images, self._local)
        size = (images.shape[3], images.shape[2])
        own = {"features": features, "descriptor_head": self.descriptor_head}
        return LocalMaps(size, score_logits.softmax(1), **own)

    def _local(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The map at stride 8 that both heads see, and the score logits."""
        features, fine = self._features(image)
        seen = features
        if self.config.detector_skip:
            seen = features + self.detector_skip(F.pixel_unshuffle(fine, 4))
        return features, self.detector_head(seen).float()

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The map at stride 8, and the first block's at stride 2."""
        centered = self.whole_cells(image) * (255 / 128) - 1  # HF-Net's (x - 128) / 128
        fine = self.local_blocks[0](self.stem(centered))
        features = self.local_blocks[1:](fine)
        return (self.context_block(features) if self.config.context_block else features), fine

    def _project(self, vlad: Tensor) -> Tensor:
        return F.normalize(self.projection(vlad).float(), dim=1)


class ConvBN(nn.Module):
    """Convolution with TensorFlow's SAME padding, batch normalization and, mostly, ReLU6."""

    def __init__(self, before, after, kernel, *, stride=1, groups=1, activate=True):
        super().__init__()
        self.stride = stride
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(after, eps=BN_EPSILON, momentum=BN_MOMENTUM)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            # SAME: an even side is padded by one at its end, an odd one by one at both ends.
            before = [side % 2 for side in x.shape[-2:]]
            x = F.pad(x, (before[1], 1, before[0], 1))
        x = self.norm(self._convolve(x))
        return F.relu6(x, inplace=True) if self.activate else x

    def _convolve(self, x: Tensor) -> Tensor:
        is_plain = self.stride == 1 and self.conv.kernel_size[0] < 5
        bfloat16_on_cpu = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        if is_plain or self.conv.groups == 1 or not (bfloat16_on_cpu and x.requires_grad):
            return self.conv(x)
        # In bfloat16, oneDNN takes two to ten times as long for the gradient of a depthwise
        # convolution that is strided or has a larger filter: up to a fifth of a whole step.
        with torch.autocast("cpu", enabled=False):
            return self.conv(x.float()).to(x.dtype)


class FoldedConv(nn.Module):
    """A trained ``ConvBN`` as a single convolution, for inference."""

    def __init__(self, trained: ConvBN):
        super().__init__()
        self.conv = fuse_conv_bn_eval(trained.conv, trained.norm)
        self.activate = trained.activate
        if trained.stride == 2:
            # SAME pads an even side at its end only. Padding both ends is the same with a
            # kernel that does not look at the first, and needs no padded copy.
            self.conv.weight = nn.Parameter(F.pad(self.conv.weight, (1, 0, 1, 0)))
            self.conv.padding = (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        conv, odd = self.conv, [side % 2 for side in x.shape[2:]]
        if conv.stride == (2, 2) and any(odd):
            x = F.pad(x, (odd[1], 0, odd[0], 0))  # SAME pads an odd side at both ends
        is_plain = not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
        if FUSES_ACTIVATION and x.device.type == "cpu" and is_plain:
            return torch.ops.mkldnn._convolution_pointwise(
                *(x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups),
                *(("hardtanh", [0.0, 6.0], "") if self.activate else ("none", [], "")),
            )
        x = conv(x)
        return F.relu6(x, inplace=True) if self.activate else x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, filter each channel, project (Sandler et al., CVPR 2018)."""

    def __init__(self, before: int, after: int, stride: int, expansion: int, kernel: int = 3):
        super().__init__()
        inner = before * expansion
        self.expand = ConvBN(before, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvBN(inner, inner, kernel, stride=stride, groups=inner)
        self.project = ConvBN(inner, after, 1, activate=False)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class NetVLAD(nn.Module):
    """Soft-assigned residuals to clusters (Arandjelovic et al., CVPR 2016), as in HF-Net."""

    def __init__(self, channels: int, clusters: int):
        super().__init__()
        self.memberships = nn.Conv2d(channels, clusters, 1, bias=False)
        self.norm = nn.BatchNorm2d(clusters, eps=BN_EPSILON, momentum=BN_MOMENTUM)
        self.norm.weight.requires_grad_(False)  # HF-Net's has an offset but no scale
        self.clusters = nn.Parameter(torch.randn(clusters, channels) / channels**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, clusters * C) of unit length, cluster by cluster."""
        weights = self.norm(self.memberships(features)).float().softmax(1).flatten(2)
        sums = weights @ features.float().flatten(2).transpose(1, 2)
        residuals = weights.sum(2, keepdim=True) * self.clusters - sums
        # HF-Net's intra-normalization runs over the clusters, not over each cluster's channels.
        return F.normalize(F.normalize(residuals, dim=1).flatten(1), dim=1)


class LocalVLAD(nn.Module):
    """Residuals of the local descriptors to words: VLAD (Jegou et al., PAMI 2012) in the network.

    Each position counts as much as its cell is likely to have a keypoint, and goes to its nearest
    words by a softmax that is nearly hard.
    """

    SHARPNESS = 100.0

    def __init__(self, descriptor_dim: int, clusters: int):
        super().__init__()
        self.words = nn.Parameter(F.normalize(torch.randn(clusters, descriptor_dim), dim=1))

    def forward(self, score_logits: Tensor, descriptor_map: Tensor) -> Tensor:
        """(B, 65, h, w) and (B, D, h, w) -> (B, clusters * D) of unit length, word by word."""
        descriptors = descriptor_map.flatten(2)
        closeness = self.words @ descriptors - self.words.square().sum(1)[:, None] / 2
        likely = occupied(distributions(score_logits)).flatten(1)
        weights = (self.SHARPNESS * closeness.float()).softmax(1) * likely[:, None]
        sums = weights @ descriptors.mT
        residuals = sums - weights.sum(2, keepdim=True) * self.words
        return F.normalize(F.normalize(residuals.float(), dim=2).flatten(1), dim=1)

    def start_from(self, projection: nn.Linear, parameters: Mapping[str, np.ndarray]) -> None:
        """Start from the words, mean and projection of a VLAD of local descriptors."""
        words, mean, matrix = (
            torch.from_numpy(np.array(parameters[name], np.float32))
            for name in ("words", "mean", "projection")
        )
        with torch.no_grad():
            self.words.copy_(words)
            projection.weight.copy_(matrix)
            projection.bias.copy_(-matrix @ mean)


def scale_channels(channels: int, width: float) -> int:
    """TF-slim's rounding: a multiple of 8, at least 8, not below 90 % of the exact number."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _make_blocks(table, channels: int, width: float) -> tuple[nn.Sequential, int]:
    blocks = nn.Sequential()
    for after, stride in table:
        after = scale_channels(after, width)
        # Only the first block does not expand its channels.
        expansion = 1 if table is LOCAL_BLOCKS and not blocks else EXPANSION
        blocks.append(InvertedResidual(channels, after, stride, expansion))
        channels = after
    return blocks, channels


def _make_projection(channels: int, config: HFNetConfig) -> nn.Module:
    if not config.global_rank:
        return nn.Linear(channels, config.global_dim)
    return nn.Sequential(
        nn.Linear(channels, config.global_rank, bias=False),
        nn.Linear(config.global_rank, config.global_dim),
    )


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.weight.shape[0] * module.weight[0, 0].numel() / module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
