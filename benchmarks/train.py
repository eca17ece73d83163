"""Views per second of the training loop, of the loader alone and of the network alone.

    python benchmarks/train.py --json train.json

The network gets one batch again and again: forward pass, losses, gradients, step. ``wait`` is the
share of the loop's time in which it waited for a batch. Settings are those of ``[train]``. Without
--store and --images both are made up: 128 photographs and SuperPoint's records of them.
"""

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import torch
from export import make_photographs
from stores import FIELDS, SHARD, make_records

from hfnet_distill.commands import keep_memory
from hfnet_distill.config import TrainSettings, load_settings, override
from hfnet_distill.console import StorePath, user_errors
from hfnet_distill.data.images import list_images
from hfnet_distill.data.stores.store import RecordStore, Schema
from hfnet_distill.device import choose_device, choose_precision
from hfnet_distill.networks.base import Student
from hfnet_distill.runs import Journal, RunFolder
from hfnet_distill.student.loader import Batches, DistillationDataset, make_loader
from hfnet_distill.student.targets import choose_targets, find_strategy
from hfnet_distill.student.training import (
    Learner,
    fit,
    make_student,
    validation_dataset,
)

ENDLESS = 1_000_000  # epochs


def make_store(path: Path, names: list[str]) -> RecordStore:
    """A store as large as SuperPoint's; the same records in every shard."""
    schema = Schema(
        teacher="made up",
        weights="0" * 64,
        settings={},
        image_size=(640, 480),
        fields=FIELDS,
        shard_size=SHARD,
        compression="none",
        software="0",
    )
    store, records = RecordStore.create(path, schema, names, "zarr"), make_records(SHARD)
    for number in store.pending_shards():
        store.write_shard(number, records)
    store.finish()
    return store


@click.command(context_settings={"show_default": True})
@click.option("--store", "path", type=StorePath(), help="With --images: of its photographs.")
@click.option("--images", "folder", type=click.Path(path_type=Path))
@click.option("--seconds", default=30.0, help="Of each measurement, the first fifth not counted.")
@click.option("--num-workers", type=int)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--device")
@click.option("--network", help="hfnet or light.")
@click.option("--strategy", help="As of train-student.")
@click.option("--views-on", type=click.Choice(["loader", "device"]), help="As in [train].")
@click.option("--config", type=click.Path(path_type=Path), help="Such as recipes/small.toml.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
@user_errors
def main(
    path,
    folder: Path | None,
    seconds: float,
    output: Path | None,
    strategy: str | None,
    config: Path | None,
    **flags,
) -> None:
    """Measure; takes less than two minutes."""
    keep_memory()  # as the commands do
    if (path is None) != (folder is None):
        raise click.UsageError("give both --store and --images, or neither")
    settings = override(load_settings(config).train, epochs=ENDLESS)
    settings = override(settings, **(find_strategy(strategy) if strategy else {}), **flags)
    device = choose_device(settings.device)
    with tempfile.TemporaryDirectory() as temporary:
        if path is None:
            folder = Path(temporary) / "photographs"
            make_photographs(folder, 128, (640, 480))
            store = make_store(Path(temporary) / "store", list_images(folder))
        else:
            store = RecordStore.open(path)
        speeds, wait = measure(store, folder, settings, device, seconds, Path(temporary) / "run")
    click.echo(
        f"{device.type}, {choose_precision(settings.precision, device, training=True)}: "
        + ", ".join(f"{name} {speed:.1f} views/s" for name, speed in speeds.items())
        + f"; waiting for data {wait:.1%} of the time"
    )
    if output is not None:
        output.write_text(json.dumps({"images_per_s": speeds, "wait": wait}, indent=2))


def measure(
    store: RecordStore,
    folder: Path,
    settings: TrainSettings,
    device: torch.device,
    seconds: float,
    output: Path,
) -> tuple[dict[str, float], float]:
    """Views per second of loader, network and loop; the share of its time that the loop waits."""
    targets = choose_targets([store], settings.detector_target, settings.descriptor_target)
    dataset = DistillationDataset(folder, store.names, targets, settings)
    nothing = validation_dataset(dataset, [])
    batches = Batches(len(dataset), settings.batch_size, epochs=ENDLESS, seed=settings.seed)
    if not batches.steps_per_epoch:
        raise ValueError(
            f"{store.path}: {len(store)} records do not fill a batch of {settings.batch_size}"
        )
    student, _ = make_student(targets, settings)
    loader = ticks(make_loader(dataset, batches, settings.num_workers), seconds)
    network = ticks(repeat_step(student, dataset, device), seconds)
    loop: list[float] = []

    def advance(count: int, note: str) -> None:
        loop.append(time.perf_counter())
        if loop[-1] - loop[0] > seconds and len(loop) > 2:
            raise StopIteration

    Journal.EVERY = 1
    run = RunFolder(output, {}, resume=False)
    with contextlib.suppress(StopIteration):
        fit(student, dataset, nothing, run, device, advance=advance)
    views = settings.batch_size * settings.views
    every = {"loader": loader, "network": network, "loop": loop}
    speeds = {name: views * rate(times) for name, times in every.items()}
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"][counted_from(loop) + 1 :]
    took = [1 / step["images_per_s"] for step in steps]
    waited = [step["wait"] * time for step, time in zip(steps, took, strict=True)]
    return speeds, sum(waited) / sum(took)


def ticks(steps: Iterable, seconds: float) -> list[float]:
    """When each step ended, until ``seconds`` are over."""
    times: list[float] = []
    for _ in steps:
        times.append(time.perf_counter())
        if times[-1] - times[0] > seconds and len(times) > 2:
            break
    return times


def counted_from(times: list[float]) -> int:
    """The first step after a fifth of the time: caches and read-ahead are filled."""
    begin = times[0] + (times[-1] - times[0]) / 5
    return min(sum(moment < begin for moment in times), len(times) - 2)


def rate(times: list[float]) -> float:
    """Steps per second."""
    first = counted_from(times)
    return (len(times) - 1 - first) / (times[-1] - times[first])


def repeat_step(
    student: Student, dataset: DistillationDataset, device: torch.device
) -> Iterator[float]:
    """Steps on one batch, without end."""
    settings = dataset.settings
    keys = [(0, index) for index in range(settings.batch_size)]
    (batch,) = make_loader(dataset, [keys], 0)
    learner = Learner(student, dataset, device)
    for number in itertools.count(1):
        yield learner.step(batch, number, settings.learning_rate)["loss"].item()


if __name__ == "__main__":
    main()
