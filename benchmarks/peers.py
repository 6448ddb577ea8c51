"""The engines that layers are compared with, each used if it is installed: `pip install "seqcls-fast[bench]"`.

An engine is built from a Problem and computes it once per `run()`; `values` turns the result into tensors, which are
checked before anything is timed. Building (tracing, compiling, converting weights) is not timed here, and every engine
gets its input in the form that suits it best: time-major, in its own kind of array, already bound to its session.
Those of torch are in torch_engines.py.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from . import torch_engines
from .layer_cases import GATES, Case, Problem, Values
from .torch_engines import UNROLLED, Engine, build_frozen, build_ours

__all__ = ["PEERS", "Engine", "Peer", "build_frozen", "build_ours", "jax_engine", "jax_layer", "peers_of"]


@dataclass(frozen=True)
class Peer:
    name: str
    package: str
    refuses: Callable[[Case], str]  # why it does not run a case, or an empty string
    build: Callable[[Problem, int], Engine]  # the int is the number of threads

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(name) is not None for name in self.package.split())


# -- ONNX: onnxruntime and OpenVINO -----------------------------------------------------------------------------------

ONNX_GATES = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}  # the places of ONNX's gates among torch's
ONNX_ATTRIBUTES: dict[str, dict[str, Any]] = {"RNN": {}, "GRU": {"linear_before_reset": 1}, "LSTM": {}}


def onnx_model(problem: Problem) -> bytes:
    """One RNN, GRU or LSTM node per layer; inputs x (T, B, I) and lengths, outputs h_n and output (T, B, D * H).

    Where there is a state, h0 and c0 are inputs of the one layer, and c_n is an output.
    """
    from onnx import TensorProto, helper, numpy_helper

    case = problem.case
    suffixes = ["", "_reverse"][: case.directions]
    nodes, constants, finals = [], [], []

    def constant(name: str, value: Tensor) -> str:
        constants.append(numpy_helper.from_array(value.float().contiguous().numpy(), name))
        return name

    def gates(name: str) -> Tensor:
        blocks = problem.weights[name].chunk(GATES[case.cell])
        return torch.cat([blocks[gate] for gate in ONNX_GATES[case.cell]])

    if case.directions == 2:  # (T, B, D, H) -> (T, B, D * H)
        constants.append(numpy_helper.from_array(torch.tensor([0, 0, -1]).numpy(), "merged"))
    below = "x"
    for k in range(case.layers):
        W, R = ([gates(f"{kind}_l{k}{end}") for end in suffixes] for kind in ("weight_ih", "weight_hh"))
        biases = [torch.cat([gates(f"bias_ih_l{k}{end}"), gates(f"bias_hh_l{k}{end}")]) for end in suffixes]
        constants_of_layer = {f"W{k}": W, f"R{k}": R, f"B{k}": biases}
        inputs = [below, *(constant(name, torch.stack(each)) for name, each in constants_of_layer.items())]
        inputs.append("lengths" if case.ragged else "")
        inputs += [name for name in problem.inputs if name != "x"]
        attributes = ONNX_ATTRIBUTES[case.cell] | {"hidden_size": case.shape.H}
        if case.directions == 2:
            attributes |= {"direction": "bidirectional"}
        finals.append(f"final{k}")
        if case.ragged:  # only the states are asked for
            nodes.append(helper.make_node(case.cell, inputs, ["", f"final{k}"], **attributes))
            continue
        outputs = [f"Y{k}", f"final{k}", *["c_n"] * (len(problem.states) == 2)]
        nodes.append(helper.make_node(case.cell, inputs, outputs, **attributes))
        if case.directions == 1:
            constants.append(numpy_helper.from_array(torch.tensor([1]).numpy(), f"direction{k}"))
            nodes.append(helper.make_node("Squeeze", [f"Y{k}", f"direction{k}"], [f"output{k}"]))
        else:
            nodes.append(helper.make_node("Transpose", [f"Y{k}"], [f"turned{k}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"turned{k}", "merged"], [f"output{k}"]))
        below = f"output{k}"
    nodes.append(helper.make_node("Concat", finals, ["h_n"], axis=0))
    value, (B, T, _, H) = helper.make_tensor_value_info, case.shape
    graph_inputs = [value(name, TensorProto.FLOAT, list(tensor.shape)) for name, tensor in problem.inputs.items()]
    graph_outputs = [value("h_n", TensorProto.FLOAT, [case.layers * case.directions, B, H])]
    if case.ragged:
        graph_inputs.append(value("lengths", TensorProto.INT32, [B]))
    else:
        graph_outputs.append(value(below, TensorProto.FLOAT, [T, B, case.directions * H]))
    if len(problem.states) == 2:
        graph_outputs.append(value("c_n", TensorProto.FLOAT, [1, B, H]))
    graph = helper.make_graph(nodes, "layer", graph_inputs, graph_outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return model.SerializeToString()


def _onnx_inputs(problem: Problem) -> dict[str, Any]:
    feeds = {name: tensor.float().numpy() for name, tensor in problem.inputs.items()}
    return feeds if problem.lengths is None else feeds | {"lengths": problem.lengths.int().numpy()}


def _named(arrays: Sequence[Any]) -> Values:
    return dict(zip(("h_n", "output", "c_n"), map(torch.from_numpy, arrays), strict=False))


def _onnxruntime(problem: Problem, threads: int) -> Engine:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    # otherwise its idle threads spin while other engines are timed
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(onnx_model(problem), settings, providers=["CPUExecutionProvider"])
    feeds = _onnx_inputs(problem)
    return Engine(lambda: session.run(None, feeds), _named)


@cache
def _openvino_core() -> Any:
    """The process's one Core of OpenVINO, made so that this thread's alternate signal stack stays what it was.

    A Core's CPU plugin replaces that stack when it is loaded. When the plugin is destroyed, it puts the old one back,
    but not from another thread, and not while the stack of a later Core is in place: the thread then has a signal
    stack in memory that is no longer mapped, and its next signal ends the process.
    """
    import openvino

    core = openvino.Core()
    libc = ctypes.CDLL(None)
    stack = ctypes.create_string_buffer(64)  # more than a stack_t takes on any system
    libc.sigaltstack(None, stack)
    core.get_versions("CPU")  # loads the plugin; no later call of this Core changes the stack
    libc.sigaltstack(stack, None)
    return core


def _openvino(problem: Problem, threads: int) -> Engine:
    import openvino

    core = _openvino_core()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if problem.case.dtype == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    model = core.read_model(io.BytesIO(onnx_model(problem)))
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    arrays = _onnx_inputs(problem)
    for name, array in arrays.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def run(_: Any = arrays) -> Any:  # holds the arrays, whose memory the request reads
        request.infer()
        return request

    return Engine(run, lambda done: _named([tensor.data.copy() for tensor in done.output_tensors]))


# -- JAX --------------------------------------------------------------------------------------------------------------


def jax_layer(problem: Problem) -> tuple[Callable[..., dict[str, Any]], dict[str, Any], list[Any]]:
    """(forward(weights, x, *states), weights, [x, *states]), where forward runs the layers by lax.scan."""
    import jax
    import jax.numpy as jnp

    case = problem.case

    def array(tensor: Tensor) -> Any:
        return jnp.asarray(tensor.float().numpy()).astype(case.dtype)

    def one_direction(x: Any, start: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, reverse: bool) -> Any:

        def step(state: tuple[Any, Any], projected: Any) -> Any:
            h, c = state
            y = h @ w_hh.T + b_hh
            if case.cell == "RNN":
                h = jnp.tanh(projected + y)
            elif case.cell == "GRU":
                (xr, xz, xn), (yr, yz, yn) = jnp.split(projected, 3, 1), jnp.split(y, 3, 1)
                z = jax.nn.sigmoid(xz + yz)
                n = jnp.tanh(xn + jax.nn.sigmoid(xr + yr) * yn)
                h = n + z * (h - n)
            else:
                i, f, g, o = jnp.split(projected + y, 4, 1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        (h, c), output = jax.lax.scan(step, start, x @ w_ih.T + b_ih, reverse=reverse)
        return output, h, c

    def forward(weights: dict[str, Any], x: Any, *states: Any) -> dict[str, Any]:
        zero = jnp.zeros((x.shape[1], case.shape.H), x.dtype)
        start = tuple(state[0] for state in (*states, *states)[:2]) or (zero, zero)  # c counts for LSTM alone
        finals = []
        for k in range(case.layers):
            outputs = []
            for end in ["", "_reverse"][: case.directions]:
                names = (f"{kind}_l{k}{end}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
                output, h, c = one_direction(x, start, *(weights[name] for name in names), reverse=bool(end))
                outputs.append(output)
                finals.append(h)
            x = jnp.concatenate(outputs, 2) if len(outputs) > 1 else outputs[0]
        if problem.lengths is None:
            return {"output": x, "h_n": jnp.stack(finals)} | ({"c_n": c} if len(states) == 2 else {})
        return {"h_n": x[problem.lengths.numpy() - 1, jnp.arange(len(problem.lengths))][None]}

    weights = {name: array(weight) for name, weight in problem.weights.items()}
    return forward, weights, [array(tensor) for tensor in problem.inputs.values()]


def jax_engine(function: Any, *arguments: Any) -> Engine:
    """An engine of ``function``, which returns a dict of arrays, compiled by XLA for these shapes.

    XLA uses as many threads as there are CPUs that the process may run on.
    """
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(function).lower(*arguments).compile()

    def values(result: dict[str, Any]) -> Values:
        return {name: torch.tensor(jax.device_get(value.astype(jnp.float32))) for name, value in result.items()}

    return Engine(lambda: jax.block_until_ready(compiled(*arguments)), values)


def jax_gradients(forward: Any, weights: dict[str, Any], *inputs: Any) -> dict[str, Any]:
    """The gradients of h_n.sum() by torch's names."""
    import jax

    which = tuple(range(1 + len(inputs)))
    gradients, *others = jax.grad(lambda *given: forward(*given)["h_n"].sum(), argnums=which)(weights, *inputs)
    named = gradients | dict(zip(("x", "h0", "c0"), others, strict=False))
    return {f"d {name}": gradient for name, gradient in named.items()}


def _jax(problem: Problem, threads: int) -> Engine:
    forward, weights, inputs = jax_layer(problem)
    return jax_engine(partial(jax_gradients, forward) if problem.case.training else forward, weights, *inputs)


# -- the list of peers -------------------------------------------------------------------------------------------------


def _runs_all(case: Case) -> str:
    return ""


def _jax_refuses(case: Case) -> str:
    if case.single or case.graph:
        return "its cells are layers of one step, and its graphs are compiled"
    return "" if case.plain or not case.state else "a state is written for one plain layer"


def _without_onednn(case: Case) -> str:
    if case.cell != "LSTM" or case.single:
        return "torch asks oneDNN for LSTM alone"
    return "packed or padded, the same as torch" if case.ragged else ""


def _compiled(case: Case) -> str:
    if not 1 < case.shape.T <= UNROLLED:
        return f"unrolls its loop, which takes minutes to compile beyond {UNROLLED} steps"
    plain = case.plain and not (case.ragged or case.has_state or case.graph) and case.dtype == "float32"
    return "" if plain else "written for one plain layer"


def _onnx_refuses(case: Case) -> str:
    return "inference only" if case.training else _jax_refuses(case)


def _onnxruntime_refuses(case: Case) -> str:
    return _onnx_refuses(case) or ("has no bfloat16 on a CPU" if case.dtype == "bfloat16" else "")


PEERS = (
    Peer("torch", "torch", _runs_all, torch_engines.torch_padded),
    Peer(
        "torch packed",
        "torch",
        lambda case: "" if case.ragged else "a ragged batch alone is packed",
        torch_engines.torch_packed,
    ),
    Peer("torch without oneDNN", "torch", _without_onednn, torch_engines.torch_without_onednn),
    Peer("torch.compile", "torch", _compiled, torch_engines.torch_compiled),
    Peer("onnxruntime", "onnxruntime onnx", _onnxruntime_refuses, _onnxruntime),
    Peer("OpenVINO", "openvino onnx", _onnx_refuses, _openvino),
    Peer("JAX", "jax", _jax_refuses, _jax),
)


def peers_of(case: Case, names: Sequence[str] | None = None) -> list[Peer]:
    """The installed peers that run this case."""
    return [p for p in PEERS if (names is None or p.name in names) and p.installed and not p.refuses(case)]
