"""The report of `make gpu`: ratios, bars and the points that torch.nn wins."""

from __future__ import annotations

import re

from gpu_fakes import POINT, part

from benchmarks.gpu import grid, report
from benchmarks.gpu.grid import GridPoint


def test_timed_points() -> None:
    parts = {
        f"grid/{POINT}": part(2.0, nn=5.0),
        "grid/wrong": {"failed": "wrong: h_n"},
        "latency/launch": {"times": {}},
        f"grid/{POINT._replace(ragged=True)}": part(2.0, nn_packed=30.0, nn_padded=7.0, ours_packed=1.0),
        f"grid/{POINT._replace(batch=1)}": {
            "regime": "grid",
            "times": {"eager": {"ours": [1.0]}, "graph": {"nn": [1.0]}},
        },
    }
    found = report.timed(parts)
    assert [(t.medians, t.ratio) for t in found] == [
        ({"ours": 2.0, "nn": 5.0}, 2.5),
        ({"ours": 2.0, "nn packed": 30.0, "nn padded": 7.0, "ours packed": 1.0}, 3.5),
    ]


def bar(name: str) -> report.Bar:
    return next(each for each in report.BARS if name in each.name)


def test_bars_apply_to_their_points() -> None:
    def points(name: str, *candidates: GridPoint) -> list[GridPoint]:
        timed = [
            report.Timed(point, "eager", {"ours": 1.0, "nn packed" if point.ragged else "nn": 1.0}, "")
            for point in candidates
        ]
        return [t.point for t in timed if bar(name).applies(t)]

    sizes = [POINT._replace(hidden=hidden) for hidden in (1, 32, 128, 192, 512, 768)]
    assert [point.hidden for point in points("H <= 128", *sizes)] == [1, 32, 128]
    assert [point.hidden for point in points("192 <= H <= 512", *sizes)] == [192, 512]
    assert points("192 <= H <= 512", sizes[3]._replace(cell="rnn_tanh")) == []
    assert points("192 <= H <= 512", sizes[3]._replace(cell="gru"))
    assert points("H <= 128", POINT._replace(training=False), POINT._replace(ragged=True)) == []
    assert points("against packed", POINT, POINT._replace(ragged=True, training=False)) == []
    assert points("against packed", POINT._replace(ragged=True))
    assert points("both packed", POINT._replace(ragged=True)) == []
    assert points("1.96", *grid.ALWAYS) == [GridPoint("lstm", "bf16", 768, False, False, 16, 1024, 1)]


def test_bars_arithmetic() -> None:
    def judged(name: str, *values: float) -> str:
        points = [
            report.Timed(POINT._replace(batch=i), "graph", {"ours": 1.0, "nn": v}, "") for i, v in enumerate(values)
        ]
        return bar(name).judge(points)

    assert judged("H <= 128", 3.0, 4.0, 12.0) == (
        "met           forward + backward, H <= 128: 3x: worst 3.00x, 0 % below the bar, "
        "at lstm-bf16-B0-T32-H64-d1-training-padded graph; 3 of 3 meet it; mean 5.24x, best 12.00x"
    )
    missed = judged("H <= 128", 6.0, 1.5, 3.0)
    assert missed.startswith("MISSED ")
    assert "worst 1.50x, 50 % below the bar, at lstm-bf16-B1-" in missed
    assert "2 of 3 meet it; mean 3.00x, best 6.00x" in missed
    assert judged("against packed", 3.0) == "not measured  forward + backward, ragged against packed: 10x"
    assert judged("no point below", 0.99).startswith("MISSED")
    assert judged("no point below", 1.0).startswith("met")


def test_bar_of_a_step() -> None:
    def judged(*times: float) -> str:
        sides = [{"ours": us * 1024e-6, "nn": 1.0} for us in times]
        return bar("1.96").judge([report.Timed(grid.ALWAYS[0], "eager", s, "grid") for s in sides])

    assert judged(1.95).startswith("met")
    assert judged(2.45).startswith("MISSED")
    assert "worst 2.45 us, 25 % above the bar" in judged(1.5, 2.45)
    assert judged(1.5, 2.45).endswith("best 1.50 us")


def test_packed_bar_does_not_look_at_padded() -> None:
    sides = {"ours": 1.0, "nn packed": 20.0, "nn padded": 2.0, "ours packed": 4.0}
    point = report.Timed(POINT._replace(ragged=True), "eager", sides, "")
    assert bar("against packed").judge([point]).startswith("met")
    assert "worst 5.00x, 50 % below the bar" in bar("both packed").judge([point])
    assert point.ratio == 2.0


def test_report_ends_with_the_table_losing_rows_first() -> None:
    parts = {
        f"grid/{POINT}": part(2.0, nn=1.0),
        f"grid/{POINT._replace(batch=1)}": part(2.0, nn=1.8, regime="grid/stepwise"),
        f"grid/{POINT._replace(batch=64)}": part(2.0, nn=8.0),
        f"grid/{POINT._replace(hidden=32)}": part(2.0, nn=2.0),  # equal, so not lost
        "latency/gru-bf16-H256": {
            "cluster": {"forward us": 0.5, "backward us": 0.75, "forward floor us": 0.25, "backward floor us": 0.25},
            "grid": {"forward us": 1.5, "backward us": 1.75, "forward floor us": 0.25, "backward floor us": 0.25},
            "nn": {"forward us": 9.0, "backward us": 8.0},
            "line": "",
        },
        "correctness/gru-bf16-H33": {"padded": {"nn": 2e-3, "onchip": 1e-3}, "ragged": {"onchip": "inf"}},
        "correctness/lstm-bf16-H33": {"padded": {"nn": 4e-3, "onchip": 3e-3}},
    }
    lines = report.verdict(parts, {"device": "NVIDIA H200"})
    assert lines[-5] == "your GPU, NVIDIA H200, beside torch.nn: 2 of 4 rows lost; us of a call"
    assert lines[-4] == f"LOST {POINT} onchip: eager 0.50x (ours 2000000.0, nn 1000000.0)"
    assert lines[-3].startswith(f"LOST {POINT._replace(batch=1)} grid/stepwise: eager 0.90x")
    assert lines[-2].startswith(f"     {POINT._replace(hidden=32)} onchip: eager 1.00x")  # equal, so not lost
    assert "4.00x" in lines[-1]
    text = "\n".join(lines)
    assert "bf16  onchip    inf, torch.nn's nan, at gru-bf16-H33 ragged" in text
    steps = "forward   cluster 0.50 (+0.25), grid 1.50 (+1.25), nn 9.00, grid's exchange over cluster's +1.00"
    assert steps in re.sub(r"gru-bf16-H256 +", "", text)
    table = next(line for line in lines if "padded training eager H64" in line)
    assert table.split()[-5] == f"{(0.5 * 0.9 * 4) ** (1 / 3):.2f}"
    assert table.split()[-4] == "(0.50)"


def test_both_modes_of_a_row_are_in_its_line() -> None:
    modes = [
        report.Timed(POINT, mode, {"ours": 1e-6, "nn": ratio * 1e-6}, "onchip")
        for mode, ratio in (("eager", 2.0), ("graph", 0.5))
    ]
    assert report.table(modes) == [
        f"LOST {POINT} onchip: eager 2.00x (ours 1.0, nn 2.0); graph 0.50x (ours 1.0, nn 0.5)"
    ]


def test_what_primitives_and_tools_have_told() -> None:
    parts = {"primitives/mufu": {"line": "cycles 4"}, "ncu/lstm": {"line": "12 us"}, "memcheck/x": {"failed": "no"}}
    lines = report.verdict(parts, {})
    assert lines[lines.index("primitives:") + 1] == "  mufu: cycles 4"
    assert lines[lines.index("tools:") + 1] == "  lstm: 12 us"


def test_report_of_nothing() -> None:
    lines = report.verdict({}, {})
    assert lines[-1] == "your GPU, not known, beside torch.nn: 0 of 0 rows lost; us of a call"
    bars = lines[lines.index("bars:") + 1 :][: len(report.BARS)]
    assert all("not measured" in line for line in bars)
