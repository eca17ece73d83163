"""XFeat against the outputs of the authors' code, and as a network of the registry."""

import numpy as np
import pytest
import torch

from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.errors import InputError
from hfnet_distill.networks.registry import load
from hfnet_distill.networks.xfeat import XFeat

REFERENCE = KeypointChoice(0.05, 2, 0, 200)


@pytest.fixture(scope="module")
def official(weights):
    if not (weights / "xfeat.pt").is_file():
        pytest.skip("xfeat.pt is not in the folder of official weights")
    return load("xfeat", device="cpu")


@pytest.fixture(scope="module")
def random_network():
    torch.manual_seed(0)
    return XFeat().eval()


def test_gives_the_reference_s_keypoints_scores_and_descriptors(excerpt, official):
    expected = excerpt("xfeat")
    images = torch.from_numpy(expected["image_u8"]).permute(2, 0, 1)[None] / 255
    (features,) = official.features(images, REFERENCE)
    # The authors scale positions where they resize the image; we move them as its pixels moved.
    height, width = images.shape[2:]
    scale = np.array([width, height]) / (np.array([width, height]) // 32 * 32)
    keypoints = expected["keypoints"] + (scale - 1) / 2
    assert len(features.keypoints) == len(keypoints) > 100
    np.testing.assert_allclose(features.keypoints, keypoints, atol=1e-4)
    np.testing.assert_allclose(features.scores, expected["scores"], atol=1e-5)
    np.testing.assert_allclose(features.descriptors[::4], expected["descriptors_every4"], atol=1e-5)


def test_bfloat16_stays_close(excerpt, official):
    image = excerpt("xfeat")["image_u8"]
    coarse = load("xfeat", device="cpu", precision="bfloat16")
    exact, rounded = (
        torch.from_numpy(network.extract(image, max_num_keypoints=50).keypoints)
        for network in (official, coarse)
    )
    moves = (exact[:, None] - rounded).norm(dim=-1)
    assert (moves.amin(0) < 2).float().mean() > 0.8


def test_keypoints_lie_in_images_of_any_size(random_network):
    image = np.random.default_rng(0).integers(0, 255, (70, 101, 3), dtype=np.uint8)
    features = random_network.extract(image, max_num_keypoints=60, border=0)
    assert len(features.keypoints) == 60
    assert (np.diff(features.scores) <= 0).all()
    assert (features.keypoints > -0.5).all()
    assert (features.keypoints < np.array([101, 70]) - 0.5).all()
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)


def test_keeps_off_the_border_and_apart(random_network):
    image = np.random.default_rng(0).integers(0, 255, (96, 64, 3), dtype=np.uint8)
    features = random_network.extract(image, border=10, nms_radius=3)
    assert features.keypoints.min() >= 10
    assert (features.keypoints < np.array([54, 86])).all()
    apart = np.abs(features.keypoints[:, None] - features.keypoints).max(2)
    assert apart[~np.eye(len(apart), dtype=bool)].min() > 3


def test_exports_keypoints_alone(random_network):
    fields = random_network.fields(["sparse"], (64, 64), 10)
    arrays = random_network.export(torch.rand(2, 3, 64, 64), ["sparse"], REFERENCE)
    assert arrays.keys() == fields.keys()
    with pytest.raises(InputError, match="no such field; it offers sparse"):
        random_network.fields(["score_map"], (64, 64), 10)


def test_says_what_is_wrong(tmp_path, random_network):
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(InputError, match=r"not weights of XFeat: tensor 'skip1.1.weight'"):
        load(f"xfeat:{tmp_path / 'other.npz'}")
    with pytest.raises(InputError, match="31x40 pixels: XFeat needs at least 32"):
        random_network.extract(np.zeros((40, 31, 3), np.uint8))
