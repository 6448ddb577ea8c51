"""Texts in the runtime: the ids and the results of the estimators, for every kind of text."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_library import FASTEST, Refused
from c_library import Model as CModel

import seqcls_fast as sf
from seqcls_fast.export import to_runtime
from seqcls_fast.runtime import Model
from support.corpora import sentences
from support.texts import SPECIAL, texts

ROOT = Path(__file__).parents[2]


def fitted(more: list[str] | None = None, **parameters: Any) -> Any:
    X, y = sentences(count=60)
    X = X + (more or [])
    y = y + ["pos", "neg"] * (len(more or []) // 2) + ["pos"] * (len(more or []) % 2)
    small = {"hidden_size": 5, "embedding_dim": 4, "epochs": 1, "holdout": None} | parameters
    return sf.TextClassifier(**small).fit(X, y)


@pytest.fixture(autouse=True)
def same_kernels() -> Iterator[None]:
    """With sanitizers the library has those of one instruction set alone."""
    with sf.use_impl(FASTEST):
        yield


@pytest.fixture(scope="module")
def many() -> list[str]:
    return texts(seed=0, count=700)


PARAMETERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "characters": {"tokenizer": "char", "max_length": 40},
    "byte pairs": {"tokenizer": "bpe", "max_vocab": 400},
    "no n-grams": {"wide": False, "max_length": None},
    "as they are": {"lowercase": False, "normalization": None, "max_length": 7},
    "NFC": {"normalization": "NFC", "bidirectional": False, "pooling": "last"},
    "NFD": {"normalization": "NFD", "tokenizer": "char"},
    "NFKD": {"normalization": "NFKD", "lowercase": False, "pooling": "attention"},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_text_has_the_estimators_probabilities(name: str, many: list[str], tmp_path: Path) -> None:
    """In the C library, which has a normalizer of its own, and in Python; from a file, and from a saved folder."""
    # The words of half of the texts are known. All of them would need another vocabulary for each kind of token.
    estimator = fitted(many[::2], **PARAMETERS[name])
    expected, labels = estimator.predict_proba(many), estimator.predict(many).tolist()
    to_runtime(estimator, tmp_path / "model.sfm")
    estimator.save(tmp_path / "saved")
    for path in (tmp_path / "model.sfm", tmp_path / "saved"):
        model = Model.open(path, FASTEST)
        assert model.predict_proba(many).tobytes() == expected.tobytes()
        assert model.predict(many).tolist() == labels
        assert model.predict_proba(np.array(many[:5], dtype=object)).tobytes() == expected[:5].tobytes()
    if name == "byte pairs":
        with pytest.raises(Refused, match="bad argument: ids: expected the ids of the tokens, which are byte pairs"):
            CModel(tmp_path / "model.sfm", FASTEST).classify(many)
        return
    found = CModel(tmp_path / "model.sfm", FASTEST).classify(many)
    wrong = [text for text, a, b in zip(many, found["probabilities"], expected, strict=True) if (a != b).any()]
    assert wrong == []
    assert estimator.classes_[found["classes"]].tolist() == labels


@pytest.mark.parametrize("tokenizer", ["word", "char"])
def test_ids(tokenizer: str, many: list[str], tmp_path: Path) -> None:
    """Id by id: the network is a sum that no two sequences of ids share."""
    estimator = fitted(many, tokenizer=tokenizer, wide=False, max_length=None, epochs=1)
    to_runtime(estimator, tmp_path / "model.sfm")
    model = Model.open(tmp_path / "model.sfm", FASTEST)
    ids = [row.numpy() for row in estimator.encoder_.encode(many).split()]
    assert model.predict_proba(ids).tobytes() == model.predict_proba(many).tobytes()
    assert len({row.tobytes() for row in ids}) > 600


def test_tokens_that_begin_alike(tmp_path: Path) -> None:
    """Tokens are found by their first eight bytes, and then by all of them."""
    words = [
        f"{begin}{end}"
        for begin in ("abcdefg", "abcdefgh", "abcdefghi", "\u00e4\u00f6\u00fc\u00df\u00e9")
        for end in ("", "a", "b", "ba")
    ]
    estimator = sf.TextClassifier(hidden_size=3, embedding_dim=4, epochs=1, holdout=None, wide=False)
    estimator.fit([" ".join(words), " ".join(words[::-1])] * 5, ["x", "y"] * 5)
    to_runtime(estimator, tmp_path / "model.sfm")
    model, asked = (
        Model.open(tmp_path / "model.sfm", FASTEST),
        [*words, "abcdef", "abcdefghij", "zzz", "A", "\u00e4\u00f6\u00fc"],
    )
    ids = [row.numpy() for row in estimator.encoder_.encode(asked).split()]
    assert len({row.tobytes() for row in ids}) == len(words) + 1
    assert model.predict_proba(asked).tobytes() == model.predict_proba(ids).tobytes()
    content = (tmp_path / "model.sfm").read_bytes()
    twice = content.replace(b"abcdefghib\xff", b"abcdefghia\xff")
    at = content.index(b'"crc32":"') + 9
    checksum = zlib.crc32(twice[:at] + b"0" * 8 + twice[at + 8 :])
    (tmp_path / "twice.sfm").write_bytes(twice[:at] + b"%08x" % checksum + twice[at + 8 :])
    with pytest.raises(ValueError, match=r"text\.tokens: expected each token once, and none that is empty"):
        Model.open(tmp_path / "twice.sfm")


@pytest.mark.parametrize("tokenizer", ["bpe", "word"])
def test_ids_are_cut(tokenizer: str, tmp_path: Path) -> None:
    """Those that a program in C makes are, too."""
    estimator = fitted(tokenizer=tokenizer, max_length=4, **({"max_vocab": 300} if tokenizer == "bpe" else {}))
    to_runtime(estimator, tmp_path / "model.sfm")
    long = ["a good film and a great story", "dull", "an awful film that nobody needs"]
    expected = estimator.predict_proba(long)
    assert Model.open(tmp_path / "model.sfm", FASTEST).predict_proba(long).tobytes() == expected.tobytes()
    model = CModel(tmp_path / "model.sfm", FASTEST)
    if tokenizer == "word":
        assert model.classify(long)["probabilities"].tobytes() == expected.tobytes()
        return
    estimator.encoder_.max_length = None
    rows = [row.tolist() for row in estimator.encoder_.encode(long).split()]
    assert max(map(len, rows)) > 4
    found = model.classify(long, [each for row in rows for each in row], [len(row) for row in rows])
    assert found["probabilities"].tobytes() == expected.tobytes()


def test_lengths_are_read_once(tmp_path: Path) -> None:
    """Another thread writes to them meanwhile; what was checked is what is used."""
    to_runtime(fitted(tokenizer="bpe", max_vocab=300, wide=False), tmp_path / "model.sfm")
    model = CModel(tmp_path / "model.sfm", FASTEST)
    texts, ids, lengths = ["a" * 1000] * 800, np.full(800, 3), np.ones(800, np.int64)
    expected, done = model.classify(texts, ids, lengths)["probabilities"][0], threading.Event()

    def write() -> None:
        while not done.is_set():
            lengths[400:] = 1 << 40  # more than any call may have
            time.sleep(1e-4)
            lengths[400:] = 1
            time.sleep(1e-4)

    thread = threading.Thread(target=write)
    thread.start()
    found: set[Any] = set()
    for _ in range(30):
        try:
            found.add((model.classify(texts, ids, lengths)["probabilities"] == expected).all())
        except Refused as error:
            found.add(str(error).partition(",")[0])
    done.set()
    thread.join()
    assert found <= {True, "bad argument: lengths: expected numbers from 0 on"}


def test_a_stream_of_a_model_with_ngrams_is_refused(tmp_path: Path) -> None:
    to_runtime(fitted(bidirectional=False, pooling="last"), tmp_path / "model.sfm")
    model = Model.open(tmp_path / "model.sfm")
    assert not model.is_streamable
    words = "step: expected a model that reads its input once.* but this one has n-grams of whole texts"
    with pytest.raises(RuntimeError, match=words):
        model.stream().step(3)
    with pytest.raises(ValueError, match="ids: expected texts, as the model reads their n-grams too"):
        model.predict([[3, 4]])


def test_what_is_no_text(tmp_path: Path) -> None:
    to_runtime(fitted(), tmp_path / "model.sfm")
    model, c = Model.open(tmp_path / "model.sfm"), CModel(tmp_path / "model.sfm")
    for given, kind, words in (
        (["a", None], TypeError, "X: expected strings but got None at 1"),
        ([None, "a"], TypeError, "X: expected strings but got None at 0"),
        (["a", 3], TypeError, "X: expected strings but got int at 1"),
        ([3, "a"], TypeError, "X: expected strings but got int at 0"),
        (["a", "b\ud800"], ValueError, r"X\[1\]: expected Unicode text but got a lone surrogate, U\+D800, at 1"),
        ("a text", TypeError, "X: expected a list of texts but got str"),
    ):
        with pytest.raises(kind, match=words):
            model.predict(given)
    assert model.predict([]).shape == (0,)
    for content in (b"ab\xff", b"\xed\xa0\x80", b"\xc0\x80", b"a\xe2\x82", b"\xf4\x90\x80\x80"):
        with pytest.raises(Refused, match=r"bad argument: texts\[1\]: expected UTF-8 but got other bytes at "):
            c.classify([b"fine", content])
    with pytest.raises(Refused, match="ids: expected NULL, as the model has a tokenizer, but got a pointer"):
        c.classify(["a"], ids=[1], lengths=[1])
    to_runtime(sf.SequenceClassifier(3, 4, 2, vocab_size=5), tmp_path / "ids.sfm")
    with pytest.raises(Refused, match="model: expected one that was trained on texts but got another"):
        CModel(tmp_path / "ids.sfm").classify(["a"])


def test_classes_of_characters_are_those_of_the_tokenizers() -> None:
    """All characters that this interpreter knows; a release of tokenizers may know more of them."""
    import unicodedata

    tool: Any = __import__("runpy").run_path(str(ROOT / "tools/character_classes.py"))
    numbers = re.findall(r"0x[0-9a-f]+", (ROOT / "csrc/runtime/character_classes.h").read_text().partition("{")[2])
    written, value = [], 0
    runs = {int(number, 16) // 8: int(number, 16) % 8 for number in numbers}
    for code in range(0x110000):
        value = runs.get(code, value)
        written.append(value)
    expected = tool["classes"]()
    known = [code for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    assert [hex(code) for code in known if written[code] != expected[code]] == []


def test_without_tokenizers(tmp_path: Path) -> None:
    """Words and characters need no library; byte pairs do."""
    fitted().save(tmp_path / "words")
    fitted(tokenizer="bpe", max_vocab=300).save(tmp_path / "pairs")
    program = (
        "import sys\n"
        "sys.modules['tokenizers'] = sys.modules['torch'] = None\n"
        "from seqcls_fast.runtime import Model\n"
        "print(Model.open(sys.argv[1]).predict(['good film']))\n"
        "try:\n    Model.open(sys.argv[2])\nexcept ImportError as error:\n    print(error)"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "words"), str(tmp_path / "pairs")]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    sentence = "a model whose tokens are byte pairs needs tokenizers: pip install 'seqcls-fast[toolkit]'"
    assert out.splitlines()[1] == sentence


def test_special_texts_are_many() -> None:
    assert len(SPECIAL) > 15
