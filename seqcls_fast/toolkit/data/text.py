"""Texts as ids: of words, characters or byte pairs (BPE), learnt from a corpus.

A text is normalised, then cut into chunks (at spaces, mostly). The ids that Hugging Face's tokenizers give for a chunk
are remembered: words repeat, and a lookup takes a tenth of the time of tokenizing them again. The vocabulary does not
depend on the order of the corpus. With ``wide=True`` a text also has the hashed n-grams of ngrams.py.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, repeat
from typing import Any

import numpy as np
import torch

from ..._texts import byte_pairs, cut, normal, refuse_surrogates, spaced
from .._extras import need, without_threads
from .._terminal import escaped, kind_of, shown
from ..schema import anything, optional, record, whole
from .columns import items
from .errors import seal, unseal
from .ngrams import bags_of
from .ragged import Ragged

__all__ = ["CONTENT", "TextEncoder", "id_bytes", "refuse_surrogates"]

KINDS = ("word", "char", "bpe")
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
PADDING, UNKNOWN = 0, 1
_NAMES = ["<pad>", "<unk>"]
_ID = 8  # bytes of an id
_REMEMBERED = 1 << 17  # most chunks whose ids are kept
_LONG = 64  # characters; longer chunks hardly repeat and are not kept
_DISTINCT = 1 << 20  # most chunks that fit() counts
_MOST_BITS, _TABLE_BITS = 20, 24  # of the ids of n-grams; of the numbers of a table that has a row for each
_AT_ONCE = 1024  # texts whose n-grams fit() counts at once
CONTENT = record(
    {"parameters": record({"tokenizer": anything}, others=anything), "tokens": anything, "merges": anything},
    {"bits": optional(whole(1, _MOST_BITS))},
)

# A word: letters with their marks and joiners (a single letter in scripts without spaces), a number, a flag, or any
# other character with its marks, skin tones and joined characters.
_WORD = (
    r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*|\p{L}[\p{L}\p{M}\x{200C}\x{200D}]*|\p{N}+\p{M}*|[\x{1F1E6}-\x{1F1FF}]{2}"
    r"|[^\s\p{L}\p{N}](?:[\p{M}\x{1F3FB}-\x{1F3FF}]|\x{200D}[^\s\p{L}\p{N}]?)*"
)
_CJK = r"\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = r"\u0300-\u036f\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
_find_words: Callable[[str], list[str]] = re.compile(rf"[{_CJK}][{_MARKS}]*|[^\s{_CJK}]+").findall


class TextEncoder:
    """Turns texts into ids. Id 0 is padding, 1 an unknown token; then come tokens, the most frequent first.

    Equally frequent tokens come in alphabetical order, by code points.

    Args:
        kind: what a token is. ``"word"``: a word, a number, a punctuation mark or an emoji; in Chinese, Japanese and
            Thai, which have no spaces, a character. ``"char"``: a code point. ``"bpe"``: a sequence of bytes, learnt by
            byte pair encoding; single bytes are tokens too, so that nothing is unknown.
        lowercase: whether upper and lower case are the same (``"İ"`` becomes ``"i̇"``; ``"ı"`` stays itself).
        normalization: a Unicode form (NFC, NFD, NFKC, NFKD), or None.
        max_length: how many tokens of a text are kept, from its start; None for all.
        max_vocab: the largest :attr:`vocab_size`, padding and unknown included.
        min_frequency: how often a token must occur to be learnt.
        wide: whether :meth:`encode` also gives the n-grams of a text, as weighted ids.

    Example::

        >>> from seqcls_fast.toolkit.data.text import TextEncoder
        >>> encoder = TextEncoder().fit(["good film", "bad film"])
        >>> encoder.encode(["Film: good!", ""]).lengths.tolist(), encoder.tokens("Film: good!")
        ([4, 0], ['film', ':', 'good', '!'])
        >>> [encoder.id_to_token(i) for i in range(encoder.vocab_size)]
        ['<pad>', '<unk>', 'film', 'bad', 'good']
    """

    def __init__(
        self,
        kind: str = "word",
        *,
        lowercase: bool = True,
        normalization: str | None = "NFC",
        max_length: int | None = None,
        max_vocab: int = 20_000,
        min_frequency: int = 1,
        wide: bool = False,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)} but got {shown(kind)}")
        if not isinstance(lowercase, bool):
            raise TypeError(f"lowercase: expected a bool but got {kind_of(lowercase)}")
        if not isinstance(wide, bool):
            raise TypeError(f"wide: expected a bool but got {kind_of(wide)}")
        if normalization is not None and normalization not in FORMS:
            raise ValueError(
                f"normalization: expected one of {', '.join(FORMS)} or None but got {shown(normalization)}"
            )
        if max_length is not None:
            _check_int("max_length", max_length, 1)
        _check_int("max_vocab", max_vocab, 3 if kind != "bpe" else len(_NAMES) + 256)
        _check_int("min_frequency", min_frequency, 1)
        self.kind, self.lowercase, self.normalization = kind, lowercase, normalization
        self.max_length, self.max_vocab, self.min_frequency = max_length, max_vocab, min_frequency
        self.wide, self.bits = wide, _MOST_BITS if wide else 0  # ids of n-grams are below 2**bits
        self._texts, self._frequencies = 0, np.zeros(0, np.int64)  # how many texts have each id, after fit() alone
        self._tokens: list[str] = []  # the token of id 2, of id 3, ... as the tokenizer writes it
        self._merges: list[tuple[str, str]] = []
        self._tokenizer: Any = None
        self._known: dict[str, bytes] = {}  # by chunk, its ids as int64

    def fit(self, texts: Iterable[str]) -> TextEncoder:
        """Learns the vocabulary, in place of any earlier one.

        Texts may come from an iterator. Memory is bounded: when more than a million different words have been counted,
        the rarer half is dropped. With fewer words the counts are exact and do not depend on the order.
        """
        chunks: Counter[str] = Counter()
        count = 0
        self.bits = _MOST_BITS if self.wide else 0
        self._frequencies = np.zeros(1 << self.bits, np.int64)
        waiting: list[str] = []  # normalised texts whose n-grams are not counted yet
        for index, text in enumerate(_checked(texts)):
            normal = self.normal(text)
            if not normal.isascii():
                refuse_surrogates(text, f"texts[{index}]")
            chunks.update(self._cut(text, normal, index))
            count += 1
            if self.wide:
                waiting.append(normal)
                if len(waiting) == _AT_ONCE:
                    self._count_ngrams(waiting)
                    waiting = []
            if len(chunks) > _DISTINCT:
                chunks = Counter(dict(chunks.most_common(_DISTINCT // 2)))
        self._count_ngrams(waiting)
        self._texts = count
        counts, merges = self._learn_bpe(chunks) if self.kind == "bpe" else (self._count(chunks), [])
        kept = [(-n, token) for token, n in counts.items() if n >= self.min_frequency or self.kind == "bpe"]
        if not kept or not chunks:
            often = "" if self.min_frequency == 1 else f" that occurs {self.min_frequency} times"
            raise ValueError(f"texts: expected a token{often} to learn but got none in {count} texts")
        tokens = [token for _, token in sorted(kept)[: self.max_vocab - len(_NAMES)]]
        self._build(tokens, merges)
        return self

    def encode(self, texts: Sequence[str]) -> Ragged:
        """The ids of each text, at most ``max_length``; a text without tokens is a row of length 0."""
        self._check_fitted()
        ids, lengths = bytearray(), array("q")  # joining bytes is faster than converting ints
        get, end = self._known.get, None if self.max_length is None else _ID * self.max_length
        normals = []
        for index, text in enumerate(_checked(texts)):
            normals.append(normal := self.normal(text))
            chunks = self._cut(text, normal, index)
            try:
                row = b"".join(map(get, chunks))  # type: ignore[arg-type]
            except TypeError:  # get() returned None: a chunk that is not known yet
                growing = bytearray()
                for chunk in chunks:
                    if end is not None and len(growing) >= end:
                        break
                    growing += get(chunk) or self._ids(chunk, text, index)
                row = bytes(growing)
            row = row[:end]
            ids += row
            lengths.append(len(row) // _ID)
        return Ragged(_as_tensor(ids), _as_tensor(lengths), bags_of(normals, self.bits) if self.wide else None)

    @property
    def ngrams(self) -> int:
        """How many n-grams all texts have that fit() has learnt from, each counted once in a text."""
        return int(self._frequencies.sum())

    def narrow(self) -> TextEncoder:
        """The fitted encoder without the n-grams."""
        found = copy.copy(self)
        found.wide, found.bits = False, 0
        return found

    def choose_bits(self, classes: int, texts: int = 0) -> None:
        """Makes the ids of n-grams suit the data: four for each n-gram that was learnt from, or 64 for each of so many
        texts that are to come; and a table of at most 16 million numbers for that many classes."""
        if self.wide:
            wanted = max(4 * int(np.count_nonzero(self._frequencies)), 64 * texts)
            fitting = min((wanted - 1).bit_length(), _TABLE_BITS - (classes - 1).bit_length(), _MOST_BITS)
            self.bits = max(1, fitting)

    def scale(self) -> torch.Tensor:
        """What the weight of each id of an n-gram is multiplied by: how rare it is in the texts learnt from, as
        scikit-learn's TfidfVectorizer has it; and 2 for words and pairs, which are fewer than n-grams of characters."""
        found = self._frequencies.reshape(1 << self.bits, -1).sum(1)
        scale = np.log((1 + self._texts) / (1 + np.minimum(found, self._texts))) + 1
        scale[: len(scale) // 2] *= 2
        return torch.from_numpy(scale).float()

    def _count_ngrams(self, normals: list[str]) -> None:
        if normals:
            ids = bags_of(normals, self.bits).ids.values.numpy()
            self._frequencies += np.bincount(ids, minlength=len(self._frequencies))

    def tokens(self, text: str) -> list[str]:
        """The tokens that :meth:`encode` turns into ids; bytes that are no whole character read like ``<C3>``."""
        self._check_fitted()
        if not isinstance(text, str):
            raise TypeError(f"text: expected a string but got {kind_of(text)}")
        refuse_surrogates(text, "text")
        if self.kind == "bpe":
            chunks = self._chunks(self.normal(text))
            found = [_shown(token) for chunk in chunks for token in self._tokenizer.encode(chunk).tokens]
        else:
            found = [token for chunk in self._chunks(self.normal(text)) for token in self._split(chunk)]
        return found[: self.max_length]

    def prefixes(self, text: str, counts: Sequence[int]) -> list[str]:
        """The normalised text, cut after each of these numbers of its tokens, which rise."""
        normal = self.normal(text)
        if self.kind == "bpe":  # a token stands for bytes, and all tokens together for all of them
            sizes = [len(token) for chunk in self._chunks(normal) for token in self._tokenizer.encode(chunk).tokens]
            ends, content = [0, *accumulate(sizes)], normal.encode()
            return [content[: ends[count]].decode(errors="ignore") for count in counts]
        found, ends = 0, [0]
        for token in self.tokens(text):
            found = normal.index(token, found) + len(token)
            ends.append(found)
        return [normal[: ends[count]] for count in counts]

    @property
    def vocab_size(self) -> int:
        """How many ids there are, padding and unknown included."""
        self._check_fitted()
        return len(_NAMES) + len(self._tokens)

    def id_to_token(self, i: int) -> str:
        """The token as :meth:`tokens` writes it; ``<pad>`` and ``<unk>`` for 0 and 1."""
        if not 0 <= i < self.vocab_size:
            raise ValueError(f"i: expected an id from 0 to {self.vocab_size - 1} but got {shown(i)}")
        if i < len(_NAMES):
            return _NAMES[i]
        token = self._tokens[i - len(_NAMES)]
        return _shown(token) if self.kind == "bpe" else token

    def to_json(self) -> str:
        """The fitted encoder as text, for :meth:`from_json`."""
        self._check_fitted()
        content = {"parameters": self._parameters(), "tokens": self._tokens, "merges": self._merges}
        return seal("TextEncoder", content | self._bits())

    @classmethod
    def from_json(cls, text: str) -> TextEncoder:
        """The encoder that :meth:`to_json` wrote; a ValueError for any other text."""
        content = unseal("TextEncoder", text)
        try:
            CONTENT(content, "content")
            parameters = content["parameters"]
            encoder = cls(parameters.pop("tokenizer"), **parameters)
            encoder._restore(content)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"TextEncoder: expected text from to_json() but got {escaped(error)}") from None
        return encoder

    def _bits(self) -> dict[str, int]:
        return {"bits": self.bits} if self.wide else {}

    def _restore(self, content: dict[str, Any]) -> None:
        """Takes over what fit() had learnt, from JSON, after a check."""
        tokens, merges = content["tokens"], content["merges"]
        self._check(tokens, merges)
        self._build(tokens, [(left, right) for left, right in merges])
        if self.wide != (content.get("bits") is not None):
            raise ValueError(f"the bits {shown(content.get('bits'))} where wide is {self.wide}")
        self.bits = content.get("bits") or 0

    @property
    def description(self) -> str:
        """What tokens are, in a few words."""
        return self.kind

    def __repr__(self) -> str:
        parameters = self._parameters()
        kind = parameters.pop("tokenizer")
        return f"TextEncoder({kind!r}, {', '.join(f'{name}={value!r}' for name, value in parameters.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}, "_frequencies": np.zeros(0, np.int64)}

    def normal(self, text: str) -> str:
        """The text in the Unicode form, and in lower case, if these are asked for."""
        return normal(text, self.normalization, self.lowercase)

    def _cut(self, text: str, normal: str, index: int | None) -> Iterable[str]:
        """The chunks of a text, which is also given in its normalised form; ``index`` is its number in messages."""
        return self._chunks(normal)

    def _chunks(self, text: str) -> Iterable[str]:
        """The strings that are tokenized by themselves: characters, or words (for BPE with the spaces before them)."""
        if self.kind == "char":
            return text
        if self.kind == "bpe":
            chunks = spaced(text)
        else:
            chunks = text.split() if text.isascii() else _find_words(text)
        return cut(text, chunks)

    def _split(self, chunk: str) -> list[str]:
        """The tokens of a chunk, words or characters, known or unknown."""
        return [token for token, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(chunk)]

    def _ids(self, chunk: str, text: str, index: int) -> bytes:
        """The ids of a chunk that is not known yet. Chunks are encoded one by one: a batch would start threads."""
        try:
            ids = array("q", self._tokenizer.encode(chunk, add_special_tokens=False).ids).tobytes()
        except TypeError:  # how tokenizers reports surrogates
            refuse_surrogates(text, "text" if index is None else f"texts[{index}]")
            raise
        if len(chunk) <= _LONG:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[chunk] = ids
        return ids

    # -- learning -----------------------------------------------------------------------------------------------------

    def _count(self, chunks: Counter[str]) -> Counter[str]:
        self._tokenizer = self._make_tokenizer({}, [])
        counts: Counter[str] = Counter()
        for chunk, n in chunks.items():
            for token in self._split(chunk):
                counts[token] += n
        return counts

    def _learn_bpe(self, chunks: Counter[str]) -> tuple[Counter[str], list[tuple[str, str]]]:
        """Byte pair encoding: how often each token occurs (0 times for bytes that do not), and the merges in order."""
        tokenizers = need("tokenizers", "TextEncoder")
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.max_vocab - len(_NAMES),
            min_frequency=self.min_frequency,
            initial_alphabet=sorted(_BYTE_OF),
            show_progress=False,
        )
        learner = self._make_tokenizer({}, [])
        with without_threads():
            learner.train_from_iterator(chain.from_iterable(repeat(*item) for item in chunks.items()), trainer)
        counts: Counter[str] = Counter(dict.fromkeys(learner.get_vocab(), 0))
        for chunk, n in chunks.items():
            for token in learner.encode(chunk).tokens:
                counts[token] += n
        merges = json.loads(learner.to_str())["model"]["merges"]
        return counts, [(left, right) for left, right in merges]

    def _build(self, tokens: list[str], merges: list[tuple[str, str]]) -> None:
        self._tokens, self._merges = tokens, merges
        self._tokenizer = self._make_tokenizer({token: i for i, token in enumerate(tokens, len(_NAMES))}, merges)
        self._known = {}
        if self.kind != "bpe" and len(tokens) < _REMEMBERED:  # a word or character is often a chunk by itself
            self._known = {token: id_bytes(i) for i, token in enumerate(tokens, len(_NAMES)) if len(token) <= _LONG}

    def _make_tokenizer(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
        tokenizers = need("tokenizers", "TextEncoder")
        if self.kind == "bpe":
            return byte_pairs(tokenizers, vocabulary, merges)
        pattern = tokenizers.Regex(_WORD if self.kind == "word" else r"(?m:.)")
        unknown = _NAMES[UNKNOWN]  # no word token can be "<unk>": it would be cut in three
        model = tokenizers.models.WordLevel({**vocabulary, unknown: UNKNOWN}, unk_token=unknown)
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "removed", invert=True)
        return tokenizer

    # -- checks -------------------------------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, Any]:
        return {
            "tokenizer": self.kind,
            "lowercase": self.lowercase,
            "normalization": self.normalization,
            "max_length": self.max_length,
            "max_vocab": self.max_vocab,
            "min_frequency": self.min_frequency,
            **({"wide": True} if self.wide else {}),
        }

    def _check_fitted(self) -> None:
        if not self._tokens:
            raise RuntimeError("TextEncoder: expected fit() to be called first but nothing was learnt yet")

    def _check(self, tokens: Any, merges: Any) -> None:
        """Raises a ValueError for a vocabulary that fit() could not have learnt."""
        if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t for t in tokens):
            raise ValueError("tokens that are no list of strings")
        refuse_surrogates("".join(tokens), "text")
        known = set(tokens)
        if len(known) != len(tokens):
            raise ValueError("a token twice")
        if len(tokens) > self.max_vocab - len(_NAMES):
            raise ValueError(f"{len(tokens)} tokens where max_vocab is {self.max_vocab}")
        if self.kind == "bpe":
            if lacking := _BYTE_OF.keys() - known:
                raise ValueError(f"tokens without {len(lacking)} of the 256 bytes")
            if not all(_BYTE_OF.keys() >= set(token) for token in tokens):
                raise ValueError("a token that is not made of bytes")
        if self.kind == "char" and any(len(token) != 1 for token in tokens):
            raise ValueError("a token of several characters")
        if not isinstance(merges, list) or (merges and self.kind != "bpe"):
            raise ValueError("merges that do not belong there")
        for merge in merges:
            if not isinstance(merge, list) or len(merge) != 2 or not all(isinstance(side, str) for side in merge):
                raise ValueError(f"the merge {shown(merge)}")
            if not known.issuperset((*merge, merge[0] + merge[1])):
                raise ValueError(f"the merge {shown(merge)} of tokens that are not there")


def _check_int(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int but got {kind_of(value)}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least} but got {shown(value)}")


def _checked(texts: Any) -> Iterator[str]:
    """The texts one after the other; a TypeError for anything else."""
    for index, text in enumerate(items(texts, "texts", "a list of strings")):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}]: expected a string but got {kind_of(text)}")
        yield text


def id_bytes(place: int) -> bytes:
    """An id as :meth:`TextEncoder.encode` collects them."""
    return place.to_bytes(_ID, sys.byteorder)


def _as_tensor(numbers: array[int] | bytearray) -> torch.Tensor:
    return torch.frombuffer(numbers, dtype=torch.int64) if numbers else torch.zeros(0, dtype=torch.int64)


def _byte_of() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: printable Latin-1 as it is, the others from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _shown(token: str) -> str:
    content = bytes(_BYTE_OF[char] for char in token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in content)
