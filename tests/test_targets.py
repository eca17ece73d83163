"""Targets: what the student can learn from, and that a perfect student has nothing to learn."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hfnet_distill.data.cells import to_pixels
from hfnet_distill.data.geometry import CELL_MAP, MapGeometry, sample_map, warp_points
from hfnet_distill.data.stores.store import Field, RecordStore, Schema
from hfnet_distill.errors import InputError, StoreError
from hfnet_distill.networks.base import StudentOutput
from hfnet_distill.student.losses import compute_losses
from hfnet_distill.student.targets import STRATEGIES, Targets, choose_targets, find_strategy

SIZE = (64, 48)


def make_store(path, arrays=None, settings=None, **fields: Field) -> RecordStore:
    """A complete store of one record, random where no arrays are given."""
    schema = Schema(
        teacher="test",
        weights="0" * 64,
        settings=settings or {},
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


def choose(stores, strategy: str) -> Targets:
    return choose_targets(stores, *STRATEGIES[strategy])


def read(targets: Targets, views: np.ndarray, size, rng=None) -> dict[str, torch.Tensor]:
    """What a batch of one photograph has."""
    fields = targets.read("a", views, size, rng)
    tensors = {name: torch.from_numpy(np.asarray(value))[None] for name, value in fields.items()}
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}


def losses_of(targets: Targets, output: StudentOutput, fields, views) -> dict[str, float]:
    lesson = targets.lesson(fields, torch.as_tensor(views)[None], output.descriptor_map.shape[2:])
    found = compute_losses(["detector", "descriptor"], output, lesson)
    return {name: value.item() for name, value in found.items()}


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
        choose([store], "peaks")


def test_keypoints_of_one_teacher_and_descriptors_of_another(tmp_path):
    scores = make_store(tmp_path / "scores", score_map=pixels(0))
    descriptors = make_store(tmp_path / "descriptors", descriptor_map=CELLS)
    targets = choose([descriptors, scores], "peaks")
    assert (targets.detector.store, targets.descriptor.store) == (scores, descriptors)
    assert targets.stores == [scores, descriptors]
    targets = choose([descriptors, scores], "keypoints")
    assert (targets.detector.store, targets.descriptor.store) == (scores, descriptors)
    both = make_store(tmp_path / "both", score_map=pixels(0), descriptor_map=CELLS)
    with pytest.raises(StoreError, match="a second store of the same kind"):
        choose([both, descriptors], "peaks")
    sparse = make_store(tmp_path / "sparse", **SPARSE)
    with pytest.raises(StoreError, match="learn nothing from it"):
        choose([both, sparse], "peaks")
    with pytest.raises(StoreError, match="has no keypoints"):
        choose([both], "sparse")
    with pytest.raises(StoreError, match="detector_target cells has no keypoints"):
        choose_targets([both], "cells", "keypoints")


def test_targets_are_named():
    assert find_strategy("peaks") == {"detector_target": "cells", "descriptor_target": "peaks"}
    with pytest.raises(InputError, match="expected one of keypoints, peaks, downsample"):
        find_strategy("peak")
    with pytest.raises(InputError, match="detector_target 'cell': expected one of cells"):
        choose_targets([], "cell", "peaks")


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


@pytest.mark.parametrize("strategy", [*STRATEGIES])
def test_a_perfect_student_has_no_descriptor_loss(tmp_path, strategy):
    rng = np.random.default_rng(0)
    cells = smooth_map()
    x, y = torch.meshgrid(torch.arange(46.0), torch.arange(30.0), indexing="xy")
    positions = MapGeometry(1, 9).to_image(torch.stack([x, y], -1).view(1, -1, 2))
    full = sample_map(cells, positions, CELL_MAP).mT.unflatten(2, (30, 46))
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
    if strategy in ("peaks", "downsample", "upsample"):
        fields = {"score_map": pixels(9), "descriptor_map": CELLS}
        scores = rng.uniform(0.1, 0.5, (1, 30, 46))
        arrays = {"score_map": scores, "descriptor_map": cells[0]}
    if strategy == "upsample":
        fields["descriptor_map"] = Field(
            shape=(8, 30, 46), dtype="float16", geometry=MapGeometry(1, 9)
        )
        arrays["descriptor_map"] = F.normalize(full[0], dim=0)
    targets = choose([make_store(tmp_path / "s", arrays, **fields)], strategy)
    crop = np.array([[1, 0, 16], [0, 1, 8], [0, 0, 1.0]])
    views = np.stack([crop, np.array([[1, 0, 24], [0, 1, 8], [0, 0, 1.0]])])
    found = read(targets, views, (32, 32), rng)
    maps = torch.cat([cells[:, :, 1:5, 2:6], cells[:, :, 1:5, 3:7]])

    def loss(maps: torch.Tensor) -> float:
        output = StudentOutput(torch.zeros(2, 65, 4, 4), maps, None)
        return losses_of(targets, output, found, views)["descriptor"]

    assert loss(maps) < 1e-3
    assert loss(maps.mT) > 5 * loss(maps)  # (y, x) where (x, y) is due
    assert loss(maps.roll(1, 3)) > 5 * loss(maps)


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
    targets = choose([make_store(tmp_path / "s", arrays, **fields)], strategy)
    found = read(targets, np.eye(3)[None], SIZE)

    def loss(maps: torch.Tensor) -> float:
        output = StudentOutput(torch.zeros(1, 65, 6, 8), maps, None)
        return losses_of(targets, output, found, np.eye(3)[None])["descriptor"]

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
    targets = choose([make_store(tmp_path / "s", arrays, **fields)], "peaks")
    found = read(targets, np.eye(3)[None], SIZE)
    maps = smooth_map().requires_grad_()
    output = StudentOutput(torch.zeros(1, 65, 6, 8), maps, None)
    wrong = output._replace(descriptor_map=maps.roll(1, 2))
    lesson = targets.lesson(found, torch.eye(3, dtype=torch.float64)[None, None], (6, 8))
    compute_losses(["descriptor"], wrong, lesson)["descriptor"].backward()
    touched = maps.grad.roll(1, 2).abs().sum((0, 1)).nonzero().tolist()
    assert touched == [[2, 4], [2, 5], [3, 4], [3, 5]]
    assert compute_losses(["descriptor"], output, lesson)["descriptor"].item() < 1e-5


def test_sparse_keypoints_are_where_the_view_shows_them(tmp_path):
    keypoints = np.array([[20, 13], [23, 15], [41, 30], [60, 40], [22, 12]], np.float32)
    arrays = {
        "keypoints": np.resize(keypoints, (50, 2)),
        "scores": np.ones(50),
        "descriptors": np.ones((50, 8)),
        "count": 4,
    }
    targets = choose([make_store(tmp_path / "s", arrays, **SPARSE)], "sparse")
    H = np.array([[[1, 0.1, 14.2], [-0.1, 1, 11.3], [0, 0, 1]]])
    found = read(targets, H, (32, 24))
    logits = torch.zeros(1, 65, 3, 4)
    logits[:, 64] = 50.0
    for x, y in warp_points(keypoints[:3], np.linalg.inv(H[0])).round().astype(int):
        logits[0, 8 * (y % 8) + x % 8, y // 8, x // 8] = 100
    output = StudentOutput(logits, torch.ones(1, 8, 3, 4), None)
    assert losses_of(targets, output, found, H)["detector"] < 1e-3


def test_records_of_every_pixel_are_read_where_the_view_is(tmp_path):
    field = Field(shape=(2, 30, 46), dtype="float16", geometry=MapGeometry(1, 9))
    rows, columns = np.indices((30, 46))
    store = make_store(
        tmp_path / "s",
        {"score_map": np.zeros((1, 30, 46)), "descriptor_map": np.stack([columns, rows])},
        score_map=pixels(9),
        descriptor_map=field,
    )
    targets = choose([store], "upsample")
    H = np.array([[[0.5, 0, 20], [0, 0.5, 15], [0, 0, 1]]])
    found = targets.descriptor.read("a", H, (32, 24), np.random.default_rng(0))
    count = targets.descriptor.POSITIONS
    assert found["positions"].shape == found["descriptors"].shape == (1, count, 2)
    np.testing.assert_array_equal(found["positions"], found["descriptors"] + 9.0)
    assert found["positions"].min(1).tolist() == [[20, 15]]
    assert found["positions"].max(1).tolist() == [[36, 27]]


def listed(*keypoints: tuple[float, float, float]) -> dict:
    """A record of sparse with keypoints (x, y, score)."""
    rows = np.zeros((50, 3), np.float32)
    rows[: len(keypoints)] = keypoints
    return {
        "keypoints": rows[:, :2],
        "scores": rows[:, 2],
        "descriptors": np.eye(8)[np.arange(50) % 8],
        "count": len(keypoints),
    }


def test_keypoints_between_pixels_keep_place_and_probability(tmp_path):
    arrays = listed((20.25, 13.5, 0.8), (41, 30, 0.1), (2, 3, 0.5))
    targets = choose([make_store(tmp_path / "s", arrays, **SPARSE)], "keypoints")
    H = np.array([[[1, 0, 16], [0, 1, 8], [0, 0, 1.0]]])
    lesson = targets.lesson(read(targets, H, (32, 24)), torch.as_tensor(H)[None], (3, 4))
    scores = to_pixels(lesson.cells)[0]
    assert scores.sum() == pytest.approx(0.9)
    assert scores[5:7, 4:6].flatten().tolist() == pytest.approx([0.3, 0.1, 0.3, 0.1])
    assert scores[22, 25] == pytest.approx(0.1)
    assert lesson.points[0, :2].tolist() == [[4.25, 5.5], [25, 22]]
    assert lesson.weights[0, 2:].eq(0).all()  # out of sight; padding
    assert lesson.weights[0, :2].tolist() == pytest.approx([0.8, 0.1])
    perfect = StudentOutput(lesson.cells.clamp(min=1e-9).log(), torch.zeros(1, 8, 3, 4), None)
    other = perfect._replace(score_logits=perfect.score_logits.roll(1, 1))
    detector = [
        compute_losses(["detector"], o, lesson)["detector"].item() for o in (perfect, other)
    ]
    assert detector[0] < detector[1] / 10


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("border", [0, 9])
def test_a_score_map_gives_the_keypoints_that_suppression_leaves(tmp_path, border, dtype):
    field = pixels(border)
    scores = np.zeros(field.shape, np.float32)
    for x, y, score in ((20, 13, 0.75), (23, 15, 0.5), (41, 30, 0.0625)):
        scores[0, y - border, x - border] = score
    if dtype == "uint8":
        field = field.model_copy(update={"dtype": "uint8", "quantisation": "fourth_root"})
        scores = (255 * scores**0.25).round()
    fields = {"score_map": field, "descriptor_map": CELLS}
    arrays = {"score_map": scores, "descriptor_map": smooth_map()[0]}
    targets = choose([make_store(tmp_path / "s", arrays, **fields)], "keypoints")
    found = read(targets, np.eye(3)[None], SIZE)
    assert found["count"].item() == 2  # the second is within 4 pixels of the first
    assert found["keypoints"][0, :2].tolist() == [[20, 13], [41, 30]]
    assert found["scores"][0, :3].tolist() == pytest.approx([0.75, 0.0625, 0], rel=0.02)
    lesson = targets.lesson(found, torch.eye(3, dtype=torch.float64)[None, None], (6, 8))
    known = lesson.known[0]
    assert known.all() if border == 0 else known.nonzero().tolist()[0] == [2, 2]
    output = StudentOutput(torch.zeros(1, 65, 6, 8), smooth_map(), None)
    assert losses_of(targets, output, found, np.eye(3)[None])["descriptor"] < 1e-3


def test_the_edge_of_which_a_teacher_knows_nothing_does_not_count(tmp_path):
    arrays = listed((30, 20, 0.5))
    store = make_store(tmp_path / "s", arrays, settings={"border": 4}, **SPARSE)
    views = torch.eye(3, dtype=torch.float64)[None, None]
    # 4 pixels that the export kept free; 9 that SiLK does not see, whoever describes its keypoints.
    for changes, inner in (
        ({}, 4 * 6),
        ({"teacher": "silk"}, 2 * 4),
        ({"settings": {"border": 4, "keypoints_teacher": "silk"}}, 2 * 4),
    ):
        store.schema = store.schema.model_copy(update={"teacher": "test"} | changes)
        targets = choose([store], "keypoints")
        lesson = targets.lesson(read(targets, views[0].numpy(), SIZE), views, (6, 8))
        assert lesson.known.sum() == inner


def test_what_lies_beyond_the_photograph_does_not_count(tmp_path):
    fields = {"score_map": pixels(0), "descriptor_map": CELLS}
    store = make_store(tmp_path / "s", **fields)
    targets = choose_targets([store], "cells", "peaks")
    H = np.array([[[1, 0, 48], [0, 1, 0], [0, 0, 1.0]]])  # half of the view is beyond
    fields = read(targets, H, (32, 48))
    lesson = targets.lesson(fields, torch.as_tensor(H)[None], (6, 4), partial=True)
    expected = [[True, True, False, False]] * 6
    assert lesson.seen[0].tolist() == lesson.known[0].tolist() == expected
    assert (lesson.weights.view(6, 4) > 0).tolist() == expected
