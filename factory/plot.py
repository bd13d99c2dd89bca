"""Small plots as SVG, for a page that must need nothing from elsewhere. Shapes only: words stand beside them in the
page, where they scale, wrap and can be read aloud. Colours come from the page's style, by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

HISTOGRAM_BARS = 41
WIDTH, HEIGHT = 328.0, 88.0


def stacked(parts: Sequence[tuple[str, int]], total: int) -> Markup:
    """A bar of parts in order, each (class, number), over a length of ``total``."""
    shapes, at = [], 0.0
    for name, number in parts:
        width = 100 * number / max(1, total)
        if width:
            shapes.append(f'<rect class="{name}" x="{at:.3f}" y="0" width="{width:.3f}" height="10"/>')
        at += width
    return _svg("bar", 100, 10, shapes, stretched=True)


def interval(share: float, low: float, high: float, *, matched: bool = False) -> Markup:
    """A share between 0 and 1 with its interval, against chance (one half)."""
    x, left, right = (4 + 192 * value for value in (share, low, high))
    shapes = [
        '<line class="axis" x1="4" y1="10" x2="196" y2="10"/>',
        '<line class="chance" x1="100" y1="2" x2="100" y2="18"/>',
        f'<line class="range" x1="{left:.1f}" y1="10" x2="{right:.1f}" y2="10"/>',
        f'<circle class="{"hollow" if matched else "dot"}" cx="{x:.1f}" cy="10" r="4.5"/>',
    ]
    return _svg("interval", 200, 20, shapes)


def histogram(counts: Mapping[int, int], reach: int) -> Markup:
    """Length differences from ``-reach`` to ``reach``, a multiple of the bars; the rest is in the outermost bars.

    An odd number of bars, so that the one in the middle stands astride zero.
    """
    bars = [0] * HISTOGRAM_BARS
    step = (2 * reach + 1) // HISTOGRAM_BARS
    for difference, number in counts.items():
        bars[min(HISTOGRAM_BARS - 1, max(0, (difference + reach) // step))] += number
    tallest = max(1, *bars)
    width = WIDTH / HISTOGRAM_BARS
    shapes = []
    for i, number in enumerate(bars):
        if number:
            height = max(1.5, (HEIGHT - 4) * number / tallest)  # a single pair is seen too
            side = "level" if i == HISTOGRAM_BARS // 2 else "chosen" if i > HISTOGRAM_BARS // 2 else "rejected"
            shapes.append(
                f'<rect class="{side}" x="{i * width + 0.5:.2f}" y="{HEIGHT - height:.2f}" '
                f'width="{width - 1:.2f}" height="{height:.2f}"/>'
            )
    shapes.append(f'<line class="axis" x1="0" y1="{HEIGHT}" x2="{WIDTH}" y2="{HEIGHT}"/>')
    shapes.append(f'<line class="chance" x1="{WIDTH / 2}" y1="0" x2="{WIDTH / 2}" y2="{HEIGHT}"/>')
    return _svg("histogram", WIDTH, HEIGHT, shapes)


def curve(values: Sequence[float]) -> Markup:
    """A line through the values, from the lowest at the bottom to the highest at the top."""
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    points = " ".join(
        f"{4 + (WIDTH - 8) * i / max(1, len(values) - 1):.1f},{HEIGHT - 6 - (HEIGHT - 12) * (v - low) / spread:.1f}"
        for i, v in enumerate(values)
    )
    axis = f'<line class="axis" x1="0" y1="{HEIGHT}" x2="{WIDTH}" y2="{HEIGHT}"/>'
    return _svg("curve", WIDTH, HEIGHT, [axis, f'<polyline class="line" points="{points}"/>'])


def _svg(name: str, width: float, height: float, shapes: Sequence[str], *, stretched: bool = False) -> Markup:
    """Only numbers and classes of our own come in here, so nothing needs escaping. Hidden from readers aloud: the same
    figures stand beside it as text."""
    fit = ' preserveAspectRatio="none"' if stretched else ""
    inner = "".join(shapes)
    return Markup(
        f'<svg class="plot {name}" viewBox="0 0 {width:g} {height:g}"{fit} aria-hidden="true" focusable="false">'
        f"{inner}</svg>"
    )
