"""Pretrained vectors: every format that is read, what the embedding gets of it, and what is said of damaged files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from seqcls_fast import TextClassifier
from seqcls_fast.toolkit.data.vectors import read_vectors
from support.corpora import sentences

X, Y = sentences(0, 60)
SMALL: dict[str, Any] = {"hidden_size": 4, "embedding_dim": 3, "epochs": 1, "verbose": False, "baseline": False}
STILL = SMALL | {"learning_rate": 1e-12, "weight_decay": 0.0, "holdout": None}  # weights stay as they begin
GOOD = "good 1 2 3\nbad 4 5 6\n"


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(path: str) -> dict[str, list[float]]:
    return {word: each.tolist() for word, each in read_vectors(path, {"good", "bad", "film"}, 3, str.lower).items()}


@pytest.mark.parametrize(
    "content",
    [
        GOOD, "2 3\n" + GOOD, "2 3\r\ngood 1 2 3 \r\nbad 4 5 6 \r\n", "good\t1\t2\t3\nbad\t4\t5\t6",
        "\ufeff" + GOOD, GOOD + ". . . 7 8 9\n", "good  1 2  3\nbad 4 5\t\t6\n. . .  7 8 9\n",
        GOOD + "\n\n", "Bad 0 0 0\n" + GOOD, "2 3\nGood 1 2 3\nBAD 4 5 6\n",
    ],
)  # fmt: skip
def test_text_files(content: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(write(tmp_path / "some.vec", content)) == {"good": [1, 2, 3], "bad": [4, 5, 6]}


def test_an_array_beside_its_words(tmp_path: Path) -> None:
    np.save(tmp_path / "some.npy", np.array([[1, 2, 3], [7, 8, 9], [4, 5, 6]], dtype=np.float64))
    write(tmp_path / "some.words", "good\nother\nbad\n")
    assert read(str(tmp_path / "some.npy")) == {"good": [1, 2, 3], "bad": [4, 5, 6]}


def test_the_embedding_begins_with_them(tmp_path: Path) -> None:
    path = write(tmp_path / "some.txt", GOOD + "Film 0 0 9\n<unk> 7 7 7\n")
    clf = TextClassifier(vectors=Path(path), **STILL).fit(X, Y)
    weight, names = (
        clf.model_.embedding.weight.detach(),
        list(map(clf.encoder_.id_to_token, range(clf.encoder_.vocab_size))),
    )
    expected = {"good": [1, 2, 3], "bad": [4, 5, 6], "film": [0, 0, 9], "<unk>": [7, 7, 7], "<pad>": [0, 0, 0]}
    for word, vector in expected.items():
        torch.testing.assert_close(weight[names.index(word)], torch.tensor(vector).float())
    # The other words begin as without vectors, but as far from each other as those are.
    plain = TextClassifier(**STILL).fit(X, Y).model_.embedding.weight.detach()
    others = [place for place, name in enumerate(names) if name not in expected]
    spread = float(np.array([expected[name] for name in ("film", "bad", "good", "<unk>")], np.float32).std())
    torch.testing.assert_close(weight[others], spread * plain[others])


def test_a_saved_model_needs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "some.vec"
    clf = TextClassifier(vectors=write(path, GOOD), **SMALL).fit(X, Y)
    clf.save(tmp_path / "model")
    path.unlink()
    again = TextClassifier.load(tmp_path / "model")
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.get_params()["vectors"] == str(path)


def test_a_refit_begins_with_them_too(tmp_path: Path) -> None:
    many, labels = sentences(0, 240)
    clf = TextClassifier(vectors=write(tmp_path / "some.vec", GOOD), **STILL | {"holdout": 0.1}).fit(many, labels)
    assert clf.data_["refit"] == 240
    place = [clf.encoder_.id_to_token(i) for i in range(clf.encoder_.vocab_size)].index("good")
    torch.testing.assert_close(clf.model_.embedding.weight[place].detach(), torch.tensor([1.0, 2.0, 3.0]))


def test_of_a_word_twice_the_first_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "some.vec", GOOD + "good 9 9 9\nother 0 0 0\nother 0 0 0\n")
    with pytest.warns(UserWarning, match="has words more than once, as 'good'; the first vector of each is taken"):
        assert read(path)["good"] == [1, 2, 3]


def test_few_words_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "some.vec", GOOD)
    with pytest.warns(UserWarning, match="has 2 of the 50 words; is it of another language"):
        read_vectors(path, {"good", "bad", *map(str, range(48))}, 3, str.lower)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.vec", "2 4\ngood 1 2 3 4\n", "expected 3 numbers for each word, .* but got 4 in .*; pass embedding_dim=4$"),
        ("a.txt", "good 1 2 3 4\n", "expected 3 numbers for each word, .* but got 4 in .*; pass embedding_dim=4$"),
        ("a.vec", "9 3\n" + GOOD, r"expected 9 words in .*a.vec, as its first line says, but got 2; is the file cut"),
        ("a.vec", "1 3\n" + GOOD, r"expected 1 words in .*a.vec, as its first line says, but got 2$"),
        ("a.txt", GOOD + "film 1 2", "a word and 3 numbers in line 3 of .*a.txt but got 2 numbers; is the file cut"),
        ("a.txt", GOOD + "film 1 2 -", "expected numbers in line 3 of .*a.txt but got '-'$"),
        ("a.txt", GOOD + "film 1 2 nan", "expected finite numbers in line 3 of .*a.txt but got nan$"),
        ("a.txt", GOOD + "film 1 2 1e39", r"expected finite numbers in line 3 of .*a.txt but got 1e\+39$"),
        ("a.txt", "", "expected words with vectors in .*a.txt but got none$"),
        ("a.vec", "0 3\n", "expected words with vectors in .*a.vec but got none$"),
        ("a.txt", "caf\u00e9 1 2 3\n".encode("latin-1"), "text in UTF-8 but got the byte 0xE9 in line 1 of .*a.txt$"),
        ("a.txt", GOOD.encode("utf-16"), "expected text in UTF-8 but got the byte 0xFF in line 1"),
        ("a.txt", "x" * (1 << 20), "expected lines of text but got a longer one, line 1"),
        ("a.txt", "story 1 2 3\n", "expected words of the vocabulary, such as .* but got none of its"),
        ("a.bin", GOOD, r"a name that ends in .vec, .txt, .npy but got .*a.bin; save it as text first$"),
        ("a.vec.gz", b"", "but got .*a.vec.gz; unpack it first$"),
        ("a.npy", b"", "expected a whole array of numbers in .*a.npy but got EOF"),
        ("a.npy", GOOD, "expected a whole array of numbers in .*a.npy but got the magic string"),
    ],
)  # fmt: skip
def test_bad_files(name: str, content: str | bytes, words: str, tmp_path: Path) -> None:
    write(tmp_path / "a.words", GOOD)
    with pytest.raises(ValueError, match=f"^vectors: .*{words}") as raised:
        TextClassifier(vectors=write(tmp_path / name, content), **SMALL).fit(X, Y)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("array", "listed", "words"),
    [
        (np.zeros((2, 4)), "good\nbad", r"expected 3 numbers for each word, .* but got 4 in .*; pass embedding_dim=4$"),
        (np.zeros((2, 3), int), "good\nbad", r"floating-point numbers \(words, 3\) in .* but got int64 \(2, 3\)$"),
        (np.zeros(3), "good", r"floating-point numbers \(words, 3\) in .* but got float64 \(3,\)$"),
        (np.array([["a", None]]), "good\nbad", "but got pickled objects$"),
        (np.zeros((2, 3)), "good", "expected 2 words in .*a.words, one for each row of .*a.npy, but got 1$"),
        (np.full((2, 3), np.inf), "good\nbad", "expected finite numbers in row 0 of .*a.npy but got inf$"),
        (np.zeros((2, 3)), None, "expected the words of .*a.npy in .*a.words, which is not there$"),
    ],
)
def test_bad_arrays(array: np.ndarray, listed: str | None, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    if listed is not None:
        write(tmp_path / "a.words", listed)
    with pytest.raises((ValueError, FileNotFoundError), match=f"^vectors: .*{words}"):
        TextClassifier(vectors=str(tmp_path / "a.npy"), **SMALL).fit(X, Y)


def test_an_array_that_is_cut_off(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    write(tmp_path / "a.npy", (tmp_path / "a.npy").read_bytes()[:-1])
    write(tmp_path / "a.words", "good\nbad")
    with pytest.raises(ValueError, match=r"^vectors: expected a whole array of numbers in .* but got mmap length"):
        TextClassifier(vectors=str(tmp_path / "a.npy"), **SMALL).fit(X, Y)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^vectors: expected a file but there is no .*a.vec$"):
        TextClassifier(vectors=tmp_path / "a.vec", **SMALL).fit(X, Y)
    (tmp_path / "b.vec").mkdir()
    with pytest.raises(ValueError, match=r"^vectors: expected a file but got a folder: .*b.vec$"):
        TextClassifier(vectors=tmp_path / "b.vec", **SMALL).fit(X, Y)
    with pytest.raises(TypeError, match=r"^vectors: expected None or the path of a file but got ndarray$"):
        TextClassifier(vectors=np.zeros((2, 3)), **SMALL).fit(X, Y)
