"""Relative poses of calibrated cameras, from two layouts with camera-to-world poses in metres.

* KITTI odometry (Geiger et al., CVPR 2012): ``sequences/00/image_0/*.png`` (or ``image_2``, in
  colour), ``sequences/00/calib.txt`` with ``P0`` to ``P3``, and ``poses/00.txt`` with twelve
  numbers a line, the 3x4 matrix of camera 0 row by row. A sequence without poses is left out.
* TUM RGB-D (Sturm et al., IROS 2012): ``rgb.txt`` (timestamp, file), ``groundtruth.txt``
  (timestamp tx ty tz qx qy qz qw) and ``calibration.txt`` or ``camera.txt``: fx fy cx cy and, for
  photographs that are not rectified, OpenCV's distortion k1 k2 p1 p2 k3. TUM ships no such file;
  its web page lists the numbers in that order, and freiburg 1 and 2 are not rectified. The root is
  one such folder or holds several. A photograph takes the pose of the nearest timestamp within
  0.02 s, and is left out if there is none.

Both count pixels as ``data.geometry`` does: the centre of the top-left pixel is (0, 0).

Pairs are frames i and i + s of a sequence, for the strides s of ``STRIDES``, with a rotation of at
most ``MAX_ROTATION`` degrees, so that the views overlap, and a baseline of at least
``MIN_BASELINE`` metres, so that there is a direction to find. Of more than ``MAX_PAIRS``, so many
are taken at even steps through sequences, strides and frames.
"""

from pathlib import Path

import numpy as np

from ...data.images import list_images
from ..motions import rotation_angle, to_4x4
from . import register_dataset
from .base import Camera, PoseDataset, PosePair

__all__ = ["KittiTum"]

STRIDES = (1, 3, 10, 30)
MAX_ROTATION, MIN_BASELINE, MAX_PAIRS = 45.0, 0.05, 500
MAX_LAG = 0.02
"""Seconds between a photograph and its pose."""


@register_dataset("kitti_tum")
class KittiTum(PoseDataset):
    """All pairs of a folder in KITTI's or TUM's layout; every text file is read at once.

    Attributes:
        pairs: by sequences in alphabetical order, then by their first frame.
        images: in the order of the pairs.

    Raises:
        FileNotFoundError: the root, or a file that a layout must have, is missing.
        ValueError: a folder of another layout, numbers that do not fit, or no pairs.
    """

    def __init__(self, root: str | Path, split: str = "all"):
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected KITTI's or TUM's layout")
        tum = [path.parent for path in sorted([*root.glob("rgb.txt"), *root.glob("*/rgb.txt")])]
        kitti = sorted(
            p.stem for p in root.glob("poses/*.txt") if (root / "sequences" / p.stem).is_dir()
        )
        if bool(tum) == bool(kitti):
            raise ValueError(
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
            raise ValueError(
                f"{root}: no pairs among {sum(len(names) for _, names, _ in read.values())} "
                f"photographs with a pose; expected some {' or '.join(map(str, STRIDES))} frames "
                f"apart with at least {MIN_BASELINE} m and at most {MAX_ROTATION:.0f} degrees "
                "between them"
            )
        names = dict.fromkeys(n for pair in self.pairs for n in (pair.name0, pair.name1))
        self.images = {name: root / name for name in names}
        if missing := [path for path in self.images.values() if not path.is_file()]:
            raise FileNotFoundError(f"{missing[0]}: missing, though the sequence names it")


def _read_kitti(root: Path, sequence: str) -> tuple[Camera, list[str], np.ndarray]:
    """The camera, names below the root, and poses (N, 4, 4) of that camera to the world."""
    folder = root / "sequences" / sequence
    number = next((k for k in (0, 2) if (folder / f"image_{k}").is_dir()), None)
    if number is None:
        raise FileNotFoundError(f"{folder}: has neither image_0 nor image_2 with its photographs")
    lines = _read_lines(folder / "calib.txt", "P0: and twelve numbers, to P3:")
    line = next((line for line in lines if line[0] == f"P{number}:"), None)
    if line is None:
        raise ValueError(f"{folder / 'calib.txt'}: has no line P{number}:, of image_{number}")
    P = _to_numbers([line[1:]], folder / "calib.txt", 12).reshape(3, 4)
    path = root / "poses" / f"{sequence}.txt"
    poses = _to_numbers(_read_lines(path, "twelve numbers a line"), path, 12).reshape(-1, 3, 4)
    images = list_images(folder / f"image_{number}")
    if len(images) != len(poses):
        raise ValueError(
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
    lines = _read_lines(folder / "rgb.txt", "a timestamp and a file a line")
    times = _to_numbers([line[:1] for line in lines], folder / "rgb.txt", 1)[:, 0]
    if any(len(line) != 2 for line in lines):
        raise ValueError(f"{folder / 'rgb.txt'}: expected a timestamp and a file on each line")
    path = folder / "groundtruth.txt"
    truth = _to_numbers(_read_lines(path, "timestamp tx ty tz qx qy qz qw a line"), path, 8)
    truth = truth[np.argsort(truth[:, 0], kind="stable")]
    after = np.searchsorted(truth[:, 0], times).clip(1, len(truth) - 1)
    rows = after - (times - truth[after - 1, 0] <= truth[after, 0] - times)
    known = np.flatnonzero(np.abs(truth[rows, 0] - times) <= MAX_LAG)
    names = [(folder / lines[row][1]).relative_to(root).as_posix() for row in known]
    R = _from_quaternions(truth[rows[known], 4:])
    return _read_camera(folder), names, to_4x4(R, truth[rows[known], 1:4])


def _read_camera(folder: Path) -> Camera:
    paths = [folder / "calibration.txt", folder / "camera.txt"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{paths[0]}: missing; write the camera of TUM's web page there as fx fy cx cy, with "
            "k1 k2 p1 p2 k3 behind where photographs are not rectified (freiburg 1 and 2)"
        )
    words = [word for line in _read_lines(path, "fx fy cx cy") for word in line]
    if len(words) not in (4, 9):
        raise ValueError(
            f"{path}: found {len(words)} numbers; expected fx fy cx cy, or these and k1 k2 p1 p2 k3"
        )
    fx, fy, cx, cy, *distortion = _to_numbers([words], path, len(words))[0]
    return Camera(
        np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.array(distortion or np.zeros(5))
    )


def _read_lines(path: Path, expected: str) -> list[list[str]]:
    """The words of each line that is neither empty nor a comment."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; expected {expected}")
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line[0].startswith("#")]
    if not lines:
        raise ValueError(f"{path}: is empty; expected {expected}")
    return lines


def _to_numbers(lines: list[list[str]], path: Path, count: int) -> np.ndarray:
    """Lines of ``count`` words as float64 (N, count)."""
    try:
        numbers = np.array(lines, np.float64)
    except ValueError:
        numbers = np.zeros((0, 0))
    if numbers.shape != (len(lines), count) or not np.isfinite(numbers).all():
        raise ValueError(f"{path}: expected lines of {count} finite numbers")
    return numbers


def _from_quaternions(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions (N, 4), x y z w of any length, as rotations (N, 3, 3)."""
    x, y, z, w = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    R = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(R), -1, 0)


def _choose_pairs(sequences: dict[str, tuple[list[str], np.ndarray]]) -> list[PosePair]:
    found = []
    for sequence, (_, T_to_world) in sequences.items():
        for stride in STRIDES:
            T_0to1 = np.linalg.inv(T_to_world[stride:]) @ T_to_world[:-stride]
            near = rotation_angle(T_0to1[:, :3, :3]) <= MAX_ROTATION
            apart = np.linalg.norm(T_0to1[:, :3, 3], axis=1) >= MIN_BASELINE
            found += [(sequence, i, i + stride, T_0to1[i]) for i in np.flatnonzero(near & apart)]
    picks = np.linspace(0, len(found) - 1, min(len(found), MAX_PAIRS)).round().astype(int)
    order = {sequence: number for number, sequence in enumerate(sequences)}
    chosen = sorted((found[pick] for pick in picks), key=lambda f: (order[f[0]], *f[1:3]))
    return [
        PosePair(sequence, sequences[sequence][0][i], sequences[sequence][0][j], T_0to1)
        for sequence, i, j, T_0to1 in chosen
    ]
