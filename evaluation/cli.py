"""evaluate: models and a dataset -> table, report.json, pictures."""

import shlex
import sys
from pathlib import Path

import click
import torch

from data.config import load_settings, override
from data.console import choose_device, progress, say, user_errors
from data.images import list_images
from evaluation.extractors import make_extractor
from evaluation.protocols import PROTOCOLS
from evaluation.report import markdown_table, write_report
from evaluation.sequences import render_sequences
from evaluation.suites import SUITES


@click.command()
@click.option("--dataset", type=click.Choice(list(SUITES)), default="hpatches", show_default=True)
@click.option(
    "--root", type=click.Path(path_type=Path), required=True, help="The dataset's folder."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="What to judge, once or more: default (the packaged student), a run folder, superpoint, "
    "silk, sift, orb, or features:FILE.h5 in hloc's layout.",
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option(
    "--render",
    "photographs",
    type=click.Path(path_type=Path),
    help="First render the dataset into --root from this folder of photographs.",
)
@click.option("--sequences", type=int, default=8, show_default=True, help="How many to render.")
@click.option("--config", type=click.Path(), help="Settings; pipeline.toml when not given.")
@click.option("--quiet", is_flag=True, help="No progress bar, only the table.")
@user_errors
def evaluate(
    dataset: str,
    root: Path,
    models: tuple[str, ...],
    output: Path | None,
    nms_radius: int | None,
    weights: str | None,
    device: str,
    precision: str | None,
    photographs: Path | None,
    sequences: int,
    config: str | None,
    quiet: bool,
    **flags,
) -> None:
    """Judge features: on image pairs with a known homography, on places, on camera poses.

    Prints a table and writes report.json, table.md and index.html into --output. With --render, a
    dataset of your own domain is made from photographs first; without --model, nothing else.
    """
    everything = load_settings(config)
    settings = override(everything.evaluate, **flags)
    predict = override(everything.predict, nms_radius=nms_radius, precision=precision)
    if photographs is not None:
        paths = [photographs / name for name in list_images(photographs)]
        names = render_sequences(paths, root, seed=0, count=sequences)
        say(f"{root}: rendered {len(names)} sequences", quiet=quiet)
    if not models:
        if photographs is None:
            raise click.UsageError("name at least one --model to judge")
        return
    if output is None:
        raise click.UsageError("name a folder for the report with --output")
    suite = SUITES[dataset](root, settings)
    extractors = {
        model: make_extractor(
            model,
            predict,
            num_keypoints=settings.num_keypoints,
            device=choose_device(device),
            weights=weights,
        )
        for model in models
    }
    results, drawings = [], []
    for model, extractor in extractors.items():
        with (
            torch.inference_mode(),
            progress(f"judge {model}", suite.images, quiet=quiet) as advance,
        ):
            found, pictures = suite.judge(model, extractor, advance)
        results += found
        drawings += pictures
    report = {
        "protocol": suite.protocol,
        "dataset": {"name": dataset, "root": str(root), **suite.size},
        "settings": {**settings.model_dump(), **predict.model_dump()},
        "models": [{"model": m, "origin": e.origin} for m, e in extractors.items()],
        "results": results,
    }
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    write_report(output, report, suite, drawings, command)
    click.echo(markdown_table(results, suite.columns, results[0]["split"]))
    say(f"{output / 'index.html'}: the report with pictures", quiet=quiet)
