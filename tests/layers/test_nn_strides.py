"""The memory layout of the results is torch.nn's: an output has one step after another in memory, also if batch_first.

Dropout draws its mask in the order of the memory. Only with the same layout does a seeded run repeat torch.nn's.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seqcls_fast as sf
from support.tolerances import assert_close_by_name
from support.twins import OURS, TERMS, B, H, I, T, named, pair

PROJECTED = [*OURS, pytest.param(sf.LSTM, nn.LSTM, id="LSTM-projected")]
ANY_PROJECTION = pytest.mark.parametrize(
    ("sf_class", "nn_class", "options"),
    [pytest.param(*p.values, {"proj_size": 3} if "projected" in str(p.id) else {}, id=p.id) for p in PROJECTED],
)


def inputs(batch_first: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs of all kinds: (T, B, I) or, with batch_first, (B, T, I); unbatched; packed."""

    def x(*shape: int) -> Tensor:
        t = torch.randn(shape, dtype=dtype)
        return t.transpose(0, 1).contiguous() if batch_first else t

    packed = pack_padded_sequence(x(T, B, I), torch.tensor([5, 4, 2, 1]), batch_first=batch_first)
    padded = {"padded": x(T, B, I), "one row": x(T, 1, I), "one step": x(1, B, I), "one of each": x(1, 1, I)}
    turned = x(B, T, I).transpose(0, 1)  # in memory the other way round
    return padded | {"turned": turned, "unbatched": torch.randn(T, I, dtype=dtype), "packed": packed}


def strides(results: Any) -> dict[str, Any]:
    return {name: None if t is None else (t.stride(), t.is_contiguous()) for name, t in named(*results).items()}


@pytest.mark.parametrize("batch_first", [False, True])
@ANY_PROJECTION
def test_strides_are_those_of_torch(
    sf_class: type, nn_class: type, options: dict[str, Any], batch_first: bool, impl: str
) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    for dtype, bidirectional, layers, train in itertools.product(dtypes, (False, True), (1, 2, 3), (False, True)):
        given = options | {"batch_first": batch_first, "bidirectional": bidirectional, "dtype": dtype}
        ours, theirs = (c(I, H, layers, **given).train(train) for c in (sf_class, nn_class))
        for name, x in inputs(batch_first, dtype).items():
            with torch.set_grad_enabled(train), sf.use_impl(impl):
                assert strides(ours(x)) == strides(theirs(x)), (name, given, layers, train)


@ANY_PROJECTION
def test_strides_under_autocast(sf_class: type, nn_class: type, options: dict[str, Any], impl: str) -> None:
    ours, theirs = (c(I, H, 2, batch_first=True, **options) for c in (sf_class, nn_class))
    with torch.autocast("cpu", torch.bfloat16), sf.use_impl(impl):
        assert strides(ours(torch.randn(B, T, I))) == strides(theirs(torch.randn(B, T, I)))


@pytest.mark.parametrize("lengths", [[2, 0, 5, 3], [5, 5, 5, 5], [0, 0, 0, 0]])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_strides_of_ragged_rows(sf_class: type, nn_class: type, lengths: list[int], impl: str) -> None:
    module = sf_class(I, H, 2, batch_first=True, bidirectional=True)
    with sf.use_impl(impl):
        output, _ = module(torch.randn(B, T, I), lengths=lengths)
    assert output.stride() == (2 * H, B * 2 * H, 1)


def test_large_outputs(impl: str) -> None:
    """A result of 1 MiB and more comes from our own memory pool."""
    ours, theirs = (c(8, 64, batch_first=True) for c in (sf.GRU, nn.GRU))
    x = torch.randn(64, 65, 8)
    with torch.no_grad(), sf.use_impl(impl):
        assert strides(ours(x)) == strides(theirs(x))


@pytest.mark.parametrize("grad", [False, True])
def test_programs_have_the_strides_of_eager_calls(grad: bool) -> None:
    module, x = sf.LSTM(I, H, 2, batch_first=True, bidirectional=True), torch.randn(B, T, I)
    expected = strides(module(x))
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        for program in (
            torch.export.export(module, (x,)).module(),
            torch.jit.trace(module, (x,), check_trace=False),
            torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True),
        ):
            assert strides(program(x)) == expected


@pytest.mark.parametrize("changed", [False, True])
def test_batch_first_outputs_can_be_changed_in_place(changed: bool, impl: str) -> None:
    """An output must not be a view, for torch refuses in-place changes of views that an autograd Function returns."""
    ours, theirs = pair(sf.GRU, nn.GRU, I, H, batch_first=True)
    x = torch.randn(B, T, I, dtype=torch.float64)
    found = []
    for module in (ours, theirs):
        with sf.use_impl(impl):
            output, _ = module(x)
            output = output.mul_(2) if changed else output * 2
            found.append(dict(zip("wabc", torch.autograd.grad(output.sum(), list(module.parameters())), strict=True)))
    assert_close_by_name(found[0], found[1], TERMS)


# the same seed


@pytest.mark.parametrize("kind", ["padded", "turned", "one row", "one step", "unbatched", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
@ANY_PROJECTION
def test_a_seed_draws_the_masks_of_torch(
    sf_class: type, nn_class: type, options: dict[str, Any], batch_first: bool, kind: str, impl: str
) -> None:
    """Between the layers and after the last one: a single value that only one of the two drops would show."""
    for layers, bidirectional in ((2, False), (3, True)):
        given = options | {"batch_first": batch_first, "bidirectional": bidirectional, "dropout": 0.5}
        ours, theirs = pair(sf_class, nn_class, I, H, layers, **given)
        x, found = inputs(batch_first, torch.float64)[kind], []
        for module in (ours, theirs):
            torch.manual_seed(7)
            with sf.use_impl(impl):
                results = named(*module(x))
            output = results["output"]
            assert output is not None
            found.append(results | {"dropped": dropout(output, 0.5), "next draw": torch.rand(1)})
        assert torch.equal(found[0]["dropped"] == 0, found[1]["dropped"] == 0)
        assert_close_by_name(found[0], found[1], 2 * TERMS)


class Net(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.head = layers, nn.Linear(2 * H, 3, dtype=torch.float64)

    def forward(self, x: Any) -> Tensor:
        output, _ = self.layers(x)
        output = output.data if isinstance(output, PackedSequence) else output
        return self.head(dropout(output, 0.3, self.training)).logsumexp(-1).square().mean()


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_seeded_training_is_that_of_torch(
    sf_class: type, nn_class: type, batch_first: bool, kind: str, impl: str
) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, 3, batch_first=batch_first, bidirectional=True, dropout=0.4)
    x, found = inputs(batch_first, torch.float64)[kind], []
    for layers in (ours, theirs):
        torch.manual_seed(3)
        net = Net(layers)
        optimizer, losses = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9), []
        for _ in range(3):
            optimizer.zero_grad()
            with sf.use_impl(impl):
                loss = net(x)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        found.append(dict(net.named_parameters()) | {"losses": torch.stack(losses)})
    assert found[0]["losses"].unique().numel() == 3
    assert_close_by_name(found[0], found[1], 3 * 2 * TERMS)
