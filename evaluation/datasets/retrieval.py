"""Image retrieval in a plain layout: which photographs of a database show the place of a query.

The folder holds ``database/``, ``queries/`` and ``ground_truth.csv`` with the columns ``query`` and
``positives`` among others, between commas, semicolons or tabs. Several positives stand between
spaces, commas, semicolons or bars, also in further columns where theirs is the last; names may hold
these characters themselves. A query without a positive is left out and counted.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from ...data.images import list_images
from ...errors import InputError, NotFoundError
from ...files import read_text
from . import register_dataset
from .base import RetrievalDataset

__all__ = ["Retrieval"]

BETWEEN_NAMES = re.compile(r"([\s,;|]+)")


@register_dataset("retrieval")
class Retrieval(RetrievalDataset):
    """Names are sorted, as ``database/hall/1.jpg``; all of the ground truth are looked up at once.

    Attributes:
        skipped: names of the queries that have no positives, or no row in the ground truth.

    Raises:
        NotFoundError: the root, one of its parts or a named photograph is missing.
        InputError: no column ``query`` or ``positives``, a row of more columns than the first, a
            name that fits several photographs, a query with two rows, or no query with positives.
    """

    def __init__(self, root: str | Path, split: str = "all"):
        root = Path(root)
        for part in ("database", "queries", "ground_truth.csv"):
            if not (root / part).exists():
                raise NotFoundError(
                    f"{root / part}: missing; expected a folder with database/, queries/ and "
                    "ground_truth.csv (columns query, positives)"
                )
        self.database = [f"database/{name}" for name in list_images(root / "database")]
        queries = [f"queries/{name}" for name in list_images(root / "queries")]
        answers = _read_answers(root / "ground_truth.csv", _Names(queries), _Names(self.database))
        self.queries = [name for name in queries if answers.get(name)]
        self.skipped = [name for name in queries if not answers.get(name)]
        if not self.queries:
            raise InputError(
                f"{root / 'ground_truth.csv'}: none of {len(queries)} queries has positives; "
                "expected names of photographs in database/"
            )
        row_of = {name: row for row, name in enumerate(self.database)}
        self.positives = [frozenset(row_of[name] for name in answers[q]) for q in self.queries]
        self.images = {name: root / name for name in self.database + self.queries}

    @property
    def size(self) -> dict[str, int]:
        return {**super().size, "queries without positives": len(self.skipped)}


class _Names:
    """Finds photographs by what a ground truth calls them: the path below the folder, the path
    without suffix, the file's name, the file's name without suffix, whichever fits first."""

    def __init__(self, names: Sequence[str]):
        self.folder = names[0].split("/")[0]
        self.levels: list[dict[str, list[str]]] = [{} for _ in range(4)]
        self.parts = max(len(BETWEEN_NAMES.split(name)) for name in names)
        for name in names:
            path = Path(name).relative_to(self.folder)
            keys = path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem
            for level, key in zip(self.levels, keys, strict=True):
                level.setdefault(key, []).append(name)

    def find(self, called: str, where: str) -> str:
        """The one photograph that ``called`` means; ``where`` begins the message of an error."""
        found = self._candidates(called)
        if not found:
            raise NotFoundError(
                f"{where}: {self.folder}/ has no photograph {called!r}; add it or correct the name"
            )
        if len(found) > 1:
            raise InputError(
                f"{where}: {called} fits {len(found)} photographs, as {' and '.join(found[:2])}; "
                "write its folder and suffix too"
            )
        return found[0]

    def find_all(self, called: str, where: str) -> list[str]:
        """All photographs that a list means: at each place the longest name that there is."""
        called = called.strip()
        if self._candidates(called):
            return [self.find(called, where)]
        parts = BETWEEN_NAMES.split(called)  # at odd places what stands between two words
        found, start = [], 0
        while start < len(parts):
            ends = range(min(len(parts), start + self.parts), start, -2)
            end = next((e for e in ends if self._candidates("".join(parts[start:e]))), start + 1)
            if name := "".join(parts[start:end]):
                found.append(self.find(name, where))
            start = end + 1
        return found

    def _candidates(self, called: str) -> list[str]:
        key = called.replace("\\", "/").removeprefix("./").removeprefix(f"{self.folder}/")
        if f"/{self.folder}/" in key:  # an absolute path, perhaps another machine's
            key = key.rpartition(f"/{self.folder}/")[2]
        return next((level[key] for level in self.levels if key in level), [])


def _read_answers(path: Path, queries: _Names, database: _Names) -> dict[str, set[str]]:
    """query -> its positives, by the full names of the photographs."""
    answers: dict[str, set[str]] = {}
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
    try:
        header = [column.strip().lower() for column in next(rows, [])]
        if missing := {"query", "positives"} - set(header):
            raise InputError(
                f"{path}: no column {' and '.join(sorted(missing))}, found "
                f"{', '.join(header) or 'an empty file'}; expected the first line query,positives"
            )
        column, last = header.index("positives"), len(header) - 1
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) > len(header) and column != last:
                raise InputError(
                    f"{where}: {len(row)} columns, the first line has {len(header)}; put quotes "
                    "around several positives"
                )
            row += [""] * (len(header) - len(row))
            query = queries.find(row[header.index("query")].strip(), where)
            if query in answers:
                raise InputError(f"{where}: {query} has a row already; put both into one")
            cells = row[column:] if column == last else [row[column]]
            called = [name for cell in cells for name in database.find_all(cell, where)]
            answers[query] = set(called)
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not a CSV file ({error})") from error
    return answers
