"""The checks of `make gpu` on a device of the CPU: right layers pass, and every kind of wrong one fails."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from gpu_fakes import CpuDevice, compiled

from benchmarks.gpu import layers, modules
from seqcls_fast import ops
from seqcls_fast.toolkit.timing import Call
from support import checks


def checked(cell: str, precision: str, hidden: int = 9) -> dict[str, Any]:
    return list(layers.check_layer(CpuDevice(), cell, precision, hidden, "base"))[-1]


@compiled
@pytest.mark.parametrize("cell", layers.MODULES)
@pytest.mark.parametrize("precision", layers.CASE_DTYPES)
def test_layer_passes(cell: str, precision: str) -> None:
    answer = checked(cell, precision)
    assert "failed" not in answer
    for variant in ("padded", "ragged"):
        assert answer[variant]["nn"] < 0.1
        assert answer[variant]["base"] < 0.1
    assert re.fullmatch(r"padded nn \S+ base \S+; ragged nn \S+ base \S+", answer["line"])


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Makes our layer return a changed tensor of that name."""
    of_layer, of_gradients = checks.layer, checks.gradients

    def changed(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: change(t) if key == name else t for key, t in found.items()}

    def layer(*args: Any, **options: Any) -> dict[str, torch.Tensor]:
        found = of_layer(*args, **options)
        return changed(found) if options.get("impl") == "base" else found

    def gradients(results: Any, inputs: Any, *args: Any) -> dict[str, torch.Tensor]:
        found = of_gradients(results, inputs, *args)
        return changed(found) if next(iter(results.values())).dtype == torch.float32 else found

    layers.wanted.cache_clear()
    monkeypatch.setattr(checks, "layer", layer)
    monkeypatch.setattr(checks, "gradients", gradients)


@compiled
@pytest.mark.parametrize("name", ["output", "h_n", "c_n"])
@pytest.mark.parametrize("change", [lambda t: t * 1.01, lambda t: t * math.nan], ids=["1 %", "NaN"])
def test_wrong_results_fail(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, name, change)
    answer = checked("lstm", "fp32")
    assert f"padded base: {name}: error " in answer["failed"]
    assert f"ragged base: {name}: error " in answer["failed"]


@compiled
def test_ids_are_checked_against_one_hot_rows_of_nn() -> None:
    answer = checked("gru", "fp32", layers.IDS_SIZE)
    assert "failed" not in answer
    assert {"nn", "base"} <= answer["ids"].keys()


def test_twice_the_error_of_nn_is_allowed() -> None:
    case = layers.variants("gru", "bf16", 9)["padded"]
    limit = layers.bound(case, "h_n")
    assert limit == 4 * 2**-7
    for theirs, allowed in ((0.0, limit), (limit / 4, limit), (limit, 2 * limit)):
        assert layers.too_far({"h_n": allowed}, {"h_n": theirs}, case) == []
        assert layers.too_far({"h_n": 1.01 * allowed}, {"h_n": theirs}, case)
    assert layers.too_far({"h_n": math.inf}, {"h_n": math.inf}, case) == []  # as wrong as cuDNN is not wrong
    assert layers.too_far({"h_n": limit * 1.01}, {}, case)  # cuDNN refused


def test_errors_are_relative_to_the_largest_element(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = {
        "output": torch.tensor([[[4.0, -8.0]]]),
        "d w_hh[0]": torch.tensor([1.0]),
        "d b_hh[0]": torch.tensor([10.0]),
    }
    monkeypatch.setattr(layers, "wanted", lambda case: truth)
    case = layers.Case(B=1, T=1)
    found = {
        "output": torch.tensor([[[5.0, -8.0]]]),
        "d w_hh[0]": torch.tensor([2.0]),
        "d b_hh[0]": torch.tensor([math.nan]),
    }
    assert layers.errors(found, case) == {"output": 1 / 8, "d w_hh[0]": 1 / 10, "d b_hh[0]": math.inf}


def test_tf32_is_held_to_its_own_rounding() -> None:
    limits = {p: layers.bound(layers.variants("gru", p, 9)["padded"], "output") for p in ("tf32", "fp32")}
    assert limits["tf32"] == 4 * 2**-10
    assert limits["fp32"] < 1e-5


@compiled
def test_habits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(CpuDevice):
        """A device whose graphs and second stream give other bits."""

        def capture(self, run: Call) -> tuple[Call, Any]:
            return lambda: None, run()  # a replay that writes nothing

        def at_once(self, runs: Sequence[Call]) -> list[Any]:
            first, second = (run() for run in runs)
            return [first, second | {"h_n": second["h_n"] + 1e-3}]  # not only other bits: it is wrong

    case = layers.variants("gru", "fp32", 9)["ragged"]
    layer = layers.Layer(Other(), case, "base")
    first = layer.run()
    found = layers.inconsistencies(layer, first)
    assert found == [
        f"a CUDA graph: other bits in {', '.join(first)}",
        found[-1],
    ]
    assert re.match("stream 1 of two at once: h_n: error .*, tolerance", found[-1])
    layer = layers.Layer(CpuDevice(), case, "base")
    assert layers.inconsistencies(layer, first) == []
    right = layer.run
    ways = itertools.count()
    monkeypatch.setattr(layer, "run", lambda **o: right(**o) | {"output": first["output"] + next(ways)})
    found = layers.inconsistencies(layer, first | {"d x": first["d x"] + 1})
    assert found[:4] == [
        "a second call: other bits in d x",
        "gates computed anew: other bits in output, d x",
        "lengths on the CPU: other bits in output, d x",
        "d x: not exactly 0 beyond the lengths",
    ]


@compiled
@pytest.mark.parametrize("backward", [False, True])
def test_one_pass_of_a_small_layer(backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked_pass() -> dict[str, Any]:
        (answer,) = layers.check_pass(CpuDevice(), "lstm", "fp32", 9, "base", backward)
        return answer

    answer = checked_pass()
    assert "failed" not in answer
    assert answer["ragged"].keys() == {"nn", "base"}
    spoil(monkeypatch, "d h0", lambda t: t * 1.01)
    assert ("d h0" in checked_pass().get("failed", "")) == backward


def test_inputs_are_laid_out_on_the_device() -> None:
    """A copy to a device would be aligned and lose the NaN around it; the device "meta" shows where a tensor lies."""

    class Meta(CpuDevice):
        torch_device = torch.device("meta")

    layer = layers.Layer(Meta(), layers.variants("gru", "bf16", 9)["ragged"], "base")
    tensors = {**layer.inputs, **{f"d {name}": t for name, t in layer.cotangents.items()}}
    assert {name: t.storage_offset() for name, t in tensors.items()} == dict.fromkeys(tensors, 67)
    assert {t.device.type for t in tensors.values()} == {"meta"}


@compiled
def test_gates_are_computed_anew_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    right = ops.run_layer
    monkeypatch.setattr(ops, "run_layer", lambda *args: asked.append(args[10]) or right(*args))
    layer = layers.Layer(CpuDevice(), layers.variants("gru", "fp32", 9)["padded"], "base")
    layer.run()
    layer.run(recompute=True)
    assert asked == [False, True]


@compiled
def test_padding_given_to_ours_is_nan() -> None:
    layer = layers.Layer(CpuDevice(), layers.variants("gru", "bf16", 9)["ragged"], "base")
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

    case = layers.variants("gru", "bf16", 33)["padded"]
    blocks = {"onchip": 1, "cluster": 1, "grid": 3, "stepwise": 0}
    assert layers.fitting(Planned(), case, "bf16") == ["onchip", "stepwise"]
    blocks["cluster"] = 2
    assert layers.fitting(Planned(), case, "bf16") == ["onchip", "cluster", "stepwise"]


@compiled
@pytest.mark.usefixtures("calls_by_python")
@pytest.mark.parametrize(
    ("name", "options"), [("GRU", {"num_layers": 2}), ("LSTM", {"proj_size": 3, "bidirectional": True})]
)
def test_modules(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "failed" not in modules.check_module(CpuDevice(), name, options)
    right = modules.sf.ops.run_layer

    def wrong(x: torch.Tensor, weights: list[torch.Tensor], *rest: Any, **named: Any) -> Any:
        return right(x, [weights[0], weights[1] * 1.001, *weights[2:]], *rest, **named)

    monkeypatch.setattr(ops, "run_layer", wrong)
    failed = modules.check_module(CpuDevice(), name, options)["failed"]
    assert len(failed.split("; ")) == 4


@compiled
@pytest.mark.usefixtures("calls_by_python")
def test_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "failed" not in modules.check_many_steps(CpuDevice(), 500)
    right = ops.run_layer

    def forgets(x: torch.Tensor, weights: Any, directions: int, h0: Any, *rest: Any, **named: Any) -> Any:
        return right(x, weights, directions, None, *rest, **named)

    monkeypatch.setattr(ops, "run_layer", forgets)
    assert "differ by" in modules.check_many_steps(CpuDevice(), 500)["failed"]


@compiled
def test_refusals_are_expected() -> None:
    """On the CPU no input is on another device, and the values of lengths are checked."""
    failed = modules.check_refusals(CpuDevice())["failed"]
    assert "input on the CPU: not refused" in failed
    assert "hx on the CPU: not refused" in failed
    assert "a length beyond T" not in failed
