"""RecordStore: one suite for both formats, raw and compressed."""

import hashlib
import shutil
from pathlib import Path

import google_crc32c
import h5py
import hdf5plugin  # noqa: F401  registers zstd
import numpy as np
import pytest
import zarr

from hfnet_distill.data.geometry import CELL_MAP
from hfnet_distill.data.stores.names import NAME_ARRAYS
from hfnet_distill.data.stores.store import Field, RecordStore, Schema
from hfnet_distill.errors import StoreError

NAMES = [f"walk/{i}.jpg" for i in range(7)]
KINDS = [("zarr", "none"), ("zarr", "zstd"), ("hdf5", "none"), ("hdf5", "zstd")]


def make_schema(compression="none", **changes) -> Schema:
    values = {
        "teacher": "toy",
        "weights": "ab" * 32,
        "settings": {"top_k": 5},
        "image_size": (32, 24),
        "fields": {
            "score_map": Field(shape=(65, 3, 4), dtype="float16", geometry=CELL_MAP),
            "keypoints": Field(shape=(5, 2), dtype="float32"),
            "scores": Field(shape=(5,), dtype="float32"),
            "count": Field(shape=(), dtype="int32"),
        },
        "shard_size": 3,
        "compression": compression,
        "software": "0.1.0",
    }
    return Schema(**{**values, **changes})


def make_shard(store: RecordStore, number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    count = len(store.shard(number))
    arrays = {
        name: rng.standard_normal((count, *field.shape)).astype(field.dtype)
        for name, field in store.schema.fields.items()
    }
    arrays["count"] = rng.integers(0, 6, count).astype(np.int32)
    return arrays


def fill(store: RecordStore, shards=None) -> RecordStore:
    for number in store.pending_shards() if shards is None else shards:
        store.write_shard(number, make_shard(store, number))
    if not store.pending_shards():
        store.finish()
    return store


def digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    names = [str(file.relative_to(path)).encode() for file in files]
    parts = [b"%s %s" % (name, file.read_bytes()) for name, file in zip(names, files, strict=True)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(params=KINDS, ids="-".join)
def kind(request):
    return request.param


def create(path, kind, **changes) -> RecordStore:
    return RecordStore.create(path, make_schema(kind[1], **changes), NAMES, kind[0])


def test_what_is_written_is_read(tmp_path, kind):
    store = RecordStore.open(fill(create(tmp_path / "store", kind)).path)
    assert store.complete
    assert store.names == NAMES
    assert store.schema == make_schema(kind[1])
    for number in range(store.num_shards):
        arrays = make_shard(store, number)
        for row, index in enumerate(store.shard(number)):
            for field in arrays:
                np.testing.assert_array_equal(store.read(NAMES[index], field), arrays[field][row])
        assert store.corrupt_records(number) == []


def test_a_finished_store_has_nothing_of_killed_writers(kind, tmp_path):
    store = create(tmp_path / "store", kind)
    fill(store, store.pending_shards()[:1])
    if store.path.is_dir():
        left = store.path / "done" / "c" / "1.0123.partial"
    else:
        left = store.path.with_name("store.0123.partial")
    left.write_bytes(b"1")
    fill(store)
    assert store.complete
    assert not left.exists()


def test_parameters_are_kept_beside_the_records(tmp_path, kind):
    rng = np.random.default_rng(0)
    parameters = {
        "words": rng.standard_normal((4, 3)).astype(np.float32),
        "mean": rng.standard_normal(12),
    }
    arguments = (make_schema(kind[1]), NAMES, kind[0])
    RecordStore.create(tmp_path / "store", *arguments, parameters)
    again = fill(RecordStore.create(tmp_path / "store", *arguments))
    found = RecordStore.open(again.path).parameters
    assert found.keys() == parameters.keys()
    for name, array in parameters.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert create(tmp_path / "without", kind).parameters == {}
    fill(RecordStore.create(tmp_path / "second", *arguments, parameters))
    assert digest(tmp_path / "second") == digest(tmp_path / "store")


def test_names_are_found_in_any_order_and_in_stores_without_their_arrays(tmp_path, kind):
    names = ["ß/2.jpg", "b.jpg", "a.jpg", "日.png", "a.jpg2", "B.jpg", "a"]
    path = tmp_path / "store"
    RecordStore.create(path, make_schema(kind[1]), names, kind[0])
    for _ in range(2):
        store = RecordStore.open(path)
        assert store.names == names
        assert list(store.names) == [store.names[row] for row in range(-7, 0)] == names
        assert [store.names.find(name) for name in names] == list(range(7))
        assert [name in store for name in ("a.jpg", "a.jp", "", "ü", "\udcff")] == [1, 0, 0, 0, 0]
        assert store.names[1:3] == names[1:3]
        assert store.names != names[::-1]
        for name in NAME_ARRAYS:  # as in older stores
            if kind[0] == "zarr":
                shutil.rmtree(path / name, ignore_errors=True)
            else:
                with h5py.File(path, "r+") as file:
                    file.pop(name, None)


def test_names_that_are_cut_off_are_a_damaged_store(tmp_path):
    store = create(tmp_path / "store", ("zarr", "none"))
    file = store.path / "name_text" / "c" / "0"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(StoreError, match="names are cut off"):
        RecordStore.open(store.path)


def test_sparse_fields_come_without_their_padding(tmp_path, kind):
    store = fill(create(tmp_path / "store", kind))
    record = store.record(NAMES[4])
    assert len(record["keypoints"]) == len(record["scores"]) == make_shard(store, 1)["count"][1]


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_raw_records_are_views_of_the_file(tmp_path, format):
    store = fill(create(tmp_path / "store", (format, "none")))
    view = store.read(NAMES[0], "score_map")
    assert not view.flags.writeable
    base = view
    while not isinstance(base, np.memmap):
        base = base.base
    assert Path(base.filename).is_relative_to(tmp_path)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_stranger_reads_zarr(tmp_path, compression):
    store = fill(create(tmp_path / "store.zarr", ("zarr", compression)))
    group = zarr.open_group(store.path, mode="r")
    np.testing.assert_array_equal(group["score_map"][3:6], make_shard(store, 1)["score_map"])
    assert group["name"][:].tolist() == NAMES
    assert group["score_map"].attrs["offset"] == 3.5
    assert group["done"][:].tolist() == [1, 1, 1]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_store_with_a_folder_for_each_shard_is_continued(tmp_path, compression):
    store = create(tmp_path / "store.zarr", ("zarr", compression))
    for field in store.schema.stored_fields:
        path = store.path / field / "zarr.json"
        path.write_text(path.read_text().replace('"separator": "."', '"separator": "/"'))
    fill(RecordStore.open(store.path), shards=[0, 2])
    again = fill(create(store.path, ("zarr", compression)))
    assert (store.path / "score_map/c/1/0/0/0").exists()
    group = zarr.open_group(store.path, mode="r")
    np.testing.assert_array_equal(group["score_map"][3:6], make_shard(store, 1)["score_map"])
    np.testing.assert_array_equal(again.read(NAMES[4], "scores"), make_shard(store, 1)["scores"][1])
    assert [again.corrupt_records(number) for number in range(3)] == [[], [], []]


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_checksums_are_those_of_whole_records(tmp_path, monkeypatch, format):
    whole = fill(create(tmp_path / "whole", (format, "none")))
    arrays = [whole.read(NAMES[4], field).tobytes() for field in whole.schema.fields]
    assert int(whole._layout.read("checksum", 4)) == google_crc32c.value(b"".join(arrays))
    monkeypatch.setattr("hfnet_distill.data.stores.layout.PART", 100)
    fill(create(tmp_path / "parts", (format, "none")))
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_stranger_reads_hdf5(tmp_path, compression):
    store = fill(create(tmp_path / "store.h5", ("hdf5", compression)))
    with h5py.File(store.path) as file:
        np.testing.assert_array_equal(file["score_map"][3:6], make_shard(store, 1)["score_map"])
        assert file["name"].asstr()[:].tolist() == NAMES
        assert file["complete"][0] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.h5"]


def test_continuing_gives_the_same_bytes(tmp_path, kind):
    fill(create(tmp_path / "whole", kind))
    fill(create(tmp_path / "halves", kind), shards=[1])
    again = create(tmp_path / "halves", kind)
    assert again.pending_shards() == [0, 2]
    assert not again.complete
    with pytest.raises(StoreError, match="2 of 3 shards are not written yet"):
        again.require_complete()
    fill(again)
    assert digest(tmp_path / "whole") == digest(tmp_path / "halves")


def test_what_killed_writers_left_is_removed(tmp_path, kind):
    fill(create(tmp_path / "whole", kind))
    store = fill(create(tmp_path / "killed", kind), shards=[1])
    (tmp_path / "killed.0a.partial").mkdir()
    folder = store.path / "score_map" if kind[0] == "zarr" else tmp_path / "killed.parts"
    if folder.exists():
        (folder / "0.0a.partial").write_bytes(b"half")
    fill(create(tmp_path / "killed", kind))
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_another_setting_is_named(tmp_path, kind):
    create(tmp_path / "store", kind)
    with pytest.raises(StoreError, match=r"settings\.top_k is 5 there and 9 here"):
        create(tmp_path / "store", kind, settings={"top_k": 9})
    with pytest.raises(StoreError, match="image_size"):
        create(tmp_path / "store", kind, image_size=(64, 24))
    with pytest.raises(StoreError, match="other photographs"):
        RecordStore.create(tmp_path / "store", make_schema(kind[1]), NAMES[1:], kind[0])


def test_an_array_off_the_schema_is_refused(tmp_path, kind):
    store = create(tmp_path / "store", kind)
    arrays = make_shard(store, 0)
    arrays["scores"] = arrays["scores"].astype(np.float64)
    with pytest.raises(StoreError, match="scores: expected float32"):
        store.write_shard(0, arrays)
    assert store.pending_shards() == [0, 1, 2]


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_a_flipped_byte_is_found(tmp_path, format):
    store = fill(create(tmp_path / "store", (format, "none")))
    path = store.path if format == "hdf5" else store.path / "score_map/c.1.0.0.0"
    needle = make_shard(store, 1)["score_map"][1].tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(needle) + 100] ^= 1
    path.write_bytes(data)
    found = [RecordStore.open(store.path).corrupt_records(n) for n in range(3)]
    assert found == [[], [NAMES[4]], []]


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no such store"):
        RecordStore.open(tmp_path / "missing.zarr")
    (tmp_path / "notes.h5").write_text("not hdf5")
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "notes.h5", tmp_path / "photos"):
        with pytest.raises(StoreError, match="not a store"):
            RecordStore.open(path)
        with pytest.raises(StoreError, match="not overwritten"):
            RecordStore.remove(path)
        assert path.exists()


def test_another_layout_version_is_refused(tmp_path, kind):
    with pytest.raises(StoreError, match="layout version 99"):
        create(tmp_path / "store", kind, version=99)


def test_two_writers_are_refused(tmp_path):
    with (
        RecordStore.lock(tmp_path / "store"),
        pytest.raises(StoreError, match="another export"),
        RecordStore.lock(tmp_path / "store"),
    ):
        pass
    with RecordStore.lock(tmp_path / "store"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_remove_deletes_a_store(tmp_path, kind):
    store = fill(create(tmp_path / "store", kind), shards=[0])
    RecordStore.remove(store.path)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_whose_bytes_a_power_cut_took_is_written_again(tmp_path, kind):
    whole = digest(fill(create(tmp_path / "whole", kind)).path)
    store = fill(create(tmp_path / "store", kind), shards=[0, 1])
    lose_bytes(store, 1)
    assert create(tmp_path / "store", kind).pending_shards() == [1, 2]
    assert digest(fill(create(tmp_path / "store", kind)).path) == whole


def lose_bytes(store: RecordStore, number: int) -> None:
    """Some of a shard reads as zeros, as after a power cut what was never written."""
    path, field = store.path, store.schema.fields["score_map"]
    start, count = 0, field.nbytes
    if store.format == "zarr":
        path = path / "score_map" / f"c.{number}.0.0.0"
    elif store.schema.compression == "zstd":
        path = path.with_name(f"{path.name}.parts") / f"{number:08d}.h5"
        start, count = path.stat().st_size // 8, None
    else:
        with h5py.File(path) as file:
            start = file["score_map"].id.get_offset() + store.shard(number).start * count
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(path.stat().st_size - start if count is None else count))
