"""torch's own tests of modules (its test/test_modules.py), with its database of inputs, on torch.nn and on ours.

The database is installed with torch: constructor arguments, inputs, reference functions and errors. The checks are
written here. Of the inputs of a layer a sample is taken in which every pair of options occurs; --torch-full takes all.
Not here: test_check_inplace (no recurrent layer has the argument `inplace`), and test_cpu_gpu_parity and
test_multiple_device_transfer, whose place is tests/cuda.
"""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from support.libraries import CELLS, LAYERS, LIBRARIES
from support.tolerances import assert_close_by_name
from support.twins import Tensors, gradients

common_modules = pytest.importorskip(
    "torch.testing._internal.common_modules", reason="this release of torch installs no database of modules"
)
ModuleErrorEnum = common_modules.ModuleErrorEnum

NAMES = (*LAYERS, *CELLS)
DATABASE = {info.name.removeprefix("nn."): info for info in common_modules.module_db}
DTYPES = [torch.float64, torch.float32]
WORK = 2 * 2 * 5 * (3 * 10 + 10) + 5 * 5  # the longest sample has 5 steps and rows, the widest cell 10 units, 2 layers


def info_of(library: str, name: str) -> Any:
    """The entry of the database with torch's class or with ours."""
    info = copy.copy(DATABASE[name])
    info.module_cls = getattr(LIBRARIES[library], name)
    return info


BOTH = pytest.mark.parametrize(
    "info",
    [pytest.param(info_of(library, name), id=f"{library}-{name}") for name, library in product(NAMES, LIBRARIES)],
)


def options(sample: Any) -> list[tuple[str, str]]:
    """The constructor's arguments of a sample, and the kind of its input."""
    made, given = sample.constructor_input, sample.forward_input.args
    kind = "packed" if isinstance(given[0], PackedSequence) else f"{len(given)} arguments"
    return sorted((name, str(value)) for name, value in {**made.kwargs, "args": made.args, "input": kind}.items())


def pairwise(samples: list[Any]) -> list[Any]:
    """Few samples, chosen greedily, in which all pairs of options occur that occur in `samples`."""
    pairs = [set(combinations(options(sample), 2)) for sample in samples]
    missing: set[Any] = set().union(*pairs)
    chosen = []
    while missing:
        chosen.append(max(range(len(samples)), key=lambda k: len(pairs[k] & missing)))
        missing -= pairs[chosen[-1]]
    return [samples[k] for k in sorted(chosen)]


@pytest.fixture
def samples(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """torch's inputs for a module, those with a PackedSequence included."""
    full = request.config.getoption("torch_full")

    def make(info: Any, dtype: torch.dtype = torch.float64, training: bool = True, device: Any = "cpu") -> list[Any]:
        torch.manual_seed(0)
        more = {"with_packed_sequence": True} if info.name in ("nn.RNN", "nn.GRU") else {}
        found = list(
            info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=True, training=training, **more)
        )
        return found if full else pairwise(found)

    return make


def build(info: Any, sample: Any, **factory: Any) -> nn.Module:
    arguments = sample.constructor_input
    return info.module_cls(*arguments.args, **arguments.kwargs, **factory)


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


def by_index(value: Any, what: str = "result") -> Tensors:
    return {f"{what} {k}": t for k, t in enumerate(tensors(value))}


def test_samples_hold_every_pair_of_options() -> None:
    info = info_of("torch", "RNN")
    make = partial(info.module_inputs_func, info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)
    everything = list(make(with_packed_sequence=True))
    few = pairwise(everything)
    assert len(everything) == 64
    assert len(few) <= 16

    def pairs(found: list[Any]) -> set[Any]:
        return {pair for sample in found for pair in combinations(options(sample), 2)}

    assert pairs(few) == pairs(everything)
    assert {dict(options(sample))["input"] for sample in few} == {"packed", "1 arguments", "2 arguments"}


@BOTH
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(info: Any, training: bool, dtype: torch.dtype, samples: Callable[..., list[Any]]) -> None:
    """torch's test_forward; and every gradient is that of torch.nn in float64."""
    for sample in samples(info, dtype, training):
        args = sample.forward_input.args
        module = build(info, sample, dtype=dtype).train(training)
        twin = build(DATABASE[type(module).__name__], sample, dtype=torch.float64).train(training)
        twin.load_state_dict(module.state_dict())
        leaves = iter([t.detach().double().requires_grad_() for t in tensors(args)])
        wide = [refill(value, leaves) for value in args]
        result, expected = module(*args), twin(*wide)
        assert_close_by_name(by_index(result), by_index(expected), WORK, dtype)
        found, wanted = (
            gradients(by_index(r), m, **by_index(a, "input"))
            for r, m, a in ((result, module, args), (expected, twin, wide))
        )
        # In a layer of two units the few numbers of one gradient may cancel, so all gradients have one scale.
        assert found.keys() == wanted.keys()
        joined = ({"gradients": torch.cat([grads[n].flatten() for n in wanted])} for grads in (found, wanted))
        assert_close_by_name(*joined, WORK, dtype)
        if not isinstance(args[0], PackedSequence):  # the reference function is for unbatched input
            assert_close_by_name(by_index(result), by_index(sample.reference_fn(module, *args)), WORK, dtype)
        as_method = module.float if dtype == torch.float32 else module.double
        assert_close_by_name(by_index(as_method()(*args)), by_index(result), 0)
        assert {p.dtype for p in module.parameters()} == {dtype}


@BOTH
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives(info: Any, check: Callable[..., bool], samples: Callable[..., list[Any]]) -> None:
    """torch's test_grad and test_gradgrad: for inputs and all parameters, and for the inputs and one parameter alone.

    Each sample takes another parameter.
    """
    for k, sample in enumerate(samples(info)):
        args = sample.forward_input.args
        module = build(info, sample, dtype=torch.float64)
        weights = dict(module.named_parameters())

        def run(*flat: Tensor, module: Any = module, args: Any = args, names: Any = None) -> tuple[Tensor, ...]:
            leaves = iter(flat[len(names) :])
            fresh = tuple(refill(value, leaves) for value in args)
            given = dict(zip(names, flat, strict=False))
            return tuple(tensors(torch.func.functional_call(module, given, fresh)))

        assert check(partial(run, names=tuple(weights)), [*weights.values(), *tensors(args)], fast_mode=True)
        alone = list(weights)[k % len(weights)]
        for name, parameter in weights.items():
            parameter.requires_grad_(name == alone)
        assert check(partial(run, names=(alone,)), [weights[alone], *tensors(args)], fast_mode=True)


@BOTH
def test_non_contiguous_tensors(info: Any, samples: Callable[..., list[Any]]) -> None:
    """torch's test_non_contiguous_tensors: nothing depends on the strides of inputs or of incoming gradients."""

    def spread(t: Tensor) -> Tensor:
        return t.detach().repeat_interleave(2, -1)[..., ::2]

    for sample in samples(info):
        args = sample.forward_input.args
        module = build(info, sample, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors(module(*args))]
        found: list[Tensors] = []
        for apart, cotangents_apart in product((False, True), repeat=2):
            leaves = [(spread(t) if apart else t.detach()).requires_grad_() for t in tensors(args)]
            assert all(t.is_contiguous() is not apart for t in leaves)
            refilled = iter(leaves)
            result = tensors(module(*[refill(value, refilled) for value in args]))
            incoming = [spread(t) for t in cotangents] if cotangents_apart else cotangents
            wrt = [*module.parameters(), *leaves]
            grads = torch.autograd.grad(result, wrt, incoming)
            found.append(by_index(result) | by_index(grads, "gradient"))
        for other in found[1:]:
            assert_close_by_name(other, found[0], WORK)


@BOTH
def test_memory_format(info: Any, samples: Callable[..., list[Any]]) -> None:
    """torch's test_memory_format: contiguous inputs of 1 and 2 dimensions give contiguous results and gradients."""
    for sample in samples(info):
        args = sample.forward_input.args
        module = build(info, sample, dtype=torch.float64)
        expected = by_index(module(*args))
        for memory_format in (torch.preserve_format, torch.contiguous_format):
            result = by_index(module.to(memory_format=memory_format)(*args))
            assert_close_by_name(result, expected, 0)
            found = gradients(result, module, **by_index(args, "input"))
            assert [name for name, t in (result | found).items() if t is not None and not t.is_contiguous()] == []


@BOTH
def test_train_and_eval_modes(info: Any, samples: Callable[..., list[Any]]) -> None:
    """torch's test_if_train_and_eval_modes_differ: where the database says no, forward does not read `training`."""
    assert info.train_and_eval_differ is (info.module_cls.__name__ in LAYERS)  # layers have dropout
    for sample in samples(info):
        module = build(info, sample, dtype=torch.float64)
        if not info.train_and_eval_differ:
            del module.training
        module(*sample.forward_input.args)


@BOTH
def test_repr(info: Any, samples: Callable[..., list[Any]]) -> None:
    """torch's test_repr; and ours reads as torch's."""
    for sample in samples(info):
        twin = build(DATABASE[info.module_cls.__name__], sample)
        assert repr(build(info, sample)) == str(twin) == repr(twin)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_save_load(info: Any, dtype: torch.dtype, samples: Callable[..., list[Any]]) -> None:
    """torch's test_save_load, for torch.save, pickle and deepcopy: a copy gives the same bits."""

    def saved(value: Any, **options: Any) -> Any:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        return torch.load(file, **options)

    for sample in samples(info, dtype):
        args = sample.forward_input.args
        module = build(info, sample, dtype=dtype)
        expected = by_index(module(*args))
        whole = (saved(module, weights_only=False), pickle.loads(pickle.dumps(module)), copy.deepcopy(module))
        assert all(type(copied) is info.module_cls for copied in whole)
        state = saved(module.state_dict(), weights_only=True)
        fresh = build(info, sample, dtype=dtype)
        assert str(fresh.load_state_dict(state)) == "<All keys matched successfully>"
        for copied in (*whole, fresh):
            assert_close_by_name(by_index(copied(*args)), expected, 0)


@BOTH
def test_factory_kwargs(info: Any, samples: Callable[..., list[Any]]) -> None:
    """torch's test_factory_kwargs and test_device_ctx_init."""
    for sample in samples(info):
        plain = build(info, sample)
        assert {(p.dtype, p.device.type) for p in plain.parameters()} == {(torch.float32, "cpu")}
        for dtype, device in product((*DTYPES, torch.float16), ("cpu", "meta")):
            made = build(info, sample, dtype=dtype, device=device)
            assert {(p.dtype, p.device.type) for p in made.parameters()} == {(dtype, device)}
        with torch.device("meta"):
            abstract = build(info, sample)
        wanted = [(name, p.shape, p.stride(), p.dtype, p.requires_grad) for name, p in plain.named_parameters()]
        assert [(n, p.shape, p.stride(), p.dtype, p.requires_grad) for n, p in abstract.named_parameters()] == wanted
        assert all(p.is_meta for p in abstract.parameters())


@pytest.fixture(params=[False, True], ids=["assigned", "swapped"])
def swap(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Both ways in which torch's `Module.to` replaces parameters."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield request.param
    torch.__future__.set_swap_module_params_on_conversion(before)


@BOTH
@pytest.mark.parametrize("with_grad", [False, True])
def test_to(info: Any, with_grad: bool, swap: bool, samples: Callable[..., list[Any]]) -> None:
    """torch's test_to: parameters and their gradients change their dtype and stay the same objects, also after use."""
    for sample in samples(info, torch.float32):
        args = sample.forward_input.args
        module = build(info, sample)
        if with_grad:
            for p in module.parameters():
                p.grad = torch.randn_like(p)
        else:
            tensors(module(*args))[0].sum().backward()
            module.zero_grad()
        for dtype in (torch.float16, torch.float64, torch.float32):
            before = list(module.parameters())
            grads = [p.grad for p in before]
            places = [p._cdata for p in before]
            module.to(dtype=dtype)
            after = list(module.parameters())
            assert all(a is b and isinstance(a, nn.Parameter) for a, b in zip(after, before, strict=True))
            assert all((p._cdata != place) is swap for p, place in zip(after, places, strict=True))
            assert {p.dtype for p in after} == {dtype}
            assert all(p.grad is grad for p, grad in zip(after, grads, strict=True))
            assert all(grad is None or grad.dtype == dtype for grad in grads)
        tensors(module(*args))[0].sum().backward()
        assert all(p.grad is not None for p in module.parameters())


@BOTH
def test_to_empty(info: Any, swap: bool, samples: Callable[..., list[Any]]) -> None:
    """torch's test_to_empty: from the meta device to the CPU."""
    for sample in samples(info, torch.float32):
        module = build(info, sample, device="meta")
        before = list(module.parameters())
        module.to_empty(device="cpu")
        after = list(module.parameters())
        assert all((a is b) is swap for a, b in zip(after, before, strict=True))
        assert {(type(p), p.device.type, p.dtype) for p in after} == {(nn.Parameter, "cpu", torch.float32)}


def check_errors(info: Any, dtype: torch.dtype) -> None:
    errors = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
    assert len(errors) >= 4
    for error in errors:
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                info.module_cls(*made.args, **made.kwargs)
        else:
            module = info.module_cls(*made.args, **made.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*given.args, **given.kwargs)


@BOTH
@pytest.mark.filterwarnings("ignore::UserWarning")  # one construction has dropout and one layer, which warns
def test_errors(info: Any) -> None:
    """torch's test_errors."""
    check_errors(info, torch.float32)


@BOTH
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_errors_with_inputs_of_another_dtype(info: Any) -> None:
    """torch's test_errors in float64: the module is in float32, and the sentence is still the one about the size."""
    check_errors(info, torch.float64)
