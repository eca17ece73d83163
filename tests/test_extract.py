"""extract-features: hloc's contract, resuming, and what is made of features files."""

import errno
import os

import cv2
import h5py
import numpy as np
import pytest

from hfnet_distill.data.features import image_names, read_features
from hfnet_distill.deployment import extract as extracting
from hfnet_distill.deployment.cli import extract_features
from hfnet_distill.deployment.colmap import match
from hfnet_distill.files import beside
from hfnet_distill.networks.registry import load


@pytest.fixture
def features(photographs, tmp_path, run_command):
    """A features file of the six photographs."""
    path = tmp_path / "features.h5"
    run_command(extract_features, "--images", photographs, "--output", path, "--quiet")
    return path


def test_hlocs_contract(photographs, features):
    with h5py.File(features) as file:
        assert image_names(file) == [*(f"{i}.png" for i in range(5)), "walk/5.png"]
        group = file["walk/5.png"]
        count = len(group["scores"])
        assert group["keypoints"].shape == (count, 2)
        assert group["keypoints"].dtype == np.float32
        assert group["keypoints"].attrs["uncertainty"] == 1
        assert group["descriptors"].shape == (128, count)
        assert group["descriptors"].dtype == np.float16
        assert group["global_descriptor"].shape == (256,)
        assert group["image_size"][()].tolist() == [128, 96]
        found = read_features(file, "walk/5.png")
    image = cv2.imread(str(photographs / "walk" / "5.png"), cv2.IMREAD_GRAYSCALE)
    wanted = load("default", device="cpu").extract(image, max_num_keypoints=2048)
    np.testing.assert_allclose(found.keypoints, wanted.keypoints, atol=1e-4)
    np.testing.assert_allclose(found.descriptors, wanted.descriptors, atol=1e-3)


def test_keypoints_come_back_to_the_files_pixels(photographs, tmp_path, run_command):
    small, large = tmp_path / "small.h5", tmp_path / "large.h5"
    big = tmp_path / "big"
    big.mkdir()
    image = cv2.imread(str(photographs / "0.png"))
    cv2.imwrite(str(big / "0.png"), cv2.resize(image, None, fx=4, fy=4))
    sift = ("--model", "sift", "--quiet")
    run_command(extract_features, "--images", big, "--output", large, "--longest-side", 128, *sift)
    run_command(extract_features, "--images", photographs, "--output", small, *sift)
    with h5py.File(large) as one, h5py.File(small) as other:
        assert one["0.png/image_size"][()].tolist() == [512, 384]
        assert one["0.png/keypoints"].attrs["uncertainty"] == 4
        places, wanted = one["0.png/keypoints"][:20], other["0.png/keypoints"][:]
    back = (places + 0.5) / 4 - 0.5
    distances = np.linalg.norm(back[:, None] - wanted, axis=2).min(1)
    assert np.median(distances) < 0.5


def test_stored_pixels_or_upright(photographs, tmp_path, run_command):
    from PIL import Image

    folder = tmp_path / "turned"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.open(photographs / "0.png").save(folder / "0.jpg", exif=exif)
    for flags, size in (((), [128, 96]), (("--upright",), [96, 128])):
        path = tmp_path / f"{len(flags)}.h5"
        command = ("--images", folder, "--output", path, "--model", "sift", "--quiet", *flags)
        run_command(extract_features, *command)
        with h5py.File(path) as file:
            assert file["0.jpg/image_size"][()].tolist() == size


def test_interrupted_and_run_again(photographs, tmp_path, run_command, monkeypatch):
    path = tmp_path / "features.h5"
    command = ("--images", photographs, "--output", path, "--model", "sift")
    write, calls = extracting._write_part, []

    def full_after_two(*arguments):
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        calls.append(arguments)
        write(*arguments)

    monkeypatch.setattr(extracting, "_write_part", full_after_two)
    output = run_command(extract_features, *command, code=1)
    assert "No space left on device; free some space" in output
    assert not path.exists()
    beside(path).write_bytes(b"that a killed run left")
    monkeypatch.setattr(extracting, "_write_part", write)
    assert "4 images extracted, 2 were there already" in run_command(extract_features, *command)
    assert [entry.name for entry in tmp_path.iterdir() if "features" in entry.name] == [path.name]
    cv2.imwrite(str(photographs / "new.png"), np.zeros((40, 40), np.uint8))
    assert "1 images extracted, 6 were there already" in run_command(extract_features, *command)


def test_batches_give_the_same_features(photographs, features, tmp_path, run_command, monkeypatch):
    for name in ("1.png", "3.png"):
        image = cv2.imread(str(photographs / name))
        cv2.imwrite(str(photographs / name), cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE))
    seen = []
    extract_batch = extracting._extract_batch
    monkeypatch.setattr(
        extracting,
        "_extract_batch",
        lambda network, batch, *how: (seen.append(len(batch)), extract_batch(network, batch, *how))[
            1
        ],
    )
    for size in (1, 3):
        monkeypatch.setattr(extracting, "_batch_size", lambda device, size=size: size)
        path = tmp_path / f"{size}.h5"
        run_command(extract_features, "--images", photographs, "--output", path, "--quiet")
    assert seen == [1, 1, 1, 1, 1, 1, 3, 2, 1]
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "3.h5") as three:
        assert image_names(one) == image_names(three)
        for name in image_names(one):
            alone, together = read_features(one, name), read_features(three, name)
            np.testing.assert_allclose(alone.keypoints, together.keypoints, atol=1e-3)
            np.testing.assert_allclose(alone.descriptors, together.descriptors, atol=2e-3)


def test_other_settings_are_refused_by_name(photographs, features, tmp_path, run_command):
    command = ("--images", photographs, "--output", features, "--quiet")
    output = run_command(extract_features, *command, "--nms-radius", 2, code=1)
    assert "made with other settings: keypoints.nms_radius is 4 there and 2 here" in output
    run_command(extract_features, *command, "--nms-radius", 2, "--overwrite")
    (tmp_path / "text.h5").write_text("none")
    command = ("--images", photographs, "--output", tmp_path / "text.h5")
    assert "not an HDF5 file, or damaged" in run_command(extract_features, *command, code=1)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["0.png/keypoints"] = np.zeros((0, 2))
    command = ("--images", photographs, "--output", tmp_path / "other.h5")
    assert "made by another program" in run_command(extract_features, *command, code=1)


def test_several_processes_and_a_list(photographs, tmp_path, run_command):
    names = tmp_path / "photographs" / "list.txt"
    names.write_text("walk/5.png\n0.png\n")
    one, two = tmp_path / "1.h5", tmp_path / "2.h5"
    command = ("--images", names, "--model", "sift", "--quiet")
    run_command(extract_features, *command, "--output", one)
    run_command(extract_features, *command, "--output", two, "--workers", 2)
    assert one.read_bytes() == two.read_bytes()
    names.write_text("6.png\n")
    assert "lists 6.png, which is not in" in run_command(
        extract_features, *command, "--output", tmp_path / "3.h5", code=1
    )


def test_video(photographs, tmp_path, run_command):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (128, 96))
    for number in range(5):
        writer.write(cv2.imread(str(photographs / f"{number}.png")))
    writer.release()
    command = ("--images", path, "--model", "sift", "--quiet", "--output")
    run_command(extract_features, *command, tmp_path / "clip.h5")
    with h5py.File(tmp_path / "clip.h5") as file:
        assert image_names(file) == [f"clip/{i:06d}" for i in range(5)]
    content = path.read_bytes()
    (tmp_path / "half.avi").write_bytes(content[: len(content) // 2])
    command = ("--images", tmp_path / "half.avi", "--model", "sift", "--quiet", "--output")
    output = run_command(extract_features, *command, tmp_path / "half.h5", code=1)
    assert "half.avi: breaks off in frame" in output
    with h5py.File(tmp_path / "half.h5") as file:
        assert 0 < len(image_names(file)) < 4
    (tmp_path / "cut.mp4").write_bytes(b"no video")
    command = ("--images", tmp_path / "cut.mp4", "--model", "sift", "--output")
    assert "not a video" in run_command(extract_features, *command, tmp_path / "cut.h5", code=1)


def test_images_that_are_too_small(tmp_path, run_command):
    (tmp_path / "tiny").mkdir()
    cv2.imwrite(str(tmp_path / "tiny" / "a.png"), np.zeros((7, 40), np.uint8))
    command = ("--images", tmp_path / "tiny", "--output", tmp_path / "tiny.h5")
    assert "a.png: an image of 40x7 pixels" in run_command(extract_features, *command, code=1)


def test_matches_by_hand():
    one = np.eye(4, dtype=np.float32)
    other = np.stack([one[1], (one[0] + one[2]) * np.float32(0.5**0.5), one[3], one[3]])
    pairs, scores = match(one, other, ratio=1, min_similarity=0.8)
    assert pairs.tolist() == [[1, 0], [3, 2]]
    assert scores.tolist() == [1, 1]
    pairs, _ = match(one, other, ratio=0.9, min_similarity=0.5)
    assert pairs.tolist() == [[0, 1], [1, 0]]  # the fourth has two that are equally near
    assert match(one, other[:0], ratio=1, min_similarity=0)[0].shape == (0, 2)


def test_matches_and_pairs_as_hloc_keeps_them(photographs, features, tmp_path, run_command):
    command = ("--images", photographs, "--output", features, "--quiet")
    matches, pairs = tmp_path / "matches.h5", tmp_path / "pairs.txt"
    run_command(
        *(extract_features, *command, "--matches", matches, "--pairs", pairs, "--match-with", 1)
    )
    lines = [line.split() for line in pairs.read_text().splitlines()]
    assert {name for line in lines for name in line} <= {
        *(f"{i}.png" for i in range(5)),
        "walk/5.png",
    }
    with h5py.File(matches) as file, h5py.File(features) as known:
        one, other = lines[-1]
        group = file[one.replace("/", "-")][other.replace("/", "-")]
        assert group["matches0"].dtype == np.int16
        assert group["matches0"].shape == known[one]["scores"].shape
        assert group["matches0"][()].max() < len(known[other]["scores"])
    again = tmp_path / "again.h5"
    run_command(extract_features, *command, "--matches", again, "--match-with", pairs)
    pairs.write_text("0.png 7.png\n")
    output = run_command(
        extract_features, *command, "--matches", again, "--match-with", pairs, code=1
    )
    assert "line 1:" in output
    assert "has no image 7.png" in output


def test_retrieval_needs_a_global_descriptor(photographs, tmp_path, run_command):
    path = tmp_path / "sift.h5"
    command = ("--images", photographs, "--output", path, "--model", "sift", "--quiet")
    output = run_command(
        extract_features, *command, "--match-with", 2, "--pairs", tmp_path / "pairs.txt", code=1
    )
    assert "has no global descriptor" in output


def test_colmap_database(photographs, features, tmp_path, run_command):
    pycolmap = pytest.importorskip("pycolmap")
    path = tmp_path / "database.db"
    command = ("--images", photographs, "--output", features, "--quiet", "--colmap", path)
    run_command(extract_features, *command, "--single-camera")
    database = pycolmap.Database.open(path)
    images = {image.name: image.image_id for image in database.read_all_images()}
    with h5py.File(features) as file:
        wanted = file["walk/5.png/keypoints"][()] + 0.5
    found = database.read_keypoints(images["walk/5.png"])
    np.testing.assert_allclose(np.asarray(found)[:, :2], wanted)
    assert len(database.read_all_cameras()) == 1
    database.close()
    assert "is there already; remove it" in run_command(extract_features, *command, code=1)
    (photographs / "walk" / "5.png").rename(photographs / "6.png")
    other = ("--images", photographs, "--output", tmp_path / "more.h5", "--quiet")
    output = run_command(extract_features, *other, "--colmap", path, code=1)
    assert "a database of 6 images that are not these 6" in output


def test_dxslam(photographs, tmp_path, run_command):
    folder = tmp_path / "slam"
    run_command(
        *(extract_features, "--images", photographs, "--output", folder),
        *("--format", "dxslam", "--quiet"),
    )
    descriptors = np.load(folder / "des" / "5.npy")
    points = np.loadtxt(folder / "point-txt" / "5.txt")
    assert descriptors.shape == (len(points), 128)
    assert np.load(folder / "glb" / "5.npy").shape == (256,)
