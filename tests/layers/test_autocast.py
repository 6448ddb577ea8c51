"""Autocast and explicit 16-bit modules: every input is cast to the autocast dtype, and results have that dtype.

Autocast must equal, bit for bit, the explicit module: `.to(dtype)`, called on cast input. Explicit modules are compared
with float64, here over 200 steps and in test_nn_torch.py over every option; sums are compared with exact integers.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seqcls_fast as sf
from support.checks import rounds_sums
from support.tolerances import assert_close_by_name
from support.twins import B, H, I, T, Tensors, gradients, hx_of, named, x_of

LAYERS: dict[str, tuple[type, dict[str, Any]]] = {
    "rnn_tanh": (sf.RNN, {}),
    "rnn_relu": (sf.RNN, {"nonlinearity": "relu"}),
    "gru": (sf.GRU, {}),
    "lstm": (sf.LSTM, {}),
    "lstm_proj": (sf.LSTM, {"proj_size": 2}),
}
CELLS: dict[str, tuple[type, dict[str, Any]]] = {
    "rnn_tanh": (sf.RNNCell, {}),
    "rnn_relu": (sf.RNNCell, {"nonlinearity": "relu"}),
    "gru": (sf.GRUCell, {}),
    "lstm": (sf.LSTMCell, {}),
}
DTYPES = [pytest.param(torch.bfloat16, id="bfloat16"), pytest.param(torch.float16, id="float16")]
DTYPE, LAYER, CELL = (
    pytest.mark.parametrize(*axis) for axis in (("dtype", DTYPES), ("layer", LAYERS), ("cell", CELLS))
)
LENGTHS = [2, 0, 5, 3]


def packed(x: Tensor, lengths: list[int], sort: bool) -> PackedSequence:
    with torch.autocast("cpu", enabled=False):  # torch cannot join tensors of the other 16-bit dtype under autocast
        return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=sort)


INPUTS: dict[str, tuple[dict[str, Any], Callable[[Any, Tensor, Any], Any]]] = {  # options, and the call of the module
    "padded": ({}, lambda module, x, hx: module(x, hx)),
    "batch_first": ({"batch_first": True}, lambda module, x, hx: module(x.transpose(0, 1), hx)),
    "sorted": ({}, lambda module, x, hx: module(packed(x, [5, 4, 4, 1], True), hx)),
    "unsorted": ({}, lambda module, x, hx: module(packed(x, [2, 5, 1, 4], False), hx)),
    "lengths": ({}, lambda module, x, hx: module(x, hx, lengths=LENGTHS)),
    "states": ({}, lambda module, x, hx: module(x, hx, lengths=torch.tensor(LENGTHS), want_output=False)),
    "unbatched": ({}, lambda module, x, hx: module(x[:, 0], nest([s[:, 0] for s in flat(hx)]))),
}


def flat(hx: Any) -> list[Tensor]:
    return [] if hx is None else list(hx) if isinstance(hx, tuple) else [hx]


def nest(states: list[Tensor]) -> Any:
    return None if not states else states[0] if len(states) == 1 else tuple(states)


def results_and_gradients(
    module: nn.Module, call: Callable[..., Any], x: Tensor, hx: Any, autocast: torch.dtype | None
) -> Tensors:
    """Results and gradients by name. The leaves keep the dtypes in which they are given."""
    x, states = x.detach().requires_grad_(), [state.detach().requires_grad_() for state in flat(hx)]
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        results = named(*call(module, x, nest(states)))
    return results | gradients(results, module, x=x, **{f"hx{k}": state for k, state in enumerate(states)})


def assert_is_explicit(
    module: nn.Module, call: Callable[..., Any], x: Tensor, hx: Any, dtype: torch.dtype, terms: int = 0
) -> None:
    """Autocast has the same bits as the explicit module, or differs by at most ``terms`` roundings; every gradient has
    the dtype of its leaf."""
    found = results_and_gradients(module, call, x, hx, dtype)
    narrow = copy.deepcopy(module).to(dtype)
    explicit = results_and_gradients(narrow, call, x.to(dtype), nest([state.to(dtype) for state in flat(hx)]), None)
    leaves = {f"d_{name}": p.dtype for name, p in module.named_parameters()} | {"d_x": x.dtype}
    leaves |= {f"d_hx{k}": state.dtype for k, state in enumerate(flat(hx))}
    for name, got in found.items():
        want = explicit[name]
        assert (got is None) == (want is None), name
        if got is not None and want is not None:
            assert got.dtype == leaves.get(name, dtype), name
            assert_close_by_name({name: got}, {name: want.to(got.dtype)}, terms, dtype)


@LAYER
@DTYPE
@pytest.mark.parametrize("kind", INPUTS)
def test_layers_are_the_explicit_ones(kind: str, dtype: torch.dtype, layer: str, impl: str) -> None:
    more, call = INPUTS[kind]
    terms = 2 * 12 if rounds_sums(impl, dtype) else 0  # the number in checks.roundings, for each of two layers
    for options in ({}, {"num_layers": 2, "bidirectional": True, "bias": False}):
        module = LAYERS[layer][0](I, H, **LAYERS[layer][1], **more, **options)
        hx = hx_of(module)
        other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
        for x_dtype, given in (
            (torch.float32, None),
            (torch.float32, torch.float32),
            (dtype, torch.float32),
            (other, dtype),
        ):
            states = None if given is None else nest([state.to(given) for state in flat(hx)])
            with sf.use_impl(impl):
                assert_is_explicit(module, call, x_of().to(x_dtype), states, dtype, terms)


@CELL
@DTYPE
def test_cells_are_the_explicit_ones(dtype: torch.dtype, cell: str, impl: str) -> None:
    module = CELLS[cell][0](I, H, **CELLS[cell][1])
    hx = nest([x_of(B, H, seed=k) for k in range(2 if cell == "lstm" else 1)])

    def call(module: nn.Module, x: Tensor, hx: Any) -> Any:
        return None, module(x, hx)

    for x_dtype, given in ((torch.float32, None), (torch.float32, torch.float32), (dtype, torch.float32)):
        states = None if given is None else nest([state.to(given) for state in flat(hx)])
        with sf.use_impl(impl):
            assert_is_explicit(module, call, x_of()[0].to(x_dtype), states, dtype)
            alone = None if states is None else nest([state[0] for state in flat(states)])
            assert_is_explicit(module, call, x_of()[0, 0].to(x_dtype), alone, dtype)


@LAYER
def test_float64_is_left_alone(layer: str, impl: str) -> None:
    """Autocast casts no float64 tensors, as in torch. (The next test: float64 together with float32 is refused.)"""
    module = LAYERS[layer][0](I, H, **LAYERS[layer][1], dtype=torch.float64)
    with sf.use_impl(impl):
        plain = named(*module(x_of(), hx_of(module)))
        with torch.autocast("cpu", torch.bfloat16):
            found = named(*module(x_of(), hx_of(module)))
        assert_close_by_name(found, plain, 0)
        assert found["output"] is not None
        assert found["output"].dtype == torch.float64


@LAYER
def test_float64_beside_narrowed_tensors_is_refused(layer: str, impl: str) -> None:
    module = LAYERS[layer][0](I, H, **LAYERS[layer][1])
    wide = copy.deepcopy(module).double()
    calls = {
        r"input dtype \(torch.float64\) does not match weight dtype \(torch.float32\)": lambda: module(x_of()),
        r"input dtype \(torch.float32\) does not match weight dtype \(torch.float64\)": lambda: wide(x_of().float()),
        "hx: expected the input's dtype torch.float32 but got torch.float64": lambda: module(
            x_of().float(), hx_of(module)
        ),
    }
    for sentence, call in calls.items():
        refused = pytest.raises((RuntimeError, ValueError), match=sentence)
        with sf.use_impl(impl), torch.autocast("cpu", torch.bfloat16), refused:
            call()


@LAYER
def test_autocast_that_is_off_or_elsewhere_changes_nothing(layer: str, impl: str) -> None:
    module, x = LAYERS[layer][0](I, H, **LAYERS[layer][1]), x_of().float()
    with sf.use_impl(impl):
        plain = named(*module(x))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.autocast("cpu", enabled=False):
                off = named(*module(x))
            again = named(*module(x))
        torch.set_autocast_enabled("cuda", True)  # torch.autocast("cuda") turns itself off without a GPU
        try:
            elsewhere = named(*module(x))
        finally:
            torch.set_autocast_enabled("cuda", False)
    for found in (off, elsewhere):
        assert_close_by_name(found, plain, 0)
        assert all(t is None or t.dtype == torch.float32 for t in found.values())
    assert all(t is None or t.dtype == torch.bfloat16 for t in again.values())


class Tagger(nn.Module):
    def __init__(self, layer: str) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(10, I), LAYERS[layer][0](I, H, **LAYERS[layer][1], bidirectional=True)
        self.linear = nn.Linear(2 * (self.layer.proj_size or H), 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.layer(self.embedding(ids))[0])


@LAYER
@DTYPE
def test_a_model_around_the_layer(dtype: torch.dtype, layer: str, impl: str) -> None:
    model, ids = Tagger(layer), torch.arange(T * B).reshape(T, B) % 10
    narrow = copy.deepcopy(model).to(dtype)
    with sf.use_impl(impl):
        with torch.autocast("cpu", dtype):
            found = model(ids)
            loss = nn.functional.cross_entropy(found.flatten(0, 1), ids.flatten() % 3)
        assert torch.equal(found, narrow(ids))
        loss.backward()
        nn.functional.cross_entropy(narrow(ids).flatten(0, 1).float(), ids.flatten() % 3).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        # each row of the embedding is used twice: the two gradients are added in float32 here and in 16 bits there
        want = narrow.get_parameter(name).grad
        assert_close_by_name({name: p.grad}, {name: want}, 2 if name.startswith("embedding") else 0, dtype)


@LAYER
@DTYPE
def test_compiled_models_have_the_same_dtypes_and_bits(dtype: torch.dtype, layer: str) -> None:
    torch._dynamo.reset()
    module = LAYERS[layer][0](I, H, **LAYERS[layer][1])

    def inside(x: Tensor, hx: Any) -> Any:
        with torch.autocast("cpu", dtype):
            return module(x, hx)

    hx, x = nest([state.float() for state in flat(hx_of(module))]), x_of().float()
    eager = results_and_gradients(module, lambda _, x, hx: module(x, hx), x, hx, dtype)
    for function, outside in ((module, dtype), (inside, None)):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        found = results_and_gradients(module, lambda _, x, hx, run=compiled: run(x, hx), x, hx, outside)
        assert_close_by_name(found, eager, 0)
        assert {name: t.dtype for name, t in found.items() if t is not None} == {
            name: t.dtype for name, t in eager.items() if t is not None
        }


@LAYER
@DTYPE
def test_function_transforms(dtype: torch.dtype, layer: str, impl: str) -> None:
    """vmap over inputs, and gradients of each sample, agree with a Python loop over the samples."""
    module, x = LAYERS[layer][0](I, H, **LAYERS[layer][1]), x_of(3, T, B, I).float()
    weights = dict(module.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return torch.func.functional_call(module, weights, (x,))[0].float().square().sum()

    with sf.use_impl(impl), torch.autocast("cpu", dtype):
        mapped = torch.func.vmap(lambda x: module(x)[0])(x)
        assert mapped.dtype == dtype
        # impl="torch" runs the reference here, whose batched matrix products round differently from single ones
        terms = T if impl == "reference" else 4 * T if impl == "torch" else 0
        assert_close_by_name({"x": mapped}, {"x": torch.stack([module(each)[0] for each in x])}, terms)
    with sf.use_impl(impl):
        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
        each = [torch.autograd.grad(loss(weights, x[k]), list(weights.values())) for k in range(3)]
    assert all(t.dtype == torch.float32 for t in found.values())
    assert_close_by_name(found, {name: torch.stack([grads[k] for grads in each]) for k, name in enumerate(weights)},
                         4 * T, dtype)  # fmt: skip


@CELL
@pytest.mark.parametrize("cache", [True, False])
def test_weights_changed_inside_a_block_are_used_at_once(cache: bool, cell: str, impl: str) -> None:
    for module, x in ((LAYERS[cell][0](I, H, **LAYERS[cell][1]), x_of()), (CELLS[cell][0](I, H), x_of()[0])):
        x = x.float()
        with sf.use_impl(impl), torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            seen = [module(x)[0]]
            for change in (lambda p: p.data.mul_(2), lambda p: p.detach().numpy().__imul__(-1), lambda p: p.mul_(0.5)):
                with torch.no_grad():
                    for p in module.parameters():
                        change(p)
                seen.append(module(x)[0])
                assert torch.equal(seen[-1], copy.deepcopy(module).bfloat16()(x.bfloat16())[0])
        assert all(not torch.equal(a, b) for a, b in zip(seen[1:], seen, strict=False))


# sums, and training in 16 bits


@DTYPE
def test_gate_sums_and_weight_gradients_are_summed_in_float32(dtype: torch.dtype, impl: str) -> None:
    """A sum kept in 16 bits would stop growing at 2 / eps. The right sums are integers that the dtype can hold."""
    big = 2 / torch.finfo(dtype).eps
    module = sf.RNN(9, 1, nonlinearity="relu")
    for p in module.parameters():
        nn.init.zeros_(p)
    nn.init.ones_(module.weight_ih_l0)
    rows = int(big * 1.5)
    x = torch.tensor([big] + 8 * [0.5]).repeat(1, rows, 1)
    with sf.use_impl(impl), torch.autocast("cpu", dtype):
        output, _ = module(x)
    assert output.unique().tolist() == [big + 4]
    output.sum(dtype=torch.float32).backward()
    assert module.bias_ih_l0.grad.item() == rows
    assert module.weight_ih_l0.grad[0, 1].item() == rows / 2


@DTYPE
def test_c_is_kept_in_float32(dtype: torch.dtype, impl: str) -> None:
    """c starts at 1 and grows by eps / 8 in each of 200 steps. A c of 16 bits would stay at 1."""
    if rounds_sums(impl, dtype):
        pytest.skip("torch's own layer keeps c in the dtype of the layer")
    step, steps = torch.finfo(dtype).eps / 8, 200
    module = sf.LSTM(1, 1)
    for p in module.parameters():
        nn.init.zeros_(p)
    with torch.no_grad():
        module.bias_ih_l0.copy_(torch.tensor([40.0, 40.0, step, 0.0]))  # i and f are 1 in float32, tanh(g) is g
    with sf.use_impl(impl), torch.autocast("cpu", dtype):
        _, (_, c_n) = module(torch.zeros(steps, 1, 1), (torch.zeros(1, 1, 1), torch.ones(1, 1, 1)))
    assert_close_by_name({"c_n": c_n}, {"c_n": torch.full((1, 1, 1), 1 + steps * step)}, 1)


@CELL
@DTYPE
def test_200_steps_in_16_bits(dtype: torch.dtype, cell: str, impl: str) -> None:
    """The rows of W_hh have norm 1/8 and the gates stay below sigmoid(1), so an error shrinks to at most 0.85 of itself
    in each step (least in a GRU). All roundings of h together are then below 1 / (1 - 0.85) times half of eps."""
    kind, options = LAYERS[cell]
    module = kind(8, 32, **options)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p /= p.abs().sum(-1, keepdim=True) * 8 if name.startswith("weight_hh") else p.abs().sum(-1, True) * 2
            if name.startswith("bias"):
                p /= p.abs().max() * 8
    module = module.to(dtype)
    exact = getattr(nn, kind.__name__)(8, 32, **options, dtype=torch.float64)
    exact.load_state_dict(module.state_dict())
    x = x_of(200, 16, 8).tanh().to(dtype)
    with sf.use_impl(impl):
        found = named(*module(x))
    assert_close_by_name(found, named(*exact(x.double())), 4)


def classification(features: int) -> tuple[Tensor, Tensor]:
    """Random sequences, and labels: whether the sum of the first feature is positive."""
    x = x_of(T, 32, features)
    return x, (x[..., 0].sum(0) > 0).long()


def run_over_steps(module: nn.Module, x: Tensor) -> Tensor:
    """The last h of a layer, or of a cell that is called once for each step."""
    if isinstance(module, nn.RNNBase):
        return module(x)[0][-1]
    state = None
    for step in x:
        state = module(step, state)
    return state[0] if isinstance(state, tuple) else state


@CELL
@DTYPE
@pytest.mark.parametrize("library", [LAYERS, CELLS], ids=["layer", "cell"])
def test_explicit_16_bit_modules_train(library: dict[str, Any], dtype: torch.dtype, cell: str, impl: str) -> None:
    module, head = library[cell][0](I, H, **library[cell][1], dtype=dtype), nn.Linear(H, 2, dtype=dtype)
    x, y = classification(I)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=0.05, eps=1e-3)  # 1e-8 is 0 in float16
    losses = []
    with sf.use_impl(impl):
        for _ in range(30):
            loss = nn.functional.cross_entropy(head(run_over_steps(module, x.to(dtype))).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@CELL
def test_grad_scaler(cell: str, impl: str) -> None:
    """A scale of 1024 does not change a step. One of 2^30 overflows float16: the step is skipped, the scale halved."""
    x, y = classification(I)
    module = LAYERS[cell][0](I, H, **LAYERS[cell][1])
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    after = {}
    for scale in (1.0, 1024.0, 2.0**30):
        module.load_state_dict(start)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with sf.use_impl(impl), torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(run_over_steps(module, x.float()), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if scale > 1024 else scale)
        after[scale] = {name: p.detach() - start[name] for name, p in module.named_parameters()}
    assert all(t.any() for t in after[1.0].values())
    assert not any(t.any() for t in after[2.0**30].values())
    assert_close_by_name(after[1024.0], after[1.0], 4 * T, torch.float16)  # without a scale, gradients may be subnormal
