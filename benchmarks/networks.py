"""What features cost a robot: the network alone, and the whole way from a photograph to 1,000.

    python benchmarks/networks.py --json networks.json
    python benchmarks/networks.py --model default --model xfeat:xfeat.pt --model aliked:n16

The photograph lies in memory as uint8. Networks run in ONNX Runtime where they can be exported, the
whole way of students and SuperPoint too; else in PyTorch. Methods take turns, one run each, so that
whatever else the machine does meets all of them; what counts is the median.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hfnet_distill.config import parse_size, shipped_settings
from hfnet_distill.console import say, user_errors
from hfnet_distill.data.images import read_image, to_tensor
from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.deployment.onnx import make_graph, to_onnx
from hfnet_distill.deployment.photographs import photographs_of_sizes
from hfnet_distill.errors import DistillError
from hfnet_distill.networks.base import Network
from hfnet_distill.networks.onnx import make_session
from hfnet_distill.networks.opencv import OpenCVNetwork
from hfnet_distill.networks.registry import load

MODELS = (
    "small",
    "nano",
    "hfnet-superpoint",
    "xfeat",
    "aliked:t16",
    "aliked:n16",
    "superpoint",
    "sift",
    "orb",
)


@dataclass
class Method:
    """One way to features, ready to run.

    Attributes:
        network: runs the network alone; None for a method that is none.
        whole: runs everything; gives the number of keypoints.
        runtime: what runs network and whole.
        multiply_adds: of the network, in PyTorch's count; 0 where there is none.
    """

    name: str
    network: Callable[[], object] | None
    whole: Callable[[], int]
    runtime: str
    multiply_adds: int = 0


def make_method(name: str, photograph: np.ndarray, choice: KeypointChoice, threads: int) -> Method:
    """The method that a model's name stands for.

    Args:
        photograph: (H, W, 3) uint8 red, green, blue.
    """
    network = load(name, device="cpu")
    image = photograph
    if network.channels == 1:
        image = cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY)

    def in_torch() -> int:
        return len(network.features(to_tensor(image, network.channels)[None], choice)[0].keypoints)

    if isinstance(network, OpenCVNetwork):
        return Method(name, None, in_torch, f"OpenCV {cv2.__version__}")
    tensor = to_tensor(image, network.channels)[None]
    network.precision = "bfloat16"  # whose convolutions the counter knows, all of them
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.maps(tensor)
    network.precision = "float32"
    cost = counter.get_total_flops() // 2
    try:
        graphs = [make_graph(network, profile, choice) for profile in ("maps", "sparse")]
    except DistillError:
        return _with_a_graph_of_the_network(name, network, tensor, in_torch, threads, cost)
    maps, sparse = (make_session(to_onnx(graph, {}), threads=threads) for graph in graphs)
    feeds = [graph.feed(image) for graph in graphs]
    return Method(
        name,
        lambda: maps.run(None, feeds[0]),
        lambda: len(sparse.run(["keypoints"], feeds[1])[0]),
        "ONNX Runtime",
        cost,
    )


def _with_a_graph_of_the_network(
    name: str, network: Network, tensor: torch.Tensor, in_torch: Callable, threads: int, cost: int
) -> Method:
    """A network that chooses its keypoints in a way of its own: that stays in PyTorch."""
    try:
        program = torch.onnx.export(
            network, (tensor,), dynamo=True, opset_version=20, verbose=False
        )
        session = make_session(program.model_proto.SerializeToString(), threads=threads)
    except Exception as error:  # the exporter's and the runtime's have no common class
        say(f"{name} stays in PyTorch: {str(error).splitlines()[0][:80]}")
        return Method(name, lambda: network.maps(tensor), in_torch, "PyTorch", cost)
    entry = session.get_inputs()[0].name
    array = tensor.numpy()
    network.run = lambda images: tuple(
        torch.from_numpy(values) for values in session.run(None, {entry: images.numpy()})
    )
    return Method(
        name,
        lambda: session.run(None, {entry: array}),
        in_torch,
        "ONNX Runtime, choice in PyTorch",
        cost,
    )


def label(name: str) -> str:
    """A model's name without the folder of its weights."""
    kind, colon, source = name.partition(":")
    return f"{kind}{colon}{Path(source).stem}"


def time_once(run: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


@click.command(context_settings={"show_default": True})
@click.option("--model", "models", multiple=True, default=MODELS)
@click.option("--image", type=click.Path(path_type=Path), help="A photograph to run on.")
@click.option("--size", default="640x480", help="Width x height that it is resized to.")
@click.option("--max-num-keypoints", default=1000)
@click.option("--rounds", default=30, help="Turns of each method.")
@click.option("--threads", default=2)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Where numbers go.")
@user_errors
def main(
    models: tuple[str, ...],
    image: Path | None,
    size: str,
    max_num_keypoints: int,
    rounds: int,
    threads: int,
    output: Path | None,
) -> None:
    """Measure; takes a minute or two, most of it exporting."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    photograph = (
        photographs_of_sizes(None, 3)[2] if image is None else read_image(image, channels=3)
    )
    photograph = cv2.resize(photograph, parse_size(size), interpolation=cv2.INTER_AREA)
    choice = KeypointChoice.of(shipped_settings().predict, max_num_keypoints)
    methods = []
    for name in models:
        try:
            methods.append(make_method(name, photograph, choice, threads))
            methods[-1].name = label(name)
        except DistillError as error:
            say(f"{name} left out: {error}")
    times: dict[str, dict[str, list[float]]] = {}
    counts = {method.name: method.whole() for method in methods}  # also warms up
    for _ in range(rounds):
        for method in methods:
            runs = {"whole": method.whole} | ({"network": method.network} if method.network else {})
            for kind, run in runs.items():
                times.setdefault(method.name, {}).setdefault(kind, []).append(time_once(run))
    report = {}
    peer = next((times[name]["network"] for name in times if name.startswith("xfeat")), None)
    say("| method | network ms | whole ms | to XFeat's network | whole to it | G | runs in |")
    say("|---|---|---|---|---|---|---|")
    for method in methods:
        own = times[method.name]
        numbers = {f"{kind}_ms": statistics.median(values) for kind, values in own.items()}
        if peer is not None:
            numbers |= {f"{kind}_to_xfeat": _ratio(values, peer) for kind, values in own.items()}
        numbers["keypoints"] = counts[method.name]
        numbers["multiply_adds"], numbers["runtime"] = method.multiply_adds, method.runtime
        report[method.name] = numbers
        cells = (
            _cell(numbers, key, digits)
            for key, digits in (
                ("network_ms", 1),
                ("whole_ms", 1),
                ("network_to_xfeat", 2),
                ("whole_to_xfeat", 2),
            )
        )
        cost = f"{method.multiply_adds / 1e9:.2f}" if method.multiply_adds else "-"
        say(f"| {method.name} | {' | '.join(cells)} | {cost} | {method.runtime} |")
    if output is not None:
        output.write_text(json.dumps(report, indent=2))


def _ratio(times: list[float], peers: list[float]) -> float:
    """The median over rounds: both of a round were measured under the same load."""
    return statistics.median(one / other for one, other in zip(times, peers, strict=True))


def _cell(numbers: dict, key: str, digits: int) -> str:
    return f"{numbers[key]:.{digits}f}" if key in numbers else "-"


if __name__ == "__main__":
    main()
