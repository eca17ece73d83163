"""How a teacher's record becomes a target on the student's grids; one class per strategy.

A target is read once for all views of a photograph and compared with what the student said of each.
``H_view_to_photo`` maps the pixels of a view to those of the photograph as the teacher saw it.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.geometry import CELL_MAP, sample_map, warp_points
from ..data.stores.quantize import scale_name
from ..data.stores.store import RecordStore
from ..errors import StoreError
from ..networks.base import StudentOutput
from .losses import (
    descriptor_loss,
    detector_loss,
    global_descriptor_loss,
    keypoint_loss,
)
from .views import (
    cell_centres,
    cell_peaks,
    is_inside,
    to_cells,
    to_view,
    view_descriptors,
    view_scores,
    warp,
)

__all__ = [
    "STRATEGIES",
    "DownsampledTargets",
    "GlobalTargets",
    "PeakTargets",
    "SparseTargets",
    "Targets",
    "UpsampledTargets",
    "choose_targets",
]


class Targets(Protocol):
    """What the student learns from of a photograph.

    Attributes:
        stores: that it is read from.
    """

    stores: tuple[RecordStore, ...]

    def read(
        self, name: str, H_view_to_photo: np.ndarray, size: tuple[int, int], rng
    ) -> dict[str, np.ndarray]:
        """The fields of a photograph; copies, as they are stored.

        Args:
            H_view_to_photo: (V, 3, 3) float64, of its views.
            size: (width, height) of a view.
        """

    def losses(
        self, output: StudentOutput, fields: dict[str, Tensor], H_view_to_photo: Tensor
    ) -> dict[str, Tensor]:
        """Losses by name, each (B * V,).

        Args:
            output: of all views, those of a photograph one after the other.
            fields: what was read, in float32, with a leading axis of B photographs.
            H_view_to_photo: (B, V, 3, 3) float64.
        """


class DownsampledTargets:
    """``downsample``: the teacher's descriptors on the student's own stride-8 grid.

    ``descriptor_map`` (D, h, w) lies on that grid and has unit length along D; it may lack cells at
    the photograph's edge, where nothing is learned then. ``score_map`` is the teacher's
    distribution over each 8x8 cell and "no keypoint" (65, h, w), or the probability of every pixel
    inside a border (1, 8h - 2 * border, 8w - 2 * border).

    Args:
        scores, descriptors: the stores of the two; mostly one and the same.

    Raises:
        StoreError: maps of another kind or on another grid.
    """

    needs = ("score_map", "descriptor_map")

    def __init__(self, scores: RecordStore, descriptors: RecordStore):
        self.scores, self.descriptors = self.stores = scores, descriptors
        self.field = descriptors.schema.fields["descriptor_map"]
        self.descriptor_dim = self.field.shape[0]
        self.cells = tuple(side // 8 for side in scores.schema.image_size[::-1])
        self._check_descriptors()
        field = scores.schema.fields["score_map"]
        per_cell = field.shape[0] == 65 and field.geometry == CELL_MAP
        per_pixel = field.shape[0] == 1 and field.geometry.stride == 1
        if not per_cell and not per_pixel:
            raise StoreError(
                f"{scores.path}: its score_map has {field.shape[0]} channels on {field.geometry}; "
                f"the student needs 65 on {CELL_MAP} or one on every pixel"
            )

    def _check_descriptors(self) -> None:
        stride, offset = self.field.geometry.stride, self.field.geometry.offset
        if stride != CELL_MAP.stride or (offset - CELL_MAP.offset) % stride:
            raise StoreError(
                f"{self.descriptors.path}: its descriptor_map lies on {self.field.geometry}, the "
                f"student needs the cells of {CELL_MAP}; export it without a form behind its name, "
                'or set strategy = "upsample" in [train]'
            )

    def read(self, name, H_view_to_photo, size, rng):
        return _read(self.scores, name, "score_map") | _read(
            self.descriptors, name, "descriptor_map"
        )

    def losses(self, output, fields, H_view_to_photo):
        centres = cell_centres(output.descriptor_map.shape[2:]).to(H_view_to_photo)
        target, known = self._descriptors_at(centres, fields, H_view_to_photo)
        found = output.descriptor_map.flatten(2)
        return {
            "detector": self._detector_loss(output, fields, H_view_to_photo),
            "descriptor": descriptor_loss(found, target.mT, known),
        }

    def _descriptors_at(self, points, fields, H_view_to_photo) -> tuple[Tensor, Tensor]:
        """The teacher's (B * V, N, D) at points of the views, and where it has any (B * V, N)."""
        views = H_view_to_photo.flatten(0, 1)
        height, width = self.field.shape[1:]
        known = is_inside(self.field.geometry.to_map(warp(points, views)), (width, height))
        target = view_descriptors(fields["descriptor_map"], points, views, self.field.geometry)
        return target, known

    def _scores_of_views(self, output, fields, H_view_to_photo) -> Tensor:
        """The teacher's distributions (B * V, 65, h, w) over the cells of the views."""
        whole = _for_each_view(to_cells(fields["score_map"], self.cells), H_view_to_photo)
        return view_scores(whole, H_view_to_photo.flatten(0, 1), output.score_logits.shape[2:])

    def _detector_loss(self, output, fields, H_view_to_photo):
        target = self._scores_of_views(output, fields, H_view_to_photo)
        return detector_loss(output.score_logits, target)


class PeakTargets(DownsampledTargets):
    """``peaks``: as ``downsample``, but descriptors are compared where keypoints will be.

    At the likeliest pixel of each cell, and as much as the teacher holds a keypoint there likely.

    Attributes:
        geometry: of the student's descriptor map.
    """

    geometry = CELL_MAP

    def losses(self, output, fields, H_view_to_photo):
        cells = self._scores_of_views(output, fields, H_view_to_photo)
        peaks = cell_peaks(cells)
        target, known = self._descriptors_at(peaks, fields, H_view_to_photo)
        found = sample_map(output.descriptor_map, peaks.float(), self.geometry)
        likely = 1 - cells[:, 64].flatten(1)
        return {
            "detector": detector_loss(output.score_logits, cells),
            "descriptor": descriptor_loss(F.normalize(found, dim=2).mT, target.mT, known * likely),
        }


class UpsampledTargets(DownsampledTargets):
    """``upsample``: the student's map sampled up to the teacher's, at random positions of that.

    ``descriptor_map`` may lie on any grid, also on that of every pixel.
    """

    POSITIONS = 1024  # of a view

    def _check_descriptors(self) -> None:
        pass

    def read(self, name, H_view_to_photo, size, rng):
        geometry, (height, width) = self.field.geometry, self.field.shape[1:]
        drawn = rng.uniform(0, 1, (len(H_view_to_photo), self.POSITIONS, 2)) * size - 0.5
        seen = np.stack([warp_points(*pair) for pair in zip(drawn, H_view_to_photo, strict=True)])
        column, row = np.moveaxis(geometry.to_map(seen).round().astype(int), -1, 0)
        column, row = column.clip(0, width - 1), row.clip(0, height - 1)
        arrays = _read(self.scores, name, "score_map")
        points = geometry.to_image(np.stack([column, row], -1))
        arrays["keypoints"] = points.astype(np.float32)
        values = self.descriptors.read(name, "descriptor_map")[:, row, column]
        arrays["descriptors"] = np.moveaxis(values, 0, -1)
        if (scales := scale_name("descriptor_map")) in self.descriptors.schema.fields:
            found = self.descriptors.read(name, scales)[row, column]
            arrays[scale_name("descriptors")] = found
        return arrays

    def losses(self, output, fields, H_view_to_photo):
        points, target = (fields[name].flatten(0, 1) for name in ("keypoints", "descriptors"))
        return {
            "detector": self._detector_loss(output, fields, H_view_to_photo),
            "descriptor": _sparse_loss(output, points, target, H_view_to_photo.flatten(0, 1)),
        }


class SparseTargets:
    """``sparse``: the teacher's keypoints, and its descriptors where they are.

    Args:
        scores, descriptors: the stores of ``keypoints`` (K, 2) and of ``descriptors`` (K, D), of
            which ``count`` are there; one and the same.

    Raises:
        StoreError: two stores.
    """

    needs = ("keypoints", "descriptors")

    def __init__(self, scores: RecordStore, descriptors: RecordStore):
        if scores is not descriptors:
            raise StoreError(
                f"{descriptors.path}: its descriptors are not those of the keypoints in "
                f"{scores.path}; give one store with both"
            )
        self.store, self.stores = scores, (scores,)
        self.descriptor_dim = scores.schema.fields["descriptors"].shape[1]

    def read(self, name, H_view_to_photo, size, rng):
        arrays = {field: np.array(self.store.read(name, field)) for field in ("keypoints", "count")}
        return arrays | _read(self.store, name, "descriptors")

    def losses(self, output, fields, H_view_to_photo):
        keypoints, target, count = (
            _for_each_view(fields[name], H_view_to_photo)
            for name in ("keypoints", "descriptors", "count")
        )
        present = torch.arange(keypoints.shape[1], device=count.device) < count[:, None]
        H_view_to_photo = H_view_to_photo.flatten(0, 1)
        height, width = (8 * side for side in output.score_logits.shape[2:])
        points = to_view(keypoints, H_view_to_photo)
        x, y = points.round().long().unbind(2)
        view, index = (present & is_inside(points, (width, height))).nonzero(as_tuple=True)
        keypoint_map = torch.zeros(len(points), height, width, dtype=torch.bool).to(points.device)
        keypoint_map[view, y[view, index], x[view, index]] = True
        return {
            "detector": keypoint_loss(output.score_logits, keypoint_map),
            "descriptor": _sparse_loss(output, keypoints, target, H_view_to_photo, present),
        }


class GlobalTargets:
    """A global descriptor (G,) of unit length; a view keeps that of its photograph."""

    def __init__(self, store: RecordStore):
        self.store, self.stores = store, (store,)
        self.global_dim = store.schema.fields["global_descriptor"].shape[0]

    @property
    def words(self) -> np.ndarray | None:
        """Those (K, D) of a VLAD of local descriptors; None for any other teacher."""
        return self.store.parameters.get("words")

    def read(self, name, H_view_to_photo, size, rng):
        return _read(self.store, name, "global_descriptor")

    def losses(self, output, fields, H_view_to_photo):
        target = _for_each_view(fields["global_descriptor"], H_view_to_photo)
        return {"global": global_descriptor_loss(output.global_descriptor, target)}


STRATEGIES = {
    "peaks": PeakTargets,
    "downsample": DownsampledTargets,
    "upsample": UpsampledTargets,
    "sparse": SparseTargets,
}


def choose_targets(stores: list[RecordStore], strategy: str = "peaks") -> list[Targets]:
    """What the student learns from the stores: a strategy's local targets, global ones, or both.

    Raises:
        StoreError: a store that is not complete, of another image size, that nothing is learned
            from, or a second one of what one is enough of.
    """
    local = STRATEGIES[strategy]
    holders: dict[str, list[RecordStore]] = {
        field: [store for store in stores if field in store.schema.fields]
        for field in (*local.needs, "global_descriptor")
    }
    for store in stores:
        store.require_complete()
        if store.schema.image_size != stores[0].schema.image_size:
            raise StoreError(
                f"{store.path}: image size {store.schema.image_size}, but {stores[0].path} has "
                f"{stores[0].schema.image_size}; export both with the same --size"
            )
        if missing := [field for field in local.needs if not holders[field]]:
            if store not in holders["global_descriptor"]:
                raise StoreError(
                    f"{store.path}: has no {missing[0]}, which the student learns from; export it "
                    f"with {_export_flag(local)}"
                )
        elif not any(store in held for held in holders.values()):
            raise StoreError(f"{store.path}: the strategy {strategy} learns nothing from it")
    for held in holders.values():
        if len(held) > 1:
            raise StoreError(f"{held[1].path}: a second store of the same kind; give one of each")
    *of_local, of_places = holders.values()
    targets: list[Targets] = [local(*(held[0] for held in of_local))] if all(of_local) else []
    return targets + [GlobalTargets(store) for store in of_places]


def _export_flag(local: type) -> str:
    return "--fields sparse" if local is SparseTargets else "--fields score_map,descriptor_map"


def _read(store: RecordStore, name: str, field: str) -> dict[str, np.ndarray]:
    """A field, and its scales if it has any."""
    wanted = [part for part in (field, scale_name(field)) if part in store.schema.fields]
    return {part: np.array(store.read(name, part)) for part in wanted}


def _for_each_view(of_photographs: Tensor, H_view_to_photo: Tensor) -> Tensor:
    """(B, ...) -> (B * V, ...)."""
    return of_photographs.repeat_interleave(H_view_to_photo.shape[1], 0)


def _sparse_loss(output, points, target, H_view_to_photo, present=None) -> Tensor:
    """The descriptor loss (B,) at points (B, N, 2) of the photographs that the views show."""
    points = to_view(points, H_view_to_photo)
    height, width = (8 * side for side in output.descriptor_map.shape[2:])
    mask = is_inside(points, (width, height))
    mask = mask if present is None else mask & present
    found = F.normalize(sample_map(output.descriptor_map, points, CELL_MAP), dim=2)
    return descriptor_loss(found.mT, target.mT, mask)
