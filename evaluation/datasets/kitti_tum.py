"""Relative poses of calibrated cameras, from two layouts with camera-to-world poses in meters.

* KITTI odometry (Geiger et al., CVPR 2012): ``sequences/00/image_0/*.png`` (or ``image_2``, in
  color), in the order in which one counts, ``sequences/00/calib.txt`` with ``P0`` to ``P3``, and
  ``poses/00.txt`` with twelve numbers a line, the 3x4 matrix of camera 0 row by row. A sequence
  without poses is left out.
* TUM RGB-D (Sturm et al., IROS 2012): ``rgb.txt`` (timestamp, file), ``groundtruth.txt``
  (timestamp tx ty tz qx qy qz qw) and ``calibration.txt`` or ``camera.txt``: fx fy cx cy, perhaps
  with OpenCV's distortion k1 k2 p1 p2 k3, or the 3x3 camera matrix. TUM ships no such file; its web
  page lists the numbers. The root is one such folder or holds several.

Both count pixels as ``data.geometry`` does. Pairs are frames i and i + s of a sequence, for the
strides s of ``STRIDES``, with a rotation of at most ``MAX_ROTATION`` degrees, so that the views
overlap, and a baseline of at least ``MIN_BASELINE`` meters, so that there is a direction to find.
"""

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ...data.images import list_images, natural_order
from ...errors import InputError, NotFoundError
from . import register_dataset
from .base import (
    BESIDE_NUMBERS,
    Camera,
    PoseDataset,
    PosePair,
    read_lines,
    rotation_angle,
    to_4x4,
    to_numbers,
)

__all__ = ["KittiTum"]

STRIDES = (1, 3, 10, 30)
MAX_ROTATION, MIN_BASELINE = 45.0, 0.05
MAX_PAIRS = 500
"""Of more, so many are taken at even steps through sequences, strides and frames."""
MAX_LAG = 0.02
"""Seconds between a photograph and the nearest pose; it is left out if there is none."""


@register_dataset("kitti_tum")
class KittiTum(PoseDataset):
    """All pairs of a folder in KITTI's or TUM's layout, sequences in alphabetical order.

    Raises:
        NotFoundError: the root, or a file that a layout must have, is missing.
        InputError: a folder of another layout, numbers that do not fit, or no pairs.
    """

    def __init__(self, root: str | Path, split: str = "all"):
        root = Path(root)
        if not root.is_dir():
            raise NotFoundError(f"{root}: no such folder; expected KITTI's or TUM's layout")
        tum = [path.parent for path in sorted([*root.glob("rgb.txt"), *root.glob("*/rgb.txt")])]
        kitti = sorted(
            p.stem for p in root.glob("poses/*.txt") if (root / "sequences" / p.stem).is_dir()
        )
        if bool(tum) == bool(kitti):
            raise InputError(
                f"{root}: {'both' if tum else 'neither'} of two layouts; expected either "
                "sequences/00/ with poses/00.txt (KITTI odometry), or rgb.txt, groundtruth.txt and "
                "calibration.txt in it or in each of its folders (TUM RGB-D)"
            )
        read = {folder.resolve().name: _read_tum(root, folder) for folder in tum}
        read |= {name: _read_kitti(root, name) for name in kitti}
        self.sequences = list(read)
        self.cameras = {name: camera for name, (camera, _, _) in read.items()}
        self.pairs = _choose_pairs({name: (names, T) for name, (_, names, T) in read.items()})
        if not self.pairs:
            raise InputError(
                f"{root}: no pairs among {sum(len(names) for _, names, _ in read.values())} "
                f"photographs with a pose; expected some {' or '.join(map(str, STRIDES))} frames "
                f"apart with at least {MIN_BASELINE} m and at most {MAX_ROTATION:.0f} degrees "
                "between them"
            )
        names = dict.fromkeys(n for pair in self.pairs for n in (pair.name0, pair.name1))
        self.images = {name: root / name for name in names}
        if missing := [path for path in self.images.values() if not path.is_file()]:
            raise NotFoundError(f"{missing[0]}: missing, though the sequence names it")


def _read_kitti(root: Path, sequence: str) -> tuple[Camera, list[str], np.ndarray]:
    """The camera, names below the root, and poses (N, 4, 4) of that camera to the world."""
    folder = root / "sequences" / sequence
    number = next((k for k in (0, 2) if (folder / f"image_{k}").is_dir()), None)
    if number is None:
        raise NotFoundError(f"{folder}: has neither image_0 nor image_2 with its photographs")
    path = folder / "calib.txt"
    lines = read_lines(path, "P0: and twelve numbers, to P3:")
    key = f"P{number}:"
    line = next((line for line in lines if line.startswith(key)), None)
    if line is None:
        raise InputError(f"{path}: has no line {key}, of image_{number}")
    P = to_numbers([line.removeprefix(key)], path, 12).reshape(3, 4)
    _check_matrix(P[:, :3], path)
    path = root / "poses" / f"{sequence}.txt"
    poses = to_numbers(read_lines(path, "twelve numbers a line"), path, 12).reshape(-1, 3, 4)
    R = poses[..., :3]
    if not np.allclose(R @ R.swapaxes(1, 2), np.eye(3), atol=0.01):
        raise InputError(f"{path}: holds no rotations; expected 3x4 matrices row by row")
    images = sorted(list_images(folder / f"image_{number}"), key=natural_order)
    if len(images) != len(poses):
        raise InputError(
            f"{path}: {len(poses)} poses for {len(images)} photographs in image_{number}; expected "
            "one line for each"
        )
    # P projects points of camera 0: its last column says where this camera stands beside it.
    beside = -np.linalg.solve(P[:, :3], P[:, 3])
    T_to_world = to_4x4(poses[..., :3], poses[..., 3] + poses[..., :3] @ beside)
    names = [f"sequences/{sequence}/image_{number}/{image}" for image in images]
    return Camera(P[:, :3], np.zeros(5)), names, T_to_world


def _read_tum(root: Path, folder: Path) -> tuple[Camera, list[str], np.ndarray]:
    """As ``_read_kitti``, of the photographs that have a pose."""
    listed = folder / "rgb.txt"
    lines = [line.split(None, 1) for line in read_lines(listed, "a timestamp and a file a line")]
    if any(len(line) != 2 for line in lines):
        raise InputError(f"{listed}: expected a timestamp and a file on each line")
    times = to_numbers([line[0] for line in lines], listed, 1)[:, 0]
    path = folder / "groundtruth.txt"
    truth = to_numbers(read_lines(path, "timestamp tx ty tz qx qy qz qw a line"), path, 8)
    if not truth[:, 4:].any(axis=1).all():
        raise InputError(f"{path}: a quaternion qx qy qz qw of zeros; leave its line out")
    truth = truth[np.argsort(truth[:, 0], kind="stable")]
    after = np.searchsorted(truth[:, 0], times).clip(1, len(truth) - 1)
    rows = after - (times - truth[after - 1, 0] <= truth[after, 0] - times)
    known = np.flatnonzero(np.abs(truth[rows, 0] - times) <= MAX_LAG)
    names = [_find_listed(root, folder, lines[row][1]) for row in known]
    poses = truth[rows[known]]
    R = Rotation.from_quat(poses[:, 4:]).as_matrix()
    return _read_camera(folder), names, to_4x4(R, poses[:, 1:4])


def _find_listed(root: Path, folder: Path, listed: str) -> str:
    """A photograph that ``rgb.txt`` names, relative to the root where it lies in it.

    Of another machine's absolute path, the end that lies in the folder is taken.
    """
    path = Path(listed)
    if path.is_absolute() and not path.is_file():
        tails = (folder.joinpath(*path.parts[i:]) for i in range(1, len(path.parts)))
        path = next((tail for tail in tails if tail.is_file()), path)
    path = folder / path
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _read_camera(folder: Path) -> Camera:
    paths = [folder / "calibration.txt", folder / "camera.txt"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise NotFoundError(
            f"{paths[0]}: missing; write the camera of TUM's web page there as fx fy cx cy, with "
            "k1 k2 p1 p2 k3 behind where photographs are not rectified (freiburg 1 and 2)"
        )
    expected = "fx fy cx cy, or these and k1 k2 p1 p2 k3, or a 3x3 matrix"
    lines = read_lines(path, expected)
    text = " ".join(lines)
    count = len([word for word in BESIDE_NUMBERS.split(text) if word])
    if count not in (4, 9):
        raise InputError(f"{path}: found {count} numbers; expected {expected}")
    numbers = to_numbers([text], path, count)[0]
    K, distortion = np.eye(3), np.zeros(5)
    if count == 9 and (len(lines) == 3 or (numbers[[3, 6, 7, 8]] == (0, 0, 0, 1)).all()):
        K = numbers.reshape(3, 3)
    else:
        K[[0, 1, 0, 1], [0, 1, 2, 2]] = numbers[:4]
        distortion[: count - 4] = numbers[4:]
    _check_matrix(K, path)
    return Camera(K, distortion)


def _check_matrix(K: np.ndarray, path: Path) -> None:
    """Refuse what is no camera matrix (3, 3)."""
    if not (K[0, 0] > 0 and K[1, 1] > 0 and K[1, 0] == 0 and (K[2] == (0, 0, 1)).all()):
        raise InputError(
            f"{path}: {K.tolist()} is no camera matrix; expected fx 0 cx, 0 fy cy, 0 0 1 with "
            "focal lengths fx and fy above 0"
        )


def _choose_pairs(sequences: dict[str, tuple[list[str], np.ndarray]]) -> list[PosePair]:
    named, found = list(sequences.items()), []
    for number, (_, (_, T_to_world)) in enumerate(named):
        for stride in STRIDES:
            T_0to1 = np.linalg.inv(T_to_world[stride:]) @ T_to_world[:-stride]
            near = rotation_angle(T_0to1[:, :3, :3]) <= MAX_ROTATION
            apart = np.linalg.norm(T_0to1[:, :3, 3], axis=1) >= MIN_BASELINE
            found += [(number, i, i + stride, T_0to1[i]) for i in np.flatnonzero(near & apart)]
    picks = np.linspace(0, len(found) - 1, min(len(found), MAX_PAIRS)).round().astype(int)
    pairs = []
    for number, i, j, T_0to1 in sorted((found[pick] for pick in picks), key=lambda f: f[:3]):
        sequence, (names, _) = named[number]
        pairs.append(PosePair(sequence, names[i], names[j], T_0to1))
    return pairs
