import numpy as np
import pytest

from hfnet_distill.evaluation.matching import (
    cosine_distances,
    dot_distances,
    double_softmax_distances,
    euclidean_distances,
    match_nearest,
)

DISTANCES = {
    "dot": dot_distances,
    "cosine": cosine_distances,
    "l2": euclidean_distances,
    "double_softmax_t0.1": lambda d0, d1: double_softmax_distances(d0, d1, temperature=0.1),
}
RUNS = {
    "mnn": ("dot", {}),
    "ratio_0.6": ("cosine", {"max_ratio": 0.6}),
    "ratio_0.9": ("cosine", {"max_ratio": 0.9}),
    "double_softmax_t0.1_0.9": ("double_softmax_t0.1", {"max_distance": 0.9}),
    "double_softmax_t0.1_0.6": ("double_softmax_t0.1", {"max_distance": 0.6}),
    "l2_mnn": ("l2", {}),
    "dot_max_distance_0.2": ("dot", {"max_distance": 0.2}),
    "nn_no_cross_check": ("dot", {"mutual": False}),
}


def check(recorded, features):
    descriptors = [recorded[f"{features}/desc_{i}"].astype(np.float32) for i in (0, 1)]
    distances = {name: function(*descriptors) for name, function in DISTANCES.items()}
    for name, ours in distances.items():
        theirs = recorded[f"{features}/dist_{name}_sub8"]
        np.testing.assert_allclose(ours[::8, ::8], theirs, atol=1e-5)
    for run, (name, settings) in RUNS.items():
        matches, lengths = match_nearest(distances[name], **settings)
        np.testing.assert_array_equal(matches, recorded[f"{features}/{run}/matches"])
        if not run.startswith("ratio"):  # SiLK returns infinities there
            theirs = recorded[f"{features}/{run}/returned_distances"]
            np.testing.assert_allclose(lengths, theirs, atol=1e-5)


def test_excerpt(excerpt):
    check(excerpt("silk_matching"), "superpoint")


@pytest.mark.parametrize("features", ["silk", "superpoint"])
def test_full_reference(golden, features):
    check(golden("silk_matching"), features)


def test_by_hand():
    distances = np.array([[0.1, 0.5, 0.9], [0.2, 0.6, 0.7], [0.8, 0.3, 0.4]])
    matches, lengths = match_nearest(distances)
    assert matches.tolist() == [[0, 0], [2, 1]]  # row 1 wants column 0, which prefers row 0
    assert lengths.tolist() == [0.1, 0.3]
    assert match_nearest(distances, mutual=False)[0].tolist() == [[0, 0], [1, 0], [2, 1]]
    assert match_nearest(distances, max_ratio=0.7)[0].tolist() == [[0, 0]]  # 0.3 / 0.4 = 0.75
    assert match_nearest(distances, max_distance=0.3)[0].tolist() == [[0, 0]]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_match(shape):
    matches, lengths = match_nearest(np.zeros(shape, np.float32))
    assert matches.shape == (0, 2)
    assert lengths.shape == (0,)


def test_one_column_has_no_second():
    assert match_nearest(np.array([[0.4], [0.3]]), max_ratio=0.5)[0].tolist() == [[1, 0]]
