"""From texts to tokens, as far as neither torch nor numpy is needed: for the classifiers and for the runtime."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["FIRST", "BytePairs", "byte_pairs", "cut", "lone_surrogate", "normal", "refuse_surrogates", "spaced"]

FIRST = 2  # the id of the first token; 0 is padding, 1 an unknown token
_LONGEST = 1024  # characters; longer chunks are cut, since tokenizers take time in proportion to the square
_find_spaced = re.compile(r"\s*\S+|\s+").findall


def normal(text: str, form: str | None, lowercase: bool) -> str:
    """A text in a form of Unicode, and then in lower case."""
    if form is not None and not text.isascii():
        import unicodedata

        text = unicodedata.normalize(form, text)  # type: ignore[arg-type]
    return text.lower() if lowercase else text


def lone_surrogate(text: str) -> tuple[str, int] | None:
    """The first lone surrogate, half of a character in UTF-16, which a str can hold; its name, and where it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}", error.start
    return None


def refuse_surrogates(text: str, name: str) -> None:
    """Raises a ValueError for a lone surrogate."""
    if found := lone_surrogate(text):
        raise ValueError(f"{name}: expected Unicode text but got a lone surrogate, {found[0]}, at {found[1]}")


def spaced(text: str) -> list[str]:
    """The chunks of a text whose tokens are byte pairs: words with the spaces before them."""
    found: list[str] = _find_spaced(text)
    return found


def cut(text: str, chunks: list[str]) -> list[str]:
    """The chunks of a text, those that are too long in pieces."""
    if len(text) <= _LONGEST or max(map(len, chunks), default=0) <= _LONGEST:
        return chunks
    return [chunk[i : i + _LONGEST] for chunk in chunks for i in range(0, len(chunk), _LONGEST)]


def byte_pairs(tokenizers: Any, vocabulary: dict[str, int], merges: Iterable[tuple[str, str]]) -> Any:
    """The tokenizer of chunks, of the library of that name."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


class BytePairs:
    """From texts to the ids of byte pairs, for a saved encoder."""

    def __init__(self, content: dict[str, Any]) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(
                "a model whose tokens are byte pairs needs tokenizers: pip install 'seqcls-fast[toolkit]'",
                name="tokenizers",
            ) from error
        try:
            vocabulary = {token: index for index, token in enumerate(content["tokens"], FIRST)}
            self._tokenizer = byte_pairs(tokenizers, vocabulary, [(left, right) for left, right in content["merges"]])
        except Exception as error:  # of tokenizers, which has no class of its own for them
            raise ValueError(f"text.encoder: expected tokens and merges but got others ({error!s:.80})") from None

    def ids(self, text: str) -> list[int]:
        """The ids of a text that is :func:`normal`."""
        chunks = cut(text, spaced(text))
        return [each for chunk in chunks for each in self._tokenizer.encode(chunk, add_special_tokens=False).ids]
