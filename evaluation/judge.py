"""From models and a dataset to results: extract once per image, compare once per pair."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..data.features import Features
from .datasets.base import HomographyDataset, HomographyPair
from .extractors import Extractor
from .figures import Drawing, draw_keypoints, draw_matches
from .homography import visible_offsets
from .metrics import THRESHOLD, score_scenes
from .protocols import Protocol
from .statistics import intervals
from .views import View, load_view, scale_homography

__all__ = ["Judged", "draw_pairs", "judge", "summarize_splits"]


@dataclass(frozen=True)
class Judged:
    """One model's pairs with what its protocol found."""

    dataset: HomographyDataset
    protocol: Protocol
    pairs: list[tuple[HomographyPair, Any]]
    mean_keypoints: float

    def splits(self) -> dict[str, list[tuple[str, Any]]]:
        """split -> (sequence, what was found of a pair); of ``all`` also its two parts."""
        found = {
            name: [(p.sequence, s) for p, s in self.pairs if p.sequence in sequences]
            for name, sequences in self.dataset.splits.items()
        }
        return {name: pairs for name, pairs in found.items() if pairs}


def judge(
    dataset: HomographyDataset,
    extractor: Extractor,
    protocol: Protocol,
    *,
    longest: int,
    workers: int,
    advance: Callable[[], None],
) -> Judged:
    """Run one model over a dataset, a few sequences in memory at a time.

    Args:
        longest: pixels of the longest side that views are resized to, 0 leaves them; a protocol's
            ``shorter_side`` rules over it.
        workers: processes with this one, which extracts while the others compare.
        advance: called after each image.
    """
    counts = []

    def scenes() -> Iterator[list[tuple[Features, Features, np.ndarray]]]:
        for sequence in dataset.sequences:
            pairs = [pair for pair in dataset.pairs if pair.sequence == sequence]
            seen: dict[str, tuple[View, Features]] = {}
            for name in dict.fromkeys(n for pair in pairs for n in (pair.name0, pair.name1)):
                seen[name] = _extract(dataset, name, extractor, protocol, longest)
                counts.append(len(seen[name][1].keypoints))
                advance()
            yield [_arguments(pair, seen) for pair in pairs]

    scores = chain.from_iterable(score_scenes(scenes(), workers, protocol.score))
    judged = list(zip(dataset.pairs, scores, strict=True))
    return Judged(dataset, protocol, judged, float(np.mean(counts)))


def _extract(
    dataset: HomographyDataset, name: str, extractor: Extractor, protocol: Protocol, longest: int
) -> tuple[View, Features]:
    view = load_view(
        dataset.images[name],
        longest=longest,
        shorter=protocol.shorter_side,
        channels=extractor.channels,
    )
    return view, extractor.extract(view, name)


def _arguments(pair: HomographyPair, seen: dict) -> tuple[Features, Features, np.ndarray]:
    (view0, features0), (view1, features1) = seen[pair.name0], seen[pair.name1]
    return features0, features1, scale_homography(pair.H_0to1, view0, view1)


def summarize_splits(model: str, judged: Judged, num_keypoints: int) -> list[dict]:
    """The model's results, one for each split that has pairs."""
    return [
        {
            "model": model,
            "split": name,
            "num_keypoints": num_keypoints,
            "mean_keypoints": judged.mean_keypoints,
            **judged.protocol.summarize([scores for _, scores in found]),
            "intervals": intervals(judged.protocol.statistics(found)),
        }
        for name, found in judged.splits().items()
    ]


def choose_pairs(judged: Judged, count: int) -> dict[str, str]:
    """The pairs worth a look, by the share of what is drawn that is right.

    Returns:
        a pair's second image -> "best" for half of them, "worst" for the other half, no two of
        one sequence in a half; the first is "median".
    """
    shares = {
        pair.name1: (pair.sequence, _share_right(judged.protocol, scores))
        for pair, scores in judged.pairs
    }
    ascending = sorted(shares, key=lambda name: shares[name][1])
    chosen = {ascending[len(ascending) // 2]: "median"}
    for kind, order, wanted in (
        ("best", ascending[::-1], (count + 1) // 2),
        ("worst", ascending, count // 2),
    ):
        sequences = set()
        for name in order:
            if len(sequences) < wanted and name not in chosen and shares[name][0] not in sequences:
                chosen[name] = kind
                sequences.add(shares[name][0])
    return chosen


def _share_right(protocol: Protocol, scores: Any) -> float:
    right = protocol.picture(scores).right
    return float(right.mean()) if len(right) else 0.0


def draw_pairs(
    dataset: HomographyDataset,
    judged: Mapping[str, Judged],
    extractors: Mapping[str, Extractor],
    *,
    longest: int,
    count: int,
    advance: Callable[[], None],
) -> list[Drawing]:
    """Pictures of ``count`` pairs, the best and the worst of the first model, for every model.

    The pair between them shows the keypoints of the first two models. Features are extracted anew:
    those of a whole dataset would fill the memory.

    Args:
        judged, extractors: model -> what it gave, and what gives it.
        advance: called after each pair of each model.
    """
    first = next(iter(judged))
    chosen = choose_pairs(judged[first], count) if count else {}
    pairs = {pair.name1: pair for pair in dataset.pairs}
    drawings, panels = [], []
    for name, kind in chosen.items():
        pair = pairs[name]
        title = f"{pair.name0} – {Path(pair.name1).name}, among the {kind} of {first}"
        for number, (model, found) in enumerate(judged.items()):
            if kind == "median" and number > 1:
                continue
            seen = {
                n: _extract(dataset, n, extractors[model], found.protocol, longest)
                for n in (pair.name0, pair.name1)
            }
            views, features = zip(*seen.values(), strict=True)
            if kind == "median":
                panels.append((model, views[0], *_arguments(pair, seen)))
            else:
                scores = next(s for p, s in found.pairs if p is pair)
                picture = found.protocol.picture(scores)
                points = [f.keypoints for f in features]
                image = draw_matches(*map(_gray, views), *points, picture.matches, picture.right)
                drawings.append(Drawing(title, model, picture.caption, image))
            advance()
    return [*_draw_panels(panels), *drawings]


def _draw_panels(panels: list[tuple]) -> list[Drawing]:
    """The keypoints of one image as each model finds them, repeated ones in green."""
    if not panels:
        return []
    images, keypoints, repeated, captions = [], [], [], []
    for model, view, features0, features1, H_0to1 in panels:
        offsets, visible = visible_offsets(features0, features1, H_0to1)
        found_again = np.zeros(len(visible), bool)
        found_again[visible] = offsets <= THRESHOLD
        images.append(_gray(view))
        keypoints.append(features0.keypoints)
        repeated.append(found_again)
        captions.append(
            f"{model}: {len(visible)} keypoints, {found_again.sum()} of {visible.sum()} visible "
            "ones found again in another view"
        )
    models = " beside ".join(panel[0] for panel in panels)
    image = draw_keypoints(images, keypoints, repeated)
    return [Drawing(f"Keypoints: {models}", "", "; ".join(captions), image)]


def _gray(view: View) -> np.ndarray:
    return view.image if view.image.ndim == 2 else view.image.mean(2).astype(np.uint8)
