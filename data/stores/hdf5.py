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

from ...files import checksum, made_beside, reserve
from .layout import ATTRIBUTE, PARAMETERS, SUMS, Layout, header_sum, parameters_sum, parts_of
from .names import NAME_ARRAYS, Names
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
        super().__init__(path, path.with_name(f"{path.name}.parts"))

    def create(self, schema: Schema, names: Names, parameters: Mapping[str, np.ndarray]) -> None:
        with made_beside(self.path, flush=True) as unfinished, _new_file(unfinished) as file:
            _lay_out(file, schema, names, parameters)

    def read_header(self) -> tuple[dict, Names, np.ndarray | None]:
        with h5py.File(self.path, "r") as file:
            if NAME_ARRAYS[0] in file:
                names = Names(*(self._map(file[name]) for name in NAME_ARRAYS))
            else:  # an older store
                names = Names.of(file["name"].asstr()[:].tolist())
            return json.loads(file.attrs[ATTRIBUTE]), names, file.attrs.get(SUMS)

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
            arrays = [file[name] for name in (*self.fields, "done", "complete")]
            self._maps = {a.name[1:]: self._map(a) for a in arrays if a.chunks is None}
        self._file = None

    def write_arrays(self, number: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        if not arrays.keys() <= self._maps.keys():
            self.folder.mkdir(exist_ok=True)
            part = self._part(number)
            with made_beside(part, flush=True) as unfinished, h5py.File(unfinished, "w") as file:
                for name, array in arrays.items():
                    _compressed(file, name, array.shape, array.dtype)[...] = array
            records = zip(*arrays.values(), strict=True)
            return np.array([checksum(record) for record in records], np.uint32)
        first = number * self.schema.shard_size
        sums = np.zeros(len(next(iter(arrays.values()))), np.uint32)
        with open(self.path, "r+b", buffering=0) as file:
            for name, records in arrays.items():
                offset = self._maps[name].offset + first * records[0].nbytes
                reserve(file, offset, records.nbytes)
                for part in parts_of(records, sums, offset):
                    _write_at(file, offset, part)
                    offset += len(part)
            os.fsync(file.fileno())  # before the mark, which must not outlive its shard
        return sums

    def mark(self, array: str, number: int, value: int) -> None:
        with open(self.path, "r+b", buffering=0) as file:
            _write_at(file, self._maps[array].offset + number, memoryview(bytes([value])))
            os.fsync(file.fileno())

    def marks(self, array: str, count: int) -> np.ndarray:
        return np.fromfile(self.path, np.uint8, count, offset=self._maps[array].offset)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:08d}.h5"

    def finish(self) -> None:
        if self.schema.compression == "zstd":
            names, parameters = self.read_header()[1], self.read_parameters()
            with (
                h5py.File(self.path, "r") as old,
                made_beside(self.path, flush=True) as unfinished,
                _new_file(unfinished) as file,
            ):
                _lay_out(file, self.schema, names, parameters)
                self._gather(old, file)
            self.bind(self.schema)
        super().finish()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _gather(self, old: h5py.File, file: h5py.File) -> None:
        """Copy what was never compressed, and chunks as they are, from parts or the old file."""
        for name in self._maps:
            file[name][...] = old[name][...]
        size = self.schema.shard_size
        for first in range(0, len(old["name"]), size):
            path = self._part(first // size)
            with h5py.File(path, "r") if path.exists() else nullcontext(old) as source:
                for name in sorted(self.schema.fields):
                    array, target = source[name].id, file[name].id
                    rest = (0,) * (file[name].ndim - 1)
                    for row in range(first, min(first + size, len(file[name]))):
                        place = (row if source is old else row - first, *rest)
                        mask, chunk = array.read_direct_chunk(place)
                        target.write_direct_chunk((row, *rest), chunk, mask)

    def read(self, field: str, index: int) -> np.ndarray:
        if field in self._maps:
            return self._maps[field][index].view(np.ndarray)
        number, row = divmod(index, self.schema.shard_size)
        if (path := self._part(number)).exists():
            with h5py.File(path, "r") as part:
                return part[field][row]
        if self._file is None:
            self._file = h5py.File(self.path, "r")
        return self._file[field][index]


def _new_file(path: Path) -> h5py.File:
    # No creation times: the same export gives the same bytes.
    return h5py.File(path, "w", libver="v110", track_order=False)


def _lay_out(file: h5py.File, schema: Schema, names: Names, parameters) -> None:
    """Everything that a file is ever going to have, but for the records and the marks."""
    # Of fixed length: HDF5 keeps others where no checksum is, and damage there makes it hang.
    file.attrs[ATTRIBUTE] = np.bytes_(schema.model_dump_json().encode())
    header = schema.model_dump(mode="json")
    file.attrs[SUMS] = [header_sum(header, names), parameters_sum(parameters)]
    file.create_dataset("name", data=list(names), dtype=h5py.string_dtype())
    for name, array in names.arrays.items():
        _contiguous(file, name, array.shape, array.dtype)[...] = array
    for name, field in schema.stored_fields.items():
        shape = (len(names), *field.shape)
        compressed = schema.compression == "zstd" and name in schema.fields
        dataset = (_compressed if compressed else _contiguous)(file, name, shape, field.dtype)
        dataset.attrs.update(field.attributes)
    for name, length in (("done", schema.num_shards(len(names))), ("complete", 1)):
        _contiguous(file, name, (length,), "uint8", fill=True)
    for name, array in parameters.items():
        file.create_dataset(f"{PARAMETERS}/{name}", data=array, track_times=False)


def _compressed(file: h5py.File, name: str, shape, dtype) -> h5py.Dataset:
    """A dataset of one zstd chunk per record."""
    chunks, zstd = (1, *shape[1:]), hdf5plugin.Zstd(clevel=3)
    return file.create_dataset(name, shape, dtype, chunks=chunks, track_times=False, **zstd)


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
