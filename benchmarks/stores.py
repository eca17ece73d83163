"""How fast records are written and read in random order, by several ways of keeping them.

    python benchmarks/stores.py --json stores.json

The same SuperPoint records (``score_map`` (65, 60, 80), ``descriptor_map`` (256, 60, 80)), in the
same order, into the same batch buffer:

* memcpy: from memory to memory; plain_file: one file, one record after the other, ``readinto``;
* zarr, hdf5: RecordStore in float16; zarr_int8, hdf5_int8: in eight bits;
* npz: one uncompressed float32 file an image, as HF-Net's export wrote it;
* hloc_hdf5: one group an image, float16; zarr_default: zarr-python, nothing set but dtype.

    python benchmarks/stores.py --names 1000000

measures in place of all this what so many names cost: a store of tiny records and a folder of empty
files are made, the store is opened, joined with the folder and continued; and a loader's process
reads records, whose own memory is that which it shares with nobody.

A pass takes every contender in turn; what counts is the median of a contender's passes. Reads are
warm: every file lies in the page cache and every map was used once. Cold reads follow, with the
pages of the files dropped before each pass. Writes go into stores laid out before and end in the
page cache, as nobody waits for the disk; what was written before is flushed first.
"""

import gc
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path

import click
import h5py
import numpy as np
import torch
import zarr
from torch.nn import functional as F

from hfnet_distill.data.geometry import CELL_MAP
from hfnet_distill.data.images import list_images
from hfnet_distill.data.stores.quantize import quantize, quantize_fields
from hfnet_distill.data.stores.store import Field, RecordStore, Schema
from hfnet_distill.files import remove

FIELDS = {
    "score_map": Field(shape=(65, 60, 80), dtype="float16", geometry=CELL_MAP),
    "descriptor_map": Field(shape=(256, 60, 80), dtype="float16", geometry=CELL_MAP),
}
SHARD = 16
BATCH = 8
SLICE = 0.5  # seconds for which a contender reads in a pass
Records = dict[str, np.ndarray]
Read = Callable[[int, Records], None]  # of a record's number, into one row of the batch buffer


def make_records(count: int) -> Records:
    """Distributions and unit descriptors, as random as a teacher's are at worst."""
    draw = torch.Generator().manual_seed(0)
    records = {name: np.empty((count, *field.shape), "float16") for name, field in FIELDS.items()}
    for row in range(count):
        logits = 3 * torch.randn(65, 60, 80, generator=draw)
        descriptors = torch.randn(256, 60, 80, generator=draw)
        records["score_map"][row] = logits.softmax(0).numpy()
        records["descriptor_map"][row] = F.normalize(descriptors, dim=0).numpy()
    return records


class Contender:
    """A way of keeping records."""

    def create(self, path: Path, records: Records) -> None:
        """What is made once for a store, however many records it gets."""

    def write(self, path: Path, records: Records) -> None:
        """Write all records."""
        raise NotImplementedError

    def open(self, path: Path) -> Read:
        """Make ready for reading."""
        raise NotImplementedError


class Memcpy(Contender):
    """The records stay in memory."""

    records: Records | None = None

    def create(self, path: Path, records: Records) -> None:
        if self.records is None:
            self.records = {name: array.copy() for name, array in records.items()}

    def write(self, path: Path, records: Records) -> None:
        for name, array in records.items():
            np.copyto(self.records[name], array)

    def open(self, path: Path) -> Read:
        def read(index: int, row: Records) -> None:
            for name, target in row.items():
                np.copyto(target, self.records[name][index])

        return read


class PlainFile(Contender):
    """One file and nothing but the bytes."""

    def write(self, path: Path, records: Records) -> None:
        with open(path, "wb", buffering=0) as file:
            for index in range(count_of(records)):
                for array in records.values():
                    write_all(file, array[index])

    def open(self, path: Path) -> Read:
        file = open(path, "rb", buffering=0)  # noqa: SIM115  closed with the reader

        def read(index: int, row: Records) -> None:
            file.seek(index * sum(target.nbytes for target in row.values()))
            for target in row.values():
                read_all(file, target)

        return read


class Ours(Contender):
    """RecordStore, shard by shard."""

    def __init__(self, format: str):
        self.format = format

    def create(self, path: Path, records: Records) -> None:
        schema = Schema(
            teacher="superpoint",
            weights="0" * 64,
            settings={},
            image_size=(640, 480),
            fields=FIELDS if records.keys() == FIELDS.keys() else quantize_fields(FIELDS),
            shard_size=SHARD,
            compression="none",
            software="benchmark",
        )
        names = [f"{index:06d}.jpg" for index in range(count_of(records))]
        self.store = RecordStore.create(path, schema, names, self.format)

    def write(self, path: Path, records: Records) -> None:
        for number in self.store.pending_shards():
            rows = self.store.shard(number)
            shard = {name: array[rows.start : rows.stop] for name, array in records.items()}
            self.store.write_shard(number, shard)
        self.store.finish()

    def open(self, path: Path) -> Read:
        store = RecordStore.open(path)

        def read(index: int, row: Records) -> None:
            for name, target in row.items():
                np.copyto(target, store.read(store.names[index], name))

        return read


class Npz(Contender):
    """np.savez, a file an image, float32."""

    def create(self, path: Path, records: Records) -> None:
        path.mkdir()

    def write(self, path: Path, records: Records) -> None:
        for index in range(count_of(records)):
            arrays = {name: array[index] for name, array in records.items()}
            np.savez(path / f"{index:06d}.npz", **arrays)

    def open(self, path: Path) -> Read:
        def read(index: int, row: Records) -> None:
            with np.load(path / f"{index:06d}.npz") as file:
                for name, target in row.items():
                    np.copyto(target, file[name])

        return read


class HlocHDF5(Contender):
    """A group an image, a dataset a field, as hloc writes features."""

    def write(self, path: Path, records: Records) -> None:
        for index in range(count_of(records)):
            with h5py.File(path, "a", libver="latest") as file:
                group = file.create_group(f"{index:06d}.jpg")
                for name, array in records.items():
                    group.create_dataset(name, data=array[index])

    def open(self, path: Path) -> Read:
        file = h5py.File(path, "r", libver="latest")

        def read(index: int, row: Records) -> None:
            group = file[f"{index:06d}.jpg"]
            for name, target in row.items():
                np.copyto(target, group[name].__array__())

        return read


class ZarrDefault(Contender):
    """zarr-python with its own chunks and compression, written a shard's records at a time."""

    def create(self, path: Path, records: Records) -> None:
        group = zarr.create_group(path)
        self.arrays = {
            name: group.create_array(name, shape=array.shape, dtype=array.dtype)
            for name, array in records.items()
        }

    def write(self, path: Path, records: Records) -> None:
        for name, array in records.items():
            for start in range(0, len(array), SHARD):
                self.arrays[name][start : start + SHARD] = array[start : start + SHARD]

    def open(self, path: Path) -> Read:
        arrays = dict(zarr.open_group(path, mode="r").arrays())

        def read(index: int, row: Records) -> None:
            for name, target in row.items():
                np.copyto(target, arrays[name][index])

        return read


def measure_names(count: int, folder: Path) -> dict[str, float]:
    """Seconds of processor time, and megabytes, that a store of so many records takes."""
    names = [f"photographs/{index // 1000:06d}/{index:09d}.jpg" for index in range(count)]
    schema = Schema(
        teacher="toy",
        weights="0" * 64,
        settings={},
        image_size=(640, 480),
        fields={"global_descriptor": Field(shape=(4,), dtype="float16")},
        shard_size=SHARD * 16,
        compression="none",
        software="benchmark",
    )
    photographs, path, seconds = folder / "photographs", folder / "store", {}

    def timed(step: str, work: Callable):
        start = time.process_time()
        result = work()
        seconds[step] = time.process_time() - start
        return result

    for start in range(0, count, 1000):
        parent = photographs / Path(names[start]).parent
        parent.mkdir(parents=True)
        for name in names[start : start + 1000]:
            os.close(os.open(photographs / name, os.O_CREAT))
    for format in ("zarr", "hdf5"):
        store = timed(
            f"{format}: create", lambda f=format: RecordStore.create(path, schema, names, f)
        )
        for number in range(store.num_shards // 2):
            rows = np.zeros((len(store.shard(number)), 4), np.float16)
            write_undurably(store, number, {"global_descriptor": rows})
        timed(f"{format}: open", lambda: RecordStore.open(path))
        timed(
            f"{format}: continue", lambda f=format: RecordStore.create(path, schema, names, f)
        ).pending_shards()
        code = MEMORY_OF_A_READER.format(path=str(path), count=count)
        told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds[f"{format}: a reader's own MB"], seconds[f"{format}: a read, us"] = map(
            float, told.stdout.split()
        )
        remove(path)
    found = timed("list the folder", lambda: list_images(photographs))
    assert found == names
    return seconds


def write_undurably(store: RecordStore, number: int, arrays: Records) -> None:
    """Write a shard without waiting for the disk, which is not what is measured."""
    sync, os.fsync = os.fsync, lambda handle: None
    try:
        store.write_shard(number, arrays)
    finally:
        os.fsync = sync


MEMORY_OF_A_READER = """
import random, re, time
from pathlib import Path
from hfnet_distill.data.stores.store import RecordStore
def own():
    memory = Path("/proc/self/smaps_rollup").read_text()
    kept = re.findall(r"Private_(?:Clean|Dirty): +(\\d+)", memory)
    return sum(map(int, kept)) * 1024 / 1e6
RecordStore
before = own()
store = RecordStore.open({path!r})
rows = [random.randrange({count} // 4) for _ in range(2000)]
start = time.process_time()
for row in rows:
    store.read(store.names[row], "global_descriptor")
print(own() - before, (time.process_time() - start) / len(rows) * 1e6)
"""


def count_of(records: Records) -> int:
    return len(next(iter(records.values())))


def write_all(file, array: np.ndarray) -> None:
    data = memoryview(array.reshape(-1).view(np.uint8))
    while data:
        data = data[file.write(data) :]


def read_all(file, array: np.ndarray) -> None:
    data = memoryview(array.reshape(-1).view(np.uint8))
    while data:
        data = data[file.readinto(data) :]


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def drop_pages(path: Path) -> None:
    """Take a store's pages out of the page cache; nothing may map them any more."""
    gc.collect()
    for file in files_of(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_records(read: Read, buffer: Records, order: Iterable[int]) -> float:
    """Records per second, read in this order until it ends or the slice of time does."""
    start = time.perf_counter()
    for position, index in enumerate(order):
        row = position % BATCH
        read(int(index), {name: array[row] for name, array in buffer.items()})
        seconds = time.perf_counter() - start
        if seconds > SLICE:
            break
    return (position + 1) / seconds


def read_sequentially(path: Path, buffer: mmap.mmap) -> float:
    """Bytes per second of one file from its first byte to its last, as dd reads it."""
    start = time.perf_counter()
    total = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total / (time.perf_counter() - start)


@click.command()
@click.option("--records", "count", default=96, show_default=True, help="3.1 MB each.")
@click.option("--passes", default=15, show_default=True, help="Of reading.")
@click.option("--folder", type=click.Path(path_type=Path), help="On the disk to measure.")
@click.option("--names", type=int, help="Measure what so many names cost, and nothing else.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
def main(
    count: int, passes: int, folder: Path | None, names: int | None, output: Path | None
) -> None:
    """Measure; takes 2.5 GB of disk and some minutes."""
    if names is not None:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            found = measure_names(names, Path(temporary))
        for step, number in found.items():
            click.echo(f"{step:28}{number:10.3f}")
        if output is not None:
            output.write_text(json.dumps(found, indent=2))
        return
    torch.set_num_threads(1)
    floats = make_records(count)
    tensors = {name: torch.from_numpy(array) for name, array in floats.items()}
    eight = {n: t.numpy() for n, t in quantize(quantize_fields(FIELDS), tensors).items()}
    singles = {name: array.astype(np.float32) for name, array in floats.items()}
    contenders = {
        "memcpy": (Memcpy(), floats),
        "plain_file": (PlainFile(), floats),
        "zarr": (Ours("zarr"), floats),
        "hdf5": (Ours("hdf5"), floats),
        "zarr_int8": (Ours("zarr"), eight),
        "hdf5_int8": (Ours("hdf5"), eight),
        "npz": (Npz(), singles),
        "hloc_hdf5": (HlocHDF5(), floats),
        "zarr_default": (ZarrDefault(), floats),
    }
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        paths = {name: Path(temporary) / name for name in contenders}
        written = measure_writes(contenders, paths, passes=5)
        sizes = {
            name: sum(file.stat().st_size for file in files_of(path)) / count
            for name, path in paths.items()
            if path.exists()
        }
        warm = measure_warm_reads(contenders, paths, count, passes)
        cold = measure_cold_reads(contenders, paths, count, passes=3)
    sizes["memcpy"] = sizes["plain_file"]
    report(written, warm, cold, sizes)
    if output is not None:
        results = {
            "records_per_s": {"read": warm, "write": written, "cold_read": cold},
            "bytes_per_record": {name: round(size) for name, size in sizes.items()},
        }
        output.write_text(json.dumps(results, indent=2))


def measure_writes(contenders, paths, passes: int) -> dict[str, float]:
    speeds = {name: [] for name in contenders}
    for _ in range(passes):
        for name, (contender, records) in contenders.items():
            remove(paths[name])
            contender.create(paths[name], records)
            os.sync()
            start = time.perf_counter()
            contender.write(paths[name], records)
            speeds[name].append(count_of(records) / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def measure_warm_reads(contenders, paths, count: int, passes: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    readers = {name: contenders[name][0].open(paths[name]) for name in contenders}
    buffers = {name: make_buffer(records) for name, (_, records) in contenders.items()}
    for name, read in readers.items():
        read_records(read, buffers[name], range(count))
    speeds = {name: [] for name in contenders}
    for _ in range(passes):
        order = rng.permutation(count)
        for name, read in readers.items():
            speeds[name].append(read_records(read, buffers[name], cycle(order)))
    return {name: statistics.median(values) for name, values in speeds.items()}


def measure_cold_reads(contenders, paths, count: int, passes: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    speeds = {name: [] for name in ["plain_sequential", *paths] if name != "memcpy"}
    block = mmap.mmap(-1, 1 << 20)
    for _ in range(passes):
        drop_pages(paths["plain_file"])
        size = paths["plain_file"].stat().st_size / count
        speed = read_sequentially(paths["plain_file"], block)
        speeds["plain_sequential"].append(speed / size)
        order = rng.permutation(count)
        for name, (contender, records) in contenders.items():
            if name != "memcpy":
                drop_pages(paths[name])
                read = contender.open(paths[name])
                speeds[name].append(read_records(read, make_buffer(records), order))
                del read
    return {name: statistics.median(values) for name, values in speeds.items()}


def make_buffer(records: Records) -> Records:
    return {name: np.zeros((BATCH, *a.shape[1:]), a.dtype) for name, a in records.items()}


def report(written, warm, cold, sizes) -> None:
    """A table, and the ratios that matter."""
    click.echo(f"{'records/s':16}{'read':>9}{'write':>9}{'cold read':>11}{'MB/record':>11}")
    for name in [*warm, "plain_sequential"]:
        numbers = [table.get(name) for table in (warm, written, cold)]
        cells = ["–" if number is None else f"{number:.0f}" for number in numbers]
        size = f"{sizes[name] / 1e6:.2f}" if name in sizes else "–"
        click.echo(f"{name:16}{cells[0]:>9}{cells[1]:>9}{cells[2]:>11}{size:>11}")
    for name in ("zarr", "hdf5"):
        click.echo(
            f"{name}: reads {warm[name] / warm['memcpy']:.0%} of memcpy, "
            f"{warm[name] / warm['npz']:.1f} times npz, "
            f"{warm[name] / warm['zarr_default']:.1f} times zarr's defaults; "
            f"writes {written[name] / written['plain_file']:.0%} of a plain file; "
            f"cold reads {cold[name] / cold['plain_file']:.0%} of a plain file's"
        )


if __name__ == "__main__":
    main()
