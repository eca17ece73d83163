"""The report's charts, for ``page.html`` to draw: curves, and a dot per sequence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["COLORS", "Chart", "plot_curves", "plot_sequences"]

COLORS = ("#0b84d6", "#d55e00", "#009e73", "#cc79a7", "#c79a00", "#8a6fdf", "#56b4e9", "#8c8c8c")
"""Of models, in their order; told apart by color-blind eyes too, on white and on black."""


@dataclass
class Chart:
    """Axes from 0 to ``ends`` (x, y), and what is drawn between them.

    Attributes:
        width: in pixels of the page, as ``radius`` of the dots.
        lines: the points (x, y) of each and its style in CSS.
        dots: x, y, color and the text under the pointer of each.
    """

    title: str
    x_title: str
    y_title: str
    ends: tuple[float, float]
    width: int
    radius: float
    lines: list[tuple[Sequence[tuple[float, float]], str]] = field(default_factory=list)
    dots: list[tuple[float, float, str, str]] = field(default_factory=list)
    left, right, top, bottom, height = 48, 12, 26, 40, 250

    def x(self, value: float) -> float:
        """Pixels from the left."""
        room = self.width - self.left - self.right
        return round(self.left + value / self.ends[0] * room, 1)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        room = self.height - self.top - self.bottom
        return round(self.height - self.bottom - value / self.ends[1] * room, 1)

    def ticks(self, axis: int) -> list[float]:
        """Round values along an axis, 0 or 1, at most seven."""
        end = self.ends[axis]
        step = 10 ** math.floor(math.log10(end))
        step = next(s for s in (step / 5, step / 2, step, 2 * step) if end / s <= 6)
        return [k * step for k in range(int(end / step + 1.001))]


def plot_curves(title: str, x: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Chart:
    """Shares (0 to 1) against pixels ``x``, ascending; a line per model, ``COLORS`` in order."""
    chart = Chart(title, "pixels", "", (max(x), 1), width=340, radius=3)
    for number, (model, shares) in enumerate(curves.items()):
        points = [(px, share) for px, share in zip(x, shares, strict=True) if share == share]
        color = COLORS[number % len(COLORS)]
        dash = "; stroke-dasharray: 5 3" if number >= len(COLORS) else ""
        chart.lines.append((points, f"stroke: {color}; stroke-width: 2{dash}"))
        for px, share in points:
            if px == int(px):
                chart.dots.append((px, share, color, f"{model}: {share:.3f} up to {px:g} px"))
    return chart


def plot_sequences(
    title: str, names: tuple[str, str], values: Mapping[str, tuple[float, float]]
) -> Chart:
    """A dot per sequence: upwards what the first of two models has, to the right what the second.

    Sequences of changing viewpoint (``v_*``) are blue, others orange; hovering names them. Numbers
    that are nan are left out.
    """
    found = {k: v for k, v in values.items() if not any(map(math.isnan, v))}
    top = max([max(pair) for pair in found.values()], default=1)
    end = 1 if top <= 1 else math.ceil(top)
    y_title, x_title = (name if len(name) <= 30 else f"…{name[-29:]}" for name in names)
    chart = Chart(title, x_title, y_title, (end, end), width=250, radius=4.5)
    chart.lines.append(([(0, 0), (end, end)], "stroke: var(--quiet); stroke-dasharray: 4 4"))
    for sequence, (a, b) in found.items():
        color = COLORS[0] if sequence.startswith("v_") else COLORS[1]
        chart.dots.append((b, a, color, f"{sequence}: {names[0]} {a:.3f}, {names[1]} {b:.3f}"))
    return chart
