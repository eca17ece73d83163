"""The report as one self-contained page."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np

from .charts import COLORS, curves_svg, scatter_svg
from .pictures import Drawing
from .tables import Column, interval_text, is_best

__all__ = ["render_page"]

PAGE = Path(__file__).with_name("page.html")
PICTURES = 7_000_000
"""Bytes of all pictures together, before base64 makes them longer by a third."""


def render_page(report: dict, task, drawings: Sequence[Drawing]) -> str:
    """The page in HTML, with its pictures in it.

    Args:
        report: what ``report.json`` holds.
        task: whose columns, sentence and legend are shown; a ``tasks.base.Task``.
    """
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        PAGE.read_text(encoding="utf-8")
    )
    titles = list(dict.fromkeys(drawing.title for drawing in drawings))
    models = list(report["curves"])
    return page.render(
        report=report,
        task=task,
        splits=list(dict.fromkeys(result["split"] for result in report["results"])),
        is_best=is_best,
        interval_text=interval_text,
        colors=[(m, COLORS[row % len(COLORS)]) for row, m in enumerate(models)],
        charts=_draw_curves(report["curves"], task.curve_thresholds),
        scatters=[_draw_scatters(c, task.columns) for c in report["comparisons"]],
        galleries=[(t, [d for d in drawings if d.title == t]) for t in titles],
        encode=_Encoder(drawings),
    )


def _draw_curves(
    curves: dict[str, dict[str, list[float]]], thresholds: Sequence[float]
) -> list[str]:
    """A chart of each share, with a line of each model."""
    names = list(dict.fromkeys(name for found in curves.values() for name in found))
    return [
        curves_svg(name, thresholds, {m: found[name] for m, found in curves.items()})
        for name in names
    ]


def _draw_scatters(comparison: dict, columns: Sequence[Column]) -> list[str]:
    titles = {column.key: column.title for column in columns}
    names = comparison["a"], comparison["b"]
    return [scatter_svg(titles[k], names, values) for k, values in comparison["values"].items()]


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
