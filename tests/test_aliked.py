"""ALIKED against the reference's outputs, and what it gives as a network of the registry."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from hfnet_distill.data.keypoints import KeypointChoice
from hfnet_distill.data.stores.store import RecordStore
from hfnet_distill.errors import InputError
from hfnet_distill.networks.aliked import deform_conv, soft_argmax
from hfnet_distill.networks.registry import load
from hfnet_distill.teacher_export.cli import export_teacher

REFERENCE = KeypointChoice(
    threshold=0, nms_radius=2, border=2, max_num_keypoints=100, refine_radius=2
)


def tensor(image):
    """(1, 3, H, W) in [0, 1] of an image (H, W, 3) or (H, W) uint8."""
    return torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1).expand(3, -1, -1)[None] / 255


@pytest.fixture(scope="module")
def packaged():
    return load("aliked", device="cpu")


def test_deform_conv_is_the_reference_s(excerpt):
    x, offset, weight, bias, out = map(torch.from_numpy, excerpt("aliked_deform_conv").values())
    torch.testing.assert_close(
        deform_conv(x, offset, weight, bias), out, rtol=1e-5, atol=1e-5, check_stride=False
    )


def test_deform_conv_without_offsets_is_a_convolution():
    x, weight = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3)
    found = deform_conv(x, torch.zeros(2, 18, 5, 7), weight)
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(found, expected, check_stride=False)


@pytest.mark.parametrize("image", ["a", "b"])
@pytest.mark.parametrize("variant", ["t16", "n16", "n32"])
@torch.inference_mode()
def test_official_weights_give_the_reference_s_outputs(golden, weights, variant, image):
    path = weights / f"aliked-{variant}.pth"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the folder of official weights")
    network = load(f"aliked:{path}", device="cpu")
    expected = {
        name.removeprefix(f"{image}/"): values
        for name, values in golden(f"aliked_{variant}").items()
    }
    photograph = expected["image_u8"]
    maps = network.maps(tensor(photograph))
    np.testing.assert_allclose(maps.score_map[0, 0], expected["score_map"], atol=1e-5)

    # More than the reference's hundred: it suppresses before it clears the border, so that what is
    # cleared has suppressed its neighbors.
    ((keypoints, scores),) = network.detect(maps, replace(REFERENCE, max_num_keypoints=130))
    assert (np.diff(scores) <= 0).all()
    distances = torch.cdist(torch.from_numpy(expected["keypoints"]), keypoints)
    found = distances.argmin(1)
    np.testing.assert_allclose(keypoints[found], expected["keypoints"], atol=1e-3)
    np.testing.assert_allclose(scores[found], expected["scores"], atol=2e-5)
    descriptors = network.describe(maps, 0, keypoints[found])
    np.testing.assert_allclose(descriptors, expected["descriptors"], atol=1e-4)

    given = network.describe(maps, 0, torch.from_numpy(expected["given_keypoints"]))
    np.testing.assert_allclose(given, expected["given_descriptors"], atol=1e-4)

    gray = network.maps(tensor(cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY))).score_map
    np.testing.assert_allclose(gray[0, 0, ::2, ::2], expected["gray_score_map_sub2"], atol=1e-5)


@torch.inference_mode()
def test_packaged_weights_give_them_but_for_their_rounding(excerpt, packaged):
    expected = excerpt("aliked_n32")
    image = expected["image_u8"]
    maps = packaged.maps(tensor(image))
    gray = packaged.maps(tensor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)))
    for ours, theirs in (
        (maps.score_map[0, 0], expected["score_map"]),
        (gray.score_map[0, 0, ::2, ::2], expected["gray_score_map_sub2"]),
    ):
        difference = np.abs(ours.numpy() - theirs)
        assert difference.max() < 1e-2
        assert difference.mean() < 1e-4

    ((keypoints, _),) = packaged.detect(maps, replace(REFERENCE, max_num_keypoints=130))
    moves = torch.from_numpy(expected["keypoints"])[:, None] - keypoints
    assert (moves.norm(dim=-1).amin(1) < 0.02).float().mean() > 0.95

    for points, descriptors in (
        (expected["keypoints"][::4], expected["descriptors_every4"]),
        (expected["given_keypoints"], expected["given_descriptors"]),
    ):
        cosine = (packaged.describe(maps, 0, torch.from_numpy(points)).numpy() * descriptors).sum(1)
        assert cosine.min() > 0.9998


def test_packaged_variants_differ_in_the_places_that_a_descriptor_is_made_from(packaged):
    assert packaged.config.places == 32
    assert load("aliked:n16", device="cpu").config.places == 16
    assert packaged.descriptor_dim == 128
    assert packaged.channels == 3


def test_bfloat16_stays_close(excerpt, packaged):
    image = excerpt("aliked_n32")["image_u8"]
    coarse = load("aliked", device="cpu", precision="bfloat16")
    exact, rounded = (
        network.extract(image, max_num_keypoints=100, nms_radius=2)
        for network in (packaged, coarse)
    )
    distance = torch.cdist(torch.from_numpy(rounded.keypoints), torch.from_numpy(exact.keypoints))
    assert (distance.amin(1) < 0.5).float().mean() > 0.9


@torch.inference_mode()
def test_a_batch_is_its_images(excerpt, packaged):
    image = tensor(excerpt("aliked_n32")["image_u8"])
    batch = torch.cat([image, image.flip(3)])
    together = packaged.features(batch, REFERENCE)
    for row in (0, 1):
        (alone,) = packaged.features(batch[row : row + 1], REFERENCE)
        np.testing.assert_allclose(alone.keypoints, together[row].keypoints, atol=1e-3)
        np.testing.assert_allclose(alone.descriptors, together[row].descriptors, atol=1e-4)


def test_keypoints_on_whole_pixels_where_they_are_asked_for(excerpt, packaged):
    image = excerpt("aliked_n32")["image_u8"]
    whole = packaged.extract(image, max_num_keypoints=50, refine_radius=0)
    assert (whole.keypoints == np.rint(whole.keypoints)).all()
    between = packaged.extract(image, max_num_keypoints=50)
    assert (between.keypoints != np.rint(between.keypoints)).any()


def test_a_peak_between_two_pixels_is_found_between_them():
    score_map = torch.zeros(9, 12)
    score_map[4, 5] = score_map[4, 6] = 10.0  # others weigh nothing beside so high a score
    keypoints, scores = soft_argmax(score_map, torch.tensor([[5.0, 4.0]]))
    np.testing.assert_allclose(keypoints, [[5.5, 4.0]], atol=1e-5)
    np.testing.assert_allclose(scores, [10.0], atol=1e-4)


def test_no_keypoints_have_no_descriptors(packaged):
    strict = replace(REFERENCE, threshold=0.999)
    (features,) = packaged.features(torch.zeros(1, 3, 40, 50), strict)
    assert features.keypoints.shape == (0, 2)
    assert features.descriptors.shape == (0, 128)


def test_exports_keypoints_and_score_maps(packaged):
    images = torch.rand(2, 3, 64, 96)
    groups = ["sparse", "score_map"]
    fields = packaged.fields(groups, (96, 64), 20)
    arrays = packaged.export(images, groups, REFERENCE)
    assert {name: field.shape for name, field in fields.items() if name != "count"} == {
        "keypoints": (20, 2),
        "scores": (20,),
        "descriptors": (20, 128),
        "score_map": (1, 64, 96),
    }
    assert arrays["score_map"].shape == (2, 1, 64, 96)
    assert arrays["keypoints"].shape == (2, 100, 2)


def test_a_store_of_keypoints_between_pixels(run_command, photographs, tmp_path):
    run_command(
        export_teacher,
        *("--model", "aliked", "--images", photographs, "--store", tmp_path / "store"),
        *("--size", "64x48", "--quiet", "--max-num-keypoints", 20),
    )
    store = RecordStore.open(tmp_path / "store").require_complete()
    assert store.schema.teacher == "aliked"
    assert store.schema.settings["refine_radius"] == 2
    keypoints = store.record("0.png")["keypoints"]
    assert (keypoints != np.rint(keypoints)).any()
    assert "score_map" not in store.schema.fields


def test_keypoints_of_one_variant_with_descriptors_of_another(excerpt, packaged):
    image = excerpt("aliked_n32")["image_u8"]
    pair = load("aliked+aliked:n16", device="cpu")
    features = pair.extract(image, max_num_keypoints=50)
    own = packaged.extract(image, max_num_keypoints=50)
    np.testing.assert_array_equal(features.keypoints, own.keypoints)
    n16 = load("aliked:n16", device="cpu")
    with torch.inference_mode():
        expected = n16.describe(n16.maps(tensor(image)), 0, torch.from_numpy(own.keypoints))
    np.testing.assert_allclose(features.descriptors, expected, atol=1e-5)
    assert pair.name == "aliked+aliked:n16"


def test_gray_keypoints_with_color_descriptors(excerpt):
    image = excerpt("aliked_n32")["image_u8"]
    gray = load("harris", device="cpu").extract(image, max_num_keypoints=20)
    both = load("harris+aliked", device="cpu").extract(image, max_num_keypoints=20)
    np.testing.assert_array_equal(both.keypoints, gray.keypoints)
    assert both.descriptors.shape == (20, 128)


def test_says_what_is_wrong(tmp_path, packaged):
    with pytest.raises(InputError, match=r"aliked:n64: neither a file nor one of n16, n16rot, n32"):
        load("aliked:n64")
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(InputError, match=r"not weights of ALIKED: tensor 'conv1.weight'"):
        load(f"aliked:{tmp_path / 'other.npz'}")
    with pytest.raises(InputError, match="50x3 pixels: ALIKED needs at least 4"):
        packaged.extract(np.zeros((3, 50, 3), np.uint8))
