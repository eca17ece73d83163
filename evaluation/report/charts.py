"""The report's charts as SVG: curves, and a dot per sequence."""

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["COLORS", "curves_svg", "scatter_svg"]

COLORS = ("#0b84d6", "#d55e00", "#009e73", "#cc79a7", "#c79a00", "#8a6fdf", "#56b4e9", "#8c8c8c")
"""Of models, in their order; told apart by color-blind eyes too, on white and on black."""


def curves_svg(title: str, x: Sequence[float], curves: Mapping[str, Sequence[float]]) -> str:
    """Shares (0 to 1) against pixels ``x``, ascending; a line per model, ``COLORS`` in order."""
    chart = _Chart(title, "pixels", "", (0, max(x)), (0, 1), width=340, height=250)
    for number, (model, shares) in enumerate(curves.items()):
        points = [(px, share) for px, share in zip(x, shares, strict=True) if share == share]
        path = " ".join(f"{chart.x(px):.1f},{chart.y(share):.1f}" for px, share in points)
        color = COLORS[number % len(COLORS)]
        dash = ' stroke-dasharray="5 3"' if number >= len(COLORS) else ""
        chart.add(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
        )
        for px, share in points:
            if px == int(px):
                chart.dot(px, share, 3, color, f"{model}: {share:.3f} up to {px:g} px")
    return chart.text()


def scatter_svg(
    title: str, names: tuple[str, str], values: Mapping[str, tuple[float, float]]
) -> str:
    """A dot per sequence: upwards what the first of two models has, to the right what the second.

    Sequences of changing viewpoint (``v_*``) are blue, others orange; hovering names them. Numbers
    that are nan are left out.
    """
    found = {k: v for k, v in values.items() if not any(map(math.isnan, v))}
    top = max([max(pair) for pair in found.values()], default=1)
    ends = (0, 1 if top <= 1 else math.ceil(top))
    chart = _Chart(title, names[1], names[0], ends, ends, width=250, height=250)
    corners = chart.x(0), chart.y(0), chart.x(ends[1]), chart.y(ends[1])
    chart.add(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="axis" '
        'stroke-dasharray="4 4"/>'.format(*corners)
    )
    for sequence, (a, b) in found.items():
        color = COLORS[0] if sequence.startswith("v_") else COLORS[1]
        hover = f"{sequence}: {names[0]} {a:.3f}, {names[1]} {b:.3f}"
        chart.dot(b, a, 4.5, color, hover)
    return chart.text()


class _Chart:
    """Axes with ticks, and what is drawn between them."""

    LEFT, RIGHT, TOP, BOTTOM = 48, 12, 26, 40

    def __init__(self, title, x_title, y_title, x_ends, y_ends, *, width: int, height: int):
        self.x_ends, self.y_ends = x_ends, y_ends
        self.width, self.height = width, height
        self.parts = [
            f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title)}">',
            f'<text x="{self.LEFT}" y="14" class="title">{escape(title)}</text>',
        ]
        for tick in _ticks(*y_ends):
            y = self.y(tick)
            self.add(
                f'<line x1="{self.LEFT}" x2="{width - self.RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                f'class="grid"/><text x="{self.LEFT - 5}" y="{y + 4:.1f}" '
                f'text-anchor="end">{tick:g}</text>'
            )
        below = height - self.BOTTOM + 15
        for tick in _ticks(*x_ends):
            self.add(
                f'<text x="{self.x(tick):.1f}" y="{below}" text-anchor="middle">{tick:g}</text>'
            )
        middle_x = (self.LEFT + width - self.RIGHT) / 2
        middle_y = (self.TOP + height - self.BOTTOM) / 2
        self.add(
            f'<text x="{middle_x}" y="{height - 6}" text-anchor="middle">{_short(x_title)}</text>'
        )
        self.add(
            f'<text transform="translate(12 {middle_y}) rotate(-90)" '
            f'text-anchor="middle">{_short(y_title)}</text>'
        )

    def x(self, value: float) -> float:
        low, high = self.x_ends
        return self.LEFT + (value - low) / (high - low) * (self.width - self.LEFT - self.RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ends
        room = self.height - self.TOP - self.BOTTOM
        return self.height - self.BOTTOM - (value - low) / (high - low) * room

    def dot(self, x: float, y: float, radius: float, color: str, hover: str) -> None:
        self.add(
            f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}" fill="{color}" '
            f'fill-opacity=".75"><title>{escape(hover)}</title></circle>'
        )

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self) -> str:
        return "".join([*self.parts, "</svg>"])


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 6)
    return [low + k * step for k in range(int((high - low) / step + 1.001))]


def _short(name: str) -> str:
    return escape(name if len(name) <= 30 else f"…{name[-29:]}")
