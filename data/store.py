"""RecordStore: many teacher records on disk, in Zarr v3 or HDF5 under one schema.

A store holds one array per field, of shape (records, *field shape), and beside them

* ``name`` (records,): the image each record belongs to, the only join key;
* ``checksum`` (records,) uint32: CRC-32C of the record's raw bytes, fields in schema order;
* ``done`` (shards,) uint8: which shards are written; ``complete`` (1,) uint8: all of them are;
* the attribute ``hfnet_distill``: the schema as JSON.

A shard is ``shard_size`` consecutive records: the unit of work, of commit and of resume. Its
arrays are written first and its done mark last; writing it again gives the same bytes, and no
two shards share a file (Zarr) or a byte range (HDF5). Uncompressed stores are read through a
memory map; zstd-compressed ones through zarr and h5py.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import google_crc32c
import h5py
import hdf5plugin
import numpy as np
import zarr
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from data.geometry import MapGeometry
from data.records import TeacherRecord

__all__ = ["Field", "RecordStore", "Schema", "StoreError"]

FORMAT_VERSION = 1
ATTRIBUTE = "hfnet_distill"


class StoreError(ValueError):
    """A store that is missing, damaged, incomplete, in use, or made with other settings."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Field(_Frozen):
    """One array of every record: its shape and dtype, and a map's place in the image."""

    shape: tuple[int, ...]
    dtype: Literal["float16", "float32", "int32"]
    geometry: MapGeometry | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of one record's array."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Schema(_Frozen):
    """What a store holds and what its values depend on; declared before the first write.

    Attributes:
        teacher: the teacher's name.
        weights: SHA-256 of the teacher's weights.
        settings: whatever else its values depend on, such as NMS radius or a threshold.
        image_size: (width, height) of every image the teacher saw.
        fields: name -> Field, in the order in which a record's bytes are counted.
        shard_size: records in a shard; the last one may hold fewer.
        compression: "none" (read through a memory map) or "zstd".
        software: the version that wrote the store.
        version: of the store's layout.
    """

    teacher: str
    weights: str
    settings: dict[str, int | float | str]
    image_size: tuple[int, int]
    fields: dict[str, Field]
    shard_size: int
    compression: Literal["none", "zstd"]
    software: str
    version: int = FORMAT_VERSION

    @property
    def record_nbytes(self) -> int:
        """Bytes of one record before compression."""
        return sum(field.nbytes for field in self.fields.values())

    def difference(self, other: "Schema") -> str | None:
        """The first setting in which another schema differs, in words, or None."""
        return _difference(self.model_dump(), other.model_dump())


def _difference(ours: Mapping, theirs: Mapping, prefix: str = "") -> str | None:
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        mine, its = ours.get(key, "nothing"), theirs.get(key, "nothing")
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            if found := _difference(mine, its, f"{prefix}{key}."):
                return found
        elif mine != its:
            return f"{prefix}{key} is {its} there and {mine} here"
    return None


class RecordStore:
    """A store on disk. ``open`` reads one, ``create`` starts or continues one.

    Attributes:
        path: the folder (Zarr) or file (HDF5).
        schema: what it holds.
        names: the images, in record order.
    """

    def __init__(self, path: Path, layout: "_Zarr | _HDF5", schema: Schema, names: list[str]):
        self.path, self.schema, self.names = path, schema, names
        self._layout = layout
        self._index = {name: index for index, name in enumerate(names)}

    @classmethod
    def open(cls, path: str | Path) -> "RecordStore":
        """Open a store for reading, whole or not yet.

        Raises:
            StoreError: nothing there, not a store, or of another layout version.
        """
        path = Path(path)
        if not path.exists():
            raise StoreError(f"{path}: no such store; make it with export-teacher")
        layout = _Zarr(path) if path.is_dir() else _HDF5(path)
        try:
            header, names = layout.read_header()
        except (OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"{path}: not a store of export-teacher, or a damaged one ({error}); "
                "export it again with --overwrite"
            ) from error
        found = header.get("version")
        if found != FORMAT_VERSION:
            raise StoreError(
                f"{path}: store layout version {found}, this software reads version "
                f"{FORMAT_VERSION}; export it again with --overwrite"
            )
        try:
            schema = Schema.model_validate(header)
        except ValidationError as error:
            raise StoreError(f"{path}: damaged schema: {error.errors()[0]['msg']}") from error
        layout.bind(schema)
        return cls(path, layout, schema, names)

    @classmethod
    def create(
        cls, path: str | Path, schema: Schema, names: list[str], format: Literal["zarr", "hdf5"]
    ) -> "RecordStore":
        """Start a store, or continue one that was started with the same settings.

        Raises:
            StoreError: there is something else at ``path``, or a store with other settings or
                images, named in the message.
        """
        path = Path(path)
        if path.exists():
            store = cls.open(path)
            advice = "choose another --store, or make it anew with --overwrite"
            if store.format != format:
                raise StoreError(f"{path}: is {store.format}, {format} was asked for; {advice}")
            if found := schema.difference(store.schema):
                raise StoreError(f"{path}: made with other settings: {found}; {advice}")
            if store.names != list(names):
                changed = sorted(set(store.names) ^ set(names))
                raise StoreError(
                    f"{path}: made from other photographs, {len(store.names)} there and "
                    f"{len(names)} here, first difference {[*changed, 'the order'][0]}; {advice}"
                )
            return store
        layout = {"zarr": _Zarr, "hdf5": _HDF5}[format](path)
        path.parent.mkdir(parents=True, exist_ok=True)
        layout.create(schema, list(names))
        return cls.open(path)

    def __reduce__(self):
        # A worker process maps the file itself instead of receiving a copy of it.
        return RecordStore.open, (self.path,)

    @property
    def format(self) -> str:
        """zarr or hdf5."""
        return self._layout.format

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    @property
    def num_shards(self) -> int:
        """How many shards the store has."""
        return _num_shards(self.schema, len(self))

    def shard(self, number: int) -> range:
        """The record numbers of a shard."""
        size = self.schema.shard_size
        return range(number * size, min((number + 1) * size, len(self)))

    def pending_shards(self) -> list[int]:
        """The shards not yet done, in order."""
        return np.flatnonzero(self._layout.done(self.num_shards) == 0).tolist()

    @property
    def complete(self) -> bool:
        """Whether every record is written."""
        return self._layout.is_complete()

    def require_complete(self) -> "RecordStore":
        """This store, if it is complete.

        Raises:
            StoreError: it is not; says how many shards are missing.
        """
        if not self.complete:
            missing = len(self.pending_shards())
            raise StoreError(
                f"{self.path}: {missing} of {self.num_shards} shards are not written yet; run the "
                "same export-teacher command again to finish it"
            )
        return self

    def write_shard(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard and mark it done.

        Args:
            arrays: per field (records of the shard, *field shape), of the field's dtype.

        Raises:
            StoreError: an array that the schema does not describe.
            OSError: the disk; what was done before stays valid.
        """
        count = len(self.shard(number))
        prepared = {}
        for name, field in self.schema.fields.items():
            array = np.ascontiguousarray(arrays[name])
            if array.shape != (count, *field.shape) or array.dtype != field.dtype:
                raise StoreError(
                    f"{name}: expected {field.dtype} of shape {(count, *field.shape)}, "
                    f"found {array.dtype} of shape {array.shape}"
                )
            prepared[name] = array
        prepared["checksum"] = np.zeros(count, np.uint32)
        for i in range(count):
            prepared["checksum"][i] = _checksum(prepared[name][i] for name in self.schema.fields)
        self._layout.write_shard(number, prepared)

    def finish(self) -> None:
        """Mark the store complete once all its shards are done."""
        if self.complete:
            return
        if self.pending_shards():
            raise StoreError(f"{self.path}: shards {self.pending_shards()} are not written yet")
        self._layout.finish(len(self))

    def read(self, name: str, field: str) -> np.ndarray:
        """One field of one image: a read-only view of the file when the store is uncompressed.

        Raises:
            KeyError: the store has no such image or no such field.
        """
        if name not in self._index:
            raise KeyError(f"{self.path}: holds no record of image {name}")
        if field not in self.schema.fields:
            raise KeyError(f"{self.path}: has no field {field}, only {[*self.schema.fields]}")
        return self._layout.read(field, self._index[name])

    def record(self, name: str) -> TeacherRecord:
        """All fields of one image; sparse fields without their padding."""
        arrays = {field: self.read(name, field) for field in self.schema.fields}
        if "count" in arrays:
            count = int(arrays.pop("count"))
            for field in ("keypoints", "scores", "descriptors"):
                if field in arrays:
                    arrays[field] = arrays[field][:count]
        return TeacherRecord(name, self.schema.image_size, **arrays)

    def corrupt_records(self, number: int) -> list[str]:
        """The images of a shard whose bytes no longer match their checksum."""
        bad = []
        for index in self.shard(number):
            fields = (self._layout.read(field, index) for field in self.schema.fields)
            if _checksum(fields) != self._layout.checksum(index):
                bad.append(self.names[index])
        return bad

    @staticmethod
    @contextlib.contextmanager
    def lock(path: str | Path) -> Iterator[None]:
        """Hold a store for writing; the lock dies with the process that holds it.

        Raises:
            StoreError: another process holds it.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"{path}: another export is writing this store; wait for it or stop it"
            ) from None
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    @staticmethod
    def remove(path: str | Path) -> None:
        """Delete a store.

        Raises:
            StoreError: what is at ``path`` is no store; nothing is deleted.
        """
        path = Path(path)
        if not path.exists():
            return
        layout = _Zarr(path) if path.is_dir() else _HDF5(path)
        try:
            layout.read_header()
        except (OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"{path}: not a store, so it is not overwritten; remove it yourself or choose "
                "another --store"
            ) from error
        layout.remove()


def _num_shards(schema: Schema, records: int) -> int:
    return -(-records // schema.shard_size)


def _checksum(arrays) -> int:
    value = 0
    for array in arrays:
        value = google_crc32c.extend(value, np.ascontiguousarray(array).tobytes())
    return value


def _write_atomically(path: Path, *parts) -> None:
    """Write buffers to a file that is whole or absent."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            for part in parts:
                file.write(part)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _raw(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


class _Zarr:
    """A Zarr v3 group; a shard of an array is one sharded object.

    An uncompressed shard is written as the specification lays it out: the records one after the
    other, then an index of (offset, bytes) per record and the index's CRC-32C.
    """

    format = "zarr"

    def __init__(self, path: Path):
        self.path = path

    def create(self, schema: Schema, names: list[str]) -> None:
        partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")
        try:
            group = zarr.create_group(partial, attributes={ATTRIBUTE: schema.model_dump()})
            array = group.create_array("name", shape=(len(names),), dtype=str, compressors=None)
            array[:] = np.array(names, dtype=object)
            size = schema.shard_size
            zstd = zarr.codecs.ZstdCodec(level=3)
            for name, field in _stored_fields(schema).items():
                group.create_array(
                    name,
                    shape=(len(names), *field.shape),
                    dtype=field.dtype,
                    chunks=(1, *field.shape),
                    shards=(size, *field.shape),
                    compressors=zstd if schema.compression == "zstd" else None,
                    fill_value=0,
                    attributes={} if field.geometry is None else vars(field.geometry),
                )
            for name, count in (("done", _num_shards(schema, len(names))), ("complete", 1)):
                group.create_array(
                    name, shape=(count,), dtype="uint8", chunks=(1,), compressors=None, fill_value=0
                )
            os.rename(partial, self.path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def read_header(self) -> tuple[dict, list[str]]:
        group = zarr.open_group(self.path, mode="r")
        return group.attrs[ATTRIBUTE], group["name"][:].tolist()

    def bind(self, schema: Schema) -> None:
        self.schema = schema
        self.fields = _stored_fields(schema)
        self._map = lru_cache(maxsize=4096)(self._open_map)
        self._group = None

    @property
    def group(self) -> zarr.Group:
        if self._group is None:
            self._group = zarr.open_group(self.path, mode="r+")
        return self._group

    def _shard_path(self, field: str, number: int) -> Path:
        return (
            self.path / field / "c" / "/".join([str(number), *"0" * len(self.fields[field].shape)])
        )

    def write_shard(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        size = self.schema.shard_size
        for field, records in arrays.items():
            if self.schema.compression == "zstd":
                self.group[field][number * size : number * size + len(records)] = records
                continue
            index = np.full((size, 2), 2**64 - 1, "<u8")  # the mark of an absent record
            index[: len(records), 0] = np.arange(len(records)) * records[0].nbytes
            index[: len(records), 1] = records[0].nbytes
            path = self._shard_path(field, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            crc = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
            _write_atomically(path, _raw(records), index.tobytes(), crc)
        self._mark("done", number)

    def _mark(self, array: str, number: int) -> None:
        path = self.path / array / "c" / str(number)
        path.parent.mkdir(exist_ok=True)
        _write_atomically(path, b"\x01")

    def done(self, count: int) -> np.ndarray:
        done = np.zeros(count, np.uint8)
        folder = self.path / "done" / "c"
        if folder.is_dir():
            done[[int(name) for name in os.listdir(folder) if name.isdecimal()]] = 1
        return done

    def finish(self, records: int) -> None:
        self._mark("complete", 0)

    def is_complete(self) -> bool:
        return (self.path / "complete" / "c" / "0").exists()

    def read(self, field: str, index: int) -> np.ndarray:
        if self.schema.compression == "zstd":
            return np.asarray(self.group[field][index])
        number, row = divmod(index, self.schema.shard_size)
        return self._map(field, number)[row]

    def checksum(self, index: int) -> int:
        return int(self.read("checksum", index))

    def _open_map(self, field: str, number: int) -> list[np.ndarray]:
        """Views of a shard's records, each at the offset that the shard's own index gives."""
        described = self.fields[field]
        path = self._shard_path(field, number)
        data = np.memmap(path, np.uint8, mode="r")
        tail = 16 * self.schema.shard_size + 4
        index = data[-tail:-4].view("<u8").reshape(-1, 2)
        if len(data) < tail or google_crc32c.value(index.tobytes()) != int(
            data[-4:].view("<u4")[0]
        ):
            raise StoreError(
                f"{path}: the shard is damaged (its index does not match its checksum); "
                "export the store again with --overwrite"
            )
        return [
            data[start : start + size].view(described.dtype).reshape(described.shape)
            for start, size in index[index[:, 1] != 2**64 - 1]
        ]

    def remove(self) -> None:
        shutil.rmtree(self.path)


class _HDF5:
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

    def create(self, schema: Schema, names: list[str]) -> None:
        self._write_file(schema, names, contents=None)

    def _write_file(self, schema: Schema, names: list[str], contents) -> None:
        """The whole file, beside its place, then renamed; ``contents`` fills a compressed one."""
        partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")
        try:
            # No creation times: the same export gives the same bytes.
            with h5py.File(partial, "w", libver="v110", track_order=False) as file:
                file.attrs[ATTRIBUTE] = schema.model_dump_json()
                file.create_dataset("name", data=names, dtype=h5py.string_dtype())
                for name, field in _stored_fields(schema).items():
                    shape = (len(names), *field.shape)
                    if schema.compression == "zstd" and name in schema.fields:
                        zstd = hdf5plugin.Zstd(clevel=3)
                        chunks = (1, *field.shape)
                        dataset = file.create_dataset(
                            name, shape, field.dtype, chunks=chunks, track_times=False, **zstd
                        )
                    else:
                        dataset = _contiguous(file, name, shape, field.dtype)
                    if field.geometry is not None:
                        dataset.attrs.update(vars(field.geometry))
                count = _num_shards(schema, len(names))
                for name, length in (("done", count), ("complete", 1)):
                    _contiguous(file, name, (length,), "uint8", fill=True)
                if contents is not None:
                    contents(file)
            os.replace(partial, self.path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def read_header(self) -> tuple[dict, list[str]]:
        with h5py.File(self.path, "r") as file:
            return json.loads(file.attrs[ATTRIBUTE]), file["name"].asstr()[:].tolist()

    def bind(self, schema: Schema) -> None:
        self.schema = schema
        self.fields = _stored_fields(schema)
        with h5py.File(self.path, "r") as file:
            self.offsets = {
                name: file[name].id.get_offset()
                for name in (*self.fields, "done", "complete")
                if file[name].chunks is None
            }
            self.records = len(file["name"])
        self._maps: dict[str, np.ndarray] = {}
        self._file = None

    def write_shard(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        compressed = {name: array for name, array in arrays.items() if name not in self.offsets}
        if compressed:
            self._write_part(number, compressed)
        first = number * self.schema.shard_size
        with open(self.path, "r+b", buffering=0) as file:
            for name in arrays.keys() & self.offsets.keys():
                offset = self.offsets[name] + first * arrays[name][0].nbytes
                _write_at(file, offset, _raw(arrays[name]))
            _write_at(file, self.offsets["done"] + number, memoryview(b"\x01"))

    def _write_part(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.parts.mkdir(exist_ok=True)
        path = self.parts / f"{number:08d}.h5"
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        with h5py.File(partial, "w") as file:
            for name, array in arrays.items():
                chunks = (1, *array.shape[1:])
                file.create_dataset(name, data=array, chunks=chunks, **hdf5plugin.Zstd(clevel=3))
        os.replace(partial, path)

    def done(self, count: int) -> np.ndarray:
        return np.fromfile(self.path, np.uint8, count, offset=self.offsets["done"])

    def finish(self, records: int) -> None:
        if self.schema.compression == "zstd":
            names = self.read_header()[1]
            self._write_file(self.schema, names, contents=self._gather)
            shutil.rmtree(self.parts, ignore_errors=True)
        else:
            with open(self.path, "r+b", buffering=0) as file:
                _write_at(file, self.offsets["complete"], memoryview(b"\x01"))

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
                    for row in range(len(dataset)):
                        zeros = (0,) * (dataset.ndim - 1)
                        mask, chunk = dataset.id.read_direct_chunk((row, *zeros))
                        file[name].id.write_direct_chunk((first + row, *zeros), chunk, mask)

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
        if self._file is None:
            self._file = h5py.File(self.path, "r")
        return self._file[field][index]

    def checksum(self, index: int) -> int:
        return int(self.read("checksum", index))

    def remove(self) -> None:
        self.path.unlink()
        shutil.rmtree(self.parts, ignore_errors=True)


class _Checksum(Field):
    dtype: Literal["uint32"] = "uint32"


def _stored_fields(schema: Schema) -> dict[str, Field]:
    """The schema's fields and the checksum, which is stored like them."""
    return {**schema.fields, "checksum": _Checksum(shape=())}


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
