"""Introspection of the compiled extension. The operators that it registers are torch.ops.seqcls_fast.*."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def build_info() -> dict[str, str | bool]: ...
def cells() -> dict[str, tuple[int, int, bool]]: ...  # the fields of seqcls_fast._cells.Cell
def impls() -> list[str]: ...
def cpu_features() -> list[str]: ...
def cached_packs() -> int: ...
def clear_packed_cache() -> None: ...
def pool_held() -> int: ...
def trim_pool() -> None: ...
def regimes() -> list[str]: ...
def plan(
    cell: str,
    hidden: int,
    batch: int,
    precision: str,
    directions: int,
    backward: bool,
    regime: str,
    limits: dict[str, Any],
    noisy: bool = False,
) -> dict[str, Any]: ...
def random_convolutions(
    x: NDArray[np.float32],
    lengths: NDArray[np.int64],
    dilations: NDArray[np.int64],
    counts: NDArray[np.int64],
    uses: NDArray[np.float32],
    biases: NDArray[np.float32],
    threads: int,
) -> NDArray[np.float32]: ...
def known_devices() -> dict[str, dict[str, Any]]: ...
def device_limits(device: int) -> dict[str, Any]: ...  # in builds with CUDA
def hashed_ngrams(texts: list[str], bits: int) -> tuple[bytearray, bytearray, bytearray]: ...
def linear_svm(
    starts: NDArray[np.int64],
    ids: NDArray[np.int32],
    values: NDArray[np.float32],
    targets: NDArray[np.int64],
    costs: NDArray[np.float32],
    features: int,
    classes: int,
    passes: int,
    tolerance: float,
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], int, float]: ...
def register_plugin(plugin: object) -> None: ...  # a capsule, see csrc/bindings/runner.h
