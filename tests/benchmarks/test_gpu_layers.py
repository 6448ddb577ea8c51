"""What gpu_check.py checks and times, on the CPU: right layers pass, every kind of wrong one fails."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from gpu_fakes import Clock, CpuDevice, compiled

from benchmarks.gpu import device as gpu_device
from benchmarks.gpu import grid as gpu_rows
from benchmarks.gpu import layers as gpu_layers
from benchmarks.gpu import modules as gpu_extras
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu import timing as gpu_timing
from benchmarks.gpu.grid import Row
from seqcls_fast import ops
from support import checks

ROW = Row("lstm", "bf16", 64, True, False, 16, 32, 1)


# -- timing -----------------------------------------------------------------------------------------------------------


def test_interleaving() -> None:
    clock, order = Clock(), []
    cost = {"fast": 0.001, "slow": 0.5}

    def seconds(run: gpu_device.Run, calls: int) -> float:
        name = run()
        order.append((name, calls))
        clock.now += calls * cost[name]
        return cost[name]

    sides = {"fast": lambda: "fast", "slow": lambda: "slow"}
    samples = gpu_device.interleave(sides, seconds, rounds=4, block=0.01, allowance=100, clock=clock)
    assert samples == {"fast": [0.001] * 4, "slow": [0.5] * 4}
    assert order[4:] == [("fast", 10), ("slow", 1), ("slow", 1), ("fast", 10)] * 2
    order.clear()
    samples = gpu_device.interleave(sides, seconds, rounds=9, block=0.01, allowance=2.2, clock=clock)
    assert [len(s) for s in samples.values()] == [gpu_device.MIN_ROUNDS] * 2


def test_slope_is_per_step() -> None:
    device = CpuDevice()
    device.capture = lambda run: (run, None)  # type: ignore[method-assign]
    device.seconds = lambda run, calls: run()  # type: ignore[method-assign]
    assert gpu_device.slope(device, lambda T: lambda: 1e-3 + 2e-6 * T) == pytest.approx(2e-6)


def test_tf32_switch_is_restored() -> None:
    before = torch.backends.cudnn.allow_tf32
    seen = []

    def fails(precision: str) -> None:
        with gpu_device.tf32_switch(precision):
            seen.append(torch.backends.cudnn.allow_tf32)
            raise KeyError

    for precision in ("tf32", "fp32", "bf16"):
        with pytest.raises(KeyError):
            fails(precision)
        assert torch.backends.cudnn.allow_tf32 == before
    assert seen == [True, False, False]


@compiled
@pytest.mark.parametrize("cell", gpu_rows.CELLS)
@pytest.mark.parametrize(("ragged", "directions", "training"), [(False, 2, True), (True, 1, True), (True, 2, False)])
def test_row(cell: str, ragged: bool, directions: int, training: bool) -> None:
    row = Row(cell, "fp32", 16, training, ragged, 11, 6, directions)
    device = CpuDevice()
    answer = gpu_timing.measure_row(device, row, device.clock)
    assert "failed" not in answer
    packed = {"nn packed", "ours packed"}
    rivals = {(False, 2): {"nn"}, (True, 1): packed | {"nn padded"}, (True, 2): packed}[ragged, directions]
    for sides in answer["times"].values():
        assert sides.keys() == rivals | {"ours"}
        assert all(len(times) >= gpu_device.MIN_ROUNDS for times in sides.values())
    assert answer["times"].keys() == {"eager", "graph"}
    assert answer["regime"] == ("base/base" if training else "base")
    assert 0 < answer["error"] < 1e-5
    assert 0 < answer["nn error"] < 1e-5
    assert answer["medians"]["graph"]["ours"] == 1e-6
    assert answer["ratio"] == {"eager": 1.0, "graph": 1.0}
    timed = gpu_report.timed({f"grid/{row}": json.loads(json.dumps(answer))})
    assert [t.mode for t in timed] == ["eager", "graph"]


@compiled
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_both_sides_of_a_row_do_the_same(ragged: bool, training: bool) -> None:
    problem = gpu_timing.Problem(Row("gru", "fp32", 9, training, ragged, 5, 7, 1), CpuDevice())
    for graph in (False, True):
        sides = problem.sides(graph)
        ours = sides.pop("ours")()
        for name, side in sides.items():
            theirs = side()
            assert {"d x" in theirs, "d weight_hh_l0" in theirs, "d x" in ours} == {training}
            for key in ours:
                if key == "d x" and graph and "packed" in name:
                    continue  # of packed rows
                torch.testing.assert_close(
                    theirs[key], ours[key], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


@compiled
def test_nothing_is_packed_inside_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = gpu_timing.Problem(Row("gru", "fp32", 9, False, True, 5, 7, 1), CpuDevice())
    eager, captured = problem.sides(), problem.sides(graph=True)
    monkeypatch.setattr(gpu_timing, "pack_padded_sequence", None)
    for name in ("nn packed", "ours packed"):
        captured[name]()
        with pytest.raises(TypeError):
            eager[name]()


@compiled
@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_row_is_not_timed(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.run_layer

    def wrong(x: torch.Tensor, weights: list[torch.Tensor], *rest: Any) -> Any:
        return right(x, [weights[0] * 1.01, *weights[1:]], *rest)

    monkeypatch.setattr(ops, "run_layer", wrong)
    device = CpuDevice()
    answer = gpu_timing.measure_row(device, Row("lstm", "fp32", 16, training, True, 20, 6, 1), device.clock)
    assert answer["failed"].startswith("wrong: h_n: error ")
    assert ("d weight_ih_l0: error" in answer["failed"]) == training
    assert "times" not in answer


def test_nan_is_infinitely_far() -> None:
    truth = {"h_n": torch.tensor([2.0]), "d weight_hh_l0": torch.tensor([4.0]), "d bias_hh_l0": torch.tensor([1.0])}
    found = {
        "h_n": torch.tensor([3.0]),
        "d weight_hh_l0": torch.tensor([math.nan]),
        "d bias_hh_l0": torch.tensor([2.0]),
    }
    assert gpu_timing.distances(found, truth) == {"h_n": 0.5, "d weight_hh_l0": math.inf, "d bias_hh_l0": 0.25}


@compiled
def test_the_gate_sees_every_row_s_gradients_of_weights() -> None:
    """Other rows than the gate's get incoming gradients of 0, and the first and last row are among the gate's."""
    problem = gpu_timing.Problem(Row("gru", "fp32", 8, True, False, 20, 3, 1), CpuDevice())
    rows = torch.tensor([0, 19])
    masked = problem.only_rows(rows)["output"]
    assert masked.abs().sum((0, 2)).nonzero().flatten().tolist() == [0, 19]
    assert torch.equal(masked[:, rows], problem.cotangents["output"][:, rows])


@compiled
@pytest.mark.parametrize(("side", "kind"), [("nn", "not captured"), ("ours", "failed")])
def test_what_cannot_be_captured_is_said(side: str, kind: str) -> None:
    class NoGraph(CpuDevice):
        def capture(self, run: gpu_device.Run) -> tuple[gpu_device.Run, Any]:
            if type(run.module).__module__.startswith("torch") == (side == "nn"):  # type: ignore[attr-defined]
                raise RuntimeError("operation not permitted\nwhen capturing")
            return super().capture(run)

    device = NoGraph()
    answer = gpu_timing.measure_row(device, Row("gru", "fp32", 8, False, False, 3, 4, 1), device.clock)
    assert answer[kind] == f"no CUDA graph of {side}: operation not permitted"
    assert answer["times"]["eager"].keys() == {"nn", "ours"}
    assert answer["times"]["graph"].keys() == {"nn", "ours"} - {side}
    assert [t.mode for t in gpu_report.timed({f"grid/{ROW}": answer})] == ["eager"]


@compiled
def test_latencies_on_the_cpu() -> None:
    device = CpuDevice()
    answer = gpu_timing.launches(device, device.clock)
    assert answer["empty kernel us"] == pytest.approx(0.01)
    assert {"ours training call us", "nn inference call us"} <= answer.keys()
    steps = gpu_timing.step_times(device, "gru", "fp32", 8, batch=2)
    assert steps["base"]["forward floor us"] == pytest.approx(0.1)
    assert steps["nn"].keys() == {"forward us", "backward us"}
    assert gpu_report.latencies({"latency/gru-fp32-H8": steps})


# -- correctness ------------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("cell", gpu_layers.MODULES)
@pytest.mark.parametrize("precision", gpu_layers.CASE_DTYPES)
def test_layer_passes(cell: str, precision: str) -> None:
    answer = gpu_layers.check_layer(CpuDevice(), cell, precision, 9)
    assert "failed" not in answer
    for variant in ("padded", "ragged"):
        assert answer[variant]["nn"] < 0.1
        assert answer[variant]["base"] < 0.1
    assert re.fullmatch(r"padded nn \S+ base \S+; ragged nn \S+ base \S+", answer["line"])


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Ours gives another tensor of that name."""
    of_layer, of_gradients = checks.layer, checks.gradients

    def changed(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: change(t) if key == name else t for key, t in found.items()}

    def layer(*args: Any, **options: Any) -> dict[str, torch.Tensor]:
        found = of_layer(*args, **options)
        return changed(found) if options.get("impl") == "base" else found

    def gradients(results: Any, inputs: Any, *args: Any) -> dict[str, torch.Tensor]:
        found = of_gradients(results, inputs, *args)
        return changed(found) if next(iter(results.values())).dtype == torch.float32 else found

    gpu_layers.wanted.cache_clear()
    monkeypatch.setattr(checks, "layer", layer)
    monkeypatch.setattr(checks, "gradients", gradients)


@compiled
@pytest.mark.parametrize("name", ["output", "h_n", "c_n"])
@pytest.mark.parametrize("change", [lambda t: t * 1.01, lambda t: t * math.nan], ids=["1 %", "NaN"])
def test_wrong_results_fail(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, name, change)
    answer = gpu_layers.check_layer(CpuDevice(), "lstm", "fp32", 9)
    assert f"padded base: {name}: error " in answer["failed"]
    assert f"ragged base: {name}: error " in answer["failed"]


@compiled
def test_ids_are_checked_against_one_hot_rows_of_nn() -> None:
    answer = gpu_layers.check_layer(CpuDevice(), "gru", "fp32", gpu_layers.IDS_SIZE)
    assert "failed" not in answer
    assert {"nn", "base"} <= answer["ids"].keys()


def test_twice_the_error_of_nn_is_allowed() -> None:
    case = gpu_layers.variants("gru", "bf16", 9)["padded"]
    limit = gpu_layers.bound(case, "h_n")
    assert limit == 4 * 2**-7
    for theirs, allowed in ((0.0, limit), (limit / 4, limit), (limit, 2 * limit)):
        assert gpu_layers.too_far({"h_n": allowed}, {"h_n": theirs}, case) == []
        assert gpu_layers.too_far({"h_n": 1.01 * allowed}, {"h_n": theirs}, case)
    assert gpu_layers.too_far({"h_n": math.inf}, {"h_n": math.inf}, case) == []  # cuDNN's NaN is nobody's fault
    assert gpu_layers.too_far({"h_n": limit * 1.01}, {}, case)  # cuDNN refused


def test_errors_are_relative_to_the_largest_element(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = {
        "output": torch.tensor([[[4.0, -8.0]]]),
        "d w_hh[0]": torch.tensor([1.0]),
        "d b_hh[0]": torch.tensor([10.0]),
    }
    monkeypatch.setattr(gpu_layers, "wanted", lambda case: truth)
    case = gpu_layers.Case(B=1, T=1)
    found = {
        "output": torch.tensor([[[5.0, -8.0]]]),
        "d w_hh[0]": torch.tensor([2.0]),
        "d b_hh[0]": torch.tensor([math.nan]),
    }
    assert gpu_layers.errors(found, case) == {"output": 1 / 8, "d w_hh[0]": 1 / 10, "d b_hh[0]": math.inf}


def test_tf32_is_held_to_its_own_rounding() -> None:
    limits = {p: gpu_layers.bound(gpu_layers.variants("gru", p, 9)["padded"], "output") for p in ("tf32", "fp32")}
    assert limits["tf32"] == 4 * 2**-10
    assert limits["fp32"] < 1e-5


@compiled
def test_habits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(CpuDevice):
        """Whose graphs and second stream give other bits."""

        def capture(self, run: gpu_device.Run) -> tuple[gpu_device.Run, Any]:
            return lambda: None, run()  # a replay that writes nothing

        def at_once(self, runs: Sequence[gpu_device.Run]) -> list[Any]:
            first, second = (run() for run in runs)
            return [first, second | {"h_n": second["h_n"] + 1e-3}]

    case = gpu_layers.variants("gru", "fp32", 9)["ragged"]
    layer = gpu_layers.Layer(Other(), case, "fp32", "base")
    first = layer.run()
    assert gpu_layers.habits(layer, first) == [
        f"a CUDA graph: other bits in {', '.join(first)}",
        "stream 1 of two at once: other bits in h_n",
    ]
    layer = gpu_layers.Layer(CpuDevice(), case, "fp32", "base")
    assert gpu_layers.habits(layer, first) == []
    right = layer.run
    ways = itertools.count()
    monkeypatch.setattr(layer, "run", lambda **o: right(**o) | {"output": first["output"] + next(ways)})
    found = gpu_layers.habits(layer, first | {"d x": first["d x"] + 1})
    assert found[:4] == [
        "a second call: other bits in d x",
        "gates computed anew: other bits in output, d x",
        "lengths on the CPU: other bits in output, d x",
        "d x: not exactly 0 beyond the lengths",
    ]


@compiled
def test_gates_are_computed_anew_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    right = ops.run_layer
    monkeypatch.setattr(ops, "run_layer", lambda *args: asked.append(args[-2]) or right(*args))
    layer = gpu_layers.Layer(CpuDevice(), gpu_layers.variants("gru", "fp32", 9)["padded"], "fp32", "base")
    layer.run()
    layer.run(recompute=True)
    assert asked == [False, True]


@compiled
def test_padding_given_to_ours_is_nan() -> None:
    layer = gpu_layers.Layer(CpuDevice(), gpu_layers.variants("gru", "bf16", 9)["ragged"], "bf16", "base")
    beyond = checks.padding(layer.problem.lengths, layer.case.T)
    assert layer.inputs["x"][beyond].isnan().all()
    assert layer.cotangents["output"][beyond].isnan().all()
    assert 0 in layer.problem.lengths.tolist()  # type: ignore[union-attr]


def test_one_block_of_a_cluster_is_no_kernel() -> None:
    class Planned(CpuDevice):
        regimes = ("onchip", "cluster", "grid", "stepwise")

        def plan(self, *request: Any) -> dict[str, Any]:
            backward, regime = request[-2:]
            fits = {"onchip": True, "cluster": True, "grid": not backward, "stepwise": True}[regime]
            return {"fits": fits, "blocks": blocks[regime]}

    case = gpu_layers.variants("gru", "bf16", 33)["padded"]
    blocks = {"onchip": 1, "cluster": 1, "grid": 3, "stepwise": 0}
    assert gpu_layers.fitting(Planned(), case, "bf16") == ["onchip", "stepwise"]
    blocks["cluster"] = 2
    assert gpu_layers.fitting(Planned(), case, "bf16") == ["onchip", "cluster", "stepwise"]


@compiled
@pytest.mark.parametrize(
    ("name", "options"), [("GRU", {"num_layers": 2}), ("LSTM", {"proj_size": 3, "bidirectional": True})]
)
def test_modules(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "failed" not in gpu_extras.check_module(CpuDevice(), name, options)
    right = gpu_extras.sf.ops.run_layer

    def wrong(x: torch.Tensor, weights: list[torch.Tensor], *rest: Any) -> Any:
        return right(x, [weights[0], weights[1] * 1.001, *weights[2:]], *rest)

    monkeypatch.setattr(ops, "run_layer", wrong)
    failed = gpu_extras.check_module(CpuDevice(), name, options)["failed"]
    assert len(failed.split("; ")) == 4


@compiled
def test_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "failed" not in gpu_extras.check_many_steps(CpuDevice(), 500)
    right = ops.run_layer

    def forgets(x: torch.Tensor, weights: Any, directions: int, h0: Any, *rest: Any) -> Any:
        return right(x, weights, directions, None, *rest)

    monkeypatch.setattr(ops, "run_layer", forgets)
    assert "differ by" in gpu_extras.check_many_steps(CpuDevice(), 500)["failed"]


@compiled
def test_refusals_are_expected() -> None:
    """On the CPU nothing is on another device, and the lengths' values are looked at."""
    failed = gpu_extras.check_refusals(CpuDevice())["failed"]
    assert "input on the CPU: not refused" in failed
    assert "hx on the CPU: not refused" in failed
    assert "a length beyond T" not in failed
