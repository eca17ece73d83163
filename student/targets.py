"""How a teacher's record becomes a target on the student's grids; one class per strategy."""

import numpy as np

from data.geometry import CELL_MAP
from data.store import RecordStore, StoreError

__all__ = ["CellTargets", "GlobalTargets", "choose_targets"]


class CellTargets:
    """Maps that lie on the student's own stride-8 grid: the target is the record as it stands.

    ``score_map`` (65, h, w) is the teacher's distribution over each 8x8 cell and "no keypoint";
    ``descriptor_map`` (D, h, w) has unit length along D.

    Raises:
        StoreError: the store's maps are of another kind or on another grid.
    """

    def __init__(self, store: RecordStore):
        self.store = store
        for name in ("score_map", "descriptor_map"):
            field = store.schema.fields.get(name)
            if field is None:
                raise StoreError(
                    f"{store.path}: has no {name}, which the student learns from; export it with "
                    "--fields score_map,descriptor_map"
                )
            if field.geometry != CELL_MAP:
                raise StoreError(
                    f"{store.path}: its {name} lies on {field.geometry}, the student needs "
                    f"{CELL_MAP}"
                )
        channels = store.schema.fields["score_map"].shape[0]
        if channels != 65:
            raise StoreError(f"{store.path}: its score_map has {channels} channels, 65 are needed")
        self.descriptor_dim = store.schema.fields["descriptor_map"].shape[0]

    def read(self, name: str, cells: tuple[slice, slice]) -> dict[str, np.ndarray]:
        """The targets of a crop, given as (rows, columns) of cells; copies, float16."""
        return {
            field: np.array(self.store.read(name, field)[:, cells[0], cells[1]])
            for field in ("score_map", "descriptor_map")
        }


class GlobalTargets:
    """A global descriptor (G,) of unit length; a crop keeps that of its photograph."""

    def __init__(self, store: RecordStore):
        self.store = store
        self.global_dim = store.schema.fields["global_descriptor"].shape[0]

    def read(self, name: str, cells: tuple[slice, slice]) -> dict[str, np.ndarray]:
        """The target of any crop of a photograph."""
        return {"global_descriptor": np.array(self.store.read(name, "global_descriptor"))}


def choose_targets(stores: list[RecordStore]) -> list[CellTargets | GlobalTargets]:
    """The strategy of each store, by the fields it holds: exactly one is local.

    Raises:
        StoreError: stores of different image sizes, no local store, or two of a kind.
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
    if not any(isinstance(target, CellTargets) for target in targets):
        raise StoreError(
            f"{stores[0].path}: holds only global descriptors; give a store with score_map and "
            "descriptor_map beside it"
        )
    return targets
