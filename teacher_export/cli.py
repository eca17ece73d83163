"""export-teacher: photographs -> store. train-teacher: photographs -> a teacher."""

import shutil
from pathlib import Path

import click
import numpy as np

from ..checkpoints import read_description
from ..config import ExportSettings, load_settings, override
from ..console import StorePath, choose_device, choose_precision, progress, say, shared_options
from ..data.images import list_images, split_names
from ..data.stores.store import RecordStore, StoreError
from ..networks.silk import SiLKConfig, load_silk
from ..networks.teachers import TEACHERS, SiLKTeacher, VladTeacher
from ..networks.vlad import StoredDescriptors, fit_vlad
from .export import (
    export_places,
    export_shards,
    look_at,
    make_places_schema,
    make_schema,
)
from .silk_training import SiLKTraining, train_silk
from .workers import ShardJob, export_in_workers

MODELS = sorted([*TEACHERS, VladTeacher.name])


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Choice(MODELS), help="The teacher to run.")
@click.option("--images", "folder", type=click.Path(path_type=Path), help="Photographs.")
@click.option("--store", "path", type=StorePath(), required=True, help="Where to write.")
@click.option("--format", type=click.Choice(["zarr", "hdf5"]), help="Of the store.")
@click.option("--size", help="Width x height of every photograph, such as 640x480.")
@click.option(
    "--fields",
    help="Comma-separated; the table above says which.",
)
@click.option(
    "--quantisation", type=click.Choice(["none", "int8"]), help="Of maps and descriptors."
)
@click.option("--top-k", type=int, help="Keypoints of sparse, at most.")
@click.option("--compression", type=click.Choice(["none", "zstd"]), help="Of the store.")
@click.option("--weights", type=click.Path(), help="The teacher's weights, if kept elsewhere.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--batch-size", type=int, help="Photographs per forward pass.")
@click.option("--workers", type=int, help="Processes that fill shards.")
@click.option("--scheduler", help="Have a Dask cluster's workers fill them: tcp://HOST:PORT.")
@click.option(
    "--from-store",
    "local",
    type=StorePath(),
    help="vlad: the store of a local teacher; no photograph is read again.",
)
@click.option("--words", "vlad_words", type=int, help="vlad: centres of the local descriptors.")
@click.option("--dim", "vlad_dim", type=int, help="vlad: length of a global descriptor.")
@click.option("--limit", type=int, help="Only the first so many photographs, by name.")
@click.option("--skip-unreadable", is_flag=True, help="Leave out photographs that do not decode.")
@click.option("--overwrite", is_flag=True, help="Replace a store made with other settings.")
@click.option("--verify", is_flag=True, help="Only see whether the store is as it was written.")
@click.option("--repair", is_flag=True, help="Make the shards again that --verify finds damaged.")
@shared_options
def export_teacher(
    folder: Path | None,
    path: Path,
    fields: str | None,
    weights: str | None,
    scheduler: str | None,
    local: Path | str | None,
    limit: int | None,
    skip_unreadable: bool,
    overwrite: bool,
    verify: bool,
    repair: bool,
    config: str | None,
    quiet: bool,
    **flags,
) -> None:
    """Run a teacher over photographs and keep what it says in a store.

    Run again after an interruption, the same command continues where it stopped. Flags override
    the [export] table of pipeline.toml.

    \b
    --fields, bytes at 640x480   superpoint        silk
      score_map                     624,000     574,728
      descriptor_map              2,457,600   1,158,144  on the student's 8x8 cells
      descriptor_map:averaged             –   1,158,144  over each cell
      descriptor_map:full                 –  73,565,184  of each pixel
      sparse                        524,004     268,004  1,000 keypoints with descriptors

    silk says nothing of the outermost 9 pixels, nor of cells whose centre is one of them.
    With --quantisation int8 the two maps take 1,550,553 and 875,484 bytes.

    sift has sparse alone, as silk's. netvlad (8,192 bytes) and vlad (1,024) have global_descriptor
    alone. vlad learns from the records of another store, given with --from-store instead of
    --images and --size; it needs no weights.
    """
    if isinstance(path, str):
        raise ValueError(
            f"{path}: stores are written to a file system; export to one and upload the store when "
            "it is complete, such as with `aws s3 sync`"
        )
    if verify and not repair:
        _verify(path, quiet)
        return
    settings = override(
        load_settings(config).export, fields=fields.split(",") if fields else None, **flags
    )
    if settings.model not in MODELS:
        raise ValueError(f"model {settings.model!r}: expected one of {', '.join(MODELS)}")
    places = settings.model == VladTeacher.name
    if places:
        images = _local_descriptors(local, path, folder, limit)
        names = images.names
        schema = make_places_schema(images, settings)
    else:
        if folder is None:
            raise click.UsageError("Missing option '--images'.")
        names = RecordStore.open(path).names if repair else list_images(folder)[:limit]
        device = choose_device(settings.device)
        settings = override(settings, precision=choose_precision(settings.precision, device))
        teacher = TEACHERS[settings.model](weights, device, settings.precision)
        settings = override(settings, fields=settings.fields or list(teacher.usual_fields))
        schema = make_schema(teacher, settings)
    with RecordStore.lock(path):
        if overwrite:
            RecordStore.remove(path)
        parameters = None
        if places and not path.exists():
            parameters = _learn_places(images, settings, quiet)
        elif not places and (not path.exists() or skip_unreadable):
            names = _readable(folder, names, settings.size, skip_unreadable, quiet)
        store = RecordStore.create(path, schema, names, settings.format, parameters)
        if repair:
            damaged = _damaged_shards(store, quiet)
            store.reopen_shards(damaged)
            say(f"{path}: {len(damaged)} damaged shards are made again", quiet=quiet)
        pending = sum(len(store.shard(number)) for number in store.pending_shards())
        _check_space(store, pending)
        done = len(store) - pending
        with progress(f"export {schema.teacher}", len(store), done=done, quiet=quiet) as advance:
            if places:
                export_places(images, store, advance)
            elif scheduler or settings.workers > 1:
                found = weights and str(Path(weights).resolve())
                job = ShardJob(folder.resolve(), path.resolve(), settings, found)
                export_in_workers(
                    job, store, advance, workers=settings.workers, scheduler=scheduler
                )
            else:
                export_shards(teacher, folder, store, settings, advance)
    say(
        f"{path}: {len(store)} photographs, {store.schema.record_nbytes / 1e6:.3g} MB each "
        f"({', '.join(schema.fields)})",
        quiet=quiet,
    )


NETWORKS = {
    "vgg4": SiLKConfig(),
    "micro": SiLKConfig(channels=(64,), lateral=32, descriptor_dim=32),
}


@click.command()
@click.option("--model", type=click.Choice(["silk"]), default="silk", show_default=True)
@click.option(
    "--images", "folder", type=click.Path(path_type=Path), required=True, help="Photographs."
)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The run folder to make."
)
@click.option("--init", help='Start from a checkpoint of SiLK, or from "packaged".')
@click.option("--resume", is_flag=True, help="Go on with the run in --output.")
@click.option("--steps", type=int, help="Pairs of views, one a step.")
@click.option("--grid", type=int, help="Side of the maps that are compared.")
@click.option("--learning-rate", type=float, help="Until the last fifth of the steps.")
@shared_options
def train_teacher(
    model: str,
    folder: Path,
    output: Path,
    init: str | None,
    resume: bool,
    config: str | None,
    quiet: bool,
    **flags,
) -> None:
    """Train SiLK on photographs alone: no labels, no other network's weights.

    Flags override the [teacher] table of pipeline.toml. The run folder gets silk.safetensors, which
    export-teacher and evaluate take as --weights, and log.jsonl.
    """
    settings = override(load_settings(config).teacher, **flags)
    device = choose_device(settings.device)
    initial = None
    if init is not None:
        initial, _ = load_silk(SiLKTeacher.PACKAGED if init == "packaged" else init)
    training, validation = split_names(list_images(folder), settings.validation)
    values = settings.model_dump(exclude={"network", "validation", "device", "precision"})
    run = SiLKTraining(
        network=initial.config if initial else NETWORKS[settings.network],
        device=str(device),
        precision=choose_precision(settings.precision, device),
        **values,
    )
    say(f"train on {len(training)} photographs, validate on {len(validation)}", quiet=quiet)
    done = read_description(output / "resume.safetensors")["step"] if resume else 0
    with progress("train silk", run.steps, done=done, quiet=quiet) as advance:
        train_silk(
            [folder / name for name in training],
            [folder / name for name in validation],
            output,
            run,
            initial=initial,
            resume=resume,
            advance=advance,
        )
    say(f"{output / 'silk.safetensors'}: done; name it with --weights", quiet=quiet)


def _local_descriptors(
    local: Path | str | None, path: Path, folder: Path | None, limit: int | None
) -> StoredDescriptors:
    """What vlad learns from and encodes: the records of the store that ``--from-store`` names."""
    if local is None:
        raise click.UsageError("--model vlad: name the store of a local teacher with --from-store")
    if Path(local).resolve() == path.resolve():
        raise ValueError(f"{path}: --store and --from-store are the same; choose another --store")
    store = RecordStore.open(local)
    if folder is not None and (changed := sorted(set(store.names) ^ set(list_images(folder)))):
        raise ValueError(
            f"{local}: not of the photographs in {folder}, first difference {changed[0]}; leave "
            "--images out to take the photographs of the store"
        )
    return StoredDescriptors(store, store.names[:limit])


def _learn_places(
    images: StoredDescriptors, settings: ExportSettings, quiet: bool
) -> dict[str, np.ndarray]:
    with progress("learn places", 2 * len(images), quiet=quiet) as advance:
        vlad = fit_vlad(
            images, num_words=settings.vlad_words, dim=settings.vlad_dim, advance=advance
        )
    return vlad.to_arrays()


def _readable(
    folder: Path, names: list[str], size: tuple[int, int], skip: bool, quiet: bool
) -> list[str]:
    """The photographs that decode; refuses those that do not unless they are to be skipped."""
    with progress("check photographs", len(names), quiet=quiet) as advance:
        found = look_at(folder, names, advance)
    unreadable = {name: seen for name, seen in found.items() if isinstance(seen, Exception)}
    sizes = [seen for seen in found.values() if not isinstance(seen, Exception)]
    # Up to a twentieth is not worth a word, and sizes are not known to the pixel.
    if small := sum(min(w / size[0], h / size[1]) < 0.95 for w, h in sizes):
        say(
            f"{small} of {len(names)} photographs are smaller than {size[0]}x{size[1]} and blurred "
            "by being enlarged; take larger ones, or see python -m data.mosaics --help",
            quiet=quiet,
        )
    if not unreadable:
        return names
    if not skip:
        first, more = next(iter(unreadable.values())), len(unreadable) - 1
        others = f", and {more} more" if more else ""
        raise ValueError(f"{first}{others}; or leave such out with --skip-unreadable")
    for error in unreadable.values():
        say(f"skipped: {error}")
    if len(unreadable) == len(names):
        raise ValueError(f"{folder}: none of the {len(names)} photographs can be decoded")
    return [name for name in names if name not in unreadable]


def _verify(path: Path, quiet: bool) -> None:
    store = RecordStore.open(path)
    damaged = _damaged_shards(store, quiet)
    if damaged:
        records = [name for names in damaged.values() for name in names]
        raise StoreError(
            f"{path}: {len(records)} records in {len(damaged)} of {store.num_shards} shards are "
            f"damaged, first {records[0]}; make those shards again: the command that made the "
            "store, with --repair"
        )
    pending = len(store.pending_shards())
    unwritten = f"; {pending} of {store.num_shards} shards are not written yet" if pending else ""
    say(f"{path}: all that is written is sound{unwritten}", quiet=quiet)


def _damaged_shards(store: RecordStore, quiet: bool) -> dict[int, list[str]]:
    """The done shards with records that are not what was written, and those records' images."""
    done = sorted({*range(store.num_shards)} - {*store.pending_shards()})
    damaged = {}
    with progress("verify shards", len(done), quiet=quiet) as advance:
        for number in done:
            if names := store.corrupt_records(number):
                damaged[number] = names
            advance()
    return damaged


def _check_space(store: RecordStore, pending: int) -> None:
    """Refuse an export that cannot fit, before it starts."""
    needed = pending * store.schema.record_nbytes
    free = shutil.disk_usage(store.path.parent).free
    if store.schema.compression == "none" and needed > free:
        raise StoreError(
            f"{store.path}: {pending} photographs need {needed / 1e9:.3g} GB, the disk has "
            f"{free / 1e9:.3g} GB free; choose fewer --fields, a smaller --size or another disk"
        )
