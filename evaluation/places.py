"""Place recognition: which photographs of a database show the place of a query.

The folder holds ``database/``, ``queries/`` and ``ground_truth.csv`` with the columns ``query`` and
``positives``, the latter separated by spaces. Names may leave out the suffix, and the folder where
no other photograph has the same name.

Photographs are compared by the dot product of their global descriptors, of unit length. Recall@k is
the share of queries with at least one positive among the first k hits (Arandjelovic et al., CVPR
2016). A query without a positive in the database cannot be answered: it is left out and counted.
"""

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.images import list_images
from .datasets import load_view
from .extractors import Extractor
from .figures import RIGHT, WRONG, Drawing
from .statistics import Statistics, intervals, mean_statistic

__all__ = [
    "RECALLS",
    "JudgedPlaces",
    "Places",
    "draw_places",
    "judge_places",
    "mark_positives",
    "place_statistics",
    "recall_at",
    "search_nearest",
    "summarize_places",
]

RECALLS = (1, 5, 10, 20)
"""The k of recall@k; the last says how many hits are kept of each query."""

BLOCK = 2**24
"""Similarities that are in memory at a time."""

SHOWN, THUMBNAIL, FRAME = 5, 192, 4
"""Hits beside a query, pixels of a picture's longest side, and of the frame around it."""


class Places:
    """A place recognition dataset; every name of its ground truth is looked up at once.

    Attributes:
        database: names of its photographs, as ``database/hall/1.jpg``, sorted.
        queries: names of those that have positives, as ``queries/2.jpg``, sorted.
        positives: for each query the rows of ``database`` that show its place.
        skipped: names of the queries that have none, or no row in the ground truth.
        images: name -> path of the database, then of the queries.

    Raises:
        FileNotFoundError: the root, one of its parts or a named photograph is missing.
        ValueError: no column ``query`` or ``positives``, a name that fits several photographs, a
            query with two rows, or no query with positives.
    """

    def __init__(self, root: str | Path):
        root = Path(root)
        for part in ("database", "queries", "ground_truth.csv"):
            if not (root / part).exists():
                raise FileNotFoundError(
                    f"{root / part}: missing; expected a folder with database/, queries/ and "
                    "ground_truth.csv (columns query, positives)"
                )
        self.database = [f"database/{name}" for name in list_images(root / "database")]
        queries = [f"queries/{name}" for name in list_images(root / "queries")]
        answers = _read_answers(root / "ground_truth.csv", _Names(queries), _Names(self.database))
        self.queries = [name for name in queries if answers.get(name)]
        self.skipped = [name for name in queries if not answers.get(name)]
        if not self.queries:
            raise ValueError(
                f"{root / 'ground_truth.csv'}: none of {len(queries)} queries has positives; "
                "expected names of photographs in database/, separated by spaces"
            )
        row_of = {name: row for row, name in enumerate(self.database)}
        self.positives = [frozenset(row_of[name] for name in answers[q]) for q in self.queries]
        self.images = {name: root / name for name in self.database + self.queries}


class _Names:
    """Finds photographs by what a ground truth calls them.

    From the most exact to the loosest: the path below the folder, the path without suffix, the
    file's name, the file's name without suffix.
    """

    def __init__(self, names: Sequence[str]):
        self.folder = names[0].split("/")[0]
        self.levels: list[dict[str, list[str]]] = [{} for _ in range(4)]
        for name in names:
            path = Path(name).relative_to(self.folder)
            keys = path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem
            for level, key in zip(self.levels, keys, strict=True):
                level.setdefault(key, []).append(name)

    def find(self, called: str, where: str) -> str:
        """The photograph that ``called`` means; ``where`` begins the message of an error."""
        key = called.removeprefix(f"{self.folder}/")
        found = next((level[key] for level in self.levels if key in level), [])
        if not found:
            raise FileNotFoundError(
                f"{where}: {self.folder}/ has no photograph {called!r}; add it or correct the name"
            )
        if len(found) > 1:
            raise ValueError(
                f"{where}: {called} fits {len(found)} photographs, as {' and '.join(found[:2])}; "
                "write its folder and suffix too"
            )
        return found[0]


def _read_answers(path: Path, queries: _Names, database: _Names) -> dict[str, set[str]]:
    """query -> its positives, by the full names of the photographs."""
    answers: dict[str, set[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins with a mark
            reader = csv.DictReader(file, skipinitialspace=True)
            if missing := {"query", "positives"} - set(reader.fieldnames or ()):
                raise ValueError(
                    f"{path}: no column {' and '.join(sorted(missing))}, found "
                    f"{', '.join(reader.fieldnames or ()) or 'an empty file'}; expected the first "
                    "line query,positives"
                )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                query = queries.find((row["query"] or "").strip(), where)
                if query in answers:
                    raise ValueError(f"{where}: {query} has a row already; put both into one")
                called = (row["positives"] or "").split()
                answers[query] = {database.find(name, where) for name in called}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    return answers


@dataclass(frozen=True)
class JudgedPlaces:
    """What one model answered to Q queries.

    Attributes:
        hits: (Q, K) intp, rows of the database, best first; K is 20, or less in a small database.
        right: (Q, K) bool, which of them are positives.
        seconds_per_query: extraction, as the extractor does it (local features included), and
            search; without reading the photograph from the disk.
        global_dim: numbers in a global descriptor.
    """

    places: Places
    hits: np.ndarray
    right: np.ndarray
    seconds_per_query: float
    global_dim: int

    @property
    def index_bytes(self) -> int:
        """What the database's global descriptors take in float32."""
        return len(self.places.database) * self.global_dim * 4


def judge_places(
    places: Places, extractor: Extractor, *, longest: int, advance: Callable[[], None]
) -> JudgedPlaces:
    """Ask one model all queries, with one photograph in memory at a time.

    Args:
        longest: pixels of the longest side that photographs are resized to; 0 leaves them.
        advance: called after each of ``places.images``.

    Raises:
        ValueError: the model gives no global descriptor, or one that is not finite, zero, or not
            as long as the others.
        UnreadablePhotographError: see ``data.images.read_image``.
    """
    rows, seconds = [], []
    for name, path in places.images.items():
        view = load_view(path, longest=longest, channels=extractor.channels)
        start = time.perf_counter()
        row = extractor.extract(view, name).global_descriptor
        seconds.append(time.perf_counter() - start)
        rows.append(_check_descriptor(row, name, rows))
        advance()
    descriptors = np.stack(rows)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    database, queries = np.split(descriptors, [len(places.database)])
    start = time.perf_counter()
    hits = search_nearest(database, queries, RECALLS[-1])
    asked = sum(seconds[len(database) :]) + time.perf_counter() - start
    right = mark_positives(hits, places.positives)
    return JudgedPlaces(places, hits, right, asked / len(queries), descriptors.shape[1])


def search_nearest(database: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """The rows of the largest dot products; the first of equal ones comes first.

    Args:
        database, queries: (N, G) and (Q, G) float32 of unit length.
        count: rows per query; all N where there are fewer.

    Returns:
        (Q, min(count, N)) intp, best first.
    """
    count = min(count, len(database))
    hits = np.empty((len(queries), count), np.intp)
    step = max(1, BLOCK // len(database))
    for start in range(0, len(queries), step):
        similarities = queries[start : start + step] @ database.T
        last = np.partition(similarities, -count, axis=1)[:, -count]
        for row, (values, least) in enumerate(zip(similarities, last, strict=True), start):
            kept = np.flatnonzero(values >= least)
            hits[row] = kept[np.argsort(-values[kept], kind="stable")[:count]]
    return hits


def mark_positives(hits: np.ndarray, positives: Sequence[frozenset[int]]) -> np.ndarray:
    """Which hits (Q, K) are among their query's positives; (Q, K) bool."""
    pairs = zip(hits.tolist(), positives, strict=True)
    return np.array([[hit in wanted for hit in row] for row, wanted in pairs])


def recall_at(right: np.ndarray, k: int) -> float:
    """The share of queries with a positive among the first k of their hits, (Q, K) bool."""
    return float(right[:, :k].any(axis=1).mean())


def summarize_places(model: str, judged: JudgedPlaces) -> dict:
    """The model's row of the report: recall@k, the time and the memory that it takes."""
    return {
        "model": model,
        "split": "all",
        **{f"recall@{k}": recall_at(judged.right, k) for k in RECALLS},
        "seconds_per_query": judged.seconds_per_query,
        "index_bytes": judged.index_bytes,
        "global_dim": judged.global_dim,
        "intervals": intervals(place_statistics(judged)),
    }


def place_statistics(judged: JudgedPlaces) -> Statistics:
    """Recall@k over the drawn queries."""
    found = {f"recall@{k}": judged.right[:, :k].any(axis=1)[:, None] for k in RECALLS}
    return Statistics(judged.places.queries, {k: mean_statistic(v) for k, v in found.items()})


def draw_places(model: str, judged: JudgedPlaces, count: int) -> list[Drawing]:
    """Pictures of ``count`` queries, spread evenly: left the query, then its best hits.

    A hit's frame is green where it is a positive, red where it is not.
    """
    places, total = judged.places, len(judged.places.queries)
    picks = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return [
        Drawing(places.queries[q], model, _caption(judged.right[q]), _draw_query(judged, q))
        for q in picks
    ]


def _caption(right: np.ndarray) -> str:
    if not right.any():
        return f"no positive among the first {len(right)} hits"
    return f"the first positive is hit {right.argmax() + 1}"


def _draw_query(judged: JudgedPlaces, query: int) -> np.ndarray:
    places = judged.places
    names = [places.queries[query]] + [places.database[hit] for hit in judged.hits[query, :SHOWN]]
    colours = [(255, 255, 255)] + [RIGHT if r else WRONG for r in judged.right[query, :SHOWN]]
    pictures = [load_view(places.images[n], longest=THUMBNAIL, channels=3).image for n in names]
    slot, height = THUMBNAIL + 3 * FRAME, max(len(picture) for picture in pictures) + 2 * FRAME
    canvas = np.full((height, slot * (SHOWN + 1), 3), 255, np.uint8)
    for number, (picture, colour) in enumerate(zip(pictures, colours, strict=True)):
        h, w = picture.shape[:2]
        left = number * slot
        canvas[: h + 2 * FRAME, left : left + w + 2 * FRAME] = colour
        canvas[FRAME : FRAME + h, left + FRAME : left + FRAME + w] = picture
    return canvas


def _check_descriptor(row: np.ndarray | None, name: str, rows: list[np.ndarray]) -> np.ndarray:
    if row is None:
        raise ValueError(
            f"{name}: the model gives no global descriptor; judge places with netvlad, with a "
            "student trained from a second --store of global descriptors, or with features:FILE.h5 "
            "that holds global_descriptor"
        )
    if rows and len(row) != len(rows[0]):
        raise ValueError(
            f"{name}: a global descriptor of {len(row)} numbers, the others have {len(rows[0])}; "
            "extract all photographs alike"
        )
    if not np.isfinite(row).all() or not row.any():
        raise ValueError(f"{name}: its global descriptor is zero or not finite; extract it anew")
    return row
