"""Texts as ids of the tokens that a Hugging Face tokenizer makes: of a file tokenizer.json, which is kept.

The file says how a text is cut, with its own normalisation. As of any text, the vocabulary is what fit() finds in the
texts, so that a model has no vectors of tokens that it never saw in training; other tokens are unknown ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..._files import open_regular
from .._extras import need
from .._terminal import escaped
from ..schema import loads
from .errors import DataError, seal, unseal
from .text import CONTENT, UNKNOWN, TextEncoder, id_bytes, refuse_surrogates

__all__ = ["TokenizerFile", "is_tokenizer_file", "text_encoder_from_json"]

_KIND = "TokenizerFile"
_MOST_BYTES = 1 << 24  # of a file, which is saved with the model


def is_tokenizer_file(tokenizer: Any) -> bool:
    """Whether the parameter ``tokenizer`` names a file, and not a kind of tokens."""
    return isinstance(tokenizer, str | os.PathLike) and os.fsdecode(tokenizer).lower().endswith(".json")


class TokenizerFile(TextEncoder):
    """A :class:`TextEncoder` whose tokens are those of a Hugging Face tokenizer, without its special tokens.

    Args:
        name: the file's name, which is shown.
        content: the JSON in it.
        lowercase, normalization: of the n-grams alone, as the file has rules of its own for tokens.
        others: as of :class:`TextEncoder`.
    """

    def __init__(self, name: str, content: str, **options: Any) -> None:
        super().__init__("word", **options)
        self.kind, self.name, self.content = "file", name, content
        self._cutter = _tokenizer(name, content)
        self._own = frozenset(self._cutter.get_vocab()) - {_unknown_token(content)}

    @classmethod
    def read(cls, path: str | os.PathLike[str], **options: Any) -> TokenizerFile:
        """An encoder for the tokenizer in a file."""
        try:
            with open_regular(Path(path)) as file:
                data = file.read(_MOST_BYTES + 1)
            content = data.decode()
        except FileNotFoundError:
            raise FileNotFoundError(f"tokenizer: expected a file but there is no {escaped(path)}") from None
        except UnicodeDecodeError:
            raise DataError(f"tokenizer: expected JSON in {escaped(path)} but got bytes that are no UTF-8") from None
        except ValueError as error:
            raise DataError(f"tokenizer: {error}: {escaped(path)}") from None
        if len(data) > _MOST_BYTES:
            raise DataError(f"tokenizer: expected at most {_MOST_BYTES} bytes in {escaped(path)} but got more")
        return cls(Path(path).name, content, **options)

    @property
    def description(self) -> str:
        return f"{self.name}, SHA-256 {sha256(self.content.encode()).hexdigest()}"

    def to_json(self) -> str:
        self._check_fitted()
        content = {"parameters": self._parameters(), "tokens": self._tokens, "merges": []}
        return seal(_KIND, content | self._bits() | {"file": self.content})

    @classmethod
    def from_json(cls, text: str) -> TokenizerFile:
        """The encoder that :meth:`to_json` wrote; a ValueError for any other text."""
        content = unseal(_KIND, text)
        try:
            file = content.pop("file", None)
            CONTENT(content, "content")
            name = content["parameters"].pop("tokenizer")
            if not isinstance(file, str) or not isinstance(name, str):
                raise ValueError("no tokenizer, or one without a name")
            encoder = cls(name, file, **content["parameters"])
            encoder._restore(content)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{_KIND}: expected text from to_json() but got {escaped(error)}") from None
        return encoder

    def prefixes(self, text: str, counts: Sequence[int]) -> list[str]:
        with _reported(text, None):
            ends = [0, *(end for _, end in self._cutter.encode(text, add_special_tokens=False).offsets)]
        return [text[: max(ends[: count + 1])] for count in counts]

    def tokens(self, text: str) -> list[str]:
        self._check_fitted()
        return self._cut(text, text, None)[: self.max_length]

    def _cut(self, text: str, normal: str, index: int | None) -> list[str]:
        with _reported(text, index):
            found: list[str] = self._cutter.encode(text, add_special_tokens=False).tokens
        return found

    def _split(self, chunk: str) -> list[str]:
        return [chunk] if chunk in self._own else []  # some tokenizers give an unknown character as it is

    def _ids(self, chunk: str, text: str, index: int) -> bytes:
        place = self._places.get(chunk, UNKNOWN)
        return id_bytes(place)

    def _build(self, tokens: list[str], merges: list[tuple[str, str]]) -> None:
        super()._build(tokens, merges)
        self._places = {token: i for i, token in enumerate(tokens, UNKNOWN + 1)}

    def _make_tokenizer(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
        return None  # a chunk is a token

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {"tokenizer": self.name}

    def __repr__(self) -> str:  # by which a Stream knows an encoder that it has fitted
        return f"{super().__repr__()[:-1]}, file={self.description!r})"


def text_encoder_from_json(text: str) -> TextEncoder:
    """The encoder of texts, of either kind, that ``to_json`` wrote; a ValueError for any other text."""
    is_file = isinstance(text, str) and text.startswith(f'{{"kind": "{_KIND}"')
    return TokenizerFile.from_json(text) if is_file else TextEncoder.from_json(text)


def _tokenizer(name: str, content: str) -> Any:
    Tokenizer = need("tokenizers", f"tokenizer={name!r}").Tokenizer
    try:
        found = Tokenizer.from_str(content)
        found.no_padding()
        found.no_truncation()
        found.encode("a")  # what panics for any text, panics here
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise DataError(
            f"tokenizer: expected a tokenizer as Hugging Face's tokenizers saves it in {escaped(name)} but got "
            f"{escaped(error, 200)}"
        ) from None
    return found


def _unknown_token(content: str) -> str | None:
    """The token that stands for what the tokenizer does not know, if it has one."""
    model = loads(content).get("model", {})
    token, place = model.get("unk_token"), model.get("unk_id")
    if token is None and isinstance(place, int) and isinstance(model.get("vocab"), list):
        token = model["vocab"][place][0]
    return token if isinstance(token, str) else None


@contextmanager
def _reported(text: str, index: int | None) -> Iterator[None]:
    """Turns what tokenizers says of a text that it cannot read into a sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        name = "text" if index is None else f"texts[{index}]"
        refuse_surrogates(text, name)
        raise ValueError(f"{name}: expected a text that the tokenizer reads but got {escaped(error, 200)}") from None
