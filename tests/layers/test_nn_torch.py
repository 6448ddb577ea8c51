"""Equality with torch.nn for all combinations of constructor arguments, and torch's own module tests run on ours.

For every dtype, results are compared with torch.nn in float64 with exactly the same weights. torch's module database
has the inputs, reference functions and errors of its own test suite; the checks below are those of that suite.
"""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, ModuleInfo, ModuleInput, module_db

import seqcls_fast as sf
from support.tolerances import assert_close_by_name
from support.twins import B, H, I, T, Tensors, gradients, hx_of, named, x_of

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS = {  # name -> ours, torch's, options, proj_sizes
    "rnn_tanh": (sf.RNN, nn.RNN, {}, (0,)),
    "rnn_relu": (sf.RNN, nn.RNN, {"nonlinearity": "relu"}, (0,)),
    "gru": (sf.GRU, nn.GRU, {}, (0,)),
    "lstm": (sf.LSTM, nn.LSTM, {}, (0, 2)),
}


def constructors() -> Iterator[Any]:
    for kind, (sf_class, nn_class, fixed, proj_sizes) in KINDS.items():
        for bias, batch_first, bidirectional, num_layers, proj_size in product(
            (True, False), (False, True), (False, True), (1, 2, 3), proj_sizes
        ):
            options = fixed | {
                "num_layers": num_layers,
                "bias": bias,
                "batch_first": batch_first,
                "bidirectional": bidirectional,
                "dropout": 0.0,
            }
            if proj_size:
                options["proj_size"] = proj_size
            flags = "".join(
                letter for letter, on in zip("bfdp", (bias, batch_first, bidirectional, proj_size), strict=True) if on
            )
            yield pytest.param(sf_class, nn_class, options, id=f"{kind}-{num_layers}{flags}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sf_class", "nn_class", "options"), list(constructors()))
def test_results_and_gradients_are_torchs(
    sf_class: type, nn_class: type, options: dict[str, Any], dtype: torch.dtype
) -> None:
    ours, theirs = sf_class(I, H, **options, dtype=dtype), nn_class(I, H, **options, dtype=torch.float64)
    x, hx = x_of(*((B, T, I) if options["batch_first"] else (T, B, I))).to(dtype), hx_of(ours)
    states = [state.to(dtype) for state in (hx if isinstance(hx, tuple) else (hx,))]
    half = dtype.itemsize == 2
    if half and options.get("nonlinearity") == "relu":
        # rounding h may turn a unit on or off, and so its gradient: positive numbers keep all of them on
        x, states = x.abs(), [state.abs() for state in states]
        for p in ours.parameters():
            p.data.abs_()
    theirs.load_state_dict(ours.state_dict())
    layers, terms = options["num_layers"], 2 * T * (3 * H + 10) + T * B
    for given in (True, False):
        found: list[Tensors] = []
        for module, wide in ((ours, dtype), (theirs, torch.float64)):
            inputs = {"x": x.to(wide).requires_grad_()}
            inputs |= {f"hx[{k}]": state.to(wide).requires_grad_() for k, state in enumerate(states) if given}
            mine = tuple(t for name, t in inputs.items() if name != "x")
            results = named(*module(inputs["x"], None if not given else mine if len(mine) == 2 else mine[0]))
            found.append(results | gradients(results, module, **inputs))
        assert all(t is None or t.dtype == dtype for t in found[0].values())
        # in 16 bits h is rounded once per step and layer, and its gradient once per use: output, next step, their sum
        assert_close_by_name(*found, layers * (4 * T if half else terms))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_16_bit_errors_are_at_most_torchs(kind: str, dtype: torch.dtype) -> None:
    sf_class, nn_class, options, _ = KINDS[kind]
    ours, theirs = (library(32, 32, 2, **options, dtype=dtype) for library in (sf_class, nn_class))
    truth = nn_class(32, 32, 2, **options, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    truth.load_state_dict(ours.state_dict())
    x = x_of(20, 8, 32).to(dtype)
    exact = named(*truth(x.double()))
    for name in exact:
        if exact[name] is not None:
            error, theirs_error = (
                (named(*module(x))[name].double() - exact[name]).square().mean().sqrt() for module in (ours, theirs)
            )
            assert error <= theirs_error, name


# torch's own module tests

SUBSTITUTES = {
    nn.RNN: sf.RNN,
    nn.GRU: sf.GRU,
    nn.LSTM: sf.LSTM,
    nn.RNNCell: sf.RNNCell,
    nn.GRUCell: sf.GRUCell,
    nn.LSTMCell: sf.LSTMCell,
}


def substituted(info: ModuleInfo) -> ModuleInfo:
    ours = copy.copy(info)
    ours.module_cls = SUBSTITUTES[info.module_cls]
    return ours


INFOS = {info.name: (substituted(info), info) for info in module_db if info.module_cls in SUBSTITUTES}
INFO = pytest.mark.parametrize("name", INFOS)


def samples(info: ModuleInfo, dtype: torch.dtype, training: bool = True) -> list[ModuleInput]:
    """torch's inputs for a module, those with a PackedSequence included."""
    more = {"with_packed_sequence": True} if issubclass(info.module_cls, sf.RNN | sf.GRU) else {}
    make = partial(info.module_inputs_func, info, device="cpu", dtype=dtype, requires_grad=True, **more)
    torch.manual_seed(0)
    return list(make(training=training))


def build(info: ModuleInfo, sample: ModuleInput, dtype: torch.dtype = torch.float64) -> nn.Module:
    arguments = sample.constructor_input
    return info.module_cls(*arguments.args, **arguments.kwargs, device="cpu", dtype=dtype)


def tensors(value: Any) -> list[Tensor]:
    """Every floating-point tensor in nested tuples and packed sequences."""
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [t for item in value for t in tensors(item)]


def refill(value: Any, leaves: Iterator[Tensor]) -> Any:
    """`value` with its tensors taken from `leaves`."""
    if isinstance(value, Tensor):
        return next(leaves)
    if isinstance(value, PackedSequence):
        return value._replace(data=next(leaves))
    return tuple(refill(item, leaves) for item in value)


def by_index(value: Any) -> Tensors:
    return {f"result {k}": t for k, t in enumerate(tensors(value))}


WORK = 2 * 2 * 5 * (3 * 10 + 10) + 5 * 5  # the longest sample has 5 steps and rows, the widest cell 10 units, 2 layers


def test_the_database_has_all_six() -> None:
    assert len(INFOS) == len(SUBSTITUTES)
    assert all(ours.module_cls.__module__ == "seqcls_fast.nn" for ours, _ in INFOS.values())


@INFO
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_module_inputs(name: str, training: bool, dtype: torch.dtype) -> None:
    """torch's test_forward, and every gradient against torch.nn in float64."""
    ours, theirs = INFOS[name]
    packed = 0
    for sample in samples(ours, dtype, training):
        args = sample.forward_input.args
        module, twin = build(ours, sample, dtype).train(training), build(theirs, sample).train(training)
        twin.load_state_dict(module.state_dict())
        leaves = iter([t.detach().double().requires_grad_() for t in tensors(args)])
        wide = [refill(value, leaves) for value in args]
        result, expected = module(*args), twin(*wide)
        assert_close_by_name(by_index(result), by_index(expected), WORK, dtype)
        found, wanted = (
            gradients(by_index(r), m, **{f"input {k}": t for k, t in enumerate(tensors(a))})
            for r, m, a in ((result, module, args), (expected, twin, wide))
        )
        assert_close_by_name(found, wanted, WORK, dtype)
        if isinstance(args[0], PackedSequence):  # its reference_fn is for unbatched input
            packed += 1
        else:
            referred = sample.reference_fn(module, *args)
            assert_close_by_name(by_index(result), by_index(referred), WORK, dtype)
    assert packed == {"nn.RNN": 32, "nn.GRU": 16}.get(name, 0)


@INFO
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    """torch's test_grad and test_gradgrad, with respect to inputs and parameters."""
    ours, _ = INFOS[name]
    for sample in samples(ours, torch.float64):
        args = sample.forward_input.args
        module = build(ours, sample)
        weights = dict(module.named_parameters())

        def run(
            *flat: Tensor, module: Any = module, args: Any = args, names: Any = tuple(weights)
        ) -> tuple[Tensor, ...]:
            leaves = iter(flat[len(names) :])
            fresh = tuple(refill(value, leaves) for value in args)
            return tuple(tensors(torch.func.functional_call(module, dict(zip(names, flat, strict=False)), fresh)))

        leaves = [*weights.values(), *tensors(args)]
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@INFO
def test_non_contiguous_inputs(name: str) -> None:
    """torch's test_non_contiguous_tensors: results and gradients do not depend on the strides of the inputs."""
    ours, _ = INFOS[name]
    for sample in samples(ours, torch.float64):
        args = sample.forward_input.args
        module = build(ours, sample)
        found: list[Tensors] = []
        for spread in (False, True):
            leaves = [torch.stack([t, t], -1)[..., 0] if spread else t for t in map(Tensor.detach, tensors(args))]
            assert all(t.is_contiguous() is not spread or t.numel() == 1 for t in leaves)
            leaves = [t.requires_grad_() for t in leaves]
            refilled = iter(leaves)
            result = by_index(module(*[refill(value, refilled) for value in args]))
            inputs = {f"input {k}": t for k, t in enumerate(leaves)}
            found.append(result | gradients(result, module, **inputs))
        assert_close_by_name(*found, WORK)


@INFO
def test_repr_pickle_and_copies(name: str) -> None:
    """torch's test_repr, test_pickle and test_save_load."""
    ours, theirs = INFOS[name]
    for sample in samples(ours, torch.float64):
        args = sample.forward_input.args
        module = build(ours, sample)
        assert str(module) == str(build(theirs, sample))
        expected = by_index(module(*args))
        assert_close_by_name(by_index(pickle.loads(pickle.dumps(module))(*args)), expected, 0)
        assert_close_by_name(by_index(copy.deepcopy(module)(*args)), expected, 0)
        fresh = build(ours, sample)
        fresh.load_state_dict(module.state_dict())
        assert_close_by_name(by_index(fresh(*args)), expected, 0)


@INFO
def test_factory_arguments(name: str) -> None:
    """torch's test_factory_kwargs, test_device_ctx_init and test_to_empty."""
    ours, _ = INFOS[name]
    for sample in samples(ours, torch.float64):
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        plain: Callable[..., nn.Module] = partial(ours.module_cls, *args, **kwargs)
        assert {p.dtype for p in plain().parameters()} == {torch.float32}
        assert {p.dtype for p in plain(dtype=torch.float16).parameters()} == {torch.float16}
        assert {p.device.type for p in plain(device="meta").parameters()} == {"meta"}
        with torch.device("meta"):
            module = plain()
        assert {p.device.type for p in module.parameters()} == {"meta"}
        assert {p.device.type for p in module.to_empty(device="cpu").parameters()} == {"cpu"}


@INFO
@pytest.mark.filterwarnings("ignore::UserWarning")  # one construction has dropout and one layer, which warns
def test_error_inputs(name: str) -> None:
    """torch's test_errors."""
    ours, _ = INFOS[name]
    errors = ours.module_error_inputs_func(ours, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    assert len(errors) >= 4
    for error in errors:
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                ours.module_cls(*made.args, **made.kwargs)
        else:
            module = ours.module_cls(*made.args, **made.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*given.args, **given.kwargs)
