"""Frozen weights: the same bits without a look at the weights, what is changed is noticed, and nothing outlives the
block."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import seqcls_fast as sf
from seqcls_fast import _ext

needs_extension = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")
IMPLS = sf.available_impls()[2:]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
I, H = 5, 19


def tensors_in(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [] if result is None else [t for part in result for t in tensors_in(part)]


def assert_equal(a: Any, b: Any) -> None:
    for x, y in zip(tensors_in(a), tensors_in(b), strict=True):
        assert torch.equal(x, y)


def spoil(module: nn.Module) -> None:
    """Writes NaN to all weights in a way that torch does not count."""
    for p in module.parameters():
        p.data.fill_(torch.nan)


def states(module: Any, *outer: int) -> Any:
    """A state for a call with these outer dimensions, a pair for an LSTM."""
    widths = [getattr(module, "proj_size", 0) or H, H][: 2 if "LSTM" in type(module).__name__ else 1]
    found = [torch.randn(*outer, width, dtype=next(module.parameters()).dtype) for width in widths]
    return tuple(found) if len(found) == 2 else found[0]


def layer_calls() -> Iterator[tuple[str, Callable[[], Any], Callable[[Any, torch.dtype], dict[str, Any]]]]:
    def padded(module: Any, dtype: torch.dtype) -> dict[str, Any]:
        return {"input": torch.randn(4, 3, I, dtype=dtype)}

    def ragged(module: Any, dtype: torch.dtype) -> dict[str, Any]:
        return padded(module, dtype) | {"lengths": [4, 0, 2], "hx": states(module, 4, 3)}

    def packed(module: Any, dtype: torch.dtype) -> dict[str, Any]:
        return {"input": pack_sequence([torch.randn(n, I, dtype=dtype) for n in (2, 4, 1)], enforce_sorted=False)}

    def step(module: Any, dtype: torch.dtype) -> dict[str, Any]:
        return {"input": torch.randn(1, I, dtype=dtype), "hx": states(module, 1), "want_output": False}

    for name in ("RNN", "GRU", "LSTM"):
        yield name, lambda name=name: getattr(sf, name)(I, H), padded
        yield f"{name} step", lambda name=name: getattr(sf, name)(I, H, bias=False), step
        yield f"{name} stack", lambda name=name: getattr(sf, name)(I, H, 2, bidirectional=True), ragged
    yield "RNN relu", lambda: sf.RNN(I, H, nonlinearity="relu", batch_first=True), padded
    yield "GRU packed", lambda: sf.GRU(I, H, 2), packed
    yield "LSTM projected", lambda: sf.LSTM(I, H, 2, proj_size=7, bidirectional=True), ragged
    yield "LSTM dropout", lambda: sf.LSTM(I, H, 3, dropout=0.5), padded


def one_bias(cell: nn.Module) -> nn.Module:
    cell.bias_ih = None
    return cell


def cell_calls() -> Iterator[tuple[str, Callable[[], Any], Callable[[Any, torch.dtype], dict[str, Any]]]]:
    def rows(module: Any, dtype: torch.dtype) -> dict[str, Any]:
        return {"input": torch.randn(3, I, dtype=dtype), "hx": states(module, 3)}

    def one(module: Any, dtype: torch.dtype) -> dict[str, Any]:
        return {"input": torch.randn(I, dtype=dtype)}

    for name in ("RNNCell", "GRUCell", "LSTMCell"):
        yield name, lambda name=name: getattr(sf, name)(I, H), rows
        yield f"{name} one", lambda name=name: getattr(sf, name)(I, H, bias=False), one
    yield "RNNCell relu", lambda: sf.RNNCell(I, H, nonlinearity="relu"), rows
    yield "GRUCell one bias", lambda: one_bias(sf.GRUCell(I, H)), rows


CALLS = [*layer_calls(), *cell_calls()]


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "make", "inputs"), CALLS, ids=[name for name, *_ in CALLS])
def test_the_same_bits_and_no_weight_is_read(
    name: str, make: Any, inputs: Any, dtype: torch.dtype, compiled: str
) -> None:
    module = make().to(dtype)
    arguments = inputs(module, dtype)
    with torch.no_grad(), sf.use_impl(compiled):
        torch.manual_seed(0)  # of dropout, between the layers of a module in training
        wanted = module(**arguments)
        with sf.frozen(module):
            spoil(module)
            torch.manual_seed(0)
            assert_equal(module(**arguments), wanted)
        assert any(t.isnan().any() for t in tensors_in(module(**arguments)))  # now it reads them again


@needs_extension
def test_a_model_with_a_shared_layer_in_many_threads() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.cell, self.head = sf.GRU(I, H, 2), sf.LSTMCell(H, H), nn.Linear(H, 3)
            self.same = self.encoder

        def forward(self, x: Tensor) -> Tensor:
            output, _ = self.same(x)
            hx = None
            for step in output:
                hx = self.cell(step, hx)
            return self.head(hx[0])  # type: ignore[no-any-return]

    model = Model()
    inputs = [torch.randn(4, k % 3 + 1, I) for k in range(40)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
    assert sf.freeze(model) is model
    spoil(model.encoder)
    spoil(model.cell)

    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(x)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(call, inputs), wanted, strict=True):
            assert torch.equal(found, expected)
    assert sf.unfreeze(model) is model
    assert call(inputs[0]).isnan().all()


# -- what a call refuses ----------------------------------------------------------------------------------------------


def replace(module: Any) -> None:
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().clone())


def assign_data(module: Any) -> None:
    module.weight_hh_l0.data = module.weight_hh_l0.detach().clone()


def other_and_back(module: Any) -> None:
    for _ in range(20):  # each time, the memory that the weights had before might be used again
        module.bfloat16().float()


def train_one_step(module: Any) -> None:
    with torch.enable_grad():
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()


Change = Callable[[Any], Any]
CHANGES: list[tuple[str, Change]] = [  # with the first weight that each changes
    ("weight_hh_l0", replace),
    ("weight_hh_l0", assign_data),
    ("weight_ih_l0", other_and_back),
    ("weight_ih_l0", train_one_step),
    ("weight_hh_l0", lambda module: parametrizations.weight_norm(module, "weight_hh_l0")),
    ("weight_hh_l0", lambda module: prune.random_unstructured(module, "weight_hh_l0", 0.5)),
    ("weight_hh_l0", lambda module: module.weight_hh_l0.mul_(2)),
    ("weight_ih_l0", lambda module: module.load_state_dict(module.state_dict())),
    ("weight_ih_l0", lambda module: module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)),
    ("weight_ih_l0", lambda module: module.reset_parameters()),
    ("weight_ih_l0", lambda module: module.share_memory()),
]


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_change_of_the_weights_is_refused(name: str, change: Change, chosen: str) -> None:
    module, x = sf.LSTM(I, H), torch.randn(4, 3, I)
    with torch.no_grad(), sf.use_impl(chosen):
        sf.freeze(module)(x)
        change(module)
        kind = type(module).__name__
        words = f"^{kind}.{name}: expected the weight as it was .* call seqcls_fast.freeze\\(module\\) again"
        for _ in range(2):
            with pytest.raises(RuntimeError, match=words):
                module(x)
        with pytest.raises(RuntimeError, match=words):
            module(pack_sequence([x[:, 0]]))
        wanted = sf.unfreeze(module)(x)
        if "weight_hh_l0" in module._parameters:
            assert_equal(sf.freeze(module)(x), wanted)


def test_the_address_of_a_frozen_weight_is_not_used_again() -> None:
    numpy = pytest.importorskip("numpy", reason="it lends the memory of a weight, whose end can be seen")
    memory = numpy.ones((3 * H, H), numpy.float32)
    gone = weakref.ref(memory)
    module = sf.GRU(I, H)
    module.weight_hh_l0 = nn.Parameter(torch.from_numpy(memory))
    sf.freeze(module)
    assign_data(module)
    del memory
    assert gone() is not None
    sf.unfreeze(module)
    assert gone() is None


def test_a_change_of_a_cell_is_refused() -> None:
    cell, x = sf.freeze(sf.GRUCell(I, H)), torch.randn(2, I)
    with torch.no_grad():
        cell(x)
        cell.bias_hh = None
        with pytest.raises(RuntimeError, match=r"^GRUCell\.bias_hh: expected the weight as it was"):
            cell(x)
        sf.freeze(cell)(x)
        cell.bias_hh = nn.Parameter(torch.zeros(3 * H))
        with pytest.raises(RuntimeError, match=r"^GRUCell\.bias_hh: expected the weight as it was"):
            cell(x)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_gradients_are_refused(chosen: str) -> None:
    words = r"expected a call without gradients, as the module is frozen: use torch\.no_grad\(\)"
    with sf.use_impl(chosen):
        layer, cell = sf.freeze(sf.GRU(I, H)), sf.freeze(sf.LSTMCell(I, H))
        x = torch.randn(4, 3, I)
        for module, given in ((layer, x), (cell, x[0]), (layer, pack_sequence([x[:, 0]]))):
            with pytest.raises(RuntimeError, match=f"^{type(module).__name__}: {words}"):
                module(given)
            with torch.no_grad():
                module(given)
        layer.requires_grad_(False)
        layer(x)
        with pytest.raises(RuntimeError, match=words):
            layer(x.clone().requires_grad_())
        with pytest.raises(RuntimeError, match=words):
            layer(x, torch.zeros(1, 3, H, requires_grad=True))
    for p in sf.unfreeze(cell).parameters():
        assert p.requires_grad
    cell(x[0])[0].sum().backward()
    assert cell.weight_hh.grad is not None


def test_what_cannot_be_frozen() -> None:
    plain = sf.GRU(I, H)
    for spoiled in (
        parametrizations.weight_norm(sf.GRU(I, H), "weight_hh_l0"),
        prune.random_unstructured(sf.GRU(I, H), "weight_hh_l0", 0.5),
        nn.utils.weight_norm(sf.GRU(I, H), "weight_hh_l0"),
    ):
        words = r"GRU\.weight_hh_l0: expected a plain parameter, as a frozen weight stays as it is"
        with pytest.raises(RuntimeError, match=words):
            sf.freeze(nn.ModuleList([plain, spoiled]))
        with pytest.raises(RuntimeError, match=words), sf.frozen(nn.ModuleList([plain, spoiled])):
            pass
        assert plain._frozen_weights is spoiled._frozen_weights is None
    for function in (sf.freeze, sf.unfreeze):
        with pytest.raises(TypeError, match=f"{function.__name__}: expected a torch.nn.Module but got list"):
            function([plain])
    with pytest.raises(TypeError, match=r"frozen: expected a torch\.nn\.Module but got int"), sf.frozen(3):
        pass
    other = nn.Sequential(nn.LSTM(I, H), nn.Linear(H, 3))
    assert sf.unfreeze(sf.freeze(other)) is other  # nothing of ours in it


def test_bad_input_gets_the_usual_sentence() -> None:
    module, x = sf.GRU(I, H), torch.randn(4, 3, I)
    wrong: list[dict[str, Any]] = [
        {"input": x[..., :-1]}, {"input": x.double()}, {"input": x[0, 0]}, {"input": x, "hx": torch.zeros(2, 3, H)},
        {"input": x, "lengths": [5, 1, 1]}, {"input": "x"}, {"input": x, "hx": 3},
    ]  # fmt: skip
    for arguments in wrong:
        errors = []
        for frozen in (False, True):
            (sf.freeze if frozen else sf.unfreeze)(module)
            with torch.no_grad(), pytest.raises(Exception, match=r"\w") as error:
                module(**arguments)
            errors.append((error.type, str(error.value)))
        assert errors[0] == errors[1]


# -- calls that read the weights although they are frozen -------------------------------------------------------------


@needs_extension
def test_another_implementation_reads_the_weights() -> None:
    module, x = sf.GRU(I, H), torch.randn(4, 3, I)
    for frozen_for, used in itertools.product((*IMPLS, "torch", "reference"), (*IMPLS, "torch", "reference", "auto")):
        with torch.no_grad():
            with sf.use_impl(used):
                wanted = module(x)
            with sf.use_impl(frozen_for):
                sf.freeze(module)
            assert module._frozen_weights is not None
            assert len(module._frozen_weights.packed) == (frozen_for in IMPLS)
            with sf.use_impl(used):
                assert_equal(module(x), wanted)


def test_transforms_and_graphs_read_the_weights() -> None:
    module, x = sf.LSTM(I, H), torch.randn(6, 4, 3, I)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output, _ = torch.func.functional_call(module, weights, (x,))
        return output.square().mean()

    def directional(x: Tensor) -> Any:
        return torch.func.jvp(lambda x: module(x)[0], (x,), (torch.ones_like(x),))

    calls: list[Callable[[], Any]] = [
        lambda: tuple(torch.func.grad(loss)(weights, x[0]).values()),
        lambda: torch.func.vmap(lambda x: module(x)[0])(x),
        lambda: directional(x[0]),
        lambda: torch.jit.trace(module, (x[0],))(x[1]),
        lambda: torch.export.export(module, (x[0],)).module()(x[1]),
    ]
    for call in calls:
        with torch.no_grad():
            wanted = call()
            with sf.frozen(module):
                assert_equal(call(), wanted)


def test_compiled_modules_read_the_weights() -> None:
    module, x = sf.GRU(I, H), torch.randn(4, 3, I)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        wanted = module(x)
        for _ in range(2):
            assert_equal(compiled(x), wanted)
            sf.freeze(module)
        module.weight_hh_l0.mul_(2)
        assert_equal(compiled(x), sf.unfreeze(module)(x))


def test_autocast_reads_the_weights() -> None:
    module, x = sf.GRU(I, H), torch.randn(4, 3, I)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = module(x)
        sf.freeze(module)
        assert_equal(module(x), wanted)


def test_modules_that_no_kernel_runs() -> None:
    with torch.no_grad():
        for module, x in (
            (sf.GRU(I, H, device="meta"), torch.zeros(4, 3, I, device="meta")),
            (sf.GRU(I, H, dtype=torch.complex64), torch.zeros(4, 3, I, dtype=torch.complex64)),
            (sf.GRUCell(0, H), torch.zeros(3, 0)),
        ):
            sf.freeze(module)(x)
            assert module._frozen_weights is not None
            assert module._frozen_weights.packed == ()
            next(module.parameters()).add_(1)
            with pytest.raises(RuntimeError, match="expected the weight as it was"):
                module(x)


@needs_extension
def test_weights_of_inference_mode() -> None:
    with torch.inference_mode():
        module, x = sf.GRU(I, H), torch.randn(4, 3, I)
        wanted = module(x)
        sf.freeze(module)  # its weights, inference tensors, have no versions
        assert_equal(module(x), wanted)
        replace_later = nn.Parameter(module.weight_ih_l0 * 2)
    with torch.no_grad():
        assert_equal(module(x), wanted)  # and outside
    with torch.inference_mode():
        module.weight_ih_l0 = replace_later
        with pytest.raises(RuntimeError, match="weight_ih_l0: expected the weight as it was"):
            module(x)


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_a_block_restores_what_was_before() -> None:
    module = nn.Sequential(sf.GRU(I, H), sf.LSTM(I, H))
    first, second = module
    sf.freeze(first)
    before = first._frozen_weights
    with sf.frozen(module) as same:
        assert same is module
        assert first._frozen_weights is not before
        middle = first._frozen_weights
        with sf.frozen(first):
            assert first._frozen_weights is not middle
        assert first._frozen_weights is middle
        assert second._frozen_weights is not None
        sf.unfreeze(first)
        assert first._frozen_weights is None
        sf.freeze(second)
    assert first._frozen_weights is before
    assert second._frozen_weights is None
    with pytest.raises(KeyError), sf.frozen(module):
        raise KeyError
    assert first._frozen_weights is before
    assert "_frozen_weights" not in second.__dict__


def test_blocks_of_threads_may_overlap() -> None:
    module, steps = sf.GRUCell(I, H), threading.Barrier(2)
    seen: list[bool] = []

    def first() -> None:
        with sf.frozen(module):
            steps.wait()  # both are in their blocks
            steps.wait()
        steps.wait()  # the first has left

    def second() -> None:
        steps_before = steps
        with sf.frozen(module):
            steps_before.wait()
            steps_before.wait()
            steps_before.wait()
            seen.append(module._frozen_weights is not None)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result()
    assert seen == [True]
    assert module._frozen_weights is None
    assert sf._frozen._BLOCKS == {}


# -- copies, memory, other modules ------------------------------------------------------------------------------------


def test_copies_are_not_frozen() -> None:
    module, x = sf.LSTM(I, H), torch.randn(4, 3, I)
    keys = list(module.state_dict())
    sf.freeze(module)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    cell = sf.freeze(sf.GRUCell(I, H))
    for other in (
        copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False), module._replicate_for_data_parallel(), copy.deepcopy(cell),
    ):  # fmt: skip
        assert other._frozen_weights is None
    assert module._frozen_weights is not None
    assert list(module.state_dict()) == keys
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.weight_hh_l0.mul_(2)
        other(x)
        module(x)


@needs_extension
def test_unfreezing_gives_the_memory_back() -> None:
    module = sf.LSTM(300, 300)
    C: Any = _ext.C
    C.trim_pool()
    sf.freeze(module)
    assert module._frozen_weights is not None
    (packed,) = module._frozen_weights.packed
    size, gone = packed.numel(), weakref.ref(packed)
    assert size >= sum(p.numel() * 4 for p in (module.weight_ih_l0, module.weight_hh_l0))
    assert C.pool_held() < size
    del packed
    sf.unfreeze(module)
    assert gone() is None
    assert C.pool_held() >= size  # in the pool, for the next call
    C.trim_pool()
    assert C.pool_held() == 0
    with sf.frozen(module):
        assert module._frozen_weights is not None
        gone = weakref.ref(module._frozen_weights.packed[0])
    assert gone() is None


def test_a_subclass_may_have_a_flag_named_frozen() -> None:
    class Own(sf.GRU):
        _frozen = True

    module, x = Own(I, H), torch.randn(4, 3, I)
    with torch.no_grad():
        wanted = module(x)
        with sf.frozen(module):
            assert_equal(module(x), wanted)
    assert module._frozen is True


def test_converted_and_reverted_modules() -> None:
    x = torch.randn(4, 3, I)
    model = nn.Sequential(nn.GRU(I, H))
    sf.convert(model)
    with torch.no_grad():
        wanted = model(x)
        assert_equal(sf.freeze(model)(x), wanted)
        assert type(model[0]) is sf.GRU
        sf.convert(model)
        assert model[0]._frozen_weights is not None
        with sf.frozen(model):
            sf.revert(model)
            assert "_frozen_weights" not in model[0].__dict__
            model[0].weight_hh_l0.mul_(2)
            model(x)
        assert "_frozen_weights" not in model[0].__dict__
    model(x)


# -- classifiers ------------------------------------------------------------------------------------------------------


CLASSIFIERS: list[dict[str, Any]] = [
    {"cell": "lstm", "num_layers": 2, "bidirectional": True},
    {"vocab_size": 30, "num_layers": 2, "pooling": "max"},
    {"vocab_size": 30, "cell": "rnn_tanh", "bidirectional": True},
    {"vocab_size": 30, "dtype": torch.bfloat16},
]


def rows_for(model: sf.SequenceClassifier, T: int = 40) -> Tensor:
    dtype = next(model.parameters()).dtype
    return torch.randn(3, T, I, dtype=dtype) if model.vocab_size is None else torch.randint(30, (3, T))


@needs_extension
@pytest.mark.parametrize("options", CLASSIFIERS, ids=str)
def test_prepare_inference_packs_the_encoder(options: dict[str, Any], compiled: str) -> None:
    with sf.use_impl(compiled):
        model = sf.SequenceClassifier(I, H, 4, **options).eval()
        x = rows_for(model)
        with torch.no_grad():
            wanted = model(x)
            model.prepare_inference()
            prepared = model._packed_tables or model.encoder._frozen_weights
            assert prepared is not None
            assert len(prepared.packed) == model.num_layers
            spoil(model.encoder)
            assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("options", CLASSIFIERS, ids=str)
def test_a_prepared_classifier_can_be_trained_on(options: dict[str, Any]) -> None:
    model = sf.SequenceClassifier(I, H, 4, **options).eval().prepare_inference()
    x = rows_for(model)
    model(x).sum().backward()  # with gradients it reads the weights
    drops: list[Callable[[], Any]] = [
        lambda: model.train().eval(), lambda: model.load_state_dict(model.state_dict()), lambda: model.to("cpu"),
        model.forget_tables, lambda: model.encoder.weight_hh_l0.data.copy_(model.encoder.weight_hh_l0.detach()),
    ]  # fmt: skip
    with torch.no_grad():
        for drop in drops[:-1]:
            model.prepare_inference()
            drop()
            assert model._packed_tables is model.encoder._frozen_weights is None
        model.prepare_inference()
        model.encoder.weight_hh_l0.mul_(2)  # noticed, and no reason to raise
        found = model(x)
        assert torch.equal(found, model.prepare_inference()(x))
    assert copy.deepcopy(model.prepare_inference())._packed_tables is None


@needs_extension
@pytest.mark.parametrize("options", CLASSIFIERS, ids=str)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_frozen_classifier(options: dict[str, Any], prepared: bool) -> None:
    model = sf.SequenceClassifier(I, H, 4, **options).eval()
    with torch.no_grad():
        for x in (rows_for(model), rows_for(model, 1)):
            wanted = model(x)
            with sf.frozen(model):
                if prepared:
                    model.prepare_inference()
                assert torch.equal(model(x), wanted)
                model.forget_tables()
                assert model.encoder._frozen_weights is not None
                with torch.enable_grad(), pytest.raises(RuntimeError, match="expected a call without gradients"):
                    model(x)
                model.encoder.weight_hh_l0.mul_(1)
                with pytest.raises(RuntimeError, match="weight_hh_l0: expected the weight as it was"):
                    model(x)
