"""Idioms of training code around a layer: gradient penalties, inner loops, hooks, checkpoints, in-place activations,
DistributedDataParallel, optimizers.

Results are compared with torch.nn in float64, or with a loop or a formula where torch.nn has no such call.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import dropout, mse_loss, relu_
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import seqcls_fast as sf
from support.tolerances import assert_close_by_name
from support.twins import OURS, PAIRS, TERMS, B, H, I, T, Tensors, hx_of, named, pair, x_of

PAIR = pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
SECOND = 4 * TERMS  # second derivatives go through the forward and the backward, and back through both
LENGTHS = [3, 5, 1, 4]
DEEP = {"num_layers": 2, "bidirectional": True}


@pytest.fixture(autouse=True)
def _on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Our layers in tests that take `impl` run on that implementation."""
    with sf.use_impl(request.getfixturevalue("impl") if "impl" in request.fixturenames else "auto"):
        yield


class Scorer(nn.Module):
    """A layer and a linear score for each row, computed from all steps and the final states."""

    def __init__(self, layer: nn.Module, lengths: list[int] | None = None) -> None:
        super().__init__()
        self.layer, self.lengths = layer, lengths
        generator = torch.Generator().manual_seed(5)
        width = layer.hidden_size * (2 if layer.bidirectional else 1)
        weight = torch.randn(1, width, generator=generator, dtype=torch.float64).to(layer.weight_ih_l0.dtype)
        self.head = nn.Parameter(weight)

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        if self.lengths is None:
            output, states = self.layer(x, hx)
        elif isinstance(self.layer, sf.RNN | sf.GRU | sf.LSTM):
            output, states = self.layer(x, hx, lengths=self.lengths)
        else:
            packed = pack_padded_sequence(x, torch.tensor(self.lengths), enforce_sorted=False)
            output, states = self.layer(packed, hx)
            output = pad_packed_sequence(output)[0]
        states = states if isinstance(states, tuple) else (states,)
        return (output @ self.head.T).squeeze(2).sum(0) + sum(state.square().sum((0, 2)) for state in states)


def scorers(sf_class: type, nn_class: type, lengths: list[int] | None = None, **options: Any) -> list[Scorer]:
    return [Scorer(module, lengths) for module in pair(sf_class, nn_class, I, H, **options)]


def grads(module: nn.Module) -> Tensors:
    return {name: p.grad for name, p in module.named_parameters()}


def assert_both(run: Callable[[Any], Tensors], modules: list[Any], terms: int = TERMS) -> Tensors:
    """Asserts that `run` gives the same tensors for our module and torch's, and returns ours."""
    mine, theirs = (run(module) for module in modules)
    assert_close_by_name(mine, theirs, terms)
    return mine


# second derivatives


@PAIR
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, DEEP, {"lengths": LENGTHS}, {"lengths": LENGTHS, **DEEP}], ids=str)
def test_gradient_penalty(
    sf_class: type, nn_class: type, options: dict[str, Any], dtype: torch.dtype, impl: str
) -> None:
    """The loss of WGAN-GP: a penalty on the norm of the critic's input gradient, here also on the gradient of h0."""
    ours, theirs = scorers(sf_class, nn_class, **options)

    def run(critic: Scorer, dtype: torch.dtype) -> Tensors:
        hx = hx_of(critic.layer)
        hx = tuple(state.to(dtype).requires_grad_() for state in (hx if isinstance(hx, tuple) else (hx,)))
        x = x_of().to(dtype).requires_grad_()
        score = critic(x, hx if len(hx) == 2 else hx[0])
        d_x, *d_hx = torch.autograd.grad(score.sum(), [x, *hx], create_graph=True)
        penalty = ((d_x.norm(dim=(0, 2)) - 1) ** 2).mean() + sum(d.square().mean() for d in d_hx)
        (penalty + score.mean()).backward()
        return grads(critic) | {"d_x": x.grad} | {f"d_hx{k}": state.grad for k, state in enumerate(hx)}

    assert_close_by_name(run(ours.to(dtype), dtype), run(theirs, torch.float64), SECOND)


def adapted_loss(model: nn.Module, weights: dict[str, Tensor], support: Tensor, query: Tensor) -> Tensor:
    """The loss of MAML: that on a task's query set after one step on its support set."""
    inner = functional_call(model, weights, (support,)).square().mean()
    steps = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
    adapted = {name: w - 0.1 * d for (name, w), d in zip(weights.items(), steps, strict=True)}
    return functional_call(model, adapted, (query,)).square().mean()


@PAIR
def test_meta_learning(sf_class: type, nn_class: type, impl: str) -> None:
    def run(model: Scorer) -> Tensors:
        adapted_loss(model, dict(model.named_parameters()), x_of(), x_of(seed=1)).backward()
        return grads(model)

    assert_both(run, scorers(sf_class, nn_class, **DEEP), 2 * SECOND)


@PAIR
def test_meta_learning_mapped_over_tasks(sf_class: type, nn_class: type, impl: str) -> None:
    """vmap over the data and weights of tasks gives the results of a loop over torch.nn, with second derivatives."""
    ours, theirs = scorers(sf_class, nn_class)
    names = [name for name, _ in theirs.named_parameters()]
    stacked = {name: torch.stack([p.detach() * k for k in (0.5, 1, 1.5)]) for name, p in theirs.named_parameters()}
    support, query = x_of(3, T, B, I), x_of(3, T, B, I, seed=1)

    def task(weights: dict[str, Tensor], support: Tensor, query: Tensor) -> Tensor:
        steps = torch.func.grad(lambda w: functional_call(ours, w, (support,)).square().mean())(weights)
        adapted = {name: w - 0.1 * steps[name] for name, w in weights.items()}
        return functional_call(ours, adapted, (query,)).square().mean()

    found = torch.func.vmap(torch.func.grad(task))(stacked, support, query)
    for k in range(3):
        weights = {name: stacked[name][k].clone().requires_grad_() for name in names}
        wanted = torch.autograd.grad(adapted_loss(theirs, weights, support[k], query[k]), list(weights.values()))
        one = {name: t[k] for name, t in found.items()}
        assert_close_by_name(one, dict(zip(names, wanted, strict=True)), 2 * SECOND)


@PAIR
def test_hessian_vector_products_and_jacobians(sf_class: type, nn_class: type, impl: str) -> None:
    def run(model: Scorer) -> Tensors:
        def loss(x: Tensor, w: Tensor) -> Tensor:
            return functional_call(model, {"layer.weight_hh_l0": w}, (x,)).sum()

        inputs = (x_of(), model.layer.weight_hh_l0.detach())
        vectors = tuple(torch.cos(torch.arange(float(t.numel()), dtype=t.dtype)).view_as(t) for t in inputs)
        found = dict(zip(("Hx", "Hw"), torch.autograd.functional.hvp(loss, inputs, vectors)[1], strict=True))
        return found | {"J": torch.autograd.functional.jacobian(model, x_of())}

    assert_both(run, scorers(sf_class, nn_class, **DEEP), SECOND)


@PAIR
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # a warning of torch's forward mode
def test_vectorized_jacobians(sf_class: type, nn_class: type, strategy: str, impl: str) -> None:
    """In reverse mode one backward gets a batch of incoming gradients, for a graph that was made before the vmap."""
    ours, theirs = scorers(sf_class, nn_class, lengths=LENGTHS, bidirectional=True)
    found = torch.autograd.functional.jacobian(ours, x_of(), vectorize=True, strategy=strategy)
    wanted = torch.autograd.functional.jacobian(theirs, x_of())
    assert_close_by_name({"J": found}, {"J": wanted}, SECOND)


# hooks


@PAIR
def test_every_hook_fires_once_with_the_right_gradient(sf_class: type, nn_class: type, impl: str) -> None:
    def run(model: Scorer) -> Tensors:
        seen: Tensors = {}

        def note(name: str, value: Tensor | None) -> None:
            assert name not in seen, f"{name} fired twice"
            seen[name] = value

        def note_all(name: str, values: Any) -> None:
            for k, value in enumerate(values):
                note(f"{name} {k}", value)

        for name, p in model.named_parameters():
            p.register_hook(lambda grad, name=name: note(f"hook {name}", grad))
            p.register_post_accumulate_grad_hook(lambda p, name=name: note(f"post {name}", p.grad.clone()))
        model.layer.register_full_backward_pre_hook(lambda _, outer: note_all("pre", outer))
        model.layer.register_full_backward_hook(lambda _, inner, outer: note_all("in", inner) or note_all("out", outer))
        x = x_of().requires_grad_()
        hidden = x * 2
        hidden.register_hook(lambda grad: note("hook x", grad))
        output, states = model.layer(hidden)
        output.register_hook(lambda grad: note("hook output", grad))
        ((output @ model.head.T).sum() + named(output, states)["h_n"].square().sum()).backward()
        assert len(seen) >= 2 * len(list(model.parameters())) + 5
        return seen | {"d_x": x.grad}

    assert_both(run, scorers(sf_class, nn_class, **DEEP))


@PAIR
def test_hooks_may_change_gradients(sf_class: type, nn_class: type, impl: str) -> None:
    def run(model: Scorer) -> Tensors:
        model.layer.weight_hh_l0.register_hook(lambda grad: grad.clamp(-1, 1))
        model.layer.register_full_backward_pre_hook(lambda _, outer: (outer[0] * 2, *outer[1:]))
        model.layer.register_full_backward_hook(lambda _, inner, outer: tuple(g if g is None else 2 * g for g in inner))
        x = x_of().requires_grad_()
        model(x * 1).sum().backward()
        return grads(model) | {"d_x": x.grad}

    assert_both(run, scorers(sf_class, nn_class))


@PAIR
def test_optimizer_in_the_backward(sf_class: type, nn_class: type, impl: str) -> None:
    """Each parameter is updated, and its gradient freed, as soon as the backward has computed it."""

    def run(model: Scorer) -> Tensors:
        optimizers = {p: torch.optim.SGD([p], lr=0.01, momentum=0.9) for p in model.parameters()}

        def step(p: Tensor) -> None:
            optimizers[p].step()
            p.grad = None

        if not isinstance(model.layer, sf_class):
            for k in range(3):
                model(x_of(seed=k)).mean().backward()
                for p in model.parameters():
                    step(p)
            return dict(model.named_parameters())
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        for k in range(3):
            model(x_of(seed=k)).mean().backward()
            assert all(p.grad is None for p in model.parameters())
        return dict(model.named_parameters())

    assert_both(run, scorers(sf_class, nn_class, **DEEP), 3 * TERMS)


# graphs that are kept, changed, freed or computed again


@PAIR
def test_graphs_can_be_used_twice(sf_class: type, nn_class: type, impl: str) -> None:
    def run(model: Scorer) -> Tensors:
        loss, found = model(x_of()).sum(), []
        for _ in range(2):
            model.zero_grad()
            loss.backward(retain_graph=True)
            found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        assert_close_by_name(found[0], found[1], 0)
        return found[1]

    assert_both(run, scorers(sf_class, nn_class, **DEEP))


@PAIR
@pytest.mark.parametrize("changed", ["x", "hx", "weight_ih_l0", "weight_hh_l0"])
def test_changed_in_place_before_backward(sf_class: type, nn_class: type, changed: str, impl: str) -> None:
    """torch's usual error is raised, and no gradient is computed from the changed value."""
    module = sf_class(I, H)
    x, hx = x_of().float().requires_grad_() * 1, hx_of(module)
    hx = tuple(state.float() for state in hx) if isinstance(hx, tuple) else hx.float()
    output = module(x, hx)[0]
    first = hx[0] if isinstance(hx, tuple) else hx
    with torch.no_grad():
        {"x": x, "hx": first}.get(changed, getattr(module, changed, None)).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


USES: dict[str, Callable[[Tensors], Tensor]] = {
    "stride 0": lambda r: torch.stack([t.sum() for t in r.values() if t is not None]).sum(),
    "output": lambda r: r["output"].sum(),
    "h_n": lambda r: r["h_n"].square().sum(),
    "last state": lambda r: (r["h_n"] if r["c_n"] is None else r["c_n"]).sum(),
    "forward direction": lambda r: r["output"][..., :H].sum(),
    "reverse direction": lambda r: r["output"][..., H:].square().sum(),
    "one step": lambda r: r["output"][2].sum(),
}


@PAIR
@pytest.mark.parametrize("use", USES)
def test_what_a_loss_may_use(sf_class: type, nn_class: type, use: str, impl: str) -> None:
    def run(module: nn.Module) -> Tensors:
        x = x_of().requires_grad_()
        USES[use](named(*module(x))).backward()
        return grads(module) | {"d_x": x.grad}

    assert_both(run, list(pair(sf_class, nn_class, I, H, **DEEP)))


@contextmanager
def packed_to_numpy() -> Iterator[None]:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(order="K"), torch.from_numpy):
        yield


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def hooked(hooks: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Tensor]:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        with hooks():
            return model(x)

    return run


ELSEWHERE = {
    "reentrant": lambda model, x: checkpoint(model, x, use_reentrant=True),
    "not reentrant": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "save_on_cpu": hooked(torch.autograd.graph.save_on_cpu),
    "numpy": hooked(packed_to_numpy),
}


@PAIR
@pytest.mark.parametrize("way", ELSEWHERE)
def test_saved_elsewhere_or_recomputed(sf_class: type, nn_class: type, way: str, impl: str) -> None:
    """Gradients have the bits of the plain call: dropout between layers draws the same numbers again."""
    model, found = Scorer(sf_class(I, H, **DEEP, dropout=0.5), LENGTHS), []
    for call in (plain, ELSEWHERE[way]):
        torch.manual_seed(3)
        model.zero_grad()
        x = x_of().float().requires_grad_()
        call(model, x).sum().backward()
        found.append(grads(model) | {"d_x": x.grad})
    assert_close_by_name(found[1], found[0], 0)


@PAIR
def test_hooks_get_all_that_is_saved_and_graphs_free_it(sf_class: type, nn_class: type, impl: str) -> None:
    module = sf_class(I, H)

    def loss_and_memory() -> tuple[Tensor, list[StorageWeakRef]]:
        x = x_of().float().requires_grad_() * 1
        output = module(x)[0]
        return output.sum(), [StorageWeakRef(t.untyped_storage()) for t in (x, output)]

    with packed_to_numpy():
        loss, memory = loss_and_memory()
    assert all(ref.expired() for ref in memory), "a saved tensor went around the hooks"
    loss, memory = loss_and_memory()
    assert not memory[0].expired()
    loss.backward()
    assert all(ref.expired() for ref in memory), "a graph kept memory after its backward"


def drop(output: Tensor, h_n: Tensor) -> None:
    torch.manual_seed(4)
    dropout(output, 0.5, inplace=True)


IN_PLACE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "relu": lambda output, h_n: relu_(output),
    "dropout": drop,
    "residual": lambda output, h_n: operator.iadd(output, torch.ones_like(output)),
    "zero a row": lambda output, h_n: output[:, 0].zero_(),
    "states": lambda output, h_n: h_n.mul_(3),
    "both": lambda output, h_n: (output.mul_(2), h_n.sigmoid_()),
}


class Behind(nn.Module):
    """A layer and a change of its results in place. For torch.nn's, which gives the expected numbers, copies change."""

    def __init__(self, layer: nn.Module, change: str, copies: bool) -> None:
        super().__init__()
        self.layer, self.change, self.copies = layer, IN_PLACE[change], copies

    def forward(self, x: Tensor) -> Tensor:
        results = named(*self.layer(x))
        output, h_n = (t.clone() if self.copies else t for t in (results["output"], results["h_n"]))
        self.change(output, h_n)
        return output.square().sum() + h_n.square().sum()


@PAIR
@pytest.mark.parametrize("change", IN_PLACE)
def test_in_place_behind_the_layer(sf_class: type, nn_class: type, change: str, impl: str) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, **DEEP)
    models = [Behind(ours, change, copies=False), Behind(theirs, change, copies=True)]

    def first(model: Behind, call: Callable[..., Tensor] = plain, times: int = 1) -> Tensors:
        model.zero_grad()
        x = x_of().requires_grad_()
        loss = call(model, x)
        for k in range(times):
            loss.backward(retain_graph=k < times - 1)
        return {"loss": loss, "d_x": x.grad} | grads(model)

    def second(model: Behind) -> Tensors:
        model.zero_grad()
        x = x_of().requires_grad_()
        torch.autograd.grad(model(x), x, create_graph=True)[0].square().sum().backward()
        return {"d_x": x.grad} | grads(model)

    wanted = assert_both(first, models)
    for reentrant in (True, False):
        again = first(models[0], lambda model, x, way=reentrant: checkpoint(model, x, use_reentrant=way))
        assert_close_by_name(again, wanted, 0)
    assert_both(lambda model: first(model, times=2), models)
    assert_both(second, models, SECOND)


@PAIR
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in")
def test_deterministic_algorithms_and_anomaly_detection(sf_class: type, nn_class: type, impl: str) -> None:
    model = Scorer(sf_class(I, H, **DEEP), LENGTHS)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(True):
            model(x_of().float()).sum().backward()
            assert all(p.grad is not None and p.grad.any() for p in model.parameters())
            poisoned = x_of().float()
            poisoned[0, 0, 0] = float("nan")
            named_function = r"\w+" if impl in ("reference", "torch") else "LayerBackward"
            with pytest.raises(RuntimeError, match=f"Function '{named_function}' returned nan values"):
                model.layer(poisoned)[0].sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


# several processes, optimizers, loops


class Spare(Scorer):
    """A scorer with a parameter on which no loss depends."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.spare = nn.Parameter(torch.ones(2, dtype=torch.float64))


def distributed_worker(rank: int, world: int, file: str) -> None:
    """Gradients are the mean over processes. They are compared with torch.nn's mean over the batches of all of them."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    try:
        torch.set_num_threads(1)
        ways = ((Scorer, {}), (Scorer, {"static_graph": True}), (Spare, {"find_unused_parameters": True}))
        for sf_class, nn_class in PAIRS.values():
            for kind, options in ways:
                torch.manual_seed(0)
                ours, theirs = (kind(module) for module in pair(sf_class, nn_class, I, H, **DEEP))
                wrapped = nn.parallel.DistributedDataParallel(ours, **options)
                for step in range(3):
                    wrapped.zero_grad()
                    theirs.zero_grad()
                    wrapped(x_of(seed=10 * step + rank)).sum().backward()
                    torch.stack([theirs(x_of(seed=10 * step + r)).sum() for r in range(world)]).mean().backward()
                    assert_close_by_name(grads(ours), grads(theirs), TERMS)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("world", [1, 2])
def test_distributed_data_parallel(world: int, tmp_path: Path) -> None:
    if world == 1:
        distributed_worker(0, 1, str(tmp_path / "meet"))
    else:
        torch.multiprocessing.spawn(distributed_worker, (world, str(tmp_path / "meet")), world)


def trained(model: nn.Module, make: Callable[..., torch.optim.Optimizer], steps: int = 3, clip: float = 0.0) -> Tensors:
    """The parameters after a few steps of a regression."""
    optimizer = make(model.parameters())
    for k in range(steps):
        x = x_of(seed=k)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = mse_loss(model(x), x.sum((0, 2)))
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            return loss

        optimizer.step(closure)
    return dict(model.named_parameters())


def sgd(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, **options)


def adam(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    """eps is as large as the gradients. With a small eps, steps for small gradients would be rounding errors."""
    return torch.optim.AdamW(parameters, lr=0.01, eps=1.0, **options)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, max_iter=3, line_search_fn="strong_wolfe")


OPTIMIZERS = {
    "sgd": sgd,
    "sgd-foreach": partial(sgd, foreach=True),
    "sgd-fused": partial(sgd, fused=True),
    "adam-foreach": partial(adam, foreach=True),
    "adam-fused": partial(adam, fused=True),
    "lbfgs": lbfgs,
}


@PAIR
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_follow_torchs(sf_class: type, nn_class: type, optimizer: str, impl: str) -> None:
    ours, theirs = scorers(sf_class, nn_class, **DEEP)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    mine = trained(ours, OPTIMIZERS[optimizer], clip=1.0)
    single = {"sgd": sgd, "adam": adam, "lbfgs": lbfgs}[optimizer.split("-")[0]]
    assert_close_by_name(mine, trained(theirs, single, clip=1.0), 3 * TERMS)
    assert all(not torch.equal(p, before[name]) for name, p in mine.items())


@PAIR
def test_data_parallel_without_gpus_passes_through(sf_class: type, nn_class: type, impl: str) -> None:
    ours, theirs = scorers(sf_class, nn_class, **DEEP)
    assert_both(lambda model: trained(model, sgd), [nn.DataParallel(ours), nn.DataParallel(theirs)], 3 * TERMS)


@PAIR
def test_averaged_models(sf_class: type, nn_class: type, impl: str) -> None:
    """SWA, EMA and the vector of all parameters: the averaged copy uses its averages, in eval and in training mode."""
    for average in (None, torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)):

        def run(model: Scorer, average: Any = average) -> Tensors:
            averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average)
            scores: Tensors = {}
            for k in range(3):
                trained(model, sgd, steps=1)
                averaged.update_parameters(model)
                scores |= {f"train {k}": averaged(x_of()), f"eval {k}": averaged.eval()(x_of())}
            vector = nn.utils.parameters_to_vector(averaged.parameters())
            nn.utils.vector_to_parameters(vector * 2, model.parameters())
            return scores | {"vector": vector, "doubled": model(x_of()), "doubled eval": model.eval()(x_of())}

        found = assert_both(run, scorers(sf_class, nn_class, **DEEP), 9 * TERMS)
        assert not torch.equal(found["eval 0"], found["eval 2"])


@PAIR
@pytest.mark.parametrize("training", [True, False])
def test_weights_written_between_calls_are_used(sf_class: type, nn_class: type, training: bool, impl: str) -> None:
    def run(model: Scorer) -> Tensors:
        model.train(training)
        scores = {"start": model(x_of())}
        for p in model.layer.parameters():
            p.data = p.data * 0.5
        scores["p.data = ..."] = model(x_of())
        for p in model.layer.parameters():
            p.detach().numpy()[...] *= -1.5
        scores["numpy"] = model(x_of())
        with torch.no_grad():
            scores["no_grad"] = model(x_of(seed=1))
        return scores

    found = assert_both(run, scorers(sf_class, nn_class, **DEEP))
    assert len({tuple(t.tolist()) for t in found.values()}) == 4


@PAIR
def test_accumulated_gradients_are_the_whole_batches(sf_class: type, nn_class: type, impl: str) -> None:
    ours, theirs = scorers(sf_class, nn_class, **DEEP)
    for rows in x_of().split([1, 2, 1], dim=1):
        (ours(rows).sum() / B).backward()
    theirs(x_of()).mean().backward()
    assert_close_by_name(grads(ours), grads(theirs), TERMS)


@PAIR
def test_truncated_backpropagation(sf_class: type, nn_class: type, impl: str) -> None:
    def run(module: nn.Module) -> Tensors:
        hx, losses = None, {}
        for k, chunk in enumerate(x_of(3 * T, B, I).split(T)):
            output, hx = module(chunk, hx)
            losses[f"loss {k}"] = output.square().mean()
            losses[f"loss {k}"].backward()
            hx = tuple(state.detach() for state in hx) if isinstance(hx, tuple) else hx.detach_()
        return losses | grads(module)

    assert_both(run, list(pair(sf_class, nn_class, I, H, num_layers=2)), 3 * TERMS)


@PAIR
def test_modes_without_gradients(sf_class: type, nn_class: type, impl: str) -> None:
    model = Scorer(sf_class(I, H, **DEEP), LENGTHS)
    plain = model(x_of().float())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            score = model(x_of().float())
        assert torch.equal(score, plain)
        assert not score.requires_grad
        assert score.is_inference() == (mode is torch.inference_mode)
    with torch.inference_mode():
        made = x_of().float()
    assert torch.equal(model.requires_grad_(False)(made), plain)
    assert not model(x_of().float()).requires_grad


@PAIR
@pytest.mark.parametrize("frozen", ["weight_ih", "weight_hh", "bias", "_l0", "_reverse", "_l1"])
def test_frozen_weights(sf_class: type, nn_class: type, frozen: str, impl: str) -> None:
    def run(model: Scorer) -> Tensors:
        for name, p in model.layer.named_parameters():
            p.requires_grad_(frozen not in name)
        model(x_of()).sum().backward()
        return grads(model)

    found = assert_both(run, scorers(sf_class, nn_class, **DEEP))
    assert all((grad is None) == (frozen in name) for name, grad in found.items())
