"""The reference layer against torch.nn in float64, and against a second implementation: one row, one step at a time.

The arithmetic and every gradient are compared with torch.nn. It takes no lengths of 0 and no lengths in any order, so
these are compared, row by row, with `naive_row`, which is written without the reference's code.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from seqcls_fast._inputs import check_lengths
from seqcls_fast.reference import rnn_layer
from support.tolerances import assert_close_by_name

CELLS = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
VARIANTS = [  # cell, directions, bias, P
    (cell, directions, bias, P)
    for cell, directions, bias in product(CELLS, (1, 2), (True, False))
    for P in ((None, 2) if cell == "lstm" else (None,))
]
T, B, I, H = 5, 4, 3, 6
LENGTHS = torch.tensor([2, 0, 5, 3])
Named = dict[str, Tensor | None]


def make(
    cell: str, directions: int, bias: bool, P: int | None, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    """Every differentiable input of a layer by name: x, w_ih[0], ..., h0, c0."""
    g = torch.Generator().manual_seed(seed)
    G, out = CELLS[cell], P or H
    shapes = {"x": (T, B, I)}
    for d in range(directions):
        shapes |= {f"w_ih[{d}]": (G * H, I), f"w_hh[{d}]": (G * H, out)}
        shapes |= {f"b_ih[{d}]": (G * H,), f"b_hh[{d}]": (G * H,)} if bias else {}
        shapes |= {f"w_hr[{d}]": (P, H)} if P else {}
    shapes |= {"h0": (directions, B, out)} | ({"c0": (directions, B, H)} if cell == "lstm" else {})
    return {
        name: (torch.randn(shape, generator=g, dtype=torch.float64) * (1.0 if name in ("x", "h0", "c0") else 0.5))
        .to(dtype)
        .requires_grad_()
        for name, shape in shapes.items()
    }


def call(inputs: dict[str, Tensor], cell: str, **options: object) -> Named:
    """Calls `rnn_layer` with named inputs and returns its results by name."""
    lists = {key: [t for name, t in inputs.items() if name.startswith(f"{key}[")] for key in
             ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")}  # fmt: skip
    states = {key: inputs[key] for key in ("h0", "c0") if key in inputs}
    results = rnn_layer(inputs["x"], **lists, **states, cell=cell, **options)  # type: ignore[arg-type]
    return dict(zip(("output", "h_n", "c_n"), results, strict=True))


def gradients(results: Named, inputs: dict[str, Tensor], seed: int = 1) -> Named:
    """The gradient of every input for fixed random cotangents on all results."""
    g = torch.Generator().manual_seed(seed)
    used = [t for t in results.values() if t is not None]
    cotangents = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in used]
    grads = torch.autograd.grad(used, list(inputs.values()), cotangents, allow_unused=True)
    return {f"d_{name}": grad for name, grad in zip(inputs, grads, strict=True)}


def torch_layer(inputs: dict[str, Tensor], cell: str, directions: int, bias: bool, P: int | None) -> Named:
    """torch.nn's results for the same inputs, which can be differentiated with respect to them."""
    options = {"bias": bias, "bidirectional": directions == 2} | ({"proj_size": P} if P else {})
    if cell.startswith("rnn"):
        options["nonlinearity"] = cell.removeprefix("rnn_")
    kind = {"gru": nn.GRU, "lstm": nn.LSTM}.get(cell, nn.RNN)
    module = kind(I, H, **options, dtype=torch.float64)
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}
    weights = {
        f"{names[name[:4]]}_l0{'_reverse' if name[5] == '1' else ''}": t
        for name, t in inputs.items()
        if name[4:5] == "["
    }
    hx = (inputs["h0"], inputs["c0"]) if "c0" in inputs else inputs.get("h0")
    output, states = torch.func.functional_call(module, weights, (inputs["x"], hx))
    h_n, c_n = states if cell == "lstm" else (states, None)
    return {"output": output, "h_n": h_n, "c_n": c_n}


def naive_row(
    cell: str, x: np.ndarray, w_ih: np.ndarray, w_hh: np.ndarray, bias: tuple[np.ndarray, np.ndarray],
    w_hr: np.ndarray | None, h: np.ndarray, c: np.ndarray, rounded: torch.dtype,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """The states of one row and direction after each step of `x` (L, I); each h is rounded to the dtype `rounded`."""

    def sigmoid(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    n = len(c)
    for x_t in x:
        a, b = w_ih @ x_t + bias[0], w_hh @ h + bias[1]
        if cell == "gru":
            r, z = sigmoid(a[:n] + b[:n]), sigmoid(a[n : 2 * n] + b[n : 2 * n])
            h = (1 - z) * np.tanh(a[2 * n :] + r * b[2 * n :]) + z * h
        elif cell == "lstm":
            i, f, g, o = (a + b).reshape(4, n)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            h = np.tanh(a + b) if cell == "rnn_tanh" else np.maximum(a + b, 0)
        if w_hr is not None:
            h = w_hr @ h
        h = torch.from_numpy(h).to(rounded).double().numpy()
        yield h, c


def naive(inputs: dict[str, Tensor], cell: str, directions: int, lengths: list[int]) -> Named:
    """A layer as a loop over rows, which gives each row its own steps only."""
    rounded = inputs["x"].dtype
    values = {name: t.detach().double().numpy() for name, t in inputs.items()}
    x = values["x"]
    out, n = values["w_hh[0]"].shape[1], values["w_ih[0]"].shape[0] // CELLS[cell]
    h_n, c_n = values["h0"].copy(), values.get("c0", np.zeros((directions, x.shape[1], n))).copy()
    output = np.zeros((*x.shape[:2], directions * out))
    for d, (row, length) in product(range(directions), enumerate(lengths)):
        times = range(length)[:: 1 if d == 0 else -1]
        zero = np.zeros(CELLS[cell] * n)
        bias = (values.get(f"b_ih[{d}]", zero), values.get(f"b_hh[{d}]", zero))
        weights = values[f"w_ih[{d}]"], values[f"w_hh[{d}]"], bias, values.get(f"w_hr[{d}]")
        steps = naive_row(cell, x[list(times), row], *weights, h_n[d, row], c_n[d, row], rounded)
        for t, (h, c) in zip(times, steps, strict=True):
            output[t, row, d * out : (d + 1) * out] = h
            h_n[d, row], c_n[d, row] = h, c
    results = {"output": output, "h_n": h_n} | ({"c_n": c_n} if cell == "lstm" else {})
    return {"c_n": None} | {name: torch.from_numpy(value) for name, value in results.items()}


# roundings: a step has I + H products and about 10 operations of the cell; the backward has as many and sums rows
TERMS = 2 * T * (I + H + 10) + T * B


@pytest.mark.parametrize(("cell", "directions", "bias", "P"), VARIANTS)
@pytest.mark.parametrize("states", [True, False])
def test_matches_torch(cell: str, directions: int, bias: bool, P: int | None, states: bool) -> None:
    inputs = make(cell, directions, bias, P)
    if not states:
        inputs = {name: t for name, t in inputs.items() if name not in ("h0", "c0")}
    ours, theirs = call(inputs, cell), torch_layer(inputs, cell, directions, bias, P)
    assert_close_by_name(ours, theirs, TERMS)
    assert_close_by_name(gradients(ours, inputs), gradients(theirs, inputs), TERMS)


@pytest.mark.parametrize(("cell", "directions", "bias", "P"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_lengths_match_the_naive_loop(
    cell: str, directions: int, bias: bool, P: int | None, dtype: torch.dtype
) -> None:
    inputs = make(cell, directions, bias, P, dtype)
    ours = call(inputs, cell, lengths=LENGTHS)
    assert all(t is None or t.dtype == dtype for t in ours.values())
    # both round h to 16 bits, but near the middle of two numbers they may round differently: one rounding per step
    terms = TERMS if dtype == torch.float64 else T
    assert_close_by_name(ours, naive(inputs, cell, directions, LENGTHS.tolist()), terms)


@pytest.mark.parametrize(("cell", "directions", "bias", "P"), VARIANTS)
def test_gradients_with_lengths_are_those_of_each_row_alone(
    cell: str, directions: int, bias: bool, P: int | None
) -> None:
    inputs = make(cell, directions, bias, P)
    ours = call(inputs, cell, lengths=LENGTHS)
    rows: list[Named] = []
    for row, length in enumerate(LENGTHS.tolist()):
        states = {key: inputs[key][:, row : row + 1] for key in ("h0", "c0") if key in inputs}
        if length == 0:
            rows.append({"output": inputs["x"].new_zeros(0, 1, directions * (P or H)), "h_n": states["h0"]})
            rows[-1]["c_n"] = states.get("c0")
        else:
            alone = inputs | states | {"x": inputs["x"][:length, row : row + 1]}
            rows.append(torch_layer(alone, cell, directions, bias, P))
    pad = nn.functional.pad
    theirs: Named = {"output": torch.cat([pad(r["output"], (0, 0, 0, 0, 0, T - len(r["output"]))) for r in rows], 1)}
    for key in ("h_n", "c_n"):
        theirs[key] = None if rows[0][key] is None else torch.cat([r[key] for r in rows], 1)
    assert_close_by_name(ours, theirs, TERMS)
    found, expected = gradients(ours, inputs), gradients(theirs, inputs)
    assert_close_by_name(found, expected, TERMS)
    beyond = torch.arange(T).unsqueeze(1) >= LENGTHS
    assert not found["d_x"][beyond].any()
    assert found["d_h0"][:, 1].any()  # the row of length 0 passes its gradient to h0


@pytest.mark.parametrize(("cell", "directions", "bias", "P"), VARIANTS)
def test_packed_rows_match_lengths(cell: str, directions: int, bias: bool, P: int | None) -> None:
    inputs = make(cell, directions, bias, P)
    lengths = torch.tensor([5, 3, 3, 1])
    packed = nn.utils.rnn.pack_padded_sequence(inputs["x"], lengths)
    ours = call(inputs | {"x": packed.data}, cell, batch_sizes=packed.batch_sizes)
    padded = call(inputs, cell, lengths=lengths)
    rows = nn.utils.rnn.pack_padded_sequence(padded["output"], lengths).data
    assert_close_by_name(ours, padded | {"output": rows}, TERMS)
    grads = gradients(ours, inputs)
    assert_close_by_name(grads, gradients(padded | {"output": rows}, inputs), TERMS)
    assert call(inputs | {"x": packed.data}, cell, batch_sizes=packed.batch_sizes, want_output=False)["output"] is None


def test_batch_first_is_a_transpose() -> None:
    inputs = make("lstm", 2, True, None)
    turned = inputs | {"x": inputs["x"].transpose(0, 1)}
    ours, plain = call(turned, "lstm", batch_first=True, lengths=LENGTHS), call(inputs, "lstm", lengths=LENGTHS)
    assert ours["output"].transpose(0, 1).is_contiguous()
    assert_close_by_name(ours, plain | {"output": plain["output"].transpose(0, 1)}, 0)
    assert_close_by_name(gradients({"h_n": ours["h_n"]}, inputs), gradients({"h_n": plain["h_n"]}, inputs), 0)


@pytest.mark.parametrize(("cell", "directions", "bias", "P"), [v for v in VARIANTS if v[1:3] == (2, True)])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_gradcheck_and_gradgradcheck(cell: str, directions: int, bias: bool, P: int | None, layout: str) -> None:
    inputs = make(cell, directions, bias, P)
    inputs["x"] = inputs["x"][:3, :, :2].detach().contiguous().requires_grad_()
    for d in range(directions):
        inputs[f"w_ih[{d}]"] = inputs[f"w_ih[{d}]"][:, :2].detach().contiguous().requires_grad_()
    options: dict[str, Tensor] = {"lengths": LENGTHS.clamp(max=3)}
    if layout == "packed":
        options = {"batch_sizes": torch.tensor([4, 2, 1])}
        inputs["x"] = inputs["x"].detach().flatten(0, 1)[:7].clone().requires_grad_()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = call(dict(zip(inputs, tensors, strict=True)), cell, **options)
        return tuple(t for t in results.values() if t is not None)

    assert gradcheck(run, tuple(inputs.values()), fast_mode=True)
    assert gradgradcheck(run, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_padding_is_never_read(cell: str, junk: float) -> None:
    """Results, gradients and second derivatives have the same bits for any numbers beyond the lengths."""
    inputs = make(cell, 2, True, None)
    beyond = (torch.arange(T).unsqueeze(1) >= LENGTHS).unsqueeze(2)

    def everything(fill: float) -> Named:
        x = torch.where(beyond, fill, inputs["x"]).detach().requires_grad_()
        mine = inputs | {"x": x}
        results = call(mine, cell, lengths=LENGTHS)
        leaves = list(mine.values())
        total = sum(t.square().sum() for t in results.values() if t is not None)
        first = torch.autograd.grad(total, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        named = zip(mine, first, second, strict=True)
        return results | {f"{k} {name}": g for name, *pair in named for k, g in zip("12", pair, strict=True)}

    poisoned = everything(junk)
    assert_close_by_name(poisoned, everything(0.0), 0)
    assert all(t is None or t.isfinite().all() for t in poisoned.values())


def test_an_unused_row_may_hold_nan_in_its_state() -> None:
    inputs = make("lstm", 1, True, None)
    with torch.no_grad():
        inputs["h0"][:, 1], inputs["c0"][:, 1] = float("nan"), float("nan")
    results = call(inputs, "lstm", lengths=LENGTHS)
    assert results["h_n"][:, 1].isnan().all()
    assert results["c_n"][:, 1].isnan().all()
    grads = gradients(results, inputs)
    assert all(grads[f"d_{name}"].isfinite().all() for name in ("x", "w_ih[0]", "w_hh[0]", "b_ih[0]", "b_hh[0]"))


def test_nan_in_the_data_stays_in_its_row_and_after_its_step() -> None:
    for cell in CELLS:
        inputs = make(cell, 1, True, None)
        with torch.no_grad():
            inputs["x"][2, 0, 0] = float("nan")
        nan = call(inputs, cell)["output"].isnan()
        assert nan[2:, 0].all(), cell  # relu(NaN) is NaN
        assert nan.sum() == nan[2:, 0].numel(), cell
        output = call(inputs, cell, lengths=torch.tensor([4, 2, 5, 1]))["output"]
        assert output[:4, 0].isnan().any(1).tolist() == [False, False, True, True]
        assert not output[4, 0].any()  # beyond the length, also of a row that ends in NaN, the output is 0


@pytest.mark.parametrize(("dtype", "stuck"), [(torch.bfloat16, 256.0), (torch.float16, 2048.0)])
def test_h_is_rounded_at_every_step(dtype: torch.dtype, stuck: float) -> None:
    """h = h + 1 stops growing at the number where 1 is half of the distance to the next 16-bit number."""
    one = torch.ones(1, 1, dtype=dtype)
    x, h0 = torch.ones(10, 1, 1, dtype=dtype), torch.full((1, 1, 1), stuck, dtype=dtype)
    output, h_n, _ = rnn_layer(x, [one], [one], h0=h0, cell="rnn_relu")
    assert output.unique().tolist() == [stuck]
    assert h_n.item() == stuck


def test_c_is_kept_wide_inside() -> None:
    """A thousand increments add up, although each is too small to change a sum in bfloat16."""
    steps = 1000
    w_ih = torch.zeros(4, 1)
    bias = torch.tensor([-4.0, 20.0, 0.125, 0.0])  # i, f, g, o: c grows by sigmoid(-4) * tanh(0.125) a step
    x = torch.zeros(steps, 1, 1)
    args = [x, [w_ih], [torch.zeros(4, 1)], [bias], [torch.zeros(4)]]
    half = [t.bfloat16() if isinstance(t, Tensor) else [w.bfloat16() for w in t] for t in args]
    _, _, c_n = rnn_layer(*half, cell="lstm")
    expected = steps * torch.sigmoid(torch.tensor(-4.0).double()) * torch.tanh(torch.tensor(0.125).double())
    assert_close_by_name({"c_n": c_n}, {"c_n": expected.view(1, 1, 1)}, 1)


@pytest.mark.parametrize("layout", ["padded", "lengths", "batch_first"])
def test_an_empty_batch(layout: str) -> None:
    inputs = make("lstm", 2, True, 2)
    inputs |= {name: inputs[name][:, :0] for name in ("x", "h0", "c0")}
    options: dict[str, object] = {}
    if layout == "lengths":
        options = {"lengths": torch.zeros(0, dtype=torch.int64)}
    if layout == "batch_first":
        options = {"batch_first": True}
        inputs["x"] = inputs["x"].transpose(0, 1)
    results = call(inputs, "lstm", **options)
    outer = (0, T) if layout == "batch_first" else (T, 0)
    assert [tuple(t.shape) for t in results.values()] == [(*outer, 4), (2, 0, 2), (2, 0, H)]
    assert not gradients(results, inputs)["d_w_hh[0]"].any()


def test_refusals() -> None:
    inputs = make("gru", 1, True, None)
    with pytest.raises(ValueError, match=r"cell: expected one of .*gru.* but got 'gur'"):
        call(inputs, "gur")
    with pytest.raises(RuntimeError, match="x: expected at least one step"):
        call(inputs | {"x": inputs["x"][:0]}, "gru")


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        (torch.tensor([1, 2]), r"one per row of the batch, shape \(4,\) but got \(2,\)"),
        (torch.tensor([[1, 2, 3, 4]]), r"shape \(4,\) but got \(1, 4\)"),
        (torch.tensor(3), r"shape \(4,\) but got \(\)"),
        (torch.tensor([1.0, 2, 3, 4]), "integers but got torch.float32"),
        (torch.tensor([True] * 4), "integers but got torch.bool"),
        (torch.tensor([1, 2, 3, 6]), "values from 0 to T = 5 but got 1 to 6"),
        (torch.tensor([-1, 2, 3, 5]), "values from 0 to T = 5 but got -1 to 5"),
    ],
)
def test_bad_lengths_are_refused(lengths: Tensor, sentence: str) -> None:
    for x, batch_first in ((torch.zeros(T, 4, I), False), (torch.zeros(4, T, I), True)):
        with pytest.raises(RuntimeError, match=f"^lengths: expected .*{sentence}"):
            check_lengths(lengths, x, batch_first)


def test_good_lengths_pass() -> None:
    x = torch.zeros(T, 4, I)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        lengths = LENGTHS.to(dtype)
        assert check_lengths(lengths, x) is lengths
    empty = torch.zeros(0, dtype=torch.int64)
    assert check_lengths(empty, x[:, :0]) is empty
    with pytest.raises(RuntimeError, match="lengths: expected None unless x is padded"):
        check_lengths(LENGTHS, x[0])
