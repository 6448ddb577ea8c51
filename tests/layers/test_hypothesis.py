"""Small cases drawn by hypothesis. They find errors that need three or more axes at once, which the pairwise grid of
test_backends.py misses, and hypothesis reduces them to a readable case. Every run draws the same cases."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.cases import CELLS, FLOATS, HALVES, LAYOUTS, LENGTHS, NOISE, OPTION_AXES, RESETS, Case
from support.checks import check, expected

SETTINGS = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

sizes = st.integers(1, 20)
anything = st.builds(
    Case,
    cell=st.sampled_from(CELLS),
    T=st.integers(1, 9),
    B=sizes,
    I=sizes,
    H=sizes,
    directions=st.sampled_from((1, 2)),
    bias=st.booleans(),
    proj=st.booleans(),
    state=st.booleans(),
    lengths=st.sampled_from(LENGTHS),
    dtype=st.sampled_from(FLOATS + HALVES),
    layout=st.sampled_from(LAYOUTS),
    want_output=st.booleans(),
    ids=st.booleans(),
    resets=st.sampled_from(RESETS),
    learnt=st.booleans(),
    noise=st.sampled_from(tuple(NOISE)),
).filter(lambda case: case.valid)


@SETTINGS
@given(case=anything)
def test_matches_reference(impl: str, case: Case) -> None:
    check(case, impl)


@settings(SETTINGS, max_examples=30)
@given(case=anything.filter(lambda case: case.directions == 2), threads=st.integers(2, 4))
def test_matches_reference_with_threads(compiled: str, case: Case, threads: int) -> None:
    torch.set_num_threads(1)
    expected(case)  # computed here and kept, so that the reference runs on one thread
    torch.set_num_threads(threads)  # a fixture of conftest.py restores it
    check(case, compiled)


def test_every_axis_is_drawn() -> None:
    """A new axis of Case must be drawn here as well."""
    assert set(OPTION_AXES) == set(Case.__dataclass_fields__)
