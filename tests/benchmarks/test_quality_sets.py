"""The text sets that quality is measured on, on tiny samples of their sources."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from benchmarks import quality_sets
from benchmarks.quality_sets import (
    Row,
    TextSet,
    by_source,
    docstrings,
    messages,
    part_of,
    records,
    sections,
    tagged,
    teams,
)

DUMP = """\
Package: a-dev
Source: a (1.0)
Section: contrib/libdevel
Maintainer: "Debian A Team" <a@example.org>
Tag: devel::library, implemented-in::c,
 role::devel-lib, works-with::TODO
Description: small library for tests, headers
 It has
 two lines.
 .
 And a paragraph.
Description-md5: 0

Package: b
Section: net
Maintainer: Some One <one@example.org>
Tag: role::program, role::plugin, works-with::db:sql, works-with::db
Description-en: a client of the network

Package: c
Section: net
"""


def test_debian() -> None:
    assert [record["Package"] for record in records(DUMP.splitlines())] == ["a-dev", "b", "c"]
    assert list(sections(records(DUMP.splitlines()), long=False)) == [
        Row("small library for tests, headers", "libdevel", "a"), Row("a client of the network", "net", "b")
    ]  # fmt: skip
    (only,) = sections(records(DUMP.splitlines()), long=True)
    assert only.text == "It has two lines. And a paragraph."
    assert [(row.label, row.source) for row in teams(records(DUMP.splitlines()))] == [("Debian A Team", "a")]
    for facet, labels in {"role": ["devel-lib"], "in": [], "implemented-in": ["c"], "works-with": ["db"]}.items():
        assert [row.label for row in tagged(records(DUMP.splitlines()), facet)] == labels, facet


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


def catalog(pairs: dict[str, str]) -> bytes:
    """A file of translated messages, as msgfmt writes it."""
    texts = [text.encode() for text in (*pairs, *pairs.values())]
    count, at = len(pairs), 28 + 16 * len(pairs)
    table = b""
    for text in texts:
        table += struct.pack("<2I", len(text), at)
        at += len(text) + 1
    return struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0) + table + b"\0".join(texts) + b"\0"


def test_messages(tmp_path: Path) -> None:
    head = {"": "Content-Type: text/plain; charset=UTF-8\n"}
    pairs = {"a file": "eine Datei", "ok": "ok", "two\nlines": "zwei\nZeilen"}
    for language in ("de", "de_AT", "de@latin", "fr"):
        folder = tmp_path / language / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "prog.mo").write_bytes(catalog(head | pairs) if language != "fr" else b"no catalog")
    found = list(messages(sorted(tmp_path.glob("*/LC_MESSAGES/*.mo")), longest=10, one_in=1))
    assert found == [Row("eine Datei", "de", "prog"), Row("zwei Zeile", "de", "prog")]


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
    (package / "long.py").write_text(f'"""{"word " * 300}"""')
    (whole,) = docstrings([package], whole=True)
    assert (whole.text.split(), whole.source) == (["word"] * 200, "pack/long.py")


def test_a_large_file_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.py").write_text('"""About a module."""\n')
    monkeypatch.setattr(quality_sets, "LARGEST", 10)
    assert not list(docstrings([tmp_path]))


def test_what_a_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("apt-cache")

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(RuntimeError, match=r"debian-sections: this machine cannot make the set \(apt-cache\)"):
        quality_sets.build("debian-sections")
    monkeypatch.setattr(quality_sets, "_translations", list)
    with pytest.raises(RuntimeError, match="message-languages: this machine has too few texts"):
        quality_sets.build("message-languages")
    monkeypatch.setattr(quality_sets, "PACKAGES", ("json", "no_such_package"))
    with pytest.raises(RuntimeError, match="the Python package no_such_package is not installed"):
        quality_sets.build("python-packages")


def test_a_set_is_known_by_its_digest() -> None:
    rows = [Row("a b c d", "x", "s")]
    one, other = (TextSet("s", {"train": rows, "test": kept}) for kept in (rows, []))
    assert one.digest == TextSet("t", {"train": rows, "test": rows}).digest != other.digest
