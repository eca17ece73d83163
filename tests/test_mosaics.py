"""Mosaics of small photographs."""

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from hfnet_distill.data.images import list_images, read_image, split_names
from hfnet_distill.data.mosaics import main, make_mosaics


@pytest.fixture
def photographs(tmp_path):
    """Eight plain ones of 80x60 pixels, the n-th of the gray value 20 n."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((60, 80, 3), 20 * number, np.uint8))
    return folder


def grays(path) -> list[int]:
    """Of the quarters of a mosaic of 64x48 pixels, each of one gray."""
    image = read_image(path, channels=1)
    assert image.shape == (48, 64)
    quarters = image[:24, :32], image[:24, 32:], image[24:, :32], image[24:, 32:]
    assert all(np.ptp(quarter) == 0 for quarter in quarters)
    return [int(quarter[0, 0]) for quarter in quarters]


def test_each_photograph_is_used_once_before_one_is_used_again(photographs, tmp_path):
    paths = sorted(photographs.iterdir())
    make_mosaics(paths, tmp_path / "mosaics", size=(64, 48), count=3, seed=0)
    found = [grays(path) for path in sorted((tmp_path / "mosaics").iterdir())]
    assert sorted(found[0] + found[1]) == list(range(0, 160, 20))
    assert len(set(found[2])) == 4


def test_same_seed_same_bytes(photographs, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        paths = sorted(photographs.iterdir())
        make_mosaics(paths, tmp_path / name, size=(64, 48), count=4, seed=seed)
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / n).iterdir())] for n in "abc")
    assert a == b
    assert a != c


def test_the_command_leaves_out_what_is_held_out(photographs):
    arguments = [str(photographs), str(photographs / "more"), "--size", "64x48"]
    arguments += ["--validation", "0.5", "--count", "5"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    _, held_out = split_names([f"{number}.png" for number in range(8)], 0.5)
    found = {gray for path in (photographs / "more").iterdir() for gray in grays(path)}
    assert found == set(range(0, 160, 20)) - {20 * int(name[0]) for name in held_out}
    assert len(list_images(photographs)) == 8 + 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (63, 48)}, "both sides must be even"),
        ({"photographs": []}, "expected 4 or more"),
        ({"output": "."}, "exists already"),
    ],
)
def test_refusals(photographs, tmp_path, change, message):
    wanted = {"photographs": sorted(photographs.iterdir()), "output": "new", "size": (64, 48)}
    wanted |= change
    wanted["output"] = tmp_path / wanted["output"]
    with pytest.raises((ValueError, OSError), match=message):
        make_mosaics(**wanted, count=1, seed=0)


def test_nothing_stays_of_a_failed_making(photographs, tmp_path):
    (photographs / "0.png").write_bytes(b"not a photograph")
    with pytest.raises(ValueError, match="not a readable photograph"):
        make_mosaics(
            sorted(photographs.iterdir()), tmp_path / "new", size=(64, 48), count=2, seed=0
        )
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]
