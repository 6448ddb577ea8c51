"""Text sets to measure quality on, made offline from what Debian and Python carry: real texts that nobody here wrote.

A set is split by the source of its texts (a source package, a Python package), so that near-copies never straddle the
parts. Which part a source is in depends on a hash of its name alone; the same machine therefore always gives the same
sets, and another one sets that overlap part by part.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["SETS", "Row", "TextSet", "build", "by_source", "docstrings", "manual", "part_of", "records", "sections"]

FEWEST, SHARES = 4, {"train": 0.7, "dev": 0.15, "test": 0.15}  # words of a text; parts of the sources


class Row(NamedTuple):
    text: str
    label: str
    source: str


class TextSet(NamedTuple):
    """The rows of each part, by "train", "dev" and "test"."""

    name: str
    parts: dict[str, list[Row]]


def part_key(words: str) -> bytes:
    """A hash, by which things are put in an order that has nothing to do with them."""
    return hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=8).digest()


def part_of(source: str) -> str:
    """The part that all texts of a source belong to."""
    at = int.from_bytes(part_key(source), "big") / 2**64
    return "train" if at < SHARES["train"] else "dev" if at < SHARES["train"] + SHARES["dev"] else "test"


def by_source(name: str, rows: Iterable[Row], classes: int, most: int = 12_000, per_source: int = 300) -> TextSet:
    """A set of the most frequent classes, in which each text occurs once.

    Args:
        name: of the set.
        rows: all rows there are, in any order.
        classes: how many labels are kept, the most frequent ones in training.
        most: how many rows of training are kept; the other parts keep as many of theirs in proportion.
        per_source: how many rows of a source are kept, so that none outweighs the others.
    """
    parts: dict[str, list[Row]] = {part: [] for part in SHARES}
    seen, taken = set(), Counter[str]()
    for row in sorted(set(rows), key=lambda row: part_key(repr(row))):
        plain = " ".join(re.findall(r"\w+", row.text.lower()))
        if plain in seen or plain.count(" ") + 1 < FEWEST or taken[row.source] == per_source:
            continue
        seen.add(plain)
        taken[row.source] += 1
        parts[part_of(row.source)].append(row)
    counts = Counter(row.label for row in parts["train"])
    kept = {label for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:classes]}
    for part, share in SHARES.items():
        limit = round(most * share / SHARES["train"])
        parts[part] = [row for row in parts[part] if row.label in kept][:limit]
    return TextSet(name, parts)


# -- Debian's packages ------------------------------------------------------------------------------------------------


def records(dump: Iterable[str]) -> Iterator[dict[str, str]]:
    """The records of Debian's control format. The lines of a field that goes on are joined by line breaks."""
    found: dict[str, str] = {}
    name = ""
    for line in dump:
        line = line.rstrip("\n")
        if not line:
            if found:
                yield found
            found = {}
        elif line[0] in " \t":
            found[name] += "\n" + line[1:]
        else:
            name, _, value = line.partition(":")
            found[name] = value.strip()
    if found:
        yield found


def sections(dump: Iterable[str], long: bool) -> Iterator[Row]:
    """Descriptions of packages with the section as label: the first line, or the text below it."""
    for record in records(dump):
        first, _, rest = next((v for k, v in record.items() if k.startswith("Description")), "").partition("\n")
        text = " ".join(rest.replace("\n.\n", "\n").split()) if long else first
        source = record.get("Source", record.get("Package", "")).partition(" ")[0]
        section = record.get("Section", "").rpartition("/")[2]
        if text and section and source:
            yield Row(text, section, source)


# -- manual pages -----------------------------------------------------------------------------------------------------


def owners(folder: Path = Path("/var/lib/dpkg/info")) -> dict[str, str]:
    """The package that each file of Debian's belongs to, by dpkg's lists of files."""
    found = {}
    for path in sorted(folder.glob("*.list")):
        package = path.name.removesuffix(".list").partition(":")[0]
        found.update(dict.fromkeys(path.read_text(encoding="utf-8", errors="replace").splitlines(), package))
    return found


def manual(pages: Iterable[Path], owner: Mapping[str, str]) -> Iterator[Row]:
    """What manual pages say in a line about themselves, without the name, with the number of the section as label."""
    for path in pages:
        section = path.parent.name.removeprefix("man")
        try:
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rb") as file:
                page = file.read(20_000).decode("utf-8", "replace")
        except (OSError, EOFError):
            continue
        name = re.search(r'^\.S[Hh] +"?NAME"?\s*\n(.*?)(?=^\.S[Hh]|\Z)', page, re.DOTALL | re.MULTILINE)
        if name is None:
            continue
        words = re.sub(r"^\.(\W.*|[A-Za-z]+ ?)", " ", name[1], flags=re.MULTILINE)
        _, dash, line = re.sub(r"\\f.|\\&|\\s[+-]?[0-9]", "", words).partition("\\-")
        source = owner.get(str(path), path.name)
        if dash:
            yield Row(" ".join(line.replace("\\-", "-").split()), section, source)


# -- Python's modules -------------------------------------------------------------------------------------------------


def docstrings(folders: Iterable[Path], most: int = 1000) -> Iterator[Row]:
    """The sentences of the docstrings below each folder, with the name of the folder as label and the file as source.

    ``most`` files of a folder are read, so that no package is much larger than the others.
    """
    for folder in folders:
        for path in sorted(folder.rglob("*.py"), key=lambda path: part_key(str(path.relative_to(folder))))[:most]:
            for sentence in sentences_of(path):
                yield Row(sentence, folder.name, f"{folder.name}/{path.relative_to(folder).as_posix()}")


def sentences_of(path: Path) -> Iterator[str]:
    """The sentences of a module's docstrings that have no code in them."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = ast.get_docstring(node)
            for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", words) if words else ():
                if sentence.strip() and "--" not in sentence and not set(">=*_`:{[") & set(sentence):
                    yield " ".join(sentence.split())


def packages() -> list[Path]:
    """The folders of Python's own packages and of those that are installed, but for ours."""
    paths = sysconfig.get_paths()
    found = [folder for name in ("stdlib", "purelib") for folder in Path(paths[name]).glob("*/")]
    ours = ("test", "seqcls_fast")
    return sorted(each for each in found if (each / "__init__.py").exists() and each.name not in ours)


# -- the sets ---------------------------------------------------------------------------------------------------------


def _available() -> list[str]:
    done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _pages() -> list[Path]:
    return sorted(Path("/usr/share/man").glob("man[1-8]/*"))


# The first two are for choosing defaults, by their parts "dev"; the others are for reporting only.
SETS: dict[str, Callable[[], TextSet]] = {
    "debian-sections": lambda: by_source("debian-sections", sections(_available(), long=False), 20),
    "python-packages": lambda: by_source("python-packages", docstrings(packages()), 20),
    "manual-sections": lambda: by_source("manual-sections", manual(_pages(), owners()), 8),
    "debian-long": lambda: by_source("debian-long", sections(_available(), long=True), 20, 6_000),
}


def build(name: str) -> TextSet:
    """One of :data:`SETS`; a RuntimeError where this machine lacks its source."""
    try:
        found = SETS[name]()
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{name}: this machine cannot make the set ({error})") from None
    if not all(found.parts.values()):
        sizes = {part: len(rows) for part, rows in found.parts.items()}
        raise RuntimeError(f"{name}: this machine has too few texts for the set: {sizes}")
    return found
