"""export-teacher: photographs -> store. train-teacher: photographs -> a teacher."""

from pathlib import Path

import click

from ..console import SettingsCommand, StorePath, say, shared_options


@click.command(cls=SettingsCommand, tables=("export",))
@click.option(
    "--model",
    help="superpoint, silk, aliked, xfeat, sift, netvlad, vlad (of another store), a student, or "
    "NAME:WEIGHTS.",
)
@click.option("--images", "folder", type=click.Path(path_type=Path), help="Photographs.")
@click.option("--store", "path", type=StorePath(), required=True, help="Where to write.")
@click.option("--format", type=click.Choice(["zarr", "hdf5"]), help="Of the store.")
@click.option("--size", help="Width x height in pixels that every photograph is made.")
@click.option("--fields", help="Comma-separated; the table above says which.")
@click.option(
    "--quantisation", type=click.Choice(["none", "int8"]), help="Of maps and descriptors."
)
@click.option(
    "--max-num-keypoints",
    "--top-k",
    "max_num_keypoints",
    type=int,
    help="Keypoints of sparse, at most.",
)
@click.option("--compression", type=click.Choice(["none", "zstd"]), help="Of the store.")
@click.option("--weights", type=click.Path(), help="The teacher's weights, if kept elsewhere.")
@click.option("--precision", type=click.Choice(["auto", "float32", "float16", "bfloat16"]))
@click.option("--batch-size", type=int, help="Photographs per forward pass.")
@click.option("--workers", type=int, help="Processes that fill shards.")
@click.option("--scheduler", help="Have a Dask cluster's workers fill them: tcp://HOST:PORT.")
@click.option(
    "--from-store",
    "local",
    type=StorePath(),
    help="vlad: the store of a local teacher; no photograph is read again.",
)
@click.option(
    "--keypoints-from",
    type=StorePath(),
    help="Describe the keypoints of this store, another teacher's, in place of the model's own.",
)
@click.option("--words", "vlad_words", type=int, help="vlad: centers of the local descriptors.")
@click.option("--dim", "vlad_dim", type=int, help="vlad: length of a global descriptor.")
@click.option(
    "--limit", type=click.IntRange(1), help="Only the first so many photographs, by name."
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out photographs that do not decode.")
@click.option("--overwrite", is_flag=True, help="Replace a store made with other settings.")
@click.option("--verify", is_flag=True, help="Only see whether the store is as it was written.")
@click.option("--repair", is_flag=True, help="Make the shards again that --verify finds damaged.")
@shared_options
def export_teacher(
    model: str | None,
    folder: Path | None,
    path: Path | str,
    fields: str | None,
    local: Path | str | None,
    verify: bool,
    config: str | None,
    **flags,
) -> None:
    """Run a teacher over photographs and keep what it says in a store.

    Run again after an interruption, the same command continues where it stopped. Flags override
    the [export] table of pipeline.toml.

    \b
    --fields, bytes at 640x480   superpoint        silk   aliked
      score_map                     624,000     574,728  614,400
      descriptor_map              2,457,600   1,158,144        –  on the student's 8x8 cells
      descriptor_map:averaged             –   1,158,144        –  over each cell
      descriptor_map:full                 –  73,565,184        –  of each pixel
      sparse                        524,004     268,004  268,004  1,000 keypoints with descriptors

    silk says nothing of the outermost 9 pixels, nor of cells whose center is one of them.
    With --quantisation int8 the two maps take 1,550,553 and 875,484 bytes.

    sift and xfeat have sparse alone, sift's as silk's. netvlad (8,192 bytes) and vlad (1,024) have
    global_descriptor alone. vlad learns from the records of another store, given with --from-store
    instead of --images and --size; it needs no weights.
    """
    from ..config import load_settings
    from . import export

    if verify and not flags["repair"]:
        export.verify(path, quiet=flags["quiet"])
        return
    model = model or load_settings(config).export.model
    if fields:
        flags["fields"] = [field.strip() for field in fields.split(",") if field.strip()]
    if model == "vlad":
        if local is None:
            raise click.UsageError(
                "--model vlad: name the store of a local teacher with --from-store"
            )
        from .places import export_vlad

        for name in ("weights", "keypoints_from", "scheduler", "skip_unreadable", "repair"):
            flags.pop(name)
        export_vlad(local, path, images=folder, config=config, **flags)
        return
    if folder is None:
        raise click.UsageError("Missing option '--images'.")
    export.export(model, folder, path, config=config, **flags)


@click.command(cls=SettingsCommand, tables=("teacher",))
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
@click.option("--grid", type=int, help="Positions along a side of the maps that are compared.")
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
    from ..config import load_settings, override
    from .silk_training import train_teacher as train

    settings = override(load_settings(config).teacher, **flags)
    weights = train(folder, output, settings, init=init, resume=resume, quiet=quiet)
    say(f"{weights}: done; name it with --weights", quiet=quiet)
