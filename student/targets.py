"""How a teacher's record becomes a target on the student's grids; one class per strategy."""

import numpy as np

from data.geometry import CELL_MAP
from data.quantize import scale_name
from data.store import RecordStore, StoreError

__all__ = ["CellTargets", "GlobalTargets", "choose_targets"]


class CellTargets:
    """A teacher's maps over the photograph, from which every view of it gets its targets.

    ``descriptor_map`` (D, h, w) lies on the student's own stride-8 grid and has unit length along
    D. ``score_map`` is the teacher's distribution over each 8x8 cell and "no keypoint" (65, h, w),
    or the probability of every pixel inside a border (1, 8h - 2 * border, 8w - 2 * border).

    Raises:
        StoreError: the store's maps are of another kind or on another grid.
    """

    def __init__(self, store: RecordStore):
        self.store = store
        for name in ("score_map", "descriptor_map"):
            if name not in store.schema.fields:
                raise StoreError(
                    f"{store.path}: has no {name}, which the student learns from; export it with "
                    "--fields score_map,descriptor_map"
                )
        scores, descriptors = (store.schema.fields[n] for n in ("score_map", "descriptor_map"))
        if descriptors.geometry != CELL_MAP:
            raise StoreError(
                f"{store.path}: its descriptor_map lies on {descriptors.geometry}, the student "
                f"needs {CELL_MAP}; export it without a form behind its name"
            )
        per_cell = scores.shape[0] == 65 and scores.geometry == CELL_MAP
        per_pixel = scores.shape[0] == 1 and scores.geometry.stride == 1
        if not per_cell and not per_pixel:
            raise StoreError(
                f"{store.path}: its score_map has {scores.shape[0]} channels on {scores.geometry}; "
                f"the student needs 65 on {CELL_MAP} or one on every pixel"
            )
        self.descriptor_dim = descriptors.shape[0]
        wanted = ("score_map", "descriptor_map", scale_name("descriptor_map"))
        self.fields = [name for name in wanted if name in store.schema.fields]

    def read(self, name: str) -> dict[str, np.ndarray]:
        """The maps of a photograph; copies, as they are stored."""
        return {field: np.array(self.store.read(name, field)) for field in self.fields}


class GlobalTargets:
    """A global descriptor (G,) of unit length; a view keeps that of its photograph."""

    def __init__(self, store: RecordStore):
        self.store = store
        self.global_dim = store.schema.fields["global_descriptor"].shape[0]

    @property
    def words(self) -> np.ndarray | None:
        """Those (K, D) of a VLAD of local descriptors; None for any other teacher."""
        return self.store.parameters.get("words")

    def read(self, name: str) -> dict[str, np.ndarray]:
        """The target of any view of a photograph."""
        return {"global_descriptor": np.array(self.store.read(name, "global_descriptor"))}


def choose_targets(stores: list[RecordStore]) -> list[CellTargets | GlobalTargets]:
    """What the student learns from each store, by the fields that it holds.

    Raises:
        StoreError: a store that is not complete, of another image size, or a second one of a kind.
    """
    targets: list[CellTargets | GlobalTargets] = []
    for store in stores:
        store.require_complete()
        if store.schema.image_size != stores[0].schema.image_size:
            raise StoreError(
                f"{store.path}: image size {store.schema.image_size}, but {stores[0].path} has "
                f"{stores[0].schema.image_size}; export both with the same --size"
            )
        is_local = store.schema.fields.keys() & {"score_map", "descriptor_map"}
        kinds = [CellTargets] if is_local else []
        kinds += [GlobalTargets] if "global_descriptor" in store.schema.fields else []
        for kind in kinds or [CellTargets]:
            if any(isinstance(target, kind) for target in targets):
                raise StoreError(f"{store.path}: a second store of the same kind; give one of each")
            targets.append(kind(store))
    return targets
