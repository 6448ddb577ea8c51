"""Checks on the GPU that layers.py does not make: whole modules, a million steps, and inputs that must be refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seqcls_fast as sf

from .device import tf32_switch

DTYPE = torch.bfloat16  # of the long sequence


def parts(device: Any) -> dict[str, Callable[[], dict[str, Any]]]:
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, options in {
        "RNN": {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"},
        "GRU": {"num_layers": 2, "bidirectional": True, "bias": False},
        "LSTM": {"num_layers": 3, "batch_first": True},
        "LSTM-proj": {"proj_size": 11, "bidirectional": True},
    }.items():
        found[f"module-{name}"] = partial(check_module, device, name.split("-")[0], options)
    found["million-steps"] = partial(check_many_steps, device)
    found["refusals"] = partial(check_refusals, device)
    return found


def check_module(device: Any, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A module in float64 and float32, with padded and packed input, against torch.nn in float64 on the CPU."""
    torch.manual_seed(0)
    B, T, I, H = 5, 9, 20, 70
    module = getattr(nn, name)(I, H, **options).double()
    first = bool(options.get("batch_first"))
    x = torch.randn((B, T, I) if first else (T, B, I), dtype=torch.float64)
    lengths = torch.tensor([3, 9, 1, 7, 9])
    answer: dict[str, Any] = {}
    failures = []
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        ours = getattr(sf, name)(I, H, **options).to(device.torch_device, dtype)
        ours.load_state_dict(module.state_dict())
        for packed in (False, True):
            results = []
            for m, data in ((module, x), (ours, x.to(device.torch_device, dtype))):
                m.zero_grad()
                sequence: Any = data
                if packed:
                    sequence = pack_padded_sequence(data, lengths, batch_first=first, enforce_sorted=False)
                with tf32_switch("fp32"):
                    results.append(_results_and_gradients(m, sequence))
            wanted, found = results
            error = max(
                float((f.double().cpu() - w).abs().max() / w.abs().max()) for f, w in zip(found, wanted, strict=True)
            )
            answer[f"{'packed' if packed else 'padded'} {str(dtype).removeprefix('torch.')}"] = error
            if not error <= limit:
                failures.append(f"{'packed' if packed else 'padded'} {dtype}: error {error:.1e}, limit {limit:.0e}")
    answer["line"] = ", ".join(f"{what} {error:.1e}" for what, error in answer.items())
    return answer | ({"failed": "; ".join(failures)} if failures else {})


def _results_and_gradients(module: nn.Module, x: Any) -> list[Tensor]:
    output, states = module(x)
    data = output.data if isinstance(output, PackedSequence) else output
    results = [data, *(states if isinstance(states, tuple) else (states,))]
    sum((t * t).sum() for t in results).backward()
    return [t.detach() for t in results] + [p.grad for p in module.parameters()]


def check_many_steps(device: Any, steps: int = 1_000_000) -> dict[str, Any]:
    """One sequence of a million steps, whole, and in ten pieces, each with the state of the one before."""
    torch.manual_seed(0)
    module = sf.GRU(8, 16).to(device.torch_device, DTYPE)
    x = torch.randn(steps, 1, 8, generator=torch.Generator().manual_seed(0)).to(device.torch_device, DTYPE)
    with torch.inference_mode():
        whole, h_n = module(x)
        pieces, state = [], None
        for piece in x.chunk(10):
            output, state = module(piece, state)
            pieces.append(output)
    error = float((whole.float() - torch.cat(pieces).float()).abs().max())
    answer: dict[str, Any] = {"line": f"largest difference {error:.1e}", "error": error}
    if not error <= 4 * torch.finfo(DTYPE).eps or not torch.equal(h_n[0], whole[-1]):
        answer["failed"] = f"the whole and its pieces differ by {error:.1e}"
    return answer


def check_refusals(device: Any) -> dict[str, Any]:
    """Bad input is refused with a sentence and leaves no error on the device."""
    here, x = device.torch_device, torch.randn(4, 3, 8)
    lstm, wide = sf.LSTM(8, 9).to(here), sf.LSTM(8, 2000).to(here)

    def forced(regime: str) -> None:
        with sf.use_impl(regime):
            wide(x.to(here))

    def too_long() -> None:
        before = os.environ.get("SEQCLS_SYNC_CHECK")
        os.environ["SEQCLS_SYNC_CHECK"] = "1"
        try:
            lstm(x.to(here), lengths=torch.tensor([1, 2, 99], device=here))
        finally:
            os.environ.pop("SEQCLS_SYNC_CHECK")
            if before is not None:
                os.environ["SEQCLS_SYNC_CHECK"] = before

    attempts: dict[str, tuple[Callable[[], Any], str]] = {
        "input on the CPU": (lambda: lstm(x), "cpu|CPU"),
        "hx on the CPU": (lambda: lstm(x.to(here), (torch.zeros(1, 3, 9),) * 2), "cpu|CPU"),
        "H beyond onchip": (lambda: forced("onchip"), "onchip"),
        "H beyond grid": (lambda: forced("grid"), "grid"),
        "a length beyond T": (too_long, "lengths"),
    }
    failures = []
    for what, (attempt, words) in attempts.items():
        try:
            attempt()
            device.synchronize()
            failures.append(f"{what}: not refused")
        except (RuntimeError, ValueError) as error:
            if not any(word in str(error) for word in words.split("|")):
                failures.append(f"{what}: refused with {error}")
    answer: dict[str, Any] = {"line": f"{len(attempts)} tried"}
    return answer | ({"failed": "; ".join(failures)} if failures else {})
