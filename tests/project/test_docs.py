"""Every Python block of the README runs, in order and in one namespace, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where they save what they save
    text = (ROOT / name).read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in FENCE.finditer(text):
        first_line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first_line + block[1], str(ROOT / name), "exec"), namespace)  # the file's own line numbers


def test_readme_shows_python() -> None:
    assert FENCE.search((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    assert [target for target in targets if not (ROOT / target).exists()] == []
