"""SiLK: the network and its official checkpoints.

Gleize, Wang, Feiszli: SiLK: Simple Learned Keypoints, ICCV 2023. No layer pads or strides: the maps
have one element per pixel and lack as many pixels at each side as there are 3x3 convolutions.
"""

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ..data.cells import CELL, grid_shape
from ..data.geometry import CELL_MAP, MapGeometry, average_map
from ..data.stores.schema import Field
from ..errors import InputError
from .base import DenseMaps, Network
from .registry import PACKAGED, register

__all__ = ["SiLK", "SiLKConfig", "SiLKOutput"]

OFFICIAL_NAMES = {
    "backbone.": "_mods.model.backbone._backbone.layers.",
    "score_head.0.": "_mods.model.backbone._heads._mods.logits._detH1.",
    "score_head.1.": "_mods.model.backbone._heads._mods.logits._detH2.",
    "descriptor_head.0.": "_mods.model.backbone._heads._mods.raw_descriptors._desH1.",
    "descriptor_head.1.": "_mods.model.backbone._heads._mods.raw_descriptors._desH2.",
}
# The length of SiLK's descriptors, 1.41; ours have unit length, and the loss has a temperature.
OFFICIAL_SCALE = "_mods.model.descriptor_scale_factor"


@dataclass(frozen=True)
class SiLKConfig:
    """The widths of the network; the default is the official VGG-4, (64,) with 32 pvgg-micro.

    Attributes:
        channels: of each backbone block of two convolutions.
        lateral: channels between the two layers of each head.
        descriptor_dim: D.
    """

    channels: tuple[int, ...] = (64, 64, 128, 128)
    lateral: int = 128
    descriptor_dim: int = 128

    @property
    def geometry(self) -> MapGeometry:
        """Where the maps lie in the image: the 3x3 convolutions before them give the offset."""
        return MapGeometry(1, 2 * len(self.channels) + 1)


class SiLKOutput(NamedTuple):
    """The output for a batch, at ``SiLKConfig.geometry``.

    Attributes:
        score_logits: (B, 1, h, w) float32; their sigmoid is SiLK's probability of a keypoint.
        raw_descriptor_map: (B, D, h, w) float32, not normalized.
    """

    score_logits: Tensor
    raw_descriptor_map: Tensor

    @property
    def descriptor_map(self) -> Tensor:
        """(B, D, h, w) of unit length along D."""
        return F.normalize(self.raw_descriptor_map, dim=1)


@register("silk")
class SiLK(Network):
    """Gray image -> the logit of a keypoint and a descriptor for every pixel inside the border.

    Its ``descriptor_map`` is stored in three forms: sampled at the centers of a student's cells,
    ``:averaged`` over each cell, which blurs differences between neighbors, and ``:full``, one for
    every pixel inside the border. Cells whose center lies in the border have none.
    """

    Config = SiLKConfig
    border = int(SiLKConfig().geometry.offset)

    def __init__(self, config: SiLKConfig | None = None):
        super().__init__()
        self.config = config = config or SiLKConfig()
        self.descriptor_dim, self.border = config.descriptor_dim, int(config.geometry.offset)
        self.skipped_cells = math.ceil((self.border - CELL_MAP.offset) / CELL)
        self.cell_geometry = MapGeometry(CELL, CELL_MAP.offset + self.skipped_cells * CELL)
        widths = (1, *config.channels)
        blocks = (nn.Sequential(_layer(a, b), _layer(b, b)) for a, b in pairwise(widths))
        self.backbone = nn.Sequential(*blocks)
        self.score_head = _head(widths[-1], config.lateral, 1)
        self.descriptor_head = _head(widths[-1], config.lateral, config.descriptor_dim)

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "SiLK":
        return cls.read(source or weights or PACKAGED / "silk.safetensors")

    @classmethod
    def from_official(cls, state):
        """The widths are those of the tensors; what is unknown keeps its name."""

        def width(name: str) -> int:
            return len(state[_official_name(name)])

        channels = [width("backbone.0.0.0.bias")]
        while _official_name(name := f"backbone.{len(channels)}.0.0.bias") in state:
            channels.append(width(name))
        heads = width("score_head.0.0.bias"), width("descriptor_head.1.0.bias")
        network = cls(SiLKConfig(tuple(channels), *heads))
        ours = {_official_name(name): name for name in network.state_dict()}
        if missing := ours.keys() - state.keys():
            raise KeyError(min(missing))
        return network, {
            ours.get(name, name): tensor for name, tensor in state.items() if name != OFFICIAL_SCALE
        }

    def maps(self, images: Tensor) -> DenseMaps:
        output = self.run(images)
        return DenseMaps(
            (images.shape[3], images.shape[2]),
            output.score_logits.sigmoid(),
            self.config.geometry,
            output.raw_descriptor_map,  # normalized only where it is used
            self.config.geometry,
        )

    def describe(self, maps: DenseMaps, row: int, keypoints: Tensor) -> Tensor:
        """Descriptors of the nearest positions; in the border, those of the map's edge."""
        values = maps.descriptor_map[row]
        columns, rows = maps.descriptor_geometry.to_map(keypoints.to(values)).round().long().T
        rows, columns = (
            positions.clamp(0, side - 1)
            for positions, side in zip((rows, columns), values.shape[1:], strict=True)
        )
        return F.normalize(values[:, rows, columns].T, dim=1)

    def dense_fields(self, size: tuple[int, int]) -> dict[str, Field]:
        geometry, dim = self.config.geometry, self.descriptor_dim
        inside = tuple(side - 2 * self.border for side in size[::-1])
        described = self._described_cells(size)
        if min(described) < 1:
            raise InputError(
                f"--size {size[0]}x{size[1]}: {self.name} says nothing of the outermost "
                f"{self.border} pixels, and no whole cell is left; name a larger one"
            )
        cells = Field(shape=(dim, *described), dtype="float16", geometry=self.cell_geometry)
        return {
            "score_map": Field(shape=(1, *inside), dtype="float16", geometry=geometry),
            "descriptor_map": cells,
            "descriptor_map:averaged": cells,
            "descriptor_map:full": Field(shape=(dim, *inside), dtype="float16", geometry=geometry),
        }

    def dense_values(self, maps: DenseMaps, group: str) -> Tensor:
        if group == "score_map":
            return maps.score_map
        values, cells = maps.descriptor_map, self._described_cells(maps.image_size)
        if group == "descriptor_map:full":
            return F.normalize(values, dim=1)
        if group == "descriptor_map:averaged":
            averaged = average_map(F.normalize(values, dim=1), self.border)
            rows, columns = (slice(self.skipped_cells, self.skipped_cells + side) for side in cells)
            return F.normalize(averaged[:, :, rows, columns], dim=1)
        # A center lies in the middle of four positions: few of all positions are beside one.
        first = int(self.cell_geometry.offset - self.border)
        corners = (
            values[:, :, first + down :: CELL, first + right :: CELL][:, :, : cells[0], : cells[1]]
            for down, right in product((0, 1), repeat=2)
        )
        return F.normalize(sum(F.normalize(corner, dim=1) for corner in corners), dim=1)

    def _described_cells(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the cells whose center lies inside the border."""
        return tuple(side - 2 * self.skipped_cells for side in grid_shape(size[::-1]))

    def forward(self, image: Tensor) -> SiLKOutput:
        """Maps of a batch (B, 1, H, W) float32 in [0, 1]; see ``SiLKOutput``.

        Raises:
            InputError: an image too small to have a single descriptor.
        """
        lost = 2 * self.border
        if min(image.shape[2:]) <= lost:
            raise InputError(
                f"image of {image.shape[3]}x{image.shape[2]} pixels: this SiLK needs more than "
                f"{lost} on each side, for it does not pad"
            )
        x = self.backbone(image)
        return SiLKOutput(self.score_head(x).float(), self.descriptor_head(x).float())


def _layer(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3), nn.ReLU(), nn.BatchNorm2d(after))


def _head(before: int, lateral: int, after: int) -> nn.Sequential:
    last = nn.Sequential(nn.Conv2d(lateral, after, 1), nn.BatchNorm2d(after))
    return nn.Sequential(_layer(before, lateral), last)


def _official_name(name: str) -> str:
    ours = next(prefix for prefix in OFFICIAL_NAMES if name.startswith(prefix))
    return OFFICIAL_NAMES[ours] + name.removeprefix(ours)
