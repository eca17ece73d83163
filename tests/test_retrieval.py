"""Retrieval: what the folder may hold, the ranking, recall, the pictures."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from hfnet_distill.config import load_settings, override
from hfnet_distill.data.features import Features
from hfnet_distill.evaluation.datasets.retrieval import Retrieval
from hfnet_distill.evaluation.features import FeatureFile
from hfnet_distill.evaluation.report.pictures import CORRECT, WRONG
from hfnet_distill.evaluation.tasks import retrieval as module
from hfnet_distill.evaluation.tasks.retrieval import mark_positives, search_nearest


class MeanBrightness:
    """A global descriptor that points where the brightness of a photograph says."""

    channels = 1

    def __init__(self, **replaced):
        self.replaced = replaced

    def extract(self, view, name):
        angle = view.image.mean() / 255 * np.pi / 2
        place = 3 * np.array([np.cos(angle), np.sin(angle)], np.float32)  # not of unit length
        empty = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
        return Features(view.size, *empty, None, self.replaced.get(Path(name).stem, place))


def write_photograph(path, brightness):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((30, 40), brightness, np.uint8))


@pytest.fixture
def root(tmp_path):
    """Three places of two photographs each; the query of the third lies nearer to the second."""
    for place, brightness in enumerate((10, 100, 200)):
        for number in range(2):
            write_photograph(
                tmp_path / "database" / f"hall{place}" / f"{place}{number}.png",
                brightness + number,
            )
    for name, brightness in (("a", 12), ("b", 102), ("c", 140), ("lost", 50), ("unnamed", 60)):
        write_photograph(tmp_path / "queries" / f"{name}.png", brightness)
    lines = ["query,positives", "a,00 01", "b.png,hall1/10 11.png", "queries/c,database/hall2/20"]
    (tmp_path / "ground_truth.csv").write_text("\n".join([*lines, "lost,", ""]))
    return tmp_path


def ask(root, pictures=6, **replaced):
    """The task, what the model answers, and its files; ``replaced``: global descriptors by stem."""
    settings = override(load_settings().evaluate, longest_side=0, pictures=pictures)
    task = module.Retrieval(Retrieval(root), settings)
    file = FeatureFile(root / "features.h5", {}, overwrite=True)
    model = MeanBrightness(**replaced)
    file.extract(model, task.dataset.images, task.load_view, lambda: None)
    return task, task.score((file, file), lambda: None), (file, file)


def test_the_folder(root):
    places = Retrieval(root)
    assert places.database[:3] == [
        f"database/{n}.png" for n in ("hall0/00", "hall0/01", "hall1/10")
    ]
    assert places.queries == ["queries/a.png", "queries/b.png", "queries/c.png"]
    assert places.positives == [{0, 1}, {2, 3}, {4}]
    assert places.skipped == ["queries/lost.png", "queries/unnamed.png"]
    assert list(places.images) == places.database + places.queries
    assert all(path.is_file() for path in places.images.values())


def test_recall_by_hand(root):
    task, hits, _ = ask(root)
    assert hits.rows[:, :2].tolist() == [[1, 0], [3, 2], [3, 2]]
    assert hits.rows.shape == (3, 6)
    (statistics,) = task.statistics(hits).values()
    assert statistics.values() == {
        "recall@1": 2 / 3,
        "recall@5": 1,
        "recall@10": 1,
        "recall@20": 1,
    }
    assert statistics.intervals()["recall@5"] == (1, 1)
    facts = task.facts(hits)
    assert facts.pop("seconds_per_query") > 0
    assert facts == {"index_bytes": 6 * 2 * 4, "global_dim": 2}


def test_positives_among_the_hits():
    found = mark_positives(np.array([[4, 2, 0], [1, 0, 3]]), [frozenset({0}), frozenset({0, 5})])
    assert found.tolist() == [[False, False, True], [False, True, False]]


def test_the_search_is_a_stable_sort_whatever_the_block(monkeypatch):
    rng = np.random.default_rng(0)
    # Few different values, exact in float32: many ties.
    database = rng.integers(-1, 2, (50, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (23, 4)).astype(np.float32)
    expected = np.argsort(-(queries @ database.T), axis=1, kind="stable")
    for block in (1, 200, 2**24):
        monkeypatch.setattr(module, "BLOCK", block)
        for count in (1, 7, 50, 60):
            np.testing.assert_array_equal(
                search_nearest(database, queries, count), expected[:, :count]
            )


def draw(root, pictures):
    task, hits, sides = ask(root, pictures=pictures)
    return hits, task.draw({"mean": hits}, {"mean": sides}, lambda: None)


def test_pictures(root):
    hits, drawings = draw(root, 2)
    assert [drawing.title for drawing in drawings] == ["queries/a.png", "queries/c.png"]
    assert drawings[0].caption == "the first positive is hit 1"
    image = drawings[1].image
    slot = image.shape[1] // 6
    frames = [tuple(image[1, slot * number + 1].tolist()) for number in range(6)]
    assert frames[0] == (255, 255, 255)
    assert frames[1:] == [CORRECT if row == 4 else WRONG for row in hits.rows[2, :5]]
    assert len(draw(root, 99)[1]) == 3
    assert draw(root, 0)[1] == []


def test_a_small_database_has_a_small_picture(root):
    for number in (1, 2):
        shutil.rmtree(root / "database" / f"hall{number}")
    (root / "ground_truth.csv").write_text("query,positives\na,00\n")
    hits, drawings = draw(root, 1)
    assert hits.rows.shape == (1, 2)
    assert drawings[0].image.shape[2] == 3


@pytest.mark.parametrize("part", ["database", "queries", "ground_truth.csv"])
def test_a_missing_part(root, part):
    (root / part).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{part}: missing; expected a folder with databas"):
        Retrieval(root)


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("", ValueError, "no column positives and query, found an empty file"),
        ("query|positives\na|00\n", ValueError, r"found query\|positives; expected the first line"),
        ("query,positives\nd,00\n", FileNotFoundError, "line 2: queries/ has no photograph 'd'"),
        ("query,positives\na,00 9\n", FileNotFoundError, "database/ has no photograph '9'"),
        ("query,positives\na,00\na.png,01\n", ValueError, "line 3: queries/a.png has a row alr"),
        ("query,positives\na,\n", ValueError, "none of 5 queries has positives"),
    ],
)
def test_a_ground_truth_that_does_not_fit(root, lines, error, message):
    (root / "ground_truth.csv").write_text(lines)
    with pytest.raises(error, match=message):
        Retrieval(root)


def test_a_ground_truth_that_is_no_text(root):
    (root / "ground_truth.csv").write_bytes(b"query,positives\n\xff\xfe,\n")
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        Retrieval(root)


def test_a_ground_truth_that_a_spreadsheet_wrote(root):
    text = '\ufeff"query","positives","note"\r\n"a","00 01","x"\r\n'
    (root / "ground_truth.csv").write_bytes(text.encode())
    assert Retrieval(root).positives == [{0, 1}]


def test_an_ambiguous_name(root):
    shutil.copytree(root / "database" / "hall0", root / "database" / "again")
    with pytest.raises(ValueError, match=r"00 fits 2 photographs, as database/again/00.png and"):
        Retrieval(root)
    # A path from the top is exact, though a deeper file has the same name.
    shutil.copytree(root / "database" / "hall0", root / "database", dirs_exist_ok=True)
    places = Retrieval(root)
    found = {places.database[row] for row in places.positives[0]}
    assert found == {"database/00.png", "database/01.png"}


def test_an_unreadable_photograph(root):
    (root / "queries" / "a.png").write_text("no photograph")
    with pytest.raises(ValueError, match=r"a\.png: not a readable photograph"):
        ask(root)


def test_a_model_without_global_descriptors(root):
    with pytest.raises(ValueError, match=r"hall1/11.png: the model gives no global descriptor; "):
        ask(root, **{"11": None})


@pytest.mark.parametrize(
    ("descriptor", "message"),
    [
        ([1, 0, 0], "a global descriptor of 3 numbers, the others have 2"),
        ([0, 0], "zero or not finite"),
        ([np.nan, 0], "1 of 2 values are not finite"),
    ],
)
def test_a_descriptor_that_does_not_fit(root, descriptor, message):
    with pytest.raises(ValueError, match=f"queries/b.png: .*{message}"):
        ask(root, b=np.array(descriptor, np.float32))
