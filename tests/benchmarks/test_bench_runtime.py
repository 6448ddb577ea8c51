"""The question about the runtime: every side follows the same stream, and rows beside RTNeural outlive runs without."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from benchmarks import report, rows, stream_engines
from benchmarks.questions import runtime
from benchmarks.rows import Row, Side
from benchmarks.stream_engines import Stream

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.mark.parametrize("way", ["from C", "from Python", "beside RTNeural"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_all_sides_follow_the_same_stream(cell: str, way: str) -> None:
    if way == "beside RTNeural" and not stream_engines.checkout():
        pytest.skip("RTNEURAL names no checkout of RTNeural")
    stream = Stream(cell, *runtime.SHAPES[0])
    for name, make in runtime.followers(stream, way).items():
        follower = make(stream)
        for steps in (1, stream_engines.COUNT - 1, 36):  # each but the first two begins where the input does
            follower.run(steps)
        whole = stream.expected(100)
        found = follower.output().copy()
        follower.close()
        np.testing.assert_allclose(found, whole, atol=runtime.BOUND, err_msg=name)
    tiny = torch.tensor(1e-40)
    assert tiny / 2 > 0, "a library lets the process flush denormals to zero"


def test_rows_beside_rtneural_stay_and_tell_their_day() -> None:
    run = dict.fromkeys(("machine", "torch", "python", "seqcls_fast", "impl", "commit"), "1")
    run |= {"time": "2026-01-01T00:00:00+00:00", "csrc": rows.csrc_hash(), "peers": {}, "limits": []}
    sides = {"ours": Side([1e-8] * 3), "RTNeural": Side([2e-8] * 3, note="at commit abc")}
    old = Row("runtime", "one step beside RTNeural", "LSTM (1, 8)", 1, sides)
    new = Row("runtime", "one step from C", "LSTM (1, 8)", 1, {"ours": Side([1e-8] * 3)})
    later = run | {"time": "2026-02-02T00:00:00+00:00"}
    page = report.Report([rows.Measured(old, run), rows.Measured(new, later)]).page([])
    assert old.key != new.key
    assert "- RTNeural at commit abc, measured on 2026-01-01." in page
    assert page.count("measured on") == 1
