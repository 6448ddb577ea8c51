"""The simulator that runs the CUDA kernels' tests finds every fault it is made to find, and reports no others.

Each case is a small kernel of simt/detectors.cpp, run in a process of its own, since some faults end the process.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from simt.build import HERE, build, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

CLEAN = [
    "ring",
    "rewrite",
    "half_a_word_each",
    "trade_in_warp",
    "trade_by_block",
    "trade_by_group",
    "pass_along_groups",
    "matrices",
    "within",
    "aligned",
    "aligned_regions",
    "exchange",
    "exchange_left_at_once",
    "wait_for_the_second_phase",
    "exchange_cooperative",
    "words",
    "words_to_a_later_block",
    "words_and_barrier",
    "read_then_written",
    "many_words",
    "ping_pong",
    "raise",
    "schedules",
    "after_a_stuck_launch",
    "mma_bf16",
    "mma_fp16",
    "mma_tf32",
    "load_matrices",
    "rounding_bf16",
    "rounding_fp16",
    "special_functions",
    "stream",
    "multiply",
    "multiply_types",
]

# Parts of the expected findings. Where the schedule decides which finding comes first, only what they share is listed.
FAULTY = {
    "ring_without_barrier": ["race: read after a write"],
    "rewrite_without_barrier": ["race: write after a read"],
    "one_word_from_two": ["race: write after a write"],
    "one_word_from_two_warps": ["race: write after a write"],
    "trade_in_warp_without_sync": ["race: "],
    "trade_by_warp_sync": ["race: "],
    "trade_by_other_group": ["race: "],
    "trade_without_group": ["race: "],
    "matrices_without_sync": ["race: read after a write"],
    "mma_as_barrier": ["race: read after a write"],
    "read_before": ["bounds: 4 bytes at -4 of a region of 256 "],
    "read_beyond": ["bounds: 4 bytes at 256 of a region of 256 "],
    "write_before": ["bounds: 4 bytes at -4 of a region of 256 "],
    "write_beyond": ["bounds: 4 bytes at 256 of a region of 256 "],
    "beyond_the_launch": ["bounds: 4 bytes at 1024 of a region of 2048 in 1024 "],
    "misaligned": ["alignment: 16 bytes at byte 8 "],
    "unwritten": ["poison: byte 0 "],
    "left_by_another_block": ["poison: ", "(thread 1."],
    "half_a_block_at_barrier": ["stuck: ", "32 threads wait at cta_sync in detectors.cpp:", "32 have ended"],
    "barrier_in_both_branches": ["barrier: threads meet at different lines"],
    "lane_missing": ["stuck: ", "31 threads wait at warp_sync"],
    "lanes_at_different_things": ["stuck: ", "1 threads wait at mma_bf16", "31 threads wait at mma_fp16"],
    "group_of_half_warps": ["barrier: group 0 is met by parts of warps"],
    "group_of_two_sizes": ["barrier: threads come to group 0 as "],
    "group_short_of_a_warp": ["stuck: ", "32 threads wait at group_sync"],
    "group_16": ["barrier: group 15 of 64 threads"],
    "exchange_of_unordered_init": ["race: read after a write of byte 2056 "],
    "exchange_read_after_send": ["race: write after a read"],
    "exchange_without_wait": ["race: read after a write", "that of a send"],
    "exchange_without_last_wait": ["race: read after a write", "that of a send"],
    "exchange_in_one_half": ["race: ", "that of a send"],
    "exchange_of_wrong_parity": ["race: ", "that of a send"],
    "exchange_expecting_more": ["stuck: ", "threads wait at barrier_wait"],
    "exchange_expecting_less": ["race: read after a write", "that of a send"],
    "cluster_missing_a_block": ["stuck: ", "64 threads wait at cluster_sync", "64 have ended"],
    "send_to_ended_block": ["ended: a send to block 0"],
    "send_out_of_cluster": ["bounds: a send to block 2 of a cluster of 2"],
    "mbarrier_armed_twice": ["barrier: a second arrival"],
    "mbarrier_uninitialised": ["poison: ", "barrier: the mbarrier at byte 0 was never initialised"],
    "words_never_posted": ["stuck: ", "192 threads wait at poll", "64 have ended"],
    "words_to_an_earlier_block": ["stuck: ", "64 threads wait at poll"],
    "words_as_barrier": ["race: read after a write"],
    "read_then_written_without_barrier": ["race: write after a read", "that of thread 0.32"],
    "stream_too_many_threads": ["32 to 1024 threads", "got 1056"],
    "stream_part_of_a_warp": ["32 to 1024 threads", "got 48"],
    "stream_too_much_shared": ["65540 bytes of shared memory, the device has 65536"],
    "stream_part_of_a_cluster": ["3 blocks do not divide into clusters of 2"],
    "stream_too_wide_a_cluster": ["clusters of 8 blocks, the device has 4"],
    "stream_too_many_at_once": ["5 blocks at once on 4 multiprocessors"],
}

ENDED_BY_A_SIGNAL = ["fence", "stream_beyond_the_end"]


@pytest.fixture(scope="module")
def detectors() -> Path:
    return build([HERE / "detectors.cpp"], "detectors")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_every_kernel_is_a_case(detectors: Path) -> None:
    assert sorted(run(detectors).stdout.split()) == sorted([*CLEAN, *FAULTY, *ENDED_BY_A_SIGNAL])


@pytest.mark.parametrize("name", CLEAN)
def test_clean(detectors: Path, name: str) -> None:
    done = run(detectors, name)
    assert (done.stdout, done.returncode) == ("clean\n", 0)


@pytest.mark.parametrize("name", FAULTY)
def test_faulty(detectors: Path, name: str) -> None:
    done = run(detectors, name)
    assert done.stdout.startswith("simt: ")
    assert [words for words in FAULTY[name] if words not in done.stdout] == [], done.stdout


@pytest.mark.parametrize("name", ENDED_BY_A_SIGNAL)
def test_fence(detectors: Path, name: str) -> None:
    assert run(detectors, name).returncode == -signal.SIGSEGV


def test_findings_are_the_same_in_every_run(detectors: Path) -> None:
    first, second = run(detectors, "ring_without_barrier"), run(detectors, "ring_without_barrier")
    assert first.stdout == second.stdout


def test_portable_fibers() -> None:
    portable = build([HERE / "detectors.cpp"], "detectors", "-DSIMT_UCONTEXT")
    for name in ("exchange", "words", "schedules", "mma_bf16"):
        assert run(portable, name).stdout == "clean\n", name


def test_what_does_not_compile_is_shown(tmp_path: Path) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int main() { return undeclared; }")
    with pytest.raises(RuntimeError, match="undeclared"):
        build([source], "broken")
