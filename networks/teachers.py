"""The registry of teachers: name -> a Teacher, which turns images into records and features."""

import dataclasses
import math
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..console import autocast
from ..data.features import Features
from ..data.geometry import CELL_MAP, MapGeometry, average_map, resample_map, sample_descriptors
from ..data.keypoints import KeypointChoice
from ..data.stores.store import Field, RecordStore, StoreError
from .netvlad import load_netvlad
from .sift import ROOTSIFT_DIM, root_sift
from .silk import SiLKOutput, load_silk
from .superpoint import SuperPoint, score_map_from_cells
from .vlad import VLAD, flatten_map
from .weights import OfficialWeights, find_weights, load_arrays, load_strictly

__all__ = ["TEACHERS", "SiLKTeacher", "SuperPointTeacher", "Teacher", "VladTeacher"]


LOCAL_MAPS = ("score_map", "descriptor_map")


class Teacher(Protocol):
    """A network that is run once over photographs.

    Attributes:
        name: as ``--model`` names it.
        channels: 1 or 3, of the images it takes.
        weights: SHA-256 of its weights, or what its values depend on where it has none.
        usual_fields: the groups that are exported when none are named.

    It is made of where its weights are (None for where it looks itself), a device, and the
    precision of its network: float32, or bfloat16, which is coarser and on many processors faster.
    """

    name: str
    channels: int
    weights: str
    usual_fields: tuple[str, ...]

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

    # Those with a dense descriptor map also have
    #     describe(image, keypoints): the descriptors (N, D) of keypoints (N, 2) that others found.


class SuperPointTeacher:
    """SuperPoint v1 with the official weights."""

    name = "superpoint"
    channels = 1
    usual_fields = LOCAL_MAPS
    descriptor_dim = 256
    official = OfficialWeights(
        model="SuperPoint",
        file="superpoint_v1.pth",
        url="https://github.com/magicleap/SuperPointPretrainedNetwork/raw/master/superpoint_v1.pth",
        digest="git:107a444ca318d487390137d619d49f2f0a3b1ad8",
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

    @torch.inference_mode()
    def describe(self, image: Tensor, keypoints: np.ndarray) -> np.ndarray:
        return sample_descriptors(self._forward(image[None])[1][0], keypoints)

    @staticmethod
    def _features(size, score_map: Tensor, descriptor_map: Tensor, choice) -> Features:
        keypoints, scores = choice(score_map.cpu().numpy())
        return Features(size, keypoints, scores, sample_descriptors(descriptor_map, keypoints))


class SiLKTeacher:
    """SiLK: the packaged one, trained with ``train-teacher``, or one whose weights are named.

    Its ``descriptor_map`` comes in three forms: sampled at the centres of the student's cells,
    ``:averaged`` over each cell, which blurs what tells neighbours apart, and ``:full``, one for
    every pixel inside the border. Cells whose centre lies in the border have none.
    """

    name = "silk"
    channels = 1
    usual_fields = LOCAL_MAPS
    PACKAGED = Path(__file__).parent / "packaged" / "silk.safetensors"

    def __init__(self, weights: str | None, device: torch.device, precision: str = "float32"):
        self.network, self.weights = load_silk(weights or self.PACKAGED)
        self.network.to(device, memory_format=torch.channels_last)
        self.geometry = self.network.config.geometry
        self.descriptor_dim = self.network.config.descriptor_dim
        self.skipped = math.ceil((self.geometry.offset - CELL_MAP.offset) / CELL_MAP.stride)
        offset = CELL_MAP.offset + self.skipped * CELL_MAP.stride
        self.cell_geometry = MapGeometry(CELL_MAP.stride, offset)
        self.device, self.precision = device, precision

    def fields(self, groups: list[str], size: tuple[int, int], top_k: int) -> dict[str, Field]:
        lost = int(2 * self.geometry.offset)
        inside = (size[1] - lost, size[0] - lost)
        cells = Field(
            shape=(self.descriptor_dim, *self._cells(size)),
            dtype="float16",
            geometry=self.cell_geometry,
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

    def _cells(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the cells that have a descriptor."""
        return size[1] // 8 - 2 * self.skipped, size[0] // 8 - 2 * self.skipped

    def _resample(self, descriptor_map: Tensor, form: str, size: tuple[int, int]) -> Tensor:
        """The descriptors of every pixel as one of the forms of ``descriptor_map``."""
        if form == "descriptor_map:full":
            return descriptor_map
        cells = self._cells(size)
        if form == "descriptor_map:averaged":
            averaged = average_map(descriptor_map, int(self.geometry.offset))
            rows, columns = (slice(self.skipped, self.skipped + side) for side in cells)
            sampled = averaged[:, :, rows, columns]
        else:
            sampled = resample_map(descriptor_map, self.geometry, self.cell_geometry, cells)
        return F.normalize(sampled, dim=1)

    def _features(self, size, logits: Tensor, descriptors: Tensor, choice) -> Features:
        border = int(self.geometry.offset)
        # Outside the map nothing is known: a score of 0 is never chosen.
        score_map = F.pad(logits[0].sigmoid(), [border] * 4).cpu().numpy()
        keypoints, scores = choice(score_map)
        return Features(size, keypoints, scores, self._sample(descriptors, keypoints))

    @torch.inference_mode()
    def describe(self, image: Tensor, keypoints: np.ndarray) -> np.ndarray:
        return self._sample(self._forward(image[None]).raw_descriptor_map[0], keypoints)

    def _sample(self, descriptors: Tensor, keypoints: np.ndarray) -> np.ndarray:
        """Those of the nearest pixel; on the border, where there are none, of the map's edge."""
        columns, rows = self.geometry.to_map(torch.from_numpy(keypoints)).round().long().T
        rows, columns = (
            places.clamp(0, side - 1)
            for places, side in zip((rows, columns), descriptors.shape[1:], strict=True)
        )
        return F.normalize(descriptors[:, rows, columns].T, dim=1).cpu().numpy()


class SiftTeacher:
    """RootSIFT: keypoints alone, to compare with and to learn places from."""

    name = "sift"
    channels = 1
    usual_fields = ("sparse",)
    weights = f"opencv {cv2.__version__}"

    def __init__(self, weights: str | None, device: torch.device, precision: str = "float32"):
        """It has no weights, and runs on the CPU in OpenCV's own precision."""

    def fields(self, groups: list[str], size: tuple[int, int], top_k: int) -> dict[str, Field]:
        return _select_fields(self, groups, {}, sparse_fields(top_k, ROOTSIFT_DIM))

    def export(
        self, images: Tensor, groups: list[str], choice: KeypointChoice
    ) -> dict[str, np.ndarray]:
        found = [self.extract(image, choice) for image in images]
        return pack_sparse(found, choice.top_k, ROOTSIFT_DIM)

    def extract(self, image: Tensor, choice: KeypointChoice) -> Features:
        return root_sift((image[0] * 255).round().byte().numpy(), choice)


class NetVLADTeacher:
    """NetVLAD with the official weights, trained on Pitts30K."""

    name = "netvlad"
    channels = 3
    usual_fields = ("global_descriptor",)
    official = OfficialWeights(
        model="NetVLAD",
        file="VGG16-NetVLAD-Pitts30K.mat",
        url="https://cvg-data.inf.ethz.ch/hloc/netvlad/Pitts30K_struct.mat",
        # As two projects that use this file publish it; the authors give none.
        digest="sha256:a67d9d897d3b7942f206478e3a22a4c4c9653172ae2447041d35f6cb278fdc67",
        licence="not stated by its authors; 0.5 GB",
    )

    def __init__(self, weights: str | None, device: torch.device, precision: str = "float32"):
        self.network, self.weights = load_netvlad(find_weights(self.official, weights))
        self.network.to(device, memory_format=torch.channels_last)
        self.device, self.precision = device, precision

    def fields(self, groups: list[str], size: tuple[int, int], top_k: int) -> dict[str, Field]:
        dim = self.network.whitening.out_features
        place = {"global_descriptor": Field(shape=(dim,), dtype="float16")}
        return _select_fields(self, groups, place, {})

    @torch.inference_mode()
    def export(
        self, images: Tensor, groups: list[str], choice: KeypointChoice
    ) -> dict[str, np.ndarray]:
        return {"global_descriptor": self._forward(images).half().cpu().numpy()}

    @torch.inference_mode()
    def extract(self, image: Tensor, choice: KeypointChoice) -> Features:
        place = self._forward(image[None])[0].cpu().numpy()
        return without_keypoints((image.shape[2], image.shape[1]), place)

    def _forward(self, images: Tensor) -> Tensor:
        images = images.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            features = self.network.features(images)
        return self.network.describe(features.float())


class VladTeacher:
    """What a store of ``--model vlad`` holds, for images that are not in it.

    It runs the local teacher with the settings that the store's own local descriptors were made
    with, whatever the size of the image; keypoints that it gives are the best of those.

    Raises:
        StoreError: the store is of another teacher.
        ValueError: the weights here are not those that the store was made with.
    """

    name = "vlad"

    def __init__(self, store: RecordStore, weights: str | None, device: torch.device):
        schema = store.schema
        if schema.teacher != self.name:
            raise StoreError(
                f"{store.path}: made with --model {schema.teacher}; expected a store of "
                "export-teacher --model vlad"
            )
        settings = {
            key.removeprefix("local_"): value
            for key, value in schema.settings.items()
            if key.startswith("local_")
        }
        precision = settings.get("precision", "float32")
        self.local = TEACHERS[schema.settings["local"]](weights, device, precision)
        if self.local.weights != schema.weights:
            raise ValueError(
                f"{store.path}: learnt from {self.local.name} with the weights {schema.weights}, "
                f"here are {self.local.weights}; name those weights, or export the store anew"
            )
        self.weights, self.channels = schema.weights, self.local.channels
        self.group = schema.settings["descriptors"]
        self.choice = KeypointChoice(
            **{
                field.name: settings.get(field.name, 0)
                for field in dataclasses.fields(KeypointChoice)
            }
        )
        self.vlad = VLAD.from_arrays(store.parameters)

    @torch.inference_mode()
    def extract(self, image: Tensor, choice: KeypointChoice) -> Features:
        if self.group != "sparse":
            arrays = self.local.export(image[None], [self.group], self.choice)
            descriptors = flatten_map(arrays["descriptor_map"][0])
            size = (image.shape[2], image.shape[1])
            return without_keypoints(size, self.vlad.encode(descriptors))
        found = self.local.extract(image, self.choice)
        best = slice(choice.top_k)
        return Features(
            found.image_size,
            found.keypoints[best],
            found.scores[best],
            found.descriptors[best],
            self.vlad.encode(found.descriptors),
        )


def without_keypoints(size: tuple[int, int], global_descriptor: np.ndarray) -> Features:
    """The features of an image that is only described as a whole."""
    nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    return Features(size, *nothing, global_descriptor=global_descriptor)


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
    offered = [*maps, *(["sparse"] if sparse else [])]
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


TEACHERS: dict[str, type] = {
    teacher.name: teacher
    for teacher in (SuperPointTeacher, SiLKTeacher, SiftTeacher, NetVLADTeacher)
}
