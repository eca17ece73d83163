import numpy as np
import pytest

from hfnet_distill.data.features import Features
from hfnet_distill.evaluation.matching import NEAREST
from hfnet_distill.evaluation.tasks.tracks import Tracks, follow_pair


def features(points, kinds) -> Features:
    points = np.array(points, np.float32).reshape(-1, 2)
    descriptors = np.eye(8, dtype=np.float32)[kinds]
    return Features((64, 48), points, np.ones(len(points), np.float32), descriptors)


def test_tracks_and_bias():
    first = features([(10, 10), (20, 20), (30, 30), (40, 40)], [0, 1, 2, 3])
    views = [
        features([(11, 10), (20, 20), (50, 40)], [0, 1, 2]),  # the third is 22 px off
        features([(10, 10), (22, 20)], [0, 1]),
    ]
    pairs = [follow_pair(first, view, np.eye(3), NEAREST) for view in views]
    assert pairs[0].correct.tolist() == [True, True, False]
    numbers = Tracks.pair_statistics([0, 0], pairs)
    values = {name: statistic(np.ones(1)) for name, statistic in numbers.items()}
    assert values == pytest.approx({"track_length": 3, "complete": 1, "bias": (0.5 + 1) / 2})
    # The first pair alone: two of four keypoints are found in its two views.
    alone = Tracks.pair_statistics([0], pairs[:1])
    assert alone["track_length"](np.ones(1)) == 2


def test_nothing_to_follow():
    none = features([], [])
    pair = follow_pair(none, none, np.eye(3), NEAREST)
    values = Tracks.pair_statistics([0], [pair])
    assert all(np.isnan(statistic(np.ones(1))) for statistic in values.values())
