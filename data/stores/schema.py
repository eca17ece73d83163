"""What a store holds, declared before its first write and kept in it."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...config import first_difference
from ..geometry import MapGeometry

__all__ = ["FORMAT_VERSION", "Field", "Schema"]

FORMAT_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Field(_Frozen):
    """One array of every record.

    Attributes:
        shape: without the axis of records.
        dtype: as it is stored.
        geometry: where the positions of a map lie in the image.
        quantisation: how eight bits represent real values, see ``data.stores.quantize``.
    """

    shape: tuple[int, ...]
    dtype: Literal["float16", "float32", "int8", "uint8", "int32", "uint32"]
    geometry: MapGeometry | None = None
    quantisation: Literal["none", "scale", "fourth_root"] = "none"

    @property
    def nbytes(self) -> int:
        """Bytes of one record's array."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def attributes(self) -> dict[str, float | str]:
        """What a reader without this software needs to know, kept as attributes of the array."""
        told = {} if self.geometry is None else dict(vars(self.geometry))
        return told if self.quantisation == "none" else {**told, "quantisation": self.quantisation}


class Schema(_Frozen):
    """What a store holds and what its values depend on; declared before the first write.

    Attributes:
        teacher: the teacher's name.
        weights: SHA-256 of the teacher's weights.
        settings: whatever else its values depend on, such as NMS radius or a threshold.
        image_size: (width, height) of every image the teacher saw.
        fields: name -> Field, in the order in which a record's bytes are counted.
        shard_size: records in a shard; the last shard may hold fewer.
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

    @property
    def stored_fields(self) -> dict[str, Field]:
        """The fields and the checksum, which is stored like them."""
        return {**self.fields, "checksum": Field(shape=(), dtype="uint32")}

    def num_shards(self, records: int) -> int:
        """The number of shards for a number of records."""
        return -(-records // self.shard_size)

    def difference(self, other: "Schema") -> str | None:
        """The first setting in which another schema differs, as a phrase, or None."""
        return first_difference(self.model_dump(), other.model_dump())
