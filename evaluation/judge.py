"""From models and a dataset to results: extract once per image, compare once per pair."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.records import Features
from evaluation.datasets import SPLITS, HPatches, Pair, View, load_view, scale_homography
from evaluation.extractors import Extractor
from evaluation.protocols import Protocol
from evaluation.report import Drawing, draw_matches

__all__ = ["Judged", "choose_pairs", "draw_pairs", "judge", "summarize_splits"]


@dataclass(frozen=True)
class Judged:
    """One model's pairs with what its protocol found, and what the pictures of some need."""

    protocol: Protocol
    pairs: list[tuple[Pair, Any]]
    mean_keypoints: float
    pictured: dict[str, tuple[View, View, Features, Features]]


def judge(
    dataset: HPatches,
    extractor: Extractor,
    protocol: Protocol,
    *,
    longest: int,
    pictured: set[str],
    advance: Callable[[], None],
) -> Judged:
    """Run one model over a dataset, one sequence in memory at a time.

    Args:
        longest: pixels of the longest side that views are resized to; 0 leaves them.
        pictured: pairs (named by their second image) to be kept for pictures.
        advance: called after each image.
    """
    results, kept, counts = [], {}, []
    for sequence in dataset.sequences:
        pairs = [pair for pair in dataset.pairs if pair.sequence == sequence]
        views: dict[str, View] = {}
        features: dict[str, Features] = {}
        for name in dict.fromkeys(n for pair in pairs for n in (pair.name0, pair.name1)):
            views[name] = load_view(
                dataset.images[name], longest=longest, channels=extractor.channels
            )
            features[name] = extractor.extract(views[name], name)
            counts.append(len(features[name].keypoints))
            advance()
        for pair in pairs:
            view0, view1 = views[pair.name0], views[pair.name1]
            found0, found1 = features[pair.name0], features[pair.name1]
            H_0to1 = scale_homography(pair.H_0to1, view0, view1)
            results.append((pair, protocol.score(found0, found1, H_0to1)))
            if pair.name1 in pictured:
                kept[pair.name1] = (view0, view1, found0, found1)
    return Judged(protocol, results, float(np.mean(counts)), kept)


def summarize_splits(model: str, judged: Judged, num_keypoints: int, split: str) -> list[dict]:
    """The model's results, one for each split that has pairs."""
    wanted = SPLITS if split == "all" else [split]
    results = []
    for name in wanted:
        pairs = [s for p, s in judged.pairs if p.sequence.startswith(SPLITS[name])]
        if pairs:
            results.append(
                {
                    "model": model,
                    "split": name,
                    "num_keypoints": num_keypoints,
                    "mean_keypoints": judged.mean_keypoints,
                    **judged.protocol.summarize(pairs),
                }
            )
    return results


def choose_pairs(dataset: HPatches, count: int) -> list[str]:
    """Pairs to picture, named by their second image: spread evenly over the sequences."""
    sequences = dataset.sequences
    picks = np.linspace(0, len(sequences) - 1, min(count, len(sequences))).round().astype(int)
    chosen = []
    for number, pick in enumerate(picks):
        pairs = [pair for pair in dataset.pairs if pair.sequence == sequences[pick]]
        chosen.append(pairs[number % len(pairs)].name1)
    return chosen


def draw_pairs(model: str, judged: Judged) -> list[Drawing]:
    """The pictures of a model's kept pairs."""
    scores = {pair.name1: (pair, scores) for pair, scores in judged.pairs}
    drawings = []
    for name, (view0, view1, features0, features1) in judged.pictured.items():
        pair, found = scores[name]
        matches, right, caption = judged.protocol.picture(found)
        points = features0.keypoints, features1.keypoints
        image = draw_matches(_gray(view0), _gray(view1), *points, matches, right)
        drawings.append(Drawing(f"{pair.name0} – {pair.name1}", model, caption, image))
    return drawings


def _gray(view: View) -> np.ndarray:
    return view.image if view.image.ndim == 2 else view.image.mean(2).astype(np.uint8)
