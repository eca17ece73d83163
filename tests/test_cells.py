"""The cells of 8x8 pixels, worked by hand; and that nothing else in the package counts to 64."""

import re
import tokenize
from pathlib import Path

import pytest
import torch

from hfnet_distill import config
from hfnet_distill.data.cells import (
    CELL,
    NOTHING,
    cell_centers,
    cell_corners,
    cell_peaks,
    distributions,
    from_pixels,
    grid_shape,
    image_shape,
    occupied,
    to_pixels,
    with_nothing,
)

ROOT = Path(__file__).parent.parent


def test_pixels_of_a_cell_lie_row_by_row():
    pixels = torch.arange(16 * 24.0).view(1, 16, 24)
    cells = from_pixels(pixels)
    assert cells[0, :10, 1, 2].tolist() == [
        *pixels[0, 8, 16:24].tolist(),
        *pixels[0, 9, 16:18].tolist(),
    ]
    assert torch.equal(to_pixels(cells), pixels)
    assert torch.equal(to_pixels(torch.cat([cells, cells[:, :1]], 1)), pixels)


def test_what_is_left_is_no_keypoint():
    pixels = torch.zeros(1, 64, 1, 2)
    pixels[0, 3, 0, 0] = 0.3
    pixels[0, :2, 0, 1] = 1.5  # two keypoints share a cell that is full
    cells = with_nothing(pixels)
    torch.testing.assert_close(cells[0, NOTHING, 0], torch.tensor([0.7, 0.0]))
    torch.testing.assert_close(cells[0, :2, 0, 1], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(occupied(cells)[0, 0], torch.tensor([0.3, 1.0]))


def test_settings_count_in_the_same_cells():
    assert config.CELL == CELL


def test_incomplete_cells_are_left_out():
    assert grid_shape((47, 64)) == (5, 8)
    assert image_shape((5, 8)) == (40, 64)


def test_centers_and_corners():
    assert cell_centers((1, 2)).tolist() == [[3.5, 3.5], [11.5, 3.5]]
    assert cell_corners((1, 1)).tolist() == [[-0.5, -0.5], [7.5, -0.5], [-0.5, 7.5], [7.5, 7.5]]


def test_the_peak_of_a_cell_is_its_likeliest_pixel():
    logits = torch.zeros(1, 65, 2, 3)
    logits[:, 64] = 9.0  # "no keypoint", whatever else
    logits[0, 8 * 5 + 2, 1, 0] = 1.0
    logits[0, 7, 0, 2] = 1.0
    peaks = cell_peaks(logits)
    assert peaks.dtype == torch.float64
    assert peaks[0].tolist() == [[0, 0], [8, 0], [23, 0], [2, 13], [8, 8], [16, 8]]


ROOMS = ["data", "networks", "student", "teacher_export", "evaluation", "deployment"]


@pytest.mark.parametrize("room", ROOMS)
def test_the_convention_has_one_place(room):
    for path in (ROOT / room).rglob("*.py"):
        with open(path, "rb") as file:
            numbers = [t for t in tokenize.tokenize(file.readline) if t.type == tokenize.NUMBER]
        found = [t.start[0] for t in numbers if re.fullmatch("65", t.string)]
        assert not found, f"{path}:{found[0]}: a cell's channels are data.cells.CHANNELS"


def test_distributions_are_the_softmax():
    logits = torch.randn(2, 65, 3, 4, generator=torch.Generator().manual_seed(0)) * 20
    logits[0, 0, 0, 0], logits[0, NOTHING, 0, 1] = 1e4, -1e4
    torch.testing.assert_close(distributions(logits), logits.softmax(1), atol=1e-6, rtol=0)
