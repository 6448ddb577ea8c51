"""A tokenizer.json of Hugging Face's in the place of our own tokens: learning, saving, streams, exports, bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("tokenizers")

import tokenizers

from seqcls_fast import TextClassifier
from seqcls_fast.cli.export import _metadata
from seqcls_fast.toolkit import _extras
from seqcls_fast.toolkit.data.stream import Stream
from seqcls_fast.toolkit.data.text import UNKNOWN
from seqcls_fast.toolkit.data.tokenizer_file import TokenizerFile, text_encoder_from_json
from support.corpora import sentences

X, Y = sentences(0, 80)
SMALL: dict[str, Any] = {"hidden_size": 4, "embedding_dim": 4, "epochs": 2, "verbose": False}


@pytest.fixture(params=["wordpiece", "bpe", "unigram"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small tokenizer that was saved with padding and truncation, which a classifier does by itself."""
    return saved(request.param, tmp_path / "tokenizer.json")


def saved(kind: str, path: Path) -> Path:
    models, trainers, cut = tokenizers.models, tokenizers.trainers, tokenizers.pre_tokenizers
    if kind == "wordpiece":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = tokenizers.normalizers.Lowercase(), cut.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    elif kind == "bpe":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = cut.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    else:
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = cut.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    made.train_from_iterator(X, trainer)
    made.enable_padding(length=30)
    made.enable_truncation(2)
    made.save(str(path))
    return path


def test_tokens_are_those_of_the_file(path: Path) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.no_padding(), theirs.no_truncation()
    encoder = TokenizerFile.read(path, max_length=None).fit(X)
    for text in X[:20]:
        assert encoder.tokens(text) == theirs.encode(text, add_special_tokens=False).tokens
        ids = encoder.encode([text]).values.tolist()
        assert [encoder.id_to_token(i) for i in ids] == encoder.tokens(text)
    assert min(encoder.encode(X).values) > UNKNOWN
    names = [encoder.id_to_token(i) for i in range(2, encoder.vocab_size)]
    assert len(set(names)) == len(names)
    assert not {"[UNK]", "[PAD]"} & set(names)


def test_what_training_has_not_seen_is_unknown(path: Path) -> None:
    encoder = TokenizerFile.read(path).fit(["film film day"])
    known, ids = encoder.encode(["film"]).values.tolist(), encoder.encode(["film zq"]).values.tolist()
    assert UNKNOWN not in known
    assert ids[: len(known)] == known
    assert UNKNOWN in ids


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_the_unknown_token_of_the_file_is_ours(kind: str, tmp_path: Path) -> None:
    encoder = TokenizerFile.read(saved(kind, tmp_path / "tokenizer.json")).fit([*X, "\u2603 film"])
    assert encoder.encode(["\u2603"]).values.tolist()[-1] == UNKNOWN
    assert not {"[UNK]", "<unk>"} & {encoder.id_to_token(i) for i in range(2, encoder.vocab_size)}


def test_a_model_keeps_the_file(path: Path, tmp_path: Path) -> None:
    clf = TextClassifier(tokenizer=path, max_length=20, **SMALL).fit(X, Y)
    clf.save(tmp_path / "model")
    path.unlink()
    again = TextClassifier.load(tmp_path / "model")
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.encoder_.to_json() == clf.encoder_.to_json()
    assert again.trace(X[0]).tokens == clf.encoder_.tokens(X[0])


def test_the_whole_text_counts_for_n_grams(path: Path) -> None:
    encoder = TokenizerFile.read(path, wide=True, lowercase=True).fit(X)
    upper, lower = encoder.encode([X[0].upper()]), encoder.encode([X[0]])
    assert upper.wide.ids.values.tolist() == lower.wide.ids.values.tolist()
    assert encoder.prefixes(X[0], [0, len(encoder.tokens(X[0]))]) == ["", X[0]]


def test_a_stream_learns_the_same(tmp_path: Path) -> None:
    path = saved("wordpiece", tmp_path / "tokenizer.json")
    rows = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(X, Y, strict=True))
    (tmp_path / "data.jsonl").write_text(rows)
    options = SMALL | {"tokenizer": str(path), "holdout": None, "baseline": False}
    stream = Stream(tmp_path / "data.jsonl")
    streamed = TextClassifier(**options, workers=1).fit(stream)
    assert streamed.encoder_.to_json() == TextClassifier(**options).fit(X, Y).encoder_.to_json()
    # Another file is another encoder, also of the same Stream.
    other = saved("bpe", tmp_path / "other.json")
    assert TextClassifier(**options | {"tokenizer": str(other)}).fit(stream).encoder_.name == "other.json"


def test_exports_name_the_tokenizer(tmp_path: Path) -> None:
    path = saved("wordpiece", tmp_path / "tokenizer.json")
    clf = TextClassifier(tokenizer=str(path), **SMALL).fit(X, Y)
    assert json.loads(_metadata(clf)["tokenizer"]).startswith("tokenizer.json, SHA-256 ")
    assert json.loads(_metadata(TextClassifier(**SMALL).fit(X, Y))["tokenizer"]) == "word"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "expected a tokenizer as Hugging Face's tokenizers saves it in bad.json but got EOF"),
        ("{}", "expected a tokenizer as Hugging Face's tokenizers saves it in bad.json but got Model missing"),
        ('{"model": 3}', "expected a tokenizer as Hugging Face's tokenizers saves it in bad.json but got data did not"),
        (b"\xff\xfe", "expected JSON in .*bad.json but got bytes that are no UTF-8"),
        (" " * ((1 << 24) + 1), "expected at most 16777216 bytes in .*bad.json but got more"),
    ],
)
def test_bad_files(content: str | bytes, words: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"^tokenizer: {words}"):
        TextClassifier(tokenizer=bad, **SMALL).fit(X, Y)


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"^tokenizer: expected a file but there is no .*t.json$"):
        TextClassifier(tokenizer=str(tmp_path / "t.json"), **SMALL).fit(X, Y)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match=r"^tokenizer: expected a file but got a folder: .*folder.json$"):
        TextClassifier(tokenizer=tmp_path / "folder.json", **SMALL).fit(X, Y)
    with pytest.raises(ValueError, match="but got 'bert-base'; for a tokenizer of Hugging Face's pass the path"):
        TextClassifier(tokenizer="bert-base", **SMALL).fit(X, Y)

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name, name=name)

    path = saved("bpe", tmp_path / "t.json")
    monkeypatch.setattr(_extras, "import_module", missing)
    with pytest.raises(ImportError, match=r"^tokenizer='t.json' needs tokenizers: pip install"):
        TextClassifier(tokenizer=path, **SMALL).fit(X, Y)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer", "."])
def test_a_path_must_end_in_json(name: str, tmp_path: Path) -> None:
    """As a saved model says its tokenizer's path as a string, which only the suffix tells from a kind of tokens."""
    if name != ".":
        saved("bpe", tmp_path / name)
    with pytest.raises(
        ValueError, match=r"^tokenizer: expected one of .* got .*Path\(.*; for a .* its tokenizer.json$"
    ):
        TextClassifier(tokenizer=tmp_path / name, **SMALL).fit(X, Y)


def test_a_changed_encoder_is_refused(tmp_path: Path) -> None:
    text = TokenizerFile.read(saved("bpe", tmp_path / "t.json")).fit(X).to_json()
    assert text_encoder_from_json(text).to_json() == text
    with pytest.raises(ValueError, match=r"^TokenizerFile: expected content that fits its checksum"):
        text_encoder_from_json(text.replace('"min_frequency": 1', '"min_frequency": 2'))


def test_a_lone_surrogate_gets_a_sentence(path: Path) -> None:
    encoder = TokenizerFile.read(path).fit(X)
    with pytest.raises(
        ValueError, match=r"^texts\[1\]: expected Unicode text but got a lone surrogate, U\+D800, at 1$"
    ):
        encoder.encode(["a", "b\ud800"])
