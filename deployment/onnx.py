"""A network as one ONNX file: a profile for each client, compared with PyTorch before it is kept.

The graphs are plain operations of opset 20, so that ONNX Runtime, OpenCV, OpenVINO and TensorRT
take them.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import __version__
from ..data.features import Features
from ..data.geometry import CELL_MAP
from ..data.keypoints import KeypointChoice, sum_scores
from ..errors import InputError
from ..extras import require
from ..files import write_atomically
from ..networks.base import DenseMaps, Network

__all__ = ["OPSET", "PROFILES", "Parity", "export_onnx", "make_session"]

OPSET = 20
NMS_ROUNDS = 5
"""Of suppression, unrolled. Greedy suppression ends when nothing changes; among the best 1,000
keypoints of a photograph of 640x480 five rounds left none to change, four at most two."""
MOST_KEYPOINTS = 16384
"""That ``colmap`` can be asked for when it runs: a graph needs to know its most beforehand."""
SLAM_LOCAL_DIM, SLAM_GLOBAL_DIM = 256, 4096
"""HFNet_SLAM's descriptors; shorter ones are padded with zeros, which changes no distance."""

SHARE_IN_COMMON = 0.995
"""Of the keypoints: scores that differ in their last bits are ranked otherwise now and then."""
POSITION_TOLERANCE = 1e-3  # pixels
DESCRIPTOR_TOLERANCE = 1e-5
MAP_TOLERANCE = 1e-4


class Graph(nn.Module):
    """A network and what a profile adds to it.

    Attributes:
        profile: its name.
        inputs, outputs: names, in order.
        convention: where keypoints or map positions lie, for the file's metadata.
        size: (width, height) where the graph is made for one size alone.
    """

    profile: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    outputs: ClassVar[tuple[str, ...]]
    convention: ClassVar[str]
    size: tuple[int, int] | None = None

    def __init__(self, network: Network, choice: KeypointChoice):
        super().__init__()
        self.network, self.choice = network, choice
        names = self.outputs if network.global_dim else self.outputs_without_global()
        self.output_names = names

    def outputs_without_global(self) -> tuple[str, ...]:
        """The outputs for a network that has no global descriptor."""
        return tuple(name for name in self.outputs if name != "global_descriptor")

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace the graph with."""
        raise NotImplementedError

    def dynamic_shapes(self) -> tuple[dict | None, ...]:
        """Which axes of the inputs may vary."""
        raise NotImplementedError

    def feed(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs for an image (H, W) gray or (H, W, 3) red, green, blue, uint8."""
        raise NotImplementedError

    def decode(self, outputs: dict[str, np.ndarray], size: tuple[int, int]) -> Features | None:
        """The features that its client would see, in pixels; None for graphs that give maps."""
        raise NotImplementedError


def _pixel_scores(maps: DenseMaps) -> Tensor:
    return maps.pixel_scores()


def _find_keypoints(scores: Tensor, choice: KeypointChoice, limit: int) -> tuple[Tensor, Tensor]:
    """What ``choice`` finds in a score map (1, H, W), in operations of fixed shape.

    Returns:
        keypoints (limit, 2) and scores (limit,), descending; below 0 where there is none.
    """
    ranked = sum_scores(scores, choice.rank_radius) if choice.rank_radius else scores
    border, (height, width) = choice.border, scores.shape[1:]
    inner = ranked[:, border : height - border, border : width - border]
    kept = _suppress(inner, choice.nms_radius).flatten()
    best, places = F.pad(kept, (0, limit), value=-1.0).topk(limit)
    columns = inner.shape[2]
    x, y = places % columns + border, places // columns + border
    points = torch.stack([x, y], 1).float()
    if choice.refine_radius:
        points = points + _moves(scores[0], x, y, choice.refine_radius)
    return points, best


def _suppress(scores: Tensor, radius: int) -> Tensor:
    """(1, H, W) -> the scores of what greedy suppression keeps, -1 elsewhere."""

    def window_maxima(values: Tensor) -> Tensor:
        return F.max_pool2d(values, 2 * radius + 1, 1, radius)

    if not radius:
        return scores
    kept = torch.where(scores == window_maxima(scores), scores, -1.0)
    for _ in range(NMS_ROUNDS - 1):
        standing = torch.where(window_maxima(kept) > 0, -1.0, scores)
        peaks = torch.where(standing == window_maxima(standing), standing, -1.0)
        kept = torch.maximum(kept, peaks)
    return kept


def _moves(scores: Tensor, x: Tensor, y: Tensor, radius: int) -> Tensor:
    """From each pixel to the centre of gravity around it: ``data.keypoints.refine_keypoints``."""
    side, stride = 2 * radius + 1, scores.shape[1] + 2 * radius
    padded = F.pad(scores, [radius] * 4).flatten()
    steps = torch.arange(side)
    rows = (y[:, None] + steps) * stride + x[:, None]
    weights = padded[(rows[:, :, None] + steps).flatten(1)]
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    return weights @ torch.stack([offsets.repeat(side), offsets.repeat_interleave(side)], 1)


def _describe(descriptor_map: Tensor, points: Tensor) -> Tensor:
    """The map (1, D, h, w) sampled bilinearly at points (N, 2) in pixels: (N, D), unit length."""
    height, width = descriptor_map.shape[2:]
    x, y = CELL_MAP.to_map(points).unbind(1)
    x, y = x.clamp(min=0).clamp(max=width - 1), y.clamp(min=0).clamp(max=height - 1)
    left, top = x.floor(), y.floor()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    along, down = x - left, y - top
    cells = descriptor_map[0].flatten(1).T
    total = 0
    for row, over in ((top, 1 - down), (bottom, down)):
        for column, across in ((left, 1 - along), (right, along)):
            values = cells[(row * width + column).long()]
            total = total + values * (over * across)[:, None]
    return F.normalize(total, dim=1)


def _to_gray(image: Tensor) -> Tensor:
    """(1, 3, H, W) red, green, blue in [0, 1] -> (1, 1, H, W), to the gray levels of OpenCV."""
    red, green, blue = (image * 255).round().split(1, 1)
    return ((red * 4899 + green * 9617 + blue * 1868) / 16384 + 0.5).floor() / 255


def _seen_by(network: Network, image: Tensor) -> Tensor:
    return image if network.channels == 3 else _to_gray(image)


class Sparse(Graph):
    """Photograph -> features, for ONNX Runtime."""

    profile = "sparse"
    outputs = ("keypoints", "scores", "descriptors", "global_descriptor")
    convention = "keypoints (N, 2): x, y in pixels of the image, centre of the first pixel (0, 0)"

    def example(self):
        return (torch.zeros(1, self.network.channels, 120, 168, dtype=torch.uint8),)

    def dynamic_shapes(self):
        return ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)

    def forward(self, image: Tensor):
        maps = self.network.maps(image.float() / 255)
        limit = self.choice.max_num_keypoints
        points, scores = _find_keypoints(_pixel_scores(maps), self.choice, limit)
        good = scores > self.choice.threshold
        points, scores = points[good], scores[good]
        parts = points, scores, _describe(maps.descriptor_map, points)
        return (*parts, maps.global_descriptor[0]) if self.network.global_dim else parts

    def feed(self, image):
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        return {"image": np.ascontiguousarray(planes)[None]}

    def decode(self, outputs, size):
        return Features(size, *(outputs[name] for name in self.output_names))


class Maps(Graph):
    """Dense maps of a batch, for TensorRT, NPUs and C++."""

    profile = "maps"
    outputs = ("score_map", "descriptor_map", "global_descriptor")
    convention = (
        "score_map (B, H, W): one element per pixel; descriptor_map (B, D, h, w): element (i, j) "
        "is at pixel (8 j + 3.5, 8 i + 3.5), centre of the first pixel (0, 0)"
    )

    def example(self):
        return (torch.zeros(2, self.network.channels, 120, 168),)

    def dynamic_shapes(self):
        return (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)

    def forward(self, image: Tensor):
        maps = self.network.maps(image)
        parts = _pixel_scores(maps), maps.descriptor_map
        return (*parts, maps.global_descriptor) if self.network.global_dim else parts

    def feed(self, image):
        return {"image": Sparse.feed(self, image)["image"].astype(np.float32) / 255}

    def decode(self, outputs, size):
        return None


class _Colours(Graph):
    """A graph that sees (1, 3, H, W) float32 red, green, blue in [0, 1]."""

    def example(self):
        width, height = self.size or (168, 120)
        return (torch.zeros(1, 3, height, width),)

    def dynamic_shapes(self):
        return ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)

    def feed(self, image):
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
        return {"image": image.transpose(2, 0, 1)[None].astype(np.float32) / 255}


class OpenCV(_Colours):
    """OpenCV 5's ``cv2.ALIKED.create(FILE).detectAndCompute(image, None)``."""

    profile = "opencv"
    outputs = ("keypoints", "descriptors", "scores")
    convention = "keypoints (K, 2): 2 x / width - 1, 2 y / height - 1, as cv2.ALIKED reads them"
    size = (640, 640)

    def dynamic_shapes(self):
        return (None,)

    def forward(self, image: Tensor):
        maps = self.network.maps(_seen_by(self.network, image))
        limit = self.choice.max_num_keypoints
        points, scores = _find_keypoints(_pixel_scores(maps), self.choice, limit)
        descriptors = _describe(maps.descriptor_map, points)
        return 2 * points / torch.tensor(self.size) - 1, descriptors, scores[:, None]

    def decode(self, outputs, size):
        good = outputs["scores"][:, 0] > self.choice.threshold
        keypoints = ((outputs["keypoints"][good] + 1) / 2 * np.array(size)).astype(np.float32)
        return Features(
            size, keypoints, outputs["scores"][good, 0], outputs["descriptors"][good]
        )


class COLMAP(_Colours):
    """COLMAP 4's slot for ALIKED, as ``--AlikedExtraction.n16rot_model_path``."""

    profile = "colmap"
    inputs = ("image", "max_keypoints", "min_score")
    outputs = ("keypoints", "descriptors", "scores")
    convention = (
        "keypoints (1, K, 2): -1 is the centre of the first, 1 of the last pixel of the input"
    )

    def example(self):
        return (*super().example(), torch.tensor(1000), torch.tensor(0.0))

    def dynamic_shapes(self):
        return (*super().dynamic_shapes(), None, None)

    def forward(self, image: Tensor, max_keypoints: Tensor, min_score: Tensor):
        maps = self.network.maps(_seen_by(self.network, image))
        points, scores = _find_keypoints(_pixel_scores(maps), self.choice, MOST_KEYPOINTS)
        good = (scores > self.choice.threshold) & (scores >= min_score)
        good = good & (torch.arange(MOST_KEYPOINTS) < max_keypoints)
        points, scores = points[good], scores[good]
        descriptors = _describe(maps.descriptor_map, points)
        last = torch.stack([torch.scalar_tensor(side - 1) for side in image.shape[:1:-1]])
        return (2 * points / last - 1)[None], descriptors[None], scores[None]

    def feed(self, image):
        limits = np.array(self.choice.max_num_keypoints), np.array(0, np.float32)
        return {**super().feed(image), "max_keypoints": limits[0], "min_score": limits[1]}

    def decode(self, outputs, size):
        keypoints, descriptors, scores = (outputs[name][0] for name in self.outputs)
        keypoints = ((keypoints + 1) / 2 * (np.array(size) - 1)).astype(np.float32)
        return Features(size, keypoints, scores, descriptors)


class HFNetSLAM(Graph):
    """HFNet_SLAM and its kin, which read the maps of HF-Net's TensorFlow model."""

    profile = "hfnet-slam"
    inputs = ("image:0",)
    outputs = ("scores_dense_nms:0", "local_descriptor_map:0", "global_descriptor:0")
    convention = (
        "scores_dense_nms:0 (1, H, W): one element per pixel; local_descriptor_map:0 (1, h, w, 256)"
        ": corner elements at the centres of the image's corner pixels"
    )

    def __init__(self, network: Network, choice: KeypointChoice):
        if not network.global_dim:
            raise InputError(
                "--profile hfnet-slam: this model has no global descriptor, which that client needs"
            )
        for dim, most, kind in (
            (network.descriptor_dim, SLAM_LOCAL_DIM, "local"),
            (network.global_dim, SLAM_GLOBAL_DIM, "global"),
        ):
            if dim > most:
                raise InputError(
                    f"--profile hfnet-slam: {kind} descriptors of {dim} numbers; that client reads "
                    f"{most} at most"
                )
        super().__init__(network, choice)

    def example(self):
        return (torch.zeros(1, 120, 168, self.network.channels),)

    def dynamic_shapes(self):
        return ({1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)

    def forward(self, image: Tensor):
        maps = self.network.maps(image.permute(0, 3, 1, 2) / 255)
        scores = _pixel_scores(maps)
        border, (height, width) = self.choice.border, scores.shape[1:]
        inner = scores[:, border : height - border, border : width - border]
        kept = F.pad(_suppress(inner, self.choice.nms_radius).clamp(min=0), [border] * 4)
        values = maps.descriptor_map[0]
        across = _interpolation(values.shape[2], width)
        down = _interpolation(values.shape[1], height)
        local = F.normalize(down @ (values @ across.T), dim=0).permute(1, 2, 0)[None]
        local = F.pad(local, (0, SLAM_LOCAL_DIM - self.network.descriptor_dim))
        whole = F.pad(maps.global_descriptor, (0, SLAM_GLOBAL_DIM - self.network.global_dim))
        return kept, local, whole

    def feed(self, image):
        pixels = image[..., None] if image.ndim == 2 else image
        return {"image:0": pixels[None].astype(np.float32)}

    def decode(self, outputs, size):
        return None


def _interpolation(cells: int, pixels: int) -> Tensor:
    """(cells, cells): a map at cell centres -> the same map with its ends at the end pixels."""
    places = torch.arange(cells).float()
    image = places * ((pixels - 1) / torch.scalar_tensor(cells - 1).clamp(min=1))
    wanted = CELL_MAP.to_map(image).clamp(min=0).clamp(max=cells - 1)
    return (1 - (wanted[:, None] - places).abs()).clamp(min=0)


PROFILES: dict[str, type[Graph]] = {
    graph.profile: graph for graph in (Sparse, Maps, OpenCV, COLMAP, HFNetSLAM)
}


@dataclass
class Parity:
    """How far an ONNX file is from PyTorch, the worst of several photographs.

    Attributes:
        sizes: (width, height) of each.
        keypoints: of PyTorch, in all of them.
        in_common: the least share of keypoints that both find.
        position: the farthest that one of these lies apart, in pixels.
        descriptor, score, global_descriptor, map: the largest difference of a number.
    """

    sizes: list[tuple[int, int]]
    keypoints: int = 0
    in_common: float = 1.0
    position: float = 0.0
    descriptor: float = 0.0
    score: float = 0.0
    global_descriptor: float = 0.0
    map: float = 0.0

    def complaint(self) -> str | None:
        """What is out of bounds, or None."""
        bounds = {
            "position": POSITION_TOLERANCE,
            "descriptor": DESCRIPTOR_TOLERANCE,
            "score": DESCRIPTOR_TOLERANCE,
            "global_descriptor": DESCRIPTOR_TOLERANCE,
            "map": MAP_TOLERANCE,
        }
        if not self.in_common >= SHARE_IN_COMMON:
            return f"{self.in_common:.1%} of the keypoints in common, at least {SHARE_IN_COMMON:.1%}"
        for name, bound in bounds.items():
            if not getattr(self, name) <= bound:
                return f"{name} differs by {getattr(self, name):.2g}, at most {bound:.0e}"
        return None


def export_onnx(
    network: Network,
    profile: str,
    path: str | Path,
    *,
    choice: KeypointChoice,
    photographs: list[np.ndarray],
    size: tuple[int, int] | None = None,
    licences: dict[str, str] | None = None,
) -> Parity:
    """Write a network as an ONNX file that gives what PyTorch gives.

    Args:
        network: as ``networks.registry.load`` gives it, on the CPU in float32.
        profile: one of ``PROFILES``.
        choice: how keypoints are chosen, in the graph.
        photographs: (H, W) or (H, W, 3) uint8, of various sizes, to compare on.
        size: (width, height) of a profile that is made for one size.
        licences: of code, weights, teachers and photographs, for the file's metadata.

    Raises:
        InputError: a profile that does not exist or that this network does not fit, or a file that
            differs from PyTorch; nothing is left then.
    """
    if profile not in PROFILES:
        raise InputError(f"--profile {profile}: expected one of {', '.join(PROFILES)}")
    if network.score_free or type(network).describe is not Network.describe:
        raise InputError(
            f"--model {network.name}: only networks with a score map and a descriptor map on 8x8 "
            "cells can be exported, such as a student or superpoint"
        )
    graph = PROFILES[profile](network, network.choice_for(choice)).eval()
    if size is not None:
        if graph.size is None:
            raise InputError(f"--size: profile {profile} takes images of any size; leave it out")
        graph.size = size
    content = _to_onnx(graph, licences or {})
    parity = compare(graph, content, photographs)
    if complaint := parity.complaint():
        raise InputError(
            f"{path}: not written, the ONNX graph differs from PyTorch: {complaint} were expected; "
            "try another version of torch or onnxruntime"
        )
    write_atomically(path, content, flush=True)
    return parity
