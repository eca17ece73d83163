"""Shards of a store, filled with what a teacher says of photographs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from ..config import ExportSettings
from ..data.images import load_photograph, to_images
from ..data.keypoints import KeypointChoice
from ..data.stores.quantize import quantize, quantize_fields
from ..data.stores.store import Field, RecordStore, Schema
from ..networks.base import Network

__all__ = ["ahead", "choose_keypoints", "compute_batch", "fill_shards", "make_schema"]

STORED_SETTINGS = {
    "threshold": "threshold",
    "nms_radius": "nms_radius",
    "border": "border",
    "top_k": "max_num_keypoints",
}
"""Name in a store's schema -> key of [export], for settings that keypoints depend on."""
OWN_RADII = ("refine_radius", "rank_radius")
"""Settings of a network's own that keypoints depend on, stored where they are not 0."""
SPARSE = "keypoints", "scores"
STREAMS = 2
"""Of a GPU, each with a thread: while a batch on one is asked how many keypoints still stand, or is
copied to the host, the GPU computes the next one on the other."""


def make_schema(
    teacher: Network, settings: ExportSettings, keypoints: RecordStore | None = None
) -> Schema:
    """The schema of the store that a teacher would fill with these settings.

    Args:
        keypoints: the store of another teacher, whose keypoints are described.
    """
    fields = teacher.fields(settings.fields, settings.size, settings.max_num_keypoints)
    if settings.quantisation == "int8":
        fields = quantize_fields(fields)
    told = {} if settings.precision == "float32" else {"precision": settings.precision}
    if keypoints is not None:
        theirs = keypoints.schema
        own = theirs.settings.keys() & {*STORED_SETTINGS, *OWN_RADII}
        told |= {name: theirs.settings[name] for name in own}
        told["top_k"] = settings.max_num_keypoints
        told |= {"keypoints_teacher": theirs.teacher, "keypoints_weights": theirs.weights}
    elif "sparse" in settings.fields:
        choice = choose_keypoints(teacher, settings)
        told |= {name: getattr(choice, key) for name, key in STORED_SETTINGS.items()}
        told |= {key: radius for key in OWN_RADII if (radius := getattr(choice, key))}
    forms = dict(group.split(":") for group in settings.fields if ":" in group)
    return Schema(
        teacher=teacher.name,
        weights=teacher.weights,
        settings=told | forms,
        image_size=settings.size,
        fields=fields,
        shard_size=settings.shard_size,
        compression=settings.compression,
        software=version("hfnet-distill"),
    )


def choose_keypoints(teacher: Network, settings: ExportSettings) -> KeypointChoice:
    """How a teacher's keypoints are chosen; how far they are refined is the teacher's own."""
    told = {key: getattr(settings, key) for key in STORED_SETTINGS.values()}
    return teacher.choice_for(KeypointChoice(**told, **dict.fromkeys(OWN_RADII)))


def fill_shards(
    teacher: Network,
    folder: Path,
    store: RecordStore,
    settings: ExportSettings,
    numbers: list[int],
    advance: Callable[[int], None],
    keypoints: RecordStore | None = None,
) -> None:
    """Fill some shards of a store and mark each done.

    Threads decode ahead of the network, into a batch's memory, and others write behind it: the
    network does not wait. One shard more than there are writers is in memory, or as many more as a
    batch crosses.

    Args:
        numbers: of the shards, ascending.
        advance: called with the number of photographs of each finished batch.
        keypoints: the store of another teacher, whose keypoints are described.

    Raises:
        UnreadablePhotographError: a photograph that cannot be decoded.
        OSError: the disk. In either case, shards that are done stay valid.
    """
    filling = _Filling(teacher, folder, store, settings, keypoints)
    with (
        ThreadPoolExecutor(settings.decoders) as decoders,
        ThreadPoolExecutor(STREAMS, initializer=_own_stream, initargs=(teacher.device,)) as lanes,
        ThreadPoolExecutor(settings.writers) as writers,
    ):
        batches = ahead(decoders, filling.decode, filling.batches(numbers), settings.decoders)
        batches = map(filling.place, batches)
        if filling.on_gpu:
            batches = ahead(lanes, filling.compute, batches, STREAMS)
        else:
            batches = map(filling.compute, batches)
        shards = filling.shards(batches, advance)
        for _ in ahead(writers, filling.write, shards, settings.writers):
            pass


@dataclass
class _Batch:
    """Photographs that a teacher sees together.

    Attributes:
        first: the record of its first row; the others follow.
        records: those that are to be stored.
        pixels: (B, H, W) gray or (B, H, W, 3) uint8; black where a record is not stored.
        places: for some rows each, per field where their values go in a shard's arrays.
    """

    first: int
    records: list[int]
    pixels: Tensor | None = None
    places: list[tuple[slice, dict[str, Tensor]]] = field(default_factory=list)


class _Filling:
    """The steps from photographs to shards, each called by a thread or several."""

    def __init__(self, teacher, folder, store, settings, keypoints):
        self.teacher, self.folder, self.store = teacher, folder, store
        self.settings, self.keypoints = settings, keypoints
        self.fields, self.shard_size = store.schema.fields, store.schema.shard_size
        self.choice = choose_keypoints(teacher, settings)
        self.on_gpu = teacher.device.type == "cuda"
        self.arrays: dict[int, dict[str, Tensor]] = {}  # of the shards that are being filled
        self.spare: list[dict[str, Tensor]] = []  # pages of fresh memory cost, pinned ones more

    def batches(self, numbers: list[int]) -> Iterator[_Batch]:
        """The batches of some shards, which they cross.

        What a network says of a photograph depends, by the last bit, on how many it sees together
        and on the photograph's row: SiLK's sigmoid and ALIKED's convolutions do on a processor, and
        on a GPU all may. So a record has its batch and its row whichever shards are filled, and a
        shard has the same bytes whoever fills it.
        """
        size = self.settings.batch_size
        records = (record for number in numbers for record in self.store.shard(number))
        for start, own in groupby(records, lambda record: record // size):
            yield _Batch(start * size, [*own])

    def decode(self, batch: _Batch) -> _Batch:
        teacher, settings = self.teacher, self.settings
        count = min(settings.batch_size, len(self.store) - batch.first)
        colors = () if teacher.channels == 1 else (3,)
        shape = (count, *settings.size[::-1], *colors)
        batch.pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=self.on_gpu)
        rows = batch.pixels.numpy()
        for record in batch.records:
            path = self.folder / self.store.names[record]
            photograph = load_photograph(path, settings.size, channels=teacher.channels)
            rows[record - batch.first] = photograph
        return batch

    def place(self, batch: _Batch) -> _Batch:
        """Make room for what the teacher will say."""
        for number, own in groupby(batch.records, lambda record: record // self.shard_size):
            own = [*own]
            if number not in self.arrays:
                self.arrays[number] = self.spare.pop() if self.spare else self._new_arrays()
            rows, places = (
                slice(own[0] - first, own[-1] + 1 - first)
                for first in (batch.first, number * self.shard_size)
            )
            arrays = {name: array[places] for name, array in self.arrays[number].items()}
            batch.places.append((rows, arrays))
        return batch

    def _new_arrays(self) -> dict[str, Tensor]:
        return {
            name: torch.empty(
                (self.shard_size, *field.shape),
                dtype=getattr(torch, field.dtype),
                pin_memory=self.on_gpu,
            )
            for name, field in self.fields.items()
        }

    def compute(self, batch: _Batch) -> _Batch:
        found = None
        if self.keypoints is not None:
            found = []
            for index in range(batch.first, batch.first + len(batch.pixels)):
                record = self.keypoints.record(self.store.names[index])
                best = (record[name][: self.choice.max_num_keypoints] for name in SPARSE)
                found.append(tuple(torch.from_numpy(array.copy()) for array in best))
        groups = self.settings.fields
        compute_batch(
            self.teacher, batch.pixels, groups, self.choice, found, self.fields, batch.places
        )
        if self.on_gpu:
            torch.cuda.current_stream().synchronize()
        batch.pixels = None
        return batch

    def shards(
        self, batches: Iterable[_Batch], advance: Callable[[int], None]
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The shards' numbers and arrays, each when all of its records are there."""
        for batch in batches:
            advance(len(batch.records))
            for number in [*self.arrays]:
                if self.store.shard(number)[-1] <= batch.records[-1]:
                    yield number, self.arrays.pop(number)

    def write(self, shard: tuple[int, dict[str, Tensor]]) -> None:
        number, arrays = shard
        count = len(self.store.shard(number))
        told = {name: array[:count].numpy() for name, array in arrays.items()}
        self.store.write_shard(number, told)
        self.spare.append(arrays)


@torch.inference_mode()
def compute_batch(
    teacher: Network,
    pixels: Tensor,
    groups: list[str],
    choice: KeypointChoice,
    given: list[tuple[Tensor, Tensor]] | None,
    fields: Mapping[str, Field],
    places: list[tuple[slice, dict[str, Tensor]]],
) -> None:
    """What a teacher says of a batch, as a store keeps it.

    Photographs go to the teacher's device in eight bits, and values come back as they are stored. A
    GPU may still be copying them to pinned memory when this returns.

    Args:
        pixels: (B, H, W) gray or (B, H, W, 3) uint8, on the CPU.
        groups, choice, given: see ``Network.export``.
        fields: of the store.
        places: for some rows each, per field where to write their values, on the CPU.
    """
    images = to_images(pixels.to(teacher.device, non_blocking=True))
    if given is not None:
        given = [[part.to(teacher.device, non_blocking=True) for part in each] for each in given]
    values = teacher.export(images, groups, choice, given)
    if teacher.device.type == "cpu":
        for rows, arrays in places:
            quantize(fields, {name: value[rows] for name, value in values.items()}, arrays)
        return
    stored = quantize(fields, values)
    for rows, arrays in places:
        for name, array in arrays.items():
            array.copy_(stored[name][rows], non_blocking=True)


def ahead(pool: Executor, work: Callable, items: Iterable, depth: int) -> Iterator:
    """``map(work, items)`` in order, computing up to ``depth`` results ahead."""
    results: deque[Future] = deque()
    for item in items:
        results.append(pool.submit(work, item))
        if len(results) > depth:
            yield results.popleft().result()
    while results:
        yield results.popleft().result()


def _own_stream(device: torch.device) -> None:
    """In a thread: whatever it does on a GPU from now on, it does on a stream of its own."""
    torch.cuda.synchronize(device)  # the weights came on another one
    torch.cuda.set_stream(torch.cuda.Stream(device))
