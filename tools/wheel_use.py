"""What an installed wheel must do. tools/wheel_test.py runs it in an environment that holds the wheel.

    python wheel_use.py FOLDER

With torch it calls the layers, and writes into FOLDER models for the runtime and their answers. Without torch it runs
these models, and its answers must have the same bits.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np


def with_torch(folder: Path) -> str:
    import torch

    import seqcls_fast as sf
    from seqcls_fast import _eager
    from seqcls_fast.export import to_runtime
    from seqcls_fast.runtime import Model

    release = torch.__version__.split("+")[0].replace(".", "_")
    has_entry = any(Path(sf.__file__).parent.glob(f"_eager_{release}.*"))
    assert (_eager.why_off is None) == has_entry, _eager.why_off
    torch.manual_seed(0)
    assert sf.available_impls()[-1] not in ("reference", "torch"), sf.available_impls()
    ours, theirs = sf.GRU(3, 8), torch.nn.GRU(3, 8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 2, 3)
    for layer in (ours, theirs):
        layer(x)[0].sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad, rtol=1e-4, atol=1e-5)
    folder.mkdir(parents=True, exist_ok=True)
    for cell in ("rnn_tanh", "gru", "lstm"):
        model = sf.SequenceClassifier(3, 16, 2, cell=cell).eval()
        to_runtime(model, folder / f"{cell}.sfm")
        inputs = torch.randn(4, 20, 3)
        with torch.no_grad():
            answers = torch.softmax(model(inputs), -1)
        found = Model.open(folder / f"{cell}.sfm").predict_proba(list(inputs.numpy()))
        np.testing.assert_allclose(found, answers.numpy(), rtol=1e-5, atol=1e-6)
        np.savez(folder / f"{cell}.npz", inputs=inputs.numpy(), answers=found)
    return f"torch {torch.__version__}, eager entry: {_eager.why_off or 'on'}"


def without_torch(folder: Path) -> str:
    from seqcls_fast.runtime import Model

    models = sorted(folder.glob("*.sfm"))
    assert models, f"{folder}: expected models that an interpreter with torch wrote"
    for path in models:
        saved = np.load(path.with_suffix(".npz"))
        assert (Model.open(path).predict_proba(list(saved["inputs"])) == saved["answers"]).all(), path
    assert "torch" not in sys.modules
    return f"no torch, {len(models)} models run"


def extension_alone() -> str:
    """The extension in a Python without torch, where only torch's libraries are found: what it does by itself."""
    try:
        from seqcls_fast import _C
    except ImportError as error:  # torch's libraries are not in LD_LIBRARY_PATH
        if "libc10" not in str(error):
            raise
        return "the extension needs torch's libraries, which are not here"
    assert _C.cells()["gru"][0] == 3, _C.cells()
    assert len(_C.hashed_ngrams(["some words"], 10)) == 3
    return "the extension loads"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    said = with_torch(place) if find_spec("torch") else f"{without_torch(place)}; {extension_alone()}"
    print(f"Python {sys.version.split()[0]}: {said}")
