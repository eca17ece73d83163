"""evaluate: models and a dataset -> table, report.json, pictures."""

import shlex
import sys
from pathlib import Path

import click

from ..console import SettingsCommand, progress, say, shared_options
from .datasets import DATASETS
from .tasks import TASKS

MEGABYTE = 10**6


@click.command(cls=SettingsCommand, tables=("predict", "evaluate"))
@click.option(
    "--dataset",
    default="hpatches",
    show_default=True,
    metavar="NAME",
    help=f"{', '.join(DATASETS.names())}: the layout of --root.",
)
@click.option(
    "--root", type=click.Path(path_type=Path), required=True, help="The dataset's folder."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="What to evaluate, once or more: default (the packaged student), a run folder or its file "
    "of weights, superpoint, silk, silk:WEIGHTS, sift, orb, akaze, harris+superpoint (a detector, "
    "harris or fast, and whose descriptors it gets), or features:FILE.h5 in hloc's layout.",
)
@click.option(
    "--compare",
    nargs=2,
    multiple=True,
    metavar="A B",
    help="Two of the models: which of their differences are real.",
)
@click.option(
    "--against",
    metavar="B",
    help="Also match each model's features of view 0 with B's of view 1: a map of one, localized "
    "by the other.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the report.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Extract features again. Without it, those in OUTPUT/features are reused; if they "
    "were extracted with other settings, the command names the setting and stops.",
)
@click.option(
    "--protocol",
    metavar="NAME",
    help=f"Which numbers, and how: {', '.join(TASKS.names())}. Of hpatches: hfnet.",
)
@click.option(
    "--num-features",
    "--num-keypoints",
    "num_keypoints",
    type=int,
    help="The best so many keypoints of each image.",
)
@click.option("--nms-radius", type=int, help="Pixels around a keypoint that stay free of others.")
@click.option(
    "--matcher",
    type=click.Choice(["nearest", "lightglue"]),
    help="How views are matched; lightglue is for aliked:n16 and its students.",
)
@click.option("--split", metavar="NAME", help="Of hpatches: all, illumination, viewpoint.")
@click.option("--weights", type=click.Path(), help="A teacher's weights, if kept elsewhere.")
@click.option("--precision", type=click.Choice(["auto", "float32", "float16", "bfloat16"]))
@click.option(
    "--render",
    "photographs",
    type=click.Path(path_type=Path),
    help="First render the dataset into --root from this folder of photographs.",
)
@click.option(
    "--download", is_flag=True, help="First fetch the full HPatches (1.3 GB) into --root."
)
@click.option(
    "--sequences", type=click.IntRange(1), default=8, show_default=True, help="How many to render."
)
@shared_options
def evaluate(
    models: tuple[str, ...],
    output: Path | None,
    root: Path,
    photographs: Path | None,
    download: bool,
    sequences: int,
    device: str | None,
    config: str | None,
    quiet: bool,
    **flags,
) -> None:
    """Evaluate features: on image pairs with a known homography, on retrieval, on camera poses.

    Prints a table and writes report.json, table.md and index.html into --output, and the features
    of each model into OUTPUT/features. With --render, a dataset of your own domain is made from
    photographs first, with --download HPatches is fetched; without --model, nothing else.
    """
    if download:
        from .datasets.download import ARCHIVE, fetch_hpatches

        with progress("download MB", ARCHIVE.size // MEGABYTE, quiet=quiet) as advance:
            fetch_hpatches(root, advance=lambda count: advance(count / MEGABYTE))
        say(f"{root}: {ARCHIVE.sequences} sequences of HPatches, {ARCHIVE.digest}", quiet=quiet)
    if photographs is not None:
        from ..data.images import list_images
        from .datasets.rendered import render_sequences

        paths = [photographs / name for name in list_images(photographs)]
        names = render_sequences(paths, root, seed=0, count=sequences)
        say(f"{root}: rendered {len(names)} sequences", quiet=quiet)
    if not models:
        if photographs is None and not download:
            raise click.UsageError("name at least one --model to evaluate")
        return
    if output is None:
        raise click.UsageError("name a folder for the report with --output")
    from ..config import load_settings
    from .evaluate import evaluate

    evaluate(
        models=models,
        output=output,
        root=root,
        device=device or "auto",
        settings=load_settings(config),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        show=click.echo,
        quiet=quiet,
        **flags,
    )
    say(f"{output / 'index.html'}: the report with pictures", quiet=quiet)
