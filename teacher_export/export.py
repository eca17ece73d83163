"""Stage 1: photographs -> a store of a teacher's output."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import ExportSettings, load_settings, override
from ..console import progress, say
from ..data.images import list_images
from ..data.stores.store import RecordStore
from ..device import choose_device, choose_precision
from ..errors import InputError, StoreError
from ..networks.base import Network
from ..networks.registry import load
from .check import readable_names
from .shards import fill_shards, make_schema
from .workers import RUNS, ShardJob, fill_in_workers, worker_pool

__all__ = ["export", "open_keypoints", "verify", "with_shard_size", "writing"]

SMALLEST_SHARD = 16  # photographs; what an interruption costs
MOST_SHARDS = 40_000  # of a store; each is a file of every field, and a task of a cluster


def export(
    model: str,
    images: str | Path,
    store: str | Path,
    *,
    config: str | Path | None = None,
    weights: str | Path | None = None,
    keypoints_from: str | Path | None = None,
    scheduler: str | None = None,
    limit: int | None = None,
    skip_unreadable: bool = False,
    overwrite: bool = False,
    repair: bool = False,
    quiet: bool = False,
    **options,
) -> Path:
    """Run a teacher over all photographs in a folder and keep its output in a store.

    Called again after an interruption, it continues at the first shard that is not done.

    Args:
        model: a network, as ``networks.registry.load`` takes it.
        images: the folder of photographs.
        store: where to write.
        config: settings; pipeline.toml if not given.
        weights: a file with the teacher's weights, instead of the usual one.
        keypoints_from: a store of another teacher, whose keypoints and scores are taken and
            described by this one.
        scheduler: address of a Dask scheduler whose workers look at the photographs and fill the
            shards.
        limit: take only this many photographs, the first by name.
        skip_unreadable: leave out photographs that cannot be decoded.
        overwrite: replace a store that was made with other settings.
        repair: write those shards again that ``verify`` finds damaged.
        options: keys of [export] in pipeline.toml, such as ``size="640x480"``.

    Returns:
        The store's path.

    Raises:
        InputError: an invalid setting, or a photograph that cannot be decoded.
        StoreError: the store at ``store`` was made with other settings, or would not fit on the
            disk; or ``keypoints_from`` lacks a photograph, has another image size, or no
            keypoints.
        OSError: the disk; shards done before stay valid.
    """
    folder, path = Path(images), _writable(store)
    everything = load_settings(config)
    settings = override(everything.export, model=model, **options)
    if scheduler and settings.format == "hdf5":
        raise InputError(
            "--scheduler: several machines cannot write one HDF5 file, in which the records and "
            "marks of different shards share pages that file systems such as NFS write back whole; "
            "export with --format zarr"
        )
    names = RecordStore.open(path).names if repair else list_images(folder)[:limit]
    settings = with_shard_size(settings, path, len(names), overwrite)
    precision = choose_precision(settings.precision, choose_device(settings.device))
    settings = override(settings, precision=precision)
    teacher = load(model, device=settings.device, precision=precision, weights=weights)
    settings = override(settings, fields=settings.fields or list(teacher.usual_fields))
    keypoints = None
    if keypoints_from is not None:
        keypoints = open_keypoints(keypoints_from, teacher, settings)
        most = keypoints.schema.fields["keypoints"].shape[0]
        settings = override(settings, max_num_keypoints=min(settings.max_num_keypoints, most))
    schema = make_schema(teacher, settings, keypoints)
    with RecordStore.lock(path), worker_pool(settings.workers, scheduler) as run:
        if overwrite:
            RecordStore.remove(path)
        if not path.exists() or skip_unreadable:
            names = readable_names(
                folder.resolve() if scheduler else folder,
                names,
                settings.size,
                run,
                per_task=settings.shard_size,
                skip=skip_unreadable,
                quiet=quiet,
            )
        if keypoints and (missing := sorted({*names} - {*keypoints.names})):
            raise StoreError(
                f"{keypoints.path}: has no keypoints of {len(missing)} of the {len(names)} "
                f"photographs, first {missing[0]}; export the same folder to it"
            )
        records = RecordStore.create(path, schema, names, settings.format)
        if repair:
            damaged = damaged_shards(records, quiet)
            records.reopen_shards(damaged)
            say(f"{path}: {len(damaged)} damaged shards are made again", quiet=quiet)
        with writing(records, quiet) as (pending, advance):
            if scheduler or settings.workers > 1:
                found = str(Path(weights).resolve()) if weights else None
                plugins = tuple(str(Path(plugin).resolve()) for plugin in everything.plugins)
                job = ShardJob(
                    folder.resolve(), path.resolve(), settings, found, plugins, keypoints
                )
                tasks = None if scheduler else RUNS * settings.workers
                fill_in_workers(job, records, pending, advance, run, tasks=tasks)
            else:
                fill_shards(teacher, folder, records, settings, pending, advance, keypoints)
    return path


def verify(store: str | Path, *, quiet: bool = False) -> None:
    """Check that every record of a store is as it was written.

    Raises:
        StoreError: some are damaged; says how many, and names the first.
    """
    records = RecordStore.open(store)
    damaged = damaged_shards(records, quiet)
    if damaged:
        names = [name for found in damaged.values() for name in found]
        raise StoreError(
            f"{store}: {len(names)} records in {len(damaged)} of {records.num_shards} shards are "
            f"damaged, first {names[0]}; make those shards again: the command that made the "
            "store, with --repair"
        )
    pending = len(records.pending_shards())
    unwritten = f"; {pending} of {records.num_shards} shards are not written yet" if pending else ""
    say(f"{store}: all that is written is sound{unwritten}", quiet=quiet)


def damaged_shards(store: RecordStore, quiet: bool) -> dict[int, list[str]]:
    """Shards that are done but hold damaged records -> the images of those records."""
    done = store.done_shards()
    damaged = {}
    with progress("verify shards", len(done), quiet=quiet) as advance:
        for number in done:
            if names := store.corrupt_records(number):
                damaged[number] = names
            advance()
    return damaged


def with_shard_size(
    settings: ExportSettings, path: Path, records: int, overwrite: bool
) -> ExportSettings:
    """Settings with a number for ``shard_size``: what "auto" is for a store.

    That is the shard size of a store that is continued. A new one has 16 records in a shard, or for
    more than 640,000 records the power of two that makes at most 40,000 shards of them.

    Raises:
        StoreError: the store at ``path`` cannot be opened.
    """
    if settings.shard_size is not None:
        return settings
    if path.exists() and not overwrite:
        size = RecordStore.open(path).schema.shard_size
    else:
        size = SMALLEST_SHARD
        while size * MOST_SHARDS < records:
            size *= 2
    return override(settings, shard_size=size)


@contextmanager
def writing(store: RecordStore, quiet: bool) -> Iterator[tuple[list[int], Callable[[int], None]]]:
    """Yields the shards that are to be written, and the ``advance`` of a progress bar.

    The store is complete afterwards, and said to be.

    Raises:
        StoreError: the disk cannot hold them.
    """
    numbers = store.pending_shards()
    pending = sum(len(store.shard(number)) for number in numbers)
    check_space(store, pending)
    done, title = len(store) - pending, f"export {store.schema.teacher}"
    with progress(title, len(store), done=done, quiet=quiet) as advance:
        yield numbers, advance
        store.finish()
    say(
        f"{store.path}: {len(store)} photographs, {store.schema.record_nbytes / 1e6:.3g} MB each "
        f"({', '.join(store.schema.fields)})",
        quiet=quiet,
    )


def check_space(store: RecordStore, pending: int) -> None:
    """Refuse to start an export that cannot fit on the disk."""
    needed = pending * store.schema.record_nbytes
    free = shutil.disk_usage(store.path.parent).free
    if store.schema.compression == "none" and needed > free:
        raise StoreError(
            f"{store.path}: {pending} photographs need {needed / 1e9:.3g} GB, the disk has "
            f"{free / 1e9:.3g} GB free; choose fewer --fields, a smaller --size or another disk"
        )


def _writable(store: str | Path) -> Path:
    if "://" in str(store):
        raise InputError(
            f"{store}: stores are written to a file system; export to one and upload the store "
            "when it is complete, such as with `aws s3 sync`"
        )
    return Path(store)


def open_keypoints(path: str | Path, teacher: Network, settings: ExportSettings) -> RecordStore:
    """A store whose keypoints a teacher can describe.

    Raises:
        InputError: a teacher that describes only its own, or settings without ``sparse``.
        StoreError: not complete, of another image size, or without keypoints.
    """
    if not teacher.describes_given_keypoints:
        raise InputError(
            f"--keypoints-from: {teacher.name} describes only keypoints of its own; expected a "
            "network with a descriptor for every position of an image"
        )
    if "sparse" not in settings.fields:
        raise InputError("--keypoints-from: add --fields sparse, which has the keypoints")
    # Absolute, for workers open it as well.
    store = RecordStore.open(path if "://" in str(path) else Path(path).resolve())
    store.require_complete()
    if "keypoints" not in store.schema.fields:
        raise StoreError(
            f"{path}: has no keypoints, only {', '.join(store.schema.fields)}; export it with "
            "--fields sparse"
        )
    if store.schema.image_size != settings.size:
        (width, height), (own_width, own_height) = store.schema.image_size, settings.size
        raise StoreError(
            f"{path}: its keypoints are of images of {width}x{height}; expected "
            f"{own_width}x{own_height}, the --size of this export"
        )
    return store
