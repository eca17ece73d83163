"""What the two layouts of a store on disk have in common."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import google_crc32c
import numpy as np

from ...files import checksum, sweep
from .names import Names
from .schema import Schema

__all__ = ["ATTRIBUTE", "PARAMETERS", "SUMS", "Layout", "header_sum", "parameters_sum", "parts_of"]

ATTRIBUTE = "hfnet_distill"
SUMS = "hfnet_distill_checksums"
"""The attribute with ``header_sum`` and ``parameters_sum``; older stores have none."""
PARAMETERS = "parameters"
PART = 2**18
"""Bytes that are written, then summed while the processor's cache still has them."""


class Layout(ABC):
    """How a store is kept on disk; ``RecordStore`` is written against this.

    Attributes:
        format: zarr or hdf5.
        path: of the store.
        folder: in which shards are written.
    """

    format: str

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder

    @abstractmethod
    def create(self, schema: Schema, names: Names, parameters: Mapping[str, np.ndarray]) -> None:
        """Make an empty store, whole or not at all."""

    def sweep(self) -> None:
        """Remove what killed writers left behind."""
        sweep(self.path)
        for folder, _, files in os.walk(self.folder):
            for name in files:
                if name.endswith(".partial"):
                    os.unlink(os.path.join(folder, name))

    @abstractmethod
    def read_header(self) -> tuple[dict, Names, np.ndarray | list[int] | None]:
        """The schema as JSON, names, mapped, and ``SUMS`` if any; raises if there is no store."""

    @abstractmethod
    def read_parameters(self) -> dict[str, np.ndarray]:
        """The arrays beside the records, by name."""

    def bind(self, schema: Schema) -> None:
        """Get ready to read and write records of this schema."""
        self.schema, self.fields = schema, schema.stored_fields

    @abstractmethod
    def write_arrays(self, number: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Write fields of a shard; returns CRC-32C over those of each record, (records,) uint32."""

    @abstractmethod
    def read(self, field: str, index: int) -> np.ndarray:
        """One field of one record, read-only."""

    @abstractmethod
    def mark(self, array: str, number: int, value: int) -> None:
        """Set or clear a mark of ``done`` or ``complete``; what it vouches for is on the disk."""

    @abstractmethod
    def marks(self, array: str, count: int) -> np.ndarray:
        """(count,) uint8 of ``done``, one for each shard, or of ``complete``, one in all."""

    def finish(self) -> None:
        """Mark the store complete."""
        self.mark("complete", 0, 1)


def header_sum(header: dict, names: Names) -> int:
    """CRC-32C over a schema, as JSON holds it, and the names of the records."""
    return checksum([json.dumps(header, sort_keys=True).encode(), *names.arrays.values()])


def parameters_sum(parameters: Mapping[str, np.ndarray]) -> int:
    """CRC-32C over arrays by name."""
    parts = []
    for name, array in sorted(parameters.items()):
        array = np.ascontiguousarray(array)
        parts += [f"{name} {array.dtype.str} {array.shape}".encode(), array]
    return checksum(parts)


def parts_of(records: np.ndarray, sums: np.ndarray, offset: int = 0) -> Iterator[memoryview]:
    """The bytes of records in parts; each part is added to its records' sums after it was used.

    If a record were summed before it is written, every byte would come from memory twice. Parts end
    at multiples of ``PART`` in a file that has the first byte at ``offset``, as its pages do.
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
