"""What a student learns from: a detector target x a descriptor target, and a global descriptor.

A detector target says where a view has keypoints, a descriptor target what the descriptors at
some of its points are. Either is read once for all views of a photograph, and taken along into
the views on the device. ``H_view_to_photo`` maps the pixels of a view to those of the photograph
as the teacher saw it.

    detector    learns from          a cell is
    cells       score_map            the teacher's distribution over its pixels and "no keypoint"
    keypoints   sparse or score_map  keypoints between pixels, as likely as the teacher holds them
    labels      sparse               its first keypoint, on whole pixels, or none (HF-Net's)

    descriptor  learns from          compared
    keypoints   the detector's       at the detector's keypoints, as much as each is likely
    peaks       descriptor_map       at each cell's likeliest pixel, as much as the cell is likely
    centers     descriptor_map       at each cell's center, without interpolating the student's map
    random      descriptor_map       at random positions of the teacher's map, also a full one
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.cells import (
    CHANNELS,
    cell_centers,
    cell_peaks,
    from_pixels,
    image_shape,
    occupied,
    to_pixels,
    with_nothing,
)
from ..data.geometry import CELL_MAP, is_inside, sample_map, unwarp_points, warp_points
from ..data.keypoints import KeypointChoice
from ..data.stores.quantize import dequantize, scale_name
from ..data.stores.store import RecordStore
from ..errors import InputError, StoreError
from ..networks.base import GlobalTeacher
from ..networks.registry import NETWORKS
from .views import (
    NEGLIGIBLE,
    cells_seen,
    scatter_keypoints,
    to_cells,
    view_descriptors,
    view_scores,
)

__all__ = [
    "DESCRIPTOR_TARGETS",
    "DETECTOR_TARGETS",
    "STRATEGIES",
    "Lesson",
    "Targets",
    "choose_targets",
    "find_strategy",
]

STRATEGIES = {
    "keypoints": ("keypoints", "keypoints"),
    "peaks": ("cells", "peaks"),
    "downsample": ("cells", "centers"),
    "upsample": ("cells", "random"),
    "sparse": ("labels", "keypoints"),
}
"""Names of combinations: (detector target, descriptor target)."""

SUPPRESSED, MOST = 4, 1000
"""Pixels within which a score map keeps its highest alone, and how many keypoints it gives: as
SuperPoint's, whose own keypoints a store has under these numbers."""
DESCRIBED = 384
"""So many of a view's likeliest keypoints have their descriptors compared."""


@dataclass
class Lesson:
    """What the teachers say of a batch of N = B * V views; None where none says anything.

    Attributes:
        H_view_to_photo: (N, 3, 3) float64, a photograph's views one after the other.
        shape: (height, width) of the views in cells.
        seen: (N, h, w) bool, the cells that show nothing but the photograph; None for all.
        cells: (N, 65, h, w) float32, distributions.
        known: (N, h, w) bool, the cells that the detector target says anything of; None for all.
        keypoints: (N, K, 2) float32 in pixels of the views, anywhere.
        probability: (N, K) of the keypoints, 0 for what is not there.
        points: (N, P, 2) float32 in pixels of the views, where descriptors are compared; None, with
            ``descriptors``, for the centers of all cells.
        descriptors: (N, P, D) float32 of unit length.
        weights: (N, P), how much each of them counts; bool or float.
        global_descriptor: (N, G) float32 of unit length.
    """

    H_view_to_photo: Tensor
    shape: tuple[int, int]
    seen: Tensor | None = None
    cells: Tensor | None = None
    known: Tensor | None = None
    keypoints: Tensor | None = None
    probability: Tensor | None = None
    points: Tensor | None = None
    descriptors: Tensor | None = None
    weights: Tensor | None = None
    global_descriptor: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the views in pixels."""
        return image_shape(self.shape)[::-1]

    def for_each_view(self, of_photographs: Tensor) -> Tensor:
        """(B, ...) -> (N, ...)."""
        views = len(self.H_view_to_photo) // len(of_photographs)
        return of_photographs.repeat_interleave(views, 0)


class Target:
    """What a student learns from the records of a store.

    Attributes:
        needs: the fields that it learns from; of several choices the first that a store has.
        reads: those that are read, and their scales.
    """

    needs: ClassVar[tuple[tuple[str, ...], ...]]

    def __init__(self, store: RecordStore):
        self.store = store
        fields = store.schema.fields
        chosen = next(choice for choice in self.needs if fields.keys() >= {*choice})
        self.reads = [f for name in chosen for f in (name, scale_name(name)) if f in fields]

    def read(
        self, name: str, H_view_to_photo: np.ndarray, size: tuple[int, int], rng
    ) -> dict[str, np.ndarray]:
        """The fields of a photograph; copies, as they are stored.

        Args:
            H_view_to_photo: (V, 3, 3) float64, of its views.
            size: (width, height) of a view.
        """
        return {field: np.array(self.store.read(name, field)) for field in self.reads}

    def teach(self, lesson: Lesson, fields: dict[str, Tensor]) -> None:
        """Fill in what it says of the views; a descriptor target comes after its detector target.

        Args:
            fields: what was read, in float32, with a leading axis of B photographs.
        """
        raise NotImplementedError


class CellTarget(Target):
    """``cells``: the teacher's distribution over each 8x8 cell and "no keypoint".

    ``score_map`` is that already (65, h, w), or the probability of every pixel inside a border
    (1, 8h - 2 * border, 8w - 2 * border), whose odds are compared within each cell.

    Raises:
        StoreError: a map of another kind or on another grid.
    """

    needs = (("score_map",),)

    def __init__(self, store: RecordStore):
        super().__init__(store)
        self.border = _border_of_map(store)

    def teach(self, lesson, fields):
        whole = lesson.for_each_view(to_cells(fields["score_map"], self.border))
        lesson.cells = view_scores(whole, lesson.H_view_to_photo, lesson.shape)
        lesson.known = lesson.seen


class KeypointTarget(Target):
    """``keypoints``: a teacher's keypoints, between pixels, each as likely as the teacher holds it.

    Of a ``score_map`` those that suppression leaves. A cell's distribution is made in the view: "no
    keypoint" is what its keypoints leave to 1, so that the teacher's ranking survives, and the
    edge of the photograph where the teacher finds none is not held against the student.

    Raises:
        StoreError: a score map of another kind.
    """

    needs = (("keypoints", "scores", "count"), ("score_map",))

    def __init__(self, store: RecordStore):
        super().__init__(store)
        self.of_map = "score_map" in self.reads
        self.border = _border_of_map(store) if self.of_map else _border_of_list(store)

    def read(self, *record):
        stored = super().read(*record)
        if not self.of_map:
            return stored
        (scores,) = dequantize({n: torch.from_numpy(a) for n, a in stored.items()}).values()
        per_cell = len(scores) == CHANNELS
        choice = KeypointChoice(NEGLIGIBLE, SUPPRESSED, 0, MOST)
        ((points, likely),) = choice(to_pixels(scores[None]) if per_cell else scores)
        keypoints, scores = np.zeros((MOST, 2), np.float32), np.zeros(MOST, np.float32)
        keypoints[: len(points)], scores[: len(points)] = points + self.border, likely
        count = np.array(len(points), np.int32)
        return {"keypoints": keypoints, "scores": scores, "count": count}

    def teach(self, lesson, fields):
        lesson.keypoints, there = _keypoints_seen(lesson, fields)
        lesson.probability = lesson.for_each_view(fields["scores"]) * there
        lesson.cells = scatter_keypoints(lesson.keypoints, lesson.probability, lesson.shape)
        size = self.store.schema.image_size
        lesson.known = cells_seen(lesson.H_view_to_photo, lesson.shape, size, self.border)


class LabelTarget(Target):
    """``labels``: of each cell its first keypoint, row by row and on whole pixels, or none."""

    needs = (("keypoints", "count"),)

    def teach(self, lesson, fields):
        width, height = lesson.size
        points, there = _keypoints_seen(lesson, fields)
        inside = there & is_inside(points, lesson.size)
        x, y = torch.where(inside[..., None], points, 0).round().long().unbind(2)
        index = torch.where(inside, y * width + x, height * width)
        marked = points.new_zeros(len(points), height * width + 1).scatter_(1, index, 1.0)
        pixels = from_pixels(marked[:, :-1].unflatten(1, (height, width)))
        # The first of a cell's pixels alone: so many are marked up to each.
        first = pixels * (pixels.cumsum(1) == 1)
        lesson.cells, lesson.known = with_nothing(first), lesson.seen
        lesson.keypoints, lesson.probability = points, there.float()


def _keypoints_seen(lesson: Lesson, fields: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Padded keypoints where the views show them (N, K, 2), and which are there (N, K)."""
    keypoints, count = (lesson.for_each_view(fields[name]) for name in ("keypoints", "count"))
    there = torch.arange(keypoints.shape[1], device=count.device) < count[:, None]
    return unwarp_points(keypoints, lesson.H_view_to_photo), there


class DescriptorTarget(Target):
    """What the descriptors at some points of a view are.

    Attributes:
        of_map: whether it learns from a ``descriptor_map``, not from ``descriptors`` of keypoints.
        field: of the schema, either's.
        descriptor_dim: numbers of a descriptor.
    """

    needs = (("descriptor_map",),)

    def __init__(self, store: RecordStore):
        super().__init__(store)
        self.of_map = "descriptor_map" in self.reads
        self.field = store.schema.fields["descriptor_map" if self.of_map else "descriptors"]
        self.descriptor_dim = self.field.shape[0 if self.of_map else 1]

    def on_map(self, points: Tensor) -> Tensor:
        """Which points (..., 2) of the photographs lie on the map, (...) bool."""
        height, width = self.field.shape[1:]
        return is_inside(self.field.geometry.to_map(points), (width, height))


class CenterTarget(DescriptorTarget):
    """``centers``: the teacher's descriptors on the student's own grid of cells.

    ``descriptor_map`` (D, h, w) lies on that grid and has unit length along D; it may lack cells at
    the photograph's edge, where nothing is learned then.

    Raises:
        StoreError: a map on another grid.
    """

    def __init__(self, store: RecordStore):
        super().__init__(store)
        stride, offset = self.field.geometry.stride, self.field.geometry.offset
        if stride != CELL_MAP.stride or (offset - CELL_MAP.offset) % stride:
            raise StoreError(
                f"{store.path}: its descriptor_map lies on {self.field.geometry}, the student "
                f"needs the cells of {CELL_MAP}; export it without a form behind its name, or set "
                'descriptor_target = "random" in [train]'
            )

    def teach(self, lesson, fields):
        self.teach_at(cell_centers(lesson.shape, lesson.H_view_to_photo.device), lesson, fields)

    def teach_at(self, points: Tensor, lesson: Lesson, fields: dict[str, Tensor]) -> None:
        """The teacher's descriptors at points (P, 2) or (N, P, 2) of the views."""
        views, geometry = lesson.H_view_to_photo, self.field.geometry
        lesson.descriptors = view_descriptors(fields["descriptor_map"], points, views, geometry)
        lesson.weights = self.on_map(warp_points(points, views))


class PeakTarget(CenterTarget):
    """``peaks``: at the likeliest pixel of each cell, as much as the cell has a keypoint."""

    def teach(self, lesson, fields):
        peaks = cell_peaks(lesson.cells)
        self.teach_at(peaks, lesson, fields)
        lesson.points = peaks.float()
        lesson.weights = lesson.weights * occupied(lesson.cells).flatten(1)


class RandomTarget(DescriptorTarget):
    """``random``: at random positions of the teacher's map, which may lie on any grid."""

    POSITIONS = 1024  # of a view

    def read(self, name, H_view_to_photo, size, rng):
        geometry, (height, width) = self.field.geometry, self.field.shape[1:]
        drawn = rng.uniform(0, 1, (len(H_view_to_photo), self.POSITIONS, 2)) * size - 0.5
        seen = np.stack([warp_points(*pair) for pair in zip(drawn, H_view_to_photo, strict=True)])
        column, row = np.moveaxis(geometry.to_map(seen).round().astype(int), -1, 0)
        column, row = column.clip(0, width - 1), row.clip(0, height - 1)
        points = geometry.to_image(np.stack([column, row], -1))
        values = self.store.read(name, "descriptor_map")[:, row, column]
        arrays = {"positions": points.astype(np.float32), "descriptors": np.moveaxis(values, 0, -1)}
        if (scales := scale_name("descriptor_map")) in self.reads:
            arrays[scale_name("descriptors")] = self.store.read(name, scales)[row, column]
        return arrays

    def teach(self, lesson, fields):
        positions, lesson.descriptors = (
            fields[name].flatten(0, 1) for name in ("positions", "descriptors")
        )
        lesson.points = unwarp_points(positions, lesson.H_view_to_photo)
        lesson.weights = is_inside(lesson.points, lesson.size)


class KeypointDescriptorTarget(DescriptorTarget):
    """``keypoints``: at the keypoints of the detector target, as much as each is likely.

    The store's ``descriptors`` of its own keypoints, or its ``descriptor_map`` at those of a
    detector target of any store.
    """

    needs = (("keypoints", "descriptors", "count"), ("descriptor_map",))

    def __init__(self, store: RecordStore):
        super().__init__(store)
        # The rest is what the detector target reads.
        self.reads = [field for field in self.reads if field.startswith("descriptor")]

    def teach(self, lesson, fields):
        there = is_inside(lesson.keypoints, lesson.size)
        if self.of_map:
            of_photographs = fields["keypoints"]
            there = there & lesson.for_each_view(self.on_map(of_photographs.double()))
            samples = sample_map(fields["descriptor_map"], of_photographs, self.field.geometry)
            descriptors = F.normalize(samples, dim=2)
        else:
            descriptors = fields["descriptors"]
        lesson.weights, best = (there * lesson.probability).topk(min(DESCRIBED, there.shape[1]))
        photographs = torch.arange(len(descriptors), device=best.device)
        lesson.descriptors = descriptors[lesson.for_each_view(photographs[:, None]), best]
        lesson.points = lesson.keypoints.gather(1, best[:, :, None].expand(-1, -1, 2))


class GlobalTarget(Target):
    """A global descriptor (G,) of unit length; a view keeps that of its photograph.

    Attributes:
        teacher: what a student must know of it.
    """

    needs = (("global_descriptor",),)

    def __init__(self, store: RecordStore):
        super().__init__(store)
        words = store.parameters.get("words")
        dim = store.schema.fields["global_descriptor"].shape[0]
        self.teacher = GlobalTeacher(dim, None if words is None else words.shape)

    def teach(self, lesson, fields):
        lesson.global_descriptor = lesson.for_each_view(fields["global_descriptor"])


DETECTOR_TARGETS = {"cells": CellTarget, "keypoints": KeypointTarget, "labels": LabelTarget}
DESCRIPTOR_TARGETS = {
    "keypoints": KeypointDescriptorTarget,
    "peaks": PeakTarget,
    "centers": CenterTarget,
    "random": RandomTarget,
}


@dataclass(frozen=True)
class Targets:
    """All that a student learns from: local targets, a global one, or both.

    Attributes:
        detector, descriptor: both or neither.
    """

    detector: Target | None
    descriptor: DescriptorTarget | None
    global_: GlobalTarget | None = None

    @property
    def parts(self) -> list[Target]:
        """Those that there are."""
        return [part for part in (self.detector, self.descriptor, self.global_) if part]

    @property
    def stores(self) -> list[RecordStore]:
        """Those that are read, each once."""
        return [*{id(part.store): part.store for part in self.parts}.values()]

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) of the photographs as the teachers saw them."""
        return self.stores[0].schema.image_size

    def read(
        self, name: str, H_view_to_photo: np.ndarray, size: tuple[int, int], rng
    ) -> dict[str, np.ndarray]:
        """The fields of a photograph that all targets need; see ``Target.read``."""
        fields = {}
        for part in self.parts:
            fields |= part.read(name, H_view_to_photo, size, rng)
        return fields

    def lesson(
        self,
        fields: dict[str, Tensor],
        H_view_to_photo: Tensor,
        shape: tuple[int, int],
        *,
        partial: bool = False,
    ) -> Lesson:
        """What the teachers say of the views.

        Args:
            fields: what was read, in float32, with a leading axis of B photographs.
            H_view_to_photo: (B, V, 3, 3) float64.
            shape: (height, width) of the views in cells.
            partial: views may show what lies beyond the photograph, where nobody says anything.
        """
        lesson = Lesson(H_view_to_photo.flatten(0, 1), shape)
        if partial:
            lesson.seen = cells_seen(lesson.H_view_to_photo, shape, self.image_size)
        for part in self.parts:
            part.teach(lesson, fields)
        return lesson


def find_strategy(name: str) -> dict[str, str]:
    """The settings ``detector_target`` and ``descriptor_target`` that a strategy stands for.

    Raises:
        InputError: no strategy has that name.
    """
    detector, descriptor = _find(STRATEGIES, name, "--strategy")
    return {"detector_target": detector, "descriptor_target": descriptor}


def _find(choices: dict, name: str, setting: str):
    if name not in choices:
        raise InputError(f"{setting} {name!r}: expected one of {', '.join(choices)}")
    return choices[name]


def choose_targets(
    stores: list[RecordStore], detector: str = "keypoints", descriptor: str = "keypoints"
) -> Targets:
    """What the student learns from the stores: local targets, global ones, or both.

    Args:
        detector, descriptor: names of ``DETECTOR_TARGETS`` and ``DESCRIPTOR_TARGETS``.

    Raises:
        InputError: no target has that name.
        StoreError: a store that is not complete, of another image size, that nothing is learned
            from, or a second one of what one is enough of; targets that do not go together.
    """
    kinds = (
        _find(DETECTOR_TARGETS, detector, "detector_target"),
        _find(DESCRIPTOR_TARGETS, descriptor, "descriptor_target"),
        GlobalTarget,
    )
    for store in stores:
        store.require_complete()
        if store.schema.image_size != stores[0].schema.image_size:
            raise StoreError(
                f"{store.path}: image size {store.schema.image_size}, but {stores[0].path} has "
                f"{stores[0].schema.image_size}; export both with the same --size"
            )
    if descriptor == "keypoints" and detector == "cells":
        raise StoreError(
            "descriptor_target keypoints: detector_target cells has no keypoints to compare at; "
            "set one of the two otherwise in [train]"
        )
    held = [_holders(kind, stores) for kind in kinds]
    for store in stores:
        for kind, holders in zip(kinds[:2], held[:2], strict=True):
            if not holders and store not in held[2]:
                flag = "sparse" if "keypoints" in kind.needs[0] else "score_map,descriptor_map"
                raise StoreError(
                    f"{store.path}: has no {kind.needs[0][0]}, which the student learns from; "
                    f"export it with --fields {flag}"
                )
        if not any(store in holders for holders in held):
            raise StoreError(
                f"{store.path}: a detector target {detector} and a descriptor target {descriptor} "
                "learn nothing from it"
            )
    for holders in held:
        if len(holders) > 1:
            raise StoreError(f"{holders[1].path}: a second store of the same kind; give one each")
    if not held[0] or not held[1]:
        held[:2] = [], []
    ours = [kind(*holders) if holders else None for kind, holders in zip(kinds, held, strict=True)]
    detects, describes, _ = ours
    if describes and not describes.of_map and detects.store is not describes.store:
        raise StoreError(
            f"{describes.store.path}: its descriptors are not those of the keypoints in "
            f"{detects.store.path}; give one store with both"
        )
    return Targets(*ours)


def _holders(kind: type, stores: list[RecordStore]) -> list[RecordStore]:
    """The stores with all fields of the first of a target's choices that any store has."""
    for choice in kind.needs:
        holders = [store for store in stores if store.schema.fields.keys() >= {*choice}]
        if holders:
            return holders
    return []


def _border_of_map(store: RecordStore) -> int:
    """Pixels along the edge of a photograph of which a score map says nothing.

    Raises:
        StoreError: a map of another kind.
    """
    field = store.schema.fields["score_map"]
    if field.shape[0] == CHANNELS and field.geometry == CELL_MAP:
        return 0
    if field.shape[0] == 1 and field.geometry.stride == 1:
        return int(field.geometry.offset)
    raise StoreError(
        f"{store.path}: its score_map has {field.shape[0]} channels on {field.geometry}; "
        f"the student needs {CHANNELS} on {CELL_MAP} or one on every pixel"
    )


def _border_of_list(store: RecordStore) -> float:
    """Pixels along the edge of a photograph where no keypoint can be listed."""
    settings = store.schema.settings
    teacher = settings.get("keypoints_teacher", store.schema.teacher)
    unseen = NETWORKS.find(teacher).border if teacher in NETWORKS.names() else 0
    return max(float(unseen), float(settings.get("border", 0)))
