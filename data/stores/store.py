"""RecordStore: many teacher records on disk, in Zarr v3 or HDF5 under one schema.

A store holds one array per field, of shape (records, *field shape), and beside them what
docs/stores.md lists: names, checksums, marks, the schema and the teacher's parameters, which are
written before the store appears and never changed.

A shard is ``shard_size`` consecutive records: the unit of work, of commit and of resume. Its
arrays are written first and its done mark last; writing it again gives the same bytes, and no
two shards share a file (Zarr) or a byte range (HDF5). Uncompressed stores are read through a
memory map; zstd-compressed ones through zarr and h5py.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from ...errors import NotInStoreError, StoreError, damage_as
from ...files import checksum, remove
from .hdf5 import HDF5Layout
from .layout import Layout, header_sum, parameters_sum
from .names import Names
from .quantize import dequantize
from .remote import RemoteZarrLayout, is_url
from .schema import FORMAT_VERSION, Field, Schema
from .zarr import ZarrLayout

__all__ = ["Field", "RecordStore", "Schema"]

RECHECKED = 4
"""Shards, the last of those done, whose bytes are looked at before a store is continued."""


def _damage(path: Path | str):
    what = f"{path}: not a store of export-teacher, or a damaged one"
    return damage_as(StoreError, what, "export it again with --overwrite")


class RecordStore:
    """A store on disk. ``open`` reads one, ``create`` starts or continues one.

    Attributes:
        path: the folder (Zarr) or file (HDF5), or the URL as a string.
        schema: what it holds.
        names: the images, in record order, a sequence of strings.
    """

    def __init__(self, path: Path | str, layout: Layout, schema: Schema, names: Names, sums):
        self.path, self.schema, self.names = path, schema, names
        self._layout, self._sums = layout, sums

    @classmethod
    def open(cls, path: str | Path) -> "RecordStore":
        """Open a store for reading: one on disk, complete or not, or by its URL a complete one.

        Raises:
            StoreError: there is no store, a damaged one, or one of another layout version.
        """
        if is_url(path):
            layout = RemoteZarrLayout(str(path))
        else:
            path = Path(path)
            if not path.exists():
                raise StoreError(f"{path}: no such store; make it with export-teacher")
            layout = _layout_of(path)
        with _damage(path):
            header, names, sums = layout.read_header()
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
        if sums is not None and sums[0] != header_sum(header, names):
            raise StoreError(
                f"{path}: damaged: its schema and names do not match their checksum; export it "
                "again with --overwrite"
            )
        with _damage(path):
            layout.bind(schema)
        return cls(path, layout, schema, names, sums)

    @classmethod
    def create(
        cls,
        path: str | Path,
        schema: Schema,
        names: Sequence[str],
        format: Literal["zarr", "hdf5"],
        parameters: Mapping[str, np.ndarray] | None = None,
    ) -> "RecordStore":
        """Start a store, or continue one that was started with the same settings.

        Call it under ``lock``: it removes what killed writers left behind.

        Args:
            parameters: float arrays by name, for a new store; a continued one keeps its own.

        Raises:
            StoreError: there is something else at ``path``, or a store with other settings or
                images, named in the message.
        """
        path, names = Path(path), Names.of(names)
        layout = {"zarr": ZarrLayout, "hdf5": HDF5Layout}[format](path)
        layout.sweep()
        if path.exists():
            store = cls.open(path)
            advice = "choose another --store, or make it anew with --overwrite"
            if store.format != format:
                raise StoreError(f"{path}: is {store.format}, {format} was asked for; {advice}")
            if found := schema.difference(store.schema):
                raise StoreError(f"{path}: made with other settings: {found}; {advice}")
            if store.names != names:
                changed = sorted(set(store.names) ^ set(names))
                raise StoreError(
                    f"{path}: made from other photographs, {len(store.names)} there and "
                    f"{len(names)} here, first difference {[*changed, 'the order'][0]}; {advice}"
                )
            if not store.complete:
                # A disk that lies about what it has written loses the last of it in a power cut.
                recent = store.done_shards()[-RECHECKED:]
                store.reopen_shards([number for number in recent if store.corrupt_records(number)])
            return store
        path.parent.mkdir(parents=True, exist_ok=True)
        layout.create(schema, names, parameters or {})
        return cls.open(path)

    def __reduce__(self):
        # Another process maps the file itself instead of receiving a copy of it.
        return RecordStore.open, (self.path,)

    @property
    def format(self) -> str:
        """zarr or hdf5."""
        return self._layout.format

    @property
    def is_remote(self) -> bool:
        """Whether it is on object storage; other processes must then open it themselves."""
        return is_url(self.path)

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The arrays that ``create`` was given beside the records, by name; read on each access.

        Raises:
            StoreError: they are damaged.
        """
        with _damage(self.path):
            parameters = self._layout.read_parameters()
        if self._sums is not None and self._sums[1] != parameters_sum(parameters):
            raise StoreError(
                f"{self.path}: damaged: its parameters do not match their checksum; export it "
                "again with --overwrite"
            )
        return parameters

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def num_shards(self) -> int:
        """How many shards the store has."""
        return self.schema.num_shards(len(self))

    def shard(self, number: int) -> range:
        """The record numbers of a shard."""
        size = self.schema.shard_size
        return range(number * size, min((number + 1) * size, len(self)))

    def pending_shards(self) -> list[int]:
        """The shards not yet done, in order."""
        return np.flatnonzero(self._layout.marks("done", self.num_shards) == 0).tolist()

    def done_shards(self) -> list[int]:
        """The shards that are done, in order."""
        return np.flatnonzero(self._layout.marks("done", self.num_shards)).tolist()

    @property
    def complete(self) -> bool:
        """Whether every record is written."""
        return bool(self._layout.marks("complete", 1)[0])

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
        try:
            sums = self._layout.write_arrays(number, prepared)
            self._layout.write_arrays(number, {"checksum": sums})
            self._layout.mark("done", number, 1)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def finish(self) -> None:
        """Mark the store complete once all its shards are done. Call it under ``lock``."""
        if self.complete:
            return
        if self.pending_shards():
            raise StoreError(f"{self.path}: shards {self.pending_shards()} are not written yet")
        self._layout.sweep()  # a cluster goes on without a worker that was killed
        self._layout.finish()

    def read(self, name: str, field: str) -> np.ndarray:
        """One field of one image: a read-only view of the file when the store is uncompressed.

        Raises:
            NotInStoreError: the store has no such image or no such field.
        """
        index = self.names.find(name)
        if index is None:
            raise NotInStoreError(f"{self.path}: holds no record of image {name}")
        if field not in self.schema.fields:
            raise NotInStoreError(
                f"{self.path}: has no field {field}, only {[*self.schema.fields]}"
            )
        with _damage(self.path):
            return self._layout.read(field, index)

    def record(self, name: str) -> dict[str, np.ndarray]:
        """All fields of one image by name; sparse fields without their padding.

        Arrays are those of ``read``, or copies in float32 where the store holds eight bits.
        """
        arrays = {field: self.read(name, field) for field in self.schema.fields}
        if any(field.quantisation != "none" for field in self.schema.fields.values()):
            copies = {field: torch.from_numpy(np.array(array)) for field, array in arrays.items()}
            arrays = {field: values.numpy() for field, values in dequantize(copies).items()}
        if "count" in arrays:
            count = int(arrays.pop("count"))
            for field in ("keypoints", "scores", "descriptors"):
                if field in arrays:
                    arrays[field] = arrays[field][:count]
        return arrays

    def corrupt_records(self, number: int) -> list[str]:
        """The images of a done shard whose bytes cannot be read or do not match their checksum."""
        return [self.names[index] for index in self.shard(number) if not self._is_sound(index)]

    def _is_sound(self, index: int) -> bool:
        try:
            fields = [self._layout.read(field, index) for field in self.schema.fields]
            return checksum(fields) == self._layout.read("checksum", index)
        except (OSError, ValueError, RuntimeError):  # a file cut off, a chunk that does not unpack
            return False

    def reopen_shards(self, numbers: Collection[int]) -> None:
        """Make done shards pending again, so that they are written again; others stay as they are.

        Call it under ``lock``. The store is incomplete until ``finish``.
        """
        if numbers:
            self._layout.mark("complete", 0, 0)
        for number in numbers:
            self._layout.mark("done", number, 0)

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
            StoreError: there is something else at ``path``; nothing is deleted.
        """
        path = Path(path)
        if not path.exists():
            return
        layout = _layout_of(path)
        try:
            layout.read_header()
        except Exception as error:  # see damage_as
            raise StoreError(
                f"{path}: not a store, so it is not overwritten; remove it yourself or choose "
                "another --store"
            ) from error
        remove(path)
        remove(layout.folder)


def _layout_of(path: Path) -> Layout:
    return ZarrLayout(path) if path.is_dir() else HDF5Layout(path)
