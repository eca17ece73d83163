"""A store as a Zarr v3 group: a folder with one file per shard and array."""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import zarr

from ...errors import StoreError
from ...files import (
    checksum,
    flush_to_disk,
    made_beside,
    open_atomically,
    reserve,
    write_atomically,
)
from .layout import ATTRIBUTE, PARAMETERS, SUMS, Layout, header_sum, parameters_sum, parts_of
from .names import NAME_ARRAYS, Names
from .schema import Schema

__all__ = ["ZarrLayout"]


class ZarrLayout(Layout):
    """A Zarr v3 group; a shard of an array is one sharded object.

    An uncompressed shard is written as the specification lays it out: the records one after the
    other, then an index of (offset, bytes) per record and the index's CRC-32C. All shards of an
    array lie in its folder, such as ``score_map/c.7.0.0.0``; older stores had a folder for each
    shard, ``score_map/c/7/0/0/0``, and can still be read and continued.
    """

    format = "zarr"

    def __init__(self, path: Path):
        super().__init__(path, path)

    def create(self, schema: Schema, names: Names, parameters: Mapping[str, np.ndarray]) -> None:
        zstd = zarr.codecs.ZstdCodec(level=3) if schema.compression == "zstd" else None
        with made_beside(self.path, flush=True) as unfinished:
            header = schema.model_dump(mode="json")
            sums = [header_sum(header, names), parameters_sum(parameters)]
            group = zarr.create_group(unfinished, attributes={ATTRIBUTE: header, SUMS: sums})
            array = group.create_array("name", shape=(len(names),), dtype=str, compressors=None)
            array[:] = np.array(list(names), dtype=object)
            for name, array in names.arrays.items():
                _whole(group, name, array)
            for name, field in schema.stored_fields.items():
                group.create_array(
                    name,
                    shape=(len(names), *field.shape),
                    dtype=field.dtype,
                    chunks=(1, *field.shape),
                    shards=(schema.shard_size, *field.shape),
                    compressors=zstd,
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
                    _whole(kept, name, array)

    def read_header(self) -> tuple[dict, Names, list[int] | None]:
        group = zarr.open_group(self.path, mode="r")
        self._separator = group["checksum"].metadata.chunk_key_encoding.separator
        if NAME_ARRAYS[0] in group:
            files = {name: self.path / name / "c" / "0" for name in NAME_ARRAYS}
            names = Names(*(np.memmap(f, group[name].dtype, "r") for name, f in files.items()))
        else:  # an older store
            names = Names.of(group["name"][:].tolist())
        return group.attrs[ATTRIBUTE], names, group.attrs.get(SUMS)

    def read_parameters(self) -> dict[str, np.ndarray]:
        group = zarr.open_group(self.path, mode="r")
        kept = group[PARAMETERS].arrays() if PARAMETERS in group else ()
        return {name: array[...] for name, array in sorted(kept)}

    def bind(self, schema: Schema) -> None:
        super().bind(schema)
        self._map = lru_cache(maxsize=4096)(self._open_map)
        if schema.compression == "zstd":
            group = zarr.open_group(self.path, mode="r+")
            self._arrays = {field: group[field] for field in self.fields}

    def _shard_path(self, field: str, number: int) -> Path:
        parts = ["c", str(number), *"0" * len(self.fields[field].shape)]
        return self.path / field / self._separator.join(parts)

    def write_arrays(self, number: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        size = self.schema.shard_size
        if self.schema.compression == "zstd":
            for field, records in arrays.items():
                path, first = self._shard_path(field, number), number * size
                path.unlink(missing_ok=True)  # Zarr would read what it writes over, damaged or not
                self._arrays[field][first : first + len(records)] = records
                flush_to_disk(path)
            each = zip(*arrays.values(), strict=True)
            return np.array([checksum(record) for record in each], np.uint32)
        sums = np.zeros(len(next(iter(arrays.values()))), np.uint32)
        for field, records in arrays.items():
            index = np.full((size, 2), 2**64 - 1, "<u8")  # the mark of an absent record
            index[: len(records), 0] = np.arange(len(records)) * records[0].nbytes
            index[: len(records), 1] = records[0].nbytes
            path = self._shard_path(field, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            crc = checksum([index]).to_bytes(4, "little")
            with open_atomically(path, flush=True) as file:
                reserve(file, 0, records.nbytes)
                for part in parts_of(records, sums):
                    file.write(part)
                file.write(index.tobytes() + crc)
        return sums

    def mark(self, array: str, number: int, value: int) -> None:
        path = self.path / array / "c" / str(number)
        if value:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, b"\x01", flush=True)
        else:
            path.unlink(missing_ok=True)

    def marks(self, array: str, count: int) -> np.ndarray:
        marks = np.zeros(count, np.uint8)
        folder = self.path / array / "c"
        if folder.is_dir():
            marks[[int(name) for name in os.listdir(folder) if name.isdecimal()]] = 1
        return marks

    def read(self, field: str, index: int) -> np.ndarray:
        if self.schema.compression == "zstd":
            return np.asarray(self._arrays[field][index])
        number, row = divmod(index, self.schema.shard_size)
        data, index = self._map(field, number)
        start, size = index[row].tolist()
        described = self.fields[field]
        record = data[start : start + size].view(described.dtype)
        return record.reshape(described.shape).view(np.ndarray)

    def _open_map(self, field: str, number: int) -> tuple[np.memmap, np.ndarray]:
        """A shard's bytes, and where its own index says that each record starts and how long."""
        path = self._shard_path(field, number)
        data = np.memmap(path, np.uint8, mode="r")
        end = 16 * self.schema.shard_size
        index, crc = data[-end - 4 : -4], data[-4:]
        if len(index) != end or checksum([index]) != int(crc.view("<u4")[0]):
            raise StoreError(
                f"{path}: the shard is damaged (its index does not match its checksum); "
                "export the store again with --overwrite"
            )
        return data, index.view(np.ndarray).view("<u8").reshape(-1, 2)


def _whole(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """An array in one file that holds its values and nothing else."""
    group.create_array(
        name,
        data=values,
        chunks=values.shape,
        compressors=None,
        config={"write_empty_chunks": True},  # else there is no file of zeros
    )
