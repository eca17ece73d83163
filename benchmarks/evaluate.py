"""Time of HF-Net's six numbers, as one would write them down and as ``evaluate`` computes them.

    python benchmarks/evaluate.py --json evaluate.json
    python benchmarks/evaluate.py --root hpatches/ --model superpoint --model sift

The features of each image are extracted once, before any clock runs. From them come the six numbers

* by ``reference_numbers``: pair by pair with OpenCV's matcher and RANSAC, keypoint distances by
  broadcasting, each function of the protocol by itself;
* by ``evaluation.tasks.hfnet``, in one process.

Without --root, sequences are rendered from scikit-image's photographs. The two take turns after a
run that warms them up; what counts is the median of each one's seconds on the processor.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np

from hfnet_distill.config import load_settings
from hfnet_distill.data.features import Features
from hfnet_distill.data.geometry import resize_homography
from hfnet_distill.data.samples import copy_samples
from hfnet_distill.evaluation.datasets.hpatches import HPatches
from hfnet_distill.evaluation.datasets.rendered import render_sequences
from hfnet_distill.evaluation.features import NetworkFeatures, load_view
from hfnet_distill.evaluation.intervals import Statistics
from hfnet_distill.evaluation.tasks.base import score_pairs
from hfnet_distill.evaluation.tasks.hfnet import HFNet
from hfnet_distill.networks.registry import load

Pair = tuple[Features, Features, np.ndarray]
THRESHOLD = 3.0


def extract_pairs(root: Path, model: str, num_keypoints: int) -> list[Pair]:
    """The features of each pair of a dataset and its H_0to1."""
    dataset = HPatches(root)
    network = NetworkFeatures(load(model, device="cpu"), load_settings().predict, num_keypoints)
    views = {
        name: load_view(path, channels=network.channels) for name, path in dataset.images.items()
    }
    features = {name: network.extract(view, name) for name, view in views.items()}
    pairs = []
    for pair in dataset.pairs:
        view0, view1 = views[pair.name0], views[pair.name1]
        sizes = view0.file_size, view0.size, view1.file_size, view1.size
        H_0to1 = resize_homography(pair.H_0to1, *sizes)
        pairs.append((features[pair.name0], features[pair.name1], H_0to1))
    return pairs


def render_samples(folder: Path, count: int) -> Path:
    """Sequences in the HPatches layout below a folder, from scikit-image's photographs."""
    copy_samples(folder)
    photographs = (folder / "test").iterdir()
    render_sequences(photographs, folder / "sequences", seed=0, count=count)
    return folder / "sequences"


def match(descriptors0: np.ndarray, descriptors1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the nearest descriptors, and ratios of the nearest to the second nearest."""
    if descriptors0.dtype == np.bool_:
        matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
        descriptors0 = np.packbits(descriptors0, axis=1)
        descriptors1 = np.packbits(descriptors1, axis=1)
    else:
        matcher = cv2.BFMatcher(cv2.NORM_L2)
    rows, ratios = [], []
    for first, second in matcher.knnMatch(descriptors0, descriptors1, k=2):
        rows.append(first.trainIdx)
        ratios.append(1.0 if second.distance == 0 else first.distance / second.distance)
    return np.array(rows), np.array(ratios, np.float32)


def warp(
    keypoints: np.ndarray, H: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints in the other image, and which of them are inside of it."""
    homogeneous = np.concatenate([keypoints, np.ones((len(keypoints), 1))], axis=1)
    warped = homogeneous @ H.T
    warped = warped[:, :2] / warped[:, 2:]
    return warped, np.all((warped >= 0) & (warped <= np.array(size) - 1), axis=1)


def is_homography_correct(features0, features1, rows1, H_0to1) -> bool:
    cv2.setRNGSeed(0)
    estimated, _ = cv2.findHomography(
        features0.keypoints[rows1], features1.keypoints, cv2.RANSAC, THRESHOLD
    )
    if estimated is None:
        return False
    width, height = features0.image_size
    corners = np.array([[0, 0], [0, height - 1], [width - 1, height - 1], [width - 1, 0]])
    found, _ = warp(corners, estimated, features1.image_size)
    expected, _ = warp(corners, H_0to1, features1.image_size)
    return np.mean(np.linalg.norm(found - expected, axis=1)) < THRESHOLD


def correct_matches(keypoints, warped_other, rows) -> np.ndarray:
    return np.linalg.norm(keypoints[rows] - warped_other, axis=1) < THRESHOLD


def localize(warped, keypoints) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest keypoints, and which of them are mutual and small."""
    distances = np.linalg.norm(warped[:, None] - keypoints[None], axis=2)
    nearest = distances.argmin(axis=1)
    mutual = distances.argmin(axis=0)[nearest] == np.arange(len(warped))
    offsets = distances.min(axis=1)
    return offsets, mutual & (offsets <= THRESHOLD)


def average_precision(correct, ranks, num_relevant) -> float:
    correct = correct[np.argsort(ranks, kind="stable")]
    true_positives = np.cumsum(correct)
    precision = true_positives / np.arange(1, len(correct) + 1)
    recall = true_positives / num_relevant
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(precision[1:] * (recall[1:] - recall[:-1])))


def reference_numbers(pairs: list[Pair]) -> dict[str, float]:
    """The six numbers, as HF-Net's functions give them, where every view has two keypoints."""
    matching_scores, accuracies, repeatabilities, errors = [], [], [], []
    tp, ratios, num_gt, repeated, scores = [], [], 0, [], []
    for features0, features1, H_0to1 in pairs:
        keypoints0, keypoints1 = features0.keypoints, features1.keypoints
        rows0, _ = match(features0.descriptors, features1.descriptors)
        rows1, ratios1 = match(features1.descriptors, features0.descriptors)
        warped0, visible0 = warp(keypoints0, H_0to1, features1.image_size)
        warped1, visible1 = warp(keypoints1, np.linalg.inv(H_0to1), features0.image_size)

        correct0 = correct_matches(keypoints1, warped0, rows0)
        correct1 = correct_matches(keypoints0, warped1, rows1)
        score0 = (correct0 & visible0).sum() / max(visible0.sum(), 1)
        score1 = (correct1 & visible1).sum() / max(visible1.sum(), 1)
        matching_scores.append((score0 + score1) / 2)
        accuracies.append(is_homography_correct(features0, features1, rows1, H_0to1))

        offsets0, repeated0 = localize(warped0, keypoints1)
        offsets1, repeated1 = localize(warped1, keypoints0)
        tp.append(correct1[visible1])
        ratios.append(ratios1[visible1])
        num_gt += (offsets1[visible1] < THRESHOLD).sum()
        for offsets, good in ((offsets1, visible1 & repeated1), (offsets0, visible0 & repeated0)):
            if good.any():
                errors.append(offsets[good].mean())
        count = (visible0 & repeated0).sum() + (visible1 & repeated1).sum()
        repeatabilities.append(count / max(visible0.sum() + visible1.sum(), 1))
        repeated += [repeated1[visible1], repeated0[visible0]]
        scores += [features1.scores[visible1], features0.scores[visible0]]
    repeated, scores = np.concatenate(repeated)[::-1], np.concatenate(scores)[::-1]
    return {
        "matching_score": float(np.mean(matching_scores)),
        "homography_accuracy": float(np.mean(accuracies)),
        "descriptor_ap": average_precision(np.concatenate(tp), np.concatenate(ratios), num_gt),
        "localization_error": float(np.mean(errors)),
        "repeatability": float(np.mean(repeatabilities)),
        "detector_ap": average_precision(repeated, -scores, len(scores)),
    }


def our_numbers(pairs: list[Pair]) -> dict[str, float]:
    """The same by ``evaluation.tasks.hfnet``."""
    scores = list(score_pairs(HFNet.score_pair, pairs, workers=1))
    groups = range(len(scores))
    return Statistics(groups, HFNet.pair_statistics(groups, scores)).values()


def take_turns(ways: dict[str, Callable], repeats: int) -> tuple[dict, dict]:
    """What each way returned, and the median of its seconds, after a run that warms it up."""
    found = {name: way() for name, way in ways.items()}
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    return found, {name: statistics.median(values) for name, values in seconds.items()}


@click.command()
@click.option("--root", type=click.Path(path_type=Path), help="A folder in the HPatches layout.")
@click.option("--model", "models", multiple=True, default=("sift", "orb"), show_default=True)
@click.option("--num-keypoints", default=300, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Where to write the numbers.")
def main(
    root: Path | None,
    models: tuple[str, ...],
    num_keypoints: int,
    repeats: int,
    path: Path | None,
) -> None:
    """Measure every model's features and their sum."""
    results = {}
    print("| model | pairs | reference s | ours s | times | difference |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        root = root or render_samples(Path(scratch), count=16)
        for model in models:
            pairs = extract_pairs(root, model, num_keypoints)
            ways = {
                "reference_s": lambda p=pairs: reference_numbers(p),
                "ours_s": lambda p=pairs: our_numbers(p),
            }
            found, seconds = take_turns(ways, repeats)
            results[model] = {
                "pairs": len(pairs),
                **seconds,
                "max_abs_difference": max(
                    abs(found["ours_s"][name] - value)
                    for name, value in found["reference_s"].items()
                ),
                "numbers": found["ours_s"],
            }
            print(_row(model, results[model]), flush=True)
    total = {
        key: sum(result[key] for result in results.values())
        for key in ("pairs", "reference_s", "ours_s")
    }
    total["max_abs_difference"] = max(r["max_abs_difference"] for r in results.values())
    total["times_faster"] = total["reference_s"] / total["ours_s"]
    print(_row("all", total))
    if path:
        settings = {"num_keypoints": num_keypoints}
        path.write_text(json.dumps({**total, **settings, "models": results}, indent=2) + "\n")


def _row(model: str, result: dict) -> str:
    times = result["reference_s"] / result["ours_s"]
    return (
        f"| {model} | {result['pairs']} | {result['reference_s']:.3f} | "
        f"{result['ours_s']:.3f} | {times:.1f} | "
        f"{result['max_abs_difference']:.1e} |"
    )


if __name__ == "__main__":
    main()
