import cv2
import numpy as np
import pytest

from hfnet_distill.data.images import read_image
from hfnet_distill.evaluation.datasets.hpatches import HPatches
from hfnet_distill.evaluation.datasets.rendered import render_sequences

SIZE = (160, 120)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two made-up photographs, one wide and large, one upright and small."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, (width, height) in (("wide.png", (640, 400)), ("tall.png", (200, 300))):
        coarse = rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8)
        photo = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / name), photo)
    return sorted(folder.iterdir())


def test_layout_and_photographs_used(photos, tmp_path):
    names = render_sequences(photos, tmp_path / "set", seed=1, count=3, size=SIZE)
    assert [name[:5] for name in names] == ["i_002", "v_001", "v_003"]
    assert names[1][6:] == names[2][6:] != names[0][6:]  # each once before one twice
    dataset = HPatches(tmp_path / "set")
    assert dataset.sequences == names
    assert read_image(dataset.images[dataset.pairs[0].name1], channels=3).shape == (120, 160, 3)
    for pair in dataset.pairs:
        is_identity = (pair.H_0to1 == np.eye(3)).all()
        assert is_identity == (pair.sequence[0] == "i")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_images_agree_with_their_homography(photos, tmp_path):
    render_sequences(photos, tmp_path / "set", seed=2, count=4, size=SIZE, views=5)

    def agreement(pair, shift):
        """Correlation, in the overlap, of image 1 warped by a homography off by ``shift``."""
        H = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]]) @ pair.H_0to1
        image0, image1 = (
            read_image(path, channels=1).astype(np.float32)
            for path in (dataset.images[pair.name0], dataset.images[pair.name1])
        )
        overlap = cv2.warpPerspective(np.ones_like(image0), H, SIZE) > 0.999
        assert overlap.mean() > 0.2
        warped = cv2.warpPerspective(image0, H, SIZE, borderMode=cv2.BORDER_REPLICATE)
        detail0, detail1 = (i - cv2.GaussianBlur(i, (0, 0), 8) for i in (warped, image1))
        return np.corrcoef(detail0[overlap], detail1[overlap])[0, 1]

    dataset = HPatches(tmp_path / "set")
    for pair in dataset.pairs:
        right = agreement(pair, (0, 0))
        assert right > (0.85 if pair.sequence[0] == "v" else 0.5)
        for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            assert agreement(pair, shift) < right


def test_same_seed_same_bytes(photos, tmp_path):
    for name, seed, order in (("a", 5, 1), ("b", 5, -1), ("c", 6, 1)):
        render_sequences(photos[::order], tmp_path / name, seed=seed, count=2, size=SIZE, views=1)

    def contents(name):
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        return [(p.relative_to(tmp_path / name).as_posix(), p.read_bytes()) for p in files]

    assert contents("a") == contents("b")
    assert contents("a") != contents("c")


def test_fine_texture_does_not_alias(tmp_path):
    """A photograph of one-pixel stripes is plain gray to a camera that sees a tenth of it."""
    stripes = np.zeros((1200, 1600, 3), np.uint8)
    stripes[:, ::2] = 255
    cv2.imwrite(str(tmp_path / "stripes.png"), stripes)
    render_sequences([tmp_path / "stripes.png"], tmp_path / "set", seed=0, count=1, size=SIZE)
    for name in range(1, 7):
        [path] = (tmp_path / "set").glob(f"*/{name}.ppm")
        gray = read_image(path, channels=1).astype(np.float32)
        assert (gray - cv2.blur(gray, (15, 15))).std() < 15  # without the filter 33 to 94


def test_nothing_stays_of_a_failed_rendering(photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a photograph")
    with pytest.raises(ValueError, match=r"broken\.png"):
        render_sequences([*photos, broken], tmp_path / "set", seed=0, count=3, size=SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["broken.png"]


def test_refusals(photos, tmp_path):
    with pytest.raises(ValueError, match="no photographs"):
        render_sequences([], tmp_path / "set", seed=0, count=1)
    with pytest.raises(ValueError, match="found 0 and 5"):
        render_sequences(photos, tmp_path / "set", seed=0, count=0)
    with pytest.raises(FileExistsError, match="exists already"):
        render_sequences(photos, tmp_path, seed=0, count=1)
