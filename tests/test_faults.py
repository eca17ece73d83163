"""Exports that are killed, stores that are damaged, disks that fill up."""

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import random
import time
from importlib import import_module
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.data.geometry import CELL_MAP
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.networks import registry
from hfnet_distill.networks.base import DenseMaps, Network
from hfnet_distill.teacher_export.cli import export_teacher

KINDS = [("zarr", "none"), ("zarr", "zstd"), ("hdf5", "none"), ("hdf5", "zstd")]
MOMENTS = 20


class FastTeacher(Network):
    """Takes SuperPoint's place: its answer follows from the photograph, at once."""

    name = "superpoint"
    weights = "0" * 64
    descriptor_dim = 32

    @classmethod
    def open(cls, source=None, weights=None):
        return cls()

    def maps(self, images):
        time.sleep(0.003)  # of ten shards some are then written when the axe falls
        cells = F.avg_pool2d(images, 8)
        ramp = torch.linspace(-5, 5, 65)[:, None, None]
        scores, descriptors = (cells * ramp).softmax(1), F.normalize(cells + ramp[:32], dim=1)
        return DenseMaps(images.shape[:1:-1], scores, CELL_MAP, descriptors, CELL_MAP)


def export(*arguments) -> None:
    """The command in this process, with the fast teacher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.NETWORKS.entries, "superpoint", FastTeacher)
        export_teacher([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def refused(monkeypatch, capsys):
    """``refused(...)``: what the command says when it ends with an error."""
    monkeypatch.setitem(registry.NETWORKS.entries, "superpoint", FastTeacher)

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            export_teacher([str(argument) for argument in arguments])
        assert ended.value.code == 1
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def children():
    """Where processes are made that can be killed, with what they import already there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hfnet_distill.teacher_export.export", "pytest"])
    return context


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(20):
        image = rng.integers(0, 255, (48, 64)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:02d}.png"), image)
    return folder


@pytest.fixture(scope="module")
def arguments(photographs, tmp_path_factory) -> list:
    text = (Path(__file__).parent.parent / "pipeline.toml").read_text()
    config = tmp_path_factory.mktemp("config") / "small.toml"
    # With one writer it is known which shards a full disk leaves.
    text = text.replace('shard_size = "auto"', "shard_size = 2")
    config.write_text(text.replace("writers = 2", "writers = 1"))
    return [
        *("--model", "superpoint", "--images", photographs, "--config", config),
        *("--size", "64x48", "--device", "cpu", "--precision", "float32", "--quiet"),
    ]


def digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    parts = [str(file.relative_to(path)).encode() + file.read_bytes() for file in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def stored_at(store: RecordStore, name: str, field: str) -> tuple[Path, int]:
    """The file and the offset in it where the middle of a record's array lies."""
    number, _ = divmod(store.names.index(name), store.schema.shard_size)
    needle = np.array(store.read(name, field)).tobytes()
    path = store.path
    if store.format == "zarr":
        path = path / field / f"c.{number}.0.0.0"
    return path, path.read_bytes().index(needle) + len(needle) // 2


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(children, arguments, tmp_path, format):
    arguments = [*arguments, "--format", format]
    export(*arguments, "--store", tmp_path / "whole" / "store")
    whole = digest(tmp_path / "whole" / "store")

    def start(folder: Path):
        started, ended = children.Event(), children.Event()
        process = children.Process(
            target=export_between,
            args=(started, ended, *arguments, "--store", folder / "store"),
            daemon=True,
        )
        process.start()
        assert started.wait(60)
        return process, ended

    process, ended = start(tmp_path / "timed")
    begun = time.monotonic()
    assert ended.wait(60)
    seconds = time.monotonic() - begun
    process.join()
    moments = random.Random(0)
    pending = set()
    for moment in range(MOMENTS):
        folder = tmp_path / str(moment)
        process, ended = start(folder)
        time.sleep(moments.uniform(0, seconds))
        if ended.is_set():  # the export that was timed was slower
            seconds *= 0.7
        process.kill()
        process.join()
        if (folder / "store").exists():
            pending.add(len(RecordStore.open(folder / "store").pending_shards()))
        export(*arguments, "--store", folder / "store")
        assert digest(folder / "store") == whole, f"moment {moment}"
        assert [path.name for path in folder.iterdir()] == ["store"]
    assert len(pending) > 2, "the moments did not fall into the writing"


def export_between(started, ended, *arguments) -> None:
    torch.set_num_threads(1)
    flush = os.fsync

    def flush_slowly(file) -> None:  # so that an export is writing most of its time
        time.sleep(0.005)
        flush(file)

    os.fsync = flush_slowly
    started.set()
    export(*arguments)
    ended.set()


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize("field", ["score_map", "descriptor_map"])
def test_a_flipped_byte_is_found_and_its_shard_made_again(
    refused, arguments, tmp_path, format, field
):
    path = tmp_path / "store"
    export(*arguments, "--format", format, "--store", path)
    whole = digest(path)
    export("--store", path, "--verify")
    flip(*stored_at(RecordStore.open(path), "07.png", field))
    said = refused("--store", path, "--verify", "--quiet")
    assert "1 records in 1 of 10 shards are damaged, first 07.png" in said
    assert "--repair" in said

    written = []
    with pytest.MonkeyPatch.context() as patch:
        write = RecordStore.write_shard
        patch.setattr(
            RecordStore,
            "write_shard",
            lambda store, number, arrays: (written.append(number), write(store, number, arrays)),
        )
        export(*arguments, "--format", format, "--store", path, "--repair")
    assert written == [3]
    assert digest(path) == whole
    export("--store", path, "--verify")


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_any_damage_within_a_shard_is_repaired(arguments, tmp_path, kind):
    format, compression = kind
    path = tmp_path / "store"
    arguments = [*arguments, "--format", format, "--compression", compression, "--store", path]
    export(*arguments)
    whole = digest(path)
    if format == "zarr":
        shards = sorted((path / "descriptor_map").glob("c.*"))
        os.truncate(shards[0], shards[0].stat().st_size // 2)
        flip(shards[1], shards[1].stat().st_size - 3)  # the checksum of its index
        shards[2].unlink()
        flip(shards[3], 5)
        expected = [int(shard.name.split(".")[1]) for shard in shards[:4]]
    else:
        with h5py.File(path) as file:
            dataset = file["descriptor_map"].id
            if compression == "zstd":
                chunk = dataset.get_chunk_info_by_coord((8, 0, 0, 0))
                flip(path, chunk.byte_offset + chunk.size // 2)
            else:
                flip(path, dataset.get_offset() + 8 * 32 * 6 * 8 * 2)
        expected = [4]
    store = RecordStore.open(path)
    assert [n for n in range(store.num_shards) if store.corrupt_records(n)] == expected
    export(*arguments, "--repair")
    assert digest(path) == whole
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_store_that_is_not_whole_is_verified_as_far_as_it_goes(
    monkeypatch, arguments, tmp_path, kind
):
    path = tmp_path / "store"
    arguments = [*arguments, "--format", kind[0], "--compression", kind[1], "--store", path]
    monkeypatch.setattr(RecordStore, "pending_shards", lambda store: [0, 1, 2])
    with contextlib.suppress(Exception):
        export(*arguments)
    monkeypatch.undo()
    store = RecordStore.open(path)
    assert len(store.pending_shards()) == 7
    assert [store.corrupt_records(number) for number in range(3)] == [[], [], []]
    export("--store", path, "--verify")


def test_a_second_export_waits_for_the_death_of_the_first(children, refused, arguments, tmp_path):
    arguments = [*arguments, "--store", tmp_path / "store"]
    held = children.Event()
    first = children.Process(target=hold, args=(tmp_path / "store", held), daemon=True)
    first.start()
    assert held.wait(60)
    assert "another export is writing this store" in refused(*arguments)
    first.kill()
    first.join()
    export(*arguments)
    assert RecordStore.open(tmp_path / "store").complete
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def hold(path: Path, held) -> None:
    with RecordStore.lock(path):
        held.set()
        time.sleep(600)


class SmallDisk:
    """Takes so many more bytes; a write that it cannot hold breaks off in its middle."""

    def __init__(self, room: int):
        self.room = room

    def write(self, write, data) -> int:
        data = memoryview(data).cast("B")[: self.room]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return write(data)

    def open(self, path, mode):
        disk = self

        class File(io.FileIO):
            def write(self, data):
                while data:
                    data = memoryview(data).cast("B")[disk.write(super().write, data) :]

        return File(path, mode)


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_a_disk_that_fills_up_in_the_middle_of_a_shard(
    refused, monkeypatch, arguments, tmp_path, format
):
    arguments = [*arguments, "--format", format]
    export(*arguments, "--store", tmp_path / "whole")
    schema = RecordStore.open(tmp_path / "whole").schema
    disk = SmallDisk(int(11.3 * schema.record_nbytes))
    pwrite = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr("hfnet_distill.files.open", disk.open, raising=False)
        patch.setattr(
            "hfnet_distill.data.stores.hdf5.os.pwrite",
            lambda file, data, offset: disk.write(lambda part: pwrite(file, part, offset), data),
        )
        said = refused(*arguments, "--store", tmp_path / "store")
    assert "No space left on device; free some space" in said
    store = RecordStore.open(tmp_path / "store")
    assert store.pending_shards() == [5, 6, 7, 8, 9]
    assert [store.corrupt_records(number) for number in range(5)] == [[]] * 5
    export(*arguments, "--store", tmp_path / "store")
    assert digest(tmp_path / "store") == digest(tmp_path / "whole")


def test_two_kills_of_the_benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    kills = import_module("kills")
    inputs = kills.prepare(tmp_path)
    torture = kills.Torture(kills.CASES["extract-features"], inputs, tmp_path / "of", "")
    outcome = torture.kill(2)
    assert outcome.faults == []
    assert outcome.killed == 2
