"""torch.func on layers and modules: every transform agrees with the reference layer, which consists of torch's own
operations. Shapes are small and numbers float64, so that a wrong index is seen and rounding is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.utils._pytree import tree_leaves

import seqcls_fast as sf
from seqcls_fast import ops
from support.cases import CELLS, Case, build
from support.checks import NAN, arguments, keywords, layer

N, T, B, I, H = 3, 5, 2, 3, 4
MODULES: dict[str, Callable[[], Any]] = {
    "rnn": lambda: sf.RNN(I, H),
    "relu": lambda: sf.RNN(I, H, nonlinearity="relu", bias=False),
    "gru": lambda: sf.GRU(I, H),
    "gru 2 layers": lambda: sf.GRU(I, H, 2, batch_first=True, bidirectional=True),
    "lstm": lambda: sf.LSTM(I, H, bidirectional=True),
    "lstm projected": lambda: sf.LSTM(I, H, proj_size=2, batch_first=True),
}
EACH = pytest.mark.parametrize("name", MODULES)
LENGTHS = torch.tensor([[5, 2], [0, 3], [4, 4]])
ONE = torch.ones((), dtype=torch.float64)


def close(found: Any, wanted: Any) -> None:
    """Compares float64 results of some hundred operations. An element may be a sum of larger terms that cancel, so its
    error is taken relative to the largest element."""
    found, wanted = tree_leaves(found), tree_leaves(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        largest = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12 * max(largest, 1.0))


class Setting:
    """A module as functions of its weights and input, and numbers for them: N samples of B rows."""

    def __init__(self, name: str) -> None:
        self.module = MODULES[name]().double()
        self.weights = {key: p.detach() for key, p in self.module.named_parameters()}
        self.x = torch.randn(N, B, T, I, dtype=torch.float64)
        if not self.module.batch_first:
            self.x = self.x.transpose(1, 2)

    def call(self, weights: Any, x: Tensor, lengths: Tensor | None = None, hx: Any = None) -> Any:
        return functional_call(self.module, weights, (x, hx), {"lengths": lengths})

    def loss(self, weights: Any, x: Tensor, lengths: Tensor | None = None, hx: Any = None) -> Tensor:
        """A sum that gives every element another weight."""
        results = tree_leaves(self.call(weights, x, lengths, hx))
        return torch.stack([(t.flatten() * torch.arange(1, t.numel() + 1)).sin().sum() for t in results]).sum()

    def hx(self, *lead: int) -> Any:
        m = self.module
        D = m.num_layers * (2 if m.bidirectional else 1)
        h = torch.randn(*lead, D, B, m.proj_size or H, dtype=torch.float64)
        return (h, torch.randn(*lead, D, B, H, dtype=torch.float64)) if m.mode == "LSTM" else h


def agrees(function: Callable[[], Any], impl: str) -> None:
    with sf.use_impl("reference"):
        wanted = function()
    with sf.use_impl(impl):
        close(function(), wanted)


def summed(gradients: dict[str, Tensor]) -> Tensor:
    return torch.stack([(t**2).sum() for t in gradients.values()]).sum()


# name -> function of a Setting, whose result must be equal for the reference and an implementation
TRANSFORMS: dict[str, Callable[[Setting], Any]] = {
    "vmap": lambda s: vmap(partial(s.call, s.weights))(s.x),
    "vmap, other dims": lambda s: vmap(partial(s.call, s.weights), in_dims=3, out_dims=1)(s.x.movedim(0, 3)),
    "vmap of lengths": lambda s: vmap(partial(s.call, s.weights))(s.x, LENGTHS),
    "vmap of lengths alone": lambda s: vmap(lambda n: s.call(s.weights, s.x[0], n))(LENGTHS),
    "vmap of one lengths": lambda s: vmap(lambda x: s.call(s.weights, x, LENGTHS[0]))(s.x),
    "vmap of hx": lambda s: vmap(lambda hx: s.call(s.weights, s.x[0], None, hx))(s.hx(N)),
    "vmap of x and hx": lambda s: vmap(lambda x, hx: s.call(s.weights, x, None, hx))(s.x, s.hx(N)),
    "vmap of vmap": lambda s: vmap(vmap(partial(s.call, s.weights), in_dims=1), in_dims=1)(
        torch.stack([s.x, s.x + 1, s.x - 1, s.x * 2])
    ),
    "grad": lambda s: grad(s.loss)(s.weights, s.x[0]),
    "grad by x and hx": lambda s: grad(s.loss, argnums=(1, 3))(s.weights, s.x[0], LENGTHS[0], s.hx()),
    "per-sample": lambda s: vmap(grad(s.loss), (None, 0))(s.weights, s.x),
    "per-sample, ragged": lambda s: vmap(grad(s.loss), (None, 0, 0))(s.weights, s.x, LENGTHS),
    "per-sample, ragged, hx": lambda s: vmap(grad(s.loss, (0, 1, 3)), (None, 0, 0, 0))(
        s.weights, s.x, LENGTHS, s.hx(N)
    ),
    "per-sample of per-sample": lambda s: vmap(vmap(grad(s.loss), (None, 0, 0)), (None, 0, None))(
        s.weights, torch.stack([s.x, s.x + 1]), LENGTHS
    ),
    "grad of vmap": lambda s: grad(lambda w: vmap(partial(s.loss, w))(s.x).sum())(s.weights),
    "grad of per-sample": lambda s: grad(lambda w: summed(vmap(grad(s.loss), (None, 0, 0))(w, s.x, LENGTHS)))(
        s.weights
    ),
    "per-sample grad of grad": lambda s: vmap(lambda x: grad(lambda w: summed(grad(s.loss)(w, x)))(s.weights))(s.x),
    "jvp": lambda s: jvp(s.call, (s.weights, s.x[0]), ({k: w.sin() for k, w in s.weights.items()}, s.x[1])),
    "jvp, ragged": lambda s: jvp(lambda x: s.call(s.weights, x, LENGTHS[0]), (s.x[0],), (s.x[1],)),
    "jvp of vjp": lambda s: jvp(vjp(partial(s.loss, s.weights), s.x[0])[1], (ONE,), (3 * ONE,)),
    "vjp of jvp": lambda s: vjp(lambda x: jvp(partial(s.loss, s.weights), (x,), (s.x[1],))[1], s.x[0])[1](ONE),
    "jacrev": lambda s: jacrev(lambda x: s.call(s.weights, x)[0])(s.x[0]),
    "jacrev by weights": lambda s: jacrev(lambda w: s.call(w, s.x[0])[0])(s.weights),
    "jacfwd": lambda s: jacfwd(lambda x: s.call(s.weights, x)[0])(s.x[0]),
    "hessian": lambda s: hessian(partial(s.loss, s.weights))(s.x[0]),
    "jacrev of jacrev": lambda s: jacrev(jacrev(partial(s.loss, s.weights)))(s.x[0]),
    "jacrev of jacfwd": lambda s: jacrev(jacfwd(partial(s.loss, s.weights)))(s.x[0]),
    "linearize": lambda s: linearize(partial(s.call, s.weights), s.x[0])[1](s.x[1]),
    "ensemble": lambda s: vmap(s.call, (0, None))({k: torch.stack([w, 2 * w]) for k, w in s.weights.items()}, s.x[0]),
    "ensemble with inputs": lambda s: vmap(s.call)({k: torch.stack([w, -w, 2 * w]) for k, w in s.weights.items()}, s.x),
    "ensemble gradients": lambda s: vmap(grad(s.loss), (0, None, None))(
        {k: torch.stack([w, 2 * w]) for k, w in s.weights.items()}, s.x[0], LENGTHS[0]
    ),
    "per-sample of an ensemble": lambda s: vmap(vmap(grad(s.loss), (None, 0)), (0, None))(
        {k: torch.stack([w, 2 * w]) for k, w in s.weights.items()}, s.x
    ),
    "ensemble in one weight": lambda s: vmap(lambda w: s.call(s.weights | {"weight_hh_l0": w}, s.x[0]))(
        torch.stack([s.weights["weight_hh_l0"], s.weights["weight_hh_l0"].sin()])
    ),
}


@EACH
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transform(transform: str, name: str, compiled: str) -> None:
    setting = Setting(name)
    agrees(lambda: (torch.manual_seed(1), TRANSFORMS[transform](setting))[1], compiled)


@EACH
def test_per_sample_gradients_are_those_of_a_loop(name: str, impl: str) -> None:
    """From here on, expected numbers are computed without torch.func."""
    s = Setting(name)
    wanted: dict[str, list[Tensor]] = {key: [] for key in s.weights}
    with sf.use_impl(impl):
        found = vmap(grad(s.loss), (None, 0, 0))(s.weights, s.x, LENGTHS)
        for x, lengths in zip(s.x, LENGTHS, strict=True):
            leaves = {key: w.clone().requires_grad_() for key, w in s.weights.items()}
            for key, t in zip(leaves, torch.autograd.grad(s.loss(leaves, x, lengths), leaves.values()), strict=True):
                wanted[key].append(t)
    close(found, {key: torch.stack(parts) for key, parts in wanted.items()})


@EACH
def test_ensemble_of_modules(name: str, impl: str) -> None:
    s = Setting(name)
    modules = [MODULES[name]().double() for _ in range(3)]
    weights, buffers = stack_module_state(modules)
    with sf.use_impl(impl):
        found = vmap(lambda w, b, x: functional_call(s.module, (w, b), (x,)), (0, 0, None))(weights, buffers, s.x[0])
        each = [tree_leaves(module(s.x[0])) for module in modules]
        close(found, [torch.stack(parts) for parts in zip(*each, strict=True)])
        total = torch.stack([t.sum() for t in tree_leaves(found)]).sum()
        gradients = torch.autograd.grad(total, list(weights.values()))  # plain autograd through the vmap
    for module, k in zip(modules, range(3), strict=True):
        with sf.use_impl(impl):
            alone = torch.stack([t.sum() for t in tree_leaves(module(s.x[0]))]).sum()
            close([g[k] for g in gradients], torch.autograd.grad(alone, list(module.parameters())))


@pytest.mark.parametrize("cell", CELLS)
def test_plain_autograd_through_vmap(cell: str, impl: str) -> None:
    """First and second derivatives by plain autograd of a vmap over leaves."""
    s = Setting({"rnn_tanh": "rnn", "rnn_relu": "relu"}.get(cell, cell))
    leaves = {key: w.clone().requires_grad_() for key, w in s.weights.items()}
    x = s.x.clone().requires_grad_()
    inputs = [x, *leaves.values()]

    def derivatives() -> Any:
        losses = vmap(s.loss, (None, 0, 0))(leaves, x, LENGTHS)
        first = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
        each = vmap(grad(s.loss), (None, 0, 0))(leaves, x, LENGTHS)
        product = torch.stack([(t**2).sum() for t in (*first, *each.values())]).sum()
        return first, each, torch.autograd.grad(product, inputs)

    agrees(derivatives, impl)


def test_one_hot_directions_of_jvp_and_vjp_agree(impl: str) -> None:
    """jacfwd uses jvp and jacrev uses vjp; both give the same matrix."""
    s = Setting("lstm")
    function = lambda x: s.call(s.weights, x, LENGTHS[0])[0]  # noqa: E731
    with sf.use_impl(impl):
        close(jacfwd(function)(s.x[0]), jacrev(function)(s.x[0]))


def test_packed_input_under_vmap(impl: str) -> None:
    """Packed rows of several samples cannot form one packed batch, so each sample is a call of its own."""
    case = Case("gru", T=4, B=3, dtype="float64", layout="packed", lengths="random")
    problem = build(case)
    inputs, options = {k: t.detach() for k, t in arguments(case, problem).items()}, keywords(case, problem)
    stacked = torch.stack([inputs["x"], inputs["x"] + 1])

    def run(**more: Any) -> Any:
        function = lambda x: layer(inputs | {"x": x}, **options | more)  # noqa: E731
        return vmap(function)(stacked), vmap(grad(lambda x: function(x)["output"].sin().sum()))(stacked)

    wanted = [layer(inputs | {"x": x}, **options) for x in stacked]
    found, _ = run(impl=impl)
    close(found, {name: torch.stack([w[name] for w in wanted]) for name in wanted[0]})
    close(run(impl=impl)[1], run(impl="reference")[1])


def test_padding_is_not_read_under_vmap(compiled: str) -> None:
    s = Setting("lstm")
    beyond = torch.arange(T)[None, :, None] >= LENGTHS[:, None, :]  # N, T, B
    spoiled = s.x.masked_fill(beyond[..., None], NAN)
    with sf.use_impl(compiled):
        function = vmap(grad(s.loss, (0, 1)), (None, 0, 0))
        close(function(s.weights, spoiled, LENGTHS), function(s.weights, s.x, LENGTHS))


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_per_sample_weight_gradients_have_the_bits_of_a_call_each(cell: str, ids: bool, compiled: str) -> None:
    """The op over samples has the bits of one call per sample: float32, odd sizes, threads, lengths and h0."""
    case = Case(cell, T=9, B=6, I=37, H=33, directions=2, lengths="zeros", proj=cell == "lstm", ids=ids)
    problem = build(case)
    inputs, options = {k: t.detach() for k, t in arguments(case, problem).items()}, keywords(case, problem)
    options |= {"impl": compiled}
    lengths = options.pop("lengths")
    x, h0 = (inputs.pop(name).unflatten(1, (3, 2)) for name in ("x", "h0"))
    c0 = inputs.pop("c0").unflatten(1, (3, 2)) if cell == "lstm" else None

    def loss(weights: Any, x: Tensor, lengths: Tensor, h0: Tensor, c0: Tensor | None) -> Tensor:
        state = {"h0": h0} | ({} if c0 is None else {"c0": c0})
        return torch.stack(
            [t.sin().sum() for t in layer(weights | {"x": x} | state, lengths=lengths, **options).values()]
        ).sum()

    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = vmap(grad(loss), (None, 1, 0, 1, None if c0 is None else 1))(inputs, x, lengths.view(3, 2), h0, c0)
        for k in range(3):
            alone = grad(loss)(inputs, x[:, k], lengths.view(3, 2)[k], h0[:, k], None if c0 is None else c0[:, k])
            for name in alone:
                assert torch.equal(found[name][k], alone[name]), name


def test_samples_of_the_op(compiled: str) -> None:
    """Gradients of samples add up to that of the batch. B must be a multiple of samples; packed input takes none."""
    gru = sf.GRU(3, 4)
    x, weights = torch.randn(5, 6, 3), [p.detach() for p in gru.parameters()]
    library = torch.ops.seqcls_fast
    h_n, output, saved = library.rnn_forward(x, weights, None, None, None, None, "gru", 1, False, True, True, compiled)

    def gradients(samples: int) -> list[torch.Tensor]:
        args = (None, h_n, None, x, weights, None, None, None, None, output, saved)
        return list(library.rnn_backward(*args, "gru", 1, False, True, True, samples, compiled))

    whole = gradients(0)
    for samples in (1, 2, 3, 6):
        d_x, *parts = gradients(samples)
        torch.testing.assert_close([d_x, *(t.sum(0) for t in parts)], whole)
    for samples in (-1, 4, 7):
        with pytest.raises(RuntimeError, match=f"samples: expected a divisor of the batch 6 but got {samples}"):
            gradients(samples)
    h_n, output, saved = library.rnn_forward(
        x[:, 0], weights, None, None, None, torch.tensor([5]), "gru", 1, False, True, True, compiled
    )
    args = (None, h_n, None, x[:, 0], weights, None, None, None, torch.tensor([5]), output, saved)
    with pytest.raises(RuntimeError, match="samples: expected 0 with batch_sizes but got 5"):
        library.rnn_backward(*args, "gru", 1, False, True, True, 5, compiled)


def test_bad_lengths_are_refused_under_vmap(compiled: str) -> None:
    s = Setting("gru")
    with sf.use_impl(compiled), pytest.raises(RuntimeError, match="lengths: expected values from 0 to T = 5"):
        vmap(partial(s.call, s.weights))(s.x, LENGTHS + 1)


@pytest.mark.parametrize("transform", ["jvp", "hessian", "grad"])
def test_bad_lengths_are_refused_by_other_transforms(transform: str, impl: str) -> None:
    s = Setting("lstm")
    loss = lambda x: s.loss(s.weights, x, torch.tensor([-3, 9]))  # noqa: E731
    function = {"jvp": lambda x: jvp(loss, (x,), (x,)), "hessian": hessian(loss), "grad": grad(loss)}[transform]
    with sf.use_impl(impl), pytest.raises(RuntimeError, match="lengths: expected values from 0 to T = 5"):
        function(s.x[0])


@EACH
def test_vmap_over_nothing(name: str, impl: str) -> None:
    """A vmap over no samples gives results of the right shapes with an empty dimension, as torch's operations do."""
    s = Setting(name)
    with sf.use_impl(impl):
        for function, dims in ((s.call, (None, 0)), (grad(s.loss, (0, 1)), (None, 0))):
            found, each = vmap(function, dims)(s.weights, s.x[:0]), vmap(function, dims)(s.weights, s.x)
            for a, b in zip(tree_leaves(found), tree_leaves(each), strict=True):
                assert a.shape == (0, *b.shape[1:])


def test_an_ensemble_of_nothing_is_refused(compiled: str) -> None:
    s = Setting("gru")
    none = {key: w.expand(0, *w.shape) for key, w in s.weights.items()}
    with sf.use_impl(compiled), pytest.raises(RuntimeError, match="vmap: expected at least one index"):
        vmap(s.call, (0, None))(none, s.x[0])


def test_impl_reaches_the_transforms(compiled: str) -> None:
    """The chosen implementation runs under vmap, forward and backward."""
    s, seen = Setting("gru"), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "seqcls_fast":
                seen.append((func._schema.name.split("::")[1], args[-1]))
            return func(*args, **kwargs or {})

    assert ops.available_impls()
    with sf.use_impl(compiled), Watch():
        vmap(grad(s.loss), (None, 0))(s.weights, s.x)
    assert seen == [(name, compiled) for name in ("rnn_forward", "rnn_backward")]
