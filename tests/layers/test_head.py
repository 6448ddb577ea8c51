"""The operators that follow the layers of a classifier: linear, pool_steps and softmax. They are compared with the
float64 reference in memory full of NaN; a row has the same bits in every batch; wrong arguments raise a sentence."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear as torch_linear

from seqcls_fast import _ext, _head, ops, reference
from support.cases import FLOATS, HALVES
from support.checks import NAN, guarded, poisoned_memory
from support.tolerances import assert_close_by_name

pytestmark = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")

OPS = torch.ops.seqcls_fast
DTYPES = [getattr(torch, name) for name in FLOATS + HALVES]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# (N, K, columns), with every size zero once, and chains of products longer than 256
PRODUCTS = [
    (0, 5, 3),
    (4, 0, 3),
    (4, 5, 0),
    (1, 1, 1),
    (2, 5, 2),
    (7, 32, 20),
    (200, 200, 3),
    (49, 33, 500),
    (6, 600, 2),
]
# (B, T, W)
STEPS = [(0, 4, 3), (3, 0, 5), (3, 4, 0), (1, 1, 1), (2, 7, 5), (7, 50, 33), (20, 9, 200), (3, 600, 32)]
LOGITS = [(0, 3), (4, 0), (5, 1), (1, 2), (7, 3), (200, 20), (9, 500)]
POOLINGS = ("mean", "max", "attention")


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(BITS[a.element_size()]), b.contiguous().view(BITS[b.element_size()])
    )


def numbers(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)


def placements(t: Tensor) -> list[Tensor]:
    """The same numbers in three layouts, each between NaN."""
    wide = torch.full((*t.shape[:-1], 2 * t.size(-1) + 3), NAN, dtype=t.dtype)
    strided = wide[..., 1 : 1 + 2 * t.size(-1) : 2].copy_(t)
    swapped = guarded(t.transpose(0, 1)).transpose(0, 1)
    return [guarded(t), swapped, strided]


def roundings(chain: int, dtype: torch.dtype) -> int:
    """A sum's errors walk at random: 4 standard deviations. In 16 bits sums are float32 and the result is rounded."""
    return 4 if dtype.itemsize == 2 else 16 + 4 * isqrt(chain)


def assert_close(found: Tensor, wanted: Tensor, chain: int) -> None:
    assert_close_by_name({"result": found}, {"result": wanted}, roundings(chain, found.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_linear(shape: tuple[int, int, int], dtype: torch.dtype, compiled: str) -> None:
    N, K, columns = shape
    x, weight, bias = (numbers(*s, dtype=dtype) for s in ((N, K), (columns, K), (columns,)))
    for b in (bias, None):
        wanted = torch_linear(x.double(), weight.double(), None if b is None else b.double())
        with poisoned_memory():
            for rows, w in zip(placements(x), placements(weight), strict=True):
                found = OPS.linear(rows, w, None if b is None else guarded(b), compiled)
                assert found.dtype == dtype
                assert_close(found, wanted, K)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", STEPS, ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pool_steps(pooling: str, shape: tuple[int, int, int], dtype: torch.dtype, compiled: str) -> None:
    B, T, W = shape
    output, weight, bias = (numbers(*s, dtype=dtype) for s in (shape, (1, W), (1,)))
    lengths = torch.randint(T + 1, (B,))
    lengths[:1], lengths[1:2] = T, 0
    for ends in (lengths, None):
        beyond = torch.arange(T) >= (torch.full((B,), T) if ends is None else ends)[:, None]
        clean = output.double().masked_fill(beyond[:, :, None], 0)
        scores, weights = None, (None, None)
        if pooling == "attention":
            scores, weights = torch_linear(clean, weight.double(), bias.double())[..., 0], (weight, bias)
        empty = clean.new_zeros(B, W)
        wanted = reference.pool_steps(clean, ends, pooling, scores) if T else empty
        with poisoned_memory():
            for steps in placements(output.masked_fill(beyond[:, :, None], NAN)):
                found = OPS.pool_steps(steps, ends, pooling, *weights, compiled)
                assert found.dtype == dtype
                assert_close(found, wanted, T + 2 * W * (pooling == "attention"))
    if pooling == "max" and T and W:
        assert same_bits(found, output.amax(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 20.0])
@pytest.mark.parametrize("shape", LOGITS, ids=str)
def test_softmax(shape: tuple[int, int], temperature: float, dtype: torch.dtype, compiled: str) -> None:
    logits = numbers(*shape, dtype=dtype, scale=4.0)
    wanted = reference.softmax(logits.double(), temperature)
    with poisoned_memory():
        for rows in placements(logits):
            found = OPS.softmax(rows, temperature, compiled)
            # e^x multiplies an error of x, which is at most u |x|, where |x| is the distance to the largest logit.
            distance = int((logits.double() / temperature).abs().max()) * 2 if logits.numel() else 0
            assert_close_by_name({"p": found}, {"p": wanted}, roundings(shape[1], dtype) + distance)
    if shape[1]:
        torch.testing.assert_close(found.double().sum(1), torch.ones(shape[0]).double(), rtol=0, atol=0.02)


def test_softmax_of_unusual_numbers(compiled: str) -> None:
    """As torch's: tiny probabilities are 0, and NaN and infinity give NaN."""
    inf = float("inf")
    for dtype in (torch.float32, torch.float64):
        rows = [[0, -1e4, -inf], [1e30, 1e30, 0], [0, NAN, 1], [inf, 0, 0], [-inf, -inf, -inf], [-1e4, -1e4, -1e4]]
        logits = torch.tensor(rows, dtype=dtype)
        torch.testing.assert_close(OPS.softmax(logits, 1.0, compiled), logits.softmax(1), equal_nan=True)


def test_nan_and_infinity_go_through_the_poolings(compiled: str) -> None:
    for value in (NAN, float("inf"), float("-inf")):
        for step in (0, 1, 4):
            output = torch.randn(2, 5, 19)
            output[1, step, 3] = value
            for pooling in ("mean", "max"):
                found = OPS.pool_steps(output, None, pooling, None, None, compiled)
                wanted = reference.pool_steps(output, None, pooling)
                torch.testing.assert_close(found, wanted, equal_nan=True)
            if value != value:
                weights = (torch.randn(1, 19), torch.randn(1))
                assert OPS.pool_steps(output, None, "attention", *weights, compiled)[1].isnan().all()


# -- equal bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [2, 3, 20, 500])
@pytest.mark.parametrize("K", [5, 32, 200, 300])
def test_rows_of_a_product(K: int, columns: int, dtype: torch.dtype, compiled: str) -> None:
    x, weight, bias = (numbers(*s, dtype=dtype) for s in ((200, K), (columns, K), (columns,)))
    whole = OPS.linear(x, weight, bias, compiled)
    for index in ([0], [199], [7, 3], [*range(7)], [*range(199, -1, -1)]):
        assert same_bits(OPS.linear(x[index], weight, bias, compiled), whole[index]), index
    spread = torch.full((200, K + 5), NAN, dtype=dtype)[:, :K].copy_(x)
    assert same_bits(OPS.linear(spread, weight, bias, compiled), whole)
    torch.set_num_threads(3)
    big = x.repeat(20, 1)
    assert same_bits(OPS.linear(big, weight, bias, compiled), whole.repeat(20, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("W", [5, 32, 200])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_of_a_pooling(pooling: str, W: int, dtype: torch.dtype, compiled: str) -> None:
    B, T = 12, 300
    output, weight, bias = (numbers(*s, dtype=dtype) for s in ((B, T, W), (1, W), (1,)))
    weights = (weight, bias) if pooling == "attention" else (None, None)
    lengths = torch.tensor([300, 0, 1, 2, 257, 256, 17, 16, 15, 299, 100, 48])
    whole = OPS.pool_steps(output, lengths, pooling, *weights, compiled)
    for row, length in enumerate(lengths.tolist()):
        for more in (0, 1, 40):
            padded = torch.cat([output[row : row + 1, :length], torch.full((1, more, W), NAN, dtype=dtype)], 1)
            alone = OPS.pool_steps(padded, torch.tensor([length]), pooling, *weights, compiled)
            assert same_bits(alone[0], whole[row]), (row, more)
    time_first = output.transpose(0, 1).contiguous().transpose(0, 1)
    assert same_bits(OPS.pool_steps(time_first, lengths, pooling, *weights, compiled), whole)
    torch.set_num_threads(3)
    many = OPS.pool_steps(output.repeat(9, 1, 1), lengths.repeat(9), pooling, *weights, compiled)
    assert same_bits(many, whole.repeat(9, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 20, 500])
def test_rows_of_a_softmax(classes: int, dtype: torch.dtype, compiled: str) -> None:
    logits = numbers(200, classes, dtype=dtype, scale=3.0)
    whole = OPS.softmax(logits, 0.7, compiled)
    for index in ([0], [199], [7, 3], [*range(199, -1, -1)]):
        assert same_bits(OPS.softmax(logits[index], 0.7, compiled), whole[index])
    torch.set_num_threads(3)
    assert same_bits(OPS.softmax(logits.repeat(50, 1), 0.7, compiled), whole.repeat(50, 1))


# -- gradients and wrong arguments ------------------------------------------------------------------------------------

CALLS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "linear": lambda leaf: (leaf(4, 5), leaf(3, 5), leaf(3)),
    "pool_steps": lambda leaf: (leaf(4, 6, 5), torch.tensor([6, 0, 1, 3]), "attention", leaf(1, 5), leaf(1)),
    "softmax": lambda leaf: (leaf(4, 5), 0.5),
}
FORMULAS = {"linear": torch_linear, "pool_steps": _head._pool_with_weight, "softmax": reference.softmax}


@pytest.mark.parametrize("name", CALLS)
def test_called_with_gradients_the_operators_have_them(name: str, compiled: str) -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    args = CALLS[name](leaf)
    leaves = [t for t in args if isinstance(t, Tensor) and t.requires_grad]
    found = getattr(OPS, name)(*args, compiled)
    wanted = FORMULAS[name](*args)
    assert torch.equal(found, wanted)
    pairs = (torch.autograd.grad(r.cos().sum(), leaves) for r in (found, wanted))
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*pairs, strict=True))
    torch.library.opcheck(getattr(OPS, name).default, (*args, compiled))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str, dtype: torch.dtype, compiled: str) -> None:
    args = CALLS[name](lambda *shape: numbers(*shape, dtype=dtype))
    torch.library.opcheck(getattr(OPS, name).default, (*args, compiled))


X, W2, B3 = torch.zeros(4, 5), torch.zeros(3, 5), torch.zeros(3)
S, L = torch.zeros(4, 6, 5), torch.tensor([6, 0, 1, 3])
WRONG: list[tuple[str, str, tuple[Any, ...]]] = [
    ("linear", r"x: expected \(N, K\) but got shape \(4, 6, 5\)", (S, W2, B3)),
    ("linear", r"x: expected dtype float32, float64, bfloat16 or float16 but got int64", (X.long(), W2, B3)),
    ("linear", r"weight: expected \(columns, K\) but got shape \(5,\)", (X, W2[0], B3)),
    ("linear", r"weight: expected shape \(3, 5\) but got \(3, 4\)", (X, W2[:, :4], B3)),
    ("linear", r"weight: expected dtype float32 but got float64", (X, W2.double(), B3)),
    ("linear", r"bias: expected shape \(3,\) but got \(2,\)", (X, W2, B3[:2])),
    ("pool_steps", r"output: expected \(B, T, W\) but got shape \(4, 5\)", (X, None, "mean", None, None)),
    ("pool_steps", r"pooling: expected one of mean, max, attention but got 'sum'", (S, None, "sum", None, None)),
    ("pool_steps", r"lengths: expected shape \(4,\) but got \(3,\)", (S, L[:3], "mean", None, None)),
    ("pool_steps", r"lengths: expected dtype int64 but got another dtype", (S, L.int(), "mean", None, None)),
    ("pool_steps", r"lengths: expected values from 0 to T = 6 but got 1 to 7", (S, L + 1, "mean", None, None)),
    ("pool_steps", r"lengths: expected values from 0 to T = 6 but got -1 to 5", (S, L - 1, "max", None, None)),
    ("pool_steps", r"weight: expected a tensor for pooling attention but got None", (S, L, "attention", None, None)),
    ("pool_steps", r"weight: expected shape \(1, 5\) but got \(3, 5\)", (S, L, "attention", W2, None)),
    ("pool_steps", r"bias: expected shape \(1,\) but got \(3,\)", (S, L, "attention", W2[:1], B3)),
    ("pool_steps", r"weight: expected None for pooling mean", (S, L, "mean", W2[:1], None)),
    ("pool_steps", r"bias: expected None for pooling max", (S, L, "max", None, B3[:1])),
    ("softmax", r"logits: expected \(N, classes\) but got shape \(3,\)", (B3, 1.0)),
    ("softmax", r"temperature: expected a finite number above 0 but got 0", (X, 0.0)),
    ("softmax", r"temperature: expected a finite number above 0 but got nan", (X, NAN)),
    ("softmax", r"temperature: expected a finite number above 0 but got inf", (X, float("inf"))),
]


@pytest.mark.parametrize(("name", "sentence", "args"), WRONG, ids=[f"{name}-{text}" for name, text, _ in WRONG])
def test_refused(name: str, sentence: str, args: tuple[Any, ...], compiled: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{sentence}"):
        getattr(OPS, name)(*args, compiled)


def expanded(*shape: int) -> Tensor:
    """Zeros of any shape, in the memory of one element."""
    return torch.zeros(1).expand(shape)


MANY = 1 << 40
TOO_LARGE: list[tuple[str, str, tuple[Any, ...]]] = [
    ("linear", "x: expected a result that fits into memory", (expanded(MANY, 1), W2[:, :1], None)),
    ("linear", "x: expected a result that fits into memory", (X[:, :0], expanded(MANY, 0), None)),
    ("linear", "results: expected at most 2.* elements", (expanded(1 << 46, 1), expanded(8, 1), None)),
    ("pool_steps", "output: expected a result", (expanded(MANY, 1, 1), None, "mean", None, None)),
    ("pool_steps", "output: expected a result", (expanded(1, MANY, 1), None, "attention", W2[:1, :1], None)),
    ("softmax", "logits: expected a result that fits into memory", (expanded(MANY, 1), 1.0)),
]


@pytest.mark.parametrize(("name", "sentence", "args"), TOO_LARGE, ids=[f"{name}-{text}" for name, text, _ in TOO_LARGE])
def test_too_large(name: str, sentence: str, args: tuple[Any, ...], compiled: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{sentence}"):
        getattr(OPS, name)(*args, compiled)


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_implementation_and_lost_memory_are_refused(name: str) -> None:
    args = CALLS[name](lambda *shape: torch.zeros(shape))
    with pytest.raises(RuntimeError, match=r"^impl: expected one of auto, base"):
        getattr(OPS, name)(*args, "none")
    for tensor in [t for t in args if isinstance(t, Tensor)]:
        tensor.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="expected memory for shape"):
            getattr(OPS, name)(*args, "auto")
        tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())
        if tensor.dtype == torch.int64:
            tensor.zero_()


# -- which calls take the operators -----------------------------------------------------------------------------------


def test_what_our_kernels_do_not_run() -> None:
    x, weight = torch.randn(4, 5), torch.randn(3, 5)
    parameter = nn.Parameter(weight)
    assert _head.kernels_for(x, weight, None) in ops.available_impls()
    assert _head.kernels_for(x, parameter) is None  # its gradient may be wanted
    with torch.no_grad():
        assert _head.kernels_for(x, parameter) is not None
    assert _head.kernels_for(x.long()) is None
    assert _head.kernels_for(x.to("meta")) is None
    assert _head.kernels_for(x.as_subclass(type("Other", (Tensor,), {}))) is None
    for name in ("reference", "torch"):
        with ops.use_impl(name):
            assert _head.kernels_for(x) is None
    with torch.autograd.forward_ad.dual_level():
        assert _head.kernels_for(x) is None
    assert torch.func.vmap(lambda t: torch.tensor(_head.kernels_for(t) is None))(x).all()


@torch.no_grad()
def test_a_layer_that_is_more_than_linear_is_called() -> None:
    x = torch.randn(4, 5)
    plain = nn.Linear(5, 3)
    assert same_bits(_head.linear(plain, x), OPS.linear(x, plain.weight, plain.bias, "auto"))
    called = []
    plain.register_forward_hook(lambda *_: called.append("hook"))
    _head.linear(plain, x)
    own = nn.Linear(5, 3)
    own.forward = lambda rows: called.append("forward") or rows  # type: ignore[method-assign, func-returns-value]
    _head.linear(own, x)
    mean = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    torch.testing.assert_close(_head.linear(mean, x), mean(x), rtol=0, atol=0)
    assert called == ["hook", "forward"]
