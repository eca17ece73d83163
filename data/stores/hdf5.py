"""A store as one HDF5 file."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from ...files import remove, reserve
from .layout import (
    ATTRIBUTE,
    PARAMETERS,
    SUMS,
    Layout,
    checksums,
    header_sum,
    made_beside,
    parameters_sum,
    parts_of,
)
from .names import NameArrays, Names
from .schema import Schema

__all__ = ["HDF5Layout"]


class HDF5Layout(Layout):
    """One HDF5 file, laid out completely when it is created: its metadata never changes afterwards.

    Every uncompressed array is one contiguous run of bytes, allocated but not filled; records
    and marks are written at their offsets without the HDF5 library, so that a killed export cannot
    damage the file and several processes can write to it. Compressed shards are kept in a folder
    ``NAME.parts`` beside the file and gathered into it at the end.
    """

    format = "hdf5"

    def __init__(self, path: Path):
        super().__init__(path)
        self.parts = path.with_name(f"{path.name}.parts")

    def create(self, schema: Schema, names: Names, parameters: Mapping[str, np.ndarray]) -> None:
        with made_beside(self.path) as unfinished, self._new_file(unfinished) as file:
            _lay_out(file, schema, names, parameters)

    @staticmethod
    def _new_file(path: Path) -> h5py.File:
        # No creation times: the same export gives the same bytes.
        return h5py.File(path, "w", libver="v110", track_order=False)

    def sweep(self) -> None:
        super().sweep()
        for path in self.parts.glob("*.partial"):
            remove(path)

    def read_header(self) -> tuple[dict, Names, list[int] | None]:
        with h5py.File(self.path, "r") as file:
            if NameArrays._fields[0] in file:
                names = Names(NameArrays(*(self._map(file[name]) for name in NameArrays._fields)))
            else:  # an older store
                names = Names.of(file["name"].asstr()[:].tolist())
            sums = file.attrs[SUMS].tolist() if SUMS in file.attrs else None
            return json.loads(file.attrs[ATTRIBUTE]), names, sums

    def _map(self, dataset: h5py.Dataset) -> np.memmap:
        """A contiguous dataset as it lies in the file."""
        offset = dataset.id.get_offset()
        return np.memmap(self.path, dataset.dtype, "r", offset, dataset.shape)

    def read_parameters(self) -> dict[str, np.ndarray]:
        with h5py.File(self.path, "r") as file:
            return {name: array[...] for name, array in file.get(PARAMETERS, {}).items()}

    def bind(self, schema: Schema) -> None:
        super().bind(schema)
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

    def mark(self, array: str, number: int, value: int) -> None:
        with open(self.path, "r+b", buffering=0) as file:
            _write_at(file, self.offsets[array] + number, memoryview(bytes([value])))
            os.fsync(file.fileno())

    def marks(self, array: str, count: int) -> np.ndarray:
        return np.fromfile(self.path, np.uint8, count, offset=self.offsets[array])

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:08d}.h5"

    def _write_part(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.parts.mkdir(exist_ok=True)
        with made_beside(self._part(number)) as unfinished, h5py.File(unfinished, "w") as file:
            for name, array in arrays.items():
                _compressed(file, name, array.shape, array.dtype)[...] = array

    def finish(self) -> None:
        if self.schema.compression == "zstd":
            names, parameters = self.read_header()[1], self.read_parameters()
            with (
                h5py.File(self.path, "r") as old,
                made_beside(self.path) as unfinished,
                self._new_file(unfinished) as file,
            ):
                _lay_out(file, self.schema, names, parameters)
                self._gather(old, file)
            self.bind(self.schema)
        super().finish()
        shutil.rmtree(self.parts, ignore_errors=True)

    def _gather(self, old: h5py.File, file: h5py.File) -> None:
        """Copy what was never compressed, and chunks as they are, from parts or the old file."""
        for name in self.offsets:
            file[name][...] = old[name][...]
        for first in range(0, self.records, self.schema.shard_size):
            path = self._part(first // self.schema.shard_size)
            with h5py.File(path, "r") if path.exists() else nullcontext(old) as source:
                start = first if source is old else 0
                for name in sorted(self.schema.fields):
                    _copy_chunks(source[name], start, file[name], first, self.schema.shard_size)

    def read(self, field: str, index: int) -> np.ndarray:
        if field in self.offsets:
            if field not in self._maps:
                described = self.fields[field]
                shape = (self.records, *described.shape)
                offset = self.offsets[field]
                self._maps[field] = np.memmap(self.path, described.dtype, "r", offset, shape)
            return self._maps[field][index].view(np.ndarray)
        number, row = divmod(index, self.schema.shard_size)
        if (path := self._part(number)).exists():
            with h5py.File(path, "r") as part:
                return part[field][row]
        if self._file is None:
            self._file = h5py.File(self.path, "r")
        return self._file[field][index]

    def remove(self) -> None:
        super().remove()
        remove(self.parts)


def _lay_out(file: h5py.File, schema: Schema, names: Names, parameters) -> None:
    """Everything that a file is ever going to have, but for the records and the marks."""
    # Of fixed length: HDF5 keeps others where no checksum is, and damage there makes it hang.
    file.attrs[ATTRIBUTE] = np.bytes_(schema.model_dump_json().encode())
    header = schema.model_dump(mode="json")
    file.attrs[SUMS] = [header_sum(header, names), parameters_sum(parameters)]
    file.create_dataset("name", data=list(names), dtype=h5py.string_dtype())
    for name, array in names.arrays._asdict().items():
        _contiguous(file, name, array.shape, array.dtype)[...] = array
    for name, field in schema.stored_fields.items():
        shape = (len(names), *field.shape)
        if schema.compression == "zstd" and name in schema.fields:
            dataset = _compressed(file, name, shape, field.dtype)
        else:
            dataset = _contiguous(file, name, shape, field.dtype)
        dataset.attrs.update(field.attributes)
    for name, length in (("done", schema.num_shards(len(names))), ("complete", 1)):
        _contiguous(file, name, (length,), "uint8", fill=True)
    for name, array in parameters.items():
        file.create_dataset(f"{PARAMETERS}/{name}", data=array, track_times=False)


def _compressed(file: h5py.File, name: str, shape, dtype) -> h5py.Dataset:
    """A dataset of one zstd chunk per record."""
    chunks, zstd = (1, *shape[1:]), hdf5plugin.Zstd(clevel=3)
    return file.create_dataset(name, shape, dtype, chunks=chunks, track_times=False, **zstd)


def _copy_chunks(source, start: int, target, to: int, count: int) -> None:
    """Copy so many records of a dataset as they are compressed, or those up to the target's end."""
    zeros = (0,) * (source.ndim - 1)
    for row in range(min(count, len(target) - to)):
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
