"""torch's own tests of recurrent layers under its tools (fx, jit, Dynamo, export, the profiler, quantization, ONNX).

Written anew, each under the name that it has in torch, and run on torch.nn and on ours. Where ours differ by design,
as the table "Differences from torch.nn" in docs/layers.md says, the last section holds what torch does and what we do.
"""

import io
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import seqcls_fast as sf
from support.libraries import LAYERS, both
from support.tolerances import assert_close_by_name

BOTH = both()
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


class Layer(nn.Module):
    """A layer in a model, as most of torch's tests have it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any) -> Any:
        return self.layer(*args)


class Ragged(Layer):
    """Packs its rows before the layer and pads them after it."""

    def forward(self, x: Tensor, lengths: Tensor, *states: Tensor) -> Tensor:  # type: ignore[override]
        hx = states if len(states) == 2 else states[0]
        return rnn.pad_packed_sequence(self.layer(rnn.pack_padded_sequence(x, lengths), hx)[0])[0]


# __torch_function__ and torch.fx


class Wrapper:
    """An object that is no tensor, stands for one, and unwraps itself in every function of torch."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.data, name)
        return value if not callable(value) else lambda *args, **kwargs: wrapped(value(*args, **kwargs))

    def __getitem__(self, index: Any) -> Any:
        return wrapped(self.data[index])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return wrapped(function(*unwrapped(args), **unwrapped(kwargs or {})))


def wrapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Wrapper(value)
    return type(value)(map(wrapped, value)) if type(value) in (tuple, list) else value


def unwrapped(value: Any) -> Any:
    if isinstance(value, Wrapper):
        return value.data
    if isinstance(value, dict):
        return {name: unwrapped(item) for name, item in value.items()}
    return type(value)(map(unwrapped, value)) if type(value) in (tuple, list) else value


@both()
@EACH_LAYER
def test_overrides_rnn(library: ModuleType, name: str) -> None:
    """torch's test_overrides.py, test_rnn: the regression test of gh-55868."""
    module, x = getattr(library, name)(10, 20, 2), torch.randn(1, 5, 10)
    found, expected = module(Wrapper(x)), module(x)
    assert torch.equal(unwrapped(found[0]), expected[0])


@both()
def test_preserve_tuple(library: ModuleType) -> None:
    """torch's test_quantize_fx.py: fx records a layer as one node, and its states as a tuple."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = library.LSTM(5, 6)

        def forward(self, x: Tensor, state: list[Tensor]) -> Any:
            return self.lstm(x, (state[0], state[1]))

    model, x, state = Model(), torch.randn(4, 3, 5), [torch.randn(1, 3, 6), torch.randn(1, 3, 6)]
    graph = torch.fx.symbolic_trace(model)
    (node,) = (node for node in graph.graph.nodes if node.target == "lstm")
    assert node.op == "call_module"
    assert type(node.args[1]) is tuple
    assert torch.equal(graph(x, state)[0], model(x, state)[0])


@BOTH
def test_submodule_manipulation_API(library: ModuleType) -> None:
    """torch's test_fx.py: a layer is added to a traced model, used by no node, and removed."""
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3)))
    assert graph.add_submodule("branch.rnn", library.RNN(10, 20, 2))
    assert isinstance(graph.get_submodule("branch.rnn"), library.RNN)
    assert "branch.rnn.weight_hh_l1" in graph.state_dict()
    graph.delete_all_unused_submodules()
    assert "branch.rnn" not in dict(graph.named_modules())
    graph.graph.lint()


# torch.jit.trace


def reloaded(traced: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


@BOTH
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated", "ignore::torch.jit.TracerWarning")
@EACH_LAYER
def test_export_rnn_and_export_lstm(library: ModuleType, name: str) -> None:
    """torch's test_jit.py: traced, saved and loaded; then more steps, and for RNN and GRU more rows."""
    model, count = Ragged(getattr(library, name)(10, 20, 2)), 2 if name == "LSTM" else 1
    states = [torch.randn(2, 3, 20) for _ in range(count)]
    traced = torch.jit.trace(model, (torch.randn(5, 3, 10), torch.tensor([3, 2, 1]), *states))
    loaded = reloaded(traced)
    rows = 3 if name == "LSTM" else 4
    x, lengths = torch.randn(7, rows, 10), torch.tensor([7, 5, 2, 1][:rows])
    states = [torch.randn(2, rows, 20) for _ in range(count)]
    expected = model(x, lengths, *states)
    assert_close_by_name({"output": traced(x, lengths, *states)}, {"output": expected}, 0)
    assert_close_by_name({"output": loaded(x, lengths, *states)}, {"output": expected}, 0)


class Predictor(nn.Module):
    """Two cells and a linear layer, which read a series and then go on from their own predictions."""

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.cell1, self.cell2 = library.LSTMCell(1, 51), library.LSTMCell(51, 51)
        self.linear = nn.Linear(51, 1)

    def forward(self, series: Tensor) -> Tensor:
        states1 = states2 = (series.new_zeros(len(series), 51), series.new_zeros(len(series), 51))
        outputs: list[Tensor] = []
        for k in range(series.size(1) + 2):
            states1 = self.cell1(series[:, k : k + 1] if k < series.size(1) else outputs[-1], states1)
            states2 = self.cell2(states1[0], states2)
            outputs.append(self.linear(states2[0]))
        return torch.cat(outputs, 1)


@BOTH
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated", "ignore::torch.jit.TracerWarning")
def test_time_sequence_prediction(library: ModuleType) -> None:
    """torch's jit/test_models.py, whose cells are scripted before they are traced; ours can only be traced."""
    model, series = Predictor(library), torch.rand(3, 4)
    traced = torch.jit.trace(model, series, check_inputs=[(torch.rand(3, 4),)])
    wrt = [series.requires_grad_(), *model.parameters()]
    for found in (traced(series), reloaded(traced)(series)):
        assert torch.equal(found, model(series))
    pairs = [torch.autograd.grad(run(series).sum(), wrt) for run in (traced, model)]
    named = [{str(k): t for k, t in enumerate(grads)} for grads in pairs]
    assert_close_by_name(*named, 6 * 2 * (3 * 51 + 10) + 18)


# Dynamo, export, fake tensors, the profiler


@BOTH
def test_aot_autograd_LSTM(library: ModuleType) -> None:
    """torch's dynamo/test_aot_autograd.py: an input whose steps are adjacent in memory."""
    model = Layer(library.LSTM(8, 8, num_layers=2, bidirectional=True))
    x = torch.empty_strided((9, 4, 8), (1, 9 * 8, 9)).normal_()
    found, expected = torch.compile(model, backend="aot_eager")(x), model(x)
    for mine, wanted in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert_close_by_name({"t": mine}, {"t": wanted}, 2 * 9 * (3 * 8 + 10))


@BOTH
def test_export_dynamo_config(library: ModuleType) -> None:
    """torch's export/test_export.py: a strict export of a layer in a model, here with what it computes."""
    model, x = Layer(library.LSTM(4, 5)), torch.rand(5, 4)
    program = torch.export.export(model, (x,), strict=True)
    assert_close_by_name({"output": program.module()(x)[0]}, {"output": model(x)[0]}, 5 * (2 * 5 + 4 + 10))


@BOTH
def test_fake_tensor_lstm(library: ModuleType) -> None:
    """torch's test_fake_tensor.py, test_cuda_lstm, on a CPU: shapes of results and gradients without values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_fallback_kernels=False):
        lstm = library.LSTM(2, 3, 2, proj_size=2)
        output, (h_n, c_n) = lstm(torch.randn(4, 5, 2), (torch.randn(2, 5, 2), torch.randn(2, 5, 3)))
        output.sum().backward()
        assert (output.shape, h_n.shape, c_n.shape) == ((4, 5, 2), (2, 5, 2), (2, 5, 3))
        assert all(p.grad is not None and p.grad.shape == p.shape for p in lstm.parameters())


@BOTH
def test_profiler_aggregation_lstm(library: ModuleType, tmp_path: Any) -> None:
    """torch's test_autograd.py: the profiler's tables and its trace name the operator, with input shapes."""
    lstm = library.LSTM(10, 20, 2)
    with torch.autograd.profiler.profile(record_shapes=True) as profile:
        for _ in range(3):
            lstm(torch.randn(5, 3, 10), (torch.randn(2, 3, 20), torch.randn(2, 3, 20)))
    operator = "aten::lstm" if library is nn else "seqcls_fast::rnn_forward"
    (event,) = (e for e in profile.key_averages() if e.key == operator)
    assert event.count == 3 * (1 if library is nn else 2)  # ours is called for each layer
    assert operator in profile.table(sort_by="self_cpu_time_total")
    assert "[5, 3, 10]" in profile.key_averages(group_by_input_shape=True).table()
    assert profile.self_cpu_time_total > 0
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    assert operator in (tmp_path / "trace.json").read_text()


# differences by design


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:`torch.jit.*` is deprecated")
@EACH_LAYER
def test_nn_LSTM_and_nn_GRU_scripted(name: str) -> None:
    """torch's test_jit.py, test_nn_LSTM, test_nn_LSTM_with_layers and test_nn_GRU."""
    torch.jit.script(Layer(getattr(nn, name)(5, 5)).layer)
    with pytest.raises(RuntimeError, match=rf"torch\.jit\.script cannot compile seqcls_fast\.{name}: use torch\.jit"):
        torch.jit.script(getattr(sf, name)(5, 5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_quantized_rnn(name: str) -> None:
    """torch's test_quantize_fx.py, test_rnn and test_rnn_cell, and test_compare_model_stub_lstm_dynamic: quantization
    swaps torch.nn's own classes alone, so ours stay in float until they are reverted."""
    quantize = torch.ao.quantization.quantize_dynamic
    model = nn.Sequential(getattr(nn, name)(4, 5))
    assert type(quantize(model)[0]).__module__.startswith("torch.ao.nn.quantized.dynamic")
    sf.convert(model)
    assert type(quantize(model)[0]) is getattr(sf, name)
    sf.revert(model)
    assert type(quantize(model)[0]).__module__.startswith("torch.ao.nn.quantized.dynamic")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_static_lstm() -> None:
    """torch's test_quantize_fx.py, test_static_lstm and its two sisters, and test_custom_module_lstm."""
    quantization = torch.ao.quantization
    model = nn.Sequential(nn.LSTM(4, 5)).eval()
    kinds = []
    for change in (lambda model: None, sf.convert, sf.revert):
        change(model)
        model.qconfig = quantization.default_qconfig
        kinds.append(type(quantization.prepare(model)[0]))
    assert kinds == [torch.ao.nn.quantizable.LSTM, sf.LSTM, torch.ao.nn.quantizable.LSTM]


def test_reference_quantized_rnn() -> None:
    """torch's test_quantized_module.py, test_rnn: it sets the list of weights, and torch computes with that list."""
    theirs, ours, x = nn.LSTM(3, 7, 2), sf.LSTM(3, 7, 2), torch.randn(4, 2, 3)
    before = theirs(x)[0]
    theirs._flat_weights = [weight.round(decimals=1) for weight in theirs._flat_weights]
    assert not torch.equal(theirs(x)[0], before)
    with pytest.raises(RuntimeError, match="_flat_weights: expected the module's own parameters"):
        ours._flat_weights = [weight.round(decimals=1) for weight in ours._flat_weights]


@EACH_LAYER
def test_expanded_weights(name: str) -> None:
    """torch's test_expanded_weights.py, test_module: torch's private per-sample gradients know torch's layers alone.
    Those of torch.func are the same numbers, for ours too."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    theirs, ours = (Layer(getattr(library, name)(3, 4, batch_first=True).double()) for library in (nn, sf))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    call_for_per_sample_grads(theirs, batch_size=5, loss_reduction="sum")(x)[0].sum().backward()
    with pytest.raises(RuntimeError, match="Expanded Weights encountered but cannot handle"):
        call_for_per_sample_grads(ours, batch_size=5, loss_reduction="sum")(x)

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(ours, weights, row[None])[0].sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))({n: p.detach() for n, p in ours.named_parameters()}, x)
    wanted = {n: p.grad_sample for n, p in theirs.named_parameters()}  # type: ignore[attr-defined]
    assert_close_by_name(found, wanted, 2 * 6 * (3 * 4 + 10) + 6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_export() -> None:
    """torch's test/onnx: torch.onnx.export cannot translate our operators; `to_onnx` can."""
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    with pytest.raises(torch.onnx.OnnxExporterError):
        torch.onnx.export(sf.LSTM(4, 5).eval(), (torch.randn(3, 2, 4),), dynamo=True, verbose=False)
