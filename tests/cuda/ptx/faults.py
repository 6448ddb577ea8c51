"""Faults that are planted in the PTX of a kernel, each of which the interpreter must notice: by a finding of its
detectors, or by results that differ from the float64 reference.

For each assembly string of csrc/cuda/kernels/device.cuh there are at least three, and for the exchange of each regime
too. A fault is a regular expression and what replaces its matches (all of them, or the one of a number), in both
passes of one recurrent kernel. Where an operand is changed first, a scope of PTX holds the register for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ptx.selection import Recurrent

BF16_ONCHIP, BF16_CLUSTER = (
    Recurrent("lstm", "bfloat16", "onchip", 1, 8),
    Recurrent("lstm", "bfloat16", "cluster", 2, 6),
)
BF16_GRID = Recurrent("lstm", "bfloat16", "grid", 2, 6)
FP16_ONCHIP = Recurrent("lstm", "float16", "onchip", 1, 4)
TF32_ONCHIP, EXACT_ONCHIP = Recurrent("gru", "tf32", "onchip", 1, 8), Recurrent("gru", "float32", "onchip", 1, 2)
NORM_ONCHIP, NORM_GRID = (
    Recurrent("lstm_layer_norm", "bfloat16", "onchip", 1, 8, True),
    Recurrent("lstm_layer_norm", "bfloat16", "grid", 2, 6, True),
)
RESET_ONCHIP = Recurrent("gru_reset_before", "bfloat16", "onchip", 1, 8, True)
EXACT_SPLIT, EXACT_CLUSTER = Recurrent("gru", "float32", "onchip", 2, 4), Recurrent("gru", "float32", "cluster", 4, 4)


class Fault(NamedTuple):
    of: str  # the start of the assembly string, or the exchange
    name: str
    kernel: Recurrent
    pattern: str
    replacement: str
    which: int | None = None  # the number of the match; None: all

    def __str__(self) -> str:
        return f"{self.of}-{self.name}-{self.kernel}".replace(" ", "_")

    def plant(self, text: str) -> str:
        """The text with the fault; as it was where nothing matches."""
        matches = list(re.finditer(self.pattern, text))
        if self.which is not None:
            matches = matches[self.which : self.which + 1]
        for match in reversed(matches):
            text = text[: match.start()] + match.expand(self.replacement) + text[match.end() :]
        return text


def changed(operation: str, change: str) -> str:
    """A replacement for `operation D, A;` in which A is changed first."""
    return f"{{ .reg .f32 changed; {change}.f32 changed, \\2; {operation} \\1, changed; }}"


def _of_unary(operation: str, kernel: Recurrent) -> Iterator[Fault]:
    pattern = rf"{re.escape(operation)} (%\w+), (%\w+);"
    yield Fault(operation, "negative operand", kernel, pattern, changed(operation, "neg"))
    yield Fault(operation, "operand of zero", kernel, pattern, rf"{operation} \1, 0f00000000;")
    yield Fault(operation, "operand of one", kernel, pattern, rf"{operation} \1, 0f3F800000;")


def _of_mma(operation: str, kernel: Recurrent) -> Iterator[Fault]:
    d, a, b = r"\{(%\w+),(%\w+),(%\w+),(%\w+)\}", r"\{(%\w+),(%\w+),(%\w+),(%\w+)\}", r"\{(%\w+),(%\w+)\}"
    pattern = rf"{re.escape(operation)} {d},{a},{b},{d};"

    def replaced(d: str = "1234", a: str = "5678", b: str = "9A", c: str = "1234") -> str:
        listed = ["{" + ",".join(rf"\g<{int(i, 16)}>" for i in part) + "}" for part in (d, a, b, c)]
        return f"{operation} {','.join(listed)};"

    yield Fault(operation, "rows of A swapped", kernel, pattern, replaced(a="6587"))
    yield Fault(operation, "columns of A swapped", kernel, pattern, replaced(a="7856"))
    yield Fault(operation, "registers of A swapped", kernel, pattern, replaced(a="5768"))
    yield Fault(operation, "registers of B swapped", kernel, pattern, replaced(b="A9"))
    yield Fault(operation, "columns of D swapped", kernel, pattern, replaced(d="2143"))
    yield Fault(operation, "rows of D swapped", kernel, pattern, replaced(d="3412"))
    yield Fault(operation, "columns of C swapped", kernel, pattern, replaced(c="2143"))
    yield Fault(operation, "one product missing", kernel, pattern, "", 0)


def _of_pair(operation: str, other: str, kernel: Recurrent) -> Iterator[Fault]:
    pattern = rf"{re.escape(operation)} (%\w+), (%\w+), (%\w+);"
    yield Fault(operation, "operands swapped", kernel, pattern, rf"{operation} \1, \3, \2;")
    yield Fault(operation, "high half twice", kernel, pattern, rf"{operation} \1, \2, \2;")
    yield Fault(operation, "another format", kernel, pattern, rf"{other} \1, \2, \3;")


INIT, EXPECT = "mbarrier.init.shared::cta.b64", "mbarrier.arrive.expect_tx.shared::cta.b64"
TRY, SEND = "mbarrier.try_wait.parity", "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"
TRY_PATTERN = r"\{ \.reg \.pred p; mbarrier\.try_wait(\S+) p, \[(%\w+)\], (%\w+); selp\.u32 (%\w+), 1, 0, p; \}"
WAIT_BLOCK = r"(\$L\w+:\s+// begin inline asm\s+\{ \.reg \.pred p; mbarrier\.try_wait[\s\S]*?)(fence\.acquire\S+;)"
SEND_PATTERN = rf"{re.escape(SEND)} \[(%\w+)\], \{{(%\w+),(%\w+),(%\w+),(%\w+)\}}, \[(%\w+)\];"
FENCE, MAPA = "fence.acquire.sync_restrict::shared::cluster.cluster", "mapa.shared::cluster.u32"
MAPA_PATTERN = rf"{MAPA} (%\w+), (%\w+), (%\w+);"
ARRIVE, MET = "barrier.cluster.arrive.release.aligned", "barrier.cluster.wait.acquire.aligned"
POST, POLL = "st.relaxed.gpu.global.u64", "ld.relaxed.gpu.global.u64"
POST_PATTERN = r"st\.relaxed\.gpu\.global\.u64 \[(%\w+)\], (%\w+);"
POLL_PATTERN = r"ld\.relaxed\.gpu\.global\.u64 (%\w+), \[(%\w+)\];"
GROUP_PATTERN, BLOCK_PATTERN = r"bar\.sync (%\w+), (%\w+);", r"bar\.sync\s+0;"
WARP_PATTERN = r"bar\.warp\.sync\s+-1;"
LOAD, LOAD_PATTERN = (
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
    r"ldmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16 \{(%\w+),(%\w+),(%\w+),(%\w+)\}, \[(%\w+)\];",
)


def _of_shared_primitives() -> Iterator[Fault]:
    for kernel in (BF16_ONCHIP, TF32_ONCHIP):
        yield Fault("ldmatrix", "first two swapped", kernel, LOAD_PATTERN, rf"{LOAD} {{\2,\1,\3,\4}}, [\5];")
        yield Fault("ldmatrix", "k-tiles swapped", kernel, LOAD_PATTERN, rf"{LOAD} {{\3,\4,\1,\2}}, [\5];")
        yield Fault("ldmatrix", "16 bytes further", kernel, LOAD_PATTERN, rf"{LOAD} {{\1,\2,\3,\4}}, [\5+16];")
        yield Fault("ldmatrix", "4 bytes further", kernel, LOAD_PATTERN, rf"{LOAD} {{\1,\2,\3,\4}}, [\5+4];")
        yield Fault("ldmatrix", "not in one lane", kernel, rf"({LOAD_PATTERN})", _in_some_lanes(r"\1"))
    for kernel in (EXACT_SPLIT, BF16_CLUSTER):
        yield Fault("bar.sync", "missing", kernel, GROUP_PATTERN, "")
        yield Fault("bar.sync", "of one warp", kernel, GROUP_PATTERN, "bar.warp.sync -1;")
        yield Fault("bar.sync", "of fewer threads", kernel, GROUP_PATTERN, r"bar.sync \1, 32;")
        yield Fault("bar.sync", "of more threads", kernel, GROUP_PATTERN, r"bar.sync \1, 1024;")
        yield Fault("bar.sync", "not in one lane", kernel, rf"({GROUP_PATTERN})", _in_some_lanes(r"\1"))


def _in_some_lanes(instruction: str) -> str:
    return (
        "{ .reg .pred some; .reg .b32 lane; mov.u32 lane, %tid.x; and.b32 lane, lane, 31; "
        f"setp.ne.u32 some, lane, 7; @some {instruction} }}"
    )


def _of_cluster() -> Iterator[Fault]:
    for kernel in (BF16_CLUSTER, EXACT_CLUSTER):
        init, expect = rf"{INIT} \[(%\w+)\], 1;", rf"{re.escape(EXPECT)} _, \[(%\w+)\], (%\w+);"
        yield Fault("mbarrier.init", "missing", kernel, init, "")
        yield Fault("mbarrier.init", "for two arrivals", kernel, init, rf"{INIT} [\1], 2;")
        yield Fault("mbarrier.init", "4 bytes further", kernel, init, rf"{INIT} [\1+4], 1;")
        more = "{{ .reg .b32 n; add.s32 n, \\2, {}; {} _, [\\1], n; }}"
        yield Fault("mbarrier.arrive.expect_tx", "missing", kernel, expect, "")
        yield Fault("mbarrier.arrive.expect_tx", "more bytes", kernel, expect, more.format(16, EXPECT))
        yield Fault("mbarrier.arrive.expect_tx", "fewer bytes", kernel, expect, more.format(-16, EXPECT))
        yield Fault("mbarrier.arrive.expect_tx", "another barrier", kernel, expect, rf"{EXPECT} _, [\1+8], \2;")
        yield Fault("mbarrier.arrive.expect_tx", "twice", kernel, rf"({expect})", r"\1 \1")
        tried = "{{ .reg .pred p; .reg .b32 other; xor.b32 other, \\3, 1; {} selp.u32 \\4, {}, p; }}"
        waits = r"mbarrier.try_wait\1 p, [\2], {};"
        yield Fault(TRY, "wrong parity", kernel, TRY_PATTERN, tried.format(waits.format("other"), "1, 0"))
        yield Fault(TRY, "parity 0", kernel, TRY_PATTERN, tried.format(waits.format("0"), "1, 0"))
        yield Fault(TRY, "answer swapped", kernel, TRY_PATTERN, tried.format(waits.format(r"\3"), "0, 1"))
        yield Fault(TRY, "no wait", kernel, TRY_PATTERN, r"mov.u32 \4, 1;")
        other = waits.format(r"\3").replace(r"[\2]", r"[\2+8]")
        yield Fault(TRY, "another barrier", kernel, TRY_PATTERN, tried.format(other, "1, 0"))
        in_block = waits.format(r"\3").replace(r"\1", ".parity.relaxed.cta.shared::cta.b64")
        yield Fault(TRY, "scope of the block", kernel, TRY_PATTERN, tried.format(in_block, "1, 0"))
        fence = re.escape(FENCE) + ";"
        yield Fault("fence.acquire", "missing", kernel, fence, "")
        in_block = "fence.acquire.sync_restrict::shared::cluster.cta;"
        yield Fault("fence.acquire", "scope of the block", kernel, fence, in_block)
        yield Fault("fence.acquire", "before the wait", kernel, WAIT_BLOCK, r"\2 \1")
        send = SEND + r" [{}], {{\2,\3,\4,\5}}, [{}];"
        yield Fault("st.async", "values swapped", kernel, SEND_PATTERN, rf"{SEND} [\1], {{\3,\2,\4,\5}}, [\6];")
        yield Fault("st.async", "pairs swapped", kernel, SEND_PATTERN, rf"{SEND} [\1], {{\4,\5,\2,\3}}, [\6];")
        yield Fault("st.async", "another barrier", kernel, SEND_PATTERN, send.format(r"\1", r"\6+8"))
        yield Fault("st.async", "16 bytes further", kernel, SEND_PATTERN, send.format(r"\1+16", r"\6"))
        yield Fault("st.async", "8 bytes further", kernel, SEND_PATTERN, send.format(r"\1+8", r"\6"))
        yield Fault("st.async", "missing", kernel, SEND_PATTERN, "", 0)
        rank = "{{ .reg .b32 rank; {} {} \\1, \\2, rank; }}"
        yield Fault("mapa", "the next block", kernel, MAPA_PATTERN, rank.format(r"add.u32 rank, \3, 1;", MAPA))
        yield Fault("mapa", "always block 0", kernel, MAPA_PATTERN, rank.format("mov.u32 rank, 0;", MAPA))
        yield Fault("mapa", "the block itself", kernel, MAPA_PATTERN, r"mov.u32 \1, \2;")
        yield Fault("mapa", "operands swapped", kernel, MAPA_PATTERN, rf"{MAPA} \1, \3, \2;")
        arrive, met = re.escape(ARRIVE) + ";", re.escape(MET) + ";"
        relaxed = "barrier.cluster.arrive.relaxed.aligned;"
        yield Fault("barrier.cluster.arrive", "relaxed", kernel, arrive, relaxed)
        yield Fault("barrier.cluster.arrive", "missing", kernel, arrive, "")
        yield Fault("barrier.cluster.arrive", "twice", kernel, arrive, f"{ARRIVE}; {ARRIVE};")
        yield Fault("barrier.cluster.wait", "missing", kernel, met, "")
        yield Fault("barrier.cluster.wait", "before the arrival", kernel, rf"({arrive})([\s\S]*?)({met})", r"\3\2\1")
        yield Fault("barrier.cluster.wait", "a barrier of the block", kernel, met, "bar.sync 0;")
        # the exchange as a whole
        both = rf"{arrive}[\s\S]*?{met}"
        yield Fault("cluster", "begins without meeting", kernel, both, "", 0)
        yield Fault("cluster", "meets as blocks at the beginning", kernel, both, "bar.sync 0;", 0)
        yield Fault("cluster", "sends before the slice is written", kernel, WARP_PATTERN, "", 1)  # 0 is that of wait()
        yield Fault("cluster", "no barrier after zeroing", kernel, BLOCK_PATTERN, "", 0)
    # Nothing is planted in the barrier after a slice was sent, since wait() of the next step has another, nor in the
    # meeting at the end: a block has waited for all bytes that come to it before it ends.


def _of_grid() -> Iterator[Fault]:
    kernel = BF16_GRID
    post, poll = POST + r" [{}], {};", POLL + r" {}, [{}];"
    yield Fault("st.relaxed", "weak", kernel, POST_PATTERN, r"st.global.u64 [\1], \2;")
    yield Fault("st.relaxed", "scope of the block", kernel, POST_PATTERN, r"st.relaxed.cta.global.u64 [\1], \2;")
    yield Fault("st.relaxed", "scope of the cluster", kernel, POST_PATTERN, r"st.relaxed.cluster.global.u64 [\1], \2;")
    yield Fault("st.relaxed", "8 bytes further", kernel, POST_PATTERN, post.format(r"\1+8", r"\2"))
    yield Fault("st.relaxed", "missing", kernel, POST_PATTERN, "")
    yield Fault("ld.relaxed", "weak", kernel, POLL_PATTERN, r"ld.global.u64 \1, [\2];")
    yield Fault("ld.relaxed", "scope of the block", kernel, POLL_PATTERN, r"ld.relaxed.cta.global.u64 \1, [\2];")
    yield Fault("ld.relaxed", "scope of the cluster", kernel, POLL_PATTERN, r"ld.relaxed.cluster.global.u64 \1, [\2];")
    yield Fault("ld.relaxed", "8 bytes further", kernel, POLL_PATTERN, poll.format(r"\1", r"\2+8"))
    swapped = r"{ .reg .b64 word, low; shr.u64 word, \2, 32; shl.b64 low, \2, 32; or.b64 word, word, low; "
    tag = r"{ .reg .b64 word; add.s64 word, \2, %d; "
    yield Fault("grid", "data and tag swapped", kernel, POST_PATTERN, swapped + post.format(r"\1", "word") + " }")
    yield Fault("grid", "tag of the next step", kernel, POST_PATTERN, tag % 2**32 + post.format(r"\1", "word") + " }")
    yield Fault(
        "grid",
        "tag apart from the data",
        kernel,
        POST_PATTERN,
        r"{ .reg .b64 a, b; and.b64 a, \2, -4294967296; " + post.format(r"\1", "a") + post.format(r"\1", r"\2") + " }",
    )
    sign = r"{ .reg .b64 word; xor.b64 word, \2, 32768; "
    yield Fault("grid", "sign of a value", kernel, POST_PATTERN, sign + post.format(r"\1", "word") + " }")
    yield Fault("grid", "sends before the slice is written", kernel, WARP_PATTERN, "", 0)
    # Barrier 1 is that of begin(). Without it all is right too, since wait() of the first step has another.
    for which in (0, 2):
        yield Fault("grid", f"block barrier {which} missing", kernel, BLOCK_PATTERN, "", which)


def _of_onchip() -> Iterator[Fault]:
    for which in range(3):
        yield Fault("onchip", f"block barrier {which} missing", BF16_ONCHIP, BLOCK_PATTERN, "", which)
    yield Fault("onchip", "every barrier of one warp", BF16_ONCHIP, BLOCK_PATTERN, "bar.warp.sync -1;")


def _of_meetings() -> Iterator[Fault]:
    shuffle, pattern = "shfl.sync.bfly.b32", r"shfl\.sync\.bfly\.b32 (%\w+), (%\w+), (%\w+), 31, -1;"
    for kernel in (NORM_ONCHIP, NORM_GRID):
        yield Fault(shuffle, "its own value", kernel, pattern, r"mov.b32 \1, \2;")
        yield Fault(shuffle, "the neighbour", kernel, pattern, rf"{shuffle} \1, \2, 1, 31, -1;")
        yield Fault(shuffle, "not in one lane", kernel, rf"({pattern})", _in_some_lanes(r"\1"))
    # Barriers 0 and 1 are those of any kernel, 2 that of the step; two for each meeting follow.
    for which in (3, 4, 5, 6):
        yield Fault("onchip", f"barrier {which} of a meeting missing", NORM_ONCHIP, BLOCK_PATTERN, "", which)
        yield Fault("grid", f"barrier {which} of a meeting missing", NORM_GRID, BLOCK_PATTERN, "", which)
    yield Fault("onchip", "barrier of the second product missing", RESET_ONCHIP, BLOCK_PATTERN, "", 3)


def every() -> list[Fault]:
    narrow, wide = "mma.sync.aligned.m16n8k16.row.col.f32", "mma.sync.aligned.m16n8k8.row.col.f32"
    rounding = r"cvt\.rna\.tf32\.f32 (%\w+), (%\w+);"
    from_half = r"cvt\.f32\.f16 (%\w+), (%\w+);"
    return [
        *_of_mma(f"{narrow}.bf16.bf16.f32", BF16_ONCHIP),
        *_of_mma(f"{narrow}.f16.f16.f32", FP16_ONCHIP),
        *_of_mma(f"{wide}.tf32.tf32.f32", TF32_ONCHIP),
        *_of_mma(f"{wide}.tf32.tf32.f32", EXACT_ONCHIP),
        *_of_unary("cvt.rn.bf16.f32", BF16_ONCHIP),
        *_of_unary("cvt.rn.f16.f32", FP16_ONCHIP),
        *_of_unary("ex2.approx.ftz.f32", BF16_ONCHIP),
        *_of_unary("rcp.approx.ftz.f32", BF16_ONCHIP),
        *_of_unary("rsqrt.approx.ftz.f32", NORM_ONCHIP),
        *_of_unary("cvt.rna.tf32.f32", TF32_ONCHIP),
        Fault("cvt.rna.tf32", "not rounded", EXACT_ONCHIP, rounding, r"mov.b32 \1, \2;"),
        Fault(
            "cvt.f32.f16",
            "bits of the integer",
            FP16_ONCHIP,
            from_half,
            r"{ .reg .b32 i; cvt.u32.u16 i, \2; mov.b32 \1, i; }",
        ),
        Fault(
            "cvt.f32.f16",
            "as bfloat16",
            FP16_ONCHIP,
            from_half,
            r"{ .reg .b32 i; cvt.u32.u16 i, \2; shl.b32 i, i, 16; mov.b32 \1, i; }",
        ),
        Fault(
            "cvt.f32.f16",
            "without its sign",
            FP16_ONCHIP,
            from_half,
            r"{ .reg .b16 h; and.b16 h, \2, 32767; cvt.f32.f16 \1, h; }",
        ),
        *_of_pair("cvt.rn.bf16x2.f32", "cvt.rn.f16x2.f32", BF16_ONCHIP),
        *_of_pair("cvt.rn.f16x2.f32", "cvt.rn.bf16x2.f32", FP16_ONCHIP),
        *_of_shared_primitives(),
        *_of_meetings(),
        *_of_onchip(),
        *_of_cluster(),
        *_of_grid(),
    ]
