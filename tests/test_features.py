"""Features files as all kinds of software write them."""

import h5py
import numpy as np
import pytest

from hfnet_distill.data.features import Features, read_features, write_features
from hfnet_distill.data.geometry import orient_points
from hfnet_distill.data.images import orient_image
from hfnet_distill.errors import InputError

SIZE = (320, 240)


@pytest.fixture
def plain():
    """(keypoints, scores, descriptors) of five keypoints as hloc writes them, best first."""
    rng = np.random.default_rng(0)
    keypoints = np.float32([[10, 20], [300, 230], [0, 0], [160.5, 120.25], [7, 9]])
    scores = np.float32([0.9, 0.7, 0.5, 0.3, 0.1])
    return {"keypoints": keypoints, "scores": scores, "descriptors": rng.normal(size=(8, 5))}


@pytest.fixture
def read(tmp_path):
    """``read(arrays, ...)``: the features of an image with these arrays beside others'."""

    def run(arrays, orientation=1, others=()) -> Features:
        with h5py.File(tmp_path / "f.h5", "w") as file:
            for number, other in enumerate([arrays, *others]):
                file.create_group(f"v_box/{number}.png")
                for key, value in other.items():
                    file[f"v_box/{number}.png/{key}"] = value
            return read_features(file, "v_box/0.png", photograph=(SIZE, orientation))

    return run


def test_what_is_written_is_read(tmp_path):
    rng = np.random.default_rng(0)
    features = Features(
        SIZE,
        rng.uniform(0, 200, (8, 2)).astype(np.float32),
        np.sort(rng.random(8).astype(np.float32))[::-1].copy(),
        rng.normal(size=(8, 8)).astype(np.float32),
        rng.normal(size=16).astype(np.float32),
    )
    with h5py.File(tmp_path / "f.h5", "w") as file:
        write_features(file, "a/b.png", features)
        found = read_features(file, "a/b.png")
    assert found.image_size == SIZE
    for key in ("keypoints", "scores", "descriptors", "global_descriptor"):
        np.testing.assert_array_equal(getattr(found, key), getattr(features, key))


def change(arrays, form):
    keypoints, scores, descriptors = arrays.values()
    scale_and_angle = np.ones((5, 2), np.float32)
    return {
        "plain": arrays,
        "keypoint_scores": {
            "keypoints": keypoints,
            "keypoint_scores": scores,
            "descriptors": descriptors,
        },
        "scores (N, 1)": {**arrays, "scores": scores[:, None]},
        "no scores": {"keypoints": keypoints, "descriptors": descriptors},
        "shuffled": {
            "keypoints": keypoints[::-1],
            "scores": scores[::-1],
            "descriptors": descriptors[:, ::-1],
        },
        "(N, 3)": {**arrays, "keypoints": np.c_[keypoints, scale_and_angle[:, :1]]},
        "(N, 4)": {**arrays, "keypoints": np.c_[keypoints, scale_and_angle]},
        "(N, D)": {**arrays, "descriptors": descriptors.T},
        "float64": {key: value.astype(float) for key, value in arrays.items()},
        "batch of 1": {
            "keypoints": keypoints[None],
            "scores": scores[None],
            "descriptors": descriptors[None],
        },
        "image_size": {**arrays, "image_size": np.array(SIZE)},
        "extra": {**arrays, "oris": np.zeros(5), "lafs": np.zeros((5, 2, 3))},
    }[form]


FORMS = ["plain", "keypoint_scores", "scores (N, 1)", "no scores", "shuffled", "(N, 3)", "(N, 4)"]
FORMS += ["(N, D)", "float64", "batch of 1", "image_size", "extra"]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_others_are_read_alike(read, plain, form):
    found = read(change(plain, form))
    np.testing.assert_array_equal(found.keypoints, plain["keypoints"])
    np.testing.assert_array_equal(found.descriptors, plain["descriptors"].T.astype(np.float32))
    if form != "no scores":
        np.testing.assert_array_equal(found.scores, plain["scores"])


def test_where_n_is_d_the_other_images_tell_how_descriptors_lie(read, plain):
    square = {**plain, "descriptors": np.arange(25.0).reshape(5, 5)}
    three = {"keypoints": np.ones((3, 2)), "scores": np.ones(3), "descriptors": np.ones((3, 5))}
    np.testing.assert_array_equal(read(square).descriptors, square["descriptors"].T)
    np.testing.assert_array_equal(read(square, others=[three]).descriptors, square["descriptors"])


@pytest.mark.parametrize("empty", [(0,), (0, 2), (0, 4), (1, 0, 2)])
def test_nothing_found_is_no_error(read, plain, empty):
    none = {"keypoints": np.zeros(empty), "scores": np.zeros(0), "descriptors": np.zeros(0)}
    assert read(none, others=[plain]).descriptors.shape == (0, 8)
    del none["descriptors"], none["scores"]
    packed = {**plain, "descriptors": np.full((32, 5), 200, np.uint8)}
    found = read(none, others=[none, packed])
    assert found.descriptors.shape == (0, 256)
    assert found.descriptors.dtype == np.bool_
    assert read(none).descriptors is None


def test_a_detector_need_not_describe(read, plain):
    del plain["descriptors"]
    found = read(plain)
    assert found.descriptors is None
    assert len(found.keypoints) == 5


def test_bytes_are_numbers_or_bits_as_their_width_tells(read, plain):
    rng = np.random.default_rng(0)
    sift = rng.integers(0, 256, (128, 5)).astype(np.uint8)
    found = read({**plain, "descriptors": sift})
    np.testing.assert_array_equal(found.descriptors, sift.T.astype(np.float32))
    for width in (32, 61, 64):
        packed = rng.integers(0, 256, (width, 5)).astype(np.uint8)
        found = read({**plain, "descriptors": packed})
        np.testing.assert_array_equal(np.packbits(found.descriptors, axis=1), packed.T)
    bits = rng.integers(0, 2, (256, 5)).astype(np.uint8)
    for kind in (np.uint8, bool):
        found = read({**plain, "descriptors": bits.astype(kind)})
        np.testing.assert_array_equal(found.descriptors, bits.T.astype(bool))
    with pytest.raises(InputError, match=r"f\.h5: image v_box/0\.png: descriptors are 100 bytes"):
        read({**plain, "descriptors": rng.integers(0, 256, (100, 5)).astype(np.uint8)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["keypoints", "scores", "descriptors", "global_descriptor"])
def test_what_is_not_finite_is_refused(read, plain, key, value):
    plain["global_descriptor"] = np.ones(16)
    plain[key] = plain[key].copy()
    plain[key].flat[3] = value
    with pytest.raises(InputError, match=rf"f\.h5: image v_box/0\.png: {key}: 1 of \d+ values"):
        read(plain)


def wrong(arrays, form):
    keypoints, scores, descriptors = arrays.values()
    return {
        "keypoints (2, N)": {**arrays, "keypoints": np.tile(keypoints.T, 2)},
        "no keypoints": {"scores": scores},
        "scores of others": {**arrays, "scores": scores[:4]},
        "descriptors of others": {**arrays, "descriptors": descriptors[:, :4]},
        "complex": {**arrays, "descriptors": descriptors * 1j},
        "image_size": {**arrays, "image_size": np.array([0, 240])},
        "another photograph": {**arrays, "image_size": np.array([240, 320])},
        "outside": {**arrays, "keypoints": keypoints * 2},
    }[form]


WRONG = {
    "keypoints (2, N)": r"keypoints of shape \(2, 10\)",
    "no keypoints": "has no keypoints; found scores",
    "scores of others": r"scores of shape \(4,\) for 5 keypoints",
    "descriptors of others": r"descriptors of shape \(8, 4\) for 5 keypoints",
    "complex": "complex128",
    "image_size": r"image_size is \[  0 240\]",
    "another photograph": "image_size 240x320",
    "outside": "outside the photograph of 320x240",
}


@pytest.mark.parametrize("form", WRONG)
def test_what_does_not_fit_is_refused_by_name(read, plain, form):
    with pytest.raises(InputError, match=WRONG[form]) as refused:
        read(wrong(plain, form))
    assert "f.h5: image v_box/0.png" in str(refused.value)


def test_a_name_that_is_there_is_shown(tmp_path, plain):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["hpatches/v_box/0.png/keypoints"] = plain["keypoints"]
        with pytest.raises(InputError, match=r"v_box/0\.png .*there is hpatches/v_box/0\.png"):
            read_features(file, "v_box/0.png")


def test_keypoints_of_another_resolution_are_resized(read, plain):
    found = read({**plain, "keypoints": plain["keypoints"] / 2, "image_size": np.array([160, 120])})
    np.testing.assert_allclose(found.keypoints, plain["keypoints"] + 0.5, atol=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_keypoints_of_a_stored_photograph_are_turned_upright(read, plain, orientation):
    size = SIZE[::-1] if orientation > 4 else SIZE
    stored = np.zeros(size[::-1], np.uint8)
    stored[20, 10] = 255
    upright = orient_image(stored, orientation)
    expected = np.argwhere(upright)[:, ::-1]
    np.testing.assert_array_equal(orient_points([[10, 20]], size, orientation), expected)
    one = {"keypoints": np.float32([[10, 20]]), "image_size": np.array(size)}
    if orientation in (2, 3, 4):  # the size is the same, turned or not
        with pytest.raises(InputError, match=f"EXIF orientation {orientation}"):
            read(one, orientation)
    else:
        found = read(one, orientation)
        np.testing.assert_array_equal(found.keypoints, expected)
    one["image_size"] = np.array(SIZE)
    if orientation > 4:
        np.testing.assert_array_equal(read(one, orientation).keypoints, [[10, 20]])
    del one["image_size"]
    if orientation > 1:
        with pytest.raises(InputError, match="has no image_size"):
            read(one, orientation)


def test_coarse_keypoints_are_said_to_be_so(read, plain, caplog):
    read({**plain, "keypoints": plain["keypoints"].astype(np.float16)})
    assert len(caplog.messages) == 1
    assert "f.h5: keypoints are float16" in caplog.messages[0]
