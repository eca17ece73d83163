"""Forms in which people bring datasets, and what is refused by name."""

import cv2
import numpy as np
import pytest

from hfnet_distill.errors import InputError, NotFoundError
from hfnet_distill.evaluation.datasets.hpatches import HPatches
from hfnet_distill.evaluation.datasets.kitti_tum import KittiTum
from hfnet_distill.evaluation.datasets.retrieval import Retrieval

PICTURE = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


def write(path, content: str | bytes, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)


def sequence(folder, views: int, form: str = "1 0 {k}\n0 1 0\n0 0 1\n", encoding="utf-8"):
    for k in range(1, views + 1):
        write(folder / f"{k}.png", PICTURE)
        if k > 1:
            write(folder / f"H_1_{k}", form.format(k=k), encoding)


@pytest.mark.parametrize("views", [2, 3, 12])
def test_a_sequence_has_any_number_of_views(tmp_path, views):
    sequence(tmp_path / "v_box", views)
    pairs = HPatches(tmp_path).pairs
    assert [pair.name1 for pair in pairs] == [f"v_box/{k}.png" for k in range(2, views + 1)]
    assert [pair.H_0to1[0, 2] for pair in pairs] == list(range(2, views + 1))


def test_an_image_without_its_homography_is_refused_and_the_reverse(tmp_path):
    sequence(tmp_path / "v_box", 3)
    write(tmp_path / "v_box" / "7.png", PICTURE)
    with pytest.raises(NotFoundError, match=r"H_1_7: missing.*from image 1 to 7\.png"):
        HPatches(tmp_path)
    (tmp_path / "v_box" / "7.png").rename(tmp_path / "v_box" / "notes.png")
    write(tmp_path / "v_box" / "H_1_9", "1 0 0\n0 1 0\n0 0 1\n")
    with pytest.raises(NotFoundError, match="v_box: image 9 is missing"):
        HPatches(tmp_path)


def test_a_sequence_of_one_image_is_refused(tmp_path):
    sequence(tmp_path / "v_box", 1)
    with pytest.raises(NotFoundError, match="v_box: has one image"):
        HPatches(tmp_path)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "form",
    [
        "1 0 {k}\r\n\r\n0\t1 0\r\n0 0 1\r\n",
        "1.0e0, 0, {k}\n0, 1, 0\n0, 0, 1",
        "[[1 0 {k}]\n [0 1 0]\n [0 0 1]]\n",
        "# from image 1\n1;0;{k}\n0;1;0\n0;0;1\n",
    ],
)
def test_homographies_are_read_as_they_are_saved(tmp_path, encoding, form):
    sequence(tmp_path / "v_box", 2, form, encoding)
    (tmp_path / "v_box" / "H_1_2").rename(tmp_path / "v_box" / "H_1_2.txt")
    np.testing.assert_array_equal(
        HPatches(tmp_path).pairs[0].H_0to1, [[1, 0, 2], [0, 1, 0], [0, 0, 1]]
    )


def retrieval(root, text, encoding="utf-8") -> list[set[str]]:
    """The names of each query's positives."""
    for name in ("hall 0.png", "d1.png", "a,b.png", "sub/d3.png"):
        write(root / "database" / name, PICTURE)
    for name in ("q0.png", "q 1.png"):
        write(root / "queries" / name, PICTURE)
    write(root / "ground_truth.csv", text, encoding)
    found = Retrieval(root)
    return [{found.database[row].removeprefix("database/") for row in p} for p in found.positives]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("text", "positives"),
    [
        ("query,positives\nq0.png,d1.png sub/d3.png\n", {"d1.png", "sub/d3.png"}),
        ("query,positives\r\nq0.png,d1.png,d3\r\n\r\n", {"d1.png", "sub/d3.png"}),
        ("query;positives\nq0.png;d1.png;d3\n", {"d1.png", "sub/d3.png"}),
        ("query\tpositives\nq0.png\td1.png d3\n", {"d1.png", "sub/d3.png"}),
        ("Query, Positives\nq0.png,d1.png; d3\n", {"d1.png", "sub/d3.png"}),
        ("query,positives\nq0.png,d1|d3\n", {"d1.png", "sub/d3.png"}),
        ("query,positives,note\nq0.png,d1 d3,x\n", {"d1.png", "sub/d3.png"}),
        ("query,positives\nq0.png,hall 0.png d1.png\n", {"hall 0.png", "d1.png"}),
        ("query,positives\nq0.png,d1 hall 0\n", {"hall 0.png", "d1.png"}),
        ('query,positives\nq0.png,"hall 0.png"\n', {"hall 0.png"}),
        ('query,positives\nq0.png,"a,b.png, d1.png"\n', {"a,b.png", "d1.png"}),
        ("query,positives\nq 1.png,./database/d1.png\n", {"d1.png"}),
        ("query,positives\nqueries/q0.png,/far/database/sub/d3.png\n", {"sub/d3.png"}),
        ("query,positives\nq0.png,sub\\d3.png\n", {"sub/d3.png"}),
    ],
)
def test_ground_truths_of_many_forms(tmp_path, text, positives, encoding):
    assert retrieval(tmp_path, text, encoding) == [positives]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,positives,note\nq0.png,d1,d3,x\n", "line 2: 4 columns, the first line has 3"),
        ("query,positives\nq0.png,d1 hall 9.png\n", "no photograph 'hall'"),
    ],
)
def test_ground_truths_that_cannot_be_meant(tmp_path, text, message):
    with pytest.raises((InputError, NotFoundError), match=message):
        retrieval(tmp_path, text)


POSES = [f"1 0 0 {i} 0 1 0 0 0 0 1 0\n" for i in range(4)]


def kitti(root, names=("8.png", "9.png", "10.png", "11.png"), poses=POSES):
    for name in names:
        write(root / "sequences" / "00" / "image_0" / name, PICTURE)
    write(root / "sequences" / "00" / "calib.txt", "P0: 250 0 4 0 0 250 4 0 0 0 1 0\n")
    write(root / "poses" / "00.txt", "".join(poses))
    return KittiTum(root)


def test_frames_are_in_the_order_in_which_one_counts(tmp_path):
    pairs = [pair for pair in kitti(tmp_path).pairs if "/8.png" in pair.name0]
    assert [pair.name1.rsplit("/")[-1] for pair in pairs] == ["9.png", "11.png"]
    assert [pair.T_0to1[0, 3] for pair in pairs] == [-1, -3]


def test_poses_must_be_rotations(tmp_path):
    with pytest.raises(InputError, match=r"00\.txt: holds no rotations"):
        kitti(tmp_path, poses=["1 0 0 0 0 2 0 0 0 0 1 0\n"] * 4)


def tum(root, *, listed="rgb/{i}.png", calibration="250 251 4 3\n", encoding="utf-8"):
    names = [listed.format(i=i, root=root) for i in range(3)]
    for i, name in enumerate(names):
        write(root / "rgb" / name.rsplit("/", 1)[-1], PICTURE)
        names[i] = f"{i}.5 {name}\n"
    write(root / "rgb.txt", "# timestamp filename\n" + "".join(names), encoding)
    truth = "".join(f"{i}.501 {i} 0 0 0 0 0 1\n" for i in range(3))
    write(root / "groundtruth.txt", "# truth\n" + truth, encoding)
    write(root / "calibration.txt", calibration, encoding)
    return KittiTum(root)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "listed",
    ["rgb/{i}.png", "./rgb/{i}.png", "{root}/rgb/{i}.png", "/elsewhere/tum/rgb/{i}.png"],
)
def test_lists_name_photographs_in_many_ways(tmp_path, listed, encoding):
    dataset = tum(tmp_path, listed=listed, encoding=encoding)
    assert list(dataset.images) == ["rgb/0.png", "rgb/1.png", "rgb/2.png"]
    assert all(path.is_file() for path in dataset.images.values())


def test_lists_may_name_photographs_with_spaces(tmp_path):
    dataset = tum(tmp_path, listed="rgb/my {i}.png")
    assert next(iter(dataset.images)) == "rgb/my 0.png"


@pytest.mark.parametrize(
    ("calibration", "distortion"),
    [
        ("250 251 4 3\n", 0),
        ("# fx fy cx cy\n250, 251, 4, 3\n", 0),
        ("250 251 4 3 0.1 0.1 0.1 0.1 0.1\n", 0.1),
        ("250 0 4\n0 251 3\n0 0 1\n", 0),
        ("250 0 4 0 251 3 0 0 1\n", 0),
        ("[[250, 0, 4],\n [0, 251, 3],\n [0, 0, 1]]\n", 0),
    ],
)
def test_cameras_of_many_forms(tmp_path, calibration, distortion):
    camera = next(iter(tum(tmp_path, calibration=calibration).cameras.values()))
    np.testing.assert_array_equal(camera.K, [[250, 0, 4], [0, 251, 3], [0, 0, 1]])
    np.testing.assert_array_equal(camera.distortion, [distortion] * 5)


@pytest.mark.parametrize(
    "calibration", ["250 0 4 3\n", "-250 251 4 3\n", "250 0 4\n0 251 3\n0 0 2\n"]
)
def test_what_is_no_camera_is_refused(tmp_path, calibration):
    with pytest.raises(InputError, match=r"calibration\.txt: .* is no camera matrix"):
        tum(tmp_path, calibration=calibration)
