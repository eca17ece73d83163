"""LightGlue: what it asks for, and matches of ALIKED's features with the authors' weights."""

import json
from dataclasses import replace

import cv2
import h5py
import numpy as np
import pytest
import torch

from hfnet_distill.data.features import Features, read_features
from hfnet_distill.data.geometry import warp_points
from hfnet_distill.deployment.cli import export_onnx, extract_features
from hfnet_distill.deployment.lightglue import export_lightglue
from hfnet_distill.errors import InputError, NotFoundError
from hfnet_distill.evaluation.cli import evaluate
from hfnet_distill.networks.lightglue import LightGlueMatcher
from hfnet_distill.networks.registry import load


def features_of(count: int, dim: int = 128) -> Features:
    rng = np.random.default_rng(count)
    keypoints = rng.uniform(-0.5, 99.5, (count, 2)).astype(np.float32)
    descriptors = rng.normal(size=(count, dim)).astype(np.float32)
    return Features((100, 100), keypoints, np.zeros(count, np.float32), descriptors)


@pytest.fixture(scope="module")
def random_matcher(tmp_path_factory):
    kornia = pytest.importorskip("kornia.feature", reason="kornia is not installed")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "aliked_lightglue.pth"
    torch.save(kornia.LightGlue(None, input_dim=128).state_dict(), path)
    return LightGlueMatcher(path, device="cpu", min_score=0)


@pytest.fixture(scope="module")
def official_matcher(weights):
    pytest.importorskip("kornia.feature", reason="kornia is not installed")
    path = weights / "aliked_lightglue.pth"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the folder of official weights")
    return LightGlueMatcher(path, device="cpu")


def test_each_keypoint_is_matched_once(random_matcher):
    matches, scores = random_matcher.match(features_of(30), features_of(20))
    assert matches.dtype == np.intp
    assert matches.shape == (len(scores), 2)
    assert (np.diff(matches[:, 0]) > 0).all()
    assert len(set(matches[:, 1])) == len(matches)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize(("count0", "count1"), [(0, 5), (5, 0), (0, 0)])
def test_no_keypoints_have_no_matches(random_matcher, count0, count1):
    matches, scores = random_matcher.match(features_of(count0), features_of(count1))
    assert matches.shape == (0, 2)
    assert scores.shape == (0,)


def test_finds_what_moved_where(excerpt, official_matcher):
    image = excerpt("aliked_n32")["image_u8"]
    height, width = image.shape[:2]
    H = np.array([[0.9, -0.2, 20], [0.15, 0.95, -4], [4e-4, 0, 1]])
    network = load("aliked:n16", device="cpu")
    views = image, cv2.warpPerspective(image, H, (width, height))
    features = [network.extract(view, max_num_keypoints=100, nms_radius=2) for view in views]
    matches, scores = official_matcher.match(*features)
    moved = warp_points(features[0].keypoints[matches[:, 0]], H)
    errors = np.linalg.norm(moved - features[1].keypoints[matches[:, 1]], axis=1)
    assert len(matches) > 20
    assert (errors < 2).mean() > 0.9
    assert scores.min() > 0.1


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (features_of(4, 64), r"float32 \(4, 64\)"),
        (replace(features_of(4), descriptors=None), "none"),
        (replace(features_of(4), descriptors=np.zeros((4, 128), bool)), r"bool \(4, 128\)"),
    ],
)
def test_says_what_it_cannot_match(random_matcher, features, found):
    with pytest.raises(
        InputError, match=rf"LightGlue: descriptors are {found}; expected \(N, 128\)"
    ):
        random_matcher.match(features_of(4), features)


def test_says_that_kornia_is_missing(monkeypatch):
    def not_there(module):
        raise ModuleNotFoundError(f"No module named {module}", name="kornia")

    monkeypatch.setattr("hfnet_distill.extras.import_module", not_there)
    with pytest.raises(
        InputError, match=r"kornia is not installed; pip install hfnet-distill\[lightglue\]"
    ):
        LightGlueMatcher()


def test_says_which_weights_are_missing_or_wrong(tmp_path):
    pytest.importorskip("kornia.feature", reason="kornia is not installed")
    with pytest.raises(NotFoundError, match=r"get aliked_lightglue.pth from https.*Apache-2.0"):
        LightGlueMatcher(tmp_path / "missing.pth")
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(InputError, match=r"not weights of LightGlue: tensor input_proj.weight"):
        LightGlueMatcher(tmp_path / "other.npz")


def test_matches_of_a_features_file(
    random_matcher, run_command, photographs, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "hfnet_distill.networks.lightglue.LightGlueMatcher", lambda device: random_matcher
    )
    command = ("--images", photographs, "--quiet", "--matcher", "lightglue", "--match-with", "all")
    run_command(
        extract_features,
        *command,
        *("--model", "aliked:n16", "--output", tmp_path / "aliked.h5"),
        *("--matches", tmp_path / "matches.h5", "--max-num-keypoints", 40),
    )
    with h5py.File(tmp_path / "aliked.h5") as file, h5py.File(tmp_path / "matches.h5") as out:
        features = [read_features(file, name) for name in ("0.png", "1.png")]
        matches, scores = random_matcher.match(*features)
        group = out["0.png/1.png"]
        rows = group["matches0"][()]
        np.testing.assert_array_equal(np.flatnonzero(rows >= 0), matches[:, 0])
        np.testing.assert_array_equal(rows[rows >= 0], matches[:, 1])
        np.testing.assert_allclose(group["matching_scores0"][()][rows >= 0], scores, atol=1e-3)
    output = run_command(
        extract_features,
        *(*command, "--model", "hfnet-superpoint", "--output", tmp_path / "default.h5"),
        *("--matches", tmp_path / "other.h5"),
        code=1,
    )
    assert "LightGlue: descriptors are float32" in output
    assert not (tmp_path / "other.h5").exists()


def test_matches_that_are_evaluated(
    random_matcher, run_command, photographs, tmp_path, monkeypatch
):
    numbers = []

    class Recorded:
        def match(self, *views):
            found = random_matcher.match(*views)
            numbers.append(len(found[0]))
            return found

    monkeypatch.setattr("hfnet_distill.evaluation.matching._lightglue", lambda device: Recorded())
    run_command(
        *(evaluate, "--render", photographs, "--root", tmp_path / "root"),
        *("--sequences", 2, "--quiet"),
    )
    command = ("--root", tmp_path / "root", "--model", "aliked:n16", "--device", "cpu", "--quiet")
    how = ("--output", tmp_path / "report", "--num-features", 50)
    run_command(evaluate, *command, *how, "--protocol", "matching", "--matcher", "lightglue")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["settings"]["matcher"] == "lightglue"
    assert len(numbers) == 10
    assert report["results"][0]["mean_matches"] == pytest.approx(np.mean(numbers))
    assert "LightGlue's matches; the share of pairs" in (
        tmp_path / "report" / "index.html"
    ).read_text().replace("&#39;", "'")
    output = run_command(
        evaluate, *command, *how, "--protocol", "hfnet", "--matcher", "lightglue", code=1
    )
    assert "matcher lightglue: the protocol hfnet matches in its own way; expected" in output


@pytest.mark.timeout(900)  # an export takes a minute on a busy machine
def test_opencv_matches_as_kornia_does(tmp_path, monkeypatch):
    kornia = pytest.importorskip("kornia.feature", reason="kornia is not installed")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    small = kornia.LightGlue(None, input_dim=128, n_layers=2, filter_threshold=0)
    monkeypatch.setattr("hfnet_distill.networks.lightglue._kornia_network", lambda score: small)
    torch.save(small.state_dict(), tmp_path / "a.pth")
    matcher = LightGlueMatcher(tmp_path / "a.pth", device="cpu")
    first = features_of(40)
    first = replace(first, keypoints=first.keypoints.clip(0))
    second = replace(first, image_size=(100, 80), keypoints=first.keypoints[::-1] * 0.8)
    noise = np.random.default_rng(0).normal(size=second.descriptors.shape) / 4
    second = replace(
        second, descriptors=(second.descriptors + noise).astype(np.float32)[::-1].copy()
    )
    parity = export_lightglue(matcher, tmp_path / "lightglue.onnx", [(first, second)])
    assert parity.in_common == 1
    wanted, _ = matcher.match(first, second)
    assert len(wanted) > 20
    if not hasattr(cv2, "LightGlueMatcher"):
        pytest.skip(f"OpenCV {cv2.__version__} has no cv2.LightGlueMatcher; OpenCV 5 has")
    client = cv2.LightGlueMatcher.create(str(tmp_path / "lightglue.onnx"), 0.0)
    client.setPairInfo(first.keypoints, second.keypoints, (100, 100), (100, 100))
    found = client.match(first.descriptors, np.ascontiguousarray(second.descriptors))
    assert [(match.queryIdx, match.trainIdx) for match in found] == list(map(tuple, wanted))


def test_one_profile_has_lightglue(tmp_path, run_command):
    command = (export_onnx, "--model", "lightglue", "--output", tmp_path / "lightglue.onnx")
    assert "add --profile opencv, the only one it has" in run_command(*command, code=2)
