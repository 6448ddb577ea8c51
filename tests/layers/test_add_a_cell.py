"""Adding a cell changes the files that CONTRIBUTING.md names, and no others.

The test copies the sources, adds a fifth cell, a minimal gated unit, as a contributor would, builds the copy, and
compares the cell with its formula. Numbers of gates, slots and saved values differ from those of every other cell. The
copy is compiled without optimization, which takes a third of the time, and with checks of array bounds: a read past the
end of a table, as a table written by hand for four cells would cause, ends the process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seqcls_fast import _ext
from seqcls_fast._cells import BUILT_IN
from seqcls_fast._shapes import CELLS

ROOT = Path(__file__).parents[2]
COPIED = ("csrc", "seqcls_fast", "setup.py", "pyproject.toml", "README.md")

pytestmark = pytest.mark.skipif(_ext.C is None, reason=f"no compiled extension: {_ext.why_missing}")

# For each file, a line of it and the text to insert in front of that line.
CHANGES = {
    "csrc/core/cells.h": [
        (
            "// The list of cells",
            """\
struct Mgu {  // gates f n; slots f n_input n_hidden; saved f n n_hidden 1-f
  static constexpr int kGates = 2, kSlots = 3, kSaved = 4, kActivations[] = {2, 0};
  static constexpr bool kHasC = false, kReadsH = false, kReadsHPrev = true, kCarriesH = true;
  static constexpr int hidden_slot(int gate) { return gate == 1 ? 2 : 0; }

  template <class V, class O = NoOptions>
  static SF_FN void forward(const V* a, V& h, V&, V* saved, const O& options = {}) {
    const V f = sigmoid(a[0]), n = tanh(fma(f, a[2], a[1]));
    saved[0] = f, saved[1] = n, saved[2] = a[2], saved[3] = 1 - f;
    h = fma(f, options.candidate(n) - h, h);
  }
  template <class V, class O = NoOptions>
  static SF_FN void backward(const V* saved, V, V h_prev, V, V dh, V& carry, V* d, const O& options = {}) {
    const V f = saved[0], m = saved[1], n = options.candidate(m);
    dh += carry;
    d[1] = options.candidate(dh * f) * fma(-m, m, V{} + 1);
    d[0] = fma(d[1], saved[2], dh * (n - h_prev)) * f * saved[3];
    d[2] = d[1] * f;
    carry = dh * saved[3];
  }
};

""",
        ),
        ("  X(lstm, Lstm)", "  X(mgu, Mgu) \\\n"),
    ],
    "seqcls_fast/_cells.py": [('    "lstm": Cell(', '    "mgu": Cell(2, 4, False),\n')],
    "seqcls_fast/reference.py": [
        (
            '    raise ValueError(f"cell: expected',
            """\
    if cell == "mgu":
        (f, n), (f_h, n_h) = from_x.chunk(2, 1), from_h.chunk(2, 1)
        f = torch.sigmoid(f + f_h)
        return h + f * (options.candidate(torch.tanh(n + f * n_h)) - h), c
""",
        )
    ],
    "seqcls_fast/nn.py": [
        (
            "class RNNCell(RecurrentCell):",
            '''\
class MGU(RecurrentLayers):
    """A multi-layer minimal gated unit."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, **options: object):
        order = ("batch_first", "dropout", "bidirectional", "proj_size", "device", "dtype")
        rest = (options.get(name, default) for name, default in zip(order, (False, 0.0, False, 0, None, None)))
        super().__init__("MGU", input_size, hidden_size, num_layers, bias, *rest)


''',
        )
    ],
}

USE = """
import pytest, torch
from torch import nn
import seqcls_fast as sf
from seqcls_fast import _ext, _shapes, nn as layers, reference

C = _ext.C
assert list(C.cells().items())[3:5] == [("mgu", (2, 4, False, (), False)), ("lstm", (4, 5, True, (), False))], C.cells()
assert list(_shapes.CELLS) == list(C.cells())


def formula(x, h, w_ih, w_hh, b_ih, b_hh, lengths, reverse):
    "The unit, row by row."
    outputs, last = torch.zeros(*x.shape[:2], h.size(1), dtype=x.dtype), []
    for b, length in enumerate(lengths.tolist()):
        state = h[b]
        for t in range(length)[:: -1 if reverse else 1]:
            (f, n), (f_h, n_h) = (w_ih @ x[t, b] + b_ih).chunk(2), (w_hh @ state + b_hh).chunk(2)
            f = torch.sigmoid(f + f_h)
            state = (1 - f) * state + f * torch.tanh(n + f * n_h)
            outputs = outputs.index_put((torch.tensor(t), torch.tensor(b)), state)
        last.append(state)
    return outputs, torch.stack(last)


def leaves(dtype, *shapes):
    return [(torch.randn(shape, dtype=torch.float64) / 2).to(dtype).requires_grad_() for shape in shapes]


torch.manual_seed(0)
T, B, I, H = 7, 5, 6, 19
lengths = torch.tensor([4, 7, 0, 1, 6])
for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
    shapes = [(2 * H, I)] * 2 + [(2 * H, H)] * 2 + [(2 * H,)] * 4
    x, h0, *weights = leaves(dtype, (T, B, I), (2, B, H), *shapes)
    kinds = [weights[k : k + 2] for k in range(0, 8, 2)]
    exact = [t.detach().double().requires_grad_() for t in (x, h0, *weights)]
    steps, ends = zip(*(
        formula(exact[0], exact[1][d], *(exact[2 + 2 * k + d] for k in range(4)), lengths, d == 1) for d in range(2)
    ))
    want = torch.cat(steps, 2), torch.stack(ends)
    d_want = [torch.randn_like(t) for t in want]
    d_exact = torch.autograd.grad(want, exact, d_want)
    for impl in ("base", "reference", "torch"):
        found = sf.rnn_layer(x, *kinds, h0=h0, cell="mgu", lengths=lengths, impl=impl)
        assert len(found) == 3 and found[2] is None
        for a, b in zip(found, want):
            assert (a.double() - b).abs().max() < bound, (dtype, impl)
        grads = torch.autograd.grad(found[:2], (x, h0, *weights), [d.to(dtype) for d in d_want])
        for a, b in zip(grads, d_exact):
            assert (a.double() - b).abs().max() < 20 * bound * max(1, b.abs().max()), (dtype, impl)
    with torch.no_grad():  # one row: the input is projected first
        found = sf.rnn_layer(x[:, :1].contiguous(), *kinds, h0=h0[:, :1].contiguous(), cell="mgu", impl="base")
        again = sf.rnn_layer(x[:, :1].contiguous(), *kinds, h0=h0[:, :1].contiguous(), cell="mgu", impl="reference")
        assert (found[0] - again[0]).abs().max() < bound

meta = [t.detach().to("meta") for t in (x, *weights)]
output, h_n, c_n = sf.rnn_layer(meta[0], *(meta[1 + k : 3 + k] for k in range(0, 8, 2)), cell="mgu")
assert (output.shape, h_n.shape, c_n) == ((T, B, 2 * H), (2, B, H), None)
saved = torch.ops.seqcls_fast.rnn_forward(
    *(f(x, weights) for f in (lambda x, w: x.detach(), lambda x, w: [t.detach() for t in w])), None, None, None, None,
    "mgu", 2, False, True, True, "base",
)[-1]
assert saved.shape == (2, T, B, 4 * 32)

with pytest.raises(ValueError, match=r"expected one of rnn_tanh, rnn_relu, gru, mgu, lstm, .* but got 'none'"):
    sf.rnn_layer(x, *kinds, cell="none")
for cell in C.cells():
    for limits in C.known_devices().values():
        for backward in (False, True):
            plan = C.plan(cell, 256, 64, "bf16", 1, backward, "auto", limits)
            works = plan["tiles"] and (not cell.startswith("rnn_relu") if not backward else cell.startswith("lstm"))
            assert (plan["mufu_cycles"] > 0) == bool(works), (cell, plan)

module = layers.MGU(I, H, 2, bidirectional=True)
assert module.weight_ih_l0.shape == (2 * H, I) and module.bias_hh_l1_reverse.shape == (2 * H,)
output, h_n = module(x.detach().float(), lengths=lengths)
assert output.shape == (T, B, 2 * H) and h_n.shape == (4, B, H)

model = sf.SequenceClassifier(I, H, 3, cell="mgu", bidirectional=True, pooling="mean")
optimizer, data, labels = torch.optim.Adam(model.parameters(), 0.02), torch.randn(12, T, I), torch.arange(12) % 3
losses = []
for _ in range(30):
    loss = nn.functional.cross_entropy(model(data), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss))
assert losses[-1] < losses[0] / 2, losses
print("the fifth cell works")
"""


def test_python_s_table_of_cells_is_the_extension_s() -> None:
    assert CELLS == BUILT_IN
    assert list(CELLS) == list(BUILT_IN)


def test_the_files_that_a_cell_needs_are_those_of_contributing() -> None:
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| add a cell |")]
    assert len(rows) == 1
    needed, _, _ = rows[0].partition("Where ONNX has the cell")  # it has no minimal gated unit
    assert set(re.findall(r"`([\w/]+\.\w+)`", needed)) == set(CHANGES)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled on Windows")
def test_a_fifth_cell(tmp_path: Path) -> None:
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "_C*.so"))
        elif source.exists():
            shutil.copy(source, target)
    for name, insertions in CHANGES.items():
        text = (tmp_path / name).read_text()
        for before, inserted in insertions:
            assert text.count(f"\n{before}") == 1, (name, before)
            text = text.replace(f"\n{before}", f"\n{inserted}{before}")
        (tmp_path / name).write_text(text)
    flags = (tmp_path / "csrc/flags.py").read_text()
    assert flags.count('"-O2"') == 1
    (tmp_path / "csrc/flags.py").write_text(flags.replace('"-O2"', '"-O0"'))

    def run(*command: str) -> str:
        environment = os.environ | {
            "PYTHONPATH": str(tmp_path),
            "SEQCLS_CUDA": "0",
            "CFLAGS": "-fsanitize=bounds -fsanitize-undefined-trap-on-error",
        }
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    run("setup.py", "--quiet", "build_ext", "--inplace", "--isas=base")
    assert run("-c", USE).splitlines()[-1] == "the fifth cell works"
