"""The report as one self-contained page."""

import base64
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np

from .charts import COLORS, plot_curves, plot_sequences
from .pictures import Drawing
from .tables import interval_text, is_best

__all__ = ["render_page"]

PAGE = Path(__file__).with_name("page.html")
PICTURES = 7_000_000
"""Bytes of all pictures together, before base64 makes them longer by a third."""


def render_page(report: dict, task, drawings: Sequence[Drawing]) -> str:
    """The page in HTML, of what ``report.json`` holds and a ``tasks.base.Task`` says of it."""
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        PAGE.read_text(encoding="utf-8")
    )
    curves = report["curves"]
    encoded = _encode([drawing.image for drawing in drawings])
    galleries: dict[str, list[tuple[Drawing, str]]] = {}
    for drawing, jpeg in zip(drawings, encoded, strict=True):
        galleries.setdefault(drawing.title, []).append((drawing, jpeg))
    return page.render(
        report=report,
        task=task,
        splits=list(dict.fromkeys(result["split"] for result in report["results"])),
        is_best=is_best,
        interval_text=interval_text,
        colors=list(zip(curves, itertools.cycle(COLORS))),
        charts=[
            plot_curves(name, task.curve_thresholds, {m: of[name] for m, of in curves.items()})
            for name in next(iter(curves.values()))
        ],
        plot_sequences=plot_sequences,
        galleries=galleries,
    )


def _encode(images: Sequence[np.ndarray]) -> list[str]:
    """Pictures as JPEG in base64, made smaller where all of them would take too much."""
    jpegs = [_to_jpeg(image) for image in images]
    scale = math.sqrt(PICTURES / max(sum(map(len, jpegs)), 1))
    if scale < 1:
        small = (cv2.resize(image, None, None, scale, scale, cv2.INTER_AREA) for image in images)
        jpegs = [_to_jpeg(image) for image in small]
    return [base64.b64encode(jpeg).decode() for jpeg in jpegs]


def _to_jpeg(image: np.ndarray) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
    return cv2.imencode(".jpg", image[..., ::-1], quality)[1].tobytes()
