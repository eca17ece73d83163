"""Photographs found, decoded, brought to size and split."""

import os
import struct
import zlib
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from hfnet_distill.data.augment import augment_photometric
from hfnet_distill.data.images import (
    check_image,
    fit_image,
    list_images,
    natural_order,
    orient_image,
    read_image,
    resize_longest,
    split_names,
    stored_orientation,
    to_images,
    to_tensor,
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


KINDS = [
    "avif",
    "bmp",
    "dib",
    "gif",
    "jfif",
    "jp2",
    "jpe",
    "pam",
    "pnm",
    "ras",
    "sr",
    "TIF",
    "webp",
]


@pytest.mark.parametrize("suffix", KINDS)
def test_whatever_opencv_decodes_is_a_photograph(tmp_path, photograph, suffix):
    encoded = cv2.imencode(".jpg" if suffix in ("jfif", "jpe") else f".{suffix}", photograph)[1]
    (tmp_path / f"a.{suffix}").write_bytes(encoded.tobytes())
    assert list_images(tmp_path) == [f"a.{suffix}"]
    for channels in (1, 3):
        image = read_image(tmp_path / f"a.{suffix}", channels=channels)
        assert np.abs(image[5:20, 5:28].astype(int) - 220).mean() < 40
    assert check_image(tmp_path / f"a.{suffix}").size == (64, 48)


def test_what_is_left_out_is_counted_and_named(tmp_path, photograph, caplog):
    write(tmp_path / "a.png", photograph)
    for name in ("b.heic", "sub/c.HEIC", "d.txt", "README", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "e.jpg").symlink_to("gone.jpg")
    (tmp_path / "f.jpg").symlink_to("f.jpg")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    assert list_images(tmp_path) == ["a.png"]
    assert caplog.messages == [
        f"{tmp_path}: 7 files left out: 2 .heic, 2 dangling (e.jpg, ...), 1 .txt, "
        r"1 not UTF-8 (caf\xe9.png), 1 without a suffix (README)"
    ]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, photograph, caplog, monkeypatch):
    write(tmp_path / "a.png", photograph)
    write(tmp_path / "sub" / "b.png", photograph)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_images(tmp_path) == ["a.png"]
    assert caplog.messages == [f"{tmp_path}: 1 file left out: 1 unreadable (sub/)"]


def test_links_are_followed_once_and_never_in_circles(tmp_path, photograph, caplog):
    root = tmp_path / "root"
    write(root / "z" / "here.png", photograph)
    write(tmp_path / "elsewhere" / "there.png", photograph)
    (root / "day").symlink_to("../elsewhere")
    (root / "again").symlink_to("../elsewhere")
    (root / "a").symlink_to("z")
    (root / "z" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "back").symlink_to("../root")
    (root / "file.png").symlink_to("../elsewhere/there.png")
    assert list_images(root) == ["again/there.png", "file.png", "z/here.png"]
    assert not caplog.messages


def test_numbered_names_sort_as_one_counts():
    names = ["10.png", "9.png", "a/2.png", "a/11.png", "²"]
    assert sorted(names, key=natural_order) == ["9.png", "10.png", "a/2.png", "a/11.png", "²"]


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


def test_every_orientation_is_turned_upright(tmp_path, photograph):
    photograph[:10, 40:] = 120  # no two of the eight look alike
    for orientation in range(1, 9):
        exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation, 0, 0, 0, 0])
        exif = b"Exif\0\0" + exif + b"\0"
        data = cv2.imencode(".jpg", photograph)[1].tobytes()
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
        upright = read_image(tmp_path / "a.jpg", channels=1)
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(upright, orient_image(stored, orientation))
        assert stored_orientation(tmp_path / "a.jpg") == orientation


def test_bytes_behind_a_jpeg_do_not_matter_and_missing_ones_do(tmp_path, photograph):
    path = tmp_path / "a.jpg"
    whole = cv2.imencode(".jpg", np.tile(photograph, (8, 8, 1)))[1].tobytes()
    thumbnail = b"\xff\xe2\0\x08\xff\xd8\xff\xda\xff\xd9"  # within a segment
    whole = whole[:2] + thumbnail + whole[2:]
    path.write_bytes(whole)
    expected = read_image(path, channels=1)
    path.write_bytes(whole + b"\0\0\0\x18ftypmp42" + b"\x12\xff\xda\x34" * 3)
    np.testing.assert_array_equal(read_image(path, channels=1), expected)
    for length in (len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadablePhotographError, match=r"a\.jpg: a JPEG that breaks off"):
            read_image(path, channels=1)


@pytest.mark.parametrize("white", [100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P5", "P6", "P7"])
def test_netpbm_is_as_bright_as_its_header_says(tmp_path, white, kind):
    gray = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (4, 1))
    values = np.rint(gray * (white / 255)).astype(">u2" if white > 255 else np.uint8)
    pixels = np.repeat(values.ravel(), 3) if kind == "P6" else values
    body = (
        (" ".join(map(str, values.ravel())) + "\n").encode() if kind == "P2" else pixels.tobytes()
    )
    header = f"{kind}\n# a camera\n32 4\n{white}\n"
    if kind == "P7":
        header = f"P7\nWIDTH 32\nHEIGHT 4\nDEPTH 1\nMAXVAL {white}\nTUPLTYPE GRAYSCALE\nENDHDR\n"
    path = tmp_path / "a.pnm"
    path.write_bytes(header.encode() + body)
    step = 255 // white + 1
    assert np.abs(read_image(path, channels=1).astype(int) - gray).max() <= step
    assert np.abs(read_image(path, channels=3)[..., 2].astype(int) - gray).max() <= step


def tiff(values, sample_format: int) -> bytes:
    """A TIFF of one strip, gray: sample format 1 for whole numbers, 3 for floating point."""
    data, (height, width) = values.tobytes(), values.shape
    bits = 8 * values.itemsize
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def test_floating_point_pictures_are_read_by_their_range(tmp_path):
    gray = np.tile(np.linspace(0, 255, 32).astype(np.float32), (4, 1))
    path = tmp_path / "a.tif"
    for values in (gray / 255, gray, (gray / 255).astype(np.float64)):
        path.write_bytes(tiff(values, 3))
        assert np.abs(read_image(path, channels=1) - gray).max() <= 1
        assert check_image(path).size == (32, 4)
    for values in (gray * 100, gray - 9, gray * np.nan):
        path.write_bytes(tiff(values, 3))
        with pytest.raises(UnreadablePhotographError, match="values from 0 to 1"):
            read_image(path, channels=1)
    path.write_bytes(tiff(gray.astype(np.uint32), 1))
    with pytest.raises(UnreadablePhotographError, match="uint32"):
        read_image(path, channels=1)


def test_a_picture_may_be_narrow(tmp_path, photograph):
    for suffix in (".png", ".jpg", ".bmp"):
        write(tmp_path / f"a{suffix}", photograph[:, :3])
        assert check_image(tmp_path / f"a{suffix}").size[0] <= 8
        assert read_image(tmp_path / f"a{suffix}", channels=3).shape == (48, 3, 3)


def test_a_picture_that_is_too_large_is_called_so(tmp_path):
    jpeg = bytearray(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 33000, 33000)
    (tmp_path / "a.jpg").write_bytes(bytes(jpeg))
    (tmp_path / "a.pgm").write_bytes(b"P5\n40000 30000\n255\n" + bytes(100))
    png = bytearray(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
    png[16:24] = struct.pack(">II", 50000, 50000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    (tmp_path / "a.png").write_bytes(bytes(png))
    for name in ("a.jpg", "a.pgm", "a.png"):
        for look in (check_image, partial(read_image, channels=1)):
            with pytest.raises(UnreadablePhotographError, match=r"too large.*OPENCV_IO_MAX"):
                look(tmp_path / name)


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path, photograph, monkeypatch):
    write(tmp_path / "a.png", photograph)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(UnreadablePhotographError, match=r"a\.png: may not be read"):
        check_image(tmp_path / "a.png")


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
        look = check_image(tmp_path / f"a{suffix}")
        assert look.size == (64, 48)
        assert 215 <= look.brightest <= 225


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


@pytest.mark.parametrize("white", [255, 1023, 65535])
def test_a_gray_pam_with_transparency(tmp_path, photograph, white):
    """OpenCV damages memory where it is to make a gray image of one."""
    gray = np.rint(photograph[..., :1] / 255 * white).repeat(2, axis=2)
    gray = gray.astype(">u1" if white == 255 else ">u2")
    header = f"P7\nWIDTH 64\nHEIGHT 48\nDEPTH 2\nMAXVAL {white}\nTUPLTYPE GRAYSCALE_ALPHA\nENDHDR\n"
    (tmp_path / "a.pam").write_bytes(header.encode() + gray.tobytes())
    for channels in (1, 3):
        image = read_image(tmp_path / "a.pam", channels=channels)
        assert np.abs(image - photograph[..., :channels].squeeze().astype(int)).max() <= 1
    assert check_image(tmp_path / "a.pam").size == (64, 48)
    assert stored_orientation(tmp_path / "a.pam") == 1


@pytest.mark.parametrize("white", [200, 255, 1000, 65535])
@pytest.mark.parametrize("depth", [3, 4])
def test_a_pam_has_its_own_colours(tmp_path, white, depth):
    color = np.array([200, 100, 50])
    values = np.rint(np.append(color * (white / 255), white)[:depth])
    kind = "RGB" if depth == 3 else "RGB_ALPHA"
    header = f"P7\nWIDTH 6\nHEIGHT 4\nDEPTH {depth}\nMAXVAL {white}\nTUPLTYPE {kind}\nENDHDR\n"
    body = np.tile(values, (4, 6, 1)).astype(">u1" if white < 256 else ">u2")
    (tmp_path / "a.pam").write_bytes(header.encode() + body.tobytes())
    assert np.abs(read_image(tmp_path / "a.pam", channels=3)[0, 0] - color).max() <= 1
    gray = color @ [0.299, 0.587, 0.114]
    assert abs(read_image(tmp_path / "a.pam", channels=1)[0, 0] - gray) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_of_pixels_is_that_of_single_images(channels):
    values = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    pixels = values if channels == 1 else np.stack([values, values[::-1], 255 - values], -1)
    expected = torch.stack([to_tensor(image, channels) for image in pixels])
    assert torch.equal(to_images(torch.from_numpy(pixels)), expected)
