"""Relative poses: a rendered scene with exact poses, both layouts, what is refused."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfnet_distill.config import load_settings, override
from hfnet_distill.data.features import Features
from hfnet_distill.evaluation.datasets import kitti_tum
from hfnet_distill.evaluation.datasets.kitti_tum import KittiTum
from hfnet_distill.evaluation.features import FeatureFile, NetworkFeatures, load_view
from hfnet_distill.evaluation.matching import match_mutual
from hfnet_distill.evaluation.tasks.relative_pose import (
    RelativePose,
    epipolar_distances,
    estimate_pose,
    pose_error,
)
from hfnet_distill.networks.registry import load

SIZE = (320, 240)
K = np.array([[300.0, 0, 155], [0, 290, 124], [0, 0, 1]])
BESIDE = np.array([0.5, 0, 0])
"""Where KITTI's camera 2 stands in camera 0."""


def rotation(x, y, z):
    """Degrees about the three axes as (3, 3)."""
    return cv2.Rodrigues(np.radians([x, y, z]).astype(np.float64))[0]


MOTIONS = [
    (rotation(0, 0, 0), np.zeros(3)),
    (rotation(1, -4, 2), np.array([0.4, 0.05, 0.1])),
    (rotation(-2, -6, -1), np.array([0.7, -0.1, 0.5])),
    (rotation(2, 3, 4), np.array([-0.3, 0.2, 0.6])),
    (rotation(0, -8, 3), np.array([0.9, 0.2, -0.2])),
]
"""Camera to world, R and t in meters, of each frame."""


def texture(rng, side):
    """Smooth noise of several scales, (side, side) uint8."""
    noise = sum(
        cv2.resize(rng.uniform(0, 1, (side // step, side // step)), (side, side), None, 0, 0, 2)
        for step in (3, 6, 12, 30)
    )
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def render(distortion=None):
    """The scene from every frame: three planes at different depths, by one homography each."""
    rng = np.random.default_rng(0)
    planes = []
    for side, meters, center, turn in (
        (900, 14.0, (0, 0, 7), (0, 0, 0)),
        (400, 3.0, (-1.3, 0, 4.5), (0, 25, 0)),
        (300, 1.8, (1, 0.4, 3.2), (-20, -15, 10)),
    ):
        R = rotation(*turn)
        corner = np.array(center) - R[:, :2].sum(1) * meters / 2
        plane = np.column_stack([R[:, :2] * meters / side, corner])  # texture pixel -> meters
        planes.append((texture(rng, side), plane))
    for R, t in MOTIONS:
        image = np.zeros(SIZE[::-1], np.uint8)
        for pixels, plane in planes:  # from far to near
            H = K @ R.T @ (plane - np.column_stack([np.zeros((3, 2)), t]))
            drawn = [cv2.warpPerspective(p, H, SIZE) for p in (pixels, np.full_like(pixels, 255))]
            image = np.where(drawn[1] == 255, drawn[0], image)
        yield image if distortion is None else distort(image, distortion)


def distort(image, distortion):
    """What a camera with OpenCV's distortion sees of a rectified image."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([x, y], -1).reshape(-1, 1, 2).astype(np.float64)
    source = cv2.undistortPoints(pixels, K, np.array(distortion), P=K).astype(np.float32)
    return cv2.remap(image, source.reshape(*image.shape, 2), None, cv2.INTER_CUBIC)


def write_kitti(root, camera=0):
    beside = BESIDE if camera == 2 else np.zeros(3)
    folder = root / "sequences" / "07" / f"image_{camera}"
    folder.mkdir(parents=True)
    (root / "poses").mkdir()
    for number, image in enumerate(render()):
        cv2.imwrite(str(folder / f"{number:06d}.png"), image)
    P = np.column_stack([K, -K @ beside])
    line = " ".join(map(repr, P.ravel().tolist()))
    (folder.parent / "calib.txt").write_text(f"P1: 0 0\nP{camera}: {line}\n")
    poses = [np.column_stack([R, t - R @ beside]).ravel() for R, t in MOTIONS]
    np.savetxt(root / "poses" / "07.txt", poses)
    np.savetxt(root / "poses" / "08.txt", poses)  # a sequence that was not downloaded
    return root


def write_tum(folder, distortion=()):
    (folder / "rgb").mkdir(parents=True)
    rgb, truth = ["# timestamp filename"], ["# timestamp tx ty tz qx qy qz qw"]
    for number, (image, (R, t)) in enumerate(zip(render(distortion or None), MOTIONS, strict=True)):
        cv2.imwrite(str(folder / "rgb" / f"{number}.png"), image)
        rgb.append(f"{number / 30:.6f} rgb/{number}.png")
        angle = np.linalg.norm(axis := cv2.Rodrigues(R)[0].ravel())
        q = *(axis * np.sinc(angle / 2 / np.pi) / 2), math.cos(angle / 2)
        away = np.array([9, 9, 9])  # a pose further in time must not be taken
        truth.append(" ".join(map(str, [number / 30 + 0.012, *away, *q])))
        truth.append(" ".join(map(str, [number / 30 - 0.008, *t, *q])))
    rgb.append("0.9 rgb/without-a-pose.png")
    (folder / "rgb.txt").write_text("\n".join(rgb))
    (folder / "groundtruth.txt").write_text("\n".join(truth))
    numbers = K[0, 0], K[1, 1], K[0, 2], K[1, 2], *distortion
    (folder / "calibration.txt").write_text("\n".join(map(str, numbers)))
    return folder


@pytest.fixture
def sift():
    return NetworkFeatures(load("sift"), override(load_settings().predict, nms_radius=2), 800)


def run(dataset, model, folder, longest=0):
    """The task and what it knows of the pairs."""
    task = RelativePose(dataset, override(load_settings().evaluate, longest_side=longest))
    file = FeatureFile(folder / "features.h5", {}, overwrite=True)
    file.extract(model, dataset.images, task.load_view, lambda: None)
    calls = []
    scored = task.score((file, file), lambda: calls.append(1))
    assert len(calls) == task.num_steps == len(dataset.pairs)
    return task, scored


def errors_of(scored):
    return np.array([score.error for score in scored.scores])


def check_recovered(task, scored):
    assert len(scored.scores) == 6
    assert errors_of(scored).max() < 1
    (statistics,) = task.statistics(scored).values()
    numbers = statistics.values()
    assert list(numbers) == ["auc@5", "auc@10", "auc@20", "median_error_deg", "mean_matches"]
    assert numbers["auc@5"] > 0.9
    assert numbers["auc@20"] > 0.97
    assert numbers["median_error_deg"] < 0.5
    assert numbers["mean_matches"] > 100


def test_kitti(tmp_path, sift):
    dataset = KittiTum(write_kitti(tmp_path))
    assert dataset.sequences == ["07"]
    names = [(Path(pair.name0).stem[-1], Path(pair.name1).stem[-1]) for pair in dataset.pairs]
    assert names == [("0", "1"), ("0", "3"), ("1", "2"), ("1", "4"), ("2", "3"), ("3", "4")]
    R, t = MOTIONS[3]
    expected = np.column_stack([R.T, -R.T @ t])
    np.testing.assert_allclose(dataset.pairs[1].T_0to1[:3], expected, atol=1e-12)
    task, scored = run(dataset, sift, tmp_path)
    check_recovered(task, scored)
    again = run(dataset, sift, tmp_path)[1]
    np.testing.assert_array_equal(errors_of(scored), errors_of(again))


def test_a_camera_beside_the_one_that_has_poses(tmp_path):
    dataset = KittiTum(write_kitti(tmp_path, camera=2))
    R, t = MOTIONS[3]
    expected = np.column_stack([R.T, -R.T @ t])
    np.testing.assert_allclose(dataset.pairs[1].T_0to1[:3], expected, atol=1e-12)


def test_pictures_show_what_lies_on_its_epipolar_line(tmp_path, sift):
    task, scored = run(KittiTum(write_kitti(tmp_path)), sift, tmp_path)
    shares = [task.picture(score).correct.mean() for score in scored.scores]
    assert min(shares) > 0.6
    file = FeatureFile(tmp_path / "features.h5", {})
    drawings = task.draw({"sift": scored}, {"sift": (file, file)}, lambda: None)
    assert len(drawings) == 2  # the best and the worst of its only sequence
    assert drawings[0].image.shape == (SIZE[1], 2 * SIZE[0], 3)
    assert "matches near their epipolar lines, pose off by 0." in drawings[0].caption


def test_epipolar_distances_by_hand():
    """A camera that moves along x: lines are rows, and the match lies two rows off."""
    T_0to1 = np.eye(4)
    T_0to1[0, 3] = 1
    points0, points1 = np.array([[10, 20], [30, 40]]), np.array([[70, 20], [50, 42]])
    found = epipolar_distances(points0, points1, T_0to1, K, K)
    np.testing.assert_allclose(found, [0, 2], atol=1e-9)


def test_views_of_another_size(tmp_path, sift):
    check_recovered(*run(KittiTum(write_kitti(tmp_path)), sift, tmp_path, longest=250))


def test_tum(tmp_path, sift):
    write_tum(tmp_path / "fr1")
    dataset = KittiTum(tmp_path)
    assert dataset.sequences == ["fr1"]
    assert next(iter(dataset.images)) == "fr1/rgb/0.png"
    assert KittiTum(tmp_path / "fr1").pairs[0].name0 == "rgb/0.png"
    R, t = MOTIONS[1]
    expected = np.column_stack([R.T, -R.T @ t])
    np.testing.assert_allclose(dataset.pairs[0].T_0to1[:3], expected, atol=1e-9)
    check_recovered(*run(dataset, sift, tmp_path))


def test_photographs_that_are_not_rectified(tmp_path, sift):
    distortion = (0.26, -0.95, -0.005, 0.003, 1.16)  # alike freiburg 1
    dataset = KittiTum(write_tum(tmp_path, distortion))
    task, scored = run(dataset, sift, tmp_path, longest=300)
    check_recovered(task, scored)
    camera = dataset.cameras[dataset.sequences[0]]
    object.__setattr__(camera, "distortion", np.zeros(5))
    without = run(dataset, sift, tmp_path)[1]
    assert np.median(errors_of(without)) > 5 * np.median(errors_of(scored))


def test_the_pixel_center_is_that_of_the_house(tmp_path, sift):
    """Half a pixel in the principal point is seen in the matches' epipolar errors."""
    dataset = KittiTum(write_kitti(tmp_path))
    pair = dataset.pairs[1]
    camera = dataset.cameras["07"]
    found = [
        sift.extract(load_view(dataset.images[name], longest_side=0), name)
        for name in (pair.name0, pair.name1)
    ]
    matches = match_mutual(found[0].descriptors, found[1].descriptors)
    points = [f.keypoints[m] for f, m in zip(found, matches.T, strict=True)]

    T = pair.T_0to1
    E = np.cross(np.eye(3), T[:3, 3]) @ T[:3, :3]

    def median_distance(shift):
        inverse = np.linalg.inv(camera.K)
        rays = [np.column_stack([p + shift, np.ones(len(p))]) @ inverse.T for p in points]
        lines = rays[0] @ E.T
        return np.median((rays[1] * lines).sum(1) / np.linalg.norm(lines[:, :2], axis=1)) * 300

    assert abs(median_distance(0)) < 0.03
    assert abs(median_distance(0.5)) > 0.08


def test_pose_error_by_hand():
    def motion(R, t):
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = R, t
        return T

    truth = motion(rotation(0, 0, 0), [2, 0, 0])
    assert pose_error(truth, truth) == 0
    assert pose_error(motion(rotation(0, 7, 0), [1, 0, 0]), truth) == pytest.approx(7)
    assert pose_error(motion(rotation(0, 7, 0), [1, 1, 0]), truth) == pytest.approx(45)
    assert pose_error(motion(rotation(0, 0, 180), [1, 0, 0]), truth) == pytest.approx(180)
    assert pose_error(motion(rotation(0, 0, 1e-5), [-1, 0, 0]), truth) == pytest.approx(1e-5)
    assert pose_error(None, truth) == math.inf


def test_too_few_matches_give_no_pose():
    points = np.random.default_rng(0).uniform(0, 200, (8, 2)).astype(np.float32)
    assert estimate_pose(points[:4], points[:4], K, K) is None


def test_pairs_are_spread_evenly(monkeypatch):
    T = np.tile(np.eye(4), (200, 1, 1))
    T[:, 0, 3] = 0.1 * np.arange(200)
    names = [f"{number:03d}" for number in range(200)]
    still = T * 1
    still[:, 0, 3] = 0
    monkeypatch.setattr(kitti_tum, "MAX_PAIRS", 40)
    pairs = kitti_tum._choose_pairs({"b": (names, T), "a": (names, T), "still": (names, still)})
    assert len(pairs) == 40
    assert [pair.sequence for pair in pairs] == ["b"] * 20 + ["a"] * 20
    strides = [int(pair.name1) - int(pair.name0) for pair in pairs]
    assert all(strides.count(stride) in (8, 9, 10, 11, 12) for stride in kitti_tum.STRIDES)
    starts = [int(pair.name0) for pair in pairs[:20]]
    assert starts == sorted(starts)
    assert starts[0] < 20
    assert starts[-1] > 150


def test_views_that_turn_too_far_or_do_not_move():
    T = np.tile(np.eye(4), (2, 1, 1))
    T[1, 0, 3] = 1
    assert len(kitti_tum._choose_pairs({"": (["0", "1"], T)})) == 1
    T[1, 0, 3] = 0.04
    assert not kitti_tum._choose_pairs({"": (["0", "1"], T)})
    T[1, 0, 3], T[1, :3, :3] = 1, rotation(0, 46, 0)
    assert not kitti_tum._choose_pairs({"": (["0", "1"], T)})


@pytest.mark.parametrize(
    ("path", "text", "error", "message"),
    [
        ("sequences/07/calib.txt", "P2: 1 2\n", ValueError, "has no line P0:, of image_0"),
        ("sequences/07/calib.txt", "P0: 1 2\n", ValueError, "expected lines of 12 finite numbers"),
        ("sequences/07/calib.txt", "", ValueError, "is empty; expected P0: and twelve numbers"),
        ("poses/07.txt", "1 2 3\n", ValueError, "expected lines of 12 finite numbers"),
        ("poses/07.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n", ValueError, "1 poses for 5 photographs"),
        ("poses/07.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n" * 5, ValueError, "no pairs among 5 photog"),
        ("rgb.txt", "", ValueError, "both of two layouts"),
    ],
)
def test_kitti_files_that_do_not_fit(tmp_path, path, text, error, message):
    write_kitti(tmp_path)
    (tmp_path / path).write_text(text)
    with pytest.raises(error, match=message):
        KittiTum(tmp_path)


@pytest.mark.parametrize(
    ("path", "text", "error", "message"),
    [
        ("calibration.txt", None, FileNotFoundError, "write the camera of TUM's web page there"),
        ("calibration.txt", "1 2 3", ValueError, "found 3 numbers; expected fx fy cx cy, or"),
        ("groundtruth.txt", None, FileNotFoundError, "missing; expected timestamp tx ty tz"),
        ("groundtruth.txt", "0 1 2 3", ValueError, "expected lines of 8 finite numbers"),
        ("rgb.txt", "0.0", ValueError, "expected a timestamp and a file on each line"),
        ("rgb/1.png", None, FileNotFoundError, "1.png: missing, though the sequence names it"),
    ],
)
def test_tum_files_that_do_not_fit(tmp_path, path, text, error, message):
    write_tum(tmp_path)
    (tmp_path / path).unlink()
    if text is not None:
        (tmp_path / path).write_text(text)
    with pytest.raises(error, match=message):
        KittiTum(tmp_path)


def test_folders_of_neither_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        KittiTum(tmp_path / "none")
    with pytest.raises(ValueError, match="neither of two layouts; expected either sequences/00/"):
        KittiTum(tmp_path)


def test_a_model_without_descriptors(tmp_path):
    class Blind:
        channels = 1

        def extract(self, view, name):
            return Features(view.size, np.zeros((0, 2), np.float32), np.zeros(0, np.float32))

    with pytest.raises(ValueError, match="the model gives no descriptors"):
        run(KittiTum(write_kitti(tmp_path)), Blind(), tmp_path)
