"""train-student: store(s) and photographs -> run folder."""

from pathlib import Path

import click

from ..console import SettingsCommand, StorePath, say, shared_options


@click.command(cls=SettingsCommand, tables=("train",))
@click.option(
    "--store",
    "stores",
    type=StorePath(),
    multiple=True,
    required=True,
    help="A teacher's store or its s3:// URL: a local one, a global one beside it, or with --init "
    "that alone.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="The photographs that the stores were made from.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The run folder to make."
)
@click.option("--network", help="The student: hfnet, or another that has a table in [train].")
@click.option(
    "--init",
    help="Start from a run folder, a checkpoint, a packaged student such as default, or none; auto "
    "takes the packaged student where its shape fits.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --output, or start it.")
@click.option("--epochs", type=int, help="Passes over the training photographs.")
@click.option("--batch-size", type=int, help="Photographs per step.")
@click.option("--crop", help='Width x height of a view in pixels, or "whole".')
@click.option(
    "--strategy",
    help="Both targets at once: keypoints, peaks, downsample, upsample or sparse.",
)
@click.option("--detector-target", help="keypoints, cells or labels.")
@click.option("--descriptor-target", help="keypoints, peaks, centers or random.")
@click.option("--warp", type=float, help="Share of the views through a random homography.")
@click.option("--learning-rate", type=float, help="The schedule's peak.")
@click.option("--num-workers", type=int, help="Loader processes.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--seed", type=int, help="Of weights, order, views and augmentation.")
@shared_options
def train_student(
    stores: tuple[Path | str, ...],
    images: Path,
    output: Path,
    resume: bool,
    strategy: str | None,
    config: str | None,
    quiet: bool,
    **flags,
) -> None:
    """Train a student to say what the teachers in the stores said.

    Flags override the [train] table of pipeline.toml. The run folder gets best.safetensors and
    last.safetensors with JSON beside them, log.jsonl and TensorBoard curves. torchrun starts it on
    several devices or machines; --batch-size stays that of all of them together.
    """
    from ..config import load_settings, override
    from .distributed import rank
    from .targets import find_strategy
    from .training import train

    settings = load_settings(config).train
    if strategy:
        settings = override(settings, **find_strategy(strategy))
    settings = override(settings, **flags)
    train(stores, images, output, settings, resume=resume, quiet=quiet)
    say(f"{output}: done; evaluate it with evaluate --model {output}", quiet=quiet or rank() > 0)
