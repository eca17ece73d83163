"""How a store lies on disk: as a Zarr v3 group or as one HDF5 file.

Both layouts offer the same methods; ``data.store.RecordStore`` is written against them.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import google_crc32c
import h5py
import hdf5plugin
import numpy as np
import zarr

from ...errors import StoreError
from ...files import beside, open_atomically, reserve, write_atomically
from .schema import Schema

__all__ = ["HDF5Layout", "ZarrLayout", "checksums"]

ATTRIBUTE = "hfnet_distill"
PARAMETERS = "parameters"
PART = 2**18  # bytes that are written, then summed while the processor's cache still has them


def _sweep(folder: Path, pattern: str) -> None:
    """Remove what killed writers left beside the files they were to become."""
    for path in folder.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def checksums(fields: Sequence[np.ndarray]) -> np.ndarray:
    """Per field the arrays of some records -> (records,) uint32: CRC-32C over a record's fields."""
    sums = np.zeros(len(fields[0]), np.uint32)
    for records in fields:
        for _ in _parts(records, sums):
            pass
    return sums


def _parts(records: np.ndarray, sums: np.ndarray, offset: int = 0) -> Iterator[memoryview]:
    """The bytes of records in parts; what was used of a record is then added to its sum.

    Summed before it is written, every byte would come from memory twice. Parts end at multiples of
    ``PART`` in a file that has the first byte at ``offset``, which is how its pages are cached.
    """
    data = records.reshape(-1).view(np.uint8)
    size = len(data) // len(records)
    start = 0
    while start < len(data):
        stop = min(start + PART - (offset + start) % PART, len(data))
        yield memoryview(data[start:stop])
        while start < stop:
            row = start // size
            end = min((row + 1) * size, stop)
            sums[row] = google_crc32c.extend(int(sums[row]), data[start:end])
            start = end


class ZarrLayout:
    """A Zarr v3 group; a shard of an array is one sharded object.

    An uncompressed shard is written as the specification lays it out: the records one after the
    other, then an index of (offset, bytes) per record and the index's CRC-32C. All shards of an
    array lie in its folder, such as ``score_map/c.7.0.0.0``; stores written before had a folder for
    each shard, ``score_map/c/7/0/0/0``, and are still read and continued.
    """

    format = "zarr"

    def __init__(self, path: Path):
        self.path = path

    def create(
        self, schema: Schema, names: list[str], parameters: Mapping[str, np.ndarray]
    ) -> None:
        unfinished = beside(self.path)
        try:
            group = zarr.create_group(unfinished, attributes={ATTRIBUTE: schema.model_dump()})
            array = group.create_array("name", shape=(len(names),), dtype=str, compressors=None)
            array[:] = np.array(names, dtype=object)
            size = schema.shard_size
            zstd = zarr.codecs.ZstdCodec(level=3)
            for name, field in schema.stored_fields.items():
                group.create_array(
                    name,
                    shape=(len(names), *field.shape),
                    dtype=field.dtype,
                    chunks=(1, *field.shape),
                    shards=(size, *field.shape),
                    compressors=zstd if schema.compression == "zstd" else None,
                    chunk_key_encoding={"name": "default", "separator": "."},
                    fill_value=0,
                    attributes=field.attributes,
                )
            for name, count in (("done", schema.num_shards(len(names))), ("complete", 1)):
                group.create_array(
                    name, shape=(count,), dtype="uint8", chunks=(1,), compressors=None, fill_value=0
                )
            if parameters:
                kept = group.create_group(PARAMETERS)
                for name, array in parameters.items():
                    kept.create_array(name, data=array, chunks=array.shape, compressors=None)
            os.rename(unfinished, self.path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def sweep(self) -> None:
        _sweep(self.path.parent, f"{self.path.name}.*.partial")
        _sweep(self.path, "**/*.partial")

    def read_header(self) -> tuple[dict, list[str]]:
        group = zarr.open_group(self.path, mode="r")
        self._separator = group["checksum"].metadata.chunk_key_encoding.separator
        return group.attrs[ATTRIBUTE], group["name"][:].tolist()

    def read_parameters(self) -> dict[str, np.ndarray]:
        group = zarr.open_group(self.path, mode="r")
        kept = dict(group[PARAMETERS].arrays()) if PARAMETERS in group else {}
        return {name: kept[name][...] for name in sorted(kept)}

    def bind(self, schema: Schema) -> None:
        self.schema = schema
        self.fields = schema.stored_fields
        self._map = lru_cache(maxsize=4096)(self._open_map)
        self._group = lru_cache(maxsize=2)(partial(zarr.open_group, self.path))

    def _shard_path(self, field: str, number: int) -> Path:
        parts = ["c", str(number), *"0" * len(self.fields[field].shape)]
        return self.path / field / self._separator.join(parts)

    def write_arrays(self, number: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        size = self.schema.shard_size
        if self.schema.compression == "zstd":
            for field, records in arrays.items():
                # Zarr would read what it writes over, damaged or not.
                self._shard_path(field, number).unlink(missing_ok=True)
                first = number * size
                self._group(mode="r+")[field][first : first + len(records)] = records
            return checksums([*arrays.values()])
        sums = np.zeros(len(next(iter(arrays.values()))), np.uint32)
        for field, records in arrays.items():
            index = np.full((size, 2), 2**64 - 1, "<u8")  # the mark of an absent record
            index[: len(records), 0] = np.arange(len(records)) * records[0].nbytes
            index[: len(records), 1] = records[0].nbytes
            path = self._shard_path(field, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            crc = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
            with open_atomically(path) as file:
                reserve(file, 0, records.nbytes)
                for part in _parts(records, sums):
                    file.write(part)
                file.write(index.tobytes() + crc)
        return sums

    def mark_done(self, number: int) -> None:
        self._mark("done", number)

    def _mark(self, array: str, number: int) -> None:
        path = self.path / array / "c" / str(number)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, b"\x01")

    def done(self, count: int) -> np.ndarray:
        done = np.zeros(count, np.uint8)
        folder = self.path / "done" / "c"
        if folder.is_dir():
            done[[int(name) for name in os.listdir(folder) if name.isdecimal()]] = 1
        return done

    def finish(self) -> None:
        self._mark("complete", 0)

    def is_complete(self) -> bool:
        return (self.path / "complete" / "c" / "0").exists()

    def reopen(self, numbers: Collection[int]) -> None:
        self.path.joinpath("complete", "c", "0").unlink(missing_ok=True)
        for number in numbers:
            self.path.joinpath("done", "c", str(number)).unlink(missing_ok=True)

    def read(self, field: str, index: int) -> np.ndarray:
        if self.schema.compression == "zstd":
            return np.asarray(self._group(mode="r")[field][index])
        number, row = divmod(index, self.schema.shard_size)
        return self._map(field, number)[row]

    def checksum(self, index: int) -> int:
        return int(self.read("checksum", index))

    def _open_map(self, field: str, number: int) -> list[np.ndarray]:
        """Views of a shard's records, each at the offset that the shard's own index gives."""
        described = self.fields[field]
        path = self._shard_path(field, number)
        data = np.memmap(path, np.uint8, mode="r")
        end = 16 * self.schema.shard_size
        index, crc = data[-end - 4 : -4], data[-4:]
        if len(index) != end or google_crc32c.value(index.tobytes()) != int(crc.view("<u4")[0]):
            raise StoreError(
                f"{path}: the shard is damaged (its index does not match its checksum); "
                "export the store again with --overwrite"
            )
        index = index.view("<u8").reshape(-1, 2)
        return [
            data[start : start + size].view(described.dtype).reshape(described.shape)
            for start, size in index[index[:, 1] != 2**64 - 1]
        ]

    def remove(self) -> None:
        shutil.rmtree(self.path)


class HDF5Layout:
    """One HDF5 file, laid out whole when it is created: its metadata never changes afterwards.

    Every uncompressed array is one contiguous run of bytes, allocated but not filled; records
    and marks are written at their offsets past the HDF5 library, so that a killed export cannot
    damage the file and several processes can write to it. Compressed shards wait in a folder
    ``NAME.parts`` beside the file and are gathered into it at the end.
    """

    format = "hdf5"

    def __init__(self, path: Path):
        self.path = path
        self.parts = path.with_name(f"{path.name}.parts")

    def create(
        self, schema: Schema, names: list[str], parameters: Mapping[str, np.ndarray]
    ) -> None:
        self._write_file(schema, names, parameters, contents=None)

    def _write_file(self, schema: Schema, names: list[str], parameters, contents) -> None:
        """The whole file, beside its place, then renamed; ``contents`` fills a compressed one."""
        unfinished = beside(self.path)
        try:
            # No creation times: the same export gives the same bytes.
            with h5py.File(unfinished, "w", libver="v110", track_order=False) as file:
                file.attrs[ATTRIBUTE] = schema.model_dump_json()
                file.create_dataset("name", data=names, dtype=h5py.string_dtype())
                for name, field in schema.stored_fields.items():
                    shape = (len(names), *field.shape)
                    if schema.compression == "zstd" and name in schema.fields:
                        dataset = _compressed(file, name, shape, field.dtype)
                    else:
                        dataset = _contiguous(file, name, shape, field.dtype)
                    dataset.attrs.update(field.attributes)
                count = schema.num_shards(len(names))
                for name, length in (("done", count), ("complete", 1)):
                    _contiguous(file, name, (length,), "uint8", fill=True)
                for name, array in parameters.items():
                    path = f"{PARAMETERS}/{name}"
                    file.create_dataset(path, data=array, track_times=False)
                if contents is not None:
                    contents(file)
            os.replace(unfinished, self.path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def sweep(self) -> None:
        _sweep(self.path.parent, f"{self.path.name}.*.partial")
        _sweep(self.parts, "*.partial")

    def read_header(self) -> tuple[dict, list[str]]:
        with h5py.File(self.path, "r") as file:
            return json.loads(file.attrs[ATTRIBUTE]), file["name"].asstr()[:].tolist()

    def read_parameters(self) -> dict[str, np.ndarray]:
        with h5py.File(self.path, "r") as file:
            return {name: array[...] for name, array in file.get(PARAMETERS, {}).items()}

    def bind(self, schema: Schema) -> None:
        self.schema = schema
        self.fields = schema.stored_fields
        with h5py.File(self.path, "r") as file:
            self.offsets = {
                name: file[name].id.get_offset()
                for name in (*self.fields, "done", "complete")
                if file[name].chunks is None
            }
            self.records = len(file["name"])
        self._maps: dict[str, np.ndarray] = {}
        self._file = None

    def write_arrays(self, number: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        if not arrays.keys() <= self.offsets.keys():
            self._write_part(number, arrays)
            return checksums([*arrays.values()])
        first = number * self.schema.shard_size
        sums = np.zeros(len(next(iter(arrays.values()))), np.uint32)
        with open(self.path, "r+b", buffering=0) as file:
            for name, records in arrays.items():
                offset = self.offsets[name] + first * records[0].nbytes
                reserve(file, offset, records.nbytes)
                for part in _parts(records, sums, offset):
                    _write_at(file, offset, part)
                    offset += len(part)
        return sums

    def mark_done(self, number: int) -> None:
        self._set_mark("done", number, 1)

    def _set_mark(self, array: str, number: int, value: int) -> None:
        with open(self.path, "r+b", buffering=0) as file:
            _write_at(file, self.offsets[array] + number, memoryview(bytes([value])))

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:08d}.h5"

    def _write_part(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.parts.mkdir(exist_ok=True)
        path = self._part(number)
        unfinished = beside(path)
        with h5py.File(unfinished, "w") as file:
            for name, array in arrays.items():
                _compressed(file, name, array.shape, array.dtype)[...] = array
        os.replace(unfinished, path)

    def _scatter(self, without: Collection[int]) -> None:
        """``_gather`` undone: all shards but these in parts, the file as before it was complete."""
        self.parts.mkdir(exist_ok=True)
        size = self.schema.shard_size
        with h5py.File(self.path, "r") as old:
            raw = {name: old[name][...] for name in self.offsets}
            raw["complete"][0] = 0
            raw["done"][list(without)] = 0
            for number in np.flatnonzero(raw["done"]).tolist():
                first = number * size
                with h5py.File(self._part(number), "w") as part:
                    for name in self.schema.fields:
                        count = min(size, self.records - first)
                        shape, dtype = (count, *old[name].shape[1:]), old[name].dtype
                        _copy_chunks(old[name], first, _compressed(part, name, shape, dtype), 0)

        def fill(file: h5py.File) -> None:
            for name, array in raw.items():
                file[name][...] = array

        names = self.read_header()[1]
        self._write_file(self.schema, names, self.read_parameters(), contents=fill)
        self.bind(self.schema)

    def done(self, count: int) -> np.ndarray:
        return np.fromfile(self.path, np.uint8, count, offset=self.offsets["done"])

    def finish(self) -> None:
        if self.schema.compression == "zstd":
            names = self.read_header()[1]
            self._write_file(self.schema, names, self.read_parameters(), contents=self._gather)
            shutil.rmtree(self.parts, ignore_errors=True)
        else:
            self._set_mark("complete", 0, 1)

    def _gather(self, file: h5py.File) -> None:
        """Copy compressed chunks as they are, and the arrays that were never compressed."""
        with h5py.File(self.path, "r") as old:
            for name in self.offsets:
                file[name][...] = old[name][...]
        file["complete"][0] = 1
        for path in sorted(self.parts.glob("*.h5")):
            first = int(path.stem) * self.schema.shard_size
            with h5py.File(path, "r") as part:
                for name, dataset in part.items():
                    _copy_chunks(dataset, 0, file[name], first)

    def reopen(self, numbers: Collection[int]) -> None:
        if self.schema.compression == "zstd" and self.is_complete():
            self._scatter(numbers)
            return
        self._set_mark("complete", 0, 0)
        for number in numbers:
            self._set_mark("done", number, 0)

    def is_complete(self) -> bool:
        return bool(np.fromfile(self.path, np.uint8, 1, offset=self.offsets["complete"])[0])

    def read(self, field: str, index: int) -> np.ndarray:
        if field in self.offsets:
            if field not in self._maps:
                described = self.fields[field]
                shape = (self.records, *described.shape)
                offset = self.offsets[field]
                self._maps[field] = np.memmap(self.path, described.dtype, "r", offset, shape)
            return self._maps[field][index].view(np.ndarray)
        if not self.is_complete():
            number, row = divmod(index, self.schema.shard_size)
            with h5py.File(self._part(number), "r") as part:
                return part[field][row]
        if self._file is None:
            self._file = h5py.File(self.path, "r")
        return self._file[field][index]

    def checksum(self, index: int) -> int:
        return int(self.read("checksum", index))

    def remove(self) -> None:
        self.path.unlink()
        shutil.rmtree(self.parts, ignore_errors=True)


def _compressed(file: h5py.File, name: str, shape, dtype) -> h5py.Dataset:
    """A dataset of one zstd chunk per record."""
    chunks, zstd = (1, *shape[1:]), hdf5plugin.Zstd(clevel=3)
    return file.create_dataset(name, shape, dtype, chunks=chunks, track_times=False, **zstd)


def _copy_chunks(source: h5py.Dataset, start: int, target: h5py.Dataset, to: int) -> None:
    """Copy records as they are compressed, until one of the datasets ends."""
    zeros = (0,) * (source.ndim - 1)
    for row in range(min(len(source) - start, len(target) - to)):
        mask, chunk = source.id.read_direct_chunk((start + row, *zeros))
        target.id.write_direct_chunk((to + row, *zeros), chunk, mask)


def _contiguous(file: h5py.File, name: str, shape, dtype, fill: bool = False) -> h5py.Dataset:
    """A dataset whose bytes are allocated now, in one run; left unwritten unless ``fill``."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if fill else h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(np.dtype(dtype))
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plist))


def _write_at(file, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written
