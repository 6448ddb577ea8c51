"""The parsers and rules of tools/cuda_check.py on small texts. For each rule there is a kernel that breaks it.

The texts have the formats of nvcc 13.0, ptxas and cuobjdump. No compiler and no GPU is needed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import cuda_check
import sass
import step_model
import step_report

# Output of cuobjdump with a predicate, a long name, a constant with brackets, and a semicolon without a space.
DUMP = """\
\t\tFunction : _ZN2sf4cuda5thingEv
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                                    /* 0x00000a00ff017b82 */
                                                                                             /* 0x000ff00000000800 */
        /*0010*/              @!P4 SYNCS.ARRIVE.TRANS64 RZ, [R88+URZ], R89 ;                 /* 0x00000059580009a7 */
                                                                                             /* 0x000fe2000800003f */
        /*0020*/              @UP0 ULEA UR4, UR5, UR4, 0x3 ;                                 /* 0x0000000000007941 */
                                                                                             /* 0x000fca0000000000 */
        /*0030*/                   ERRBAR;                                                   /* 0x00000000000079ab */
                                                                                             /* 0x000fc00000000000 */
\t\t..........
\t\tFunction : other
        /*0000*/                   EXIT ;                                                    /* 0x000000000000794d */
                                                                                             /* 0x000fea0003800000 */
"""
LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 243 registers, used 16 barriers
ptxas info    : Compile time = 96.896 ms
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    48 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads
ptxas info    : Function properties for _slow_path
    16 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 64 bytes cumulative stack size, 640 bytes smem, 400 bytes cmem[0]
"""
PTX = """\
.visible .entry first(
\t.param .align 8 .b8 first_param_0[1640]
)
.maxntid 256, 1, 1
.minnctapersm 1
{
\tret;
}
.visible .entry flat(
\t.param .u64 flat_param_0
)
.maxntid 8, 4, 2
{
}
\t// .globl\tloose
.visible .entry loose()
{
\t.maxntid 64, 1, 1
}
"""
GRU = "sf::cuda::Shape<sf::Gru, sf::cuda::Bf16, {splits}, 4, (sf::cuda::Pass)0, false>, sf::cuda::{regime}"


def name_of(regime: str = "Onchip", splits: int = 1) -> str:
    return f"void sf::cuda::recur<{GRU.format(regime=regime, splits=splits)}>(sf::cuda::LaunchArgs)"


def code_of(*lines: str) -> list[sass.Instruction]:
    """One instruction per line, 16 bytes each. "@P0 BRA 3" branches to line 3 under a predicate."""
    code = []
    for i, line in enumerate(lines):
        text = line.removeprefix("@P0 ").removeprefix("@!PT ")
        words = text.split()
        if words[0] in ("BRA", "CALL.REL.NOINC"):
            text = f"{words[0]} {int(words[1]) * sass.SIZE:#x}"
        never = line.startswith("@!PT")
        code.append(sass.Instruction(i * sass.SIZE, text, guarded=line.startswith("@"), never=never, stall=2))
    return code


HMMA = ["HMMA.16816.F32.BF16 R4, R8, R12, RZ"] * 12  # the products of a step of a GRU with 4 k-tiles
WORDS = ["LDG.E.64.STRONG.GPU R4, [R2]", "STG.E.64.STRONG.GPU [R2], R4"]
BARRIER, NAMED = "BAR.SYNC.DEFER_BLOCKING 0x0", "BAR.SYNC.DEFER_BLOCKING R5, 0x40"
TRY = "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R88"


def recurrent(*body: str) -> list[sass.Instruction]:
    """A kernel whose time loop is ``body``, with a barrier before the loop and one after it."""
    return code_of(BARRIER, "MEMBAR.ALL.GPU", *body, "@P0 BRA 2", BARRIER, "EXIT")


def problems_of(
    code: list[sass.Instruction],
    *,
    usage: cuda_check.Usage | None = None,
    threads: int | None = 256,
    arch: str = "sm_90a",
    regime: str = "Onchip",
    splits: int = 1,
) -> list[str]:
    usage = usage or cuda_check.Usage(registers=200)
    return cuda_check.check_kernel(name_of(regime, splits), code, usage, threads, arch)[0]


def test_disassembly_is_read() -> None:
    kernels = sass.parse(DUMP)
    assert list(kernels) == ["_ZN2sf4cuda5thingEv", "other"]
    code = kernels["_ZN2sf4cuda5thingEv"]
    assert [i.opcode for i in code] == ["LDC", "SYNCS.ARRIVE.TRANS64", "ULEA", "ERRBAR"]
    assert [i.address for i in code] == [0, 16, 32, 48]
    assert [i.guarded for i in code] == [False, True, True, False]
    assert [i.stall for i in code] == [8, 1, 5, 1]  # 0 in the encoding means 1
    assert code[1].operands == "RZ, [R88+URZ], R89"


def test_half_an_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="second half"):
        sass.parse("\n".join(DUMP.splitlines()[:3]))


def test_ptxas_report_is_read() -> None:
    usages = cuda_check.parse_ptxas(LOG)
    assert usages["first"] == cuda_check.Usage(registers=243)
    # the stack and spills of a called function are added to the kernel's
    assert usages["second"] == cuda_check.Usage(registers=128, stack=64, spills=56, static_shared=640)


def test_launch_bounds_are_read() -> None:
    assert cuda_check.parse_launch_bounds(PTX) == {"first": 256, "flat": 64}


@pytest.mark.parametrize(
    ("warps", "cap"), [(1, 255), (8, 255), (9, 168), (12, 168), (13, 128), (16, 128), (17, 96), (20, 96), (24, 80)]
)
def test_register_cap(warps: int, cap: int) -> None:
    assert cuda_check.register_cap(warps) == cap


def test_names_are_understood() -> None:
    kernel = cuda_check.recurrent_kernel(name_of("Cluster", 2))
    assert kernel is not None
    assert kernel == step_model.Kernel("gru", 3, False, "Bf16", 2, 4, "Cluster")
    assert (kernel.hidden, kernel.step_hmma) == (128, 12)
    elman = name_of().replace("sf::Gru", "sf::Elman<sf::TanhActivation>").replace("Pass)0", "Pass)1")
    kernel = cuda_check.recurrent_kernel(elman.replace("Bf16", "Tf32x3"))
    assert kernel is not None
    assert kernel == step_model.Kernel("rnn_tanh", 1, True, "Tf32x3", 1, 4, "Onchip")
    assert (kernel.hidden, kernel.step_hmma) == (32, 12)
    for tool in ("true", "(bool)1"):  # c++filt and cu++filt
        assert cuda_check.recurrent_kernel(name_of().replace("false", tool)) == step_model.Kernel(
            "gru", 3, False, "Bf16", 1, 4, "Onchip", options=True
        )
    assert cuda_check.recurrent_kernel(name_of().replace("false", "(bool)0")) == cuda_check.recurrent_kernel(name_of())
    assert cuda_check.recurrent_kernel("void sf::cuda::pack_weights<sf::cuda::Bf16>(sf::cuda::Pack)") is None
    with pytest.raises(ValueError, match="template arguments"):
        cuda_check.recurrent_kernel("void sf::cuda::recur<int>(sf::cuda::LaunchArgs)")


def test_time_loop_is_the_innermost_with_most_products() -> None:
    lines = ["MOV", "NOP", "HMMA", "@P0 BRA 2", "HMMA", "HMMA", "@P0 BRA 4", "@P0 BRA 1", "EXIT"]
    found = sass.loops(code_of(*lines))
    assert sorted(len(loop.code) for loop in found) == [2, 3, 7]
    outer = sass.time_loop(found)  # products of inner loops count for the outer loop
    assert outer is not None
    assert [i.address // sass.SIZE for i in outer.code] == list(range(1, 8))
    assert sum(outer.contains(loop) for loop in found) == 2
    around = sass.time_loop(sass.loops(code_of("MOV", "NOP", "HMMA", "@P0 BRA 2", "@P0 BRA 1", "EXIT")))
    assert around is not None
    assert len(around.code) == 2
    assert sass.time_loop(sass.loops(code_of("MOV", "@P0 BRA 0", "HMMA", "EXIT"))) is None


def test_code_behind_the_end_belongs_to_its_loop() -> None:
    """The loop jumps to line 6 and from there back into its middle: line 6 is part of this loop and starts no other."""
    lines = ["MOV", "HMMA", "@P0 BRA 6", "NOP", "@P0 BRA 1", "EXIT", "BAR.SYNC 0x0", "BRA 3"]
    (loop,) = sass.loops(code_of(*lines))
    assert [i.address // sass.SIZE for i in loop.code] == [1, 2, 3, 4, 6, 7]


def test_unreachable_code_is_no_loop() -> None:
    assert sass.loops(code_of("EXIT", "HMMA", "BRA 1")) == []
    assert sass.loops(code_of("HMMA", "EXIT", "BRA 0")) == []
    assert sass.loops([]) == []


def test_other_ways_to_branch() -> None:
    """Before sm_90 a loop may end with a CALL over the branch back. The mask of a WARPSYNC is not an address."""
    (loop,) = sass.loops(code_of("WARPSYNC 0xffffffff", "HMMA", "@P0 CALL.REL.NOINC 4", "BRA 0", "EXIT"))
    assert len(loop.code) == 4
    assert not any(i.calls for i in loop.code)
    with pytest.raises(ValueError, match="indirect"):
        sass.loops(code_of("BRX R4", "EXIT"))
    with pytest.raises(ValueError, match="address"):
        sass.loops([sass.Instruction(0, "BRA `(.L_x_1)")])
    uniform = [*code_of("HMMA"), sass.Instruction(16, "BRA.U UP0, 0x0"), sass.Instruction(32, "EXIT")]
    assert len(sass.loops(uniform)) == 1
    both = [*code_of("HMMA"), sass.Instruction(16, "BRA P0, 0x30"), *code_of("NOP", "NOP", "BRA 0", "EXIT")[2:]]
    assert len(sass.loops(both)) == 1
    (loop,) = sass.loops(code_of("HMMA", "CALL.ABS.NOINC `(slow_path)`", "@P0 BRA 0", "EXIT"))
    assert sum(i.calls for i in loop.code) == 1


def test_a_branch_that_is_never_taken() -> None:
    """To calls for a warp whose lanes came apart, of which ptxas found in the end that it cannot be."""
    line = "        /*0000*/              @!PT BRA 0x20 ;    /* 0x0000000000007947 */\n    /* 0x000fe20003800000 */\n"
    assert [one.never for one in sass.parse(f"Function : one\n{line}")["one"]] == [True]
    slow = ("CALL.REL.NOINC 22", "BRA 16", "NOP", "RET.REL.NODEC R2 0x0")
    body = (BARRIER, "{} BRA 19", "SHFL.BFLY R4, R4, 0x1, 0x1f", "@P0 BRA 2", "EXIT", *slow)
    for guard, calls in (("@!PT", 0), ("@P0", 1)):
        (loop,) = sass.loops(code_of("NOP", "NOP", *HMMA, *(one.format(guard) for one in body)))
        assert sum(one.calls for one in loop.code) == calls
    assert problems_of(recurrent("@!PT BRA 15", *HMMA, BARRIER)) == []


def test_a_right_kernel_passes() -> None:
    assert problems_of(recurrent(*HMMA, BARRIER)) == []
    assert problems_of(recurrent(*HMMA, *HMMA, BARRIER, BARRIER)) == []  # two steps in one turn
    assert problems_of(recurrent(*HMMA, NAMED, BARRIER), splits=2) == []
    assert problems_of(recurrent(*HMMA, BARRIER, *WORDS), regime="Grid") == []


def test_words_between_blocks_are_strong() -> None:
    weak = [word.replace(".STRONG.GPU", "") for word in WORDS]
    assert problems_of(recurrent(*HMMA, BARRIER, *weak), regime="Grid") == [
        f"expected {what} of 64 bits with .STRONG.GPU but the time loop has none" for what in ("reads", "writes")
    ]


def test_products_behind_a_branch_are_found() -> None:
    skipping = recurrent("@P0 BRA 15", *HMMA, BARRIER)
    assert problems_of(skipping) == ["expected no branch over HMMA or LDSM but one at 0x20 skips 12 of them"]
    assert problems_of(recurrent(*HMMA, "@P0 BRA 16", "FADD R1, R1, R1", BARRIER)) == []


def test_a_wait_is_followed_by_a_warp_barrier() -> None:
    entry = ".entry one()\n{{ mbarrier.try_wait.parity p, [a], b; {} ldmatrix.sync r, [a]; }}\n"
    assert cuda_check.warp_barrier_problems(entry.format("bar.warp.sync -1;")) == {}
    (problem,) = cuda_check.warp_barrier_problems(entry.format("")).pop("one")
    assert problem == "expected a bar.warp.sync between a wait for an mbarrier and ldmatrix but 1 waits have none"


def test_a_wait_and_its_retries_are_one() -> None:
    peeled = code_of(TRY, "@P0 BRA 16", *HMMA, "@P0 BRA 0", "EXIT", TRY, "@P0 BRA 16", "BRA 2")
    assert problems_of(peeled, regime="Cluster") == []
    plain = code_of(TRY, "@P0 BRA 0", *HMMA, "@P0 BRA 0", "EXIT")
    assert problems_of([sass.Instruction(0, "NOP"), *shifted(plain)], regime="Cluster") == []
    twice = recurrent(TRY, *HMMA, TRY)
    assert problems_of(twice, regime="Cluster") == ["expected 1 mbarrier waits a step but the time loop has 2"]


def shifted(code: list[sass.Instruction]) -> list[sass.Instruction]:
    """The code one instruction later. The retry branches to line 1, and the outer loop to line 0."""
    moved = []
    for i, one in enumerate(code):
        text = one.text
        if text.startswith("BRA"):
            text = "BRA 0x10" if i == 1 else "BRA 0x0"
        moved.append(sass.Instruction(one.address + sass.SIZE, text, one.guarded))
    return moved


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([*HMMA], "expected 1 block barriers a step but the time loop has 0"),
        ([*HMMA, BARRIER, BARRIER], "expected 1 block barriers a step but the time loop has 2"),
        ([*HMMA, BARRIER, NAMED], "expected 0 named barriers a step but the time loop has 1"),
        ([*HMMA, BARRIER, TRY], "expected 0 mbarrier waits a step but the time loop has 1"),
        ([*HMMA[1:], BARRIER], "expected 12 HMMA a step but the time loop has 11"),
        ([*HMMA, HMMA[0], BARRIER], "expected 12 HMMA a step but the time loop has 13"),
        ([*HMMA, BARRIER, "MEMBAR.ALL.GPU"], "expected no MEMBAR, which waits for all earlier stores"),
        ([*HMMA, BARRIER, "CGAERRBAR"], "expected no ERRBAR, which waits for all earlier stores"),
        ([*HMMA, BARRIER, "CCTL.IVALL"], "expected no CCTL, which drops the L1 cache"),
        ([*HMMA, BARRIER, "UCGABAR_WAIT"], "expected no UCGABAR, which is a barrier of the whole cluster"),
        ([*HMMA, BARRIER, "CALL.REL.NOINC 18"], "expected no function called"),
        ([*HMMA, BARRIER, "LDL R4, [R1]"], "expected no local memory but 1 instructions use it, the first LDL R4"),
        ([*HMMA, BARRIER, "STL [R1], R4"], "expected no local memory but 1 instructions use it, the first STL [R1]"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_each_fault_is_named(body: list[str], message: str) -> None:
    problems = problems_of(recurrent(*body))
    assert [message in problem for problem in problems] == [True], problems


def test_local_memory_outside_the_loop_counts() -> None:
    assert "local memory" in problems_of([*recurrent(*HMMA, BARRIER), *code_of("STL [R1], R4")])[0]


def test_no_products_at_all() -> None:
    assert problems_of(code_of("FFMA", BARRIER, "@P0 BRA 0", "EXIT")) == ["expected HMMA in a loop but found none"]


def test_splits_need_their_barrier() -> None:
    assert problems_of(recurrent(*HMMA, BARRIER), splits=2) == [
        "expected 1 named barriers a step but the time loop has 0"
    ]


def test_clusters_are_judged_where_they_exist() -> None:
    code = recurrent(*HMMA)
    assert problems_of(code, regime="Cluster", arch="sm_80") == []
    assert len(problems_of(code, regime="Cluster", arch="sm_90a")) == 1
    assert len(problems_of(code, regime="Cluster", arch="sm_100a")) == 1


@pytest.mark.parametrize(
    ("usage", "threads", "message"),
    [
        (cuda_check.Usage(registers=255, spills=4), 256, "expected no spills and no stack but got 4 and 0 bytes"),
        (cuda_check.Usage(registers=255, stack=8), 256, "expected no spills and no stack but got 0 and 8 bytes"),
        (cuda_check.Usage(registers=64, static_shared=16), 256, "but 16 bytes are static"),
        (cuda_check.Usage(registers=64), None, "expected a launch bound"),
        (cuda_check.Usage(registers=129), 512, "expected at most 128 registers with 512 threads but got 129"),
    ],
)
def test_usage_is_held_to_the_plan(usage: cuda_check.Usage, threads: int | None, message: str) -> None:
    (problem,) = cuda_check.usage_problems(usage, threads)
    assert message in problem
    assert cuda_check.usage_problems(cuda_check.Usage(registers=128), 512) == []


def test_disassembler_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUOBJDUMP", "/bin/sh")
    assert cuda_check.find_cuobjdump(None) == "/bin/sh"
    with pytest.raises(SystemExit, match="there/is/none cannot be run"):
        cuda_check.find_cuobjdump("there/is/none")
    monkeypatch.delenv("CUOBJDUMP")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SystemExit, match="expected cuobjdump"):
        cuda_check.find_cuobjdump(None)


def row_of(
    splits: int = 1,
    regime: str = "Onchip",
    body: tuple[str, ...] = (),
    precision: str = "Bf16",
    options: bool = False,
) -> step_model.Row:
    kernel = step_model.Kernel("gru", 3, False, precision, splits, 4, regime, options)
    loop = sass.Loop(tuple(code_of(*HMMA, *body)))
    return step_model.estimate(kernel, loop, warps=8, registers=200, cap=255, spills=0)


def test_estimate() -> None:
    body = ("MUFU.EX2 R4, R5", "LDSM.16.M88.4 R4, [R5]", "LDS.128 R4, [R5]", "STS [R5], R4", "STAS.128 [R4.64], R8")
    row = row_of(body=body)
    assert row.instructions == 17
    types = dict(zip(step_model.TYPES, row.types, strict=True))
    assert {name: n for name, n in types.items() if n} == {
        "HMMA": 12, "MUFU": 1, "LDSM": 1, "LDS": 1, "STS": 1, "STG": 1,
    }  # fmt: skip
    assert row.hmma == pytest.approx(2 * 12 * 6.4)  # 8 warps on 4 schedulers
    assert row.mufu == 2 * 8
    assert row.issue == 2 * 17
    assert row.smem == 8 * (4 + 4 + 1)
    assert row.warp == 17 * 2 + 33 + 4 * 20 + 20 + 30
    assert row.low == row.warp
    assert row.high == pytest.approx(2 * 12 * 6.4 + 16 + row.warp - 12 * 6 - 8)


def test_the_exchange_of_a_step() -> None:
    """LSTM of 1024 units in bf16 by 64 blocks of 8 warps: each has 16 units, and all 8 rows of 1024 x 4 gradients."""
    grid = step_model.Kernel("lstm", 4, True, "Bf16", 8, 8, "Grid")
    assert grid.team(8) == step_model.Team(blocks=64, groups=64, warps=8)
    moved = step_model.traffic(grid, 8)
    assert moved.received == 2 * 8 * 1024 * 4 * 2
    assert (moved.rounds, moved.loads, moved.rows) == (16, 64, 1)  # 2048 words a row, 128 in a round
    assert step_model.exchange_cycles(grid, moved) == 700 + 15 * 270
    forward = step_model.traffic(step_model.Kernel("lstm", 4, False, "Bf16", 8, 8, "Grid"), 8)
    assert (forward.received, forward.rounds) == (2 * 8 * 1024 * 2, 4)
    cluster = step_model.Kernel("lstm", 4, True, "Bf16", 4, 8, "Cluster")  # 512 units, 16 blocks of 2 groups
    moved = step_model.traffic(cluster, 8)
    assert moved.received == 8 * 512 * 4 * 2
    assert moved.sends == 16 * 16 // 32  # a warp has 4 rows of 8 units with 4 values of 2 bytes: 16 packets
    assert step_model.exchange_cycles(cluster, moved) == 250 + 32768 / 14


def test_loops_of_the_exchange_count_as_often_as_they_run() -> None:
    load, store = WORDS
    body = (
        "IADD R1, R1, R1",  # 12: once for each row of the operand
        load, load,  # 13: two loads a turn
        load, "@P0 BRA 15",  # 15: the retry
        "@P0 BRA 13",
        "@P0 BRA 12",
        store, store, "@P0 BRA 19",
        "FADD R1, R1, R1", "@P0 BRA 22",  # 22: a loop that moves nothing
        "@P0 BRA 0",
    )  # fmt: skip
    found = sass.loops(code_of(*HMMA, *body, "EXIT"))
    inner = [one for one in found if len(one.code) < 20]
    moved = step_model.Traffic(received=0, sends=6, loads=8, rounds=4, rows=3)
    times = {address // sass.SIZE: n for address, n in step_model.trips(inner, moved).items()}
    assert times == {12: 3, 18: 3, 13: 4, 14: 4, 15: 0, 16: 0, 17: 4, 19: 3, 20: 3, 21: 3, 22: 0, 23: 0}


def test_meetings_count_as_often_as_they_run() -> None:
    """Layer normalisation of an LSTM of 192 units, by 3 blocks of 4 groups of 2 warps: slices of 8 units."""
    kernel = step_model.Kernel("lstm_layer_norm", 4, False, "Bf16", 2, 6, "Grid", True)
    moved = step_model.traffic(kernel, 8)
    assert moved.received == 2 * 8 * 192 * 2 + 2 * 8 * (2 * 8 * 24)
    assert (moved.part_loads, moved.total_rows) == (4, 1)  # 384 words of a meeting, for 256 threads
    load, _ = WORDS
    operand = (load, load, load, "@P0 BRA 14", "@P0 BRA 12", "@P0 BRA 12")
    parts = (load, load, load, "@P0 BRA 20", "@P0 BRA 18")
    sums = ("SHFL.BFLY R4, R4, 0x1, 0x1f", "@P0 BRA 23")
    found = sass.loops(code_of(*HMMA, *operand, *parts, *sums, "@P0 BRA 0", "EXIT"))
    inner = [one for one in found if len(one.code) < 20]
    times = step_model.trips(inner, replace(moved, total_rows=3))
    assert [times[n * sass.SIZE] for n in (18, 19, 20, 21, 22, 23, 24)] == [2, 2, 0, 0, 2, 3, 3]
    assert step_model.traffic(replace(kernel, regime="Onchip", splits=1, k_tiles=2), 2).total_rows == 4


def test_estimate_of_two_steps_is_half() -> None:
    once, twice = row_of(body=(BARRIER,)), row_of(body=(BARRIER, *HMMA, BARRIER))
    assert (twice.instructions, twice.hmma, twice.issue) == (once.instructions, once.hmma, once.issue)


def test_warps_without_cells_use_no_special_functions() -> None:
    body = ("MUFU.EX2 R4, R5",)
    assert row_of(splits=4, body=body).mufu == row_of(splits=1, body=body).mufu == 16
    assert row_of(splits=8, body=body).mufu == 8


def test_report() -> None:
    rows = [row_of(), row_of(precision="Fp16"), row_of(2, "Cluster", (NAMED,)), row_of(2, "Grid", ("MOV",) * 200)]
    text = step_report.report(rows, arch="sm_90a", nvcc="nvcc 13.0")
    lines = text.splitlines()
    tables = [line for line in lines if line.startswith("| gru ")]
    assert len(tables) == 4
    assert tables[0].startswith("| gru | forward | bf16 | 64 | 1 x 4 | 8 | 200 (255) | 0 | 12 | 12 | 0 |")
    assert {line.count("|") for line in tables} == {len(step_report.COLUMNS) + 1}
    assert "## onchip: 2 kernels" in text
    assert "1 of 4 kernels issue for longer than their floor" in text
    assert "nvcc 13.0" in text
    assert "sm_90a" in text


def test_report_of_options_beside_the_plain_kernel() -> None:
    plain, other = row_of(), row_of(precision="Fp16")
    rows = [row_of(body=("MOV",) * 12, options=True), row_of(body=("MOV",) * 24, options=True, precision="Fp16")]
    lines = step_report.report([*rows, plain, other], arch="sm_90a", nvcc="nvcc 13.0").splitlines()
    assert next(line for line in lines if line.startswith("| gru | forward | 2")) == (
        f"| gru | forward | 2 | 12 | 30 | {(rows[0].low + rows[1].low) / 2 / plain.low:.2f} | "
        f"{(rows[0].high + rows[1].high) / 2 / plain.high:.2f} |"
    )
    assert [line[: line.index(" | forward")] for line in lines if "| bf16 |" in line] == ["| gru", "| gru with options"]
