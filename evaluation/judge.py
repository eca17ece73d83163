"""From models and a dataset to results: extract once per image, compare once per pair."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from data.records import Features
from evaluation.datasets import SPLITS, HPatches, Pair, View, load_view, scale_homography
from evaluation.extractors import Extractor
from evaluation.metrics import score_scenes
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
    workers: int,
    pictured: set[str],
    advance: Callable[[], None],
) -> Judged:
    """Run one model over a dataset, a few sequences in memory at a time.

    Args:
        longest: pixels of the longest side that views are resized to; 0 leaves them.
        workers: processes that compare, while this one extracts; 1 for this one alone.
        pictured: pairs (named by their second image) to be kept for pictures.
        advance: called after each image.
    """
    kept, counts = {}, []

    def scenes() -> Iterator[list[tuple[Features, Features, np.ndarray]]]:
        for sequence in dataset.sequences:
            pairs = [pair for pair in dataset.pairs if pair.sequence == sequence]
            seen: dict[str, tuple[View, Features]] = {}
            for name in dict.fromkeys(n for pair in pairs for n in (pair.name0, pair.name1)):
                path = dataset.images[name]
                view = load_view(path, longest=longest, channels=extractor.channels)
                seen[name] = view, extractor.extract(view, name)
                counts.append(len(seen[name][1].keypoints))
                advance()
            scene = []
            for pair in pairs:
                (view0, features0), (view1, features1) = seen[pair.name0], seen[pair.name1]
                H_0to1 = scale_homography(pair.H_0to1, view0, view1)
                scene.append((features0, features1, H_0to1))
                if pair.name1 in pictured:
                    kept[pair.name1] = (view0, view1, features0, features1)
            yield scene

    scores = chain.from_iterable(score_scenes(scenes(), workers, protocol.score))
    judged = list(zip(dataset.pairs, scores, strict=True))
    return Judged(protocol, judged, float(np.mean(counts)), kept)


def summarize_splits(model: str, judged: Judged, num_keypoints: int, split: str) -> list[dict]:
    """The model's results, one for each split that has pairs."""
    wanted = SPLITS if split == "all" else [split]
    results = []
    for name in wanted:
        found = [(p.sequence, s) for p, s in judged.pairs if p.sequence.startswith(SPLITS[name])]
        if found:
            results.append(
                {
                    "model": model,
                    "split": name,
                    "num_keypoints": num_keypoints,
                    "mean_keypoints": judged.mean_keypoints,
                    **judged.protocol.summarize([scores for _, scores in found]),
                    "intervals": judged.protocol.intervals(found),
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
