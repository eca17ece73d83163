"""evaluate: models and a dataset -> table, report.json, pictures."""

import shlex
import sys
from pathlib import Path

import click
import torch

from ..config import load_settings, override
from ..console import progress, say, shared_options
from ..data.images import list_images
from ..device import choose_device
from .comparison import compare_models, comparison_table
from .datasets import DATASETS
from .datasets.download import ARCHIVE, fetch_hpatches
from .datasets.rendered import render_sequences
from .extractors import make_extractor
from .protocols import PROTOCOLS
from .report import markdown_table, write_report
from .suites import SUITES

MEGABYTE = 10**6


@click.command()
@click.option(
    "--dataset",
    type=click.Choice([*DATASETS.names(), *DATASETS.aliases]),
    default="hpatches",
    show_default=True,
)
@click.option(
    "--root", type=click.Path(path_type=Path), required=True, help="The dataset's folder."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="What to judge, once or more: default (the packaged student), a run folder or its file "
    "of weights, superpoint, silk, silk:WEIGHTS, sift, orb, akaze, harris+superpoint (a detector, "
    "harris or fast, and whose descriptors it gets), or features:FILE.h5 in hloc's layout.",
)
@click.option(
    "--compare",
    "compared",
    nargs=2,
    multiple=True,
    metavar="A B",
    help="Two of the models: which of their differences are real.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the report.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), help="Which numbers, and how.")
@click.option(
    "--num-features",
    "--num-keypoints",
    "num_keypoints",
    type=int,
    help="The best so many keypoints of each image.",
)
@click.option("--nms-radius", type=int, help="Pixels around a keypoint that stay free of others.")
@click.option("--split", type=click.Choice(["all", "illumination", "viewpoint"]))
@click.option("--weights", type=click.Path(), help="A teacher's weights, if kept elsewhere.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option(
    "--render",
    "photographs",
    type=click.Path(path_type=Path),
    help="First render the dataset into --root from this folder of photographs.",
)
@click.option(
    "--download", is_flag=True, help="First fetch the full HPatches (1.3 GB) into --root."
)
@click.option("--sequences", type=int, default=8, show_default=True, help="How many to render.")
@shared_options
def evaluate(
    dataset: str,
    root: Path,
    models: tuple[str, ...],
    compared: tuple[tuple[str, str], ...],
    output: Path | None,
    nms_radius: int | None,
    weights: str | None,
    device: str | None,
    precision: str | None,
    photographs: Path | None,
    download: bool,
    sequences: int,
    config: str | None,
    quiet: bool,
    **flags,
) -> None:
    """Judge features: on image pairs with a known homography, on places, on camera poses.

    Prints a table and writes report.json, table.md and index.html into --output. With --render, a
    dataset of your own domain is made from photographs first, with --download HPatches is fetched;
    without --model, nothing else.
    """
    everything = load_settings(config)
    rules = PROTOCOLS[flags["protocol"] or everything.evaluate.protocol]
    settings = override(everything.evaluate, num_keypoints=rules.num_keypoints)
    settings = override(settings, **flags)
    predict = override(everything.predict, nms_radius=rules.nms_radius)
    predict = override(predict, nms_radius=nms_radius, precision=precision)
    if download:
        with progress("download MB", ARCHIVE.size // MEGABYTE, quiet=quiet) as advance:
            fetch_hpatches(root, advance=lambda count: advance(count / MEGABYTE))
        say(f"{root}: {ARCHIVE.sequences} sequences of HPatches, {ARCHIVE.digest}", quiet=quiet)
    if photographs is not None:
        paths = [photographs / name for name in list_images(photographs)]
        names = render_sequences(paths, root, seed=0, count=sequences)
        say(f"{root}: rendered {len(names)} sequences", quiet=quiet)
    if not models:
        if photographs is None and not download:
            raise click.UsageError("name at least one --model to judge")
        return
    if strangers := {name for pair in compared for name in pair} - set(models):
        raise click.UsageError(
            f"--compare {sorted(strangers)[0]}: not among the models; name it with --model, too"
        )
    if output is None:
        raise click.UsageError("name a folder for the report with --output")
    suite = SUITES[DATASETS.find(dataset).name](root, settings)
    extractors = {
        model: make_extractor(
            model,
            predict,
            num_keypoints=settings.num_keypoints,
            device=choose_device(device or "auto"),
            weights=weights,
        )
        for model in models
    }
    judged = {}
    with torch.inference_mode():
        for model, extractor in extractors.items():
            with progress(f"judge {model}", suite.images, quiet=quiet) as advance:
                judged[model] = suite.judge(extractor, advance)
        with progress("draw", settings.pictures * len(models), quiet=quiet) as advance:
            drawings = suite.draw(judged, extractors, advance)
    results = [row for model, found in judged.items() for row in suite.summarize(model, found)]
    statistics = {model: suite.statistics(judged[model]) for pair in compared for model in pair}
    columns = [column for column in suite.columns if column.is_ranked]
    report = {
        "protocol": suite.protocol,
        "dataset": {"name": dataset, "root": str(root), **suite.size},
        "settings": {**settings.model_dump(), **predict.model_dump(), **suite.settings},
        "models": [{"model": m, "origin": e.origin} for m, e in extractors.items()],
        "results": results,
        "curves": {model: suite.curves(found) for model, found in judged.items()},
        "comparisons": [
            compare_models((a, b), (statistics[a], statistics[b]), columns) for a, b in compared
        ],
    }
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    write_report(output, report, suite, drawings, command)
    split = results[0]["split"]
    click.echo(markdown_table(results, suite.columns, split))
    for comparison in report["comparisons"]:
        click.echo(f"\n{comparison_table(comparison, split)}")
    say(f"{output / 'index.html'}: the report with pictures", quiet=quiet)
