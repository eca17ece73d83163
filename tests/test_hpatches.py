import cv2
import numpy as np
import pytest

from hfnet_distill.data.geometry import resize_homography, warp_points
from hfnet_distill.evaluation.datasets.hpatches import HPatches
from hfnet_distill.evaluation.features import load_view

H_FILE = "1 0 {k}\n0 1 0\n0 0 1\n"


@pytest.fixture
def root(tmp_path):
    for name, suffix in (("v_wall", "ppm"), ("i_lamp", "png"), ("v_dome", "JPG")):
        (tmp_path / name).mkdir()
        for k in range(1, 7):
            image = np.full((30, 40, 3), 40 * k, np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{k}.{suffix}"), image)
            if k > 1:
                (tmp_path / name / f"H_1_{k}").write_text(H_FILE.format(k=k))
    (tmp_path / "README.md").write_text("files beside the sequences are nobody's business")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_pairs_in_order(root):
    dataset = HPatches(root)
    assert dataset.sequences == ["i_lamp", "v_dome", "v_wall"]
    assert len(dataset.pairs) == 15
    assert len(dataset.images) == 18
    pair = dataset.pairs[11]
    assert (pair.sequence, pair.name0, pair.name1) == ("v_wall", "v_wall/1.ppm", "v_wall/3.ppm")
    assert dataset.images[pair.name1] == root / "v_wall" / "3.ppm"
    np.testing.assert_array_equal(pair.H_0to1, [[1, 0, 3], [0, 1, 0], [0, 0, 1]])


def test_splits(root):
    assert HPatches(root, split="illumination").sequences == ["i_lamp"]
    assert HPatches(root, split="viewpoint").sequences == ["v_dome", "v_wall"]
    with pytest.raises(ValueError, match=r"'light'; expected one of all, illumination, viewpoint"):
        HPatches(root, split="light")


def test_missing_root_and_empty_root(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        HPatches(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no sequences for split 'all'"):
        HPatches(tmp_path)


def test_split_without_sequences(root):
    (root / "i_lamp").rename(root / "v_lamp")
    with pytest.raises(FileNotFoundError, match=r"'illumination'; expected folders i_\*"):
        HPatches(root, split="illumination")


def test_foreign_folder_is_named(root):
    (root / "holiday").mkdir()
    with pytest.raises(ValueError, match="holiday: not a sequence"):
        HPatches(root)


def test_missing_and_doubled_image(root):
    (root / "v_wall" / "4.ppm").rename(root / "v_wall" / "3.png")
    with pytest.raises(ValueError, match=r"v_wall: image 3 is there 2 times, as 3.png and 3.ppm"):
        HPatches(root)
    (root / "v_wall" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match="v_wall: image 4 is missing"):
        HPatches(root)


def test_missing_homography(root):
    (root / "v_wall" / "H_1_5").unlink()
    with pytest.raises(FileNotFoundError, match="H_1_5: missing"):
        HPatches(root)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1 0 0\n0 1 0\n", "2 lines; expected three rows of three finite numbers"),
        ("1 0 0\n0 1\n0 0 1", "expected lines of 3 finite numbers, found '0 1'"),
        ("1 0 0\n0 1 nan\n0 0 1", "found '0 1 nan'"),
        ("1 0 0\n0 1 x\n0 0 1", "found '0 1 x'"),
        ("1 0 0\n1 0 0\n0 0 1", r"\[1.0, 0.0, 0.0\], \[1.0, 0.0, 0.0\].* an invertible"),
        ("", "is empty; expected three rows"),
    ],
)
def test_damaged_homography(root, text, found):
    (root / "v_dome" / "H_1_2").write_text(text)
    with pytest.raises(ValueError, match=f"H_1_2: .*{found}"):
        HPatches(root)


def test_resized_view_and_its_homography(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((300, 800, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((400, 200, 3), np.uint8))
    view0 = load_view(tmp_path / "a.png", longest_side=400)
    view1 = load_view(tmp_path / "b.png", longest_side=400, channels=3)
    assert (view0.size, view0.file_size, view0.image.shape) == ((400, 150), (800, 300), (150, 400))
    assert (view1.size, view1.file_size) == ((200, 400), (200, 400))
    H_0to1 = np.array([[1, 0, 7], [0, 1, -3], [0, 0, 1.0]])
    sizes = view0.file_size, view0.size, view1.file_size, view1.size
    scaled = resize_homography(H_0to1, *sizes)
    # The edge between two pixels stays an edge: -0.5 is -0.5 in the file, then +7, -3.
    np.testing.assert_allclose(warp_points([[-0.5, -0.5]], scaled), [[6.5, -3.5]])
    np.testing.assert_allclose(warp_points([[9.5, 9.5]], scaled), [[26.5, 16.5]])
    assert load_view(tmp_path / "a.png", longest_side=0).size == (800, 300)


def test_real_sequences(hpatches):
    dataset = HPatches(hpatches)
    assert len(dataset.pairs) == 5 * len(dataset.sequences)
    view0, view1 = (load_view(path) for path in list(dataset.images.values())[:2])
    assert max(view0.size) == max(view1.size) == 640
