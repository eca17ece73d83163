"""train-student: store(s) and photographs -> run folder."""

from dataclasses import replace
from pathlib import Path

import click
import torch

from ..config import TrainSettings, load_settings, override
from ..console import StorePath, progress, say, shared_options
from ..data.images import list_images, split_names
from ..data.stores.store import RecordStore
from ..device import choose_device, choose_precision
from ..networks.hfnet import HFNet, HFNetConfig
from ..networks.registry import checkpoint_path, load_checkpoint
from .distributed import join, rank
from .loader import DistillationDataset, Warps
from .targets import STRATEGIES, GlobalTargets, Targets, choose_targets
from .training import RunFolder, train

MAY_CHANGE = {"device", "num_workers", "checkpoint_minutes"}
"""Settings that a resumed run may have otherwise: they change no number."""


@click.command()
@click.option(
    "--store",
    "paths",
    type=StorePath(),
    multiple=True,
    required=True,
    help="A teacher's store or its s3:// URL: a local one, a global one beside it, or with --init "
    "that alone.",
)
@click.option(
    "--images",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="The photographs that the stores were made from.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The run folder to make."
)
@click.option("--init", help='Start from a run folder, or from "default", the packaged student.')
@click.option("--resume", is_flag=True, help="Go on with the run in --output.")
@click.option("--epochs", type=int, help="Passes over the training photographs.")
@click.option("--batch-size", type=int, help="Photographs per step.")
@click.option("--crop", help='Width x height of a random crop, or "whole".')
@click.option(
    "--strategy", type=click.Choice([*STRATEGIES]), help="Where descriptors are compared."
)
@click.option("--warp", type=float, help="Share of the views through a random homography.")
@click.option("--learning-rate", type=float, help="The schedule's peak.")
@click.option("--num-workers", type=int, help="Loader processes.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--seed", type=int, help="Of weights, order, crops and augmentation.")
@shared_options
def train_student(
    paths: tuple[Path | str, ...],
    folder: Path,
    output: Path,
    init: str | None,
    resume: bool,
    config: str | None,
    quiet: bool,
    **flags,
) -> None:
    """Train HF-Net to say what the teachers in the stores said.

    Flags override the [train] table of pipeline.toml. The run folder gets best.safetensors and
    last.safetensors with JSON beside them, log.jsonl and TensorBoard curves. torchrun starts it on
    several devices or machines; --batch-size stays that of all of them together.
    """
    settings = override(load_settings(config).train, **flags)
    device = join(choose_device(settings.device))
    quiet = quiet or rank() > 0
    stores = [RecordStore.open(path) for path in paths]
    targets = choose_targets(stores, settings.strategy)
    names = _common_names(stores, folder, quiet)
    training_names, validation_names = split_names(names, settings.validation)
    if len(training_names) < settings.batch_size:
        raise ValueError(
            f"{len(training_names)} training photographs do not fill a batch of "
            f"{settings.batch_size}; lower --batch-size or bring more photographs"
        )
    torch.manual_seed(settings.seed)
    student, digest = _make_student(targets, settings, init)
    size = stores[0].schema.image_size
    training = DistillationDataset(
        folder,
        training_names,
        targets,
        size=size,
        crop=settings.crop,
        views=1 if student.local_is_frozen else settings.views,
        warps=Warps.of(settings),
        photometric=settings.photometric,
        seed=settings.seed,
    )
    validation = DistillationDataset(folder, validation_names, targets, size=size)
    info = {
        "init": digest,
        "teachers": [_describe(store) for store in stores],
        "photographs": len(training_names),
        "settings": settings.model_dump(mode="json", exclude=MAY_CHANGE),
    }
    run = RunFolder(output, info, resume=resume)
    steps = len(training) // settings.batch_size * settings.epochs
    say(
        f"train on {len(training)} photographs, validate on {len(validation)}, {steps} steps, "
        f"{device.type}, {choose_precision(settings.precision, device)}",
        quiet=quiet,
    )
    with progress("train student", steps, done=run.steps_done, quiet=quiet) as advance:
        train(student, training, validation, run, settings, device, advance=advance)
    say(f"{output}: done; judge it with evaluate --model {output}", quiet=quiet)


def _common_names(stores: list[RecordStore], folder: Path, quiet: bool) -> list[str]:
    """The images that every store and the folder hold, in the first store's order."""
    present = set(list_images(folder))
    names = [n for n in stores[0].names if n in present and all(n in s for s in stores)]
    if not names:
        raise ValueError(
            f"{folder}: holds none of the {len(stores[0])} photographs that all stores were made "
            f"from, such as {stores[0].names[0]}; name that folder with --images"
        )
    for place, held in [*((s.path, len(s)) for s in stores), (folder, len(present))]:
        if held > len(names):
            say(f"{place}: {held - len(names)} of {held} photographs are not in all", quiet=quiet)
    return names


def _make_student(
    targets: list[Targets], settings: TrainSettings, init: str | None
) -> tuple[HFNet, str]:
    """The student that the targets call for, and the SHA-256 of what it starts from, if anything.

    Without local targets it learns the global branch alone; the rest is that of ``init``.
    """
    local = next((t for t in targets if not isinstance(t, GlobalTargets)), None)
    place = next((t for t in targets if isinstance(t, GlobalTargets)), None)
    if local is not None:
        config = HFNetConfig(
            width=settings.width,
            descriptor_dim=local.descriptor_dim,
            detector_skip=settings.detector_skip,
            context_block=settings.context_block,
        )
    elif init is None:
        raise ValueError(
            f"{targets[0].store.path}: holds only global descriptors; give a store with score_map "
            "and descriptor_map beside it, or with --init the student whose local part stays"
        )
    else:
        config = load_checkpoint(checkpoint_path(init))[0].config
    if place is not None:
        config = replace(config, **_global_settings(place, config, settings))
    student = HFNet(config)
    if config.global_pooling == "local":
        student.vlad.start_from(student.projection, place.store.parameters)
    digest = ""
    if init:
        other, _ = load_checkpoint(checkpoint_path(init))
        student.start_from(other)
        digest = other.weights
    if local is None:
        student.freeze_local()
    return student, digest


def _global_settings(place: GlobalTargets, config: HFNetConfig, settings: TrainSettings) -> dict:
    """How the student's global branch is built for a teacher."""
    dims = {"global_dim": place.global_dim}
    words = place.words
    if settings.global_pooling == "deep" or words is None:
        return {**dims, "global_pooling": "deep", "global_rank": settings.global_rank}
    if words.shape[1] != config.descriptor_dim:
        raise ValueError(
            f"{place.store.path}: made from local descriptors of {words.shape[1]} numbers, the "
            f"student's have {config.descriptor_dim}; make it from the same teacher's store, or "
            'set global_pooling = "deep" in [train]'
        )
    return {**dims, "global_pooling": "local", "global_rank": 0, "clusters": len(words)}


def _describe(store: RecordStore) -> dict:
    schema = store.schema
    return {
        "teacher": schema.teacher,
        "weights": schema.weights,
        "image_size": list(schema.image_size),
        "fields": sorted(schema.fields),
        "records": len(store),
    }
