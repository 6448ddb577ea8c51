"""torch.export, AOTInductor and torch.jit.trace: programs have one op per layer and run at any length. ONNX is tested
in test_export_onnx.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.export import Dim, ExportedProgram, export
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import seqcls_fast as sf
from seqcls_fast import ops

I, H = 5, 8
LAYERS = {"rnn": sf.RNN, "gru": sf.GRU, "lstm": sf.LSTM}
EACH = pytest.mark.parametrize("name", LAYERS)
SHAPES = ((3, 5), (2, 9), (7, 3), (1, 40))  # B, T


class Tagger(nn.Module):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.layer = LAYERS[name](I, H, 2, batch_first=True, bidirectional=True, dropout=0.5, **options)
        self.head = nn.Linear(2 * H, 3)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, hx = self.layer(x.tanh(), lengths=lengths)
        return self.head(output), (hx[0] if isinstance(hx, tuple) else hx)


def inputs(B: int, T: int, ragged: bool = True) -> tuple[Tensor, ...]:
    x = torch.randn(B, T, I)
    return (x, torch.randint(0, T + 1, (B,))) if ragged else (x,)


def exported(model: nn.Module, ragged: bool = True, **options: Any) -> ExportedProgram:
    B, T = Dim("B", max=4096), Dim("T", max=4096)
    shapes = ({0: B, 1: T}, {0: B}) if ragged else ({0: B, 1: T},)
    return export(model, inputs(3, 5, ragged), dynamic_shapes=shapes, **options)


def ops_of(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if "seqcls_fast" in str(node.target)]


@EACH
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_export_with_dynamic_batch_and_length(name: str, ragged: bool, strict: bool, compiled: str) -> None:
    model = Tagger(name).eval()
    with sf.use_impl(compiled):
        program = exported(model, ragged, strict=strict)
        assert ops_of(program) == ["seqcls_fast.rnn_layer.default"] * 2
        for B, T in SHAPES:
            given = inputs(B, T, ragged)
            for a, b in zip(program.module()(*given), model(*given), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # the head may add in another order


@EACH
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = Tagger(name).eval()
    torch.export.save(exported(model), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").run_decompositions()
    assert len(ops_of(program)) == 2
    given = inputs(4, 11)
    assert torch.equal(program.module()(*given)[1], model(*given)[1])


@EACH
def test_an_exported_program_trains(name: str) -> None:
    """Gradients of the op are registered with torch: without them, training would only warn and change nothing."""
    model = Tagger(name).eval()
    twin = exported(model).module()
    x, lengths = inputs(4, 7)
    found = []
    for module in (twin, model):
        leaf = x.clone().requires_grad_()
        output, h_n = module(leaf, lengths)
        total = (output.sin().sum() + h_n.sin().sum()) / 10
        parameters = dict(module.named_parameters())
        found.append(torch.autograd.grad(total, [leaf, *(parameters[key] for key, _ in model.named_parameters())]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_gradients_of_the_exported_op_by_itself(compiled: str) -> None:
    """They have the bits of rnn_layer's gradients, for each result alone and for all, and can be differentiated."""
    lstm = sf.LSTM(I, H, proj_size=3).double()
    x, hx = torch.randn(4, 2, I).double(), (torch.randn(1, 2, 3).double(), torch.randn(1, 2, H).double())
    leaves = [t.detach().requires_grad_() for t in (x, *hx, *lstm.parameters())]
    x, h0, c0, *weights = leaves
    lengths = torch.tensor([4, 2])
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    kinds = ([w_ih], [w_hh], [b_ih], [b_hh], [w_hr])
    results = torch.ops.seqcls_fast.rnn_layer(x, weights, h0, c0, lengths, None, "lstm", 1, False, True, compiled)
    output, *finals = ops.rnn_layer(x, *kinds, h0, c0, cell="lstm", lengths=lengths, impl=compiled)
    wanted = [*finals, output]
    for used in ([0], [1], [2], [0, 1, 2]):
        first = [
            torch.autograd.grad([r[k] for k in used], leaves, [r[k].detach().cos() for k in used], create_graph=True)
            for r in (results, wanted)
        ]
        second = [torch.autograd.grad(sum((g**2).sum() for g in gs), leaves, allow_unused=True) for gs in first]
        for a, b in (*zip(*first, strict=True), *zip(*second, strict=True)):
            assert torch.equal(a, b)


@EACH
def test_aot_inductor(name: str, tmp_path: Path) -> None:
    """The package runs in a new process that has loaded the op library with the two lines of docs/layers.md."""
    model = Tagger(name).eval()
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(exported(model), package_path=str(tmp_path / "model.pt2"))
        given = [inputs(B, T) for B, T in SHAPES]
        wanted = [model(*g) for g in given]
    torch.save((given, wanted), tmp_path / "numbers.pt")
    program = """
import sys, torch
import seqcls_fast
model = torch._inductor.aoti_load_package(sys.argv[1])
given, wanted = torch.load(sys.argv[2])
for g, w in zip(given, wanted):
    torch.testing.assert_close(list(model(*g)), list(w), rtol=0, atol=1e-6)
"""
    subprocess.run([sys.executable, "-c", program, path, tmp_path / "numbers.pt"], check=True, timeout=300)


@EACH
@pytest.mark.parametrize("grad", [False, True])
def test_jit_trace(name: str, grad: bool, tmp_path: Path, compiled: str) -> None:
    """A model traced with or without gradients, saved and loaded, is right at other sizes and can be trained."""
    model = Tagger(name).eval()
    with sf.use_impl(compiled), torch.set_grad_enabled(grad):
        torch.jit.trace(model, inputs(3, 5)).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    with sf.use_impl(compiled):
        for B, T in SHAPES:
            given = inputs(B, T)
            assert torch.equal(loaded(*given)[1], model(*given)[1])
        for module in (loaded, model):
            (module(*given)[0] / 10).sin().sum().backward()
    found = dict(loaded.named_parameters())
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(found[key].grad, parameter.grad, rtol=0, atol=1e-5)


@EACH
@pytest.mark.parametrize("kind", ["exported", "traced"])
def test_transforms_of_what_was_exported(name: str, kind: str) -> None:
    """Transforms of programs are right: an op without a rule for tangents would return zeros without an error."""
    layer = LAYERS[name](I, H, bidirectional=True).double()
    x = torch.randn(4, 2, I, dtype=torch.float64)
    program = export(layer, (x,)).module() if kind == "exported" else torch.jit.trace(layer, (x,))
    each = torch.stack([x, x.sin(), x.exp()])
    transforms: dict[str, Any] = {
        "jvp": lambda f: jvp(f, (x,), (x.cos(),)),
        "jacfwd": lambda f: jacfwd(lambda x: f(x)[0])(x),
        "jacrev": lambda f: jacrev(lambda x: f(x)[0])(x),
        "grad": lambda f: grad(lambda x: f(x)[0].sin().sum())(x),
        "hessian": lambda f: hessian(lambda x: f(x)[0].sin().sum())(x),
        "vmap": lambda f: vmap(f, in_dims=1)(each.movedim(0, 1)),
        "per-sample": lambda f: vmap(grad(lambda x: f(x)[0].sin().sum()))(each),
        "dual": lambda f: dual(f, x, x.cos()),
    }
    for transform in transforms.values():
        torch.testing.assert_close(transform(program), transform(layer))


def dual(function: Any, x: Tensor, tangent: Tensor) -> Any:
    with torch.no_grad(), forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))[0]).tangent


def test_vmap_of_the_exported_op_without_an_output(compiled: str) -> None:
    gru, lstm = sf.GRU(I, H), sf.LSTM(I, H)
    x, lengths = torch.randn(3, 4, 2, I), torch.tensor([[4, 0], [1, 2], [3, 3]])
    for layer in (gru, lstm):
        weights, cell = [p.detach() for p in layer.parameters()], layer.mode.lower()

        def op(x: Tensor, lengths: Tensor, weights: Any = weights, cell: str = cell) -> Any:
            tail = (None, None, lengths, None, cell, 1, False, False, compiled)
            return tuple(torch.ops.seqcls_fast.rnn_layer(x, weights, *tail))

        wanted = [op(*pair) for pair in zip(x, lengths, strict=True)]
        for found, parts in zip(vmap(op)(x, lengths), zip(*wanted, strict=True), strict=True):
            assert torch.equal(found, torch.stack(parts))


@EACH
def test_autocast_of_what_was_exported(name: str) -> None:
    model = nn.Sequential(nn.Linear(I, I), LAYERS[name](I, H))
    x = torch.randn(4, 2, I)
    programs = export(model, (x,)).module(), torch.jit.trace(model, (x,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = model(x)[0]
        for program in programs:
            found = program(x)[0]
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, wanted)


def test_an_exported_program_compiles() -> None:
    gru = sf.GRU(I, H)
    x = torch.randn(4, 2, I, requires_grad=True)
    program = torch.compile(export(gru, (x,)).module(), fullgraph=True, backend="aot_eager")
    found, wanted = (torch.autograd.grad(f(x)[0].sin().sum(), [x])[0] for f in (program, gru))
    torch.testing.assert_close(found, wanted)


def test_bad_lengths_are_refused_by_what_was_exported(tmp_path: Path) -> None:
    model = Tagger("gru").eval()
    torch.jit.trace(model, inputs(3, 5)).save(tmp_path / "model.pt")
    for program in (exported(model).module(), torch.jit.load(tmp_path / "model.pt")):
        with pytest.raises(RuntimeError, match="lengths: expected values from 0 to T = 5"):
            program(torch.randn(2, 5, I), torch.tensor([6, 1]))


@pytest.mark.parametrize("layer", [*LAYERS.values(), sf.RNNCell, sf.GRUCell, sf.LSTMCell])
def test_jit_script_is_refused(layer: Any) -> None:
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile seqcls_fast\..*use torch.jit.trace"):
        torch.jit.script(nn.Sequential(layer(I, H)))
