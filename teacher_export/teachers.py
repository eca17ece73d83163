"""The registry of teachers: name -> a Teacher, which turns images into records and features."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.console import autocast
from data.geometry import CELL_MAP, average_map, resample_map, sample_map
from data.keypoints import KeypointChoice
from data.records import Features
from data.store import Field
from teacher_export.silk import SiLKOutput, load_silk
from teacher_export.superpoint import SuperPoint, score_map_from_cells
from teacher_export.weights import OfficialWeights, find_weights, load_arrays, load_strictly

__all__ = ["TEACHERS", "SiLKTeacher", "SuperPointTeacher", "Teacher"]


class Teacher(Protocol):
    """A network that is run once over photographs.

    Attributes:
        name: as ``--model`` names it.
        channels: 1 or 3, of the images it takes.
        weights: SHA-256 of its weights.

    It is made of where its weights are (None for where it looks itself), a device, and the
    precision of its network: float32, or bfloat16, which is coarser and on many processors faster.
    """

    name: str
    channels: int
    weights: str

    def fields(self, groups: list[str], size: tuple[int, int], top_k: int) -> dict[str, Field]:
        """The schema fields of the groups asked for, at an image size (width, height).

        Raises:
            ValueError: a group that this teacher cannot give.
        """

    def export(
        self, images: Tensor, groups: list[str], choice: KeypointChoice
    ) -> dict[str, np.ndarray]:
        """The fields of a batch (B, channels, H, W) float32 in [0, 1]; arrays lead with B."""

    def extract(self, image: Tensor, choice: KeypointChoice) -> Features:
        """The features of one image (channels, H, W) float32 in [0, 1], in its pixels."""


class SuperPointTeacher:
    """SuperPoint v1 with the official weights."""

    name = "superpoint"
    channels = 1
    descriptor_dim = 256
    official = OfficialWeights(
        model="SuperPoint",
        file="superpoint_v1.pth",
        url="https://github.com/magicleap/SuperPointPretrainedNetwork/raw/master/superpoint_v1.pth",
        git_blob="107a444ca318d487390137d619d49f2f0a3b1ad8",
        licence="Magic Leap, academic or non-profit non-commercial research only",
    )

    def __init__(self, weights: str | None, device: torch.device, precision: str = "float32"):
        path = find_weights(self.official, weights)
        state, self.weights = load_arrays(path)
        self.network = SuperPoint()
        load_strictly(self.network, state, path)
        self.network.eval().to(device, memory_format=torch.channels_last)
        self.device, self.precision = device, precision

    def fields(self, groups: list[str], size: tuple[int, int], top_k: int) -> dict[str, Field]:
        cells = (size[1] // 8, size[0] // 8)
        maps = {
            "score_map": Field(shape=(65, *cells), dtype="float16", geometry=CELL_MAP),
            "descriptor_map": Field(
                shape=(self.descriptor_dim, *cells), dtype="float16", geometry=CELL_MAP
            ),
        }
        return _select_fields(self, groups, maps, sparse_fields(top_k, self.descriptor_dim))

    @torch.inference_mode()
    def export(
        self, images: Tensor, groups: list[str], choice: KeypointChoice
    ) -> dict[str, np.ndarray]:
        logits, descriptor_map = self._forward(images)
        cells = SuperPoint.cell_distribution(logits)
        arrays = {}
        if "score_map" in groups:
            arrays["score_map"] = cells.half().cpu().numpy()
        if "descriptor_map" in groups:
            arrays["descriptor_map"] = descriptor_map.half().cpu().numpy()
        if "sparse" in groups:
            size = (images.shape[3], images.shape[2])
            found = [
                self._features(size, scores, descriptors, choice)
                for scores, descriptors in zip(
                    score_map_from_cells(cells), descriptor_map, strict=True
                )
            ]
            arrays |= pack_sparse(found, choice.top_k, self.descriptor_dim)
        return arrays

    @torch.inference_mode()
    def extract(self, image: Tensor, choice: KeypointChoice) -> Features:
        logits, descriptor_map = self._forward(image[None])
        score_map = score_map_from_cells(SuperPoint.cell_distribution(logits))[0]
        size = (image.shape[2], image.shape[1])
        return self._features(size, score_map, descriptor_map[0], choice)

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            return self.network(images)

    @staticmethod
    def _features(size, score_map: Tensor, descriptor_map: Tensor, choice) -> Features:
        keypoints, scores = choice(score_map.cpu().numpy())
        points = torch.from_numpy(keypoints).to(descriptor_map.device)
        descriptors = sample_map(descriptor_map[None], points[None], CELL_MAP)[0]
        return Features(size, keypoints, scores, F.normalize(descriptors, dim=1).cpu().numpy())


class SiLKTeacher:
    """SiLK: the packaged one, trained with ``train-teacher``, or one whose weights are named.

    Its ``descriptor_map`` comes in three forms: sampled at the centres of the student's cells,
    ``:averaged`` over each cell, which blurs what tells neighbours apart, and ``:full``, one for
    every pixel inside the border.
    """

    name = "silk"
    channels = 1
    PACKAGED = Path(__file__).parent / "packaged" / "silk.safetensors"

    def __init__(self, weights: str | None, device: torch.device, precision: str = "float32"):
        self.network, self.weights = load_silk(weights or self.PACKAGED)
        self.network.to(device, memory_format=torch.channels_last)
        self.geometry = self.network.config.geometry
        self.descriptor_dim = self.network.config.descriptor_dim
        self.device, self.precision = device, precision

    def fields(self, groups: list[str], size: tuple[int, int], top_k: int) -> dict[str, Field]:
        lost = int(2 * self.geometry.offset)
        inside = (size[1] - lost, size[0] - lost)
        cells = Field(
            shape=(self.descriptor_dim, size[1] // 8, size[0] // 8),
            dtype="float16",
            geometry=CELL_MAP,
        )
        maps = {
            "score_map": Field(shape=(1, *inside), dtype="float16", geometry=self.geometry),
            "descriptor_map": cells,
            "descriptor_map:averaged": cells,
            "descriptor_map:full": Field(
                shape=(self.descriptor_dim, *inside), dtype="float16", geometry=self.geometry
            ),
        }
        return _select_fields(self, groups, maps, sparse_fields(top_k, self.descriptor_dim))

    @torch.inference_mode()
    def export(
        self, images: Tensor, groups: list[str], choice: KeypointChoice
    ) -> dict[str, np.ndarray]:
        output = self._forward(images)
        size = (images.shape[3], images.shape[2])
        arrays = {}
        if "score_map" in groups:
            arrays["score_map"] = output.score_logits.sigmoid().half().cpu().numpy()
        if form := next((group for group in groups if group.startswith("descriptor_map")), None):
            descriptors = self._resample(output.descriptor_map, form, size)
            arrays["descriptor_map"] = descriptors.half().cpu().numpy()
        if "sparse" in groups:
            found = [
                self._features(size, logits, descriptors, choice)
                for logits, descriptors in zip(*output, strict=True)
            ]
            arrays |= pack_sparse(found, choice.top_k, self.descriptor_dim)
        return arrays

    @torch.inference_mode()
    def extract(self, image: Tensor, choice: KeypointChoice) -> Features:
        output = self._forward(image[None])
        size = (image.shape[2], image.shape[1])
        return self._features(size, output.score_logits[0], output.raw_descriptor_map[0], choice)

    def _forward(self, images: Tensor) -> SiLKOutput:
        images = images.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            return self.network(images)

    def _resample(self, descriptor_map: Tensor, form: str, size: tuple[int, int]) -> Tensor:
        """The descriptors of every pixel as one of the forms of ``descriptor_map``."""
        if form == "descriptor_map:full":
            return descriptor_map
        if form == "descriptor_map:averaged":
            return F.normalize(average_map(descriptor_map, int(self.geometry.offset)), dim=1)
        cells = (size[1] // 8, size[0] // 8)
        return F.normalize(resample_map(descriptor_map, self.geometry, CELL_MAP, cells), dim=1)

    def _features(self, size, logits: Tensor, descriptors: Tensor, choice) -> Features:
        border = int(self.geometry.offset)
        # Outside the map nothing is known: a score of 0 is never chosen.
        score_map = F.pad(logits[0].sigmoid(), [border] * 4).cpu().numpy()
        keypoints, scores = choice(score_map)
        columns, rows = self.geometry.to_map(torch.from_numpy(keypoints)).round().long().T
        chosen = F.normalize(descriptors[:, rows, columns].T, dim=1)
        return Features(size, keypoints, scores, chosen.cpu().numpy())


def sparse_fields(top_k: int, descriptor_dim: int) -> dict[str, Field]:
    """Fields of up to ``top_k`` keypoints, padded with zeros; ``count`` says how many are real."""
    return {
        # float16 would round positions to whole pixels beyond x = 1024.
        "keypoints": Field(shape=(top_k, 2), dtype="float32"),
        "scores": Field(shape=(top_k,), dtype="float32"),
        "descriptors": Field(shape=(top_k, descriptor_dim), dtype="float16"),
        "count": Field(shape=(), dtype="int32"),
    }


def pack_sparse(features: list[Features], top_k: int, descriptor_dim: int) -> dict[str, np.ndarray]:
    """The features of a batch as arrays of ``sparse_fields``."""
    fields = sparse_fields(top_k, descriptor_dim)
    arrays = {
        name: np.zeros((len(features), *field.shape), field.dtype) for name, field in fields.items()
    }
    for row, found in enumerate(features):
        count = len(found.keypoints)
        arrays["count"][row] = count
        for name in ("keypoints", "scores", "descriptors"):
            arrays[name][row, :count] = getattr(found, name)
    return arrays


def _select_fields(teacher: Teacher, groups: list[str], maps, sparse) -> dict[str, Field]:
    """The fields of the groups asked for; a group ``field:form`` is stored as ``field``."""
    offered = [*maps, "sparse"]
    fields = {}
    for group in groups:
        if group not in offered:
            raise ValueError(
                f"--fields {group}: {teacher.name} has no such field; it offers "
                f"{', '.join(offered)}"
            )
        found = sparse if group == "sparse" else {group.partition(":")[0]: maps[group]}
        if twice := fields.keys() & found.keys():
            raise ValueError(f"--fields: {twice.pop()} is asked for twice; a store holds one form")
        fields |= found
    return fields


TEACHERS: dict[str, type] = {"superpoint": SuperPointTeacher, "silk": SiLKTeacher}
