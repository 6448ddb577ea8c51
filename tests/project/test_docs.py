"""The documents hold: their Python examples run, their links lead somewhere, and the files they name exist.

The examples of a page run in order and in one namespace, as a reader would type them. A block that opens with
```python notest needs something that a test does not have, and is left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from docs_site.navigation import BADGE

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Pages about other libraries, and what their examples import. `make test-peers` has all of them.
LIBRARIES = {"lightning": "lightning", "accelerate": "accelerate", "skorch": "skorch", "opacus": "opacus"}
LIBRARIES |= {"sb3-contrib": "sb3_contrib", "torchrl": "torchrl"}
BLOCK = re.compile(r"^\s*```.*?^\s*```$", re.MULTILINE | re.DOTALL)  # code of any kind
# a name in backticks that is meant as a file or a folder of the repository
NAMED = re.compile(r"`((?:[\w.-]+/)*(?:[\w.-]+\.(?:py|pyi|h|cpp|cu|cuh|md|toml|tsv|json|svg)|Makefile)|(?:[\w.-]+/)+)`")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search(page.read_text(encoding="utf-8"))], ids=named)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.parent.name == "integrations":
        library = LIBRARIES[page.stem]
        pytest.importorskip(library, reason=f"the examples need {library}, which `make test-peers` installs")
    monkeypatch.chdir(tmp_path)  # where they save what they save
    text = page.read_text(encoding="utf-8")
    module = ModuleType("__docs__")
    monkeypatch.setitem(sys.modules, "__docs__", module)  # so that pickle finds the classes of a page
    namespace = vars(module)
    for block in FENCE.finditer(text):
        first_line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first_line + block[1], str(page), "exec"), namespace)  # the file's own line numbers


def test_pages_show_python() -> None:
    for name in ("README.md", "docs/layers.md", "docs/classifiers.md", "docs/reinforcement-learning.md"):
        assert FENCE.search((ROOT / name).read_text(encoding="utf-8")), name


# -- links ------------------------------------------------------------------------------------------------------------


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on a code host: lower case, spaces as hyphens, no other punctuation."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = BADGE.sub("", prose(page))
    targets = re.findall(r"\]\(\s*(?!https?:|mailto:)([^)\s]+)\s*\)", text)
    targets += re.findall(r"^\[\w+\]: (?!https?:)(\S+)$", text, re.MULTILINE)
    broken = []
    for target in targets:
        name, _, anchor = target.partition("#")
        goal = page.parent / name if name else page
        if not goal.exists() or (anchor and anchor not in anchors(goal.resolve())):
            broken.append(target)
    assert broken == []


def test_badges_are_of_workflows() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = BADGE.findall(readme)
    assert len(found) == 2 == readme.count("badge.svg")
    assert [name for name in found if not (ROOT / ".github/workflows" / name).exists()] == []


def test_every_page_is_linked() -> None:
    """From README.md one can reach every page."""
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        todo += [page.parent / name for name in re.findall(r"\]\(([^)#\s:]+\.md)", page.read_text(encoding="utf-8"))]
    assert [named(page) for page in PAGES if page.resolve() not in seen] == []


# -- files ------------------------------------------------------------------------------------------------------------


@cache
def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.split()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=named)
def test_named_files_exist(page: Path) -> None:
    """A file in backticks is one of the tree, by its path or by the end of it."""
    if not tracked():
        pytest.skip("no file is tracked here")
    examples = {"reviews/", "new/", "model.pt2", "config.json", "command.json", "tokenizer.json"}  # of a reader's own
    examples |= {"gpu.json", "FOLDER/gpu.json", "report.txt"}  # what a run on a GPU writes
    missing = []
    for name in NAMED.findall(prose(page)):
        paths = [f"/{path}" for path in tracked()]
        found = any(f"/{name}" in path if name.endswith("/") else path.endswith(f"/{name}") for path in paths)
        if not found and name not in examples and not name.startswith(".venv"):
            missing.append(name)
    assert missing == []


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_front_pages_are_short() -> None:
    readme, contributing = (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))
    lines = readme.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 120
    assert readme.stat().st_size <= 10_000
    assert len(contributing.read_text(encoding="utf-8").splitlines()) <= 130
