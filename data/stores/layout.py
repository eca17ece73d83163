"""What the two layouts of a store on disk have in common."""

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import google_crc32c
import numpy as np

from .schema import Schema

__all__ = ["ATTRIBUTE", "PARAMETERS", "Layout", "checksums", "parts_of", "sweep"]

ATTRIBUTE = "hfnet_distill"
PARAMETERS = "parameters"
PART = 2**18
"""Bytes that are written, then summed while the processor's cache still has them."""


class Layout(Protocol):
    """How a store is kept on disk; ``RecordStore`` is written against this.

    Attributes:
        format: zarr or hdf5.
        path: of the store.
    """

    format: str
    path: Path

    def create(
        self, schema: Schema, names: list[str], parameters: Mapping[str, np.ndarray]
    ) -> None:
        """Make an empty store, whole or not at all."""

    def sweep(self) -> None:
        """Remove what killed writers left behind."""

    def read_header(self) -> tuple[dict, list[str]]:
        """The schema as JSON, and the names; raises if there is no store."""

    def read_parameters(self) -> dict[str, np.ndarray]:
        """The arrays beside the records, by name."""

    def bind(self, schema: Schema) -> None:
        """Get ready to read and write records of this schema."""

    def write_arrays(self, number: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Write fields of a shard; returns the ``checksums`` of its records."""

    def mark_done(self, number: int) -> None:
        """Mark a shard whose arrays are written."""

    def done(self, count: int) -> np.ndarray:
        """(shards,) uint8, 1 for those that are done."""

    def finish(self) -> None:
        """Mark the store complete."""

    def is_complete(self) -> bool:
        """Whether the store is marked complete."""

    def reopen(self, numbers: Collection[int]) -> None:
        """Remove the marks of these shards and that of the store."""

    def read(self, field: str, index: int) -> np.ndarray:
        """One field of one record, read-only."""

    def checksum(self, index: int) -> int:
        """The checksum of a record when it was written."""

    def remove(self) -> None:
        """Delete the store."""


def sweep(folder: Path, pattern: str) -> None:
    """Remove the unfinished files that killed writers left behind."""
    for path in folder.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def checksums(fields: Sequence[np.ndarray]) -> np.ndarray:
    """CRC-32C over the fields of each record, (records,) uint32, from one array per field."""
    sums = np.zeros(len(fields[0]), np.uint32)
    for records in fields:
        for _ in parts_of(records, sums):
            pass
    return sums


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
