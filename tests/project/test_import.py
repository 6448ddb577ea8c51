"""`import seqcls_fast` stays free of torch until a name that needs torch is touched.

Each check runs in a fresh interpreter: this one has torch loaded already.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

import seqcls_fast
from seqcls_fast import _ext


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "use",
    ["", "seqcls_fast.__version__", "dir(seqcls_fast)", "seqcls_fast.__all__", "hasattr(seqcls_fast, 'Transformer')"],
)
def test_no_torch_without_need(use: str) -> None:
    assert run(f"import sys, seqcls_fast\n{use}\nprint('torch' in sys.modules)") == "False"


@pytest.mark.skipif(_ext.C is None, reason=f"no compiled extension: {_ext.why_missing}")
@pytest.mark.parametrize(
    "imports",
    [
        "import seqcls_fast, torch",
        "import torch, seqcls_fast",
        "import importlib.util as i, seqcls_fast\ni.find_spec('torch')\nimport torch",  # looked for, then imported
        "import seqcls_fast, torch.nn as nn\nimport torch",
        "import sys, importlib, seqcls_fast\nimportlib.reload(seqcls_fast)\nimport torch",
    ],
)
def test_the_operators_come_with_torch_and_the_package(imports: str) -> None:
    """A program that holds them is loaded by torch's C++ code, which imports nothing."""
    has_operator = "torch._C._dispatch_has_kernel_for_dispatch_key('seqcls_fast::rnn_layer', 'Meta')"
    finders = "[f for f in sys.meta_path if type(f).__module__ == 'seqcls_fast._after_import' and f.name == 'torch']"
    code = f"{imports}\nimport sys\nprint({has_operator}, {finders})"
    assert run(code) == "True []"


def test_torch_is_imported_although_the_operators_fail() -> None:
    broken = "import sys, warnings, seqcls_fast\nsys.modules['seqcls_fast.ops'] = None\n"
    caught = (
        "with warnings.catch_warnings(record=True) as found:\n    warnings.simplefilter('always')\n    import torch\n"
    )
    shown = "print(torch.zeros(1).item(), [str(w.message).split(',')[0] for w in found])"
    assert run(broken + caught + shown) == "0.0 ['torch.ops.seqcls_fast is missing']"


def test_without_the_extension_nothing_is_registered_and_nothing_warned() -> None:
    hidden = "import sys, warnings\nwarnings.simplefilter('error')\nsys.modules['seqcls_fast._C'] = None\n"
    assert run(f"{hidden}import torch, seqcls_fast\nprint('seqcls_fast.ops' in sys.modules)") == "False"


def test_torch_on_first_use() -> None:
    code = "import sys, seqcls_fast as sf\nsf.GRU\nprint('torch' in sys.modules, sf.GRU is sf.nn.GRU)"
    assert run(code) == "True True"


def test_the_layers_import_no_more_of_torch_than_torch_does() -> None:
    """Importing Dynamo would take as long as importing torch; only the toolkit needs the toolkit's libraries."""
    use = "model = sf.SequenceClassifier(3, 4, 2, vocab_size=9)\nmodel(torch.ones(2, 3).long()).sum().backward()"
    heavy = "{'torch._dynamo', 'torch._inductor', 'sympy', 'sklearn', 'tokenizers', 'matplotlib', 'rich'}"
    assert run(f"import sys, torch, seqcls_fast as sf\n{use}\nprint({heavy} & set(sys.modules))") == "set()"


def test_first_use_under_another_default_device() -> None:
    """A tensor that is made at the first use and kept must not be on the default device of that moment."""
    code = (
        "import torch, seqcls_fast as sf\nwith torch.device('meta'): sf.GRU(3, 4)\n"
        "output, _ = sf.GRU(3, 4)(torch.zeros(5, 2, 3))\noutput.sum().backward()\nprint(output.device)"
    )
    assert run(code) == "cpu"


def test_public_names() -> None:
    pytest.importorskip("sklearn")  # the estimators need it
    for name in seqcls_fast.__all__:
        assert getattr(seqcls_fast, name) is not None
    assert set(seqcls_fast.__all__) <= set(dir(seqcls_fast))
    assert seqcls_fast.LSTM is seqcls_fast.nn.LSTM
    assert seqcls_fast.rnn_layer is seqcls_fast.ops.rnn_layer


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'seqcls_fast' has no attribute 'Transformer'"):
        seqcls_fast.Transformer  # noqa: B018


@pytest.mark.parametrize("name", ["TextClassifier", "SeriesClassifier", "evaluate_predictions", "Report", "Stream"])
def test_without_numpy_the_toolkit_says_what_it_needs(name: str) -> None:
    where = "seqcls_fast.toolkit.stream" if name == "Stream" else "seqcls_fast"
    use = f"try:\n    from {where} import {name}\nexcept ImportError as error:\n    print(error)"
    assert run(f"import sys\nsys.modules['numpy'] = None\n{use}") == (
        f"{name} needs numpy: pip install 'seqcls-fast[toolkit]'"
    )
