"""What every network is: images in, dense maps out; from these keypoints, features and records.

A method is one class in one file: a ``Network`` that gives maps, and says where it departs from
what is written here once. Methods without maps, such as OpenCV's, give ``features`` directly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import shipped_settings
from ..data.cells import CELL, CHANNELS, grid_shape, image_shape, to_pixels
from ..data.features import Features
from ..data.geometry import CELL_MAP, MapGeometry, sample_map
from ..data.images import to_tensor
from ..data.keypoints import KeypointChoice
from ..data.stores.schema import Field
from ..device import autocast
from ..errors import CheckpointError, InputError
from .weights import OfficialWeights, find_weights, load_arrays, load_strictly

__all__ = ["DenseMaps", "GlobalTeacher", "Network", "Student", "StudentOutput"]


@dataclass(frozen=True)
class DenseMaps:
    """What a network says of a batch of B images, on the network's device.

    Attributes:
        image_size: (width, height) of the images.
        score_map: (B, 65, h, w) distributions over the 64 pixels of each 8x8 cell, row by row, and
            "no keypoint"; or (B, 1, h, w), a probability per position. None without a detector.
        score_geometry: where its positions lie in the images.
        descriptor_map: (B, D, h, w), of unit length along D where ``describe`` is not the network's
            own; None where there is none.
        descriptor_geometry: where its positions lie in the images.
        global_descriptor: (B, G) of unit length, or None.
    """

    image_size: tuple[int, int]
    score_map: Tensor | None = None
    score_geometry: MapGeometry = CELL_MAP
    descriptor_map: Tensor | None = None
    descriptor_geometry: MapGeometry = CELL_MAP
    global_descriptor: Tensor | None = None

    def pixel_scores(self) -> Tensor:
        """The score of every pixel (B, H, W) float32; 0 where the network sees nothing."""
        if self.score_geometry == CELL_MAP:
            return to_pixels(self.score_map)
        return F.pad(self.score_map[:, 0], [int(self.score_geometry.offset)] * 4)

    def describe(self, row: int, keypoints: Tensor) -> Tensor:
        """The descriptors (N, D) of unit length at keypoints (N, 2) of image ``row``."""
        points = keypoints.to(self.descriptor_map.device)[None]
        values = self.descriptor_map[row : row + 1]
        return F.normalize(sample_map(values, points, self.descriptor_geometry)[0], dim=1)


class Network(nn.Module):
    """Whatever sees an image.

    A subclass gives ``maps``. It is loaded by ``networks.registry.load``, which sets ``weights``,
    ``precision`` and the device.

    Attributes:
        name: under which it is registered.
        channels: 1 (gray) or 3 (red, green, blue), of the images it takes.
        descriptor_dim: D of its local descriptors; 0 where it has none.
        global_dim: G of its global descriptor; 0 where it has none.
        border: so many outermost pixels of an image have no score.
        usual_fields: the groups that are exported when none are named.
        refine_radius, rank_radius: how its score map is best read, see ``KeypointChoice``; 0 for
            keypoints on whole pixels and ranked by one of them, as published.
        weights: SHA-256 of its file of weights, or what its values depend on where it has none.
        official: the weights that its authors released.
        precision: float32, or float16 or bfloat16, coarser and where the device has them faster.
    """

    name = ""
    channels = 1
    descriptor_dim = 0
    global_dim = 0
    border = 0
    usual_fields: tuple[str, ...] = ("score_map", "descriptor_map")
    refine_radius = 0
    rank_radius = 0
    weights = ""
    official: OfficialWeights | None = None
    precision = "float32"

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "Network":
        """The network with its weights, on the CPU; else its ``official`` ones.

        Args:
            source: what stands behind the colon of ``NAME:SOURCE``: a file of weights or a variant.
            weights: a file of weights where ``source`` names none.

        Raises:
            InputError, NotFoundError: no such file, or not weights of this network.
        """
        return cls.read(find_weights(cls.official, source or weights))

    @classmethod
    def read(cls, path: str | Path) -> "Network":
        """The network of a checkpoint of ours (``.safetensors``) or of its authors' file.

        Raises:
            InputError, NotFoundError: no such file, or not weights of this network; names the
                tensor that is missing, unknown or of another shape.
        """
        if Path(path).suffix == ".safetensors":
            from .registry import load_checkpoint  # which imports this module

            return load_checkpoint(path)[0]
        state, digest = load_arrays(path)
        try:
            network, state = cls.from_official(state)
        except KeyError as error:
            raise InputError(
                f"{path}: not weights of {cls.__name__}: tensor {error} is missing"
            ) from error
        load_strictly(network, state, path)
        network.weights = digest
        return network.eval()

    @classmethod
    def from_official(cls, state: dict[str, Tensor]) -> tuple["Network", dict[str, Tensor]]:
        """The network that the authors' tensors call for, and what they are under our names.

        Raises:
            KeyError: names a tensor that is missing.
        """
        return cls(), state

    @property
    def describes_given_keypoints(self) -> bool:
        """Whether it has descriptors for keypoints that are not its own."""
        return self.has_maps and self.descriptor_dim > 0

    @property
    def has_maps(self) -> bool:
        """Whether it gives ``maps``, or ``features`` alone."""
        return type(self).maps is not Network.maps

    def for_inference(self) -> "Network":
        """The network as it is run, which may be another object than the one that is trained."""
        return self.eval()

    @property
    def device(self) -> torch.device:
        """Where its parameters are; the CPU where it has none."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def origin(self) -> str:
        """Where its numbers come from, for a report."""
        return self.weights if self.weights.startswith("opencv") else f"sha256:{self.weights}"

    def run(self, images: Tensor, part: Callable | None = None):
        """What ``forward``, or a part of it, gives for a batch on the CPU.

        It runs on the network's device, in its precision.
        """
        images = images.to(self.device, memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            return self(images) if part is None else part(images)

    def maps(self, images: Tensor) -> DenseMaps:
        """The maps of a batch (B, channels, H, W) float32 in [0, 1]."""
        raise NotImplementedError

    def sparse_maps(self, images: Tensor) -> DenseMaps:
        """What ``detect`` and ``describe`` need of a batch, and its global descriptors."""
        return self.maps(images)

    def detect(self, maps: DenseMaps, choice: KeypointChoice) -> list[tuple[Tensor, Tensor]]:
        """Keypoints (N, 2) and scores (N,) of each image, by descending score."""
        if maps.score_map is None:
            return [(torch.zeros(0, 2), torch.zeros(0))] * len(maps.global_descriptor)
        return choice(maps.pixel_scores())

    def describe(self, maps: DenseMaps, row: int, keypoints: Tensor) -> Tensor:
        """The descriptors (N, D) of unit length at keypoints (N, 2) of image ``row`` of a batch."""
        return maps.describe(row, keypoints)

    @torch.inference_mode()
    def features(self, images: Tensor, choice: KeypointChoice) -> list[Features]:
        """The features of a batch (B, channels, H, W) float32 in [0, 1], each in its own pixels."""
        maps = self.sparse_maps(images)
        features = []
        for row, (keypoints, scores) in enumerate(self.detect(maps, self.choice_for(choice))):
            descriptors = self.describe(maps, row, keypoints) if self.descriptor_dim else None
            whole = None if maps.global_descriptor is None else maps.global_descriptor[row]
            parts = keypoints, scores, descriptors, whole
            arrays = (None if part is None else part.cpu().numpy() for part in parts)
            features.append(Features(maps.image_size, *arrays))
        return features

    def choice_for(self, choice: KeypointChoice) -> KeypointChoice:
        """A choice of keypoints whose radii left open are those that suit the network."""
        own = {"refine_radius": self.refine_radius, "rank_radius": self.rank_radius}
        return replace(
            choice, **{key: value for key, value in own.items() if getattr(choice, key) is None}
        )

    def extract(self, image: np.ndarray, *, max_num_keypoints: int = 1000, **options) -> Features:
        """The features of one photograph, in its own pixels.

        Args:
            image: (H, W) gray or (H, W, 3) red, green, blue, uint8, of any size.
            max_num_keypoints: at most so many, the best.
            options: keys of [predict] in pipeline.toml, such as ``nms_radius=2``; those left out
                are as shipped.

        Raises:
            InputError: another kind of array, or an option that does not exist.
        """
        choice = KeypointChoice.of(shipped_settings().predict, max_num_keypoints, **options)
        return self.features(to_tensor(image, self.channels)[None], choice)[0]

    def dense_fields(self, size: tuple[int, int]) -> dict[str, Field]:
        """The schema fields of the dense groups it can export, for images of (width, height)."""
        cells, fields = grid_shape(size[::-1]), {}
        if self.has_maps and self.descriptor_dim:
            shapes = {
                "score_map": (CHANNELS, *cells),
                "descriptor_map": (self.descriptor_dim, *cells),
            }
            for name, shape in shapes.items():
                fields[name] = Field(shape=shape, dtype="float16", geometry=CELL_MAP)
        if self.has_maps and self.global_dim:
            fields["global_descriptor"] = Field(shape=(self.global_dim,), dtype="float16")
        return fields

    def fields(
        self, groups: list[str], size: tuple[int, int], max_num_keypoints: int
    ) -> dict[str, Field]:
        """The schema fields of the groups asked for; a group ``field:form`` is stored as ``field``.

        Raises:
            InputError: a group that this network cannot give, or one field in two forms.
        """
        dense = self.dense_fields(size)
        offered = {group: {group.partition(":")[0]: field} for group, field in dense.items()}
        if self.descriptor_dim:
            count = max_num_keypoints
            offered["sparse"] = {
                # float16 would round positions to whole pixels beyond x = 1024.
                "keypoints": Field(shape=(count, 2), dtype="float32"),
                "scores": Field(shape=(count,), dtype="float32"),
                "descriptors": Field(shape=(count, self.descriptor_dim), dtype="float16"),
                "count": Field(shape=(), dtype="int32"),
            }
        fields: dict[str, Field] = {}
        for group in groups:
            if group not in offered:
                raise InputError(
                    f"--fields {group}: {self.name} has no such field; it offers "
                    f"{', '.join(offered)}"
                )
            if twice := fields.keys() & offered[group].keys():
                raise InputError(
                    f"--fields: {twice.pop()} is asked for twice; a store holds one form"
                )
            fields |= offered[group]
        return fields

    def dense_values(self, maps: DenseMaps, group: str) -> Tensor:
        """The values of one of the groups of ``dense_fields``, with a leading axis of B."""
        return getattr(maps, group)

    @torch.inference_mode()
    def export(
        self,
        images: Tensor,
        groups: list[str],
        choice: KeypointChoice,
        given: list[tuple[Tensor, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """The fields of a batch (B, channels, H, W) float32 in [0, 1], on the network's device.

        Args:
            given: keypoints (N, 2) and scores (N,) of each image, described in place of the
                network's own.
        """
        if not self.has_maps:
            found = [(f.keypoints, f.scores, f.descriptors) for f in self.features(images, choice)]
            described = [tuple(map(torch.from_numpy, arrays)) for arrays in found]
            return _pack(described, choice.max_num_keypoints)
        maps = self.maps(images)
        arrays: dict[str, Tensor] = {}
        for group in groups:
            if group != "sparse":
                arrays[group.partition(":")[0]] = self.dense_values(maps, group)
                continue
            found = given or self.detect(maps, self.choice_for(choice))
            described = [
                (points, scores, self.describe(maps, row, points))
                for row, (points, scores) in enumerate(found)
            ]
            arrays |= _pack(described, choice.max_num_keypoints)
        return arrays


class StudentOutput(NamedTuple):
    """What a student says of a batch, on the grid of 8x8 cells (``CELL_MAP``), all float32.

    Attributes:
        score_logits: (B, 65, h, w): the 64 pixels of a cell, row by row, and "no keypoint".
        descriptor_map: (B, D, h, w), unit length along D.
        global_descriptor: (B, G) of unit length, or None.
    """

    score_logits: Tensor
    descriptor_map: Tensor
    global_descriptor: Tensor | None

    def to_maps(self, images: Tensor, softmax: Callable[[Tensor], Tensor]) -> DenseMaps:
        """The maps of images (B, 1, H, W), their score logits by way of a softmax over axis 1."""
        return DenseMaps(
            (images.shape[3], images.shape[2]),
            softmax(self.score_logits),
            descriptor_map=self.descriptor_map,
            global_descriptor=self.global_descriptor,
        )


class GlobalTeacher(NamedTuple):
    """What a student must know of a teacher of global descriptors to be built for it.

    Attributes:
        dim: numbers of a global descriptor.
        words: (K, D) of a VLAD: how many words, and the numbers of the local descriptors that it is
            made of; None for any other teacher.
    """

    dim: int
    words: tuple[int, int] | None

    def with_words(self, config: Any) -> Any:
        """A student's ``Config`` with a global branch of the teacher's kind, a VLAD.

        Raises:
            InputError: it is of other local descriptors than the student's.
        """
        clusters, descriptor_dim = self.words
        if descriptor_dim != config.descriptor_dim:
            raise InputError(
                f"the global teacher was made from local descriptors of {descriptor_dim} numbers, "
                f"the student's have {config.descriptor_dim}; make it from the same teacher's store"
            )
        return replace(config, global_dim=self.dim, clusters=clusters)


class Student(Network):
    """A network that can be trained from stores: its ``forward`` gives a ``StudentOutput``.

    It is made from a frozen dataclass, which its checkpoint keeps.

    Attributes:
        Config: that dataclass.
        config: what this one was made from.
        GLOBAL_PARTS: the modules that give the global descriptor from what the others give.
        MAY_BE_NEW: other modules that another student need not have to start this one.
        local_is_frozen: these alone are trained.
    """

    Config: type
    GLOBAL_PARTS: tuple[str, ...] = ()
    MAY_BE_NEW: tuple[str, ...] = ()
    local_is_frozen = False

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "Student":
        from .registry import checkpoint_path, load_checkpoint  # which imports this module

        if source is None and weights is None:
            raise InputError(
                f"{cls.name}: name its checkpoint or run folder as {cls.name}:PATH, or a packaged "
                "student such as default"
            )
        return load_checkpoint(checkpoint_path(source or weights))[0]

    @classmethod
    def configure(
        cls, values: Mapping[str, Any], descriptor_dim: int, teacher: GlobalTeacher | None
    ) -> Any:
        """The ``Config`` of a student of certain teachers.

        Args:
            values: of its table in [train.networks] of pipeline.toml.
            descriptor_dim: of the local teacher's descriptors.
            teacher: of global descriptors; None for nobody.

        Raises:
            InputError: a value that has no place in ``Config``, or a teacher it cannot learn from.
        """
        try:
            config = cls.make_config(**values, descriptor_dim=descriptor_dim)
        except TypeError as error:
            raise InputError(f"[train.networks.{cls.name}]: {error}") from error
        return cls.extend(config, values, teacher)

    @classmethod
    def make_config(cls, **values: Any) -> Any:
        """A ``Config`` without a global branch from the values of ``configure``."""
        return cls.Config(**values)

    @classmethod
    def extend(cls, config: Any, values: Mapping[str, Any], teacher: GlobalTeacher | None) -> Any:
        """A ``Config`` with the global branch that a teacher calls for; see ``configure``."""
        return config if teacher is None else replace(config, global_dim=teacher.dim)

    def shorten(self, descriptor_dim: int) -> "Student":
        """A copy with local descriptors of fewer numbers.

        Raises:
            InputError: a network whose descriptors cannot be shortened, or not to so many numbers.
        """
        raise InputError(f"{self.name}: its descriptors cannot be shortened, those of light can")

    def adopt_vlad(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Take over what a VLAD of local descriptors learned, where the network has room for it."""

    def freeze_local(self) -> None:
        """Train the global branch alone from now on; what it stands on stays as it is."""
        self.local_is_frozen = True
        for module in self._local_modules():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Student":
        """As of every module; frozen normalizations keep their statistics."""
        super().train(mode)
        if self.local_is_frozen:
            for module in self._local_modules():
                module.eval()
        return self

    def _local_modules(self) -> list[nn.Module]:
        return [m for name, m in self.named_children() if name not in self.GLOBAL_PARTS]

    @staticmethod
    def whole_cells(image: Tensor) -> Tensor:
        """An image (B, 1, H, W) without the rows and columns beyond its last whole cells.

        Raises:
            InputError: an image without a single cell.
        """
        height, width = image_shape(grid_shape(image.shape[-2:]))
        if not (height and width):
            found = "x".join(map(str, image.shape[:-3:-1]))
            raise InputError(f"an image of {found} pixels is too small: {CELL}x{CELL} at least")
        return image[..., :height, :width]

    def describe_globally(self, image: Tensor) -> Tensor:
        """Only the global descriptors (B, G) of a batch of images; see ``forward``."""
        return self(image).global_descriptor

    def resized(self, config: Any) -> "Student":
        """A copy with the channels of another ``Config``, where the network can; else itself."""
        return self

    def start_from(self, other: "Student") -> None:
        """Take over another student's weights.

        Raises:
            CheckpointError: it differs in more than what may be new.
        """
        theirs, ours = other.state_dict(), self.state_dict()
        for name, tensor in ours.items():
            if name in theirs and theirs[name].shape == tensor.shape:
                ours[name] = theirs[name]
            elif not name.startswith((*self.GLOBAL_PARTS, *self.MAY_BE_NEW)):
                raise CheckpointError(
                    f"a student of {other.config} cannot start one of {self.config}: tensor {name} "
                    "differs; make the network's settings equal to its own"
                )
        self.load_state_dict(ours)

    def maps(self, images: Tensor) -> DenseMaps:
        return self.run(images).to_maps(images, lambda logits: logits.softmax(1))


def _pack(
    described: list[tuple[Tensor, Tensor, Tensor]], max_num_keypoints: int
) -> dict[str, Tensor]:
    """The group ``sparse`` of a batch, padded with zeros; ``count`` says how many are real."""
    shape, descriptors = (len(described), max_num_keypoints), described[0][2]
    arrays = {
        "keypoints": descriptors.new_zeros(*shape, 2),
        "scores": descriptors.new_zeros(shape),
        "descriptors": descriptors.new_zeros(*shape, descriptors.shape[1]),
        "count": torch.tensor([len(points) for points, _, _ in described], dtype=torch.int32),
    }
    for row, parts in enumerate(described):
        for name, values in zip(arrays, parts, strict=False):
            arrays[name][row, : len(values)] = values
    return arrays
