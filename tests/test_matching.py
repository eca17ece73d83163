"""Nearest neighbors that choose each other, against SiLK's own and against the whole matrix."""

import numpy as np
import pytest

from hfnet_distill.evaluation.matching import match_both_ways, match_mutual


def check(recorded, features):
    """Of unit descriptors the smallest L2 distance is the largest dot product."""
    descriptors = [recorded[f"{features}/desc_{i}"].astype(np.float32) for i in (0, 1)]
    found = match_mutual(*descriptors)
    np.testing.assert_array_equal(found, recorded[f"{features}/l2_mnn/matches"])


def test_excerpt(excerpt):
    check(excerpt("silk_matching"), "superpoint")


@pytest.mark.parametrize("features", ["silk", "superpoint"])
def test_full_reference(golden, features):
    check(golden("silk_matching"), features)


@pytest.mark.parametrize("binary", [False, True])
def test_mutual_neighbors_blockwise(binary, monkeypatch):
    rng = np.random.default_rng(0)
    descriptors0, descriptors1 = rng.normal(size=(70, 24)), rng.normal(size=(90, 24))
    if binary:
        descriptors0, descriptors1 = descriptors0 > 0, descriptors1 > 0
    distances = ((descriptors0[:, None].astype(float) - descriptors1[None]) ** 2).sum(2)
    to1, to0 = distances.argmin(1), distances.argmin(0)
    rows = np.flatnonzero(to0[to1] == np.arange(70))
    monkeypatch.setattr("hfnet_distill.evaluation.matching.BLOCK", 16)
    found = match_mutual(descriptors0, descriptors1)
    np.testing.assert_array_equal(found, np.stack([rows, to1[rows]], axis=1))
    with pytest.raises(ValueError, match="cannot match"):
        match_mutual(descriptors0, descriptors1[:, :8])


@pytest.mark.parametrize(("num0", "num1"), [(0, 3), (3, 0)])
def test_nothing_to_match(num0, num1):
    assert match_mutual(np.zeros((num0, 4)), np.zeros((num1, 4))).shape == (0, 2)


def test_equal_descriptors_match_the_first_with_ratio_one():
    descriptors = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    twins = np.repeat(descriptors / np.linalg.norm(descriptors), 37, axis=0)
    (indices, ratios), _ = match_both_ways(twins[:5], twins)
    assert indices.tolist() == [0] * 5
    assert ratios.tolist() == [1] * 5


def test_a_single_candidate_has_no_ratio():
    (indices, ratios), _ = match_both_ways(np.eye(3, dtype=np.float32), np.ones((1, 3), np.float32))
    assert indices.tolist() == [0, 0, 0]
    assert ratios.tolist() == [1, 1, 1]


def test_binary_descriptors_use_hamming_distance():
    rows0 = np.array([[1, 1, 1, 1, 0, 0]], bool)
    rows1 = np.array([[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 0]], bool)
    (indices, ratios), _ = match_both_ways(rows0, rows1)
    assert indices.tolist() == [1]
    assert ratios == pytest.approx([2 / 3])


@pytest.mark.parametrize(
    ("rows0", "rows1"),
    [
        (np.ones((2, 4), np.float32), np.ones((2, 5), np.float32)),
        (np.ones((2, 4), np.float32), np.ones((2, 4), bool)),
    ],
)
def test_unlike_descriptors_are_refused(rows0, rows1):
    with pytest.raises(ValueError, match="extract both views alike"):
        match_both_ways(rows0, rows1)
