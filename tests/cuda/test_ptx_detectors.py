"""The PTX interpreter's instructions against numbers worked out here, and each of its detectors with a kernel that has
the fault, beside the same kernel without it. The kernels are written by hand, and are run without the host code.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import pytest
import torch

from ptx.build import load_interpreter, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

HEADER = """k(
  .param .align 8 .b8 k_param_0[16]
)
.maxntid 1024, 1, 1
{
  .reg .pred %p<9>;
  .reg .b16 %rs<9>;
  .reg .f32 %f<9>;
  .reg .b32 %r<19>;
  .reg .b64 %rd<9>;
  .reg .f64 %fd<9>;
  ld.param.u64 %rd1, [k_param_0];
  ld.param.u64 %rd2, [k_param_0+8];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %ctaid.x;
  shl.b32 %r3, %r1, 2;
  cvt.u64.u32 %rd3, %r3;
  add.s64 %rd4, %rd1, %rd3;
  add.s64 %rd5, %rd2, %rd3;
"""


class Launch(NamedTuple):
    blocks: int = 1
    threads: int = 32
    shared: int = 1024
    cluster: int = 1
    together: bool = False


ONE_WARP = Launch()


def run(body: str, launch: Launch = ONE_WARP, words: int = 256) -> torch.Tensor:
    """Run a kernel on an input of words 0, 1, 2, ..., of which %rd5 is this thread's, and return the output, which %rd4
    points into."""
    module = load_interpreter()
    module.set_kernel("k", f"{HEADER}{body}\n  ret;\n}}\n")
    out, given = torch.full((words,), -1, dtype=torch.int32), torch.arange(words, dtype=torch.int32)
    buffers = [(out.data_ptr(), 4 * words, True), (given.data_ptr(), 4 * words, False)]
    module.run("k", *launch, struct.pack("<QQ", out.data_ptr(), given.data_ptr()), buffers)
    return out


def bits(value: float) -> int:
    return struct.unpack("<i", struct.pack("<f", value))[0]


def hexadecimal(value: float) -> str:
    return f"0f{struct.unpack('<I', struct.pack('<f', value))[0]:08X}"


def hexadecimal64(value: float) -> str:
    return f"0d{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


NAN, HALF, THIRD = hexadecimal(math.nan), hexadecimal(0.5), hexadecimal(1 / 3)
INTEGERS = [
    ("add.s32 %r9, 7, -9;", -2),
    ("add.s32 %r9, 2147483647, 1;", -(2**31)),
    ("sub.s32 %r9, 7, -9;", 16),
    ("mul.lo.s32 %r9, 65537, 65537;", 131073),
    ("mad.lo.s32 %r9, 5, 6, 7;", 37),
    ("mul.wide.s32 %rd8, -3, 1073741824; shr.s64 %rd8, %rd8, 30; cvt.u32.u64 %r9, %rd8;", -3),
    ("mul.wide.u32 %rd8, -3, 4; shr.u64 %rd8, %rd8, 32; cvt.u32.u64 %r9, %rd8;", 3),
    ("mov.u16 %rs1, 300; mov.u16 %rs2, 300; mul.wide.u16 %r9, %rs1, %rs2;", 90000),
    ("mul.hi.s32 %r9, -1000000000, 7;", -2),
    ("mul.lo.s64 %rd8, -5, 6; cvt.u32.u64 %r9, %rd8;", -30),
    ("div.s32 %r9, -7, 2;", -3),
    ("div.u32 %r9, -7, 2;", 2**31 - 4),
    ("rem.s32 %r9, -7, 2;", -1),
    ("rem.u32 %r9, 7, 4;", 3),
    ("div.s64 %rd8, -7000000000, 1000000000; cvt.u32.u64 %r9, %rd8;", -7),
    ("max.s32 %r9, -7, 2;", 2),
    ("min.s64 %rd8, -7, 2; cvt.u32.u64 %r9, %rd8;", -7),
    ("and.b32 %r9, 12, 10;", 8),
    ("or.b32 %r9, 12, 10;", 14),
    ("xor.b32 %r9, 12, 10;", 6),
    ("not.b32 %r9, 12;", -13),
    ("shl.b32 %r9, 3, 4;", 48),
    ("shl.b32 %r9, 3, 32;", 0),
    ("shl.b64 %rd8, 3, 33; shr.u64 %rd8, %rd8, 32; cvt.u32.u64 %r9, %rd8;", 6),
    ("shr.s32 %r9, -8, 1;", -4),
    ("shr.s32 %r9, -8, 40;", -1),
    ("shr.u32 %r9, -8, 28;", 15),
    ("bfi.b32 %r9, 5, 4095, 4, 4;", 0xF5F),
    ("bfi.b64 %rd8, 1, 0, 4, 8; cvt.u32.u64 %r9, %rd8;", 16),
    ("prmt.b32 %r9, 0x33221100, 0x77665544, 0x5140;", 0x55114400),
    ("prmt.b32 %r9, 128, 0, 0x4448;", 0xFF),  # copies of the sign of byte 0, and zeros
    ("cvt.s64.s32 %rd8, -5; shr.s64 %rd8, %rd8, 40; cvt.u32.u64 %r9, %rd8;", -1),
    ("cvt.u64.u32 %rd8, -5; shr.s64 %rd8, %rd8, 40; cvt.u32.u64 %r9, %rd8;", 0),
    ("mov.u32 %r8, 70000; cvt.u16.u32 %rs1, %r8; cvt.u32.u16 %r9, %rs1;", 70000 - 65536),
    ("mov.u16 %rs1, 1; mov.u16 %rs2, 2; mov.b32 %r9, {%rs1, %rs2};", 0x20001),
    ("mov.b64 %rd8, {%r1, 9}; mov.b64 {_, %r9}, %rd8;", 9),
    ("setp.lt.s32 %p1, -1, 1; selp.b32 %r9, 5, 6, %p1;", 5),
    ("setp.lt.u32 %p1, -1, 1; selp.b32 %r9, 5, 6, %p1;", 6),
    ("setp.eq.s16 %p1, 3, 3; not.pred %p2, %p1; selp.u32 %r9, 5, 6, %p2;", 6),
    ("mov.pred %p1, -1; mov.pred %p2, 0; xor.pred %p3, %p1, %p2; selp.u32 %r9, 5, 6, %p3;", 5),
    ("mov.u32 %r9, 4; mov.pred %p1, 0; @%p1 mov.u32 %r9, 8; @!%p1 add.s32 %r9, %r9, 1;", 5),
    ("mov.u32 %r9, 4; { .reg .b32 %r9; mov.u32 %r9, 8; }", 4),
    (f"setp.gtu.f32 %p1, {NAN}, {NAN}; selp.u32 %r9, 5, 6, %p1;", 5),
    (f"setp.gt.f32 %p1, {NAN}, {NAN}; selp.u32 %r9, 5, 6, %p1;", 6),
    (f"setp.ne.f32 %p1, {NAN}, {NAN}; selp.u32 %r9, 5, 6, %p1;", 6),
    (f"cvt.rn.bf16.f32 %rs1, {hexadecimal(1.00390625)}; cvt.u32.u16 %r9, %rs1;", 0x3F80),  # a tie, to even
    (f"cvt.rn.f16.f32 %rs1, {hexadecimal(1.5)}; cvt.u32.u16 %r9, %rs1;", 0x3E00),
    (f"cvt.rn.bf16x2.f32 %r9, {hexadecimal(1)}, {hexadecimal(2)};", 0x3F804000),  # the first operand is the high half
    (f"cvt.rn.f16x2.f32 %r9, {hexadecimal(1)}, {hexadecimal(2)};", 0x3C004000),
    ("cvt.rna.tf32.f32 %r9, 0f3F801000;", 0x3F802000),  # a tie, away from zero
    ("mov.u16 %rs1, 0x3E00; cvt.f32.f16 %r9, %rs1;", bits(1.5)),
]
FLOATS = [
    (f"add.f32 %f9, {HALF}, {THIRD};", 0.5 + 1 / 3),
    (f"sub.f32 %f9, {HALF}, {THIRD};", 0.5 - 1 / 3),
    (f"mul.f32 %f9, {HALF}, {THIRD};", 0.5 / 3),
    (f"neg.f32 %f9, {HALF};", -0.5),
    (f"abs.f32 %f9, {hexadecimal(-0.5)};", 0.5),
    (f"fma.rn.f32 %f9, {HALF}, {THIRD}, {HALF};", 0.5 / 3 + 0.5),
    (f"rcp.approx.ftz.f32 %f9, {THIRD};", 3.0),
    (f"ex2.approx.ftz.f32 %f9, {HALF};", math.sqrt(2)),
    (f"cvt.rni.f32.f32 %f9, {hexadecimal(2.5)};", 2.0),
    (f"rcp.rn.f64 %fd8, {hexadecimal64(8)}; cvt.rn.f32.f64 %f9, %fd8;", 0.125),
    (f"copysign.f64 %fd8, {hexadecimal64(-8)}, {hexadecimal64(3)}; cvt.rn.f32.f64 %f9, %fd8;", -3.0),
    (f"cvt.f64.f32 %fd8, {HALF}; mul.f64 %fd8, %fd8, %fd8; cvt.rn.f32.f64 %f9, %fd8;", 0.25),
    (f"rcp.approx.ftz.f64 %fd8, {hexadecimal64(4)}; cvt.rn.f32.f64 %f9, %fd8;", 0.25),
]


@pytest.mark.parametrize(("body", "wanted"), INTEGERS)
def test_integers(body: str, wanted: int) -> None:
    assert run(f"{body} st.global.u32 [%rd4], %r9;")[:32].tolist() == [wanted] * 32


@pytest.mark.parametrize(("body", "wanted"), FLOATS)
def test_floats(body: str, wanted: float) -> None:
    body = body.replace("%f9", "%f8")
    found = run(f"{body} st.global.f32 [%rd4], %f8;")[:32].view(torch.float32)
    torch.testing.assert_close(found, torch.full((32,), wanted))


MASKED = (
    "setp.lt.u32 %p1, %r1, 7; @%p1 bra $L1; st.global.u32 [%rd4], 5; bra.uni $L2; $L1: st.global.u32 [%rd4], 6; $L2:"
)
LOOP = "mov.u32 %r9, 0; $L1: add.s32 %r9, %r9, 1; setp.le.u32 %p1, %r9, %r1; @%p1 bra $L1; st.global.u32 [%rd4], %r9;"


def test_lanes_part_and_meet() -> None:
    together = "mov.u32 %r8, 0; bar.warp.sync -1;"
    assert run(MASKED + together)[:32].tolist() == [6] * 7 + [5] * 25
    assert run(LOOP + together)[:32].tolist() == list(range(1, 33))


TRADE = "st.shared.u32 [%r3], %r1; {} xor.b32 %r4, %r3, {}; ld.shared.u32 %r9, [%r4]; st.global.u32 [%rd4], %r9;"
TWO_WARPS, PAIR = Launch(threads=64), Launch(blocks=2, cluster=2)
MATRICES = """
  shl.b32 %r4, %r1, 4; st.shared.u32 [%r4], %r1; st.shared.u32 [%r4+4], %r1; st.shared.u32 [%r4+8], %r1;
  st.shared.u32 [%r4+12], %r1; bar.warp.sync -1;
  {} ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r4{}]; st.global.u32 [%rd4], %r6;"""
PRODUCT = """mov.f32 %f1, 0f00000000; mov.u32 %r4, 0x3F800000; setp.lt.u32 %p1, %r1, 31;
  {} mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
  {{%f1, %f2, %f3, %f4}}, {{%r4, %r4, %r4, %r4}}, {{%r4, %r4}}, {{%f1, %f1, %f1, %f1}};
  st.global.f32 [%rd4], %f1;"""

# An exchange between two blocks of a cluster: each sends 16 bytes to the other, and waits for those of the other.
EXCHANGE = {
    "init": "@%p1 mbarrier.init.shared::cta.b64 [512], 1;",
    "expect": "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [512], 16;",
    "meet": "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
    "to": "xor.b32 %r4, %r2, 1; mov.u32 %r5, 0; mapa.shared::cluster.u32 %r6, %r5, %r4;",
    "barrier": "mov.u32 %r5, 512; mapa.shared::cluster.u32 %r7, %r5, %r4;",
    "send": "@%p1 st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r6], {%r2, %r2, %r2, %r2}, [%r7];",
    "wait": "$L1: mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 %p2, [512], 0; @!%p2 bra $L1;",
    "fence": "fence.acquire.sync_restrict::shared::cluster.cluster;",
    "read": "ld.shared.u32 %r9, [0]; st.global.u32 [%rd6], %r9;",
    "end": "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
}


def exchange(**other: str) -> str:
    start = "setp.eq.u32 %p1, %r1, 0; mul.wide.u32 %rd6, %r2, 128; add.s64 %rd6, %rd6, %rd4;"
    return " ".join([start, *(EXCHANGE | other).values()])


# Block 1 waits for a word of block 0.
WORDS = """setp.eq.u32 %p1, %r2, 0; add.s64 %rd6, %rd1, 512; setp.ne.u32 %p2, %r1, 0; @%p2 bra $L2; @!%p1 bra $L1;
  st.{} [%rd6], 9; bra.uni $L2; $L1: ld.{} %r9, [%rd6]; setp.ne.u32 %p3, %r9, 9; @%p3 bra $L1; $L2:"""
TOGETHER = Launch(blocks=2, together=True)

CLEAN = {
    "trade_in_block": (TRADE.format("bar.sync 0;", 128), TWO_WARPS),
    "trade_in_warp": (TRADE.format("bar.warp.sync -1;", 4), Launch()),
    "trade_by_group": (TRADE.format("bar.sync 3, 64;", 128), TWO_WARPS),
    "matrices": (MATRICES.format("", ""), Launch()),
    "product": (PRODUCT.format(""), Launch()),
    "exchange": (exchange(), PAIR),
    "words": (WORDS.format("relaxed.gpu.global.u32", "relaxed.gpu.global.u32"), TOGETHER),
}

FAULTY = {
    "no_block_barrier": (TRADE.format("", 128), TWO_WARPS, "race: |poison: "),
    "warp_barrier_for_a_block": (TRADE.format("bar.warp.sync -1;", 128), TWO_WARPS, "race: |poison: "),
    "no_warp_barrier": (TRADE.format("", 4), Launch(), "race: read after a write"),
    "one_word_from_many": ("st.shared.u32 [0], %r1;", Launch(), "race: write after a write"),
    "unwritten": ("ld.shared.u32 %r9, [%r3];", Launch(), "poison: byte 0"),
    "shared_beyond": ("st.shared.u32 [%r3+1000], %r9;", Launch(), "bounds: 4 bytes at byte 1024 of shared"),
    "shared_misaligned": ("st.shared.u32 [%r3+2], %r9;", Launch(), "alignment: 4 bytes at byte 2 of shared"),
    "shared_vector_misaligned": ("st.shared.v2.u32 [4], {%r9, %r9};", Launch(), "alignment: 8 bytes at byte 4"),
    "global_beyond": ("st.global.u32 [%rd4+1000], %r9;", Launch(), r"bounds: a store of 4 bytes at byte 1024 of a buf"),
    "global_before": ("ld.global.u32 %r9, [%rd2+-4];", Launch(), r"bounds: a load of 4 bytes"),
    "global_misaligned": ("ld.global.u32 %r9, [%rd4+1];", Launch(), r"alignment: a load of 4 bytes"),
    "global_read_only": ("st.global.u32 [%rd5], %r9;", Launch(), "which is an input"),
    "param_beyond": ("ld.param.u64 %rd8, [k_param_0+16];", Launch(), "bounds: byte 16 of the parameter"),
    "blocks_share_a_word": ("st.global.u32 [%rd4], %r9;", Launch(blocks=2), "race: a store .* block [01] touches"),
    "barrier_half_met": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra $L1; bar.sync 0; $L1:",
        TWO_WARPS,
        "stuck: .*1 warps wait",
    ),
    "barrier_of_some_lanes": ("setp.lt.u32 %p1, %r1, 31; @%p1 bar.sync 0;", Launch(), "divergence: only some lanes"),
    "barrier_of_two_sizes": (
        "and.b32 %r4, %r1, 32; add.s32 %r4, %r4, 32; bar.sync 3, %r4;",
        Launch(threads=96),
        "warps come to it as|stuck",
    ),
    "barrier_differs": ("bar.sync %r1, 32;", Launch(), "divergence: its operand differs"),
    "barrier_16": ("bar.sync 16, 32;", Launch(), "barrier: 16 of 32 threads"),
    "warp_barrier_of_some": ("setp.lt.u32 %p1, %r1, 31; @%p1 bar.warp.sync -1;", Launch(), "divergence: only some"),
    "product_of_some_lanes": (PRODUCT.format("@%p1"), Launch(), "divergence: only some lanes"),
    "matrices_of_some_lanes": (
        MATRICES.format("setp.lt.u32 %p1, %r1, 31; @%p1 ", ""),
        Launch(),
        "divergence: only some lanes",
    ),
    "matrices_misaligned": (MATRICES.format("", "+8"), Launch(), "alignment: 16 bytes at byte 8"),
    "endless_loop": ("$L1: add.s32 %r9, %r9, 1; bra.uni $L1;", Launch(), "stuck: nothing can go on"),
    "unknown_instruction": ("lg2.approx.f32 %f1, %f2;", Launch(), "has no lg2.approx.f32"),
    "local_memory": ("ld.local.u32 %r9, [%r3];", Launch(), "has no ld.local.u32"),
    "words_never_posted": (
        WORDS.format("relaxed.gpu.global.u32", "relaxed.gpu.global.u32").replace("], 9", "], 8"),
        TOGETHER,
        "stuck: .*1 warps wait at ld.relaxed",
    ),
    "words_apart": (WORDS.format("relaxed.gpu.global.u32", "relaxed.gpu.global.u32"), Launch(blocks=2), "stuck"),
    "weak_post": (WORDS.format("global.u32", "relaxed.gpu.global.u32"), TOGETHER, "race: a (load|store)"),
    "weak_poll": (WORDS.format("relaxed.gpu.global.u32", "global.u32"), TOGETHER, "race: a (load|store)"),
    "post_to_the_block": (WORDS.format("relaxed.cta.global.u32", "relaxed.gpu.global.u32"), TOGETHER, "race: a "),
    "poll_in_the_cluster": (WORDS.format("relaxed.gpu.global.u32", "relaxed.cluster.global.u32"), TOGETHER, "race: a "),
    "exchange_without_init": (exchange(init=""), PAIR, "poison: byte 512"),
    "exchange_of_unordered_init": (exchange(meet=""), PAIR, "race: |poison: |never initialised"),
    "exchange_of_relaxed_meeting": (
        exchange(meet="barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;"),
        PAIR,
        "race: read after a write of byte 512",
    ),
    "exchange_without_wait": (exchange(wait=""), PAIR, "race: |poison: "),
    "exchange_without_fence": (exchange(fence=""), PAIR, "race: read after a write of byte 0"),
    "exchange_fenced_in_block": (
        exchange(fence="fence.acquire.sync_restrict::shared::cluster.cta;"),
        PAIR,
        "race: read after a write of byte 0",
    ),
    "exchange_of_wrong_parity": (exchange(wait=EXCHANGE["wait"].replace("], 0", "], 1")), PAIR, "race: |poison: "),
    "exchange_expecting_more": (exchange(expect=EXCHANGE["expect"].replace("16;", "32;")), PAIR, "stuck: .*try_wait"),
    "exchange_expecting_twice": (exchange(init=EXCHANGE["init"].replace("], 1", "], 2")), PAIR, "stuck: .*try_wait"),
    "exchange_armed_twice": (exchange(expect=2 * EXCHANGE["expect"]), PAIR, "mbarrier: more arrivals|stuck"),
    "exchange_left_at_once": (exchange(wait="", fence="", read="", end=""), PAIR, "block that has ended"),
    "exchange_with_oneself": (exchange(to=EXCHANGE["to"].replace("%r4;", "%r2;", 1)), PAIR, "in different blocks"),
    "exchange_out_of_cluster": (
        exchange(to="mov.u32 %r4, 2; mapa.shared::cluster.u32 %r6, 0, %r4;"),
        PAIR,
        "bounds: bl",
    ),
    "exchange_alone": (exchange(), Launch(), "cluster of one block|bounds: block 1"),
    "exchange_misaligned": (exchange(send=EXCHANGE["send"].replace("[%r6]", "[%r6+8]")), PAIR, "alignment: 16 bytes"),
    "cluster_half_met": ("setp.eq.u32 %p1, %r2, 0; @%p1 bra $L1; " + EXCHANGE["meet"] + " $L1:", PAIR, "stuck"),
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean(name: str) -> None:
    for _ in range(20):  # each run draws another order
        run(*CLEAN[name])


@pytest.mark.parametrize("name", FAULTY)
def test_faulty(name: str) -> None:
    body, launch, message = FAULTY[name]

    def many() -> None:
        for _ in range(20):
            run(body, launch)

    with pytest.raises(RuntimeError, match=message):
        many()


def test_what_moves_through_matrices_and_products() -> None:
    rows = run(*CLEAN["matrices"])[:32].tolist()
    assert rows == [8 + lane // 4 for lane in range(32)]
    assert run(*CLEAN["product"])[:32].view(torch.float32).tolist() == [8.0] * 32
    traded = run(*CLEAN["trade_in_block"])[:64].tolist()
    assert traded == [thread ^ 32 for thread in range(64)]
    swapped = run(*CLEAN["exchange"])
    assert (swapped[:32].tolist(), swapped[32:64].tolist()) == ([1] * 32, [0] * 32)


def test_launches_that_no_device_takes() -> None:
    with pytest.raises(RuntimeError, match="launch: 48 threads"):
        run("", Launch(threads=48))
    with pytest.raises(RuntimeError, match="launch: 3 blocks in clusters of 2"):
        run("", Launch(blocks=3, cluster=2))
