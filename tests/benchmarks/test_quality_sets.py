"""The text sets that quality is measured on, on tiny samples of their sources."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from benchmarks import quality_sets
from benchmarks.quality_sets import Row, by_source, docstrings, manual, part_of, records, sections

DUMP = """\
Package: a-dev
Source: a (1.0)
Section: contrib/libdevel
Description: small library for tests, headers
 It has
 two lines.
 .
 And a paragraph.
Description-md5: 0

Package: b
Section: net
Description-en: a client of the network

Package: c
Section: net
"""


def test_debian() -> None:
    assert [record["Package"] for record in records(DUMP.splitlines())] == ["a-dev", "b", "c"]
    assert list(sections(DUMP.splitlines(), long=False)) == [
        Row("small library for tests, headers", "libdevel", "a"), Row("a client of the network", "net", "b")
    ]  # fmt: skip
    (only,) = sections(DUMP.splitlines(), long=True)
    assert only.text == "It has two lines. And a paragraph."


def test_parts_share_no_source_and_no_text() -> None:
    rows = [Row(f"text number {k % 700} of many words", f"label{k % 3}", f"source{k % 97}") for k in range(2000)]
    rows += [Row(f"TEXT number {k}, of many words!", "label0", f"source{k % 97}") for k in range(700)]  # near-copies
    found = by_source("s", rows, 3, most=300)
    assert by_source("s", rows[::-1], 3, most=300) == found  # whatever their order
    sources = {part: {row.source for row in kept} for part, kept in found.parts.items()}
    assert not sources["train"] & sources["test"]
    assert not sources["train"] & sources["dev"]
    assert not sources["dev"] & sources["test"]
    words = [
        tuple(row.text.lower().replace(",", "").replace("!", "").split())
        for kept in found.parts.values()
        for row in kept
    ]
    assert len(set(words)) == len(words) > 300
    assert len(found.parts["train"]) == 300
    assert all(part_of(row.source) == part for part, kept in found.parts.items() for row in kept)
    assert len(found.parts["test"]) <= round(300 * 0.15 / 0.7)


def test_the_most_frequent_classes_are_kept_and_short_texts_are_not() -> None:
    rows = [Row(f"a text with number {k}", "often" if k % 4 else f"rare{k}", f"s{k}") for k in range(400)]
    rows += [Row(f"number {k}", "often", f"s{k}") for k in range(50)]
    found = by_source("s", rows, 1)
    assert {row.label for kept in found.parts.values() for row in kept} == {"often"}
    assert all(len(row.text.split()) >= 4 for kept in found.parts.values() for row in kept)


def test_no_source_outweighs_the_others() -> None:
    found = by_source("s", [Row(f"a text with number {k}", "label", f"s{k % 7}") for k in range(700)], 1, per_source=5)
    counts = [sum(row.source == f"s{k}" for kept in found.parts.values() for row in kept) for k in range(7)]
    assert max(counts) == 5


def test_parts_have_their_shares() -> None:
    counts = dict.fromkeys(quality_sets.SHARES, 0)
    for k in range(4000):
        counts[part_of(f"source {k}")] += 1
    for part, share in quality_sets.SHARES.items():
        assert abs(counts[part] / 4000 - share) < 0.03


def test_manual_pages(tmp_path: Path) -> None:
    folder = tmp_path / "man3"
    folder.mkdir()
    name = "\\fBfoo\\fR, bar \\- does \\fIsomething\\fR that\nneeds two\\-fold lines"
    page = f".TH X 3\n.SH NAME\n{name}\n.SH SYNOPSIS\nfoo\n"
    (folder / "foo.3.gz").write_bytes(gzip.compress(page.encode()))
    (folder / "plain.3").write_text('.SH "NAME"\nplain \\- is a page without an owner\n')
    (folder / "broken.3.gz").write_bytes(b"no gzip")
    (folder / "other.3").write_text(".SH OTHER\nnothing\n")
    found = list(manual(sorted(folder.iterdir()), {str(folder / "foo.3.gz"): "libfoo"}))
    assert found == [
        Row("does something that needs two-fold lines", "3", "libfoo"),
        Row("is a page without an owner", "3", "plain.3"),
    ]


def test_docstrings(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text(
        '"""First sentence here. Second one\nof two lines."""\n\ndef f():\n    """Has `code`."""\n'
    )
    (package / "sub" / "m.py").write_text('class A:\n    """About a class."""\n    x = 1\n')
    (package / "bad.py").write_text("def (:\n")
    found = sorted(docstrings([package]))
    assert found == [
        Row("About a class.", "pack", "pack/sub/m.py"),
        Row("First sentence here.", "pack", "pack/__init__.py"),
        Row("Second one of two lines.", "pack", "pack/__init__.py"),
    ]
    assert len(list(docstrings([package], most=0))) == 0


def test_what_a_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("apt-cache")

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(RuntimeError, match=r"debian-sections: this machine cannot make the set \(apt-cache\)"):
        quality_sets.build("debian-sections")
    monkeypatch.setattr(quality_sets, "_pages", list)
    monkeypatch.setattr(quality_sets, "owners", dict)
    with pytest.raises(RuntimeError, match="manual-sections: this machine has too few texts"):
        quality_sets.build("manual-sections")
