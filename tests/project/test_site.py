"""The site of the documentation: every page and every public name has its place, and dead links are found.

`make docs` builds it strictly. These tests need no Sphinx: they check what its settings are made from.
"""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from pathlib import Path

import pytest

import seqcls_fast
from docs_site import figures, links, navigation
from seqcls_fast import _ext
from seqcls_fast.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
ELSEWHERE = {"docs/README.md", *(f"docs/machines/{page.name}" for page in (ROOT / "docs" / "machines").glob("*.md"))}


def test_the_index_has_every_page_once() -> None:
    listed = [f"{page}.md" for pages in navigation.sections(navigation.INDEX.read_text()).values() for page in pages]
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(pages - ELSEWHERE)


def test_sections_are_read_from_first_cells() -> None:
    index = (
        "# All\n\n## Use\n| page | about |\n|---|---|\n| [A](a.md) | see [B](b.md) |\n\n## Change\n| [C](c/d.md) | |\n"
    )
    assert navigation.sections(index) == {"Use": ["docs/a"], "Change": ["docs/c/d"]}


def test_growing_folders_are_in_the_navigation() -> None:
    trees = navigation.toctrees(navigation.INDEX.read_text())
    for page in ELSEWHERE - {"docs/README.md"}:
        assert f"\n{page.removesuffix('.md')}\n" in trees
    assert f":caption: {'Tutorials'}\n" in trees
    assert set(navigation.WHOLE_FOLDERS) <= set(navigation.sections(navigation.INDEX.read_text()))


def test_the_reference_has_every_public_name_once() -> None:
    found = [
        name.rpartition(".")[2]
        for page in REFERENCE
        for names in navigation.DOCSTRINGS.findall(page.read_text())
        for name in names.split()
        if name.count(".") == 1
    ]
    assert sorted(found) == sorted(set(seqcls_fast.__all__) - {"__version__"})


def test_the_reference_has_every_command() -> None:
    text = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    assert navigation.HELP.findall(text) == list(COMMANDS)


def test_members_are_ours() -> None:
    members = navigation.members_of("seqcls_fast.TextClassifier")
    assert {"fit", "predict", "save", "load"} <= set(members)
    assert not {"get_params", "set_fit_request", "get_metadata_routing"} & set(members)
    assert "forward" not in navigation.members_of("seqcls_fast.GRU")


@pytest.mark.parametrize("name", ["call", "regimes", "learning-curve"])
def test_figures_are_those_of_the_script(name: str) -> None:
    if name == "regimes" and not _ext.C:
        pytest.skip("the planner is in the extension, which is not built")
    losses = json.loads((figures.FOLDER / "learning-curve.json").read_text())
    drawn = {"call": figures.call, "regimes": figures.regimes, "learning-curve": partial(figures.curve, losses)}[name]()
    assert drawn == (figures.FOLDER / f"{name}.svg").read_text()
    assert "prefers-color-scheme: dark" in drawn


def test_the_figure_of_a_call_names_files_that_exist() -> None:
    for _, _, _, where in figures.BOXES.values():
        names = [name for name in where.split(", ") if "." in name or name.startswith("csrc")]
        for name in names:
            assert list((ROOT / Path(name).parent).glob(Path(name).name)) or (ROOT / "seqcls_fast" / name).exists(), (
                name
            )


SITE = {
    "index.html": '<a href="docs/a.html#part">a</a><img src="chart.svg"><a href="https://elsewhere.invalid/">x</a>',
    "docs/a.html": '<h2 id="part">A</h2><a href="../index.html">up</a><a href="#part">here</a>',
    "chart.svg": "<svg/>",
}


def site_in(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_good_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert links.main([str(site_in(tmp_path, SITE))]) == 0
    assert capsys.readouterr().out == "5 links of 2 pages lead somewhere.\n"


@pytest.mark.parametrize(
    ("page", "old", "new", "sentence"),
    [
        ("index.html", "docs/a.html#part", "docs/b.html", "docs/b.html to lead to a file of the site"),
        ("index.html", "#part", "#parts", "docs/a.html#parts to lead to an anchor of that page"),
        ("index.html", "chart.svg", "charts.svg", "charts.svg to lead to a file of the site"),
        ("docs/a.html", 'href="#part"', 'href="#top"', "#top to lead to an anchor of that page"),
    ],
)
def test_dead_links_are_named(
    page: str, old: str, new: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: text.replace(old, new) if name == page else text for name, text in SITE.items()}
    assert links.main([str(site_in(tmp_path, files))]) == 1
    assert re.fullmatch(f"{page}: expected {re.escape(sentence)}, but .*\n", capsys.readouterr().out)


def test_a_folder_that_is_no_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert links.main([str(tmp_path)]) == 2
    assert "expected the folder of a built site" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "target"),
    [
        ("'myst' cross-reference target not found: 'docs/none.md'", "docs/none.md"),
        ("local id not found in doc 'docs/layers': 'none'", "docs/layers#none"),
    ],
)
def test_a_dead_link_while_building_is_a_sentence(message: str, target: str) -> None:
    record = logging.makeLogRecord({"msg": message, "subtype": "xref_missing"})
    for _ in range(2):  # of two handlers
        assert navigation.say_dead_links(record)
    assert record.getMessage() == f"expected a link to a page or a heading of one, but got {target}"
