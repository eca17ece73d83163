"""SiLK: the network, loading the official checkpoints, its coordinates and its choice of keypoints.

Gleize, Wang, Feiszli: SiLK: Simple Learned Keypoints, ICCV 2023. No layer pads or strides: the maps
have one element per pixel and lack as many pixels at each side as there are 3x3 convolutions. SiLK
itself counts (row, column) from the corner of the top-left pixel, whose centre is (0.5, 0.5);
only ``sparse_positions`` below speaks so.
"""

import hashlib
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints import read_tensors, write_tensors
from ..data.features import Features
from ..data.geometry import MapGeometry
from .weights import load_arrays, load_strictly

__all__ = [
    "SiLK",
    "SiLKConfig",
    "SiLKOutput",
    "load_silk",
    "save_silk",
    "silk_features",
    "sparse_positions",
]

OFFICIAL_NAMES = {
    "backbone.": "_mods.model.backbone._backbone.layers.",
    "score_head.0.": "_mods.model.backbone._heads._mods.logits._detH1.",
    "score_head.1.": "_mods.model.backbone._heads._mods.logits._detH2.",
    "descriptor_head.0.": "_mods.model.backbone._heads._mods.raw_descriptors._desH1.",
    "descriptor_head.1.": "_mods.model.backbone._heads._mods.raw_descriptors._desH2.",
}
# The length of SiLK's own descriptors, 1.41; ours have unit length, and the loss its temperature.
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
    """What the network says about a batch, at ``SiLKConfig.geometry``.

    Attributes:
        score_logits: (B, 1, h, w) float32; their sigmoid is SiLK's probability of a keypoint.
        raw_descriptor_map: (B, D, h, w) float32, not normalised.
    """

    score_logits: Tensor
    raw_descriptor_map: Tensor

    @property
    def descriptor_map(self) -> Tensor:
        """(B, D, h, w) of unit length along D."""
        return F.normalize(self.raw_descriptor_map, dim=1)


class SiLK(nn.Module):
    """Gray image -> the logit of a keypoint and a descriptor for every pixel inside the border."""

    def __init__(self, config: SiLKConfig | None = None):
        super().__init__()
        self.config = config = config or SiLKConfig()
        widths = (1, *config.channels)
        self.backbone = nn.ModuleList(
            nn.Sequential(_layer(before, after), _layer(after, after))
            for before, after in pairwise(widths)
        )
        self.score_head = _head(widths[-1], config.lateral, 1)
        self.descriptor_head = _head(widths[-1], config.lateral, config.descriptor_dim)

    def forward(self, image: Tensor) -> SiLKOutput:
        """Maps of a batch (B, 1, H, W) float32 in [0, 1]; see ``SiLKOutput``.

        Raises:
            ValueError: an image too small to have a single descriptor.
        """
        lost = 2 * self.config.geometry.offset
        if min(image.shape[2:]) <= lost:
            raise ValueError(
                f"image of {image.shape[3]}x{image.shape[2]} pixels: this SiLK needs more than "
                f"{lost} on each side, for it does not pad"
            )
        x = image
        for block in self.backbone:
            x = block(x)
        return SiLKOutput(self.score_head(x).float(), self.descriptor_head(x).float())


def _layer(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3), nn.ReLU(), nn.BatchNorm2d(after))


def _head(before: int, lateral: int, after: int) -> nn.Sequential:
    last = nn.Sequential(nn.Conv2d(lateral, after, 1), nn.BatchNorm2d(after))
    return nn.Sequential(_layer(before, lateral), last)


def sparse_positions(
    probability: Tensor,
    *,
    threshold: float = 1.0,
    nms_radius: int = 0,
    border: int = 0,
    top_k: int | None = 10000,
) -> Tensor:
    """SiLK's own choice of keypoints from a probability map, in SiLK's own coordinates.

    First the border is zeroed, then non-maxima are suppressed, then the positions above the lower
    of ``threshold`` and the quantile that leaves ``top_k`` are kept. The quantile lies midway
    between two probabilities of the sorted map, so it leaves one more than ``top_k``; a
    ``threshold`` below it adds positions beyond ``top_k``, and the default of 1 is "top_k only".

    Args:
        probability: (h, w) float.
        nms_radius: half the side of the square in which only a maximum stays; 0 for none.
        border: so many outermost rows and columns of the map hold no keypoint.
        top_k: None for "threshold only".

    Returns:
        (N, 3) float32 (row + 0.5, column + 0.5, probability) on the map, row by row.
    """
    scores = probability.float()
    if border > 0:
        inner = torch.zeros_like(scores)
        inside = (slice(border, -border), slice(border, -border))
        inner[inside] = scores[inside]
        scores = inner
    if nms_radius > 0:
        scores = _suppress_iteratively(scores, nms_radius)
    if top_k is not None:
        threshold = min(threshold, _midpoint_quantile(scores.flatten(), top_k))
    rows, columns = torch.nonzero(scores > threshold, as_tuple=True)
    return torch.stack([rows + 0.5, columns + 0.5, scores[rows, columns]], dim=1)


def _midpoint_quantile(values: Tensor, top_k: int) -> float:
    """Midway between the two neighbours of rank (n - 1) * (n - k - 1) / n; -inf when k >= n."""
    n = len(values)
    if top_k >= n:
        return -np.inf
    # In the arithmetic of a quantile given as a float, which decides between neighbouring ranks.
    rank = (n - top_k - 1) / n * (n - 1)
    low, high = int(np.floor(rank)), int(np.ceil(rank))
    ordered = values.sort().values
    return ((ordered[low] + ordered[high]) / 2).item()


def _suppress_iteratively(scores: Tensor, radius: int) -> Tensor:
    """Keep maxima of their square, zero what lies around them, again until no maximum is new."""
    side = 2 * radius + 1

    def is_maximum(values: Tensor) -> Tensor:
        # The first of equal values in a window, row by row, is its maximum: hence the indices.
        _, best = F.max_pool2d(values[None], side, 1, radius, return_indices=True)
        return best[0] == torch.arange(values.numel(), device=values.device).view_as(values)

    maxima = is_maximum(scores)
    while True:
        near = F.max_pool2d(maxima[None].float(), side, 1, radius)[0] > 0
        remaining = scores.masked_fill(near, 0)
        found = maxima | (is_maximum(remaining) & ~near)
        if (found == maxima).all():
            return scores * maxima
        maxima = found


def silk_features(
    output: SiLKOutput, geometry: MapGeometry, image_size: tuple[int, int], positions: Tensor
) -> Features:
    """``Features`` of the first image of a batch at ``sparse_positions``, by descending score."""
    positions = positions[positions[:, 2].argsort(descending=True, stable=True)]
    rows, columns = positions[:, 0].long(), positions[:, 1].long()
    map_xy = positions[:, [1, 0]] - 0.5  # from SiLK's (row, column), pixel corner at the origin
    descriptors = F.normalize(output.raw_descriptor_map[0, :, rows, columns].T, dim=1)
    return Features(
        image_size,
        geometry.to_image(map_xy).cpu().numpy(),
        positions[:, 2].contiguous().cpu().numpy(),
        descriptors.cpu().numpy(),
    )


def load_silk(path: str | Path) -> tuple[SiLK, str]:
    """A SiLK in evaluation mode on the CPU, and its file's SHA-256.

    Args:
        path: an official Lightning checkpoint, its ``state_dict`` alone (``.pth``) or as ``.npz``,
            or a ``.safetensors`` of ``save_silk``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a SiLK; names the tensors that are missing, unknown or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such SiLK checkpoint")
    if path.suffix == ".safetensors":
        state, metadata = read_tensors(path)
        if "config" not in metadata:
            raise ValueError(
                f"{path}: holds no SiLK; its weights are in silk.safetensors beside it"
            )
        config = metadata["config"]
        network = SiLK(SiLKConfig(**{**config, "channels": tuple(config["channels"])}))
    else:
        network, state = _read_official(path)
    load_strictly(network, state, path)
    return network.eval(), hashlib.sha256(path.read_bytes()).hexdigest()


def save_silk(path: str | Path, network: SiLK, info: dict, dtype=torch.float32) -> None:
    """Write weights that ``load_silk`` reads, with a JSON-able description of their making."""
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    write_tensors(path, tensors, {"config": asdict(network.config), **info})


def _read_official(path: Path) -> tuple[SiLK, dict[str, Tensor]]:
    """The network that the widths in an official checkpoint call for, and its tensors, renamed."""
    found = load_arrays(path)[0] if path.suffix == ".npz" else _read_lightning(path)
    network = SiLK(_config_of(found))
    official = {_official_name(name): name for name in network.state_dict()}
    missing = sorted(official.keys() - found.keys())
    unknown = sorted(found.keys() - official.keys() - {OFFICIAL_SCALE})
    if missing or unknown:
        raise ValueError(
            f"{path}: not an official SiLK checkpoint: {_some(missing)} missing, "
            f"{_some(unknown)} unknown; expected the names of Lightning's state_dict, such as "
            f"{next(iter(official))}"
        )
    return network, {ours: found[name] for name, ours in official.items()}


def _read_lightning(path: Path) -> dict[str, Tensor]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: not readable as a checkpoint without running code in it "
            f"({type(error).__name__}); where you trust it, load it with torch and save its "
            '["state_dict"] alone'
        ) from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a Lightning checkpoint with a state_dict of tensors")
    return state


def _config_of(found: dict[str, Tensor]) -> SiLKConfig:
    """The widths of an official checkpoint; where a tensor is missing, the official ones."""
    default = SiLKConfig()

    def width(name: str, otherwise: int) -> int:
        tensor = found.get(_official_name(name))
        return otherwise if tensor is None else len(tensor)

    channels = [width("backbone.0.0.0.bias", 0)]
    while channels[-1]:
        channels.append(width(f"backbone.{len(channels)}.0.0.bias", 0))
    return SiLKConfig(
        tuple(channels[:-1]) or default.channels,
        width("score_head.0.0.bias", default.lateral),
        width("descriptor_head.1.0.bias", default.descriptor_dim),
    )


def _official_name(name: str) -> str:
    ours = next(prefix for prefix in OFFICIAL_NAMES if name.startswith(prefix))
    return OFFICIAL_NAMES[ours] + name.removeprefix(ours)


def _some(names: list[str]) -> str:
    """How many names there are, and the first."""
    return f"{len(names)} tensors (first: {names[0]})" if names else "no tensor"
