"""Tiles of large photographs."""

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from hfnet_distill.data.images import list_images, read_image, split_names
from hfnet_distill.data.tiles import cut_tiles, main, make_tiles


def numbered(height: int, width: int) -> np.ndarray:
    """An image (H, W, 1) whose pixels are their own number."""
    return np.arange(height * width).reshape(height, width, 1)


@pytest.fixture
def photographs(tmp_path):
    """Six of 64x48 pixels, the n-th of the gray value 20 n, and one that is smaller."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((48, 64, 3), 20 * number, np.uint8))
    cv2.imwrite(str(folder / "small.png"), np.full((24, 40, 3), 255, np.uint8))
    return folder


@pytest.mark.parametrize(
    ("shape", "corners"),
    [
        ((48, 64), [(0, 0), (0, 32), (24, 0), (24, 32)]),
        ((24, 64), [(0, 0), (0, 32)]),
        # More than half a tile of rest is shared out, less is left out.
        ((42, 32), [(0, 0), (18, 0)]),
        ((30, 64), [(0, 0), (0, 32)]),
        # As large as a tile, hardly larger, or smaller in one direction.
        ((24, 32), []),
        ((30, 40), []),
        ((20, 640), []),
    ],
)
def test_where_tiles_lie(shape, corners):
    image = numbered(*shape)
    tiles = cut_tiles(image, (32, 24))
    assert [tuple(map(int, divmod(tile[0, 0, 0], shape[1]))) for tile in tiles] == corners
    for tile, (y, x) in zip(tiles, corners, strict=True):
        np.testing.assert_array_equal(tile, image[y : y + 24, x : x + 32])


def test_of_each_photograph_at_most_so_many(photographs, tmp_path):
    paths = sorted(photographs.iterdir())
    assert make_tiles(paths, tmp_path / "tiles", size=(32, 24), most=3, seed=0) == 18
    tiles = [read_image(path, channels=1) for path in sorted((tmp_path / "tiles").iterdir())]
    assert {tile.shape for tile in tiles} == {(24, 32)}
    assert [int(tile[0, 0]) for tile in tiles] == np.repeat(range(0, 120, 20), 3).tolist()


def test_same_seed_same_bytes(tmp_path):
    path, seeds = tmp_path / "photograph.png", (("a", 0), ("b", 0), ("c", 1))
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8))
    for name, seed in seeds:
        make_tiles([path], tmp_path / name, size=(32, 24), most=3, seed=seed)
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / n).iterdir())] for n, _ in seeds)
    assert a == b
    assert a != c


def test_the_command_leaves_out_what_is_held_out(photographs):
    training, held_out = split_names(list_images(photographs), 0.5)
    assert training
    assert held_out
    arguments = [str(photographs), str(photographs / "more"), "--size", "32x24"]
    result = CliRunner().invoke(main, [*arguments, "--validation", "0.5"])
    assert result.exit_code == 0, result.output
    found = {int(read_image(p, channels=1)[0, 0]) for p in (photographs / "more").iterdir()}
    assert found == {20 * int(name[0]) for name in training if name != "small.png"}
    assert len(list_images(photographs)) == 7 + 4 * len(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (64, 48)}, "room for two tiles of 64x48; expected larger ones"),
        ({"photographs": []}, "expected larger ones"),
        ({"output": "."}, "exists already"),
    ],
)
def test_refusals(photographs, tmp_path, change, message):
    wanted = {"photographs": sorted(photographs.iterdir()), "output": "new", "size": (32, 24)}
    wanted |= change
    wanted["output"] = tmp_path / wanted["output"]
    with pytest.raises((ValueError, OSError), match=message):
        make_tiles(**wanted, most=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


def test_what_is_not_finished_is_no_photograph(photographs, monkeypatch):
    """As after kill -9, which leaves what was written so far."""
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    (photographs / "5.png").write_bytes(b"not a photograph")
    paths = sorted(photographs.iterdir())
    with pytest.raises(ValueError, match="not a readable photograph"):
        make_tiles(paths, photographs / "more", size=(32, 24), most=2, seed=0)
    assert len([*photographs.glob(".more.*/tile_*.png")]) == 10
    assert list_images(photographs) == [path.name for path in paths]


def test_nothing_stays_of_a_failed_making(photographs, tmp_path):
    (photographs / "5.png").write_bytes(b"not a photograph")
    with pytest.raises(ValueError, match="not a readable photograph"):
        make_tiles(sorted(photographs.iterdir()), tmp_path / "new", size=(32, 24), most=2, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]
