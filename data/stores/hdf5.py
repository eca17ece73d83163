"""A store as one HDF5 file."""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from ...files import beside, flush_file, flush_folder, reserve
from .layout import ATTRIBUTE, PARAMETERS, checksums, parts_of, sweep
from .schema import Schema

__all__ = ["HDF5Layout"]


class HDF5Layout:
    """One HDF5 file, laid out completely when it is created: its metadata never changes afterwards.

    Every uncompressed array is one contiguous run of bytes, allocated but not filled; records
    and marks are written at their offsets without the HDF5 library, so that a killed export cannot
    damage the file and several processes can write to it. Compressed shards are kept in a folder
    ``NAME.parts`` beside the file and gathered into it at the end.
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
        """Write the whole file and rename it into place; ``contents`` fills a compressed one."""
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
            flush_file(unfinished)
            os.replace(unfinished, self.path)
            flush_folder(self.path.parent)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def sweep(self) -> None:
        sweep(self.path.parent, f"{self.path.name}.*.partial")
        sweep(self.parts, "*.partial")

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
                for part in parts_of(records, sums, offset):
                    _write_at(file, offset, part)
                    offset += len(part)
            os.fsync(file.fileno())  # before the mark, which must not outlive its shard
        return sums

    def mark_done(self, number: int) -> None:
        self._set_mark("done", number, 1)

    def _set_mark(self, array: str, number: int, value: int) -> None:
        with open(self.path, "r+b", buffering=0) as file:
            _write_at(file, self.offsets[array] + number, memoryview(bytes([value])))
            os.fsync(file.fileno())

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:08d}.h5"

    def _write_part(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.parts.mkdir(exist_ok=True)
        path = self._part(number)
        unfinished = beside(path)
        with h5py.File(unfinished, "w") as file:
            for name, array in arrays.items():
                _compressed(file, name, array.shape, array.dtype)[...] = array
        flush_file(unfinished)
        os.replace(unfinished, path)
        flush_folder(self.parts)

    def _scatter(self, without: Collection[int]) -> None:
        """Undo ``_gather``: all shards but these become parts again; the file is incomplete."""
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
