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

from data.records import Features
from evaluation.metrics import PairScores

__all__ = ["COLUMNS", "Drawing", "draw_matches", "markdown_table", "write_report"]

COLUMNS = {
    "matching_score": "MS",
    "homography_accuracy": "Homography",
    "descriptor_ap": "mAP (Desc)",
    "localization_error": "MLE",
    "repeatability": "Rep",
    "detector_ap": "mAP (Det)",
}
"""The six numbers under the headings of the earlier tables; of MLE, in pixels, less is better."""

RIGHT, WRONG, PLAIN = (60, 190, 60), (220, 60, 50), (240, 200, 40)  # red, green, blue


@dataclass(frozen=True)
class Drawing:
    """One picture of the report: ``caption`` and an (H, W, 3) uint8 image."""

    title: str
    model: str
    caption: str
    image: np.ndarray


def markdown_table(results: Sequence[dict], split: str) -> str:
    """The results of one split as a Markdown table, the best of each column in bold."""
    rows = [result for result in results if result["split"] == split]
    best = {}
    for key in COLUMNS:
        values = [row[key] for row in rows if not math.isnan(row[key])]
        if values:
            best[key] = (min if key == "localization_error" else max)(values)

    def cell(row: dict, key: str) -> str:
        if math.isnan(row[key]):
            return "–"
        text = f"{row[key]:.3f}"
        return f"**{text}**" if row[key] == best[key] and len(rows) > 1 else text

    lines = [
        f"| {split} | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    lines += [
        f"| {row['model']} | " + " | ".join(cell(row, key) for key in COLUMNS) + " |"
        for row in rows
    ]
    return "\n".join(lines)


def draw_matches(
    image0: np.ndarray,
    image1: np.ndarray,
    features0: Features,
    features1: Features,
    scores: PairScores,
) -> np.ndarray:
    """Two gray views side by side with the matches of view 1: green right, red wrong.

    Keypoints whose counterpart lies outside the other view are yellow and have no line.

    Returns:
        (H, W, 3) uint8.
    """
    height = max(image0.shape[0], image1.shape[0])
    width0 = image0.shape[1]
    canvas = np.full((height, width0 + image1.shape[1], 3), 255, np.uint8)
    canvas[: image0.shape[0], :width0] = image0[..., None]
    canvas[: image1.shape[0], width0:] = image1[..., None]
    shift = 4  # OpenCV draws in sixteenths of a pixel

    def fixed(point: np.ndarray) -> tuple[int, int]:
        return tuple(int(v) for v in np.rint(point * 2**shift))

    def circle(point: np.ndarray, colour) -> None:
        cv2.circle(canvas, fixed(point), 3 << shift, colour, 1, cv2.LINE_AA, shift)

    for point in features0.keypoints:
        circle(point, PLAIN)
    aside = np.array([width0, 0], np.float32)
    view, matches = scores.view1, scores.view1.matches
    for row, point in enumerate(features1.keypoints):
        if matches is None or not view.visible[row]:
            circle(point + aside, PLAIN)
            continue
        colour = RIGHT if matches.correct[row] else WRONG
        other = features0.keypoints[matches.indices[row]]
        cv2.line(canvas, fixed(other), fixed(point + aside), colour, 1, cv2.LINE_AA, shift)
        circle(other, colour)
        circle(point + aside, colour)
    return canvas


def write_report(output: Path, report: dict, drawings: Sequence[Drawing], command: str) -> None:
    """Write ``report.json``, ``table.md`` and a self-contained ``index.html`` into a folder."""
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
    tables = "\n\n".join(markdown_table(report["results"], split) for split in splits)
    (output / "table.md").write_text(tables + "\n", encoding="utf-8")
    (output / "report.json").write_text(
        json.dumps(_without_nan(report), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    titles = list(dict.fromkeys(drawing.title for drawing in drawings))
    (output / "index.html").write_text(
        page.render(
            report=report,
            columns=COLUMNS,
            splits=splits,
            is_best=_is_best,
            galleries=[(t, [d for d in drawings if d.title == t]) for t in titles],
            encode=_encode,
        ),
        encoding="utf-8",
    )


def _is_best(rows: list[dict], row: dict, key: str) -> bool:
    values = [other[key] for other in rows if not math.isnan(other[key])]
    best = min if key == "localization_error" else max
    return len(rows) > 1 and bool(values) and row[key] == best(values)


def _without_nan(value):
    """JSON has no nan: null says that there was nothing to measure."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
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
  code { background: #f4f4f4; padding: .1rem .3rem; overflow-wrap: anywhere; }
  .right { color: rgb(40, 150, 40); } .wrong { color: rgb(220, 60, 50); }
  .plain { color: rgb(170, 130, 0); }
</style>
<h1>Local features on {{ report.dataset.name }}</h1>
<p>{{ report.dataset.sequences }} sequences, {{ report.dataset.pairs }} pairs; protocol
<b>{{ report.protocol }}</b>: the best {{ report.settings.num_keypoints }} keypoints of each image
at {{ report.settings.longest_side or "its own" }} pixels, nearest-neighbour matches, 3 px.
MS matching score, Homography accuracy, mAP average precision of descriptors and detector, MLE
localization error in pixels (less is better), Rep repeatability.</p>
{% for split in splits %}
{% set rows = report.results | selectattr("split", "equalto", split) | list %}
<table>
<caption>{{ split }}</caption>
<tr><th>model{% for title in columns.values() %}<th>{{ title }}{% endfor %}</tr>
{% for row in rows %}
<tr><td>{{ row.model }}{% for key in columns %}<td>
{%- if row[key] != row[key] %}–{% elif is_best(rows, row, key) %}<b>{{ "%.3f" | format(row[key]) }}
</b>{% else %}{{ "%.3f" | format(row[key]) }}{% endif %}{% endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
{% if galleries %}
<h2>Matches</h2>
<p>Image 1 on the left. <span class="right">Green</span>: within 3 px of the true place.
<span class="wrong">Red</span>: wrong. <span class="plain">Yellow</span>: not visible in the other
view, or not matched.</p>
{% endif %}
{% for title, drawings in galleries %}
<h3>{{ title }}</h3>
{% for drawing in drawings %}
<figure><img src="data:image/jpeg;base64,{{ encode(drawing.image) }}"
alt="Matches of {{ drawing.model }} on {{ title }}">
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
