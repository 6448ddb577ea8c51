"""Files that `make fuzz-runtime` found: the first of each outcome. Each runs or is refused with a sentence.

The fuzzer runs them with the sanitizers; here they show that no outcome has become a crash or an error without words.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from seqcls_fast.runtime import Model

CORPUS = Path(__file__).with_name("runtime.tar.xz")


def files() -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(CORPUS.read_bytes())) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def opened(path: Path) -> Model | str:
    """The model, or the sentence that refuses it."""
    try:
        return Model.open(path)
    except ValueError as error:
        return str(error)


def test_every_file_runs_or_is_refused(tmp_path: Path) -> None:
    ran = refused = 0
    for name, content in files().items():
        path = tmp_path / name
        path.write_bytes(content)
        model = opened(path)
        if isinstance(model, str):
            assert model.startswith(("file:", "model:", "model.", "text.")), (name, model)
            refused += 1
            continue
        if model.stream_bytes(2, 3) > 1 << 28:
            continue
        if model.about.get("text"):
            assert model.predict_proba(["a b \u65e5", ""]).shape == (2, model.outputs), name
            ran += 1
            continue
        x = np.zeros((2, 3)) if model.vocabulary else np.zeros((2, 3, model.features))
        found = model.predict_proba(x.astype(int) if model.vocabulary else x) if model.is_classifier else model.run(x)
        assert found.shape[0] == 2, name
        ran += 1
    assert ran >= 5
    assert refused >= 40


def test_the_corpus_has_no_paths() -> None:
    assert all("/" not in name for name in files())
    with pytest.raises(ValueError, match="file: expected one that"):
        Model.open(CORPUS)
