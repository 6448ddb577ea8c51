"""A labelled set of source-code snippets, from files that come with Python and torch: nothing is downloaded.

A snippet is two to six consecutive lines. Whole files, not snippets, are divided into training, validation and test
data. No six words in a row are in two snippets: licences and code repeat from package to package, so a snippet that
repeats a phrase of an earlier one is left out. At least half of a snippet's lines hold code, since comments alone are
English whatever file they are from.

    python examples/snippets.py        how many snippets this machine has, and examples of them
"""

from __future__ import annotations

import os
import re
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from random import Random

FEWEST_FILES = 20  # of a language: with fewer, one or two files would be all its test data
PARTS = ("test", "validation", "train")
SHARES = {"test": 0.2, "validation": 0.1}  # of a language's snippets; the rest is for training
PHRASE = 6  # words in a row that no two snippets share

# Keywords of CUDA, and names of its functions and types.
_CUDA = re.compile(
    r"\b__(?:global|device|shared|constant|forceinline|launch_bounds|syncthreads|syncwarp|shfl\w*|ballot\w*|ldg)\w*"
    r"|\b(?:threadIdx|blockIdx|blockDim|gridDim|dim3|warpSize|C10_(?:HOST_)?DEVICE|cuda[A-Z]\w+|CUDA_\w+|GPU_\w+)\b|<<<"
)
_CPP = re.compile(r"\b(?:namespace|template|class|constexpr|static_cast|nullptr|typename)\b|::")
_ENGLISH = re.compile(r"\b(?:the|of|to|an|this|that|be|any|are|by|you|which|such)\b", re.IGNORECASE)
_READ_BY_C = re.compile(r'__cplusplus\)?\s+extern\s+"C"')


@dataclass(frozen=True)
class Snippet:
    text: str
    language: str
    file: Path


@dataclass
class Snippets:
    """The three parts, and in ``notes`` a sentence for each language that was left out."""

    train: list[Snippet] = field(default_factory=list)
    validation: list[Snippet] = field(default_factory=list)
    test: list[Snippet] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        files = {part: {s.file: s.language for s in getattr(self, part)} for part in PARTS}
        counts = {part: Counter(s.language for s in getattr(self, part)) for part in PARTS}
        lines = [f"{'snippets (files)':16}" + "".join(f"{part:>14}" for part in reversed(PARTS))]
        for language in sorted(counts["train"]):
            cells = [
                f"{counts[part][language]} ({list(files[part].values()).count(language)})" for part in reversed(PARTS)
            ]
            lines.append(f"{language:16}" + "".join(f"{cell:>14}" for cell in cells))
        return "\n".join(lines + self.notes)


@dataclass(frozen=True)
class Language:
    """How to find a language's files and their comments, and which files and snippets are certainly in it."""

    name: str
    files: Callable[[], Iterator[Path]]
    comment: str
    accepts: Callable[[str], object] = bool  # whether a file is in it, by its text without comments
    tells: Callable[[str], object] = bool  # whether a snippet is in it


def build(seed: int = 0, snippets: int = 1400, files: int = 300) -> Snippets:
    """At most ``snippets`` snippets of each language, from at most ``files`` files.

    On one machine a seed always gives the same snippets.
    """
    found, taken = Snippets(), set[str]()
    for language in LANGUAGES:
        rng = Random(f"{seed} {language.name}")
        chosen = list(_read(language, files, rng, taken))
        if len(chosen) < FEWEST_FILES:
            there = f"expected at least {FEWEST_FILES} files that differ but found {len(chosen)}"
            found.notes.append(f"{language.name} is left out: {there}")
            continue
        most = max(4, 2 * snippets // len(chosen))  # snippets of a file, so that none outweighs the others
        _divide(found, [_cut(language, path, text, most, rng, taken) for path, text in chosen], snippets)
    for part in PARTS:
        Random(f"{seed} {part}").shuffle(getattr(found, part))
    return found


def _divide(found: Snippets, pool: list[list[Snippet]], most: int) -> None:
    """Gives whole files to test, then to validation, until each has its share of snippets, and the rest to train."""
    pool = [file for file in pool if file]
    # the first snippet of every file, then the second of every file, and so on
    dealt = [snippet for turn in zip_longest(*pool) for snippet in turn if snippet]
    kept = set(map(id, dealt[:most]))
    total, start = len(kept), 0
    for part in PARTS:
        room = SHARES.get(part, 1) * total
        into: list[Snippet] = getattr(found, part)
        end = len(into) + room
        while start < len(pool) and len(into) < end:
            into += [s for s in pool[start] if id(s) in kept]
            start += 1


def _read(language: Language, most: int, rng: Random, taken: set[str]) -> Iterator[tuple[Path, str]]:
    """Files in random order, each text once. Lines about copyright do not make two texts differ."""
    paths = sorted(set(language.files()))
    rng.shuffle(paths)
    count = 0
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.name == "METADATA":
            text = text.partition("\n\n")[2]  # leaves out the fields before the description
        if not language.accepts(_without(language.comment, text)):
            continue
        words = " ".join(_words("\n".join(line for line in text.splitlines() if "copyright" not in line.lower())))
        if words in taken:
            continue
        taken.add(words)
        yield path, text
        count += 1
        if count == most:
            return


def _cut(language: Language, path: Path, text: str, most: int, rng: Random, taken: set[str]) -> list[Snippet]:
    """At most ``most`` snippets of a file."""
    lines, code = text.split("\n"), _without(language.comment, text).split("\n")
    pieces, start = [], 0
    while start < len(lines):
        end = start + rng.randint(2, 6)
        pieces.append((start, min(end, len(lines))))
        start = end
    rng.shuffle(pieces)
    found: list[Snippet] = []
    for start, end in pieces:
        piece = textwrap.dedent("\n".join(lines[start:end])).strip("\n")
        filled = sum(bool(line.strip()) for line in lines[start:end])
        coded = sum(bool(line.strip()) for line in code[start:end])
        if filled < 2 or coded * 2 < filled or not 24 <= len(piece) <= 256:
            continue
        if not language.tells(piece) or not _is_new(piece, taken):
            continue
        found.append(Snippet(piece, language.name, path))
        if len(found) == most:
            break
    return found


def _is_new(text: str, taken: set[str]) -> bool:
    """Whether no phrase of the text is in ``taken``, to which its phrases are then added."""
    words = _words(text)
    phrases = {" ".join(words[i : i + PHRASE]) for i in range(max(1, len(words) - PHRASE + 1))}
    if len(words) < 3 or not phrases.isdisjoint(taken):
        return False
    taken |= phrases
    return True


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _without(comment: str, text: str) -> str:
    """The text without its comments, as many lines as before."""
    return re.sub(comment, lambda match: "\n" * match[0].count("\n"), text, flags=re.MULTILINE) if comment else text


# -- which files ------------------------------------------------------------------------------------------------------


def _torch() -> Path:
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _under(folder: Path, patterns: Sequence[str], without: Sequence[str] = ()) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in without]
        for name in names:
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                yield Path(root, name)


def _stdlib(*patterns: str) -> Iterator[Path]:
    """Files of Python's library, but no tests, installed packages or tables written as Python."""
    without = ("test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data", "lib2to3")
    return _under(Path(sysconfig.get_paths()["stdlib"]), patterns, without)


def _headers() -> Iterator[Path]:
    """torch's headers without ATen/ops and the like, which are thousands of generated files."""
    return _under(_torch() / "include", ["*.h", "*.hpp"], ["ops", "generated"])


def _c_headers() -> Iterator[Path]:
    yield from _headers()
    for path in _under(Path(sysconfig.get_paths()["include"]), ["*.h"]):
        if "opcode" not in path.name:  # these are long tables of numbers and names
            yield path


def _english() -> Iterator[Path]:
    """Licences and descriptions of the packages installed beside torch, and Python's own licence."""
    for folder in _torch().parent.glob("*.dist-info"):
        yield from _under(folder, ["METADATA", "LICEN[CS]E*", "COPYING*", "NOTICE*", "README*"])
    yield from _stdlib("LICENSE*", "README*")


def _installed_with_torch(*patterns: str) -> Iterator[Path]:
    yield from _stdlib(*patterns)
    for folder in (_torch(), _torch().parent / "torchgen"):
        yield from _under(folder, patterns)


def _is_c(code: str) -> bool:
    return bool(_READ_BY_C.search(code)) and not _CPP.search(code)


def _is_cpp(code: str) -> bool:
    return bool(_CPP.search(code)) and not _READ_BY_C.search(code)


def _plain(text: str) -> bool:
    return not _CUDA.search(text)


def _is_prose(text: str) -> bool:
    """Whether lines are nearly all letters and punctuation and half of them have a word that is in no code.

    Readme files hold code too, which this leaves out.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    lettered = all(len(re.findall(r"[A-Za-z ,.'\"()-]", line)) >= 0.92 * len(line) for line in lines)
    return lettered and 2 * sum(bool(_ENGLISH.search(line)) for line in lines) >= len(lines)


_C_COMMENT = r"/\*[\s\S]*?\*/|^[ \t]*//.*$"
_HASH = r"^[ \t]*#.*$"
# A header is C if it is meant for C compilers and has nothing of C++, and C++ in the opposite case; others are skipped.
# Most lines of CUDA's headers are plain C++, so a snippet is CUDA if it has a word of CUDA's, and only then.
LANGUAGES = (
    Language("Python", lambda: _stdlib("*.py"), r'("""|\'\'\')[\s\S]*?\1|' + _HASH),
    Language("C", _c_headers, _C_COMMENT, _is_c, _plain),
    Language("C++", _headers, _C_COMMENT, _is_cpp, _plain),
    Language("CUDA", lambda: _under(_torch(), ["*.cuh", "*.cu"]), _C_COMMENT, bool, _CUDA.search),
    Language("CMake", lambda: _under(_torch(), ["*.cmake", "CMakeLists.txt"]), r"#\[(=*)\[[\s\S]*?\]\1\]|" + _HASH),
    Language("English", _english, "", bool, _is_prose),
    Language("YAML", lambda: _installed_with_torch("*.yaml", "*.yml"), _HASH),
    Language("JSON", lambda: _installed_with_torch("*.json"), ""),
)


if __name__ == "__main__":
    data = build()
    print(data)
    for language in dict.fromkeys(s.language for s in data.test):
        examples = [s for s in data.test if s.language == language][:3]
        for snippet in examples:
            print(f"\n-- {snippet.language}, {snippet.file.name}\n{snippet.text}")
