"""Which differences between two models are real: number by number, paired over sequences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from .protocols import Column
from .statistics import Statistics, by_sequence, compare

__all__ = ["compare_models", "comparison_table", "interval_text"]

SIGNIFICANCE = 0.05


def compare_models(
    names: tuple[str, str],
    statistics: tuple[Mapping[str, Statistics], Mapping[str, Statistics]],
    columns: Sequence[Column],
) -> dict:
    """What model A has more than model B, for each split and column.

    A difference is real where its 95 % interval leaves out zero and flips of its sign reach it in
    less than 5 % of the draws; see ``evaluation.statistics``.

    Args:
        statistics: of each model, split -> its numbers; of the same sequences.

    Returns:
        ``a`` and ``b``; ``rows``, with ``better``, the model that is better or None where they
        cannot be told apart; ``values``: key of a column -> sequence -> [of A, of B], of the first
        split.
    """
    (a, b), rows, values = names, [], {}
    for split, of_a in statistics[0].items():
        of_b = statistics[1][split]
        count = len(of_a.names)
        for column in columns:
            if column.key not in of_a.of:
                continue
            pair = of_a.of[column.key], of_b.of[column.key]
            found = compare(*pair, count)
            if not found.sequences:
                continue
            if column.key not in values:
                each = np.stack([by_sequence(s, count) for s in pair], axis=1).tolist()
                values[column.key] = dict(zip(of_a.names, each, strict=True))
            is_real = found.p_value < SIGNIFICANCE and (found.low > 0 or found.high < 0)
            a_is_better = (found.difference > 0) != column.less_is_better
            better = (a if a_is_better else b) if is_real else None
            row = {"split": split, "title": column.title, "key": column.key, **asdict(found)}
            rows.append({**row, "better": better})
    return {"a": a, "b": b, "rows": rows, "values": values}


def comparison_table(comparison: dict, split: str) -> str:
    """One split of a comparison as a Markdown table."""
    a, b = comparison["a"], comparison["b"]
    lines = [
        f"| {split}: {a} minus {b} | difference | 95 % interval | p | better |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['title']} | {row['difference']:+.3f} | {interval_text(row)} | "
        f"{row['p_value']:.3f} | {row['better'] or 'not told apart'} |"
        for row in comparison["rows"]
        if row["split"] == split
    ]
    return "\n".join(lines)


def interval_text(row: dict) -> str:
    """The interval of a row, "–" where one sequence has none."""
    return "–" if math.isnan(row["low"]) else f"{row['low']:+.3f} to {row['high']:+.3f}"
