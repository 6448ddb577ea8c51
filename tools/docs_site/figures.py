"""Draws the figures of the documentation as SVG, for light and dark pages: python tools/docs_site/figures.py

The call is drawn from the lists below, the regimes from the planner of the CUDA kernels (which needs no GPU), and the
learning curve from a training that runs here. A test holds the first two equal to the files in docs/figures. The third
is drawn from docs/figures/learning-curve.json, which --train measures again: its last digits depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328; } .on { fill: #ffffff; }
.small { font-size: 11px; fill: #59636e; }
.box { fill: #f6f8fa; stroke: #59636e; } .line { stroke: #59636e; fill: none; } .grid { stroke: #d1d9e0; }
.a { fill: #0969da; } .b { fill: #1a7f37; } .c { fill: #8250df; } .d { fill: #bf8700; } .e { stroke: #d1242f; }
.curve { fill: none; stroke-width: 2; } .a.curve { stroke: #0969da; } .d.curve { stroke: #bf8700; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; } .small { fill: #b1bac4; } .on { fill: #0d1117; }
.box { fill: #212830; stroke: #9198a1; }
.line { stroke: #9198a1; } .grid { stroke: #3d444d; }
.a { fill: #58a6ff; } .b { fill: #3fb950; } .c { fill: #bc8cff; } .d { fill: #e3b341; } .e { stroke: #ff7b72; }
.curve { fill: none; } }
</style>"""


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


# -- how a call travels -----------------------------------------------------------------------------------------------

# name: its middle, what it is, and the file or folder that does it
BOXES = {
    "module": (370, 30, "gru(x, lengths=lengths)", "a module, or rnn_layer"),
    "eager": (170, 120, "short way, in C++", "csrc/eager"),
    "python": (570, 120, "long way, in Python", "seqcls_fast/_recurrent.py, ops.py"),
    "check": (370, 210, "arguments are checked once", "csrc/bindings"),
    "cpu": (170, 300, "CPU: threads share the work", "csrc/cpu/host"),
    "gpu": (370, 390, "GPU: a regime is chosen", "csrc/cuda/plan.h"),
    "torch": (570, 300, "torch's layer, or the reference", "_torch_layer.py, reference.py"),
    "kernels": (170, 390, "kernels of an instruction set", "csrc/cpu/kernels"),
}
# from, to, and when
ARROWS = [
    ("module", "eager", "a plain call"), ("module", "python", "all others"), ("eager", "check", ""),
    ("python", "check", ""), ("python", "torch", "no kernels here"), ("check", "cpu", ""), ("check", "gpu", ""),
    ("cpu", "kernels", ""),
]  # fmt: skip
WIDTH, HEIGHT = 194, 44


def call() -> str:
    parts = [
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path class="line" d="M1 1L7 4L1 7"/></marker></defs>'
    ]
    for start, end, when in ARROWS:
        (x, y, *_), (goal, below, *_) = BOXES[start], BOXES[end]
        y, below = y + HEIGHT / 2, below - HEIGHT / 2
        parts.append(f'<path class="line" d="M{x} {y:g}L{goal} {below:g}" marker-end="url(#tip)"/>')
        if when:
            side = -1 if goal < x else 1
            parts.append(
                text((x + goal) / 2 + side * 12, (y + below) / 2, when, "end" if side < 0 else "start", "small")
            )
    for x, y, what, where in BOXES.values():
        left, top = x - WIDTH / 2, y - HEIGHT / 2
        parts.append(f'<rect class="box" x="{left:g}" y="{top:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        parts += [text(x, y - 3, what), text(x, y + 14, where, kind="small")]
    return svg(740, 425, "How a call travels: from a module to the kernels", parts)


# -- regimes ----------------------------------------------------------------------------------------------------------

REGIMES = {  # the class of its colour, a letter for readers who cannot tell colours apart, and what it does
    "onchip": ("a", "o", "R stays in the registers of one multiprocessor"),
    "cluster": ("b", "c", "R is spread over a cluster of multiprocessors"),
    "grid": ("c", "g", "R is spread over the whole chip"),
    "stepwise": ("d", "s", "R is read again at each step"),
}
SIZES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
BATCHES = (1, 8, 32, 64, 128, 256, 512, 1024)


def regimes() -> str:
    from seqcls_fast.cli.plan import explain

    left, top, wide, high = 60, 60, 26, 24
    parts, seen = [], set()
    for panel, (name, precision) in enumerate((("bfloat16", "bf16"), ("float32", "tf32x3"))):
        x0 = left + panel * (len(SIZES) * wide + 60)
        parts.append(text(x0 + len(SIZES) * wide / 2, top - 14, f"LSTM, forward, {name}"))
        for row, batch in enumerate(BATCHES):
            y = top + row * high
            parts.append(text(x0 - 6, y + 16, f"{batch:,}", "end", "small"))
            for column, hidden in enumerate(SIZES):
                regime = explain("lstm", hidden, batch, precision)["forward"]["regime"]
                seen.add(regime)
                colour, letter, _ = REGIMES[regime]
                x = x0 + column * wide
                said = f"<title>H {hidden}, {batch} rows: {regime}</title>"
                shape = f'x="{x}" y="{y}" width="{wide - 2}" height="{high - 2}"'
                parts.append(f'<rect class="{colour}" {shape} rx="3">{said}</rect>')
                parts.append(text(x + wide / 2 - 1, y + 16, letter, kind="on"))
        for column, hidden in enumerate(SIZES):
            across = (
                f'<text transform="translate({x0 + column * wide + 16} {top + len(BATCHES) * high + 6}) rotate(-60)"'
            )
            parts.append(f'{across} text-anchor="end" class="small">{hidden}</text>')
        parts.append(text(x0 + len(SIZES) * wide / 2, top + len(BATCHES) * high + 54, "hidden units", kind="small"))
    parts.append(text(left - 6, top - 14, "rows", "end", "small"))
    y = top + len(BATCHES) * high + 80
    for number, (name, (colour, letter, what)) in enumerate((n, r) for n, r in REGIMES.items() if n in seen):
        x, below = left + (number % 2) * 370, y + (number // 2) * 22
        parts.append(f'<rect class="{colour}" x="{x}" y="{below - 13}" width="16" height="16" rx="3"/>')
        parts.append(text(x + 8, below, letter, kind="on"))
        parts.append(text(x + 24, below, f"{name}: {what}", "start", "small"))
    return svg(left + 2 * len(SIZES) * wide + 80, y + 40, "Regimes that the planner chooses for an H200", parts)


# -- a learning curve -------------------------------------------------------------------------------------------------


def trained() -> dict[str, list[float]]:
    """The losses of a network that learns 150 short texts by heart, on those and on 200 others."""
    from seqcls_fast import TextClassifier

    rng = random.Random(0)
    words = ["the", "our", "new", "order", "page", "login", "invoice", "mail", "user", "today", "again", "please"]

    def tickets(count: int) -> tuple[list[str], list[str]]:
        texts, labels = [], []
        for index in range(count):
            events = ["fails", "works"] if index % 2 else ["works", "fails"]
            filler = [" ".join(rng.choices(words, k=rng.randint(1, 3))) for _ in range(3)]
            texts.append(f"{filler[0]} {events[0]} {filler[1]} {events[1]} {filler[2]}")
            labels.append(events[index % 5 != 0])  # a fifth of the labels are wrong
        return texts, labels

    clf = TextClassifier(
        hidden_size=64, wide=False, word_dropout=0.0, dropout=0.0, embedding_dropout=0.0, weight_decay=0.0,
        learning_rate=0.005, schedule="constant", epochs=14, batch_size=32, baseline=False, verbose=False,
    )  # fmt: skip
    clf.fit(*tickets(150), validation=tickets(200))
    return {name: [round(epoch[name], 4) for epoch in clf.history_] for name in ("loss", "val_loss")}


def curve(losses: dict[str, list[float]]) -> str:
    left, top, wide, high = 56, 40, 520, 220
    count, most = len(losses["loss"]), max(map(max, losses.values())) * 1.05

    def at(epoch: int, loss: float) -> str:
        return f"{left + wide * epoch / (count - 1):.1f} {top + high - high * loss / most:.1f}"

    best = min(range(count), key=losses["val_loss"].__getitem__)
    parts = []
    for tick in range(int(most / 0.25) + 1):
        y = at(0, tick * 0.25).split()[1]
        parts.append(
            f'<path class="grid" d="M{left} {y}h{wide}"/>' + text(left - 8, float(y) + 4, f"{tick * 0.25:g}", "end")
        )
    for epoch in range(count):
        parts.append(text(left + wide * epoch / (count - 1), top + high + 18, str(epoch + 1), kind="small"))
    for name, colour, label in (("loss", "a", "training"), ("val_loss", "d", "held out")):
        points = "L".join(at(epoch, loss) for epoch, loss in enumerate(losses[name]))
        parts.append(
            f'<g class="{colour}"><path d="M{points}" style="fill: none; stroke-width: 2" class="{colour} l"/></g>'
        )
        x, y = map(float, at(count - 1, losses[name][-1]).split())
        parts.append(text(x + 6, y + 4, label, "start"))
    x, y = at(best, losses["val_loss"][best]).split()
    parts.append(f'<path class="e" d="M{x} {top}V{top + high}" stroke-dasharray="4 4"/>')
    parts.append(text(float(x) + 6, top + 12, f"best: epoch {best + 1}", "start", "small"))
    parts.append(text(left + wide / 2, top + high + 38, "epoch", kind="small"))
    parts.append(text(left, top - 16, "loss", "start", "small"))
    strokes = "<style>.a.l { stroke: #0969da; } .d.l { stroke: #bf8700; }</style>"
    return svg(
        left + wide + 80, top + high + 50, "Losses over the epochs of a training that overfits", [strokes, *parts]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the figures of docs/figures.")
    parser.add_argument("--train", action="store_true", help="also measures the learning curve again")
    data = FOLDER / "learning-curve.json"
    if parser.parse_args().train:
        data.write_text(json.dumps(trained(), indent=1) + "\n", encoding="utf-8")
    losses = json.loads(data.read_text(encoding="utf-8"))
    for name, drawn in (("call", call()), ("regimes", regimes()), ("learning-curve", curve(losses))):
        (FOLDER / f"{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
