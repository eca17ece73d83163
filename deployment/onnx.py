"""A network as one ONNX file: a profile for each client, compared with PyTorch before it is kept.

The graphs are plain operations of opset 20, so that ONNX Runtime, OpenCV, OpenVINO and TensorRT
take them.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import cv2
import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional as F

from .. import __version__
from ..data.cells import distributions
from ..data.features import Features
from ..data.geometry import CELL_MAP
from ..data.images import list_images, read_image, to_tensor
from ..data.keypoints import KeypointChoice, sum_scores
from ..errors import InputError
from ..extras import require
from ..files import sweep, write_atomically
from ..networks.base import DenseMaps, Network, Student
from ..networks.onnx import PREFIX, make_session, seal

__all__ = [
    "OPSET",
    "PROFILES",
    "Parity",
    "compare",
    "export_onnx",
    "keep",
    "make_graph",
    "quantize",
    "to_onnx",
]

OPSET = 20
EXAMPLE_SIZE = (168, 120)
NMS_ROUNDS = 5
"""Of suppression, unrolled. Greedy suppression ends when nothing changes; among the best 1,000
keypoints of a photograph of 640x480 five rounds left none to change, four at most two."""
HUGE = 1e30
"""Times the smallest difference of two scores still more than any score."""
MOST_KEYPOINTS = 16384
"""That ``colmap`` can be asked for when it runs: a graph needs to know its most beforehand."""
SLAM_LOCAL_DIM, SLAM_GLOBAL_DIM = 256, 4096
"""HFNet_SLAM's descriptors; shorter ones are padded with zeros, which changes no distance."""

SHARE_IN_COMMON = 0.995
"""Of the keypoints: scores that differ in their last bits are ranked otherwise now and then."""
TOLERANCES = {
    "keypoints": 1e-3,
    "scores": 1e-5,
    "descriptors": 1e-5,
    "global_descriptor": 1e-5,
    "match_scores": 5e-4,
}
"""The largest difference from PyTorch: of positions in pixels, of numbers of unit vectors, of
LightGlue's probabilities, which in float32 lie up to 7e-5 from those in float64, in PyTorch as in
ONNX Runtime, and up to 1.3e-4 from each other."""
MAP_TOLERANCE = 1e-4
"""Of numbers of maps; positions between pixels rest on many of them."""
CALIBRATION_PHOTOGRAPHS, CALIBRATION_SIZE = 64, (640, 480)
"""How many photographs tell the ranges of an int8 graph, and at which size."""
SAME_KEYPOINT = 0.5
"""Pixels: keypoints of two programs that lie farther apart are different ones."""


class Graph(nn.Module):
    """A network and what a profile adds to it.

    Attributes:
        profile: its name.
        inputs, outputs: names, in order.
        output_names: those of them that the network has.
        convention: where keypoints or map positions lie, for the file's metadata.
        axes: of the image that may vary, unless ``size`` is given.
        size: (width, height) where the graph is made for one size alone.
    """

    profile: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    outputs: ClassVar[tuple[str, ...]]
    convention: ClassVar[str]
    axes: ClassVar[tuple[int, ...]] = (2, 3)
    size: tuple[int, int] | None = None

    def __init__(self, network: Network, choice: KeypointChoice):
        super().__init__()
        self.network, self.choice = network, choice
        has_global = bool(network.global_dim)
        self.output_names = tuple(
            name for name in self.outputs if has_global or name != "global_descriptor"
        )

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace the graph with; two images where it takes a batch."""
        shape = (self.size or EXAMPLE_SIZE)[::-1] + (3,) * (self.network.channels == 3)
        image, *rest = map(torch.as_tensor, self.feed(np.zeros(shape, np.uint8)).values())
        return (image.repeat(2 if 0 in self.axes else 1, 1, 1, 1), *rest)

    def dynamic_shapes(self) -> tuple[dict | None, ...]:
        """Which axes of the inputs may vary."""
        vary = dict.fromkeys(self.axes, torch.export.Dim.DYNAMIC)
        return (None if self.size else vary, *[None] * (len(self.inputs) - 1))

    def metadata(self) -> dict[str, str]:
        """What the file says of itself, besides its profile and version."""
        told = ("weights", "channels", "descriptor_dim", "global_dim")
        return {
            "network": self.network.name,
            **{name: str(getattr(self.network, name)) for name in told},
            "convention": self.convention,
            "keypoints": json.dumps(asdict(self.choice)),
        }

    def maps(self, image: Tensor) -> DenseMaps:
        """What ``network.maps`` gives of (B, C, H, W) float32 in [0, 1], with a softmax that ONNX
        Runtime is fast at."""
        if not isinstance(self.network, Student):
            return self.network.maps(image)
        return self.network(image).to_maps(image, distributions)

    def find_keypoints(
        self, score_map: Tensor, limit: int, suppress: Callable
    ) -> tuple[Tensor, Tensor]:
        """What ``choice`` finds in a score map (1, H, W), in operations of fixed shape.

        Args:
            suppress: one of the two ways below.

        Returns:
            keypoints (limit, 2) and scores (limit,), descending; 0 where there is none.
        """
        choice = self.choice
        ranked = sum_scores(score_map, choice.rank_radius) if choice.rank_radius else score_map
        ranked = _without_border(ranked, choice.border)
        kept = suppress(ranked, choice.nms_radius, limit) if choice.nms_radius else ranked
        best, places = _best(kept, limit)
        columns = ranked.shape[2]
        places = places * (best > 0).long()  # what is no keypoint may lie beyond a small image
        # The exporter knows no remainder of a size that varies; OpenCV knows no floor of integers.
        rows = torch.div(places, columns, rounding_mode="trunc")
        x, y = places - rows * columns, rows
        points = torch.stack([x, y], 1).float()
        if choice.refine_radius:
            points = points + _moves(score_map[0], x, y, choice.refine_radius)
        return points, best

    def feed(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs for an image (H, W) gray or (H, W, 3) red, green, blue, uint8."""
        raise NotImplementedError

    def decode(self, outputs: dict[str, np.ndarray], size: tuple[int, int]) -> Features | None:
        """The features that its client would see, in pixels; None for graphs that give maps."""
        return None


def _without_border(scores: Tensor, border: int) -> Tensor:
    """A score map (1, H, W) that is 0 in so many outermost rows and columns."""
    height, width = scores.shape[1:]
    inner = scores[:, border : height - border, border : width - border]
    return F.pad(inner, [border] * 4)


def _best(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The highest of a map (1, H, W) and their flat places; maps of fewer pixels end with 0."""
    return F.pad(scores.flatten(), (0, limit)).topk(limit)


def _window_maxima(scores: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(scores, 2 * radius + 1, 1, radius)


def _peaks(scores: Tensor, radius: int) -> Tensor:
    """The scores (1, H, W) that are the highest of their windows, 0 elsewhere.

    Plain arithmetic takes ONNX Runtime a third of the time of comparing and selecting.
    """
    return F.relu(scores - HUGE * (_window_maxima(scores, radius) - scores))


def _beyond(scores: Tensor, kept: Tensor, radius: int) -> Tensor:
    """The scores (1, H, W) that lie in no window of what is kept, 0 elsewhere."""
    return F.relu(scores - HUGE * _window_maxima(kept, radius))


def suppress_in_rounds(scores: Tensor, radius: int, limit: int | None = None) -> Tensor:
    """(1, H, W) -> the scores of what greedy suppression keeps in ``NMS_ROUNDS``, 0 elsewhere.

    For clients that have no loops.
    """
    kept = _peaks(scores, radius)
    for _ in range(NMS_ROUNDS - 1):
        kept = kept + _peaks(_beyond(scores, kept, radius), radius)
    return kept


def suppress_in_a_loop(scores: Tensor, radius: int, limit: int) -> Tensor:
    """(1, H, W) -> the scores of the ``limit`` best that greedy suppression keeps, 0 elsewhere.

    What lies below the best ``limit`` of the first round can no longer be among them.
    """
    kept = _peaks(scores, radius)
    floor = _best(kept, limit)[0][-1]
    standing = _beyond(scores, kept, radius)
    standing = F.relu(standing - HUGE * F.relu(floor - standing))

    def some_stand(kept: Tensor, standing: Tensor) -> Tensor:
        return standing.flatten().amax(0) > 0

    def one_round(kept: Tensor, standing: Tensor) -> tuple[Tensor, Tensor]:
        peaks = _peaks(standing, radius)
        return kept + peaks, _beyond(standing, peaks, radius)

    return while_loop(some_stand, one_round, (kept, standing))[0]


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


class Sparse(Graph):
    """Photograph -> features, for ONNX Runtime."""

    profile = "sparse"
    outputs = ("keypoints", "scores", "descriptors", "global_descriptor")
    convention = "keypoints (N, 2): x, y in pixels of the image, centre of the first pixel (0, 0)"

    def forward(self, image: Tensor):
        maps = self.maps(image.float() / 255)
        limit = self.choice.max_num_keypoints
        points, scores = self.find_keypoints(maps.pixel_scores(), limit, suppress_in_a_loop)
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
    axes = (0, 2, 3)

    def forward(self, image: Tensor):
        maps = self.maps(image)
        parts = maps.pixel_scores(), maps.descriptor_map
        return (*parts, maps.global_descriptor) if self.network.global_dim else parts

    def feed(self, image):
        return {"image": Sparse.feed(self, image)["image"].astype(np.float32) / 255}


class _Colours(Graph):
    """A graph that sees (1, 3, H, W) float32 red, green, blue in [0, 1]."""

    def maps(self, image):
        if self.network.channels == 1:  # to the gray levels of OpenCV
            red, green, blue = (image * 255).round().split(1, 1)
            image = ((red * 9798 + green * 19235 + blue * 3735) / 32768 + 0.5).floor() / 255
        return super().maps(image)

    def feed(self, image):
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
        return {"image": image.transpose(2, 0, 1)[None].astype(np.float32) / 255}


class OpenCV(_Colours):
    """OpenCV 5's ``cv2.ALIKED.create(FILE).detectAndCompute(image, None)``."""

    profile = "opencv"
    outputs = ("keypoints", "descriptors", "scores")
    convention = "keypoints (K, 2): 2 x / width - 1, 2 y / height - 1, as cv2.ALIKED reads them"
    size = (640, 640)

    def forward(self, image: Tensor):
        maps = self.maps(image)
        limit = self.choice.max_num_keypoints
        points, scores = self.find_keypoints(maps.pixel_scores(), limit, suppress_in_rounds)
        descriptors = _describe(maps.descriptor_map, points)
        return 2 * points / torch.tensor(self.size) - 1, descriptors, scores[:, None]

    def decode(self, outputs, size):
        good = outputs["scores"][:, 0] > self.choice.threshold
        keypoints = ((outputs["keypoints"][good] + 1) / 2 * np.array(size)).astype(np.float32)
        return Features(size, keypoints, outputs["scores"][good, 0], outputs["descriptors"][good])


class COLMAP(_Colours):
    """COLMAP 4's slot for ALIKED, as ``--AlikedExtraction.n16rot_model_path``."""

    profile = "colmap"
    inputs = ("image", "max_keypoints", "min_score")
    outputs = ("keypoints", "descriptors", "scores")
    convention = (
        "keypoints (1, K, 2): -1 is the centre of the first, 1 of the last pixel of the input"
    )

    def forward(self, image: Tensor, max_keypoints: Tensor, min_score: Tensor):
        maps = self.maps(image)
        scores = maps.pixel_scores()
        points, scores = self.find_keypoints(scores, MOST_KEYPOINTS, suppress_in_a_loop)
        good = (scores > self.choice.threshold) & (scores >= min_score)
        good = good & (torch.arange(MOST_KEYPOINTS) < max_keypoints)
        points, scores = points[good], scores[good]
        descriptors = _describe(maps.descriptor_map, points)
        last = torch.stack([torch.scalar_tensor(side - 1) for side in image.shape[:1:-1]])
        return (2 * points / last - 1)[None], descriptors[None], scores[None]

    def feed(self, image):
        most = np.array(self.choice.max_num_keypoints)
        return super().feed(image) | {"max_keypoints": most, "min_score": np.array(0, np.float32)}

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
    axes = (1, 2)

    def __init__(self, network: Network, choice: KeypointChoice):
        if not network.global_dim:
            raise InputError(
                "--profile hfnet-slam: this model has no global descriptor, which that client needs"
            )
        kinds = {
            "local": (network.descriptor_dim, SLAM_LOCAL_DIM),
            "global": (network.global_dim, SLAM_GLOBAL_DIM),
        }
        for kind, (dim, most) in kinds.items():
            if dim > most:
                raise InputError(
                    f"--profile hfnet-slam: {kind} descriptors of {dim} numbers; that client reads "
                    f"{most} at most"
                )
        super().__init__(network, choice)

    def forward(self, image: Tensor):
        maps = self.maps(image.permute(0, 3, 1, 2) / 255)
        scores = maps.pixel_scores()
        inner = _without_border(scores, self.choice.border)
        kept = suppress_in_rounds(inner, self.choice.nms_radius)
        values = maps.descriptor_map[0]
        across = _interpolation(values.shape[2], scores.shape[2])
        down = _interpolation(values.shape[1], scores.shape[1])
        local = F.normalize(down @ (values @ across.T), dim=0).permute(1, 2, 0)[None]
        local = F.pad(local, (0, SLAM_LOCAL_DIM - self.network.descriptor_dim))
        whole = F.pad(maps.global_descriptor, (0, SLAM_GLOBAL_DIM - self.network.global_dim))
        return kept, local, whole

    def feed(self, image):
        pixels = image[..., None] if image.ndim == 2 else image
        return {"image:0": pixels[None].astype(np.float32)}


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
    """How far an ONNX file is from PyTorch, over several photographs.

    Attributes:
        sizes: (width, height) of each.
        in_common: the least share of keypoints, or matches, that both find.
        differences: output -> the largest difference of a number; of keypoints in common.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    in_common: float = 1.0
    differences: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, found: np.ndarray, wanted: np.ndarray) -> None:
        """Take two arrays that should be the same into account."""
        same_shape = found.shape == wanted.shape
        largest = float(np.abs(found - wanted).max(initial=0)) if same_shape else math.inf
        self.differences[name] = max(self.differences.get(name, 0.0), largest)

    def share(self, common: int, *found: int) -> None:
        """Take into account how many of each program's keypoints, or matches, both found."""
        if any(found):
            self.in_common = min(self.in_common, common / max(found))

    def complaint(self) -> str | None:
        """What is out of bounds, or None."""
        if not self.in_common >= SHARE_IN_COMMON:
            return f"{self.in_common:.2%} in common; expected {SHARE_IN_COMMON:.1%}"
        for name, difference in self.differences.items():
            bound = TOLERANCES.get(name, MAP_TOLERANCE)
            if not difference <= bound:
                return f"{name} differ by {difference:.2g}; expected {bound:.0e} at most"
        return None

    def __str__(self) -> str:
        sizes = ", ".join(f"{width}x{height}" for width, height in self.sizes)
        differences = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        return f"{sizes}: {self.in_common:.2%} in common; differences: {differences}"


def export_onnx(
    network: Network,
    profile: str,
    path: str | Path,
    *,
    choice: KeypointChoice,
    photographs: list[np.ndarray],
    size: tuple[int, int] | None = None,
    licences: Mapping[str, str] | None = None,
    calibration: str | Path | None = None,
) -> Parity:
    """Write a network as an ONNX file, after comparing it with PyTorch.

    Args:
        network: as ``networks.registry.load`` gives it, on the CPU in float32.
        profile: one of ``PROFILES``.
        choice: how keypoints are chosen, in the graph.
        photographs: (H, W) or (H, W, 3) uint8, of various sizes, to compare on.
        size: (width, height) of a profile that is made for one size.
        licences: of weights, teachers and photographs, for the file's metadata.
        calibration: a folder of photographs to quantize convolutions by; the comparison is of the
            graph before that.

    Raises:
        InputError: no such profile, a network that does not fit it, or a graph that differs from
            PyTorch: nothing is written then.
    """
    graph = make_graph(network, profile, choice, size)
    content = to_onnx(graph, licences or {})
    parity = compare(graph, content, photographs)
    if calibration is not None:
        content = quantize(graph, content, calibration)
    keep(Path(path), content, parity)
    return parity


def keep(path: Path, content: bytes, parity: Parity) -> None:
    """Write an ONNX file that was compared with PyTorch.

    Raises:
        InputError: it differs; nothing is written then.
    """
    if complaint := parity.complaint():
        raise InputError(
            f"{path}: not written, for the graph differs from PyTorch: {complaint}; try other "
            "versions of torch and onnxruntime"
        )
    sweep(path)
    write_atomically(path, seal(content), flush=True)


def make_graph(
    network: Network, profile: str, choice: KeypointChoice, size: tuple[int, int] | None = None
) -> Graph:
    """What ``export_onnx`` exports, as a module that PyTorch runs."""
    if profile not in PROFILES:
        raise InputError(f"--profile {profile}: expected one of {', '.join(PROFILES)}")
    own_way = type(network).describe is not Network.describe
    if own_way or not network.describes_given_keypoints:
        raise InputError(
            f"--model {network.name}: only a network with a score map and a descriptor map on 8x8 "
            "cells can be exported, such as a student or superpoint"
        )
    graph = PROFILES[profile](network, network.choice_for(choice)).eval()
    if size is not None and graph.size is None:
        raise InputError(f"--size: profile {profile} takes images of any size; leave it out")
    graph.size = size or graph.size
    return graph


def to_onnx(graph: Graph, licences: Mapping[str, str]) -> bytes:
    """The content of the ONNX file of a graph."""
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            graph.example(),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.output_names),
            dynamic_shapes=graph.dynamic_shapes(),
            verbose=False,
        )
    model = program.model_proto
    _forget_sources(model.graph)
    model.producer_name, model.producer_version = "hfnet-distill", __version__
    unknown = dict.fromkeys(("weights", "teachers", "photographs"), "see the model card")
    licences = {"code": "MIT", **unknown, **licences}
    told = {"profile": graph.profile, "version": __version__, **graph.metadata()}
    for key, value in {**told, **{f"licence.{of}": text for of, text in licences.items()}}.items():
        model.metadata_props.add(key=f"{PREFIX}{key}", value=value)
    return model.SerializeToString()


def _forget_sources(graph) -> None:
    """The exporter notes at each node which line of which file on this machine it comes from."""
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            _forget_sources(attribute.g)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself, which a user can do nothing about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def compare(graph: Graph, content: bytes, photographs: list[np.ndarray]) -> Parity:
    """Run photographs (H, W) or (H, W, 3) uint8 through an ONNX file and through PyTorch."""
    session = make_session(content)
    parity = Parity()
    for photograph in photographs:
        if graph.size is not None:
            photograph = cv2.resize(photograph, graph.size, interpolation=cv2.INTER_AREA)
        feed = graph.feed(photograph)
        outputs = dict(zip(graph.output_names, session.run(None, feed), strict=True))
        size = (photograph.shape[1], photograph.shape[0])
        parity.sizes.append(size)
        found = graph.decode(outputs, size)
        if found is not None:
            images = to_tensor(photograph, graph.network.channels)[None]
            _note_features(parity, found, graph.network.features(images, graph.choice)[0])
            continue
        with torch.inference_mode():
            wanted = graph(*(torch.from_numpy(feed[name]) for name in graph.inputs))
        for (name, values), of_torch in zip(outputs.items(), wanted, strict=True):
            parity.note(name, values, of_torch.numpy())
    return parity


def _note_features(parity: Parity, found: Features, wanted: Features) -> None:
    distances, partners = KDTree(wanted.keypoints).query(found.keypoints)
    rows = np.flatnonzero(distances < SAME_KEYPOINT)
    parity.share(len(rows), len(found.keypoints), len(wanted.keypoints))
    for name in ("keypoints", "scores", "descriptors"):
        parity.note(name, getattr(found, name)[rows], getattr(wanted, name)[partners[rows]])
    if found.global_descriptor is not None:
        parity.note("global_descriptor", found.global_descriptor, wanted.global_descriptor)


def quantize(graph: Graph, content: bytes, folder: str | Path) -> bytes:
    """Static int8 quantization of a graph's convolutions, per channel (QDQ).

    The last convolution of each head stays in float32: scores and descriptors are read off it.

    Args:
        content: of the ONNX file of ``graph``.
        folder: photographs that say which range each map takes.
    """
    onnx = require("onnx", "onnx")
    tools = require("onnxruntime.quantization", "onnx")
    names = list_images(folder)[:CALIBRATION_PHOTOGRAPHS]

    channels = 3 if isinstance(graph, _Colours) else graph.network.channels
    size = graph.size or CALIBRATION_SIZE
    images = (read_image(Path(folder) / name, channels=channels) for name in names)
    feeds = (graph.feed(cv2.resize(i, size, interpolation=cv2.INTER_AREA)) for i in images)

    class Reader(tools.CalibrationDataReader):
        def get_next(self):
            return next(feeds, None)

    with TemporaryDirectory() as scratch, _quiet():
        plain, quantized = Path(scratch, "plain.onnx"), Path(scratch, "int8.onnx")
        plain.write_bytes(content)
        tools.quantize_static(
            plain,
            quantized,
            Reader(),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=not _has_vnni(),
            nodes_to_exclude=_last_convolutions(onnx.load_from_string(content)),
        )
        return quantized.read_bytes()


def _last_convolutions(model) -> list[str]:
    """The names of the convolutions that no other one comes after."""
    leads_on: set[str] = set()  # values that a convolution is computed from
    last = []
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" and node.output[0] not in leads_on:
            last.append(node.name)
        if node.op_type == "Conv" or leads_on.intersection(node.output):
            leads_on.update(node.input)
    return last


def _has_vnni() -> bool:
    """Whether this processor adds int8 products without overflow; those without need 7 bits."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "vnni" in cpuinfo.read_text()
