"""The options of RNN, GRU and LSTM as modules: constructors, parameters, copies, and torch's tools around them.

What they compute is tested in test_options_papers.py and the files beside it.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import seqcls_fast as sf

T, B, I, H = 4, 3, 3, 5
NORMS = ["weight_ln_ih_l0", "weight_ln_hh_l0"]
# Each option with the parameters that it adds to one layer of one direction, and the shapes of these.
OPTIONS: list[tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = [
    ("RNN", {"layer_norm": True}, dict.fromkeys(NORMS, (H,))),
    ("RNN", {"layer_norm": True, "nonlinearity": "relu"}, dict.fromkeys(NORMS, (H,))),
    ("RNN", {"zoneout": 0.2}, {}),
    ("RNN", {"recurrent_dropout": 0.2}, {}),
    ("RNN", {"weight_drop": 0.2}, {}),
    ("RNN", {"learn_initial_state": True}, {"h_reset_l0": (1, H)}),
    ("GRU", {"layer_norm": True}, dict.fromkeys(NORMS, (3 * H,))),
    ("GRU", {"reset_after": False}, {}),
    ("GRU", {"recurrent_dropout": 0.2, "recurrent_dropout_kind": "candidate"}, {}),
    ("GRU", {"reset_after": False, "zoneout": 0.1, "weight_drop": 0.3, "learn_initial_state": True},
     {"h_reset_l0": (1, H)}),
    ("LSTM", {"layer_norm": True}, dict.fromkeys(NORMS, (4 * H,)) | {"weight_ln_c_l0": (H,), "bias_ln_c_l0": (H,)}),
    ("LSTM", {"zoneout": (0.1, 0.3)}, {}),
    ("LSTM", {"peephole": True}, {"weight_peephole_l0": (3, H)}),
    ("LSTM", {"learn_initial_state": True, "proj_size": 2}, {"h_reset_l0": (1, 2), "c_reset_l0": (1, H)}),
    ("LSTM", {"peephole": True, "zoneout": 0.1, "recurrent_dropout": 0.2, "weight_drop": 0.3,
              "learn_initial_state": True}, {"weight_peephole_l0": (3, H), "h_reset_l0": (1, H), "c_reset_l0": (1, H)}),
]  # fmt: skip


def named(kind: str, options: dict[str, Any]) -> str:
    return f"{kind}-{'-'.join(options)}"


OF_ALL = pytest.mark.parametrize(
    ("kind", "options", "added"), OPTIONS, ids=[named(kind, options) for kind, options, _ in OPTIONS]
)


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for part in found for t in flat(part)]


def drawn(module: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    """The results of a call with the masks of one seed."""
    torch.manual_seed(11)
    return flat(module(*args, **kwargs))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


# ---- constructors

WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *[(kind, {name: 1}, TypeError, f"{name}: expected True or False but got 1")
      for kind, names in (("RNN", ("layer_norm", "learn_initial_state")), ("GRU", ("reset_after", "layer_norm")),
                          ("LSTM", ("peephole", "layer_norm", "learn_initial_state"))) for name in names],
    *[(kind, {name: value}, error, f"{name}: expected a number from 0 to below 1 but got {text}")
      for kind, name in itertools.product(("RNN", "GRU", "LSTM"), ("recurrent_dropout", "weight_drop", "zoneout"))
      for value, error, text in ((1.0, ValueError, "1.0"), (-0.1, ValueError, "-0.1"), ("0.5", TypeError, "'0.5'"),
                                 (float("nan"), ValueError, "nan"), (True, TypeError, "True"))],
    ("LSTM", {"zoneout": (0.1, 1)}, ValueError, "zoneout: expected a number from 0 to below 1 but got 1"),
    ("LSTM", {"zoneout": (0.1, "x")}, TypeError, "zoneout: expected a number from 0 to below 1 but got 'x'"),
    ("LSTM", {"zoneout": (0.1, 0.2, 0.3)}, ValueError,
     "zoneout: expected a number or (for h, for c) but got (0.1, 0.2, 0.3)"),
    ("GRU", {"zoneout": (0.1, 0.2)}, ValueError, "zoneout: expected 0 for c, which GRU does not have, but got 0.2"),
    ("RNN", {"zoneout": (0.1, 0.2)}, ValueError, "zoneout: expected 0 for c, which RNN does not have, but got 0.2"),
    ("GRU", {"recurrent_dropout_kind": "gates"}, ValueError,
     "recurrent_dropout_kind: expected 'state' or 'candidate' but got 'gates'"),
    ("GRU", {"recurrent_dropout_kind": None}, ValueError, "expected 'state' or 'candidate' but got None"),
    ("RNN", {"recurrent_dropout_kind": "candidate"}, ValueError,
     "recurrent_dropout_kind: expected 'state' for RNN, which has no candidate, but got 'candidate'"),
    ("GRU", {"layer_norm": True, "dtype": torch.complex64}, ValueError,
     "layer_norm: expected False with torch.complex64, which torch cannot normalise, but got True"),
    ("LSTM", {"layer_norm": True, "peephole": True}, ValueError, "peephole: expected False with layer_norm=True"),
    ("GRU", {"layer_norm": True, "reset_after": False}, ValueError, "reset_after: expected True with layer_norm=True"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "error", "sentence"), WRONG)
def test_wrong_options(kind: str, options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)) as raised:
        getattr(sf, kind)(I, H, **options)
    assert raised.type is error


@pytest.mark.parametrize(
    ("kind", "name"),
    [("RNN", "peephole"), ("RNN", "reset_after"), ("GRU", "peephole"), ("LSTM", "reset_after"), ("GRUCell", "zoneout")],
)
def test_options_of_other_classes_are_no_arguments(kind: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        getattr(sf, kind)(I, H, **{name: False})


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_every_option_that_combines(kind: str) -> None:
    """What is not refused runs forward and backward, and every parameter gets a gradient."""
    choices: dict[str, list[Any]] = {
        "layer_norm": [False, True],
        "zoneout": [0.0, 0.3],
        "recurrent_dropout": [0.0, 0.3],
        "recurrent_dropout_kind": ["state"] if kind == "RNN" else ["state", "candidate"],
        "weight_drop": [0.0, 0.3],
        "learn_initial_state": [False, True],
    }
    choices |= {"GRU": {"reset_after": [True, False]}, "LSTM": {"peephole": [False, True]}}.get(kind, {})
    ran = 0
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        if options["layer_norm"] and (options.get("peephole") or not options.get("reset_after", True)):
            continue
        layer = getattr(sf, kind)(I, H, **options)
        output, _ = layer(torch.randn(T, B, I), resets=torch.rand(T, B) < 0.3)
        output.square().sum().backward()
        assert all(p.grad is not None for p in layer.parameters()), options
        ran += 1
    assert ran == {"RNN": 32, "GRU": 96, "LSTM": 96}[kind]


@OF_ALL
def test_parameters_and_first_values(kind: str, options: dict[str, Any], added: dict[str, tuple[int, ...]]) -> None:
    torch.manual_seed(5)
    layer = getattr(sf, kind)(I, H, **options)
    torch.manual_seed(5)
    torchs = {name: options[name] for name in ("nonlinearity", "proj_size") if name in options}
    theirs = getattr(nn, kind)(I, H, **torchs)
    state, plain = layer.state_dict(), theirs.state_dict()
    assert list(state)[: len(plain)] == list(plain), "torch's parameters come first"
    assert {name: tuple(t.shape) for name, t in state.items() if name not in plain} == added
    assert all(torch.equal(state[name], t) for name, t in plain.items()), "the same seed gives torch's first values"

    def check_added() -> None:
        for name in added:
            p = layer.state_dict()[name]
            if name.startswith("weight_ln"):
                assert (p == 1).all()
            elif name.startswith(("bias_ln", "h_reset", "c_reset")):
                assert (p == 0).all()
            else:
                assert p.abs().max() <= H**-0.5
                assert p.std() > 0

    check_added()
    before = {name: t.clone() for name, t in state.items()}
    for p in layer.parameters():
        nn.init.constant_(p, 7.0)
    torch.manual_seed(5)
    layer.reset_parameters()
    check_added()
    assert all(torch.equal(layer.state_dict()[name], t) for name, t in before.items())


def test_names_and_shapes_of_two_layers_and_directions() -> None:
    layer = sf.LSTM(I, H, 2, bidirectional=True, proj_size=2, layer_norm=True, learn_initial_state=True)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    for k, suffix in itertools.product((0, 1), ("", "_reverse")):
        assert shapes[f"weight_ln_ih_l{k}{suffix}"] == shapes[f"weight_ln_hh_l{k}{suffix}"] == (4 * H,)
        assert shapes[f"weight_ln_c_l{k}{suffix}"] == shapes[f"bias_ln_c_l{k}{suffix}"] == (H,)
        assert shapes[f"h_reset_l{k}"] == (2, 2)
        assert shapes[f"c_reset_l{k}"] == (2, H)
    assert "weight_peephole_l1_reverse" in sf.LSTM(I, H, 2, bidirectional=True, peephole=True).state_dict()
    assert len(layer.all_weights) == 4, "torch's list holds torch's weights"


@OF_ALL
def test_dtype_device_and_skip_init(kind: str, options: dict[str, Any], added: dict[str, tuple[int, ...]]) -> None:
    layer = getattr(sf, kind)(I, H, dtype=torch.float64, device="meta", **options)
    assert {(p.dtype, p.device.type) for p in layer.parameters()} == {(torch.float64, "meta")}
    kind_of = getattr(sf, kind)
    assert {p.device.type for p in nn.utils.skip_init(kind_of, I, H, **options).parameters()} == {"cpu"}
    moved = kind_of(I, H, **options).bfloat16()
    assert drawn(moved, torch.randn(T, B, I).bfloat16())[0].dtype == torch.bfloat16


REPRS: list[tuple[str, dict[str, Any], str]] = [
    ("RNN", {"layer_norm": True}, "RNN(3, 5, layer_norm=True)"),
    ("GRU", {"reset_after": False, "weight_drop": 0.5}, "GRU(3, 5, weight_drop=0.5, reset_after=False)"),
    ("LSTM", {"zoneout": 0.1, "num_layers": 2}, "LSTM(3, 5, num_layers=2, zoneout=(0.1, 0.1))"),
    ("LSTM", {"recurrent_dropout": 0.25}, "LSTM(3, 5, recurrent_dropout=0.25)"),
    ("LSTM", {"peephole": True, "learn_initial_state": True}, "LSTM(3, 5, peephole=True, learn_initial_state=True)"),
    ("LSTM", {"zoneout": 0, "recurrent_dropout": 0.0, "peephole": False}, "LSTM(3, 5)"),
]


@pytest.mark.parametrize(("kind", "options", "text"), REPRS)
def test_repr_shows_what_is_not_usual(kind: str, options: dict[str, Any], text: str) -> None:
    assert repr(getattr(sf, kind)(I, H, **options)) == text


def saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved, copy.copy],
                         ids=["deepcopy", "pickle", "save", "copy"])  # fmt: skip
@OF_ALL
def test_copies_keep_the_options(
    kind: str, options: dict[str, Any], added: dict[str, tuple[int, ...]], copied: Callable[[Any], Any]
) -> None:
    layer = getattr(sf, kind)(I, H, 2, **options)
    twin, x = copied(layer), torch.randn(T, B, I)
    assert repr(twin) == repr(layer)
    assert same(drawn(twin, x), drawn(layer, x))
    assert same(drawn(twin.eval(), x), drawn(layer.eval(), x))


@OF_ALL
def test_state_dicts_round_trip(kind: str, options: dict[str, Any], added: dict[str, tuple[int, ...]]) -> None:
    first, second = (getattr(sf, kind)(I, H, 2, bidirectional=True, **options) for _ in range(2))
    for p in first.parameters():
        nn.init.normal_(p)
    second.load_state_dict(first.state_dict())
    x = torch.randn(T, B, I)
    assert same(drawn(first, x), drawn(second, x))
    plain = getattr(nn, kind)(I, H, 2, bidirectional=True, **{k: v for k, v in options.items() if k == "proj_size"})
    if added:
        with pytest.raises(RuntimeError, match=f"Missing key.*{next(iter(added))}"):
            first.load_state_dict(plain.state_dict())
    else:
        first.load_state_dict(plain.state_dict())


# ---- modes and seeds


@OF_ALL
def test_training_draws_once_and_evaluation_draws_nothing(
    kind: str, options: dict[str, Any], added: dict[str, tuple[int, ...]]
) -> None:
    layer, x = getattr(sf, kind)(I, H, **options), torch.randn(T, B, I)
    draws = any(options.get(name) for name in ("zoneout", "recurrent_dropout", "weight_drop"))
    assert same(drawn(layer, x), drawn(layer, x)), "torch's seed decides the masks"
    assert same(flat(layer(x)), flat(layer(x))) != draws
    layer.eval()
    before = torch.get_rng_state()
    assert same(flat(layer(x)), flat(layer(x)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_first", [False, True])
def test_learnt_states_are_used_where_hx_is_none(batch_first: bool) -> None:
    layer = sf.LSTM(I, H, 2, bidirectional=True, learn_initial_state=True, batch_first=batch_first, proj_size=2)
    for p in layer.parameters():
        nn.init.normal_(p)
    h, c = (torch.cat([getattr(layer, f"{s}_reset_l{k}") for k in (0, 1)]) for s in "hc")
    given = h[:, None].expand(-1, B, -1), c[:, None].expand(-1, B, -1)
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    assert same(flat(layer(x)), flat(layer(x, given)))
    assert same(flat(layer(x[0])), flat(layer(x[0], (h, c))))
    zeros = torch.zeros(4, B, 2), torch.zeros(4, B, H)
    assert not same(flat(layer(x)), flat(layer(x, zeros)))
    none = flat(layer(x, lengths=[0] * B))
    assert torch.equal(none[1], given[0])
    assert torch.equal(none[2], given[1])


# ---- what looks at a layer


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("LSTM", {"peephole": True}, "weight_peephole_l0"),
        ("GRU", {"layer_norm": True}, "weight_ln_hh_l0"),
        ("LSTM", {"learn_initial_state": True}, "c_reset_l0"),
        ("RNN", {"learn_initial_state": True}, "h_reset_l0"),
    ],
)
def test_parametrized_and_replaced_parameters_are_used(kind: str, options: dict[str, Any], name: str) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    layer, x = getattr(sf, kind)(I, H, **options), torch.randn(T, B, I)
    for p in layer.parameters():
        nn.init.normal_(p)
    doubled = {key: 2 * t if key == name else t for key, t in layer.state_dict().items()}
    wanted = flat(torch.func.functional_call(layer, doubled, (x,)))
    assert not same(wanted, flat(layer(x)))
    copied = copy.deepcopy(layer)
    parametrize.register_parametrization(copied, name, Doubled())
    assert same(flat(copied(x)), wanted)
    layer.load_state_dict(doubled)
    assert same(flat(layer(x)), wanted)


@OF_ALL
def test_replicas_of_data_parallel(kind: str, options: dict[str, Any], added: dict[str, tuple[int, ...]]) -> None:
    """torch's replicate() puts the copies of the parameters in place of the parameters, as plain attributes."""
    layer, x = getattr(sf, kind)(I, H, **options), torch.randn(T, B, I)
    for p in layer.parameters():
        nn.init.normal_(p)
    replica = layer._replicate_for_data_parallel()
    replica._former_parameters = {}
    for name, p in layer.named_parameters():
        setattr(replica, name, p.clone())
    assert same(drawn(replica, x), drawn(layer, x))


def test_a_subclass_may_have_attributes_of_these_names() -> None:
    class Named(sf.LSTM):
        def __init__(self) -> None:
            super().__init__(I, H, layer_norm=True, zoneout=0.1)
            self.options, self.cell, self.zoneout, self.peephole = "mine", sf.LSTMCell(I, H), None, [1]
            self.layer_norm, self.resets = nn.LayerNorm(H), 3

        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return self.layer_norm(super().forward(input, hx)[0])

    layer = Named()
    plain = sf.LSTM(I, H, layer_norm=True, zoneout=0.1)
    plain.load_state_dict({name: t for name, t in layer.state_dict().items() if "." not in name})
    x = torch.randn(T, B, I)
    assert torch.equal(layer.eval()(x), nn.LayerNorm(H)(plain.eval()(x)[0]))


def test_convert_and_revert_leave_layers_with_options() -> None:
    model = nn.ModuleDict({"plain": nn.LSTM(I, H), "ours": sf.LSTM(I, H, peephole=True)})
    x = torch.randn(T, B, I)
    before = flat(model["ours"](x))
    for keep in (False, True):
        assert list(sf.convert(model, keep_isinstance=keep).swapped) == ["plain"]
        report = sf.revert(model)
        assert list(report.swapped) == ["plain"]
        assert [left.name for left in report.left] == []
        assert type(model["plain"]) is nn.LSTM
    assert type(model["ours"]) is sf.LSTM
    assert same(flat(model["ours"](x)), before)


@OF_ALL
def test_frozen_layers_have_the_same_bits_and_read_no_matrix(
    kind: str, options: dict[str, Any], added: dict[str, tuple[int, ...]], compiled: str
) -> None:
    layer, x, resets = getattr(sf, kind)(I, H, 2, **options), torch.randn(T, B, I), torch.rand(T, B) < 0.3
    with torch.no_grad(), sf.use_impl(compiled):
        wanted = [drawn(layer.train(mode), x, resets=resets) for mode in (True, False)]
        with sf.frozen(layer):
            for mode in (True, False):
                assert same(drawn(layer.train(mode), x, resets=resets), wanted[not mode])
            for name, parameter in layer.named_parameters():
                if name.startswith(("weight_ih", "weight_hh")):
                    parameter.data.fill_(torch.nan)
            assert same(drawn(layer, x, resets=resets), wanted[1])


def test_a_frozen_layer_drops_weights_in_training() -> None:
    """The packed weights are whole, so no call in training may read them."""
    layer, x = sf.GRU(I, H, weight_drop=0.5), torch.randn(T, B, I)
    with torch.no_grad():
        wanted = drawn(layer, x), drawn(layer.eval(), x)
        assert not same(*wanted)
        with sf.frozen(layer):
            assert same(drawn(layer.train(), x), wanted[0])
            assert same(drawn(layer.eval(), x), wanted[1])


class WithResets(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(sf, kind)(I, H, 2, **options)

    def forward(self, x: Tensor, resets: Tensor) -> Tensor:
        return self.layer(x, resets=resets)[0]


@pytest.mark.parametrize("name", ["layer", "cell"])
def test_torch_fx_records_resets(name: str) -> None:
    class OfCell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = sf.GRUCell(I, H)

        def forward(self, x: Tensor, resets: Tensor) -> Tensor:
            return self.layer(x[0], torch.ones(B, H), resets=resets[0])

    model = WithResets("LSTM", layer_norm=True) if name == "layer" else OfCell()
    graph = torch.fx.symbolic_trace(model)
    (node,) = (node for node in graph.graph.nodes if node.op == "call_module")
    assert set(node.kwargs) == {"resets"}
    x, resets = torch.randn(T, B, I), torch.rand(T, B) < 0.5
    assert torch.equal(graph(x, resets), model(x, resets))
    graph = torch.fx.symbolic_trace(model, concrete_args={"x": x})
    assert torch.equal(graph(x, resets), model(x, resets))


@pytest.mark.parametrize(
    ("kind", "options"), [("RNN", {}), ("LSTM", {"peephole": True, "learn_initial_state": True}),
                          ("GRU", {"zoneout": 0.2, "recurrent_dropout": 0.2}), ("LSTM", {"layer_norm": True})],
)  # fmt: skip
def test_torch_compile_in_one_graph(kind: str, options: dict[str, Any]) -> None:
    model, x, resets = WithResets(kind, **options), torch.randn(T, B, I), torch.rand(T, B) < 0.5
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    wanted, found = drawn(model, x, resets), drawn(compiled, x, resets)
    torch.testing.assert_close(found, wanted)
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(t[0].sum(), parameters) for t in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("kind", "options"), [("RNN", {}), ("LSTM", {"layer_norm": True, "learn_initial_state": True}),
                          ("GRU", {"zoneout": 0.2, "reset_after": False})],
)  # fmt: skip
def test_torch_export_and_jit_trace_take_resets(kind: str, options: dict[str, Any]) -> None:
    model, x, resets = WithResets(kind, **options).eval(), torch.randn(T, B, I), torch.rand(T, B) < 0.5
    shapes = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
    program = torch.export.export(model, (x, resets), dynamic_shapes=(shapes, shapes))
    assert any("rnn_layer" in str(node.target) for node in program.graph.nodes), "one operator for each layer"
    longer, others = torch.randn(9, 2, I), torch.rand(9, 2) < 0.5
    traced = torch.jit.trace(model, (x, resets))
    for found in (program.module(), traced):
        torch.testing.assert_close(found(longer, others), model(longer, others))
    wanted = torch.autograd.grad(model(longer, others).sum(), list(model.parameters()))
    exported = program.module()
    own = dict(exported.named_parameters())
    leaves = [own[name] for name, _ in model.named_parameters()]
    torch.testing.assert_close(torch.autograd.grad(exported(longer, others).sum(), leaves), wanted)


def test_numbers_of_other_kinds() -> None:
    assert repr(sf.GRU(I, H, zoneout=np.float64(0.5))) == "GRU(3, 5, zoneout=(0.5, 0.0))"
    assert repr(sf.LSTM(I, H, zoneout=[0, 0.5])) == "LSTM(3, 5, zoneout=(0.0, 0.5))"


def test_torchs_quantization_warns() -> None:
    with pytest.warns(UserWarning, match=r"seqcls_fast\.LSTM stays in float"):
        sf.LSTM(I, H, peephole=True).qconfig = None


# ---- resets


X = torch.zeros(T, B, I)
PACKED = nn.utils.rnn.pack_sequence([torch.zeros(n, I) for n in (2, 4, 1)], enforce_sorted=False)
OTHER = nn.utils.rnn.pack_sequence([torch.zeros(n).bool() for n in (4, 2, 1)], enforce_sorted=False)
LONGER = nn.utils.rnn.pack_sequence([torch.zeros(n).bool() for n in (2, 4, 2)], enforce_sorted=False)
BAD_RESETS: list[tuple[Any, Any, type[Exception], str]] = [
    (X, torch.zeros(B, T, dtype=torch.bool), RuntimeError,
     "resets: expected shape (4, 3), that of the input without its features, but got (3, 4)"),
    (X, torch.zeros(T, B, 1, dtype=torch.bool), RuntimeError, "resets: expected shape (4, 3)"),
    (X[:, 0], torch.zeros(T, 1, dtype=torch.bool), RuntimeError, "resets: expected shape (4,)"),
    (X, torch.zeros(T, B), TypeError, "resets: expected torch.bool but got torch.float32"),
    (X, torch.zeros(T, B, dtype=torch.int64), TypeError, "resets: expected torch.bool but got torch.int64"),
    (X, torch.zeros(T, B, dtype=torch.bool, device="meta"), RuntimeError,
     "resets: expected a tensor on cpu, like the input, but got meta"),
    (X, "no", TypeError, "resets: expected a tensor of booleans but got str"),
    (X, OTHER, TypeError, "resets: expected a tensor, as the input is one, but got a PackedSequence"),
    (PACKED, OTHER, RuntimeError, "resets: expected a PackedSequence with its rows in the input's order"),
    (PACKED, LONGER, RuntimeError, "resets: expected a PackedSequence with the batch_sizes of the input's"),
    (PACKED, torch.zeros(T, B, dtype=torch.bool), RuntimeError, "resets: expected shape (7,)"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(("x", "resets", "error", "sentence"), BAD_RESETS)
def test_wrong_resets(x: Any, resets: Any, error: type[Exception], sentence: str, kind: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        getattr(sf, kind)(I, H)(x, resets=resets)


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_wrong_resets_of_cells(kind: str) -> None:
    cell = getattr(sf, kind)(I, H)
    with pytest.raises(RuntimeError, match=re.escape("resets: expected shape (3,)")):
        cell(X[0], resets=torch.zeros(B, 1, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=re.escape("resets: expected shape ()")):
        cell(X[0, 0], resets=torch.zeros(1, dtype=torch.bool))
    with pytest.raises(TypeError, match="resets: expected a tensor of booleans but got str"):
        cell(X[0], resets="x")


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_start_from_zeros_where_they_are_reset(kind: str) -> None:
    cell, x, resets = getattr(sf, kind)(I, H), torch.randn(B, I), torch.tensor([True, False, True])
    h, c = torch.randn(B, H), torch.randn(B, H)
    kept = ~resets[:, None]
    hx, fresh = ((h, c), (h * kept, c * kept)) if kind == "LSTMCell" else (h, h * kept)
    assert same(flat(cell(x, hx, resets=resets)), flat(cell(x, fresh)))
    one = (h[0], c[0]) if kind == "LSTMCell" else h[0]
    assert same(flat(cell(x[0], one, resets=True)), flat(cell(x[0])))
