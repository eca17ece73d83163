"""What it saves to compute descriptors at the keypoints alone, against the whole descriptor map.

    python benchmarks/descriptors.py --model hfnet-silk

In PyTorch, from a photograph in memory to features; a global branch is left out. Both ways take
turns. The time is the processor's, so that other programs count as little as can be.
"""

import statistics
import time
from dataclasses import replace

import click
import cv2
import torch

from hfnet_distill.config import parse_size, shipped_settings
from hfnet_distill.console import say, user_errors
from hfnet_distill.data.images import to_tensor
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.deployment.photographs import photographs_of_sizes
from hfnet_distill.networks.registry import NETWORKS, checkpoint_path, load_checkpoint


def without_global_branch(model: str) -> torch.nn.Module:
    """A student ready to run, without its global branch."""
    trained = load_checkpoint(checkpoint_path(model))[0]
    local = NETWORKS.find(trained.name)(replace(trained.config, global_dim=0))
    local.start_from(trained)
    return local.for_inference()


@click.command(context_settings={"show_default": True})
@click.option("--model", "models", multiple=True, default=["hfnet-superpoint", "hfnet-silk"])
@click.option("--size", default="640x480", help="Width x height of the photograph.")
@click.option("--max-num-keypoints", "counts", multiple=True, default=[300, 1000], type=int)
@click.option("--rounds", default=20, help="Turns of each way.")
@click.option("--threads", default=1)
@user_errors
def main(models: tuple[str, ...], size: str, counts: tuple[int, ...], rounds: int, threads: int):
    """Measure; takes a minute."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    photograph = cv2.resize(photographs_of_sizes(None, 1)[2], parse_size(size))
    images = to_tensor(photograph, 1)[None]
    say("| model | keypoints | whole map ms, least and median | at keypoints | ratio |")
    say("|---|---|---|---|---|")
    for model in models:
        network = without_global_branch(model)
        for count in counts:
            choice = KeypointChoice.of(shipped_settings().predict, count)
            ways = {"whole": network.maps, "sparse": type(network).sparse_maps.__get__(network)}
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, maps in ways.items():
                    network.sparse_maps = maps
                    start = time.process_time()
                    network.features(images, choice)
                    times[way].append(1000 * (time.process_time() - start))
            ratio = statistics.median(
                s / w for w, s in zip(times["whole"], times["sparse"], strict=True)
            )
            cells = (f"{min(t):.1f}, {statistics.median(t):.1f}" for t in times.values())
            say(f"| {model} | {count} | {' | '.join(cells)} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
