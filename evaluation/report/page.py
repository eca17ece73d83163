"""What was measured, for people and programs: a table, report.json, a page with pictures."""

import base64
import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import cv2
import jinja2
import numpy as np

from .comparison import comparison_table, interval_text
from .figures import COLOURS, Drawing, curves_svg, scatter_svg
from .protocols import CURVE_THRESHOLDS, Column

__all__ = ["markdown_table", "write_report"]

PAGE = Path(__file__).with_name("report.html")
PICTURES = 7_000_000
"""Bytes of all pictures together, before base64 makes them longer by a third."""


def markdown_table(results: Sequence[dict], columns: Sequence[Column], split: str) -> str:
    """The results of one split as a Markdown table, the best of each column in bold."""
    rows = [result for result in results if result["split"] == split]

    def cell(row: dict, column: Column) -> str:
        text = column.text(row)
        return f"**{text}**" if _is_best(rows, row, column) else text

    lines = [
        f"| {split} | " + " | ".join(column.title for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    lines += [
        f"| {row['model']} | " + " | ".join(cell(row, column) for column in columns) + " |"
        for row in rows
    ]
    return "\n".join(lines)


def write_report(
    output: Path,
    report: dict,
    suite,
    drawings: Sequence[Drawing],
    command: str,
) -> None:
    """Write ``report.json``, ``table.md`` and a self-contained ``index.html`` into a folder.

    Args:
        report: what ``report.json`` holds, besides the command and versions.
        suite: whose columns, sentence and legend are shown; see ``evaluation.suites``.
        command: that repeats it.
    """
    output.mkdir(parents=True, exist_ok=True)
    packages = ("hfnet-distill", "torch", "numpy", "poselib")
    report = {
        **report,
        "command": command,
        "software": {
            **{name: version(name) for name in packages},
            "opencv": cv2.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }
    splits = list(dict.fromkeys(result["split"] for result in report["results"]))
    tables = [markdown_table(report["results"], suite.columns, split) for split in splits]
    tables += [comparison_table(c, split) for c in report["comparisons"] for split in splits]
    (output / "table.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    (output / "report.json").write_text(
        json.dumps(_without_nan(report), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        PAGE.read_text(encoding="utf-8")
    )
    titles = list(dict.fromkeys(drawing.title for drawing in drawings))
    models = [model["model"] for model in report["models"]]
    (output / "index.html").write_text(
        page.render(
            report=report,
            suite=suite,
            splits=splits,
            is_best=_is_best,
            interval_text=interval_text,
            colours=[(m, COLOURS[row % len(COLOURS)]) for row, m in enumerate(models)],
            charts=_draw_curves(report["curves"]),
            scatters=[_draw_scatters(c, suite.columns) for c in report["comparisons"]],
            galleries=[(t, [d for d in drawings if d.title == t]) for t in titles],
            encode=_Encoder(drawings),
        ),
        encoding="utf-8",
    )


def _draw_curves(curves: dict[str, dict[str, list[float]]]) -> list[str]:
    """A chart of each share, with a line of each model."""
    names = list(dict.fromkeys(name for found in curves.values() for name in found))
    return [
        curves_svg(name, CURVE_THRESHOLDS, {m: found[name] for m, found in curves.items()})
        for name in names
    ]


def _draw_scatters(comparison: dict, columns: Sequence[Column]) -> list[str]:
    titles = {column.key: column.title for column in columns}
    names = comparison["a"], comparison["b"]
    return [scatter_svg(titles[k], names, values) for k, values in comparison["values"].items()]


def _is_best(rows: Sequence[dict], row: dict, column: Column) -> bool:
    return column.is_ranked and len(rows) > 1 and column.value(row) == column.best(rows)


def _without_nan(value):
    """JSON has no nan: null says that there was nothing to measure."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Encoder:
    """Pictures as JPEG in base64, made smaller where all of them would take too much."""

    def __init__(self, drawings: Sequence[Drawing]):
        total = sum(len(_to_jpeg(drawing.image)) for drawing in drawings)
        self.scale = min(1.0, math.sqrt(PICTURES / max(total, 1)))

    def __call__(self, image: np.ndarray) -> str:
        if self.scale < 1:
            image = cv2.resize(image, None, None, self.scale, self.scale, cv2.INTER_AREA)
        return base64.b64encode(_to_jpeg(image)).decode()


def _to_jpeg(image: np.ndarray) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
    return cv2.imencode(".jpg", image[..., ::-1], quality)[1].tobytes()
