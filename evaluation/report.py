"""What was measured, for people and programs: a table, report.json, a page with pictures."""

import base64
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import jinja2
import numpy as np

from evaluation.protocols import Column

__all__ = ["Drawing", "draw_matches", "markdown_table", "write_report"]

RIGHT, WRONG, PLAIN = (60, 190, 60), (220, 60, 50), (240, 200, 40)  # red, green, blue


@dataclass(frozen=True)
class Drawing:
    """One picture of the report: ``caption`` and an (H, W, 3) uint8 image."""

    title: str
    model: str
    caption: str
    image: np.ndarray


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


def draw_matches(
    image0: np.ndarray,
    image1: np.ndarray,
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    matches: np.ndarray,
    right: np.ndarray,
) -> np.ndarray:
    """Two gray views side by side with matches between them: green right, red wrong.

    Keypoints without a match are yellow.

    Args:
        image0, image1: (H, W) uint8.
        keypoints0, keypoints1: (N, 2) and (M, 2) float, (x, y).
        matches: (K, 2) rows of the two.
        right: (K,) bool.

    Returns:
        (H, W, 3) uint8.
    """
    height = max(image0.shape[0], image1.shape[0])
    width0 = image0.shape[1]
    canvas = np.full((height, width0 + image1.shape[1], 3), 255, np.uint8)
    canvas[: image0.shape[0], :width0] = image0[..., None]
    canvas[: image1.shape[0], width0:] = image1[..., None]
    keypoints1 = keypoints1 + np.array([width0, 0], np.float32)
    shift = 4  # OpenCV draws in sixteenths of a pixel

    def fixed(point: np.ndarray) -> tuple[int, int]:
        return tuple(int(v) for v in np.rint(point * 2**shift))

    def circle(point: np.ndarray, colour) -> None:
        cv2.circle(canvas, fixed(point), 3 << shift, colour, 1, cv2.LINE_AA, shift)

    for keypoints in (keypoints0, keypoints1):
        for point in keypoints:
            circle(point, PLAIN)
    for (row0, row1), is_right in zip(matches, right, strict=True):
        colour = RIGHT if is_right else WRONG
        ends = keypoints0[row0], keypoints1[row1]
        cv2.line(canvas, *map(fixed, ends), colour, 1, cv2.LINE_AA, shift)
        for end in ends:
            circle(end, colour)
    return canvas


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
    report = {
        **report,
        "command": command,
        "software": {
            "hfnet-distill": version("hfnet-distill"),
            "opencv": cv2.__version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }
    splits = list(dict.fromkeys(result["split"] for result in report["results"]))
    tables = "\n\n".join(
        markdown_table(report["results"], suite.columns, split) for split in splits
    )
    (output / "table.md").write_text(tables + "\n", encoding="utf-8")
    (output / "report.json").write_text(
        json.dumps(_without_nan(report), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    titles = list(dict.fromkeys(drawing.title for drawing in drawings))
    (output / "index.html").write_text(
        page.render(
            report=report,
            suite=suite,
            splits=splits,
            is_best=_is_best,
            galleries=[(t, [d for d in drawings if d.title == t]) for t in titles],
            encode=_encode,
        ),
        encoding="utf-8",
    )


def _is_best(rows: Sequence[dict], row: dict, column: Column) -> bool:
    return len(rows) > 1 and column.value(row) == column.best(rows)


def _without_nan(value):
    """JSON has no nan: null says that there was nothing to measure."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encode(image: np.ndarray) -> str:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
    return base64.b64encode(cv2.imencode(".jpg", image[..., ::-1], quality)[1]).decode()


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ report.dataset.name }}: {{ report.models | map(attribute="model") | join(", ") }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
         padding: 0 1rem; color: #222; background: #fff; }
  table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
  th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
  th:first-child, td:first-child { text-align: left; }
  caption { text-align: left; font-weight: 600; padding: .3rem 0; }
  figure { margin: 1rem 0; }
  img { max-width: 100%; display: block; }
  figcaption { color: #555; font-size: .9rem; }
  td small { display: block; white-space: nowrap; color: #777; font-size: .7rem; }
  code { background: #f4f4f4; padding: .1rem .3rem; overflow-wrap: anywhere; }
  .right { color: rgb(40, 150, 40); } .wrong { color: rgb(220, 60, 50); }
  .plain { color: rgb(170, 130, 0); }
</style>
<h1>Features on {{ report.dataset.name }}</h1>
<p>{% for what, count in suite.size.items() %}{{ count }} {{ what }}{{ ", " if not loop.last }}
{%- endfor %}; protocol <b>{{ suite.protocol }}</b>: {{ suite.about }}.
Small: the 95 % interval, by drawing sequences or queries anew.</p>
{% for split in splits %}
{% set rows = report.results | selectattr("split", "equalto", split) | list %}
<table>
<caption>{{ split }}</caption>
<tr><th>model{% for column in suite.columns %}<th>{{ column.title }}{% endfor %}</tr>
{% for row in rows %}
<tr><td>{{ row.model }}{% for column in suite.columns %}<td>
{%- if is_best(rows, row, column) %}<b>{{ column.text(row) }}</b>
{%- else %}{{ column.text(row) }}{% endif %}<small>{{ column.interval(row) }}</small>
{%- endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
{% if galleries %}
<h2>Pictures</h2>
<p>{{ suite.legend | safe }}</p>
{% endif %}
{% for title, drawings in galleries %}
<h3>{{ title }}</h3>
{% for drawing in drawings %}
<figure><img src="data:image/jpeg;base64,{{ encode(drawing.image) }}"
alt="{{ drawing.model }} on {{ title }}">
<figcaption><b>{{ drawing.model }}</b>: {{ drawing.caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
<h2>To repeat it</h2>
<p><code>{{ report.command }}</code></p>
<table>
<tr><th>model<th>origin</tr>
{% for model in report.models %}<tr><td>{{ model.model }}<td><code>{{ model.origin }}</code></tr>
{% endfor %}
{% for name, number in report.software.items() %}<tr><td>{{ name }}<td>{{ number }}</tr>
{% endfor %}
</table>
</html>
"""
