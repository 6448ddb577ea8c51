"""Two kinds of charts as SVG, for light and dark pages: ratios as dots, and times as lines, both logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

# engine -> its colour, and the shape of its mark for readers who cannot tell the colours apart
MARKS = {
    "ours": ("#d1242f", "circle"),
    "torch": ("#e36209", "circle"),
    "torch packed": ("#e36209", "square"),
    "torch without oneDNN": ("#e36209", "cross"),
    "torch.compile": ("#e36209", "diamond"),
    "onnxruntime": ("#0969da", "square"),
    "OpenVINO": ("#8250df", "diamond"),
    "JAX": ("#1a7f37", "cross"),
}
STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328; } .grid { stroke: #d1d9e0; } .one { stroke: #1f2328; }
@media (prefers-color-scheme: dark) { text { fill: #f0f6fc; } .grid { stroke: #3d444d; } .one { stroke: #f0f6fc; } }
</style>"""
LEFT, RIGHT, TOP, LINE = 190, 20, 58, 18


def _mark(name: str, x: float, y: float, title: str = "") -> str:
    colour, shape = MARKS[name]
    paths = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
        "square": f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>',
        "diamond": f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>',
        "cross": f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke="{colour}" stroke-width="2"/>',
    }
    return f'<g fill="{colour}">{paths[shape]}<title>{escape(title)}</title></g>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts, x = [], 12.0
    for name in names:
        parts += [_mark(name, x, y - 4, name), _text(x + 9, y, name)]
        x += 26 + 7 * len(name)
    return parts


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in between."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t for t in (step * 10.0**power for power in powers for step in (1, 2, 5)) if low <= t <= high]


def _short(value: float) -> str:
    return f"{value:g}"


def dots(title: str, lines: Mapping[str, Mapping[str, float]]) -> str:
    """A line per case, a mark per engine: its time divided by ours."""
    ratios = [ratio for line in lines.values() for ratio in line.values()]
    low, high = min(0.5, *ratios) * 0.9, max(2.0, *ratios) * 1.1
    width, bottom = 760, TOP + LINE * len(lines)
    scale = (width - LEFT - RIGHT) / math.log(high / low)

    def x(ratio: float) -> float:
        return LEFT + scale * math.log(ratio / low)

    names = [name for name in MARKS if any(name in line for line in lines.values())]
    parts = [_text(8, 18, title), *_legend(names, 40)]
    for tick in _ticks(low, high):
        kind = "one" if tick == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{x(tick):.1f} {TOP - 6}V{bottom}"/>')
        parts.append(_text(x(tick), bottom + 16, _short(tick), "middle"))
    for number, (label, line) in enumerate(lines.items()):
        y = TOP + LINE * (number + 0.5)
        parts.append(_text(LEFT - 10, y + 4, label, "end"))
        parts += [_mark(name, x(line[name]), y, f"{name}: {line[name]:.3g}") for name in names if name in line]
    parts.append(
        _text(width - RIGHT, bottom + 34, "time relative to seqcls_fast; left of 1: faster than seqcls_fast", "end")
    )
    return _svg(width, bottom + 42, parts, title)


def curves(title: str, panels: Mapping[str, Mapping[str, Mapping[float, float]]]) -> str:
    """Panels side by side, a curve per engine: seconds against a size."""
    each, height, gap = 220, 220, 50
    parts = [_text(8, 18, title)]
    names = [name for name in MARKS if any(name in panel for panel in panels.values())]
    parts += _legend(names, 40)
    for number, (label, panel) in enumerate(panels.items()):
        left = gap + number * (each + gap)
        sizes = [size for curve in panel.values() for size in curve]
        times = [time for curve in panel.values() for time in curve.values()]
        across, up = math.log(max(sizes) / min(sizes)), math.log(max(times) / min(times))

        def at(size: float, time: float, left: float = left, sizes: list[float] = sizes, times: list[float] = times,
               across: float = across, up: float = up) -> tuple[float, float]:  # fmt: skip
            return (
                left + each * math.log(size / min(sizes)) / across,
                TOP + height - height * math.log(time / min(times)) / up,
            )

        for tick in _ticks(min(times), max(times)):
            y = at(min(sizes), tick)[1]
            parts.append(f'<path class="grid" d="M{left} {y:.1f}h{each}"/>')
            if f"{tick:e}".startswith("1"):
                parts.append(_text(left - 4, y + 4, _short(tick * 1e3), "end"))
        for size in sorted(set(sizes)):
            parts.append(_text(at(size, min(times))[0], TOP + height + 16, _short(size), "middle"))
        for name in names:
            points = [at(size, time) for size, time in sorted(panel.get(name, {}).items())]
            if points:
                line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
                parts.append(f'<path d="M{line}" fill="none" stroke="{MARKS[name][0]}"/>')
                parts += [_mark(name, x, y, name) for x, y in points]
        parts.append(_text(left + each / 2, TOP + height + 34, f"ms against {label}", "middle"))
    return _svg(gap + len(panels) * (each + gap), TOP + height + 42, parts, title)
