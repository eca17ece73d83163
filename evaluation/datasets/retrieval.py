"""Image retrieval in a plain layout: which photographs of a database show the place of a query.

The folder holds ``database/``, ``queries/`` and ``ground_truth.csv`` with the columns ``query`` and
``positives``, the latter separated by spaces. Names may leave out the suffix, and the folder where
no other photograph has the same name. A query without a positive in the database cannot be
answered: it is left out and counted.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from ...data.images import list_images
from . import register_dataset
from .base import RetrievalDataset

__all__ = ["Retrieval"]


@register_dataset("retrieval")
class Retrieval(RetrievalDataset):
    """Every name of the ground truth is looked up at once.

    Attributes:
        database: names of its photographs, as ``database/hall/1.jpg``, sorted.
        queries: names of those that have positives, as ``queries/2.jpg``, sorted.
        skipped: names of the queries that have none, or no row in the ground truth.
        images: name -> path of the database, then of the queries.

    Raises:
        FileNotFoundError: the root, one of its parts or a named photograph is missing.
        ValueError: no column ``query`` or ``positives``, a name that fits several photographs, a
            query with two rows, or no query with positives.
    """

    def __init__(self, root: str | Path, split: str = "all"):
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

    @property
    def size(self) -> dict[str, int]:
        return {**super().size, "queries without positives": len(self.skipped)}


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
