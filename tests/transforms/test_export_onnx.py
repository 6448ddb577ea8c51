"""``to_onnx``: the content of the file, and that onnxruntime's results are those of the model.

Layers are exported with dynamic T and B, and run with other shapes and lengths than they were exported with.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import seqcls_fast as sf
from seqcls_fast import _ext, export
from seqcls_fast.export import to_onnx
from support.tolerances import assert_close_by_name

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(_ext.C is None, reason="exported programs hold the compiled op")

TERMS = 16  # to_onnx promises 2e-6 of a result's scale in float32
T, B, I, H = 5, 3, 4, 6
SHAPES = [(T, B), (1, 1), (2, 7), (9, 4)]
LENGTHS: dict[str, Callable[[int, int], list[int]]] = {
    "full": lambda t, b: [t] * b,
    "ragged": lambda t, b: [1 + 3 * k % t for k in range(b)],
    "some_empty": lambda t, b: [(t + k) % (t + 1) for k in range(b)],
    "all_empty": lambda t, b: [0] * b,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
AXES = ("bidirectional", "deep", "batch_first", "bias", "state", "lengths", "want_output")
AROUND = {"Transpose", "Reshape", "Cast", "Equal", "Unsqueeze", "Where", "Split", "Concat"}  # other nodes of a layer


def pairwise() -> list[Any]:
    """16 cases that have every pair of values of every two axes: each axis is the parity of some bits of 0 to 15."""
    cases = []
    for run in range(16):
        kind = list(KINDS)[run & 3]
        on = [axis for axis, mask in zip(AXES, (4, 5, 6, 8, 9, 10, 12), strict=True) if (run & mask).bit_count() % 2]
        cases.append(pytest.param(kind, on, id="-".join([kind, *on])))
    return cases


class Finals(nn.Module):
    """A layer of which only the final states are used."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor, hx: Any = None, *, lengths: Tensor | None = None) -> Any:
        return self.layer(input, hx, lengths=lengths, want_output=False)[1]


class File:
    """A written file, which is checked and loaded in onnxruntime."""

    def __init__(self, path: Path) -> None:
        onnx.checker.check_model(str(path), full_check=True)
        self.model = onnx.load(path)
        self.count = Counter(node.op_type for node in self.model.graph.node)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        names = [value.name for value in self.session.get_inputs()]
        feeds = dict(zip(names, (t.numpy() for t in inputs), strict=True))
        return [torch.from_numpy(result) for result in self.session.run(None, feeds)]

    def dims(self) -> list[list[Any]]:
        shapes = [value.type.tensor_type.shape.dim for value in self.model.graph.output]
        return [[dim.dim_param or dim.dim_value for dim in shape] for shape in shapes]


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., File]:
    def export_to_file(*args: Any, **kwargs: Any) -> File:
        to_onnx(*args, f=tmp_path / "model.onnx", **kwargs)
        return File(tmp_path / "model.onnx")

    return export_to_file


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in flat(part)]


def assert_agree(file: File, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        wanted = flat(model(*args, **kwargs))
    found = file(*flat(args), *kwargs.values())
    assert_close_by_name(dict(enumerate(found)), dict(enumerate(wanted)), TERMS)


@pytest.mark.parametrize(("kind", "on"), pairwise())
def test_layers(kind: str, on: list[str], exported: Callable[..., File]) -> None:
    operator, options = KINDS[kind]
    layers = 3 if "deep" in on else 1
    options = options | {name: name in on for name in ("bidirectional", "batch_first", "bias")}
    model = getattr(sf, operator)(I, H, layers, **options)
    model = model.eval() if "want_output" in on else Finals(model).eval()
    count = layers * (2 if "bidirectional" in on else 1)
    states = 2 if kind == "lstm" else 1

    def inputs(t: int, b: int, pattern: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = [torch.randn((b, t, I) if "batch_first" in on else (t, b, I))]
        if "state" in on:
            hx = [torch.randn(count, b, H) for _ in range(states)]
            args.append(tuple(hx) if kind == "lstm" else hx[0])
        return tuple(args), {"lengths": torch.tensor(LENGTHS[pattern](t, b))} if "lengths" in on else {}

    shapes: dict[str, Any] = {"input": {0: "B", 1: "T"} if "batch_first" in on else {0: "T", 1: "B"}}
    if "state" in on:
        shapes["hx"] = ({1: "B"}, {1: "B"}) if kind == "lstm" else {1: "B"}
    if "lengths" in on:
        shapes["lengths"] = {0: "B"}
    args, kwargs = inputs(T, B, "ragged")
    file = exported(model, args, kwargs=kwargs, dynamic_shapes=shapes)

    assert file.count[operator] == layers
    assert set(file.count) <= {operator, *AROUND}
    assert {node.domain for node in file.model.graph.node} == {""}
    assert [entry.domain for entry in file.model.opset_import] == [""]
    assert not file.model.functions
    output = [["B", "T"] if "batch_first" in on else ["T", "B"]] if "want_output" in on else []
    assert file.dims() == [[*outer, count // layers * H] for outer in output] + [[count, "B", H]] * states
    for t, b in SHAPES:
        for pattern in LENGTHS if "lengths" in on else ["full"]:
            args, kwargs = inputs(t, b, pattern)
            assert_agree(file, model, *args, **kwargs)


def test_padding_is_not_read(exported: Callable[..., File]) -> None:
    model, x, lengths = sf.LSTM(I, H, 2, bidirectional=True), torch.randn(T, B, I), torch.tensor([5, 0, 2])
    file = exported(model, (x,), kwargs={"lengths": lengths})
    x[2:, 2] = float("nan")
    x[:, 1] = float("inf")
    assert_agree(file, model, x, lengths=lengths)


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("state", [False, True])
def test_cells(kind: str, state: bool, exported: Callable[..., File]) -> None:
    model = getattr(sf, kind)(I, H)

    def inputs(b: int) -> tuple[Any, ...]:
        hx = (torch.randn(b, H), torch.randn(b, H))
        return (torch.randn(b, I), *([hx if kind == "LSTMCell" else hx[0]] if state else []))

    hx_shape = ({0: "B"}, {0: "B"}) if kind == "LSTMCell" else {0: "B"}
    file = exported(model, inputs(3), dynamic_shapes=({0: "B"}, *([hx_shape] if state else [])))
    assert file.count[kind.removesuffix("Cell")] == 1
    assert_agree(file, model, *inputs(8))


def test_unbatched(exported: Callable[..., File]) -> None:
    model = sf.LSTM(I, H, 2, bidirectional=True)
    hx, lengths = (torch.randn(4, H), torch.randn(4, H)), torch.tensor(3)
    shapes = {"input": {0: "T"}, "hx": ({}, {}), "lengths": {}}
    file = exported(model, (torch.randn(T, I), hx), kwargs={"lengths": lengths}, dynamic_shapes=shapes)
    for t, length in ((4, 4), (9, 0)):
        assert_agree(file, model, torch.randn(t, I), hx, lengths=torch.tensor(length))


class Classifier(nn.Module):
    """Embedding, layer and head, with dropout, so that the result shows whether it is in training mode."""

    def __init__(self, packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.embedding, self.dropout, self.packed = nn.Embedding(11, I), nn.Dropout(0.5), packed
        self.encoder = nn.ModuleDict({"lstm": sf.LSTM(I, H, 2, batch_first=True, dropout=0.5, **options)})
        self.head = nn.Linear(H, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        x, lstm = self.dropout(self.embedding(tokens)), self.encoder["lstm"]
        if self.packed:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(lstm(x)[1][0][-1])
        scores = self.head(lstm(x, lengths=lengths, want_output=False)[1][0][-1])
        return -scores if self.training else scores


TOKENS = (torch.randint(11, (B, T), generator=torch.Generator().manual_seed(3)), torch.tensor([5, 1, 3]))


def test_model(exported: Callable[..., File]) -> None:
    """A model's mode and the use of the reference make no difference and are left as they are; names can be given."""
    model = Classifier().train()
    model.head.eval()
    before = [module.training for module in model.modules()]
    shapes = {"tokens": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}
    names = {"input_names": ["tokens", "steps"], "output_names": ["scores"], "opset_version": 21}
    with sf.use_impl("reference"):
        file = exported(model, TOKENS, dynamic_shapes=shapes, **names)
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert file.count["LSTM"] == 2
    assert [node.output[0] for node in file.model.graph.node if node.op_type == "LSTM"][1] == ""  # the last has no Y
    assert [value.name for value in file.session.get_inputs()] == ["tokens", "steps"]
    assert file.session.get_outputs()[0].name == "scores"
    assert file.dims() == [["batch", 3]]
    assert file.model.opset_import[0].version == 21
    assert_agree(file, model.eval(), torch.randint(11, (7, 9)), torch.tensor([9, 0, 3, 4, 9, 1, 2]))


def test_large_weights_are_stored_once_and_in_order(exported: Callable[..., File]) -> None:
    model = sf.GRU(400, 400)  # larger than the constants that torch computes in advance
    file = exported(model, (torch.randn(2, 1, 400),))
    assert file.count == {"GRU": 1, "Transpose": 1, "Reshape": 1}
    stored = sum(onnx.numpy_helper.to_array(t).nbytes for t in file.model.graph.initializer)
    assert stored == sum(p.nbytes for p in model.parameters()) + 3 * 8  # and the shape of the output


def test_float16(exported: Callable[..., File]) -> None:
    model, x = sf.GRU(I, H, bidirectional=True, dtype=torch.float16), torch.randn(T, B, I).half()
    assert_agree(exported(model, (x,)), model, x)


def test_float64_is_standard_onnx() -> None:
    """onnxruntime has no float64 kernels, so the file is only checked against the standard."""
    program = to_onnx(sf.LSTM(I, H, dtype=torch.float64), (torch.randn(T, B, I, dtype=torch.float64),))
    onnx.checker.check_model(program.model_proto, full_check=True)


class Functional(nn.Module):
    """A model that calls rnn_layer and holds none of our modules, so the export cannot check them before."""

    def __init__(self, dtype: torch.dtype, projected: bool) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(4 * H, I), torch.randn(4 * H, 2 if projected else H)])
        self.w_hr = nn.ParameterList([torch.randn(2, H)] if projected else [])
        self.to(dtype)

    def forward(self, x: Tensor) -> Any:
        w_ih, w_hh = self.weights
        return sf.rnn_layer(x, [w_ih], [w_hh], w_hr=list(self.w_hr), cell="lstm")[1]


class OverIds(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return sf.rnn_layer(ids, [torch.zeros(3 * H, I)], [torch.zeros(3 * H, H)], cell="gru")[1]


X = torch.zeros(T, B, I)
PROJECTION = "ONNX's LSTM has no projection; expected"
PACKED = "expected a padded input with lengths= but got a PackedSequence"
BFLOAT16 = "onnxruntime has no bfloat16 RNN, GRU or LSTM; expected float32 or float16"
REFUSED = {
    "projection": (Classifier(proj_size=2), TOKENS, f"encoder.lstm: {PROJECTION} proj_size=0 but got 2"),
    "packed": (sf.GRU(I, H), (pack_sequence([X[:, 0]]),), f"model: {PACKED}"),
    "packed inside": (Classifier(packed=True), TOKENS, f"encoder.lstm: {PACKED}"),
    "bfloat16": (sf.GRUCell(I, H).bfloat16(), (X[0].bfloat16(),), f"model: {BFLOAT16}"),
    "functional projection": (Functional(torch.float32, True), (X,), f"w_hr: {PROJECTION} no w_hr"),
    "ids": (OverIds(), (torch.zeros(T, B, dtype=torch.int64),), "x: ONNX's layers take no ids; expected features"),
    "functional bfloat16": (Functional(torch.bfloat16, False), (X.bfloat16(),), f"x: {BFLOAT16}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path) -> None:
    """The error is one sentence; the model and an existing file stay as they are."""
    model, args, sentence = REFUSED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(NotImplementedError) as caught:
        to_onnx(model, args, path)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.onnx", b"old")]


def test_other_errors_are_torchs() -> None:
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="input_size"):
        to_onnx(sf.GRU(I + 1, H), (X,))
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module but got function"):
        to_onnx(flat, (X,))  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}.*pip install "seqcls-fast\[export\]"'):
        to_onnx(sf.GRU(I, H), (X,))


def test_missing_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "C", None)
    with pytest.raises(RuntimeError, match="needs the compiled extension"):
        to_onnx(sf.GRU(I, H), (X,))


def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Any, destination: Path) -> None:
        destination.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        to_onnx(sf.GRU(I, H), (X,), path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.onnx", b"old")]


def test_large_models_are_two_files(
    exported: Callable[..., File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    replaced, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: replaced.append(Path(new).name) or replace(old, new))
    model = sf.GRU(I, H)
    assert_agree(exported(model, (X,)), model, torch.randn(T, B, I))
    assert replaced[-2:] == ["model.onnx.data", "model.onnx"]  # the weights are in place before the model
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
