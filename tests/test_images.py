"""Photographs found, decoded, brought to size and split."""

from functools import partial

import cv2
import numpy as np
import pytest

from hfnet_distill.data.augment import augment_photometric
from hfnet_distill.data.images import (
    check_image,
    fit_image,
    list_images,
    read_image,
    resize_longest,
    split_names,
    view_through,
)
from hfnet_distill.errors import UnreadablePhotographError


def write(path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def photograph():
    """(48, 64, 3): dark but for a bright upper left corner."""
    image = np.full((48, 64, 3), 20, np.uint8)
    image[:24, :32] = 220
    return image


def test_names_are_relative_posix_paths_in_order(tmp_path, photograph):
    for name in ("b.PNG", "a/z.jpg", "a/b.jpeg", ".hidden.jpg", ".a/c.jpg"):
        write(tmp_path / name, photograph)
    (tmp_path / "notes.txt").write_text("no photograph")
    assert list_images(tmp_path) == ["a/b.jpeg", "a/z.jpg", "b.PNG"]


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no photographs found"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_images(tmp_path / "missing")


def test_colours_are_red_green_blue(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 2] = 255  # OpenCV writes blue, green, red
    write(tmp_path / "red.png", image)
    assert read_image(tmp_path / "red.png", channels=3)[0, 0].tolist() == [255, 0, 0]
    assert read_image(tmp_path / "red.png", channels=1)[0, 0] == 76


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_stand_upright(tmp_path, photograph, channels):
    path = tmp_path / "turned.jpg"
    write(path, photograph)
    data = path.read_bytes()
    # An EXIF segment that says orientation 6: to be turned by 90 degrees clockwise.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    image = read_image(path, channels=channels)
    assert image.shape[:2] == (64, 48)
    assert image[:30, 26:].min() > 150  # the bright corner went from upper left to upper right
    assert image[:, :20].max() < 80


@pytest.mark.parametrize("content", ["empty", "text", "cut", "missing"])
def test_a_photograph_that_cannot_be_read_is_named(tmp_path, photograph, content):
    path = tmp_path / "bad.jpg"
    write(path, np.tile(photograph, (8, 8, 1)))
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello"}.get(content, whole[: len(whole) // 2]))
    if content == "missing":
        path.unlink()
    error = FileNotFoundError if content == "missing" else UnreadablePhotographError
    for look in (check_image, partial(read_image, channels=1)):
        with pytest.raises(error, match=r"bad\.jpg"):
            look(path)


def test_fitting_crops_centrally_and_resizes():
    image = np.zeros((100, 300), np.uint8)
    image[:, 100:200] = 200  # what remains of a 3:1 panorama cropped to a square
    fitted = fit_image(image, (50, 50))
    assert fitted.shape == (50, 50)
    assert fitted.min() == 200


def test_the_longest_side_is_resized(photograph):
    assert resize_longest(photograph, 32).shape == (24, 32, 3)
    assert resize_longest(photograph, 128).shape == (96, 128, 3)
    assert resize_longest(photograph, 0) is photograph


def test_looking_tells_the_size(tmp_path, photograph):
    for suffix in (".jpg", ".png"):
        write(tmp_path / f"a{suffix}", photograph)
        assert check_image(tmp_path / f"a{suffix}") == (64, 48)


def test_a_view_of_fine_texture_does_not_alias():
    checks = (np.indices((300, 300)).sum(0) % 2 * 255).astype(np.uint8)
    view = view_through(checks, np.diag([3.0, 3.0, 1.0]), (90, 90))
    assert np.abs(view[1:, 1:].astype(int) - 127).max() <= 2


def test_a_view_shows_what_its_homography_says(photograph):
    H_view_to_image = np.array([[2.0, 0, 0.5], [0, 2.0, 0.5], [0, 0, 1]])
    view = view_through(photograph, H_view_to_image, (32, 24))
    assert view[:12, :16].min() == 220
    assert view[12:].max() == view[:, 16:].max() == 20


def test_a_name_stays_on_its_side_of_the_split():
    names = [f"{i}.jpg" for i in range(400)]
    training, validation = split_names(names, 0.1)
    assert sorted(training + validation) == sorted(names)
    assert 20 <= len(validation) <= 60
    assert set(split_names(names[:200], 0.1)[1]) == set(validation) & set(names[:200])


def test_a_small_split_keeps_one_for_validation():
    assert len(split_names(["a", "b", "c"], 0.001)[1]) == 1
    assert split_names(["a", "b"], 0) == (["a", "b"], [])


def test_augmentation_follows_from_its_generator():
    image = np.random.default_rng(0).integers(0, 255, (40, 60)).astype(np.uint8)
    first, again, other = (
        augment_photometric(image, np.random.default_rng(seed), 0.5) for seed in (1, 1, 2)
    )
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert augment_photometric(image, np.random.default_rng(1), 0) is image
