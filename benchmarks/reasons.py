"""Why a row stays below its bound, or behind another library, as far as the measurements tell.

The cost of a call is that of the tiniest row of the same kind, so a reason takes all rows, by their keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .rows import Row, amount, percent

Key = tuple[str, str, str, int]
CALL = "the fixed cost of a call"
TINY = "(1, 1, 8, 8)"
CALLS = ("latency", "policies")  # of what these questions lose, the cost of a call is the reason
REASONS = {
    "import_time": "most of it is importing torch",
    "per_sample": "the fixed cost of torch.func, whatever the sizes",
    "compile_time": "the first call of a layer",
}
ENOUGH = 0.7  # share of the bound; a row below it gets a reason


def call_cost(row: Row, rows: Mapping[Key, Row]) -> float:
    """The time of a call that computes next to nothing: the tiniest shape's, in the row's own table if it is there."""
    what = "training" if "training" in row.what else "inference"
    cell = row.name.split()[0]
    tables = ((row.question, row.what, "(1, 8, 8)"), (row.question, row.what, TINY), ("layers", what, TINY))
    keys = ((question, table, f"{cell} {shape}", row.threads) for question, table, shape in tables)
    tiny = next((rows[key] for key in keys if key in rows), None)
    layers = 2 if "stacked" in row.what else 1
    return layers * tiny.sides["ours"].value if tiny is not None else 0.0


def reason(row: Row, rows: Mapping[Key, Row]) -> str:
    """Why a row of a layer stays below its bound, as far as the measurements tell; details follow a colon."""
    ours, limit = row.sides["ours"].value, max(row.bounds, key=row.bounds.__getitem__, default="")
    cost = call_cost(row, rows)
    if row.question in REASONS:
        return REASONS[row.question]
    if row.what.startswith("first call"):
        packed = "" if row.what.endswith("frozen") else "weights are packed and "
        return f"first use: {packed}memory is mapped, which some libraries do when they load a model"
    if row.question in CALLS or cost > 0.4 * ours:
        return f"{CALL}: {amount(cost, 's')} of {amount(ours, 's')}" if 0 < cost < ours else CALL
    if not row.bounds:
        return ""
    if (row.share or 0) >= ENOUGH:
        return f"near the bound: we reach {percent(row.share)} of it"
    shape = [int(size) for size in re.findall(r"\d+", row.name)]
    one_step = row.question in ("cells", "one_step")  # whose traffic is that of the weights
    if (limit != "traffic" or one_step) and len(shape) in (3, 4) and shape[0] <= 8:
        return "few rows: each step reads all weights for a handful of products"
    if "training" in row.what:
        return "saved values and gradients are read from memory several times"
    if row.threads > 1:
        return "the rows do not divide evenly among the threads"
    return "activations, and tiles that are not full"
