"""A whole export against the teacher's forward pass alone, and what else it costs.

    OMP_NUM_THREADS=1 python benchmarks/export.py --json export.json

* The ratio to the forward pass. Shard by shard, the network runs on photographs that are decoded
  and in memory, and the export decodes files, computes, converts, and writes until the shard is on
  the disk. Both take turns, so that whatever else a machine does slows both. An export contains its
  forward passes: the ratio of processor times is below 1.
* The ceiling: photographs per second of processor time with a teacher that takes no time, for
  SuperPoint's maps of 640x480 JPEG files.
* The steps beside the network, each alone, the least of many times.
* Peak memory, in processes of their own, over so many photographs and over four times as many.

Without --images the photographs are made up.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from torch.nn import functional as F

from hfnet_distill.commands import keep_memory
from hfnet_distill.config import ExportSettings, load_settings, override
from hfnet_distill.data.images import list_images, load_photograph, to_images
from hfnet_distill.data.stores.quantize import quantize
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.device import choose_device, choose_precision
from hfnet_distill.networks.base import DenseMaps, Network
from hfnet_distill.networks.registry import load, register
from hfnet_distill.teacher_export.shards import fill_shards, make_schema

BATCH = 16
"""Photographs per forward pass, at most."""
SHARD = 16
"""Photographs in a shard."""


@register("constant")
class ConstantTeacher(Network):
    """SuperPoint's maps, channels last as it leaves them, the same for every photograph."""

    descriptor_dim = 256
    weights = "none"

    @classmethod
    def open(cls, source: str | None = None, weights: str | None = None) -> "ConstantTeacher":
        return cls()

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        cells = (3 * torch.randn(BATCH, 65, 60, 80, generator=draw)).softmax(1)
        described = F.normalize(torch.randn(BATCH, 256, 60, 80, generator=draw), dim=1)
        self.cells = cells.contiguous(memory_format=torch.channels_last)
        self.described = described.contiguous(memory_format=torch.channels_last)

    def maps(self, images: torch.Tensor) -> DenseMaps:
        count = len(images)
        return DenseMaps((640, 480), self.cells[:count], descriptor_map=self.described[:count])


def make_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEG files with as much detail as photographs have: of 640x480 pixels about 130 kB."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3)).astype(np.uint8)
        image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        noise = rng.integers(-6, 7, image.shape)
        detailed = (image + noise).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), detailed)


def new_store(
    teacher: Network, names: list[str], path: Path, settings: ExportSettings
) -> RecordStore:
    return RecordStore.create(path, make_schema(teacher, settings), names, settings.format)


def fill(
    teacher: Network,
    folder: Path,
    store: RecordStore,
    settings: ExportSettings,
    numbers: list[int],
) -> None:
    fill_shards(teacher, folder, store, settings, numbers, lambda count: None)


def forward(teacher: Network, images: list[torch.Tensor]) -> None:
    with torch.inference_mode():
        for batch in images:
            teacher.run(batch)
    if teacher.device.type == "cuda":
        torch.cuda.synchronize()


def decoded(
    teacher: Network, folder: Path, names: list[str], settings: ExportSettings
) -> list[torch.Tensor]:
    """Batches of (B, channels, H, W) in [0, 1]."""
    pixels = [
        load_photograph(folder / name, settings.size, channels=teacher.channels) for name in names
    ]
    return list(to_images(torch.from_numpy(np.stack(pixels))).split(settings.batch_size))


def measure_speeds(
    teacher: Network, folder: Path, names: list[str], settings: ExportSettings, rounds: int
) -> dict[str, float]:
    """Photographs per second of the forward pass and of the export, and the ratios of both."""
    batches = decoded(teacher, folder, names, settings)
    per_shard = -(-settings.shard_size // settings.batch_size)
    forward(teacher, batches[:2])
    spent = {work: np.zeros(2) for work in ("forward", "export")}  # wall clock, processor
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as temporary:
            store = new_store(teacher, names, Path(temporary) / "store", settings)
            for number in range(store.num_shards):
                own = batches[number * per_shard : (number + 1) * per_shard]
                turns = [
                    ("forward", partial(forward, teacher, own)),
                    ("export", partial(fill, teacher, folder, store, settings, [number])),
                ]
                for name, work in turns if number % 2 else reversed(turns):
                    before = np.array([time.perf_counter(), time.process_time()])
                    work()
                    spent[name] += [time.perf_counter(), time.process_time()] - before
    ratios = spent["forward"] / spent["export"]
    return {
        "forward_images_per_s": rounds * len(names) / spent["forward"][0],
        "export_images_per_s": rounds * len(names) / spent["export"][0],
        "ratio": ratios[0],
        "ratio_of_processor_time": ratios[1],
    }


def measure_ceiling(folder: Path, settings: ExportSettings, rounds: int) -> dict[str, float]:
    """Photographs per second of processor time, and by the clock, of a teacher without work."""
    teacher, names, best = ConstantTeacher(), list_images(folder), np.full(2, np.inf)
    settings = override(settings, model="constant", fields=list(teacher.usual_fields))
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as temporary:
            store = new_store(teacher, names, Path(temporary) / "store", settings)
            before = np.array([time.perf_counter(), time.process_time()])
            fill(teacher, folder, store, settings, store.pending_shards())
            spent = [time.perf_counter(), time.process_time()] - before
            best = np.minimum(best, spent)
    return {
        "ceiling_images_per_s": len(names) / best[0],
        "ceiling_images_per_processor_s": len(names) / best[1],
    }


def measure_steps(folder: Path, settings: ExportSettings) -> dict[str, float]:
    """Milliseconds of processor time that a photograph takes beside the network, by step."""
    teacher, (name, *_) = ConstantTeacher(), list_images(folder)
    settings = override(settings, model="constant", fields=list(teacher.usual_fields))
    count = settings.batch_size
    pixels = torch.zeros(count, *settings.size[::-1], dtype=torch.uint8)
    arrays = {"score_map": teacher.cells[:count], "descriptor_map": teacher.described[:count]}
    names = [f"{row}.jpg" for row in range(settings.shard_size)]
    with tempfile.TemporaryDirectory() as temporary:
        store = new_store(teacher, names, Path(temporary) / "store", settings)
        fields = store.schema.fields
        stored = quantize(fields, arrays)
        shard = {
            field: np.resize(values.numpy(), (len(names), *values.shape[1:]))
            for field, values in stored.items()
        }
        steps = {
            "decode": (1, partial(load_photograph, folder / name, settings.size, channels=1)),
            "to_images": (count, partial(to_images, pixels)),
            "quantize": (count, partial(quantize, fields, arrays, stored)),
            "write": (len(names), partial(store.write_shard, 0, shard)),
        }
        return {step: best_of(work) / number for step, (number, work) in steps.items()}


def best_of(work: Callable[[], object], times: int = 20) -> float:
    """Milliseconds of processor time."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent) * 1e3


def measure_peak(arguments: list[str], folder: Path, count: int) -> float:
    """Megabytes at most resident in a process that exports so many photographs."""
    command = [sys.executable, __file__, *arguments, "--images", str(folder)]
    command += ["--photographs", str(count), "--only-export"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_rss() -> float:
    """This process's own peak; getrusage would count that of the process it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


@click.command(context_settings={"show_default": True})
@click.option("--model", default="superpoint")
@click.option("--weights", help="Of the teacher, if kept elsewhere.")
@click.option("--images", "folder", type=click.Path(path_type=Path), help="Photographs.")
@click.option("--photographs", "count", default=48, help="Of a round.")
@click.option("--rounds", default=3)
@click.option("--device", default="auto")
@click.option("--precision", default="auto")
@click.option("--quantisation", default="int8")
@click.option("--format", default="zarr")
@click.option("--only-export", is_flag=True, hidden=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
def main(
    model: str,
    weights: str | None,
    folder: Path | None,
    count: int,
    rounds: int,
    only_export: bool,
    output: Path | None,
    **flags: str,
) -> None:
    """Measure; takes some minutes on a processor."""
    keep_memory()  # as the commands do
    settings = override(load_settings().export, model=model, shard_size=SHARD, **flags)
    device = choose_device(settings.device)
    settings = override(settings, precision=choose_precision(settings.precision, device))
    teacher = load(model, device=device, precision=settings.precision, weights=weights)
    settings = override(settings, fields=settings.fields or list(teacher.usual_fields))
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary) / "photographs"
            make_photographs(folder, 4 * count, (1024, 768))
        names = list_images(folder)
        if only_export:
            store = new_store(teacher, names[:count], Path(temporary) / "store", settings)
            fill(teacher, folder, store, settings, store.pending_shards())
            click.echo(peak_rss())
            return
        small = Path(temporary) / "small"
        make_photographs(small, 96, (640, 480))
        results = measure_ceiling(small, settings, rounds)
        steps = measure_steps(small, settings)
        results |= measure_speeds(teacher, folder, names[:count], settings, rounds)
        arguments = ["--model", model, *(["--weights", weights] if weights else [])]
        arguments += [part for key, value in flags.items() for part in (f"--{key}", value)]
        peaks = {n: measure_peak(arguments, folder, n) for n in (count, 4 * count)}
    results |= {"peak_rss_mb_over": peaks, "steps_ms": steps}
    told = ", ".join(f"{step} {spent:.2f}" for step, spent in steps.items())
    click.echo(f"ms of processor time per photograph: {told}")
    click.echo(
        "a teacher that takes no time: {ceiling_images_per_processor_s:.0f} photographs per second "
        "of processor time, {ceiling_images_per_s:.0f} by the clock\n"
        f"{model}, {settings.precision}, {settings.quantisation}: "
        "forward {forward_images_per_s:.2f}/s, export {export_images_per_s:.2f}/s, {ratio:.1%}; "
        "of processor time {ratio_of_processor_time:.1%}\npeak memory ".format(**results)
        + ", ".join(f"{peak:.0f} MB over {n}" for n, peak in peaks.items())
    )
    if output is not None:
        output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
