"""Targets: what the student can learn from, and that a perfect student has nothing to learn."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.data.geometry import CELL_MAP, MapGeometry, resample_map, warp_points
from hfnet_distill.data.stores.store import Field, RecordStore, Schema
from hfnet_distill.errors import StoreError
from hfnet_distill.networks.base import StudentOutput
from hfnet_distill.student.targets import choose_targets

SIZE = (64, 48)


def make_store(path, arrays=None, **fields: Field) -> RecordStore:
    """A complete store of one record, random where no arrays are given."""
    schema = Schema(
        teacher="test",
        weights="0" * 64,
        settings={},
        image_size=SIZE,
        fields=fields,
        shard_size=1,
        compression="none",
        software="0",
    )
    store = RecordStore.create(path, schema, ["a"], "zarr")
    rng = np.random.default_rng(0)
    arrays = arrays or {name: rng.uniform(size=field.shape) for name, field in fields.items()}
    store.write_shard(0, {n: np.asarray(arrays[n], f.dtype)[None] for n, f in fields.items()})
    store.finish()
    return store


def pixels(border: int) -> Field:
    shape = (1, SIZE[1] - 2 * border, SIZE[0] - 2 * border)
    return Field(shape=shape, dtype="float16", geometry=MapGeometry(1, border))


CELLS = Field(shape=(8, 6, 8), dtype="float16", geometry=CELL_MAP)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"descriptor_map": CELLS}, "has no score_map"),
        (
            {"score_map": pixels(9), "descriptor_map": pixels(9)},
            "export it without a form behind its name",
        ),
        ({"score_map": CELLS, "descriptor_map": CELLS}, "its score_map has 8 channels"),
    ],
)
def test_stores_that_the_student_cannot_learn_from(tmp_path, fields, message):
    store = make_store(tmp_path / "store", **fields)
    with pytest.raises(StoreError, match=message):
        choose_targets([store])


def test_keypoints_of_one_teacher_and_descriptors_of_another(tmp_path):
    scores = make_store(tmp_path / "scores", score_map=pixels(0))
    descriptors = make_store(tmp_path / "descriptors", descriptor_map=CELLS)
    (target,) = choose_targets([descriptors, scores])
    assert (target.scores, target.descriptors) == (scores, descriptors)
    both = make_store(tmp_path / "both", score_map=pixels(0), descriptor_map=CELLS)
    with pytest.raises(StoreError, match="a second store of the same kind"):
        choose_targets([both, descriptors])
    sparse = make_store(tmp_path / "sparse", **SPARSE)
    with pytest.raises(StoreError, match="learns nothing from it"):
        choose_targets([both, sparse])
    with pytest.raises(StoreError, match="has no keypoints"):
        choose_targets([both], "sparse")


SPARSE = {
    "keypoints": Field(shape=(50, 2), dtype="float32"),
    "scores": Field(shape=(50,), dtype="float32"),
    "descriptors": Field(shape=(50, 8), dtype="float32"),
    "count": Field(shape=(), dtype="int32"),
}


def smooth_map() -> torch.Tensor:
    """Descriptors (1, 8, 6, 8) that turn slowly from left to right and from top to bottom."""
    y, x = torch.meshgrid(torch.arange(6) / 6, torch.arange(8) / 8, indexing="ij")
    waves = [f(k * v) for v in (x, y) for f in (torch.sin, torch.cos) for k in (1, 2)]
    return F.normalize(torch.stack(waves)[None], dim=1)


@pytest.mark.parametrize("strategy", ["peaks", "downsample", "upsample", "sparse"])
def test_a_perfect_student_has_no_descriptor_loss(tmp_path, strategy):
    rng = np.random.default_rng(0)
    cells = smooth_map()
    full = resample_map(cells, CELL_MAP, MapGeometry(1, 9), (30, 46))
    keypoints = rng.uniform([20, 12], [44, 36], (50, 2)).astype(np.float32)
    at = torch.from_numpy(keypoints - 9)[None, None]
    at = 2 * at / torch.tensor([45, 29]) - 1
    descriptors = F.grid_sample(full, at, align_corners=True)[0, :, 0].mT
    fields, arrays = (
        SPARSE,
        {
            "keypoints": keypoints,
            "scores": np.ones(50),
            "descriptors": F.normalize(descriptors, dim=1),
            "count": 40,
        },
    )
    if strategy != "sparse":
        fields = {"score_map": pixels(9), "descriptor_map": CELLS}
        scores = rng.uniform(0.1, 0.5, (1, 30, 46))
        arrays = {"score_map": scores, "descriptor_map": cells[0]}
    if strategy == "upsample":
        fields["descriptor_map"] = Field(
            shape=(8, 30, 46), dtype="float16", geometry=MapGeometry(1, 9)
        )
        arrays["descriptor_map"] = F.normalize(full[0], dim=0)
    (target,) = choose_targets([make_store(tmp_path / "s", arrays, **fields)], strategy)
    crop = np.array([[1, 0, 16], [0, 1, 8], [0, 0, 1.0]])
    views = np.stack([crop, np.array([[1, 0, 24], [0, 1, 8], [0, 0, 1.0]])])
    read = target.read("a", views, (32, 32), rng)
    read = {name: torch.from_numpy(value)[None].float() for name, value in read.items()}
    maps = torch.cat([cells[:, :, 1:5, 2:6], cells[:, :, 1:5, 3:7]])
    views = torch.from_numpy(views)[None]

    def loss(maps: torch.Tensor) -> torch.Tensor:
        output = StudentOutput(torch.zeros(2, 65, 4, 4), maps, None)
        return target.losses(output, read, views)["descriptor"]

    assert loss(maps).shape == (2,)
    assert (loss(maps) < 1e-3).all()
    assert (loss(maps.mT) > 5 * loss(maps)).all()  # (y, x) where (x, y) is due
    assert (loss(maps.roll(1, 3)) > 5 * loss(maps)).all()


@pytest.mark.parametrize("strategy", ["peaks", "downsample"])
@pytest.mark.parametrize(("missing", "expected"), [(0, 1), (1, 0)])
def test_cells_that_the_teacher_does_not_see_do_not_count(tmp_path, missing, expected, strategy):
    cells = smooth_map()
    inner = cells[0, :, missing : 6 - missing, missing : 8 - missing]
    geometry = MapGeometry(8, 3.5 + 8 * missing)
    fields = {
        "score_map": pixels(0),
        "descriptor_map": Field(shape=inner.shape, dtype="float16", geometry=geometry),
    }
    scores = np.zeros((1, 48, 64))
    scores[:, 3::8, 3::8] = 0.9  # in the middle of each cell, as near as pixels come
    arrays = {"score_map": scores, "descriptor_map": inner}
    (target,) = choose_targets([make_store(tmp_path / "s", arrays, **fields)], strategy)
    read = target.read("a", np.eye(3)[None], SIZE, None)
    read = {name: torch.from_numpy(value)[None].float() for name, value in read.items()}

    def loss(maps: torch.Tensor) -> float:
        output = StudentOutput(torch.zeros(1, 65, 6, 8), maps, None)
        views = torch.eye(3, dtype=torch.float64)[None, None]
        return target.losses(output, read, views)["descriptor"].item()

    opposite = -cells
    opposite[..., 1:-1, 1:-1] *= -1
    assert loss(cells) == pytest.approx(0, abs=1e-3)
    assert loss(opposite) == pytest.approx(expected, abs=1e-3)  # a loss of 2 in 24 of 48 cells
    opposite[..., 2, 3] *= -1
    assert loss(opposite) > expected + 0.01


def test_descriptors_are_compared_where_a_keypoint_is_likely(tmp_path):
    scores = np.zeros((1, 48, 64))
    scores[0, 21, 43] = 0.9  # half a cell to the right of its cell's middle, nearly
    fields = {"score_map": pixels(0), "descriptor_map": CELLS}
    arrays = {"score_map": scores, "descriptor_map": smooth_map()[0]}
    (target,) = choose_targets([make_store(tmp_path / "s", arrays, **fields)], "peaks")
    read = target.read("a", np.eye(3)[None], SIZE, None)
    read = {name: torch.from_numpy(value)[None].float() for name, value in read.items()}
    maps = smooth_map().requires_grad_()
    output = StudentOutput(torch.zeros(1, 65, 6, 8), maps, None)
    views = torch.eye(3, dtype=torch.float64)[None, None]
    wrong = output._replace(descriptor_map=maps.roll(1, 2))
    target.losses(wrong, read, views)["descriptor"].sum().backward()
    touched = maps.grad.roll(1, 2).abs().sum((0, 1)).nonzero().tolist()
    assert touched == [[2, 4], [2, 5], [3, 4], [3, 5]]
    assert target.losses(output, read, views)["descriptor"].item() < 1e-5


def test_sparse_keypoints_are_where_the_view_shows_them(tmp_path):
    keypoints = np.array([[20, 13], [23, 15], [41, 30], [60, 40], [22, 12]], np.float32)
    arrays = {
        "keypoints": np.resize(keypoints, (50, 2)),
        "scores": np.ones(50),
        "descriptors": np.ones((50, 8)),
        "count": 4,
    }
    (target,) = choose_targets([make_store(tmp_path / "s", arrays, **SPARSE)], "sparse")
    H = np.array([[[1, 0.1, 14.2], [-0.1, 1, 11.3], [0, 0, 1]]])
    read = target.read("a", H, (32, 24), np.random.default_rng(0))
    read = {name: torch.from_numpy(value)[None] for name, value in read.items()}
    logits = torch.zeros(1, 65, 3, 4)
    logits[:, 64] = 50.0
    for x, y in warp_points(keypoints[:3], np.linalg.inv(H[0])).round().astype(int):
        logits[0, 8 * (y % 8) + x % 8, y // 8, x // 8] = 100
    output = StudentOutput(logits, torch.ones(1, 8, 3, 4), None)
    losses = target.losses(output, read, torch.from_numpy(H)[None])
    assert losses["detector"].item() < 1e-3


def test_records_of_every_pixel_are_read_where_the_view_is(tmp_path):
    field = Field(shape=(2, 30, 46), dtype="float16", geometry=MapGeometry(1, 9))
    rows, columns = np.indices((30, 46))
    store = make_store(
        tmp_path / "s",
        {"score_map": np.zeros((1, 30, 46)), "descriptor_map": np.stack([columns, rows])},
        score_map=pixels(9),
        descriptor_map=field,
    )
    (target,) = choose_targets([store], "upsample")
    H = np.array([[[0.5, 0, 20], [0, 0.5, 15], [0, 0, 1]]])
    read = target.read("a", H, (32, 24), np.random.default_rng(0))
    assert read["keypoints"].shape == read["descriptors"].shape == (1, target.POSITIONS, 2)
    np.testing.assert_array_equal(read["keypoints"], read["descriptors"] + 9.0)
    assert read["keypoints"].min(1).tolist() == [[20, 15]]
    assert read["keypoints"].max(1).tolist() == [[36, 27]]
