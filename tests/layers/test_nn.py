"""RNN, GRU and LSTM as modules: construction, parameters, and everything that copies, moves or replaces parameters.

Each result is compared with that of torch.nn; a test of something that torch.nn lacks says so. Every way to change a
weight is tested after an inference call, so that a kernel which kept a packed copy of the old weights is noticed.
"""

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seqcls_fast as sf
from support.tolerances import assert_close_by_name
from support.twins import OURS, PAIRS, TERMS, B, H, I, T, assert_same, gradients, hx_of, named, pair, x_of

# construction and parameters


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
@pytest.mark.parametrize("options", [
    {}, {"num_layers": 3, "bidirectional": True}, {"bias": False, "num_layers": 2}, {"dtype": torch.float64},
    {"batch_first": True, "dropout": 0.25, "num_layers": 2}, {"device": "meta"},
])  # fmt: skip
def test_parameters_are_torchs_bit_for_bit(sf_class: type, nn_class: type, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = nn_class(I, H, **options)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    ours = sf_class(I, H, **options)
    assert torch.equal(after, torch.get_rng_state())
    assert [(n, p.shape, p.dtype, p.device) for n, p in ours.named_parameters()] == [
        (n, p.shape, p.dtype, p.device) for n, p in theirs.named_parameters()
    ]
    if options.get("device") != "meta":
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
        for mine, other in zip(ours.all_weights, theirs.all_weights, strict=True):
            assert len(mine) == len(other)
            assert all(map(torch.equal, mine, other))
    attributes = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
                  "proj_size")  # fmt: skip
    assert [getattr(ours, a) for a in attributes] == [getattr(theirs, a) for a in attributes]
    assert repr(ours) == repr(theirs)


def test_positional_arguments_come_in_torchs_order() -> None:
    for ours, theirs in (
        (sf.RNN(3, 4, 2, "relu", False, True, 0.5, True), nn.RNN(3, 4, 2, "relu", False, True, 0.5, True)),
        (sf.GRU(3, 4, 2, False, True, 0.5, True), nn.GRU(3, 4, 2, False, True, 0.5, True)),
        (sf.LSTM(3, 4, 2, False, True, 0.5, True, 2), nn.LSTM(3, 4, 2, False, True, 0.5, True, 2)),
        # proj_size, device and dtype, which the signatures of torch.nn do not show
        (
            sf.RNN(3, 4, 2, "relu", False, True, 0.5, True, 0, "meta", torch.float64),
            nn.RNN(3, 4, 2, "relu", False, True, 0.5, True, 0, "meta", torch.float64),
        ),
        (
            sf.GRU(3, 4, 2, False, True, 0.5, True, 0, "meta", torch.float64),
            nn.GRU(3, 4, 2, False, True, 0.5, True, 0, "meta", torch.float64),
        ),
        (
            sf.LSTM(3, 4, 2, False, True, 0.5, True, 2, "meta", torch.float64),
            nn.LSTM(3, 4, 2, False, True, 0.5, True, 2, "meta", torch.float64),
        ),
        (
            sf.RNNCell(3, 4, False, "relu", "meta", torch.float64),
            nn.RNNCell(3, 4, False, "relu", "meta", torch.float64),
        ),
        (sf.GRUCell(3, 4, False, "meta", torch.float64), nn.GRUCell(3, 4, False, "meta", torch.float64)),
        (sf.RNNCell(3, 4, False, "relu"), nn.RNNCell(3, 4, False, "relu")),
        (sf.GRUCell(3, 4, False), nn.GRUCell(3, 4, False)),
        (sf.LSTMCell(3, 4, False), nn.LSTMCell(3, 4, False)),
    ):
        assert repr(ours) == repr(theirs)
        assert [(name, t.device, t.dtype) for name, t in ours.state_dict().items()] == [
            (name, t.device, t.dtype) for name, t in theirs.state_dict().items()
        ]
    assert sf.RNN(3, 4, 1, "relu").nonlinearity == "relu"
    assert sf.RNN(3, 4).nonlinearity == "tanh"
    assert sf.RNN(3, 4, nonlinearity="relu").mode == "RNN_RELU"


def test_signatures_are_real() -> None:
    """torch.nn lacks this: skip_init does not work with its constructors, which take *args and **kwargs."""
    for sf_class, _ in PAIRS.values():
        kinds = {p.kind for p in inspect.signature(sf_class).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        module = nn.utils.skip_init(sf_class, I, H)
        module.load_state_dict(sf_class(I, H).state_dict())
        assert module(torch.zeros(T, B, I))[0].shape == (T, B, H)


CONSTRUCTOR_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dropout": 1.5}, ValueError, "dropout should be a number in range"),
    ({"dropout": -0.1}, ValueError, "dropout should be a number in range"),
    ({"dropout": True}, ValueError, "dropout should be a number in range"),
    ({"hidden_size": 0}, ValueError, "hidden_size must be greater than zero"),
    ({"hidden_size": 4.0}, TypeError, "hidden_size should be of type int, got: float"),
    ({"input_size": 0}, ValueError, "input_size must be greater than zero"),
    ({"input_size": "3"}, TypeError, "input_size should be of type int, got: str"),
    ({"num_layers": 0}, ValueError, "num_layers must be greater than zero"),
    ({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
    ({"batch_first": 0}, TypeError, "batch_first should be of type bool, got: int"),
]


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
@pytest.mark.parametrize(("options", "error", "sentence"), CONSTRUCTOR_ERRORS)
def test_constructor_errors(
    sf_class: type, nn_class: type, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    for kind in (sf_class, nn_class):
        with pytest.raises(error, match=sentence):
            kind(**({"input_size": I, "hidden_size": H} | options))


def test_constructor_errors_of_one_class() -> None:
    for lstm in (sf.LSTM, nn.LSTM):
        with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
            lstm(3, 4, proj_size=4)
        with pytest.raises(ValueError, match="proj_size should be a positive integer"):
            lstm(3, 4, proj_size=-1)
    for other in (sf.RNN, sf.GRU, nn.RNN, nn.GRU):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
            other(3, 4, proj_size=2)
    # torch.nn takes a proj_size by position and fails at the first call
    for make in (lambda size: sf.RNN(3, 4, 1, "tanh", True, False, 0.0, False, size),
                 lambda size: sf.GRU(3, 4, 1, True, False, 0.0, False, size)):  # fmt: skip
        for size in (2, -1, "cpu"):
            with pytest.raises(ValueError, match=f"proj_size argument is only supported for LSTM.* but got {size!r}"):
                make(size)
    for rnn in (sf.RNN, nn.RNN):
        with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu'"):
            rnn(3, 4, nonlinearity="gelu")
    for kind in (sf.GRU, nn.GRU):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
            kind(3, 4, dropout=0.5)


# torch's helpers, for subclasses


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_the_classes_have_what_torchs_have(name: str) -> None:
    ours, theirs = getattr(sf, name), getattr(nn, name)
    assert set(dir(theirs)) <= set(dir(ours))
    assert ours.__constants__ == theirs.__constants__
    hints = [{key for base in kind.__mro__ for key in inspect.get_annotations(base)} for kind in (ours, theirs)]
    assert hints[1] <= hints[0]


class Own(nn.RNNBase):
    """Overrides forward with torch's helpers and torch's kernels. Mixed into a class of torch's and of ours."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        self._update_flat_weights()
        sizes, order, restore = None, None, None
        if packed := isinstance(input, PackedSequence):
            input, sizes, order, restore = input
        shapes = [self.get_expected_hidden_size(input, sizes)]
        if self.mode == "LSTM":
            shapes.append(self.get_expected_cell_size(input, sizes))  # type: ignore[operator]
        states = [input.new_zeros(shape) for shape in shapes]
        hx = self.permute_hidden(hx or (tuple(states) if len(states) == 2 else states[0]), order)
        self.check_forward_args(input, hx, sizes)
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        given = (input, sizes, hx) if packed else (input, hx)
        run = getattr(torch._VF, self.mode.lower())
        output, *finals = run(*given, self._flat_weights, *options, *([] if packed else [self.batch_first]))
        finals = self.permute_hidden(tuple(finals) if len(finals) == 2 else finals[0], restore)
        return PackedSequence(output, sizes, order, restore) if packed else output, finals


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_a_subclass_overrides_forward_as_torch_writes_it(
    sf_class: type, nn_class: type, options: dict[str, Any]
) -> None:
    projected = {"proj_size": 2} if sf_class is sf.LSTM else {}
    kinds = [type("Own", (Own, base), {}) for base in (sf_class, nn_class)]
    ours, theirs = pair(*kinds, I, H, **options, **projected)
    rows = torch.tensor([2, 5, 1, 3])
    for input in (x_of(4, 5, I), pack_padded_sequence(x_of(), rows, enforce_sorted=False)):
        assert_same(ours, theirs, input)
        plain = sf_class(I, H, **options, **projected, dtype=torch.float64)
        plain.load_state_dict(ours.state_dict())
        assert_same(plain, theirs, input)
    batch = 4 if options else 5  # of the padded input
    hx = hx_of(ours, batch)
    wrong = (hx[0], hx[1][:, 1:]) if sf_class is sf.LSTM else hx[:, 1:]
    for module in (ours, theirs):
        with pytest.raises(ValueError, match=r"RNN input dtype [(]torch[.]float32[)] does not match weight dtype"):
            module.check_forward_args(x_of(4, 5, I).float(), hx, None)
        with pytest.raises(RuntimeError, match=r"Expected hidden(\[1\])? size [(]\d, \d, 6[)], got \[\d, \d, 6\]"):
            module.check_forward_args(x_of(4, 5, I), wrong, None)
        with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
            module.check_input(x_of(4, 5, I), rows)
        same = module.permute_hidden(hx, None)
        assert same is hx


# state dicts, copies and moves


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_state_dicts_interchange(sf_class: type, nn_class: type) -> None:
    options = {"num_layers": 2, "bidirectional": True} | ({"proj_size": 2} if sf_class is sf.LSTM else {})
    ours, theirs = (kind(I, H, **options, dtype=torch.float64) for kind in (sf_class, nn_class))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with pytest.raises(AssertionError):  # the weights differ before they are loaded
        assert_same(ours, theirs, x_of())
    ours.load_state_dict(theirs.state_dict())
    assert_same(ours, theirs, x_of())
    third = nn_class(I, H, **options, dtype=torch.float64)
    third.load_state_dict(ours.state_dict())
    assert_same(ours, third, x_of())
    fourth = sf_class(I, H, **options, dtype=torch.float64)
    fourth(x_of())
    fourth.load_state_dict(theirs.state_dict(), assign=True)
    assert_same(fourth, theirs, x_of())


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_to_empty(module: nn.Module) -> nn.Module:
    moved = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    moved.load_state_dict(module.state_dict())
    return moved


def through_dtypes(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(torch.complex128).to(torch.float64)


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning", "ignore:Casting complex values:UserWarning")
@pytest.mark.parametrize("copied", [
    through_pickle, through_torch_save, copy.deepcopy, through_to_empty, through_dtypes, nn.Module.share_memory,
])  # fmt: skip
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_copies_carry_everything(sf_class: type, nn_class: type, copied: Callable[[nn.Module], nn.Module]) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, num_layers=2, bidirectional=True)
    ours(x_of())
    twin: Any = copied(ours)
    assert type(twin) is sf_class
    assert repr(twin) == repr(ours)
    assert_same(twin, theirs, x_of())
    if twin is ours:  # share_memory returns the module itself
        assert all(p.is_shared() for p in ours.parameters())
        return
    before = named(*ours(x_of()))
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert not twin(x_of())[0].any()
    assert_close_by_name(named(*ours(x_of())), before, 0)


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_flatten_parameters_changes_nothing(sf_class: type, nn_class: type) -> None:
    module = sf_class(I, H)
    before = [(id(p), p.data_ptr()) for p in module.parameters()]
    assert module.flatten_parameters() is None
    assert [(id(p), p.data_ptr()) for p in module.parameters()] == before


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_subclasses_and_parents(sf_class: type, nn_class: type) -> None:
    assert issubclass(sf_class, nn.RNNBase)
    assert not issubclass(sf_class, nn_class)  # Dynamo refuses torch.nn's RNN, GRU and LSTM
    parent = nn.ModuleDict({"a": sf_class(I, H)})
    assert next(iter(parent.state_dict())) == "a.weight_ih_l0"


# changed weights: an inference call comes first, so that packed weights are kept by then


def replace_parameters(module: nn.Module) -> None:
    for name, p in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(p.detach() + 0.5))


def step_with(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[[nn.Module], None]:
    def step(module: Any) -> None:
        optimizer = kind(module.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
        for _ in range(2):
            optimizer.zero_grad()
            module(x_of(2, 1, I).to(module.weight_hh_l0.dtype))[0].square().sum().backward()
            optimizer.step()

    return step


def write_through(write: Callable[[nn.Parameter], object]) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        for p in module.parameters():
            write(p)

    return change


def write_numpy(p: nn.Parameter) -> None:
    p.detach().numpy()[...] += 0.5


def write_one_element(p: nn.Parameter) -> None:
    p.data.view(-1)[-1] += 0.5


def swap_storage(p: nn.Parameter) -> None:
    p.data = p.data + 0.5


def write_no_grad(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.add_(0.5)


def write_inference_mode(p: nn.Parameter) -> None:
    with torch.inference_mode():
        p.data.mul_(1.5)


def norm_doubled(module: Any) -> None:
    parametrizations.weight_norm(module, "weight_hh_l0")
    module.parametrizations.weight_hh_l0.original0.data *= 2


ROUTES: dict[str, Callable[[Any], object]] = {
    "SGD": step_with(torch.optim.SGD),
    "SGD fused": step_with(torch.optim.SGD, fused=True),
    "Adam fused": step_with(torch.optim.Adam, fused=True),
    "AdamW foreach": step_with(torch.optim.AdamW, foreach=True),
    "p.data.add_": write_through(lambda p: p.data.add_(0.5)),
    "p.data =": write_through(swap_storage),
    "no_grad add_": write_through(write_no_grad),
    "inference_mode mul_": write_through(write_inference_mode),
    "numpy": write_through(write_numpy),
    "one element": write_through(write_one_element),
    "load_state_dict": lambda m: m.load_state_dict({n: p + 0.5 for n, p in m.state_dict().items()}),
    "load_state_dict assign": lambda m: m.load_state_dict({n: p + 0.5 for n, p in m.state_dict().items()}, assign=True),
    "new parameters": replace_parameters,
    "reset_parameters": lambda m: m.reset_parameters(),
    "prune": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.5),
    "weight_norm": norm_doubled,
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_changed_weights_are_seen_at_once(sf_class: type, nn_class: type, dtype: torch.dtype, route: str) -> None:
    """The layer is wide and runs one step, a size at which packed weights are kept. A second change follows."""
    wide = 48
    torch.manual_seed(0)
    module, twin = sf_class(I, wide, dtype=dtype), nn_class(I, wide, dtype=torch.float64)
    x = x_of(2, 1, I).to(dtype)
    for _ in range(2 if route not in ("prune", "weight_norm") else 1):
        with torch.inference_mode():
            before, again = module(x)[0].clone(), module(x)[0].clone()
        assert torch.equal(before, again)
        ROUTES[route](module)
        with torch.no_grad():
            for name in twin.state_dict():
                getattr(twin, name).copy_(getattr(module, name))
        with torch.inference_mode():
            after = module(x)
        assert not torch.equal(before, after[0])
        assert_close_by_name(named(*after), named(*twin(x.double())), TERMS * 4)  # 48 units instead of 2 * 6
        assert_close_by_name(named(*module(x)), named(*twin(x.double())), TERMS * 4)  # and with a graph


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_tied_weights_share_one_gradient(sf_class: type, nn_class: type) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, bidirectional=True)
    for module in (ours, theirs):
        module.weight_hh_l0_reverse = module.weight_hh_l0
    assert len(list(ours.parameters())) == 7
    assert_same(ours, theirs, x_of())
    assert_same(copy.deepcopy(ours), theirs, x_of())
    assert len(list(copy.deepcopy(ours).parameters())) == 7


class Antisymmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w - w.flip(0)


def by_parametrization(module: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight_hh_l0", Antisymmetric())


def by_weight_norm(module: nn.Module) -> None:
    parametrizations.weight_norm(module, "weight_ih_l0")


def by_old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(module, "weight_hh_l1")


def by_pruning(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    torch.manual_seed(0)
    prune.random_unstructured(module, "bias_hh_l1", amount=3)


@pytest.mark.parametrize("wrap", [by_parametrization, by_weight_norm, by_old_weight_norm, by_pruning])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_reparametrized_weights(sf_class: type, nn_class: type, wrap: Callable[[nn.Module], None]) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, num_layers=2)
    plain = named(*ours(x_of()))
    wrap(ours)
    wrap(theirs)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    assert_same(ours, theirs, x_of())
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.mul_(1.25)
            other.mul_(1.25)
    assert_same(ours, theirs, x_of())
    assert not torch.equal(plain["h_n"], named(*ours(x_of()))["h_n"])


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_other_flat_weights_are_refused(sf_class: type, nn_class: type) -> None:
    """torch.nn computes with such a list until a parameter changes. Ours reads parameters, and says so."""
    ours, _ = pair(sf_class, nn_class, I, H, num_layers=2)
    before = named(*ours(x_of()))
    for k, name in enumerate(ours._flat_weights_names):
        weights = list(ours._flat_weights)
        weights[k] = nn.Parameter(weights[k] + 1)
        with pytest.raises(
            RuntimeError, match=rf"entry {k} is another tensor than its {name}: assign to module[.]{name}"
        ):
            ours._flat_weights = weights
    assert_close_by_name(named(*ours(x_of())), before, 0)


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_flat_weights_that_torch_assigns_are_taken(sf_class: type, nn_class: type) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H)
    ours._flat_weights = list(ours.parameters())
    ours._flat_weights = [None, *ours._flat_weights[1:]]  # torch's value for a parameter that is not there
    ours._flat_weights = None
    ours._init_flat_weights()
    assert all(map(torch.Tensor.is_set_to, ours._flat_weights, ours.parameters()))
    replica = ours._replicate_for_data_parallel()
    for name, p in ours.named_parameters():
        setattr(replica, name, p.detach() * 1)  # as torch.nn.parallel.replicate does
    assert_close_by_name(named(*replica(x_of())), named(*theirs(x_of())), TERMS)
    by_parametrization(ours)
    by_parametrization(theirs)
    ours._init_flat_weights()
    assert_same(ours, theirs, x_of())


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_functional_call_uses_the_weights_it_is_given(sf_class: type, nn_class: type) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H)
    before = named(*ours(x_of()))
    weights = {name: (p * 2).detach().requires_grad_() for name, p in ours.named_parameters()}
    mine, reference = (named(*torch.func.functional_call(m, weights, (x_of(),))) for m in (ours, theirs))
    assert_close_by_name(mine, reference, TERMS)
    empty = nn.Module()
    assert_close_by_name(gradients(mine, empty, **weights), gradients(reference, empty, **weights), TERMS)
    assert_close_by_name(named(*ours(x_of())), before, 0)
