"""Time and memory of SiLK's loss and its gradient, blockwise and with the whole matrix at once.

    python benchmarks/silk_loss.py --json silk_loss.json

Each measurement is a process of its own, so that its peak memory is its own; the seconds are the
best of three runs. The whole matrix of 128x128 positions takes about 5 GB.
"""

import json
import multiprocessing
import resource
import time
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from hfnet_distill.teacher_export.silk_loss import pair_losses

TEMPERATURE = 0.05


def whole_matrix(
    descriptors0: Tensor, descriptors1: Tensor, logits0: Tensor, logits1: Tensor, pairs: Tensor
) -> Tensor:
    """The sum of both losses of one pair, as one would write it down."""
    similarities = descriptors0 @ descriptors1.T / TEMPERATURE
    visible0 = (pairs >= 0).nonzero()[:, 0]
    visible1 = pairs[visible0]
    log_p0, log_p1 = similarities.log_softmax(1), similarities.log_softmax(0)
    descriptor = -(log_p0[visible0, visible1] + log_p1[visible0, visible1]).mean()
    to1, to0 = similarities.argmax(1), similarities.argmax(0)
    mutual = to0[to1] == torch.arange(len(to1))
    correct = (mutual[visible0] & (to1[visible0] == visible1)).float()
    keypoint = sum(
        F.binary_cross_entropy_with_logits(logits[visible], correct)
        for logits, visible in ((logits0, visible0), (logits1, visible1))
    )
    return descriptor + keypoint / 2


def blockwise(*inputs: Tensor, bfloat16: bool = False) -> Tensor:
    """The same by ``pair_losses``."""
    found = pair_losses(*inputs, temperature=TEMPERATURE, bfloat16=bfloat16)
    return found.descriptor + found.keypoint


WAYS = {
    "whole_matrix": whole_matrix,
    "blockwise": blockwise,
    "blockwise_bfloat16": lambda *inputs: blockwise(*inputs, bfloat16=True),
}


def measure(way: str, side: int) -> dict:
    """Seconds, loss and peak memory beyond the inputs of one way at side x side positions."""
    positions = side * side
    generator = torch.Generator().manual_seed(0)
    descriptors0 = F.normalize(torch.randn(positions, 128, generator=generator), dim=1)
    noise = 0.08 * torch.randn(positions, 128, generator=generator)
    inputs = [
        descriptors0,
        F.normalize(descriptors0 + noise, dim=1),
        *torch.randn(2, positions, generator=generator),
    ]
    pairs = torch.arange(positions)
    pairs[::3] = -1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        variables = [value.clone().requires_grad_() for value in inputs]
        start = time.perf_counter()
        loss = WAYS[way](*variables, pairs)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"s": min(seconds), "peak_mb": (after - before) / 1024, "loss": loss.item()}


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Where to write the numbers.")
@click.option("--sides", default="32,64,128", show_default=True, help="Of the maps compared.")
def main(path: Path | None, sides: str) -> None:
    """Measure every way at every size, each in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    results = {}
    print("| positions | way | s | peak MB | loss |\n|---|---|---:|---:|---:|")
    for side in map(int, sides.split(",")):
        for way in WAYS:
            with spawn.Pool(1) as pool:
                found = pool.apply(measure, (way, side))
            results.setdefault(way, {})[f"{side}x{side}"] = found
            numbers = f"{found['s']:.3f} | {found['peak_mb']:.0f} | {found['loss']:.4f}"
            print(f"| {side}x{side} | {way} | {numbers} |", flush=True)
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
