"""LightGlue as one ONNX file for OpenCV 5's ``cv2.LightGlueMatcher``, which asks for four inputs.

The graph takes no shortcuts: all layers, all keypoints. Kornia stops early and leaves keypoints out
where it is sure, which changes a few matches.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.features import Features
from ..networks.lightglue import DESCRIPTOR_DIM, LightGlueMatcher
from ..networks.onnx import make_session
from ..networks.registry import load
from .onnx import Parity, keep, to_onnx

__all__ = ["LightGlue", "export_lightglue", "pairs_of"]

STUDENT = "small"
"""Whose features are matched to compare: it describes as ALIKED-N16 does."""
SMALLER = 0.8
"""A photograph is matched with itself, its sides so much shorter."""


class LightGlue(nn.Module):
    """Keypoints (1, N, 2), (1, M, 2) and descriptors (1, N, D), (1, M, D) -> matches and scores.

    Keypoints are divided by half the image's longer side; where they are counted from makes no
    difference. Row i of ``matches0`` (N, 2) is i and its partner or -1; ``mscores0`` (N,).

    Args:
        matcher: on the CPU.
    """

    profile = "opencv"
    inputs = ("kpts0", "kpts1", "desc0", "desc1")
    output_names = ("matches0", "mscores0")

    def __init__(self, matcher: LightGlueMatcher):
        super().__init__()
        self.network, self.weights = matcher.network, matcher.digest

    def example(self) -> tuple[Tensor, ...]:
        return tuple(torch.rand(1, count, dim) for dim in (2, DESCRIPTOR_DIM) for count in (40, 30))

    def dynamic_shapes(self) -> tuple[dict, ...]:
        return ({1: torch.export.Dim.DYNAMIC},) * 4

    def metadata(self) -> dict[str, str]:
        return {
            "network": "lightglue",
            "weights": self.weights,
            "descriptor_dim": str(DESCRIPTOR_DIM),
            "convention": "keypoints: x, y in halves of the image's longer side, from any origin",
        }

    def forward(self, kpts0: Tensor, kpts1: Tensor, desc0: Tensor, desc1: Tensor):
        network, assignment = self.network, self.network.log_assignment[-1]
        desc0, desc1 = network.input_proj(desc0), network.input_proj(desc1)
        places0, places1 = network.posenc(kpts0), network.posenc(kpts1)
        for layer in network.transformers:
            desc0, desc1 = layer(desc0, desc1, places0, places1)
        projected0, projected1 = assignment.final_proj(desc0), assignment.final_proj(desc1)
        alike = projected0 @ projected1.transpose(1, 2) / projected0.shape[2] ** 0.5
        scores = F.log_softmax(alike, 2) + F.log_softmax(alike, 1)
        scores = scores + F.logsigmoid(assignment.matchability(desc0))
        scores = (scores + F.logsigmoid(assignment.matchability(desc1)).transpose(1, 2))[0].exp()
        best, partners = scores.max(1)
        rows = torch.arange(scores.shape[0])
        mutual = scores.argmax(0)[partners] == rows
        partners = torch.where(mutual & (best > network.conf.filter_threshold), partners, -1)
        return torch.stack([rows, partners], 1), best

    @classmethod
    def feed(cls, *pair: Features) -> dict[str, np.ndarray]:
        """The inputs for the features of two images."""
        places = [each.keypoints / (max(each.image_size) / 2) for each in pair]
        arrays = [*places, *(each.descriptors for each in pair)]
        named = zip(cls.inputs, arrays, strict=True)
        return {name: array[None].astype(np.float32) for name, array in named}


def pairs_of(photographs: list[np.ndarray], count: int) -> list[tuple[Features, Features]]:
    """At most so many features of photographs (H, W, 3) uint8, each full and smaller."""
    student = load(STUDENT, device="cpu")
    sizes = [(image, cv2.resize(image, None, fx=SMALLER, fy=SMALLER)) for image in photographs]
    return [tuple(student.extract(i, max_num_keypoints=count) for i in pair) for pair in sizes]


def export_lightglue(
    matcher: LightGlueMatcher, path: Path, pairs: list[tuple[Features, Features]]
) -> Parity:
    """Write LightGlue as an ONNX file, after comparing it with Kornia's.

    Args:
        matcher: on the CPU; it takes no shortcuts from now on.
        pairs: of features to match.

    Raises:
        InputError: matches or scores differ; nothing is written then.
    """
    conf = matcher.network.conf
    conf.depth_confidence = conf.width_confidence = -1
    content = to_onnx(LightGlue(matcher), {"weights": matcher.license})
    session, parity = make_session(content), Parity()
    for pair in pairs:
        matches, scores = matcher.match(*pair)
        wanted = dict(zip(map(tuple, matches.tolist()), scores, strict=True))
        matches, scores = session.run(None, LightGlue.feed(*pair))
        found = dict(zip(map(tuple, matches.tolist()), scores, strict=True))
        found = {match: score for match, score in found.items() if match[1] >= 0}
        both = sorted(found.keys() & wanted.keys())
        parity.sizes.append(pair[0].image_size)
        parity.share(len(both), len(found), len(wanted))
        parity.note(
            "match_scores", *(np.array([each[m] for m in both]) for each in (found, wanted))
        )
    keep(path, content, parity)
    return parity
