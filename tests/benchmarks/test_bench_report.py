"""Statistics of measured rows, and the report made of them: stale, lost, disturbed and wrong rows must show."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import reasons, report, rows
from benchmarks.rows import Ratio, Row, Side

RUN = {
    "time": "2026-01-01T00:00:00+00:00", "machine": "A CPU", "threads": 1, "torch": "2.13", "python": "3.11",
    "peers": {"onnxruntime": "1.31"}, "seqcls_fast": "0.1", "impl": "avx2", "commit": "abc", "limits": ["fast"],
}  # fmt: skip


def layer(name: str, threads: int = 1, what: str = "inference", **sides: Any) -> Row:
    found = {key.replace("_", " "): side if isinstance(side, Side) else Side([side] * 5) for key, side in sides.items()}
    return Row("layers", what, name, threads, found, bounds={"arithmetic": 1e-4})


def written(folder: Path, *measured: Row, csrc: str = "", name: str = "a-cpu") -> Path:
    with (folder / f"{name}.json").open("a") as file:
        rows.write_run(RUN | {"csrc": csrc or rows.csrc_hash()}, file)
        for row in measured:
            rows.write(row, file)
    return folder / f"{name}.json"


def text_of(*measured: Row, csrc: str = "") -> str:
    """The machine's page of rows that went through a file's text."""
    file = io.StringIO()
    rows.write_run(RUN | {"csrc": csrc or rows.csrc_hash()}, file)
    for row in measured:
        rows.write(row, file)
    found, run = [], {}
    for line in file.getvalue().splitlines():
        entry = json.loads(line)
        run = entry.get("run", run)
        if "row" in entry:
            sides = {name: Side(**side) for name, side in entry["row"].pop("sides").items()}
            found.append(rows.Measured(Row(**entry["row"], sides=sides), run))
    return report.Report(found).page([])


# -- statistics -------------------------------------------------------------------------------------------------------


def test_value_of_a_side() -> None:
    assert Side([3.0, 1.0, 2.0]).value == 2
    assert Side([3.0, None, 1.0], least=0.5).value == 2, "what was disturbed counts only where little else is there"
    assert Side([3.0, None, None], least=2.5).value == 2.5
    assert Side([None, None], least=2.5).value == 2.5
    assert Side([4.0], note="a single call").value == 4
    assert not Side([4.0]).starred
    assert Side([4.0, None], least=5.0).starred
    assert not Side().measured


def test_ratio_and_interval() -> None:
    even = Ratio.of(Side([2.0] * 5), Side([1.0] * 5))
    assert even == (2, 2, 2)
    assert even.low > 1
    noisy = Ratio.of(Side([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), Side([3.0] * 7))
    assert noisy.low < noisy.value < noisy.high
    assert not noisy.low > 1
    assert not noisy.high < 1
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]  # of the machine, in both
    paired = Ratio.of(Side([2 * value for value in drift]), Side(list(drift)))
    assert paired == (2, 2, 2), "rounds are resampled together"
    gaps = Ratio.of(Side([2.0, 2.0, 2.0, None]), Side([1.0, 1.0, 1.0, 9.0]))
    assert gaps == (2, 2, 2), "a round that one side lacks counts for neither"
    assert math.isnan(Ratio.of(Side([1.0]), Side([1.0] * 5)).low), "one round says nothing about spread"
    assert noisy == Ratio.of(Side([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), Side([3.0] * 7)), "the same every time"


def test_slope() -> None:
    assert report.slope([(size, 3e-6 * size**2) for size in (16, 64, 256)]) == pytest.approx(2)


def test_amounts() -> None:
    assert rows.amount(1.234e-3, "s") == "1.23 ms"
    assert rows.amount(2.5e-8, "s") == "0.0250 us"
    assert rows.amount(12.3456, "s") == "12.3 s"
    assert rows.amount(1.5e6, "bytes") == "1.50 MB"
    assert rows.number(123456.0) == "123456"


def test_a_frozen_side_gets_a_row_of_its_own() -> None:
    """Both rows have the same samples of the other sides, so that each can be lost and is then listed."""
    row = layer("GRU (2, 3, 4, 5)", ours=3e-3, ours_frozen=2e-3, torch=1e-3, onnxruntime=2.5e-3)
    plain, frozen = rows.both_rows(row)
    assert (plain.what, frozen.what) == ("inference", "inference, frozen")
    assert list(plain.sides) == ["ours", "torch", "onnxruntime"]
    assert list(frozen.sides) == ["ours", "ours not frozen", "torch", "onnxruntime"]
    assert [plain.ratio("torch").value, frozen.ratio("torch").value] == pytest.approx([1 / 3, 1 / 2])
    assert frozen.ratio("ours not frozen").value == pytest.approx(1.5)
    text = text_of(plain, frozen)
    assert "In 3 of 4 comparisons" in text
    assert "inference, frozen: GRU (2, 3, 4, 5)" in text


def test_a_file_keeps_the_latest_of_each_row(tmp_path: Path) -> None:
    old, new = layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=2e-3), layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=3e-3)
    written(tmp_path, old, csrc="old")
    found = rows.load(written(tmp_path, new, layer("GRU (2, 3, 4, 5)", threads=2, ours=1e-3)))
    assert [m.row.threads for m in found] == [1, 2]
    assert found[0].row.ratio("torch").value == pytest.approx(3)
    assert not found[0].stale


# -- the report -------------------------------------------------------------------------------------------------------


def test_every_lost_row_is_listed_and_bold() -> None:
    text = text_of(
        layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=2e-3, onnxruntime=0.5e-3),
        layer("GRU (6, 7, 8, 9)", ours=1e-3, torch=0.9e-3),
    )
    assert "2 of 3 comparisons" in text
    lost = [line for line in text.splitlines() if "times as fast" in line]
    assert len(lost) == 2
    assert "| 2.00 times as fast |" in lost[0]
    assert "onnxruntime" in lost[0]
    assert "inference: GRU (6, 7, 8, 9)" in lost[1]
    table = next(line for line in text.splitlines() if line.startswith("| GRU (2, 3, 4, 5) |"))
    assert "**0.500**" in table
    assert "2.00" in table
    assert "**2.00" not in table


def test_no_loss_is_said() -> None:
    assert "No row is lost to any peer." in text_of(layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=2e-3))


def test_an_uncertain_loss_is_a_loss() -> None:
    either = layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=Side([0.8e-3, 0.9e-3, 0.9e-3, 1.2e-3, 1.2e-3]))
    assert either.ratio("torch").low < either.ratio("torch").value < 1 < either.ratio("torch").high
    assert "1 of 1 comparisons" in text_of(either)


def test_another_of_ours_is_no_loss() -> None:
    assert "No row is lost" in text_of(layer("GRU (2, 3, 4, 5)", ours=1e-3, ours_loop=0.5e-3, torch=2e-3))


def test_a_read_of_the_weights_is_no_loss_but_a_bound() -> None:
    row = layer("GRU (1, 1, 128, 256)", ours=2e-5, torch=4e-5)
    row.sides[rows.FLOOR], row.bounds = Side([1.5e-5] * 5), {"arithmetic": 1e-6, rows.FLOOR: 1.5e-5}
    text = text_of(row)
    assert "No row is lost" in text
    table = [line for line in text.splitlines() if line.startswith("| GRU (1, 1, 128, 256) |")]
    assert table == ["| GRU (1, 1, 128, 256) | 20.0 us | 75 % | 0.750 | 2.00 |"]
    assert f"| ours | of the bound | {rows.FLOOR} | torch |" in text
    assert " LOST" not in rows.described(row)


def test_stale_rows_are_marked() -> None:
    row, other = (layer(f"GRU (2, 3, 4, {H})", ours=1e-3, torch=2e-3) for H in (5, 6))
    fresh, stale = ({"csrc": csrc} for csrc in (rows.csrc_hash(), "another"))
    mixed = report.Report([rows.Measured(row, RUN | stale), rows.Measured(other, RUN | fresh)]).page([])
    assert mixed.count("2.00+") == 1
    assert report.STALE not in mixed
    assert "2.00+" not in text_of(row)
    assert report.STALE not in text_of(row)
    assert report.STALE in text_of(row, csrc="another"), "where all are stale it is said once"


def test_disturbed_and_wrong_rows_are_marked() -> None:
    disturbed = Side([None, None], least=2e-3)
    assert "2.00*" in text_of(layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=disturbed))
    wrong = Side(note="WRONG: error 1.0e+00", error=1.0)
    text = text_of(layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=wrong), layer("GRU (6, 7, 8, 9)", ours=wrong, torch=1e-3))
    assert "| wrong |" in text
    assert "**WRONG**: inference, GRU (6, 7, 8, 9)" in text


def test_summary() -> None:
    text = text_of(
        layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=8e-3, torch_packed=2e-3, JAX=1e-3),
        layer("GRU (6, 7, 8, 9)", ours=1e-3, torch=8e-3),
    )
    assert "| inference | 2 | 4.00x | 2.00x | 2.83x | 1.00x | none |" in text, "the best of torch's ways counts"


def test_reasons() -> None:
    tiny = layer("GRU (1, 1, 8, 8)", ours=1e-5, torch=2e-5)
    mostly_call = layer("GRU (1, 9, 8, 8)", ours=2e-5, torch=2e-5)
    near = layer("GRU (64, 100, 128, 128)", ours=1.1e-4, torch=2e-4)
    far = layer("GRU (64, 100, 128, 128)", what="training", ours=1e-3, torch=2e-3)
    found = report.Report([rows.Measured(row, RUN | {"csrc": ""}) for row in (tiny, mostly_call, near, far)])
    assert found.reason(mostly_call) == "the fixed cost of a call: 10.0 us of 20.0 us"
    assert found.reason(near) == "near the bound: we reach 91 % of it"
    assert found.reason(far).startswith("saved values")


def test_reasons_of_calls() -> None:
    """The cost of a call is that of the tiniest row of the same table."""

    def cell(name: str, seconds: float, what: str = "cell inference") -> Row:
        row = layer(f"GRUCell {name}", what=what, ours=seconds, torch=seconds)
        row.question, row.bounds = "cells", {"arithmetic": 1e-6}
        return row

    tiny, small = cell("(1, 8, 8)", 1e-5), cell("(4, 8, 8)", 1.1e-5)
    frozen, one = cell("(1, 8, 8)", 4e-6, "cell inference, frozen"), cell("(1, 512, 512)", 1e-4)
    near = cell("(4, 32, 32)", 1.4e-6, "cell training")
    loop = layer("MLP and LSTMCell, 16 observations, B = 1", what="loops around cells, inference", ours=1, torch=1)
    loop.question, loop.bounds = "policies", {}
    found = report.Report([rows.Measured(row, RUN | {"csrc": ""}) for row in (tiny, small, frozen, one, near, loop)])
    assert found.reason(tiny) == found.reason(frozen) == found.reason(loop) == reasons.CALL
    assert found.reason(small) == "the fixed cost of a call: 10.0 us of 11.0 us"
    assert found.reason(one).startswith("few rows")
    assert found.reason(near) == "near the bound: we reach 71 % of it"
    first = [layer("GRU (1, 20, 32, 64)", what=what, ours=1, torch=1) for what in ("first call", "first call, frozen")]
    assert found.reason(first[0]).startswith("first use: weights are packed and memory is mapped")
    assert found.reason(first[1]).startswith("first use: memory is mapped")


def test_written_between_markers(tmp_path: Path) -> None:
    written(tmp_path, layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=0.5e-3))
    written(tmp_path, layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=2e-3), name="other-cpu")
    (tmp_path / "gpu-some.json").write_text("not ours to read")
    page = tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    arguments = ["--results", str(tmp_path), "--docs", str(page.parent)]
    report.main(arguments)
    text, machine = page.read_text(), (page.parent / "machines" / "a-cpu.md").read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text.split(report.END)[0].splitlines()
    assert machine.count("**0.500**") == 1, "in the table"
    assert machine.count("| torch | 2.00 times as fast |") == 1, "in the list of losses"
    assert "torch is 2.00 times as fast" in text
    files = [page, *sorted((page.parent / "machines").iterdir())]
    before = [file.read_text() for file in files]
    report.main(arguments)
    assert [file.read_text() for file in files] == before
    assert text.count("(machines/other-cpu.md)") == 1, "of a machine that is not the newest there is a link"
    assert text.index("1 of 1 comparisons") < text.index("(machines/other-cpu.md)")
    pictures = [(file, name) for file in files for name in re.findall(r"\]\((\S+\.svg)\)", file.read_text())]
    assert len(pictures) == 3, "one on each page"
    for file, name in pictures:
        tree = ElementTree.parse(file.parent / name)
        assert "time relative to seqcls_fast" in "".join(tree.getroot().itertext())


def test_missing_markers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text("nothing")
    with pytest.raises(SystemExit, match="expected one <!-- bench:begin -->"):
        report.between(tmp_path / "performance.md", report.BEGIN, report.END, "")
    with pytest.raises(SystemExit, match="found none"):
        report.main(["--results", str(tmp_path)])


def test_of_many_rows_below_the_bound_the_number_is_said() -> None:
    many = [layer(f"GRU (64, 9, 8, {H})", ours=1e-3, torch=2e-3) for H in range(report.MOST_NAMES + 1)]
    assert f"tiles that are not full): {len(many)} of the {len(many)} rows." in text_of(*many)
    few = text_of(*many[1:]).replace("\n  ", " ")
    assert "GRU (64, 9, 8, 1); GRU (64, 9, 8, 2);" in few


def test_losses_are_counted_by_reason() -> None:
    measured = [
        layer("GRU (2, 3, 4, 5)", ours=1e-3, torch=0.5e-3, onnxruntime=0.8e-3),
        layer("GRU (64, 100, 128, 128)", what="training", ours=1e-3, torch=0.9e-3),
    ]
    text = report.Report([rows.Measured(row, RUN | {"csrc": ""}) for row in measured]).overview([], "a.md")
    assert "In 3 of 3 comparisons" in text
    assert "| 2 | torch, onnxruntime | inference: GRU (2, 3, 4, 5), 1 thread: torch is 2.00 times as fast |" in text
    assert "| 1 | torch | training: GRU (64, 100, 128, 128), 1 thread: torch is 1.11 times as fast |" in text


def test_exponents_and_curves() -> None:
    sizes = {16: 1e-3, 64: 4e-3, 256: 16e-3, 1024: 64e-3}
    measured = [
        Row("scaling", "time against T", f"GRU T = {size}", 1, {"ours": Side([s] * 3), "torch": Side([s * size] * 3)})
        for size, s in sizes.items()
    ]
    text = text_of(*measured)
    assert "GRU against T, 1 thread: ours 1.00, torch 2.00" in text
    found = report.Report([rows.Measured(row, RUN | {"csrc": ""}) for row in measured])
    assert "ms against T" in found.charts()["scaling"]


def test_what_is_in_the_repository_can_be_reported() -> None:
    assert all(found.rows for _, found in report.reports(rows.RESULTS))
