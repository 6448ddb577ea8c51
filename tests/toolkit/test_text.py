"""Texts as ids: the vocabulary, its order, Unicode, bad input, and saved encoders."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqcls_fast.toolkit.data import text as text_module
from seqcls_fast.toolkit.data.errors import seal, unseal
from seqcls_fast.toolkit.data.text import TextEncoder

KINDS = ("word", "char", "bpe")
CORPUS = [
    "The film was good, really good!",
    "the film: 3 stars",
    "bad film",
    "Un film tr\u00e8s r\u00e9ussi",
    "\u597d\u770b\u7684\u7535\u5f71",
    "\u0641\u064a\u0644\u0645 \u062c\u064a\u062f",
]
SETTINGS = settings(max_examples=80, derandomize=True, deadline=None)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def fitted(kind: str = "word", texts: list[str] | None = None, **parameters: Any) -> TextEncoder:
    return TextEncoder(kind, **parameters).fit(CORPUS if texts is None else texts)


def ids(encoder: TextEncoder, *texts: str) -> list[list[int]]:
    return [row.tolist() for row in encoder.encode(texts).split()]


def vocabulary(encoder: TextEncoder) -> list[str]:
    return [encoder.id_to_token(i) for i in range(encoder.vocab_size)]


def test_ids_by_falling_frequency_then_in_order() -> None:
    encoder = fitted(texts=["b a a", "c b a"])
    assert vocabulary(encoder) == ["<pad>", "<unk>", "a", "b", "c"]
    assert ids(encoder, "a b c d") == [[2, 3, 4, 1]]
    assert vocabulary(fitted("char", ["ba", "bb a"])) == ["<pad>", "<unk>", "b", "a", " "]


def test_encoding_is_ragged_int64() -> None:
    ragged = fitted().encode(["good film", "", "bad"])
    assert ragged.lengths.tolist() == [2, 0, 1]
    assert ragged.values.dtype == ragged.lengths.dtype == torch.int64
    assert ragged.values.shape == (3,)
    none = fitted().encode([])
    assert len(none) == 0
    assert none.values.shape == (0,)
    assert none.values.dtype == torch.int64


@pytest.mark.parametrize("kind", KINDS)
def test_no_ids_of_padding_and_unknown_only_where_they_belong(kind: str) -> None:
    encoder = fitted(kind)
    for text in [*CORPUS, "<pad> <unk>"]:
        row = ids(encoder, text)[0]
        assert 0 not in row
        assert all(2 <= i < encoder.vocab_size for i in row) or text == "<pad> <unk>"
    assert (1 in ids(encoder, "zzz \U0001f600")[0]) == (kind != "bpe")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Good, very GOOD!!", ["good", ",", "very", "good", "!", "!"]),
        ("don't", ["don", "'", "t"]),
        ("snake_case v2.10", ["snake", "_", "case", "v", "2", ".", "10"]),
        ("a\tb\r\nc\u00a0d\u3000e", ["a", "b", "c", "d", "e"]),
        ("<unk><pad>", ["<", "unk", ">", "<", "pad", ">"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("ok👩\u200d🚀\U0001f44d\U0001f3fd", ["ok", "👩\u200d🚀", "\U0001f44d\U0001f3fd"]),
        ("\u2764\ufe0fx1\u20e3", ["\u2764\ufe0f", "x", "1\u20e3"]),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", ["\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7"]),
        ("电影很好。OK", ["电", "影", "很", "好", "。", "ok"]),
        ("か\u3099き", ["が", "き"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("فيلم جيد،", ["فيلم", "جيد", "،"]),
        ("\u0645\u06cc\u200c\u062e", ["\u0645\u06cc\u200c\u062e"]),
        ("שלום!", ["שלום", "!"]),
        ("\u039f\u03b4\u03cc\u03c2 \u039f\u0394\u038c\u03a3", ["\u03bf\u03b4\u03cc\u03c2", "\u03bf\u03b4\u03cc\u03c2"]),
        ("I\u0130\u0131", ["ii\u0307\u0131"]),
        ("\u0301", ["\u0301"]),
        (" \t\n", []),
        ("", []),
    ],
)  # fmt: skip
def test_words(text: str, tokens: list[str]) -> None:
    assert fitted().tokens(text) == tokens


def test_turkish_letters_stay_apart() -> None:
    """Dotless i is not i; capital I with a dot becomes i and a dot. The locale does not matter."""
    encoder = fitted(texts=["\u0131 i \u0130 I"])
    assert sorted(vocabulary(encoder)[2:]) == ["i", "i\u0307", "\u0131"]
    assert encoder.encode(["I"]).values.tolist() == encoder.encode(["i"]).values.tolist()


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normalisation(form: str) -> None:
    encoder = fitted(texts=["caf\u00e9 \ufb01n \u2460"], normalization=form)
    assert encoder.tokens("Cafe\u0301")[0] == unicodedata.normalize(form, "caf\u00e9")
    assert ids(encoder, "cafe\u0301") == ids(encoder, "caf\u00e9") != [[1]]
    assert (ids(encoder, "fin 1") == [[1, 1]]) == (form in ("NFC", "NFD"))


def test_without_normalisation_and_lower_case() -> None:
    encoder = fitted(texts=["Caf\u00e9"], normalization=None, lowercase=False)
    assert ids(encoder, "Caf\u00e9", "Cafe\u0301", "caf\u00e9") == [[2], [1], [1]]


def test_characters_are_code_points() -> None:
    text = "a\n\U0001f469\u200d\U0001f680 \u0e35\r"
    encoder = fitted("char", [text], normalization=None)
    assert encoder.tokens(text) == list(text)
    assert [encoder.id_to_token(i) for i in ids(encoder, text)[0]] == list(text)
    assert fitted("char").tokens("e\u0301") == ["\u00e9"]


@SETTINGS
@given(unicode_text, st.sampled_from(text_module.FORMS))
def test_characters_after_normalisation(text: str, form: Any) -> None:
    normal = unicodedata.normalize(form, text).lower()
    encoder = fitted("char", ["x", text], normalization=form)
    assert [encoder.id_to_token(i) for i in ids(encoder, text)[0]] == list(normal) == encoder.tokens(text)


@SETTINGS
@given(unicode_text)
def test_pieces_give_back_every_text(text: str) -> None:
    encoder = PIECES
    row = ids(encoder, text)[0]
    assert 1 not in row
    parts = [part for i in row for part in encoder._tokens[i - 2]]
    assert bytes(text_module._BYTE_OF[part] for part in parts).decode() == text
    assert encoder.tokens(text) == [encoder.id_to_token(i) for i in row]


PIECES = fitted("bpe", lowercase=False, normalization=None)


def test_pieces() -> None:
    encoder = fitted("bpe", ["the cat sat"] * 9, max_vocab=280)
    assert encoder.vocab_size <= 280
    assert encoder.tokens("The cat  sat") == ["the", " cat", " ", " sat"]
    assert encoder.tokens("\u00e9") == ["<C3>", "<A9>"]
    assert fitted("bpe", ["<pad>"] * 50).encode(["<pad>"]).values.min() >= 2


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(texts=st.lists(unicode_text, max_size=4))
def test_words_and_tokens_agree(kind: str, texts: list[str]) -> None:
    """Any text has as many ids as tokens, ids of known tokens map back to them, and a batch changes nothing."""
    encoder = ENCODERS[kind]
    rows = ids(encoder, *texts)
    for text, row in zip(texts, rows, strict=True):
        tokens = encoder.tokens(text)
        assert len(row) == len(tokens)
        assert all(i == 1 or encoder.id_to_token(i) == token for i, token in zip(row, tokens, strict=True))
        assert ids(encoder, text) == [row]
        known = vocabulary(encoder)
        assert all((i == 1) == (token not in known) for i, token in zip(row, tokens, strict=True))


ENCODERS = {kind: fitted(kind) for kind in KINDS}


@SETTINGS
@given(unicode_text)
def test_no_visible_character_is_lost(text: str) -> None:
    joined = "".join(ENCODERS["word"].tokens(text))
    assert joined == "".join(unicodedata.normalize("NFC", text).lower().split())


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_corpus_plays_no_part(kind: str) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcde", k=rng.randint(1, 5))) for _ in range(60)]
    corpus = [" ".join(rng.choices(words, k=8)) for _ in range(60)]
    first = TextEncoder(kind, max_vocab=300).fit(corpus)
    for _ in range(4):
        rng.shuffle(corpus)
        again = TextEncoder(kind, max_vocab=300).fit(iter(corpus))
        assert again.to_json() == first.to_json()


def test_pieces_by_falling_frequency() -> None:
    encoder = fitted("bpe")
    counts = Counter(i for row in ids(encoder, *CORPUS) for i in row)
    keys = [(-counts[i], encoder._tokens[i - 2]) for i in range(2, encoder.vocab_size)]
    assert keys == sorted(keys)


@pytest.mark.parametrize("kind", KINDS)
def test_max_length_keeps_the_first(kind: str) -> None:
    whole, cut = fitted(kind), fitted(kind, max_length=3)
    for text in [*CORPUS, "", "ab", "z z z z", "zzzz"]:
        assert ids(cut, text)[0] == ids(whole, text)[0][:3]
        assert cut.tokens(text) == whole.tokens(text)[:3]
    assert cut.vocab_size == whole.vocab_size


def test_max_vocab_and_min_frequency() -> None:
    texts = ["a a a b b c"]
    assert vocabulary(fitted(texts=texts, max_vocab=4))[2:] == ["a", "b"]
    assert vocabulary(fitted(texts=texts, min_frequency=2))[2:] == ["a", "b"]
    assert fitted(texts=texts, max_vocab=3).vocab_size == 3
    assert fitted("bpe", max_vocab=258).vocab_size == 258


def test_fit_forgets_what_was_learnt() -> None:
    encoder = fitted(texts=["a b"])
    assert ids(encoder, "a z") == [[2, 1]]
    encoder.fit(["z"])
    assert ids(encoder, "a z") == [[1, 2]]


def test_memory_of_chunks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "_REMEMBERED", 3)
    encoder = fitted()
    expected = [[i for token in text.split() for i in ids(fitted(), token)[0]] for text in CORPUS]
    for _ in range(2):
        assert ids(encoder, *CORPUS) == expected
        assert len(encoder._known) <= 3
    encoder.encode(["x" * 65])
    assert "x" * 65 not in encoder._known


@pytest.mark.parametrize("kind", KINDS)
def test_ten_megabytes_in_one_text(kind: str) -> None:
    encoder = fitted(kind, max_length=5)
    spaced = encoder.encode(["good film " * 1_000_000])
    assert spaced.lengths.tolist() == [5]
    assert encoder.encode(["x!" * 5_000_000, "\u0e2a" * 3_000_000]).lengths.tolist() == [5, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_megabyte_without_spaces_is_learnt(kind: str) -> None:
    text = "x!" * 500_000
    encoder = TextEncoder(kind).fit([text])
    assert len(ids(encoder, text)[0]) == len(encoder.tokens(text))
    assert "".join(encoder.tokens(text)) == text
    assert TextEncoder().fit(["y" * 1025]).vocab_size == 4  # cut in two


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip(kind: str) -> None:
    encoder = fitted(kind, max_length=7, lowercase=False, normalization=None, max_vocab=290)
    written = encoder.to_json()
    again = TextEncoder.from_json(written)
    assert again.to_json() == written
    assert repr(again) == repr(encoder)
    assert vocabulary(again) == vocabulary(encoder)
    texts = [*CORPUS, "zz \U0001f600", ""]
    assert ids(again, *texts) == ids(encoder, *texts)
    assert [again.tokens(text) for text in texts] == [encoder.tokens(text) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind: str) -> None:
    encoder = fitted(kind)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert ids(other, *CORPUS) == ids(encoder, *CORPUS)
        assert other.to_json() == encoder.to_json()


def change(written: str, path: str, value: Any) -> str:
    """The same JSON with one field changed and a checksum that fits."""
    content = unseal("TextEncoder", written)
    *parents, last = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[last] = value
    return seal("TextEncoder", content)


@pytest.mark.parametrize(
    ("kind", "path", "value", "sentence"),
    [
        ("word", "tokens", ["a", "a"], "a token twice"),
        ("word", "tokens", [], "no list of strings"),
        ("word", "tokens", ["a", 1], "no list of strings"),
        ("word", "tokens", ["a", ""], "no list of strings"),
        ("word", "tokens", "ab", "no list of strings"),
        ("word", "merges", [["a", "b"]], "do not belong"),
        ("word", "parameters.tokenizer", "subword", "kind: expected one of"),
        ("word", "parameters.max_vocab", 3, "where max_vocab is 3"),
        ("word", "parameters.max_vocab", "3", "max_vocab: expected an int"),
        ("word", "parameters.other", 3, "other"),
        ("word", "parameters", None, "expected text from to_json"),
        ("char", "tokens", ["a", "bc"], "several characters"),
        ("bpe", "tokens", ["a", "b"], "254 of the 256 bytes"),
        ("bpe", "tokens", [*text_module._BYTE_OF, "a b"], "not made of bytes"),
        ("bpe", "merges", [["a", "\u2603"]], "not there"),
        ("bpe", "merges", [["a"]], "the merge"),
        ("bpe", "merges", [["a", 1]], "the merge"),
        ("bpe", "merges", None, "merges that do not"),
    ],
)
def test_tampered_json(kind: str, path: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TextEncoder.from_json(change(fitted(kind).to_json(), path, value))


def test_damaged_json() -> None:
    written = fitted().to_json()
    with pytest.raises(ValueError, match="no JSON"):
        TextEncoder.from_json(written[:-9])
    with pytest.raises(ValueError, match="checksum"):
        TextEncoder.from_json(written.replace("film", "flim"))
    with pytest.raises(ValueError, match="other JSON"):
        TextEncoder.from_json("[1]")
    with pytest.raises(ValueError, match="other JSON"):
        TextEncoder.from_json(seal("SeriesEncoder", {}))
    with pytest.raises(ValueError, match="expected version 1 but got 2"):
        TextEncoder.from_json(json.dumps({**json.loads(written), "version": 2}))
    with pytest.raises(ValueError, match="no JSON"):
        TextEncoder.from_json("[" * 100_000)
    with pytest.raises(TypeError, match="expected the JSON of a TextEncoder but got bytes"):
        TextEncoder.from_json(written.encode())  # type: ignore[arg-type]
    for missing in ("tokens", "merges", "parameters"):
        content = unseal("TextEncoder", written)
        del content[missing]
        with pytest.raises(ValueError, match=missing):
            TextEncoder.from_json(seal("TextEncoder", content))


@pytest.mark.parametrize(
    ("error", "sentence", "parameters"),
    [
        (ValueError, "kind: expected one of word, char, bpe but got 'words'", {"kind": "words"}),
        (TypeError, "lowercase: expected a bool but got int", {"lowercase": 1}),
        (ValueError, "normalization: expected one of NFC, .* or None but got 'nfc'", {"normalization": "nfc"}),
        (ValueError, "max_length: expected at least 1 but got 0", {"max_length": 0}),
        (TypeError, "max_length: expected an int but got float", {"max_length": 2.0}),
        (ValueError, "max_vocab: expected at least 3 but got 2", {"max_vocab": 2}),
        (ValueError, "max_vocab: expected at least 258 but got 257", {"kind": "bpe", "max_vocab": 257}),
        (TypeError, "max_vocab: expected an int but got bool", {"max_vocab": True}),
        (ValueError, "min_frequency: expected at least 1 but got 0", {"min_frequency": 0}),
    ],
)
def test_wrong_parameters(error: type[Exception], sentence: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^{sentence}$"):
        TextEncoder(**parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_nothing_to_learn(kind: str, texts: list[str]) -> None:
    with pytest.raises(ValueError, match=f"^texts: expected a token to learn but got none in {len(texts)} texts$"):
        TextEncoder(kind).fit(texts)


def test_nothing_frequent_enough() -> None:
    with pytest.raises(ValueError, match="that occurs 3 times to learn but got none in 2 texts"):
        TextEncoder(min_frequency=3).fit(["a b", "a c"])
    with pytest.raises(ValueError, match="expected a token to learn"):
        TextEncoder().fit([" \n "])


@pytest.mark.parametrize("method", ["fit", "encode"])
def test_what_is_no_text(method: str) -> None:
    call = getattr(fitted(), method)
    with pytest.raises(TypeError, match=r"^texts\[1\]: expected a string but got int$"):
        call(["a", 3])
    with pytest.raises(TypeError, match=r"^texts\[0\]: expected a string but got NoneType$"):
        call([None])
    with pytest.raises(TypeError, match=r"^texts: expected a list of strings but got a str$"):
        call("text")
    with pytest.raises(TypeError, match=r"^texts: expected a list of strings but got bytes$"):
        call(b"text")
    with pytest.raises(TypeError, match=r"^texts: expected a list of strings but got int$"):
        call(7)
    with pytest.raises(TypeError, match=r"^text: expected a string but got list$"):
        fitted().tokens(["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_surrogates_are_refused(kind: str) -> None:
    encoder = fitted(kind)
    for call in (encoder.encode, TextEncoder(kind).fit):
        with pytest.raises(ValueError, match=r"^texts\[1\]: expected Unicode .* a lone surrogate, U\+D83D, at 5$"):
            call(["good", "good \ud83d film"])
    with pytest.raises(ValueError, match=r"^text: expected .* U\+DE00, at 0$"):
        encoder.tokens("\ude00")


def test_before_fit() -> None:
    encoder = TextEncoder()
    for call in (
        lambda: encoder.encode(["a"]),
        lambda: encoder.tokens("a"),
        lambda: encoder.vocab_size,
        encoder.to_json,
    ):
        with pytest.raises(RuntimeError, match="expected fit"):
            call()


@pytest.mark.parametrize("i", [-1, 100_000])
def test_ids_that_are_none(i: int) -> None:
    with pytest.raises(ValueError, match=f"^i: expected an id from 0 to .* but got {i}$"):
        fitted().id_to_token(i)


SCRIPT = """
import os, socket, sys
before = dict(os.environ)
def refuse(*arguments, **keywords): raise AssertionError("the network was touched")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from seqcls_fast.toolkit.data.text import TextEncoder
threads = os.listdir("/proc/self/task")
encoders = [TextEncoder(kind).fit(["good film", "bad film"] * 50) for kind in ("word", "char", "bpe")]
rows = [encoder.encode(["good"] * 100).values.tolist() for encoder in encoders]
assert dict(os.environ) == before, "the environment was changed"
assert "huggingface_hub" not in sys.modules
child = os.fork()
if child == 0:
    again = [encoder.encode(["good"] * 100).values.tolist() for encoder in encoders]
    more = [TextEncoder(e.kind).fit(["good film", "bad film"] * 50).to_json() == e.to_json() for e in encoders]
    os._exit(0 if again == rows and all(more) else 1)
status = os.waitpid(child, 0)[1]
assert os.listdir("/proc/self/task") == threads, "threads were started"
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at threads as Linux shows them, and forks")
def test_forks_and_network() -> None:
    """No warning about a fork, no threads left behind, no change of the environment, no use of the network."""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"} | {
        "OMP_NUM_THREADS": "1"
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    fitted("bpe")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    fitted("bpe")
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"^TextEncoder needs tokenizers: pip install 'seqcls-fast\[toolkit\]'$"):
        TextEncoder().fit(["a"])
