"""export-teacher: photographs -> store. train-teacher: photographs -> a teacher."""

import shutil
from pathlib import Path

import click

from data.config import load_settings, override
from data.console import choose_device, choose_precision, progress, say, user_errors
from data.images import list_images, split_names
from data.store import RecordStore, StoreError
from data.tensors import read_description
from teacher_export.export import export_shards, find_unreadable, make_schema
from teacher_export.silk import SiLKConfig, load_silk
from teacher_export.silk_training import SiLKTraining, train_silk
from teacher_export.teachers import TEACHERS, SiLKTeacher


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Choice(sorted(TEACHERS)), help="The teacher to run.")
@click.option(
    "--images", "folder", type=click.Path(path_type=Path), required=True, help="Photographs."
)
@click.option(
    "--store", "path", type=click.Path(path_type=Path), required=True, help="Where to write."
)
@click.option("--format", type=click.Choice(["zarr", "hdf5"]), help="Of the store.")
@click.option("--size", help="Width x height of every photograph, such as 640x480.")
@click.option(
    "--fields",
    help="Comma-separated; the table above says which.",
)
@click.option("--compression", type=click.Choice(["none", "zstd"]), help="Of the store.")
@click.option("--weights", type=click.Path(), help="The teacher's weights, if kept elsewhere.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--batch-size", type=int, help="Photographs per forward pass.")
@click.option("--limit", type=int, help="Only the first so many photographs, by name.")
@click.option("--skip-unreadable", is_flag=True, help="Leave out photographs that do not decode.")
@click.option("--overwrite", is_flag=True, help="Replace a store made with other settings.")
@click.option("--config", type=click.Path(), help="Settings; pipeline.toml when not given.")
@click.option("--quiet", is_flag=True, help="No progress bar, only errors.")
@user_errors
def export_teacher(
    folder: Path,
    path: Path,
    fields: str | None,
    weights: str | None,
    limit: int | None,
    skip_unreadable: bool,
    overwrite: bool,
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
      descriptor_map              2,457,600   1,228,800  on the student's 8x8 cells
      descriptor_map:averaged             –   1,228,800  over each cell
      descriptor_map:full                 –  73,565,184  inside the border
      sparse                        524,004     268,004  1,000 keypoints with descriptors
    """
    settings = override(
        load_settings(config).export, fields=fields.split(",") if fields else None, **flags
    )
    if settings.model not in TEACHERS:
        raise ValueError(f"model {settings.model!r}: expected one of {', '.join(sorted(TEACHERS))}")
    names = list_images(folder)[:limit]
    device = choose_device(settings.device)
    settings = override(settings, precision=choose_precision(settings.precision, device))
    teacher = TEACHERS[settings.model](weights, device, settings.precision)
    schema = make_schema(teacher, settings)
    with RecordStore.lock(path):
        if overwrite:
            RecordStore.remove(path)
        if not path.exists() or skip_unreadable:
            names = _readable(folder, names, skip_unreadable, quiet)
        store = RecordStore.create(path, schema, names, settings.format)
        pending = sum(len(store.shard(number)) for number in store.pending_shards())
        _check_space(store, pending)
        done = len(store) - pending
        with progress(f"export {teacher.name}", len(store), done=done, quiet=quiet) as advance:
            export_shards(teacher, folder, store, settings, advance)
    say(
        f"{path}: {len(store)} photographs, {store.schema.record_nbytes / 1e6:.2f} MB each "
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
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--config", type=click.Path(), help="Settings; pipeline.toml when not given.")
@click.option("--quiet", is_flag=True, help="No progress bar, only errors.")
@user_errors
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


def _readable(folder: Path, names: list[str], skip: bool, quiet: bool) -> list[str]:
    """The photographs that decode; refuses those that do not unless they are to be skipped."""
    with progress("check photographs", len(names), quiet=quiet) as advance:
        unreadable = find_unreadable(folder, names, advance)
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


def _check_space(store: RecordStore, pending: int) -> None:
    """Refuse an export that cannot fit, before it starts."""
    needed = pending * store.schema.record_nbytes
    free = shutil.disk_usage(store.path.parent).free
    if store.schema.compression == "none" and needed > free:
        raise StoreError(
            f"{store.path}: {pending} photographs need {needed / 1e9:.3g} GB, the disk has "
            f"{free / 1e9:.3g} GB free; choose fewer --fields, a smaller --size or another disk"
        )
