"""What the student's local part and SuperPoint cost: multiply-adds and time of one image.

    python benchmarks/networks.py --json networks.json

Each network runs as ``evaluate`` runs it, on one image of noise; they take turns of several runs,
as for a camera, and what counts is the median. With ``--turn 1`` each run begins with what the
other network left in the caches. The student is the packaged one without its place descriptor.
"""

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hfnet_distill.config import parse_size
from hfnet_distill.console import user_errors
from hfnet_distill.device import autocast, choose_device
from hfnet_distill.networks.hfnet import HFNet
from hfnet_distill.networks.registry import checkpoint_path, load_checkpoint
from hfnet_distill.networks.superpoint import SuperPoint


def count_multiply_adds(network: nn.Module, image: torch.Tensor) -> int:
    """Of the convolutions and products of matrices; two operations each."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image)
    return counter.get_total_flops() // 2


def time_once(network: nn.Module, image: torch.Tensor) -> float:
    """Seconds until the maps are there."""
    start = time.perf_counter()
    score_logits, *_ = network(image)
    score_logits[0, 0, 0, 0].item()  # waits for the device
    return time.perf_counter() - start


@click.command(context_settings={"show_default": True})
@click.option("--size", default="640x480", help="Width x height of the image.")
@click.option("--rounds", default=5, help="Turns of each network.")
@click.option("--turn", default=5, help="Runs of a turn; before several, one not counted.")
@click.option("--threads", default=2)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--device", default="cpu")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
@user_errors
def main(
    size: str,
    rounds: int,
    turn: int,
    threads: int,
    precision: str,
    device: str,
    output: Path | None,
) -> None:
    """Count and measure; takes half a minute."""
    width, height = parse_size(size)
    torch.set_num_threads(threads)
    where = choose_device(device)
    config = load_checkpoint(checkpoint_path("default"))[0].config
    student = HFNet(replace(config, global_dim=0)).eval()
    plain = {"student": student, "superpoint": SuperPoint().eval()}
    image = torch.rand(1, 1, height, width)
    costs = {name: count_multiply_adds(network, image) for name, network in plain.items()}
    networks = {**plain, "student": student.for_inference()}
    for network in networks.values():
        network.to(where, memory_format=torch.channels_last)
    seconds = {name: [] for name in networks}
    with torch.inference_mode(), autocast(where, precision):
        shown = image.to(where, memory_format=torch.channels_last)
        for _ in range(rounds):
            for name, network in networks.items():
                runs = [time_once(network, shown) for _ in range(turn + (turn > 1))]
                seconds[name] += runs[-turn:]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        click.echo(
            f"{name}: {costs[name] / 1e9:.2f} G multiply-adds, {median * 1e3:.1f} ms, "
            f"1 to {costs['superpoint'] / costs[name]:.1f} and "
            f"1 to {medians['superpoint'] / median:.1f} of superpoint's"
        )
    if output is not None:
        output.write_text(json.dumps({"multiply_adds": costs, "seconds": medians}, indent=2))


if __name__ == "__main__":
    main()
