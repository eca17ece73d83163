"""A light student: gray image in; what HF-Net says out, at a fraction of its time.

Times in ONNX Runtime follow blocks and resolution, not multiply-adds: plain 3x3 convolutions in
multiples of 16 channels, context from strides 16 and 32 by nearest neighbors, and the logits of
pixels made at stride 4 and shuffled out. The global descriptor is a VLAD of the local ones.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..data.cells import CELL, from_pixels
from ..errors import InputError
from .base import Student, StudentOutput
from .hfnet import LocalVLAD
from .registry import register

__all__ = ["CONFIGS", "Light", "LightConfig"]

FINE = 4
"""The stride of the map that pixels' logits come from."""


@dataclass(frozen=True)
class LightConfig:
    """What a light network is built from; a checkpoint carries it.

    Attributes:
        channels: at strides 2, 4, 8, 16 and 32.
        depths: convolutions at each of these strides, the strided one among them.
        fused: channels of the map at stride 8 that sees all strides from 8 to 32.
        fine: channels of the map at stride 4 that pixels' logits come from.
        occupancy: channels before the logit of "no keypoint".
        descriptor_dim: of the local descriptors.
        global_dim: of the global descriptor; 0 leaves the global branch out.
        clusters: words that the global descriptor compares local ones with.
    """

    channels: tuple[int, int, int, int, int] = (16, 32, 48, 64, 96)
    depths: tuple[int, int, int, int, int] = (1, 2, 2, 2, 2)
    fused: int = 64
    fine: int = 32
    occupancy: int = 32
    descriptor_dim: int = 128
    global_dim: int = 0
    clusters: int = 16


CONFIGS = {
    "nano": LightConfig(channels=(16, 16, 32, 64, 96), fine=16),
    "small": LightConfig(),
    "base": LightConfig(channels=(16, 32, 64, 96, 128), fused=128),
}
"""By the name of ``size`` in [train.networks.light]."""


@register("light")
class Light(Student):
    """The light student."""

    Config = LightConfig
    # What it was taught lies between pixels, shared by the four around: no one of them has it all.
    refine_radius = 3
    rank_radius = 1
    GLOBAL_PARTS = ("vlad", "projection")
    MAY_BE_NEW = ("descriptor_head.1",)

    def __init__(self, config: LightConfig = LightConfig()):
        super().__init__()
        self.config = config
        self.descriptor_dim, self.global_dim = config.descriptor_dim, config.global_dim
        stages, before = [], 1
        for channels, depth in zip(config.channels, config.depths, strict=True):
            layers = [_conv(before, channels, 3, stride=2)]
            layers += [_conv(channels, channels, 3) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*layers))
            before = channels
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(
            _conv(channels, config.fused, 1, activate=False) for channels in config.channels[2:]
        )
        self.fuse = _conv(config.fused, config.fused, 3)
        self.descriptor_head = nn.Sequential(
            _conv(config.fused, config.fused, 3), nn.Conv2d(config.fused, config.descriptor_dim, 1)
        )
        self.occupancy_head = nn.Sequential(
            _conv(config.fused, config.occupancy, 1), nn.Conv2d(config.occupancy, 1, 1)
        )
        self.fine_lateral = nn.Conv2d(config.channels[1], config.fine, 1)
        self.fine_context = nn.Conv2d(config.fused, config.fine, 1)
        self.pixel_head = nn.Sequential(
            _conv(config.fine, config.fine, 3), nn.Conv2d(config.fine, FINE * FINE, 1)
        )
        if config.global_dim:
            self.vlad = LocalVLAD(config.descriptor_dim, config.clusters)
            self.projection = nn.Linear(config.descriptor_dim * config.clusters, config.global_dim)

    @classmethod
    def make_config(cls, size="small", **values):
        if size not in CONFIGS:
            raise InputError(
                f"[train.networks.light]: size {size!r}: expected one of {', '.join(CONFIGS)}"
            )
        lists = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return replace(CONFIGS[size], **lists)

    @classmethod
    def extend(cls, config, values, teacher):
        if teacher is None or teacher.words is None:
            return super().extend(config, values, teacher)
        return teacher.with_words(config)

    def adopt_vlad(self, parameters) -> None:
        self.vlad.start_from(self.projection, parameters)

    def shorten(self, descriptor_dim: int) -> "Light":
        """A copy with local descriptors of fewer numbers, turned so that similarities stay.

        Descriptors are a linear map of ``fused`` channels and lie in a subspace of as many
        dimensions, but for their bias: so many numbers lose next to nothing. Of fewer, those
        directions are kept in which the map is longest. ALIKED's LightGlue no longer fits them.
        """
        head = self.descriptor_head[1]
        if not 0 < descriptor_dim <= head.in_channels:
            raise InputError(
                f"descriptors of {descriptor_dim} numbers: expected 1 to {head.in_channels}, the "
                "channels that they are made of"
            )
        turn = torch.linalg.svd(head.weight[:, :, 0, 0].double())[0][:, :descriptor_dim].float()
        state = self.state_dict()
        for name in ("descriptor_head.1.weight", "descriptor_head.1.bias"):
            state[name] = torch.tensordot(turn, state[name], ([0], [0]))
        if self.config.global_dim:
            state["vlad.words"] = state["vlad.words"] @ turn
            of_words = state["projection.weight"].unflatten(1, (self.config.clusters, -1))
            state["projection.weight"] = (of_words @ turn).flatten(1)
        short = Light(replace(self.config, descriptor_dim=descriptor_dim))
        short.load_state_dict(state)
        return self._read_as_here(short)

    def resized(self, config: LightConfig) -> "Light":
        """A copy with the channels of another configuration of the same depths; else itself.

        A wider one says the same: nothing that was there sees the new channels, whose weights are
        random (Chen et al.: Net2Net, ICLR 2016). Of a narrower one the first channels are kept, and
        it has to be trained before it says anything.
        """
        own = self.config
        if not isinstance(config, LightConfig):
            return self
        rest = {key: getattr(own, key) for key in ("descriptor_dim", "global_dim", "clusters")}
        config = replace(config, **rest)
        if config == own or config.depths != own.depths:
            return self
        copied = Light(config)
        state = copied.state_dict()
        for name, before in self.state_dict().items():
            sides = zip(before.shape, state[name].shape, strict=True)
            kept = tuple(slice(min(pair)) for pair in sides)
            state[name][kept[:1]] = 0
            state[name][kept] = before[kept]
        copied.load_state_dict(state)
        return self._read_as_here(copied)

    def _read_as_here(self, other: "Light") -> "Light":
        other.refine_radius, other.rank_radius = self.refine_radius, self.rank_radius
        return other.train(self.training)

    def for_inference(self) -> "Light":
        """A copy without normalizations: the same numbers to float32's accuracy, in less time."""
        folded = copy.deepcopy(self).eval()
        for module in [*folded.modules()]:
            layers = [*module.children()] if isinstance(module, nn.Sequential) else []
            if len(layers) > 1 and isinstance(layers[1], nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(*layers[:2]), nn.Identity()
        if folded.pixel_head[1].out_channels == FINE * FINE:
            folded.pixel_head[1] = _over_cells(folded.pixel_head[1])
        return folded

    def forward(self, image: Tensor) -> StudentOutput:
        """Run a batch of images (B, 1, H, W) float32 in [0, 1].

        Rows and columns beyond a multiple of 8 are cropped at the bottom and right.

        Raises:
            InputError: an image of less than 8x8 pixels.
        """
        x, maps = self.whole_cells(image) * 2 - 1, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        _, quarter, *coarse = maps
        fused = sum(
            _enlarge(lateral(values), 2**number, coarse[0])
            for number, (lateral, values) in enumerate(zip(self.laterals, coarse, strict=True))
        )
        fused = self.fuse(F.relu(fused))
        fine = self.fine_lateral(quarter) + _enlarge(self.fine_context(fused), 2, quarter)
        logits = self.pixel_head(F.relu(fine))
        if logits.shape[1] == FINE * FINE:  # not for inference
            logits = from_pixels(F.pixel_shuffle(logits, FINE)[:, 0])
        score_logits = torch.cat([logits, self.occupancy_head(fused)], 1).float()
        descriptors = F.normalize(self.descriptor_head(fused).float(), dim=1)
        if not self.config.global_dim:
            return StudentOutput(score_logits, descriptors, None)
        whole = self.projection(self.vlad(score_logits, descriptors)).float()
        return StudentOutput(score_logits, descriptors, F.normalize(whole, dim=1))


def _conv(before: int, after: int, kernel: int, *, stride: int = 1, activate: bool = True):
    layers = [
        nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(after, momentum=0.05),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if activate else []))


def _over_cells(head: nn.Conv2d) -> nn.Conv2d:
    """The logits of a cell's pixels at once, in the order of ``data.cells``.

    Most of its weights are 0, and yet it takes a fraction of the time of moving pixels about.
    """
    side = CELL // FINE
    cells = nn.Conv2d(head.in_channels, CELL * CELL, side, side)
    weight = head.weight[:, :, 0, 0].unflatten(0, (FINE, FINE))
    with torch.no_grad():
        cells.weight.zero_()
        of_pixels = cells.weight.view(side, FINE, side, FINE, head.in_channels, side, side)
        for row in range(side):
            for column in range(side):
                of_pixels[row, :, column, :, :, row, column] = weight
        cells.bias.copy_(head.bias.view(FINE, FINE).repeat(side, side).flatten())
    return cells


def _enlarge(values: Tensor, factor: int, like: Tensor) -> Tensor:
    """Nearest neighbors, cut to the shape of ``like``: strides round odd sides up."""
    if factor == 1:
        return values
    values = F.interpolate(values, scale_factor=factor, mode="nearest")
    return values[:, :, : like.shape[2], : like.shape[3]]
