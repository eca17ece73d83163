"""The export loop: photographs in, shards out."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..config import ExportSettings
from ..data.images import UnreadablePhotographError, check_image, fit_image, read_image
from ..data.keypoints import KeypointChoice
from ..data.stores.quantize import quantise, quantise_fields
from ..data.stores.store import Field, RecordStore, Schema
from ..networks.teachers import Teacher
from ..networks.vlad import VLAD, StoredDescriptors

__all__ = [
    "export_places",
    "export_shards",
    "fill_shards",
    "look_at",
    "make_places_schema",
    "make_schema",
]

DECODERS = 4  # threads; OpenCV decodes without holding Python's lock
SHARDS_IN_FLIGHT = 2


def look_at(
    folder: Path, names: list[str], advance: Callable[[], None]
) -> dict[str, tuple[int, int] | UnreadablePhotographError]:
    """Look at every photograph before the network runs: name -> its size, about, or its error."""

    def check(name: str) -> tuple[int, int] | UnreadablePhotographError:
        try:
            return check_image(folder / name)
        except UnreadablePhotographError as error:
            return error

    found = {}
    with ThreadPoolExecutor(DECODERS) as pool:
        for name, result in zip(names, pool.map(check, names), strict=True):
            advance()
            found[name] = result
    return found


def make_schema(teacher: Teacher, settings: ExportSettings) -> Schema:
    """The schema of the store that a teacher would fill with these settings."""
    fields = teacher.fields(settings.fields, settings.size, settings.top_k)
    if settings.quantisation == "int8":
        fields = quantise_fields(fields)
    told = ["threshold", "nms_radius", "border", "top_k"] if "sparse" in settings.fields else []
    if settings.precision != "float32":
        told.append("precision")
    forms = dict(group.split(":") for group in settings.fields if ":" in group)
    return Schema(
        teacher=teacher.name,
        weights=teacher.weights,
        settings={key: getattr(settings, key) for key in told} | forms,
        image_size=settings.size,
        fields=fields,
        shard_size=settings.shard_size,
        compression=settings.compression,
        software=version("hfnet-distill"),
    )


def make_places_schema(images: StoredDescriptors, settings: ExportSettings) -> Schema:
    """The schema of the store that VLAD over a local teacher's store would fill."""
    if set(settings.fields) - {"global_descriptor"}:
        raise ValueError(
            f"--fields {','.join(settings.fields)}: vlad offers global_descriptor, nothing else"
        )
    local = images.store.schema
    return Schema(
        teacher="vlad",
        weights=local.weights,
        settings={
            "local": local.teacher,
            "descriptors": images.group,
            "words": settings.vlad_words,
            "dim": settings.vlad_dim,
            **{f"local_{key}": value for key, value in local.settings.items()},
        },
        image_size=local.image_size,
        fields={"global_descriptor": Field(shape=(settings.vlad_dim,), dtype="float16")},
        shard_size=settings.shard_size,
        compression=settings.compression,
        software=version("hfnet-distill"),
    )


def export_places(
    images: StoredDescriptors, store: RecordStore, advance: Callable[[int], None]
) -> None:
    """Fill a store with the global descriptors that its own parameters give, and mark it complete.

    Args:
        advance: called with the number of photographs of each finished shard.
    """
    vlad = VLAD.from_arrays(store.parameters)
    for number in store.pending_shards():
        rows = [vlad.encode(images[index]) for index in store.shard(number)]
        store.write_shard(number, {"global_descriptor": np.stack(rows).astype(np.float16)})
        advance(len(rows))
    store.finish()


def export_shards(
    teacher: Teacher,
    folder: Path,
    store: RecordStore,
    settings: ExportSettings,
    advance: Callable[[int], None],
) -> None:
    """Fill the shards of a store that are not done yet, and mark it complete; see fill_shards."""
    fill_shards(teacher, folder, store, settings, store.pending_shards(), advance)
    store.finish()


def fill_shards(
    teacher: Teacher,
    folder: Path,
    store: RecordStore,
    settings: ExportSettings,
    numbers: list[int],
    advance: Callable[[int], None],
) -> None:
    """Fill some shards of a store and mark each done.

    Threads decode ahead of the network and one writes behind it, so that the network does not
    wait; at most ``SHARDS_IN_FLIGHT`` shards are held in memory.

    Args:
        advance: called with the number of photographs of each finished batch.

    Raises:
        UnreadablePhotographError: a photograph that cannot be decoded.
        OSError: the disk. Shards done before stay valid in either case.
    """
    choice = KeypointChoice(
        threshold=settings.threshold,
        nms_radius=settings.nms_radius,
        border=settings.border,
        top_k=settings.top_k,
    )

    def decode(index: int) -> np.ndarray:
        image = read_image(folder / store.names[index], channels=teacher.channels)
        return fit_image(image, settings.size)

    with ThreadPoolExecutor(DECODERS) as decoders, ThreadPoolExecutor(1) as writer:
        indices = [index for number in numbers for index in store.shard(number)]
        photographs = _ahead(decoders, decode, indices, settings.batch_size * 2 + DECODERS)
        writes: list[Future] = []
        for number in numbers:
            count = len(store.shard(number))
            shard = {
                name: np.empty((count, *field.shape), field.dtype)
                for name, field in store.schema.fields.items()
            }
            for start in range(0, count, settings.batch_size):
                batch = list(islice(photographs, min(settings.batch_size, count - start)))
                arrays = teacher.export(_to_images(batch), settings.fields, choice)
                tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
                for name, values in quantise(store.schema.fields, tensors).items():
                    shard[name][start : start + len(batch)] = values.cpu().numpy()
                advance(len(batch))
            writes.append(writer.submit(store.write_shard, number, shard))
            if len(writes) >= SHARDS_IN_FLIGHT:
                writes.pop(0).result()
        for write in writes:
            write.result()


def _ahead(pool: ThreadPoolExecutor, work: Callable, items: list, depth: int) -> Iterator:
    """``map(work, items)`` in order, with up to ``depth`` results being made ahead."""
    futures: list[Future] = []
    try:
        for item in items:
            futures.append(pool.submit(work, item))
            if len(futures) > depth:
                yield futures.pop(0).result()
        while futures:
            yield futures.pop(0).result()
    finally:
        for future in futures:
            future.cancel()


def _to_images(batch: list[np.ndarray]) -> torch.Tensor:
    """uint8 (H, W) or (H, W, 3) photographs -> (B, 1 or 3, H, W) float32 in [0, 1]."""
    stacked = torch.from_numpy(np.stack(batch))
    stacked = stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)
    return stacked.float() / 255
