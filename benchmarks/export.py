"""A whole export against the teacher's forward pass alone, and the memory an export takes.

    python benchmarks/export.py --json export.json

The forward pass gets photographs that are decoded and in memory; the export decodes files,
computes, converts and writes a store. Both take turns in one process; what counts is the median of
the rounds. Peak memory is that of processes of their own, over so many photographs and over four
times as many. Without --images the photographs are made up.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from hfnet_distill.config import ExportSettings, load_settings, override
from hfnet_distill.data.images import fit_image, list_images, read_image
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.device import choose_device, choose_precision
from hfnet_distill.networks.base import Network
from hfnet_distill.networks.registry import load
from hfnet_distill.teacher_export.export import fill_shards, make_schema


def make_photographs(folder: Path, count: int) -> None:
    """JPEG files of 1024x768 pixels with as much detail as photographs have."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 255, (96, 128, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (1024, 768), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), image)


def export(
    teacher: Network, folder: Path, names: list[str], path: Path, settings: ExportSettings
) -> None:
    store = RecordStore.create(path, make_schema(teacher, settings), names, settings.format)
    fill_shards(teacher, folder, store, settings, store.pending_shards(), lambda count: None)
    store.finish()


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
    images = [
        fit_image(read_image(folder / name, channels=teacher.channels), settings.size)
        for name in names
    ]
    stacked = torch.from_numpy(np.stack(images)).float().div_(255)
    stacked = stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)
    return list(stacked.split(settings.batch_size))


def measure_speeds(
    teacher: Network, folder: Path, names: list[str], settings: ExportSettings, rounds: int
) -> tuple[float, float]:
    """Photographs per second: of the forward pass, of the export."""
    batches = decoded(teacher, folder, names, settings)
    forward(teacher, batches[:2])
    speeds = {forward: [], export: []}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "store"
        for _ in range(rounds):
            for work, arguments in (
                (forward, (batches,)),
                (export, (folder, names, path, settings)),
            ):
                start = time.perf_counter()
                work(teacher, *arguments)
                speeds[work].append(len(names) / (time.perf_counter() - start))
            RecordStore.remove(path)
    return statistics.median(speeds[forward]), statistics.median(speeds[export])


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
@click.option("--quantisation", default="none")
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
    settings = override(load_settings().export, model=model, **flags)
    device = choose_device(settings.device)
    settings = override(settings, precision=choose_precision(settings.precision, device))
    teacher = load(model, device=device, precision=settings.precision, weights=weights)
    settings = override(settings, fields=settings.fields or list(teacher.usual_fields))
    temporary = Path(tempfile.mkdtemp())
    try:
        if folder is None:
            folder = temporary / "photographs"
            folder.mkdir()
            make_photographs(folder, 4 * count)
        names = list_images(folder)
        if only_export:
            export(teacher, folder, names[:count], temporary / "store", settings)
            click.echo(peak_rss())
            return
        speeds = measure_speeds(teacher, folder, names[:count], settings, rounds)
        arguments = ["--model", model, *(["--weights", weights] if weights else [])]
        arguments += [part for key, value in flags.items() for part in (f"--{key}", value)]
        peaks = {n: measure_peak(arguments, folder, n) for n in (count, 4 * count)}
    finally:
        shutil.rmtree(temporary)
    click.echo(
        f"{model}, {settings.precision}, {settings.quantisation}: forward {speeds[0]:.2f}/s, "
        f"export {speeds[1]:.2f}/s, {speeds[1] / speeds[0]:.0%}; peak memory "
        + ", ".join(f"{peak:.0f} MB over {n}" for n, peak in peaks.items())
    )
    if output is not None:
        results = {
            "forward_images_per_s": speeds[0],
            "export_images_per_s": speeds[1],
            "peak_rss_mb": peaks[4 * count],
            "peak_rss_mb_over": peaks,
        }
        output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
