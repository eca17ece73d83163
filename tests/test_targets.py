"""Targets: which stores the student can learn from."""

import numpy as np
import pytest

from data.geometry import CELL_MAP, MapGeometry
from data.store import Field, RecordStore, Schema, StoreError
from student.targets import CellTargets

SIZE = (64, 48)


def make_store(path, **fields: Field) -> RecordStore:
    """A complete store of one random record."""
    schema = Schema(
        teacher="test",
        weights="0" * 64,
        settings={},
        image_size=SIZE,
        fields=fields,
        shard_size=1,
        compression="none",
        software="0",
    )
    store = RecordStore.create(path, schema, ["a"], "zarr")
    rng = np.random.default_rng(0)
    store.write_shard(
        0, {n: rng.uniform(size=(1, *f.shape)).astype(f.dtype) for n, f in fields.items()}
    )
    store.finish()
    return store


def pixels(border: int) -> Field:
    shape = (1, SIZE[1] - 2 * border, SIZE[0] - 2 * border)
    return Field(shape=shape, dtype="float16", geometry=MapGeometry(1, border))


CELLS = Field(shape=(8, 6, 8), dtype="float16", geometry=CELL_MAP)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"descriptor_map": CELLS}, "has no score_map"),
        (
            {"score_map": pixels(9), "descriptor_map": pixels(9)},
            "export it without a form behind its name",
        ),
        ({"score_map": CELLS, "descriptor_map": CELLS}, "its score_map has 8 channels"),
    ],
)
def test_stores_that_the_student_cannot_learn_from(tmp_path, fields, message):
    store = make_store(tmp_path / "store", **fields)
    with pytest.raises(StoreError, match=message):
        CellTargets(store)
