"""The folders keep their order: a module imports modules of its own layer or below, and no imports make a circle.

Every import counts, those inside functions and under TYPE_CHECKING too. docs/design/overview.md shows the same layers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "seqcls_fast"
LAYERS = (  # from bottom to top; a folder's name stands for all that is in it
    (
        "_C",
        "_runtime",
        "_after_import",
        "_cells",
        "_noise",
        "_version",
        "_files",
        "_texts",
        "_labels",
        "_needs",
        "_runtime_arguments",
    ),
    ("_runtime_format", "_with_torch"),
    ("_runtime_folder",),
    ("_ext", "_inputs", "runtime"),
    ("reference", "_shapes", "_spec"),
    ("_autograd",),
    ("_eager", "_exported", "_flops", "_torch_layer"),
    ("_self_test",),
    ("ops",),
    ("_checks", "_head", "_nested", "_options"),
    ("_frozen", "_stand_ins", "_wide", "convolutions"),
    ("_recurrent",),
    ("nn",),
    ("_layer_classes", "_other_libraries"),
    ("classifier", "_runtime_file", "conversion", "export", "_other_weights", "_from_keras", "_from_haste"),
    ("toolkit._extras", "toolkit._terminal", "toolkit.schema", "toolkit.ranks", "toolkit.parameter_table"),
    ("toolkit.timing", "toolkit.twin", "toolkit.attributes"),
    ("toolkit.data",),
    ("toolkit.evaluation",),
    ("toolkit.store", "toolkit.inputs"),
    ("toolkit.training", "toolkit.baseline"),
    ("toolkit.parameter_checks", "toolkit.about"),
    ("toolkit.fitted",),
    ("toolkit.card", "toolkit.fit", "toolkit.trace"),
    ("toolkit.estimators", "toolkit.stream", "toolkit"),
    ("_after_torch",),
    ("",),  # the package itself, which loads public names on first use
    ("cli",),
    ("__main__",),
)
MOST_LINES, LONG, MOST_LONG = 520, 400, 5
SOURCES = ("csrc", PACKAGE, "benchmarks", "tools", "examples")


def modules_of(package: Path) -> dict[str, tuple[Path, bool]]:
    """The file of each module by its name without the package's, and whether it is a folder's __init__.py."""
    found = {}
    for path in [*package.rglob("*.py"), *package.rglob("*.pyi")]:
        names = list(path.relative_to(package).with_suffix("").parts)
        is_folder = names[-1] == "__init__"
        found[".".join(names[:-1] if is_folder else names)] = path, is_folder
    return found


def imports_of(package: Path) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports anywhere in its file."""
    modules = modules_of(package)
    graph: dict[str, set[str]] = {}
    for name, (path, is_folder) in modules.items():
        folder = name.split(".") if name else []
        folder = folder if is_folder else folder[:-1]
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = [package.name, *folder[: len(folder) - node.level + 1]] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                # `from .data import ragged` is an import of the module data.ragged where there is one
                targets = [
                    f"{base}.{alias.name}" if f"{base}.{alias.name}".partition(".")[2] in modules else base
                    for alias in node.names
                ]
            else:
                continue
            for target in targets:
                top, _, rest = target.partition(".")
                if top == package.name and rest in modules:
                    found.add(rest)
        graph[name] = found - {name}
    return graph


def circles_in(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        waiting, seen = [start], set()
        while waiting:
            for target in graph[waiting.pop()]:
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        reached[start] = seen
    groups = {tuple(sorted(b for b in graph if b in reached[a] and a in reached[b])) for a in graph if a in reached[a]}
    return sorted(map(list, groups))


def layer_of(module: str) -> int:
    """The layer whose entry is the module's name or its longest folder."""
    best, found = -1, -1
    for index, names in enumerate(LAYERS):
        for name in names:
            is_inside = module == name or (name != "" and module.startswith(f"{name}."))
            if is_inside and len(name) > best:
                best, found = len(name), index
    assert found >= 0, f"{module or PACKAGE}: expected a layer in LAYERS, as every module has one"
    return found


def upwards_in(graph: Mapping[str, set[str]]) -> list[str]:
    return sorted(
        f"{module or PACKAGE} imports {target or PACKAGE}, which is in a layer above"
        for module, targets in graph.items()
        for target in targets
        if layer_of(target) > layer_of(module)
    )


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports_of(ROOT / PACKAGE)


def test_no_circles_of_imports(graph: dict[str, set[str]]) -> None:
    # the package loads public names on first use, and everything inside it may ask for its submodules
    assert circles_in({module: targets - {""} for module, targets in graph.items()}) == []


def test_no_imports_upwards(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 60
    assert upwards_in(graph) == []


def test_a_planted_circle_and_a_step_upwards_are_found(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    for name, text in {
        "__init__.py": "",
        "nn.py": "def late():\n    from .toolkit.data import text\n",
        "toolkit/__init__.py": "",
        "toolkit/data/__init__.py": "",
        "toolkit/data/text.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ...ops import run\n",
        "ops.py": "import seqcls_fast.nn as layers\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    graph = imports_of(package)
    assert graph["nn"] == {"toolkit.data.text"}
    assert circles_in(graph) == [["nn", "ops", "toolkit.data.text"]]
    assert upwards_in(graph) == [
        "nn imports toolkit.data.text, which is in a layer above",
        "ops imports nn, which is in a layer above",
    ]


def test_long_files_are_few() -> None:
    suffixes = {".py", ".h", ".cpp", ".cu", ".cuh"}
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    assert len(files) > 150
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = {name: count for name, count in lines.items() if count > LONG}
    assert len(long) <= MOST_LONG, long
    assert max(lines.values()) <= MOST_LINES, long


def test_no_extension_module_claims_to_work_without_the_gil() -> None:
    """A Python without the GIL then turns it on for them, as docs/layers.md says under "Threads of Python"."""
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "csrc").rglob("*.cpp"))]
    assert sum("PYBIND11_MODULE" in text or "PyModule_Create" in text for text in sources) == 3
    assert [text[:100] for text in sources if re.search("gil_not_used|Py_mod_gil", text, re.IGNORECASE)] == []
