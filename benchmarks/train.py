"""Views per second of the training loop, of the loader alone and of the network alone.

    python benchmarks/train.py --store superpoint.zarr --images photos/ --json train.json

The network gets one batch again and again: forward pass, losses, gradients, step. ``wait`` is the
share of the loop's time in which it waited for a batch. Settings are those of ``[train]``.
"""

import contextlib
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

import click
import torch

from data.config import load_settings, override
from data.console import choose_device, choose_precision, user_errors
from data.store import RecordStore
from student.hfnet import HFNet, HFNetConfig
from student.loader import Batches, DistillationDataset, Warps, make_loader
from student.targets import choose_targets
from student.training import RunFolder, compute_losses, make_weighting, train


@click.command(context_settings={"show_default": True})
@click.option("--store", "path", type=click.Path(path_type=Path), required=True)
@click.option("--images", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=120, help="Of each measurement, the first tenth not counted.")
@click.option("--num-workers", type=int)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--device")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
@user_errors
def main(path: Path, images: Path, steps: int, output: Path | None, **flags) -> None:
    """Measure; takes a minute or two on a processor."""
    settings = override(load_settings().train, **flags, global_pooling="deep", validation=0.0)
    device = choose_device(settings.device)
    store = RecordStore.open(path)
    targets = choose_targets([store], settings.strategy)
    dataset = DistillationDataset(
        images,
        store.names,
        targets,
        size=store.schema.image_size,
        crop=settings.crop,
        views=settings.views,
        warps=Warps(settings.warp, settings.zoom, settings.rotation, settings.perspective),
        photometric=settings.photometric,
    )
    per_epoch = len(dataset) // settings.batch_size
    settings = override(settings, epochs=-(-steps // per_epoch))
    views = settings.batch_size * settings.views
    student = HFNet(HFNetConfig(width=settings.width, descriptor_dim=targets[0].descriptor_dim))
    batches = Batches(len(dataset), settings.batch_size, epochs=settings.epochs, seed=0)

    speeds = {
        "loader": views * rate(make_loader(dataset, batches, settings.num_workers), steps),
        "network": views * rate(repeat_step(student, dataset, settings, device), steps),
    }
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder), {}, resume=False)
        ticks: list[float] = []

        def advance(count: int, note: str) -> None:
            ticks.append(time.perf_counter())
            if len(ticks) == steps:
                raise StopIteration

        empty = DistillationDataset(images, [], targets, size=store.schema.image_size)
        with contextlib.suppress(StopIteration):
            train(student, dataset, empty, run, settings, device, advance=advance)
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    first = len(ticks) // 10
    speeds["loop"] = views * (len(ticks) - 1 - first) / (ticks[-1] - ticks[first])
    waits = [line["wait"] for line in lines if line["kind"] == "train"][1:]
    wait = sum(waits) / len(waits)
    click.echo(
        f"{device.type}, {choose_precision(settings.precision, device)}: "
        + ", ".join(f"{name} {speed:.1f} views/s" for name, speed in speeds.items())
        + f"; waiting for data {wait:.1%} of the time"
    )
    if output is not None:
        output.write_text(json.dumps({"images_per_s": speeds, "wait": wait}, indent=2))


def rate(iterable, steps: int) -> float:
    """How many a second of the first ``steps``, without the first tenth."""
    first = steps // 10
    for number, _ in enumerate(islice(iterable, steps)):
        if number == first:
            start = time.perf_counter()
    return (number - first) / (time.perf_counter() - start)


def repeat_step(student: HFNet, dataset: DistillationDataset, settings, device):
    """Steps on one batch, without end."""
    keys = [(0, index) for index in range(settings.batch_size)]
    (batch,) = make_loader(dataset, [keys], 0)
    student.to(device, memory_format=torch.channels_last).train()
    weighting = make_weighting(settings, student).to(device)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    while True:
        loss = weighting(compute_losses(student, batch, dataset.targets, settings, device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


if __name__ == "__main__":
    main()
