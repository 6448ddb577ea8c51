"""Text sets to measure quality on, made offline from what Debian and Python carry: real texts that nobody here wrote.

A set is split by the source of its texts (a source package, a Python package), so that near-copies never straddle the
parts. Which part a source is in depends on a hash of its name alone; the same machine therefore always gives the same
sets, and another one sets that overlap part by part.
"""

from __future__ import annotations

import ast
import gettext
import hashlib
import importlib.util
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "CHOSEN_ON", "SETS", "Row", "TextSet", "build", "by_source", "docstrings", "messages", "part_of", "records",
    "sections", "tagged", "teams",
]  # fmt: skip

FEWEST, SHARES = 4, {"train": 0.7, "dev": 0.15, "test": 0.15}  # words of a text; parts of the sources
FEWEST_TESTS = 1000  # rows of a part "test"


class Row(NamedTuple):
    text: str
    label: str
    source: str


class TextSet(NamedTuple):
    """The rows of each part, by "train", "dev" and "test"."""

    name: str
    parts: dict[str, list[Row]]

    @property
    def digest(self) -> str:
        """A hash of all rows: figures of two runs are of one set if it is the same."""
        return part_key(repr(sorted(self.parts.items()))).hex()


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

Record = dict[str, str]


def records(dump: Iterable[str]) -> Iterator[Record]:
    """The records of Debian's control format. The lines of a field that goes on are joined by line breaks."""
    found: Record = {}
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


def described(record: Record, label: str, long: bool = False) -> Iterator[Row]:
    """The description of a package, its first line or the text below it; nothing where something is missing."""
    first, _, rest = next((v for k, v in record.items() if k.startswith("Description")), "").partition("\n")
    text = " ".join(rest.replace("\n.\n", "\n").split()) if long else first
    source = record.get("Source", record.get("Package", "")).partition(" ")[0]
    if text and label and source:
        yield Row(text, label, source)


def sections(found: Iterable[Record], long: bool) -> Iterator[Row]:
    """Packages with the section of the archive as label."""
    for record in found:
        yield from described(record, record.get("Section", "").rpartition("/")[2], long)


def teams(found: Iterable[Record]) -> Iterator[Row]:
    """Packages with the team that looks after them as label. Those of single persons are left out."""
    for record in found:
        name = record.get("Maintainer", "").partition("<")[0].strip(' "')
        if re.search(r"\b(Force|Group|Maintainers|Project|Team)\b", name):
            yield from described(record, name)


def tagged(found: Iterable[Record], facet: str) -> Iterator[Row]:
    """Packages with their tag of a facet of debtags as label: those that have one, and "to do" is none."""
    for record in found:
        tags = {tag.partition(":")[0] for tag in re.findall(rf"(?:^|[\s,]){facet}::([^,\s]+)", record.get("Tag", ""))}
        tags.discard("TODO")
        if len(tags) == 1:
            yield from described(record, tags.pop())


# -- messages of programs ---------------------------------------------------------------------------------------------


def messages(files: Iterable[Path], longest: int = 200, one_in: int = 8) -> Iterator[Row]:
    """Translated messages of programs, one in eight, from LANGUAGE/LC_MESSAGES/PROGRAM.mo; the language is the label.

    Variants of a language (pt_BR, sr@latin) are left out: many of their messages are those of the language itself.
    """
    for path in files:
        language = path.parent.parent.name
        if path.is_symlink() or set("@_") & set(language):
            continue
        try:
            with path.open("rb") as file:
                catalog = vars(gettext.GNUTranslations(file))["_catalog"]
        except (OSError, LookupError, ValueError):  # some have a head that gettext cannot read
            continue
        for message, text in catalog.items():
            if isinstance(message, str) and message and text != message and part_key(text)[0] % one_in == 0:
                yield Row(" ".join(text.split())[:longest], language, path.stem)


# -- Python's modules -------------------------------------------------------------------------------------------------

LARGEST = 50_000  # bytes of a file: larger ones take long to parse


def docstrings(folders: Iterable[Path], whole: bool = False, most: int = 200) -> Iterator[Row]:
    """Sentences of the docstrings below each folder, with the folder's name as label and the file as source.

    ``whole`` gives the first 200 words of each docstring instead, of those that have 12. ``most`` files of a folder
    are read, so that no package is much larger than the others.
    """
    for folder in folders:
        for path in sorted(folder.rglob("*.py"), key=lambda path: part_key(str(path.relative_to(folder))))[:most]:
            source = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            for docstring in docstrings_of(path):
                words = docstring.split()
                texts = [" ".join(words[:200])] if len(words) >= 12 else []
                yield from (Row(text, folder.name, source) for text in (texts if whole else sentences_of(docstring)))


@cache
def docstrings_of(path: Path) -> list[str]:
    try:
        if path.stat().st_size > LARGEST:
            return []
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return [words for node in ast.walk(tree) if isinstance(node, kinds) and (words := ast.get_docstring(node))]


def sentences_of(docstring: str) -> Iterator[str]:
    """The sentences of a docstring that have no code in them."""
    for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", docstring):
        if part.strip() and "--" not in part and not set(">=*_`:{[") & set(part):
            yield " ".join(part.split())


# Python's own and those that torch and the toolkit need, so that every environment has them.
PACKAGES = (
    "asyncio", "email", "idlelib", "tkinter", "unittest", "PIL", "fontTools", "fsspec", "huggingface_hub", "jinja2",
    "joblib", "matplotlib", "networkx", "numpy", "pip", "scipy", "setuptools", "sklearn", "sympy", "torch",
)  # fmt: skip


def packages() -> list[Path]:
    """The folders of :data:`PACKAGES`."""
    found = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise OSError(f"the Python package {name} is not installed")
        found.append(Path(next(iter(spec.submodule_search_locations))))
    return found


# -- the sets ---------------------------------------------------------------------------------------------------------


@cache
def _available() -> tuple[Record, ...]:
    done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    return tuple(records(done.stdout.splitlines()))


def _translations() -> list[Path]:
    return sorted(Path("/usr/share/locale").glob("*/LC_MESSAGES/*.mo"))


# Defaults may be chosen on these two alone, by their parts "dev". The others are for reporting only.
CHOSEN_ON = ("debian-sections", "python-packages")
# name -> (rows, number of classes, rows of training)
SETS: dict[str, tuple[Callable[[], Iterable[Row]], int, int]] = {
    "debian-sections": (lambda: sections(_available(), long=False), 20, 12_000),
    "python-packages": (lambda: docstrings(packages()), 16, 8_000),
    "debian-teams": (lambda: teams(_available()), 20, 6_000),
    "debian-roles": (lambda: tagged(_available(), "role"), 8, 6_000),
    "debian-languages": (lambda: tagged(_available(), "implemented-in"), 8, 6_000),
    "message-languages": (lambda: messages(_translations()), 40, 6_000),
    "python-docstrings": (lambda: docstrings(packages(), whole=True), 16, 6_000),
    "debian-long": (lambda: sections(_available(), long=True), 20, 6_000),
}
WORDS = {
    "debian-sections": "lines that describe packages: the section of the archive",
    "python-packages": "sentences of docstrings: the Python package",
    "debian-teams": "lines that describe packages: the team that looks after it",
    "debian-roles": "lines that describe packages: program, library, documentation, ...",
    "debian-languages": "lines that describe packages: the language that it is written in",
    "message-languages": "translated messages of programs: the human language",
    "python-docstrings": "whole docstrings: the Python package",
    "debian-long": "paragraphs that describe packages: the section of the archive",
}


def build(name: str) -> TextSet:
    """One of :data:`SETS`; a RuntimeError where this machine lacks its source."""
    rows, classes, most = SETS[name]
    try:
        found = by_source(name, rows(), classes, most)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{name}: this machine cannot make the set ({error})") from None
    sizes = {part: len(kept) for part, kept in found.parts.items()}
    if sizes["test"] < FEWEST_TESTS or not sizes["dev"]:
        why = "; apt lists of some machines are without long descriptions" if name == "debian-long" else ""
        raise RuntimeError(f"{name}: this machine has too few texts for the set: {sizes}{why}")
    return found
