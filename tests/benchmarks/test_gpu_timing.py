"""The timing of `make gpu` on a device of the CPU: all sides do the same work, and wrong results are not timed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from gpu_fakes import POINT, Clock, CpuDevice, compiled

from benchmarks.gpu import grid, report, timing
from benchmarks.gpu.device import tf32_switch
from benchmarks.gpu.grid import GridPoint
from seqcls_fast import ops
from seqcls_fast.toolkit.timing import MIN_ROUNDS, Call


def test_interleaving() -> None:
    clock, order = Clock(), []
    cost = {"fast": 0.001, "slow": 0.5}

    def seconds(run: Call, calls: int) -> float:
        name = run()
        order.append((name, calls))
        clock.now += calls * cost[name]
        return cost[name]

    sides = {"fast": lambda: "fast", "slow": lambda: "slow"}
    samples = timing.interleave(sides, seconds, rounds=4, sample=0.01, allowance=100, clock=clock)
    assert samples == {"fast": [0.001] * 4, "slow": [0.5] * 4}
    assert order[4:] == [("fast", 10), ("slow", 1), ("slow", 1), ("fast", 10)] * 2
    order.clear()
    samples = timing.interleave(sides, seconds, rounds=9, sample=0.01, allowance=2.2, clock=clock)
    assert [len(s) for s in samples.values()] == [MIN_ROUNDS] * 2


def test_slope_is_per_step() -> None:
    device = CpuDevice()
    device.capture = lambda run: (run, None)  # type: ignore[method-assign]
    device.seconds = lambda run, calls: run()  # type: ignore[method-assign]
    assert timing.slope(device, lambda T: lambda: 1e-3 + 2e-6 * T) == pytest.approx(2e-6)


def test_tf32_switch_is_restored() -> None:
    before = torch.backends.cudnn.allow_tf32
    seen = []

    def fails(precision: str) -> None:
        with tf32_switch(precision):
            seen.append(torch.backends.cudnn.allow_tf32)
            raise KeyError

    for precision in ("tf32", "fp32", "bf16"):
        with pytest.raises(KeyError):
            fails(precision)
        assert torch.backends.cudnn.allow_tf32 == before
    assert seen == [True, False, False]


def measured(device: CpuDevice, point: GridPoint) -> dict[str, Any]:
    return list(timing.measure_point(device, point, device.clock))[-1]


@compiled
@pytest.mark.parametrize("cell", grid.CELLS)
@pytest.mark.parametrize(("ragged", "directions", "training"), [(False, 2, True), (True, 1, True), (True, 2, False)])
def test_point(cell: str, ragged: bool, directions: int, training: bool) -> None:
    point = GridPoint(cell, "fp32", 16, training, ragged, 11, 6, directions)
    device = CpuDevice()
    answer = measured(device, point)
    assert "failed" not in answer
    packed = {"nn packed", "ours packed"}
    rivals = {(False, 2): {"nn"}, (True, 1): packed | {"nn padded"}, (True, 2): packed}[ragged, directions]
    for sides in answer["times"].values():
        assert sides.keys() == rivals | {"ours"}
        assert all(len(times) >= MIN_ROUNDS for times in sides.values())
    assert answer["times"].keys() == {"eager", "graph"}
    assert answer["regime"] == ("base/base" if training else "base")
    assert 0 < answer["error"] < 1e-5
    assert 0 < answer["nn error"] < 1e-5
    assert "eager 1.00x" in answer["line"]
    assert "graph 1.00x" in answer["line"]
    timed = report.timed({f"grid/{point}": json.loads(json.dumps(answer))})
    assert [t.mode for t in timed] == ["eager", "graph"]


@compiled
def test_eager_times_are_told_before_the_graphs_are_made() -> None:
    device = CpuDevice()
    first, last = timing.measure_point(device, GridPoint("gru", "fp32", 8, False, False, 3, 4, 1), device.clock)
    assert "eager" in first["line"]
    assert "graph" not in first["line"]
    assert last["times"].keys() == {"eager", "graph"}


@compiled
def test_inputs_are_made_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    where = []
    right = torch.randn

    def randn(*shape: Any, **options: Any) -> torch.Tensor:
        where.append(options.get("device"))
        return right(*shape, **options)

    monkeypatch.setattr(torch, "randn", randn)
    timing.Comparison(GridPoint("gru", "fp32", 8, True, True, 3, 4, 1), CpuDevice())
    assert where == [CpuDevice.torch_device] * 2


@compiled
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_all_sides_of_a_point_do_the_same(ragged: bool, training: bool) -> None:
    comparison = timing.Comparison(GridPoint("gru", "fp32", 9, training, ragged, 5, 7, 1), CpuDevice())
    for graph in (False, True):
        sides = comparison.sides(graph)
        ours = sides.pop("ours")()
        for name, side in sides.items():
            theirs = side()
            assert {"d x" in theirs, "d weight_hh_l0" in theirs, "d x" in ours} == {training}
            for key in ours:
                if key == "d x" and graph and "packed" in name:
                    continue  # the gradient of packed rows has another shape
                torch.testing.assert_close(
                    theirs[key], ours[key], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


@compiled
def test_nothing_is_packed_inside_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = timing.Comparison(GridPoint("gru", "fp32", 9, False, True, 5, 7, 1), CpuDevice())
    eager, captured = comparison.sides(), comparison.sides(graph=True)
    monkeypatch.setattr(timing, "pack_padded_sequence", None)
    for name in ("nn packed", "ours packed"):
        captured[name]()
        with pytest.raises(TypeError):
            eager[name]()


@compiled
@pytest.mark.usefixtures("calls_by_python")
@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_point_is_not_timed(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.run_layer

    def wrong(x: torch.Tensor, weights: list[torch.Tensor], *rest: Any, **named: Any) -> Any:
        return right(x, [weights[0] * 1.01, *weights[1:]], *rest, **named)

    monkeypatch.setattr(ops, "run_layer", wrong)
    device = CpuDevice()
    answer = measured(device, GridPoint("lstm", "fp32", 16, training, True, 20, 6, 1))
    assert answer["failed"].startswith("wrong: h_n: error ")
    assert ("d weight_ih_l0: error" in answer["failed"]) == training
    assert answer["times"] == {}


def test_nan_is_infinitely_far() -> None:
    truth = {"h_n": torch.tensor([2.0]), "d weight_hh_l0": torch.tensor([4.0]), "d bias_hh_l0": torch.tensor([1.0])}
    found = {
        "h_n": torch.tensor([3.0]),
        "d weight_hh_l0": torch.tensor([math.nan]),
        "d bias_hh_l0": torch.tensor([2.0]),
    }
    assert timing.distances(found, truth) == {"h_n": 0.5, "d weight_hh_l0": math.inf, "d bias_hh_l0": 0.25}


@compiled
def test_the_check_sees_gradients_of_weights_of_its_rows_alone() -> None:
    """All rows but the checked ones get incoming gradients of 0. The first and the last row are checked."""
    comparison = timing.Comparison(GridPoint("gru", "fp32", 8, True, False, 20, 3, 1), CpuDevice())
    rows = torch.tensor([0, 19])
    masked = comparison.only_rows(rows)["output"]
    assert masked.abs().sum((0, 2)).nonzero().flatten().tolist() == [0, 19]
    assert torch.equal(masked[:, rows], comparison.cotangents["output"][:, rows])


@compiled
@pytest.mark.parametrize(("side", "kind"), [("nn", "not captured"), ("ours", "failed")])
def test_what_cannot_be_captured_is_said(side: str, kind: str) -> None:
    class NoGraph(CpuDevice):
        def capture(self, run: Call) -> tuple[Call, Any]:
            if type(run.module).__module__.startswith("torch") == (side == "nn"):  # type: ignore[attr-defined]
                raise RuntimeError("operation not permitted\nwhen capturing")
            return super().capture(run)

    device = NoGraph()
    answer = measured(device, GridPoint("gru", "fp32", 8, False, False, 3, 4, 1))
    assert answer[kind] == f"no CUDA graph of {side}: operation not permitted"
    assert answer["times"]["eager"].keys() == {"nn", "ours"}
    assert answer["times"]["graph"].keys() == {"nn", "ours"} - {side}
    assert [t.mode for t in report.timed({f"grid/{POINT}": answer})] == ["eager"]


@compiled
def test_latencies_on_the_cpu() -> None:
    device = CpuDevice()
    answer = timing.launches(device, device.clock)
    assert answer["empty kernel us"] == pytest.approx(0.01)
    assert {"ours training call us", "nn inference call us"} <= answer.keys()
    steps = timing.step_times(device, "gru", "fp32", 8, batch=2)
    assert steps["base"]["forward floor us"] == pytest.approx(0.1)
    assert steps["nn"].keys() == {"forward us", "backward us"}
    assert report.latencies({"latency/gru-fp32-H8": steps})
