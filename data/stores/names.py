"""The names of a store's images, however many, as arrays that processes map and share."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["NAME_ARRAYS", "Names"]

NAME_ARRAYS = ("name_text", "name_end", "name_order")
"""What a store keeps of its names beside ``name``."""


class Names(Sequence):
    """The names of a store's images in record order; a list of strings takes twice the memory.

    A name is found by bisection, in some 20 steps among a million.

    Args:
        text: (bytes,) uint8, the names in UTF-8, one after the other in record order.
        end: (N,) int64, where in it each ends.
        order: (N,) uint32, the records in the order of their names' bytes.

    Raises:
        ValueError: arrays that do not belong together.
    """

    def __init__(self, text: np.ndarray, end: np.ndarray, order: np.ndarray):
        self.arrays = dict(zip(NAME_ARRAYS, (text, end, order), strict=True))
        self._text, self._end, self._order = (np.asarray(array) for array in (text, end, order))
        if len(self._end) != len(self._order) or len(self._text) != self._end[-1:].sum():
            raise ValueError("its names are cut off")

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        """Names that lie in memory."""
        encoded = [name.encode() for name in names]
        order = sorted(range(len(encoded)), key=encoded.__getitem__)
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        text = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(text, ends, np.array(order, np.uint32))

    def __len__(self) -> int:
        return len(self._end)

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return self._bytes(range(len(self))[row]).decode()

    def __iter__(self) -> Iterator[str]:
        text, start = self._text.tobytes(), 0
        for end in self._end.tolist():
            yield text[start:end].decode()
            start = end

    def __contains__(self, name) -> bool:
        return self.find(name) is not None

    def __eq__(self, other) -> bool:
        theirs = other if isinstance(other, Names) else Names.of(other)
        return np.array_equal(self._end, theirs._end) and np.array_equal(self._text, theirs._text)

    def find(self, name: str) -> int | None:
        """The record of an image, or None."""
        wanted = name.encode(errors="surrogateescape")
        place = bisect_left(self._order, wanted, key=self._bytes)
        if place < len(self) and self._bytes(row := int(self._order[place])) == wanted:
            return row
        return None

    def _bytes(self, row: int) -> bytes:
        start = self._end[row - 1] if row else 0
        return self._text[start : self._end[row]].tobytes()
