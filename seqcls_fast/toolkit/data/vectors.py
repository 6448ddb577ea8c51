"""Pretrained vectors of words, from a text file (word2vec, GloVe, fastText) or an array of numpy beside its words.

Such files have millions of words, of which a vocabulary needs few. So a file is read line by line, and the numbers of
the words that are wanted are read alone. Nothing is unpickled.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._files import open_regular
from .._terminal import escaped, shown
from .errors import DataError

__all__ = ["SUFFIXES", "check_vectors", "read_vectors", "with_words"]

SUFFIXES = (".vec", ".txt", ".npy")
_WORDS = ".words"  # the suffix of the list of words beside an array
_LONGEST = 1 << 20  # bytes of a line
_FEW = 0.1  # of the words; where fewer are found, the file is hardly the one that was meant

Vector = NDArray[np.float32]
Name = str | os.PathLike[str]


def read_vectors(path: Name, words: Collection[str], width: int, normal: Callable[[str], str]) -> dict[str, Vector]:
    """The vectors of those ``words`` that the file has, by word.

    A word that is not there as it is has the vector of the first word that ``normal`` makes equal to it, as "paris"
    that of "Paris". Of a word that is there twice the first vector is taken, with a warning.

    Args:
        path: of text, ``.vec`` or ``.txt``: a word and its numbers in each line, and perhaps a first line that says how
            many words and numbers there are; or of an array ``.npy`` (words, width), beside which is a file of the same
            name with the suffix ``.words``, a word in each line. All of it in UTF-8.
        words: the words that are wanted.
        width: how many numbers a vector must have.
        normal: the form in which words are compared.

    Example::

        >>> import pathlib, tempfile
        >>> from seqcls_fast.toolkit.data.vectors import read_vectors
        >>> path = pathlib.Path(tempfile.mkdtemp(), "small.vec")
        >>> _ = path.write_text("good 1 0.5\\nFilm 0 2\\n")
        >>> {word: each.tolist() for word, each in read_vectors(path, {"film", "bad"}, 2, str.lower).items()}
        {'film': [0.0, 2.0]}
    """
    exact: dict[str, Vector] = {}
    alike: dict[str, Vector] = {}
    again: dict[str, None] = {}
    for where, word, values in _rows(path, width):
        if word in words:
            if word in exact:
                again[word] = None
            else:
                exact[word] = _numbers(values, width, where)
        elif (other := normal(word)) in words and other not in alike:
            alike[other] = _numbers(values, width, where)
    found = alike | exact
    if not found:
        raise DataError(
            f"vectors: expected words of the vocabulary, such as {shown([*words, ''][0])}, but got none of its "
            f"{len(words)} in {escaped(path)}; is it of another language?"
        )
    if len(found) < _FEW * len(words):
        _warn(f"vectors: {escaped(path)} has {len(found)} of the {len(words)} words; is it of another language?")
    if again:
        some = ", ".join(shown(word, 40) for word in list(again)[:3])
        _warn(f"vectors: {escaped(path)} has words more than once, as {some}; the first vector of each is taken")
    return found


def check_vectors(path: Name, width: int) -> None:
    """Raises an error for a file that is missing, of another format or of another width, without reading all of it."""
    for _ in _rows(path, width):
        return


def with_words(path: str) -> list[str]:
    """The files that vectors are read from: the one named, and the words beside an array."""
    return [path, str(Path(path).with_suffix(_WORDS))] if _is_array(path) else [path]


def _is_array(path: Name) -> bool:
    return Path(path).suffix.lower() == ".npy"


def _rows(path: Name, width: int) -> Iterator[tuple[str, str, Any]]:
    """For each word the place for a message, the word, and its numbers as bytes or as an array."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        hint = {".gz": "; unpack it first", ".bin": "; save it as text first"}.get(suffix, "")
        raise DataError(f"vectors: expected a name that ends in {', '.join(SUFFIXES)} but got {escaped(path)}{hint}")
    rows = _from_array if _is_array(path) else _from_text
    found = False
    for row in rows(Path(path), width):
        found = True
        yield row
    if not found:
        raise DataError(f"vectors: expected words with vectors in {escaped(path)} but got none")


def _from_text(path: Path, width: int) -> Iterator[tuple[str, str, Any]]:
    promised: int | None = None
    count, number = 0, 0
    for number, line in _lines(path):
        fields = line.count(b" ")  # numbers, where neither the word has a space nor two stand together
        if number == 1:
            first = line.split()
            if len(first) == 2 and all(each.isdigit() for each in first):
                promised = int(first[0])
                _check_width(path, int(first[1]), width)
                continue
            if fields != width:
                _check_width(path, _numbers_at_end(line), width)
        where = f"line {number} of {escaped(path)}"
        if fields < width:
            raise _other_count(fields, width, where)
        word, *values = line.split(b" ", 1) if fields == width else line.rsplit(None, width)
        count += 1
        yield where, _decoded(word, where), b" ".join(values)
    if promised is not None and count != promised:
        cut = "; is the file cut off?" if count < promised else ""
        raise DataError(
            f"vectors: expected {promised} words in {escaped(path)}, as its first line says, but got {count}{cut}"
        )


def _other_count(got: int, width: int, where: str) -> DataError:
    words = f"vectors: expected a word and {width} numbers in {where} but got {got} numbers"
    return DataError(f"{words}; is the file cut off?")


def _numbers_at_end(line: bytes) -> int:
    """How many fields of a line are numbers, from the last one on; not the first field, which is part of a word."""
    fields = line.split()[1:]
    for count, field in enumerate(reversed(fields)):
        try:
            float(field)
        except ValueError:
            return count
    return len(fields)


def _from_array(path: Path, width: int) -> Iterator[tuple[str, str, Any]]:
    beside = path.with_suffix(_WORDS)
    _opened(path).close()
    if not beside.exists():
        raise FileNotFoundError(
            f"vectors: expected the words of {escaped(path)} in {escaped(beside)}, which is not there"
        )
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, SyntaxError, OSError, OverflowError) as error:
        raise DataError(
            f"vectors: expected a whole array of numbers in {escaped(path)} but got {_why(error)}"
        ) from None
    if array.ndim != 2 or array.dtype.kind != "f":
        got = f"{escaped(array.dtype)} {array.shape}"
        raise DataError(f"vectors: expected floating-point numbers (words, {width}) in {escaped(path)} but got {got}")
    _check_width(path, array.shape[1], width)
    words = [_decoded(line, f"line {number} of {escaped(beside)}") for number, line in _lines(beside, all_lines=True)]
    if len(words) != len(array):
        raise DataError(
            f"vectors: expected {len(array)} words in {escaped(beside)}, one for each row of {escaped(path)}, but got "
            f"{len(words)}"
        )
    for row, word in enumerate(words):
        yield f"row {row} of {escaped(path)}", word, array[row]


def _why(error: Exception) -> str:
    words = str(error)
    return "pickled objects" if "object" in words.lower() else escaped(words.partition("\n")[0] or "nothing", 200)


def _lines(path: Path, all_lines: bool = False) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, from 1 on, without white space around them; empty ones only if asked for."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            if len(line) == _LONGEST:
                raise DataError(
                    f"vectors: expected lines of text but got a longer one, line {number} of {escaped(path)}"
                )
            line = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).replace(b"\t", b" ").rstrip()
            if line or all_lines:
                yield number, line


def _opened(path: Path) -> Any:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"vectors: expected a file but there is no {escaped(path)}") from None
    except ValueError as error:
        raise DataError(f"vectors: {error}: {escaped(path)}") from None


def _decoded(word: bytes, where: str) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError as error:
        got = f"the byte 0x{word[error.start]:02X}"
        raise DataError(f"vectors: expected text in UTF-8 but got {got} in {where}") from None


def _check_width(path: Path, got: int, width: int) -> None:
    if got != width:
        hint = f"; pass embedding_dim={got}" if got else ""
        raise DataError(
            f"vectors: expected {width} numbers for each word, as embedding_dim says, but got {got} in "
            f"{escaped(path)}{hint}"
        )


def _numbers(values: Any, width: int, where: str) -> Vector:
    try:
        with np.errstate(over="ignore"):
            found = np.array([float(each) for each in values.split()] if isinstance(values, bytes) else values)
            vector: Vector = found.astype(np.float32)
    except ValueError as error:
        got = escaped(str(error).rpartition(": ")[2].removeprefix("b"), 60)
        raise DataError(f"vectors: expected numbers in {where} but got {got}") from None
    if len(vector) != width:
        raise _other_count(len(vector), width, where)
    if not np.isfinite(vector).all():
        got = str(found[~np.isfinite(vector)][0])
        raise DataError(f"vectors: expected finite numbers in {where} but got {got}")
    return vector


def _warn(words: str) -> None:
    warnings.warn(words, UserWarning, stacklevel=2)
