"""The report's tables in Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Column", "comparison_table", "interval_text", "is_best", "results_table"]


@dataclass(frozen=True)
class Column:
    """One number of the table.

    Attributes:
        key: where it stands in a result, "a.b" for ``result["a"]["b"]`` in ``report.json``.
        is_ranked: a row can be better by it at all.
        digits: behind the point.
        unit: the table shows multiples of this.
    """

    title: str
    key: str
    less_is_better: bool = False
    is_ranked: bool = True
    digits: int = 3
    unit: float = 1

    def value(self, result: dict) -> float:
        """The number in a result, nan where there was nothing to measure."""
        return result.get(self.key, math.nan)

    def text(self, value: float) -> str:
        """A number as the table shows it."""
        return "–" if math.isnan(value) else f"{value / self.unit:.{self.digits}f}"

    def interval(self, result: dict) -> str:
        """Its 95 % interval, empty where there is none."""
        low, high = result["intervals"].get(self.key, (math.nan, math.nan))
        return "" if math.isnan(low) else f"{self.text(low)}–{self.text(high)}"


def is_best(rows: Sequence[dict], row: dict, column: Column) -> bool:
    """Whether a row is the best of several by a column."""
    values = [value for value in map(column.value, rows) if not math.isnan(value)]
    best = (min if column.less_is_better else max)(values, default=math.nan)
    return column.is_ranked and len(rows) > 1 and column.value(row) == best


def results_table(results: Sequence[dict], columns: Sequence[Column], split: str) -> str:
    """The results of one split as a Markdown table, the best of each column in bold."""
    rows = [result for result in results if result["split"] == split]

    def cell(row: dict, column: Column) -> str:
        text = column.text(column.value(row))
        return f"**{text}**" if is_best(rows, row, column) else text

    lines = [
        f"| {split} | " + " | ".join(column.title for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    lines += [
        f"| {row['model']} | " + " | ".join(cell(row, column) for column in columns) + " |"
        for row in rows
    ]
    return "\n".join(lines)


def comparison_table(comparison: dict, split: str) -> str:
    """One split of a comparison as a Markdown table."""
    a, b = comparison["a"], comparison["b"]
    lines = [
        f"| {split}: {a} minus {b} | difference | 95 % interval | p | better |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['title']} | {row['difference']:+.3f} | {interval_text(row)} | "
        f"{row['p_value']:.3f} | {row['better'] or 'tie'} |"
        for row in comparison["rows"]
        if row["split"] == split
    ]
    return "\n".join(lines)


def interval_text(row: dict) -> str:
    """The interval of a row, "–" where one group has none."""
    return "–" if math.isnan(row["low"]) else f"{row['low']:+.3f} to {row['high']:+.3f}"
