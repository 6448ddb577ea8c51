"""The GPU planner as a table, and the command that explains a plan. No GPU is needed.

The expected plans were computed by hand, as the comments in the table show, and not copied from the planner's output.
Rules that hold for every plan are checked on many layers, against bounds that this file computes itself.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, NamedTuple

import pytest
import torch

from seqcls_fast import __main__, _ext
from seqcls_fast._cells import BUILT_IN
from seqcls_fast.cli import plan as plan_command

if _ext.C is None:
    pytest.skip(f"needs the compiled extension: {_ext.why_missing}", allow_module_level=True)

KNOWN = _ext.C.known_devices()
# A small device, so that small layers reach every regime.
TOY = {"architecture": 90, "multiprocessors": 4, "shared_bytes": 65536, "cluster": 4, "warps": 2}
DEVICES = KNOWN | {"toy": TOY}
REGIMES = _ext.C.regimes()
CELLS = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}  # gates
PRECISIONS = {"bf16": (2, 1), "fp16": (2, 1), "tf32": (4, 1), "tf32x3": (4, 2)}  # bytes of an element, planes


class Cut(NamedTuple):
    """The fields of a plan that the table lists."""

    regime: str
    blocks: int  # of a team
    tiles: int  # batch tiles of 8 rows that a team works through
    splits: int  # warps that share the 16 units of a group


STEPWISE = Cut("stepwise", 0, 0, 0)


def onchip(tiles: int, splits: int = 1) -> Cut:
    return Cut("onchip", 1, tiles, splits)


def cluster(blocks: int, tiles: int, splits: int) -> Cut:
    return Cut("cluster", blocks, tiles, splits)


def grid(blocks: int, tiles: int, splits: int) -> Cut:
    return Cut("grid", blocks, tiles, splits)


def plan(
    cell: str,
    hidden: int,
    batch: int,
    precision: str,
    directions: int,
    device: str,
    backward: bool,
    regime: str = "auto",
    noisy: bool = False,
) -> dict[str, Any]:
    return _ext.C.plan(cell, hidden, batch, precision, directions, backward, regime, DEVICES[device], noisy)


# cell, H, B, precision, directions, device -> forward, backward (None: as forward)
TABLE: list[tuple[tuple[str, int, int, str, int, str], Cut, Cut | None]] = [
    # bf16, GRU and LSTM: H is padded to 64, 128 (1 split), 192, 256 (2), 384, 512 (4), 768, 1024 (8). R takes more than
    # 32 registers, so a block has 8 warps, which hold 8, 4, 2 or 1 groups of 16 units.
    (("lstm", 1, 1, "bf16", 1, "h200"), onchip(1), None),
    (("lstm", 64, 64, "bf16", 1, "h200"), onchip(1), None),
    (("gru", 100, 9, "fp16", 2, "h200"), onchip(1), None),
    (("lstm", 128, 1056, "bf16", 1, "h200"), onchip(1), None),  # 132 tiles: one for every multiprocessor
    (("lstm", 128, 1057, "bf16", 1, "h200"), onchip(2), None),  # 133: 2 hide each other's latency, other blocks wait
    (("lstm", 128, 10000, "bf16", 1, "h200"), onchip(2), None),
    (("lstm", 128, 528, "bf16", 2, "h200"), onchip(1), None),  # 66 tiles twice
    (("lstm", 128, 529, "bf16", 2, "h200"), onchip(2), None),
    (("lstm", 129, 16, "bf16", 1, "h200"), cluster(3, 1, 2), None),  # 9 groups, 4 a block
    (("gru", 144, 16, "bf16", 1, "h200"), cluster(3, 1, 2), None),
    (("lstm", 192, 16, "fp16", 1, "h200"), cluster(3, 1, 2), None),
    (("lstm", 256, 64, "bf16", 1, "h200"), cluster(4, 1, 2), None),
    (("gru", 300, 1, "bf16", 1, "h200"), cluster(10, 1, 4), None),  # 19 groups, 2 a block
    (("lstm", 512, 16, "bf16", 1, "h200"), cluster(16, 1, 4), None),  # 32 groups, 2 a block
    # 8 teams at once for 128 tiles. In the forward a tile takes 2 * 8 * 1040 bytes of operand, 2048 of state and 80 of
    # other memory, and a block takes 33,792 once: 10 tiles would fit, so 2 rounds of 8. In the backward a tile takes
    # 65,792 + 2048 + 80, and a block 12,288 once: 3 tiles fit, so 6 rounds.
    (("lstm", 512, 1024, "bf16", 1, "h200"), cluster(16, 8, 4), cluster(16, 3, 4)),
    (("lstm", 512, 832, "bf16", 1, "h200"), cluster(16, 7, 4), cluster(16, 3, 4)),  # 104 tiles: 2 rounds of 7, 5 of 3
    (("lstm", 512, 64, "bf16", 2, "h200"), cluster(16, 2, 4), None),  # 4 teams a direction for 8 tiles
    (("lstm", 513, 16, "bf16", 1, "h200"), grid(33, 1, 8), None),  # a group a block; 16 is the largest cluster
    (("lstm", 768, 16, "bf16", 1, "h200"), grid(48, 1, 8), None),  # 2 teams of 48
    # 2 teams for 8 tiles: 4 each. A block has two operands in shared memory, whatever its tiles, of 49,280 bytes
    # each in the backward.
    (("lstm", 768, 64, "bf16", 1, "h200"), grid(48, 4, 8), None),
    (("lstm", 1024, 64, "bf16", 1, "h200"), grid(64, 4, 8), None),
    (("gru", 1024, 256, "bf16", 1, "h200"), grid(64, 16, 8), None),
    (("gru", 1024, 257, "bf16", 1, "h200"), STEPWISE, None),  # 33 tiles; a team has at most 16
    (("gru", 1024, 16, "fp16", 1, "h200"), grid(64, 1, 8), None),
    (("lstm", 1024, 16, "bf16", 2, "h200"), grid(64, 2, 8), None),
    (("lstm", 1025, 1, "bf16", 1, "h200"), STEPWISE, None),  # no kernel is that wide
    # bf16, one gate: padded to 64, 128 (16 warps, as R takes at most 32 registers), 256, 512 (8 warps), 1024 (2 splits)
    (("rnn_tanh", 128, 1, "bf16", 1, "h200"), onchip(1), None),
    (("rnn_relu", 129, 1, "bf16", 1, "h200"), cluster(2, 1, 1), None),  # 9 groups, 8 a block
    (("rnn_tanh", 512, 8, "fp16", 2, "h200"), cluster(4, 1, 1), None),
    (("rnn_tanh", 1024, 8, "bf16", 1, "h200"), cluster(16, 1, 2), None),  # 64 groups, 4 a block
    # A k-tile of TF32 holds half as many units: 32, 64 (1 split), 96, 128 (2), 192, 256 (4), 384, 512 (8). tf32x3 has
    # two planes as well: 16 (1 split), 32, 64 (2), 128 (4), 256 (8).
    (("lstm", 64, 8, "tf32", 1, "h200"), onchip(1), None),
    (("lstm", 96, 8, "tf32", 1, "h200"), cluster(2, 1, 2), None),
    (("gru", 256, 8, "tf32", 1, "h200"), cluster(8, 1, 4), None),
    (("lstm", 512, 8, "tf32", 1, "h200"), grid(32, 1, 8), None),
    (("gru", 513, 8, "tf32", 1, "h200"), STEPWISE, None),
    (("lstm", 16, 8, "tf32x3", 1, "h200"), onchip(1), None),
    (("lstm", 64, 8, "tf32x3", 1, "h200"), onchip(1, 2), None),
    (("gru", 65, 8, "tf32x3", 1, "h200"), cluster(3, 1, 4), None),
    (("lstm", 256, 8, "tf32x3", 1, "h200"), cluster(16, 1, 8), None),
    (("lstm", 257, 8, "tf32x3", 1, "h200"), STEPWISE, None),
    (("rnn_tanh", 100, 8, "tf32x3", 1, "h200"), onchip(1), None),  # padded to 128, 7 groups
    # No clusters before 9.0. A100: 108 multiprocessors of 166,912 bytes; L40S: 142 of 101,376
    (("lstm", 128, 64, "bf16", 1, "a100"), onchip(1), None),
    (("lstm", 256, 64, "bf16", 1, "a100"), grid(4, 1, 2), None),  # 27 teams
    (("lstm", 512, 256, "bf16", 1, "a100"), grid(16, 6, 4), None),  # 6 teams for 32 tiles: 6 each
    (("lstm", 512, 16, "bf16", 1, "l40s"), grid(16, 1, 4), None),
    (("lstm", 768, 8, "bf16", 1, "l40s"), grid(48, 1, 8), STEPWISE),  # backward one tile takes 98,560 + 14,400
    (("gru", 128, 2000, "bf16", 1, "l40s"), onchip(2), None),  # 250 tiles
    # TOY: 4 multiprocessors, blocks of 2 warps, 4 blocks a cluster
    (("lstm", 32, 1, "bf16", 1, "toy"), onchip(1), None),
    (("lstm", 33, 16, "bf16", 1, "toy"), cluster(2, 1, 1), None),
    (("gru", 65, 9, "bf16", 2, "toy"), cluster(3, 2, 1), None),  # fewer multiprocessors than both directions want
    (("rnn_tanh", 130, 1, "bf16", 1, "toy"), STEPWISE, None),  # 9 groups, 2 a block: 5 blocks
    (("lstm", 257, 1, "bf16", 1, "toy"), STEPWISE, None),  # 4 splits, but 2 warps
]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("request_", "forward", "back"), TABLE, ids=lambda v: "-".join(map(str, v)) if v else "same")
def test_table(request_: tuple[str, int, int, str, int, str], forward: Cut, back: Cut | None, backward: bool) -> None:
    found = plan(*request_, backward)
    assert Cut(*(found[name] for name in Cut._fields)) == ((back or forward) if backward else forward)


GATED, ELMAN = (64, 128, 192, 256, 384, 512, 768, 1024), (64, 128, 256, 512, 1024)
PADDED = {
    ("lstm", "bf16"): GATED,
    ("gru", "fp16"): GATED,
    ("gru", "tf32"): tuple(size // 2 for size in GATED),
    ("lstm", "tf32x3"): (16, 32, 64, 128, 256),
    ("rnn_tanh", "bf16"): ELMAN,
    ("rnn_relu", "tf32"): tuple(size // 2 for size in ELMAN),
    ("rnn_tanh", "tf32x3"): (32, 64, 128, 256),
}


@pytest.mark.parametrize(("cell", "precision"), PADDED)
def test_padded_sizes(cell: str, precision: str) -> None:
    """H is padded to the next size in the list. Above the last size the planner takes the stepwise regime."""
    sizes = PADDED[cell, precision]
    for before, size in zip((0, *sizes), sizes, strict=False):
        for hidden in (before + 1, size):
            assert plan(cell, hidden, 8, precision, 1, "h200", False, "grid")["padded"] == size
    assert plan(cell, sizes[-1] + 1, 8, precision, 1, "h200", False)["regime"] == "stepwise"


ALONE = "one multiprocessor holds the recurrent weights, so there are no blocks to share them"
WHY = [
    ("lstm", 256, 8, "bf16", 1, "h200", "onchip", "the recurrent weights do not fit one multiprocessor"),
    ("lstm", 513, 8, "bf16", 1, "h200", "cluster", "the recurrent weights do not fit one cluster"),
    ("lstm", 256, 8, "bf16", 1, "a100", "cluster", "the device has no clusters"),
    ("lstm", 64, 8, "bf16", 1, "h200", "grid", ALONE),
    ("lstm", 128, 8, "bf16", 1, "h200", "cluster", ALONE),
    # 64 units at least, 4 bytes, 4 gates: 2^32 bytes a step from 4,194,304 rows on
    ("lstm", 1, 4194304, "bf16", 1, "h200", "onchip", "the layer is too large for addresses of 32 bits"),
    ("lstm", 1, 5000000, "bf16", 1, "h200", "cluster", "the layer is too large for addresses of 32 bits"),
    ("rnn_tanh", 130, 8, "bf16", 1, "toy", "grid", "the recurrent weights do not fit all multiprocessors at once"),
    ("lstm", 768, 257, "bf16", 1, "h200", "grid", "so many rows do not fit all multiprocessors at once"),
    ("lstm", 768, 8, "bf16", 1, "l40s", "grid", "one batch tile does not fit shared memory"),
    ("lstm", 300, 8, "bf16", 1, "toy", "onchip", "a block has too few warps for the parts K is cut into"),
    ("lstm", 1025, 8, "bf16", 1, "h200", "cluster", "the recurrent weights do not fit the registers of any kernel"),
]


@pytest.mark.parametrize(("cell", "hidden", "batch", "precision", "directions", "device", "regime", "why"), WHY)
def test_a_forced_regime_that_does_not_fit_says_why(
    cell: str, hidden: int, batch: int, precision: str, directions: int, device: str, regime: str, why: str
) -> None:
    forced = plan(cell, hidden, batch, precision, directions, device, True, regime)
    assert (forced["regime"], forced["fits"], forced["why"]) == (regime, False, why)


def check_bounds(p: dict[str, Any], cell: str, hidden: int, batch: int, precision: str, directions: int) -> None:
    """Check the rules that hold for every plan but a stepwise one; `p` has the device's limits too."""
    size, planes = PRECISIONS[precision]
    gates, limits = CELLS[cell], p["limits"]
    warps, parts = p["threads"] // 32, p["block_groups"] * p["splits"]
    assert p["threads"] == 32 * parts
    assert 1 <= warps <= limits["warps"]
    assert p["threads"] * p["registers"] <= 65536
    assert p["weight_registers"] + 64 <= p["registers"] <= 255
    assert p["padded"] >= hidden
    assert p["padded"] % 16 == 0
    assert hidden <= 16 * p["groups"] <= p["padded"]
    assert p["blocks"] * p["block_groups"] == p["groups"]
    assert 16 * (p["groups"] - p["blocks"]) < hidden  # no block is a group larger than it must be
    assert p["tiles"] * p["teams"] * 8 >= batch > p["tiles"] * (p["teams"] - 1) * 8
    # the registers of a team are enough for R, and shared memory for its operands: two of each tile, two in all in grid
    assert p["blocks"] * p["threads"] * p["weight_registers"] * 4 >= gates * hidden * hidden * size * planes
    operand = (
        2
        * (1 if p["regime"] == "grid" else p["tiles"])
        * 8
        * planes
        * (gates if p["backward"] else 1)
        * p["padded"]
        * size
    )
    assert operand < p["shared_bytes"] <= limits["shared_bytes"]
    assert p["shared_bytes"] % 16 == 0
    if p["regime"] == "onchip":
        assert p["blocks"] == 1
    if p["regime"] == "cluster":
        assert 1 < p["blocks"] <= limits["cluster"]
        assert limits["architecture"] >= 90
    if p["regime"] == "grid":
        assert p["blocks"] > 1
        assert p["blocks"] * p["teams"] * directions <= limits["multiprocessors"]
    assert p["mma_cycles"] > 0
    assert p["mufu_cycles"] >= 0


def test_the_largest_layer_whose_addresses_fit() -> None:
    assert plan("lstm", 1, 4194303, "bf16", 1, "h200", False)["regime"] == "onchip"
    assert plan("lstm", 1, 4194304, "bf16", 1, "h200", False)["regime"] == "stepwise"


def test_clusters_are_as_many_as_the_driver_says() -> None:
    """Without a driver to ask, clusters of more than 8 blocks fit each part of the device (GPC) once."""
    layer = ("gru", 300, 8 * 80, "bf16", 1)  # 80 tiles for clusters of 10 blocks
    found = plan(*layer, "h200", False)
    assert (found["blocks"], found["tiles"], found["teams"]) == (10, 10, 8)
    asked = KNOWN["h200"] | {"active_clusters": {10: 11}}
    found = _ext.C.plan(*layer, False, "auto", asked)
    assert (found["blocks"], found["tiles"], found["teams"]) == (10, 8, 10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", CELLS)
def test_no_plan_exceeds_the_device(cell: str, device: str) -> None:
    seen = set()
    hiddens, batches = range(1, 2101, 23), (1, 8, 9, 64, 1000)
    for hidden, batch, precision, directions, backward in itertools.product(
        hiddens, batches, PRECISIONS, (1, 2), (False, True)
    ):
        layer = (cell, hidden, batch, precision, directions)
        p = plan(*layer, device, backward)
        seen.add(p["regime"])
        assert p["fits"]
        if p["regime"] == "stepwise":
            assert p["why"]
            assert not any(p[name] for name in ("threads", "tiles", "blocks", "shared_bytes", "mma_cycles"))
            continue
        assert (p["why"] == "") == (p["regime"] == "onchip")
        try:
            check_bounds(p | {"limits": DEVICES[device], "backward": backward}, *layer)
        except AssertionError as error:
            raise AssertionError(f"{layer} on {device}, backward {backward}: {p}") from error
    assert seen >= {"onchip", "stepwise"}
    assert ("cluster" in seen) == (DEVICES[device]["cluster"] > 1)


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_regime_that_fits_is_taken(device: str) -> None:
    for cell, hidden, batch, precision, backward in itertools.product(
        CELLS, range(1, 1300, 41), (1, 64, 1000), ("bf16", "tf32x3"), (False, True)
    ):
        layer = (cell, hidden, batch, precision, 1, device, backward)
        tried = [plan(*layer, regime) for regime in REGIMES]
        first = next(i for i, p in enumerate(tried) if p["fits"])
        assert [bool(p["why"]) for p in tried] == [not p["fits"] for p in tried], layer
        before = tried[first - 1]["why"] if first else ""
        assert plan(*layer) == tried[first] | {"why": before}, layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "lsmt"}, "cell: expected one of rnn_tanh, rnn_relu, gru, lstm, .* but got 'lsmt'"),
        ({"hidden": 0}, "expected hidden and batch from 1 to 2147483647 but got 0, 8"),
        ({"precision": "fp64"}, "precision: expected one of bf16, fp16, tf32, tf32x3 but got 'fp64'"),
        ({"directions": 3}, "directions: expected 1 or 2 but got 3"),
        ({"regime": "on-chip"}, "regime: expected one of onchip, cluster, grid, stepwise but got 'on-chip'"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    layer = {"cell": "gru", "hidden": 8, "batch": 8, "precision": "bf16", "directions": 1, "backward": False}
    with pytest.raises(RuntimeError, match=message):
        _ext.C.plan(**layer | {"regime": "auto", "limits": DEVICES["h200"]} | change)


# -- the command ------------------------------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str], arguments: str) -> str:
    assert __main__.main(["plan", *arguments.split()]) == 0
    return capsys.readouterr().out


def line(text: str, label: str) -> list[str]:
    """The columns of the line that begins with ``label``."""
    found = next(each for each in text.splitlines() if each.startswith(label + "  "))
    return [part.strip() for part in found.removeprefix(label).split("  ") if part.strip()]


def test_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--cell lstm --hidden 250 --batch 64 --dtype bf16 --device h200")
    assert text.splitlines()[0] == "lstm, hidden 250, batch 64, bf16 products, one direction"
    assert text.splitlines()[1].startswith("h200: 132 multiprocessors, 227 KB of shared memory a block, clusters of up")
    # 8 warps, 2 a scheduler: 2 * 4 gates * 8 k-tiles of 6.4 cycles. All of them hold cells, 2 a lane: 2 * 2 * 10
    # instructions of 8 cycles; in the backward an LSTM takes 2 instructions.
    for label, columns in {
        "regime": ["cluster"] * 2,
        "not onchip": ["the recurrent weights do not fit one multiprocessor"] * 2,
        "padded H": ["250 to 256"] * 2,
        "units": ["16 groups of 16, K in 2 parts of 8 tiles"] * 2,
        "team": ["4 blocks of 4 groups"] * 2,
        "batch": ["8 teams a direction, 1 tile of 8 rows each"] * 2,
        "launch": ["32 blocks for 132 multiprocessors"] * 2,
        "threads": ["256 a block, 8 warps"] * 2,
        "registers": ["at most 255 a thread, 128 of them weights"] * 2,
        "tensor cores": ["410 cycles a step"] * 2,
        "special functions": ["320 cycles a step", "64 cycles a step"],
        "floor": ["410 cycles a step, 0.21 us at 1.98 GHz"] * 2,
    }.items():
        assert line(text, label) == columns
    # rows 64, operand 2 * 8 * 528, state 2 * 2 cells * 8 warps * 128, sums 2 * 8 warps * 4 gates * 512, 8 warps' slices
    # of 8 x 8 bf16, barriers 16
    assert line(text, "shared memory")[0] == f"{64 + 8448 + 4096 + 32768 + 1024 + 16} of 232448 bytes a block"


def test_explanation_of_a_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--cell gru --hidden 500 --batch 512 --dtype fp32 --directions 2 --device a100")
    assert "TF32 products, both directions" in text
    assert "no clusters" in text
    assert line(text, "regime") == ["stepwise"] * 2
    assert [line(text, f"not {name}")[0] for name in ("onchip", "cluster", "grid")] == [
        "the recurrent weights do not fit one multiprocessor",
        "the device has no clusters",
        "so many rows do not fit all multiprocessors at once",
    ]
    assert line(text, "a step")
    assert "floor" not in text


@pytest.mark.parametrize(("flag", "precision"), [("", "tf32"), ("--tf32", "tf32"), ("--exact", "tf32x3")])
def test_float32_as_torch_has_it_or_as_asked(capsys: pytest.CaptureFixture[str], flag: str, precision: str) -> None:
    answer = json.loads(told(capsys, f"--cell gru --hidden 64 --batch 3 --dtype fp32 {flag} --json"))
    assert answer["precision"] == precision
    expected = plan("gru", 64, 3, precision, 1, "h200", True)
    assert {key: answer["backward"][key] for key in expected} == expected
    assert answer["backward"]["floor_cycles"] == max(expected["mma_cycles"], expected["mufu_cycles"])
    assert answer["backward"]["floor_us"] == pytest.approx(answer["backward"]["floor_cycles"] / 1980)


def test_no_clock_no_microseconds(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--cell gru --hidden 64 --device l40s")
    # a warp per scheduler: 3 gates * 4 k-tiles of 6.4 cycles, and 4 cells a lane * 6 instructions of 8
    assert line(text, "tensor cores")[0] == "77 cycles a step"
    assert line(text, "floor")[0] == "192 cycles a step"


def test_float64_is_stepwise_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--cell lstm --hidden 64 --dtype fp64")
    assert line(text, "regime") == ["stepwise"] * 2
    assert line(text, "because") == ["float64 has no kernel that keeps its weights on the chip"] * 2
    assert line(told(capsys, "--cell lstm --hidden 64 --dtype fp64 --regime grid"), "cannot run")


ROW_WISE = [name for name in BUILT_IN if name.endswith("_layer_norm") or name == "gru_reset_before"]


@pytest.mark.parametrize("cell", [name for name in BUILT_IN if name not in ROW_WISE])
def test_options_of_units_take_the_regimes_of_the_cell(capsys: pytest.CaptureFixture[str], cell: str) -> None:
    base = cell.removesuffix("_peephole")
    for hidden, precision, regime in itertools.product((64, 300, 700), PRECISIONS, (*REGIMES, "auto")):
        for backward in (False, True):
            plain = plan(base, hidden, 64, precision, 1, "h200", backward, regime)
            noisy = plan(cell, hidden, 64, precision, 1, "h200", backward, regime, noisy=True)
            assert (noisy["regime"], noisy["fits"], noisy["why"]) == (plain["regime"], plain["fits"], plain["why"])
            assert noisy["tiles"] == plain["tiles"]
            keys = noisy["tiles"] * 8 * 4 * 8  # of four masks for each row, of 8 bytes
            units = noisy["block_groups"] * 16
            # Weights of peepholes, and their gradients for 8 rows; of 8 warps that share units, 4 hold none.
            of_c = 4 * 4 * units + backward * noisy["tiles"] * 3 * 4 * 8 * units * max(noisy["splits"] // 4, 1)
            wanted = keys + of_c * (cell != base) if noisy["threads"] and noisy["fits"] else 0
            assert noisy["shared_bytes"] - plain["shared_bytes"] == wanted
    assert told(capsys, f"--cell {cell} --hidden 64 --noisy").startswith(f"{cell}, with zoneout or dropouts, hidden 64")


@pytest.mark.parametrize("cell", ROW_WISE)
def test_options_of_rows_take_the_regimes_of_the_cell_but_clusters(
    capsys: pytest.CaptureFixture[str], cell: str
) -> None:
    base = cell.removesuffix("_layer_norm").removesuffix("_reset_before")
    what = "a GRU that resets before the product" if cell == "gru_reset_before" else "layer normalisation"
    why = f"{what} has no kernel for clusters"
    text = told(capsys, f"--cell {cell} --hidden 384 --dtype bf16")
    assert line(text, "regime") == ["grid"] * 2
    assert line(text, "not cluster") == [why] * 2
    assert line(told(capsys, f"--cell {cell} --hidden 64"), "regime") == ["onchip"] * 2
    assert line(told(capsys, f"--cell {cell} --hidden 64 --regime cluster"), "cannot run") == [why] * 2
    for hidden, precision, regime in itertools.product((5, 64, 300, 700), PRECISIONS, ("onchip", "grid")):
        for backward in (False, True):
            plain = plan(base, hidden, 8, precision, 1, "h200", backward, regime)
            found = plan(cell, hidden, 8, precision, 1, "h200", backward, regime)
            assert (found["fits"], found["why"]) == (plain["fits"], plain["why"])
            if not found["fits"] or not found["threads"]:
                continue
            keys, units = 8 * 4 * 8, found["block_groups"] * 16
            sets = 2 if base == "gru" else 1  # of gates that are normalised apart
            gains = 4 * units * {"gru": 4, "lstm": 4 + 2}.get(base, 1)
            slices = -(-hidden // (16 if found["splits"] == 1 else 8))
            parts = 8 * 8 * sets * slices
            of_norm = 0 if cell == "gru_reset_before" else gains + sets * 8 * 8 + parts
            assert found["shared_bytes"] - plain["shared_bytes"] == keys + of_norm


def test_forced_regime(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--cell gru --hidden 300 --regime onchip")
    assert line(text, "cannot run") == ["the recurrent weights do not fit one multiprocessor"] * 2
    assert line(told(capsys, "--cell gru --hidden 300 --regime grid"), "regime") == ["grid"] * 2
    assert line(told(capsys, "--cell gru --hidden 300 --regime stepwise"), "a step")


def test_both_directions_are_one_launch(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--cell lstm --hidden 256 --batch 64 --directions 2")
    assert line(text, "launch")[0] == "64 blocks for 132 multiprocessors"


def test_unknown_device_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["plan", "--cell", "gru", "--hidden", "8", "--device", "h2000"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"--device: expected one of {', '.join(KNOWN)}, cuda but got 'h2000'\n"
    assert captured.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_device_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["plan", "--cell", "gru", "--hidden", "8", "--device", "cuda"]) == 1
    lacks = "the extension was built without CUDA, so torch's own layers run there; name a known"
    if _ext.C.build_info()["cuda"]:
        lacks = "this machine has no CUDA device; name a known"
    assert capsys.readouterr().err.startswith(f"--device cuda: {lacks}")


@pytest.mark.parametrize("cuda", [False, True])
def test_a_build_without_cuda_says_what_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    build = _ext.C.build_info() | {"cuda": cuda}
    monkeypatch.setattr(_ext.C, "build_info", lambda: build)
    text = told(capsys, "--cell gru --hidden 64")
    assert ("on a GPU it runs torch's own layers" in text) == (not cuda)


def test_missing_extension_exits_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ext, "C", None)
    monkeypatch.setattr(_ext, "why_missing", "no compiler was found")
    assert __main__.main(["plan", "--cell", "gru", "--hidden", "8"]) == 1
    message = "plan: needs the compiled extension, in whose place torch's own layers run: no compiler was found\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cell gru --hidden 0", "expected a number from 1"),
        ("--cell gru --hidden 8 --exact", "--tf32 and --exact: expected with --dtype fp32 but got bf16"),
        ("--cell elman --hidden 8", "rnn_tanh"),
        ("--hidden 8", "--cell"),
    ],
)
def test_mistakes_exit_2(capsys: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        __main__.main(["plan", *arguments.split()])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_choices_are_those_of_the_extension() -> None:
    """The command's parser has lists of its own, since it must not load torch."""
    assert list(plan_command.CELLS) == list(_ext.C.cells())
    assert list(plan_command.REGIMES) == ["auto", *REGIMES]
    assert set(plan_command.PRODUCTS) == {*PRECISIONS, "fp64"}
