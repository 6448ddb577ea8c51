"""How long a step of a recurrent kernel takes, estimated from the instructions of its time loop, and the report of it.

Every constant here is assumed, from papers and from what ptxas itself schedules by, until a GPU has measured it. The
estimate ranks kernels and shows what bounds each; as a time it may be off by half.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from sass import Loop

HMMA_CYCLES = 6.4  # of a scheduler's tensor core, for one m16n8k16 of 16 bits or m16n8k8 of TF32
HMMA_ISSUE, MUFU_CYCLES = 6, 8  # between two of a kind
LDSM_LATENCY, MUFU_LATENCY, STS_LATENCY = 33, 20, 20
EXCHANGE = {"Onchip": 30, "Cluster": 250, "Grid": 700}  # cycles from a step's last store to the next step's first load
GHZ = 1.98

# Instructions by type; the first pattern that fits counts.
TYPES = {
    "HMMA": r"HMMA",
    "MUFU": r"MUFU",
    "LDSM": r"LDSM",
    "LDS": r"LDS",
    "STS": r"STS",
    "LDG": r"LDG|LD\b|LD\.",
    "STG": r"STG|ST\b|ST\.|STAS",  # STAS: to another block of the cluster
    "float": r"FFMA|FMUL|FADD|FSEL|FMNMX|FSET|FSETP|FCHK|F2F|F2FP|I2F|F2I|HADD|HFMA",
    "wait": r"BAR|SYNCS|WARPSYNC|UCGABAR|MEMBAR|ERRBAR|CCTL|FENCE",
    "branch": r"BRA|BSSY|BSYNC|CALL|RET|EXIT|BREAK|YIELD|NANOSLEEP|JMP",
    "move": r"U?MOV|IMAD\.MOV|U?SEL|PRMT|CS2R|R2UR|S2U?R|SHFL",
    "integer": r"I|LEA|LOP|SHF|U|VI|LDC|PLOP|P2R|R2P|SGXT|BMSK",
    "other": r"",
}


@dataclass(frozen=True)
class Kernel:
    """What a recurrent kernel is, as its template arguments say."""

    cell: str
    gates: int
    backward: bool
    precision: str
    splits: int  # warps that share 16 units, each with so many k-tiles of 32 bytes of a row of H
    k_tiles: int
    regime: str

    @property
    def products(self) -> int:
        return 3 if self.precision == "Tf32x3" else 1

    @property
    def hidden(self) -> int:
        return self.splits * self.k_tiles * (16 if self.precision in ("Bf16", "Fp16") else 8)

    @property
    def step_hmma(self) -> int:
        """Of one warp, one step and one batch tile of 8 rows."""
        return self.gates * self.k_tiles * self.products

    @property
    def mufu_links(self) -> int:
        """Special functions that wait for each other: of a gate and of the state behind it."""
        if self.cell == "rnn_relu":
            return 0
        return 2 if self.backward or self.gates == 1 else 4


@dataclass(frozen=True)
class Row:
    """One line of the report: a kernel, what ptxas says of it, and cycles per step and batch tile of 8 rows."""

    kernel: Kernel
    warps: int
    registers: int
    cap: int
    spills: int
    instructions: float
    types: tuple[float, ...]  # in the order of TYPES
    hmma: float
    mufu: float
    issue: float
    smem: float
    warp: float

    @property
    def low(self) -> float:
        """All phases overlap."""
        return max(self.hmma, self.mufu, self.issue, self.smem, self.warp)

    @property
    def high(self) -> float:
        """None does: the products, then the activations, then the rest of one warp's way through the step."""
        own = dict(zip(TYPES, self.types, strict=True))
        rest = self.warp - own["HMMA"] * HMMA_ISSUE - own["MUFU"] * MUFU_CYCLES
        return max(self.low, max(self.hmma, self.smem) + self.mufu + max(0.0, rest))


def wavefronts(text: str) -> int:
    """Passes through shared memory that an instruction of a warp takes where no two lanes meet a bank."""
    name = text.split()[0]
    if name.startswith("LDSM"):
        return 4 if name.endswith(".4") else 2 if name.endswith(".2") else 1
    if re.match(r"LDS|STS(\.|$)", name):
        return 4 if ".128" in name else 2 if ".64" in name else 1
    return 0


def count_types(loop: Loop) -> dict[str, int]:
    counts = dict.fromkeys(TYPES, 0)
    for instruction in loop.code:
        counts[next(name for name, pattern in TYPES.items() if re.match(pattern, instruction.text))] += 1
    return counts


def estimate(kernel: Kernel, loop: Loop, *, warps: int, registers: int, cap: int, spills: int) -> Row:
    steps = loop.count("HMMA") / kernel.step_hmma  # in one turn of the loop
    counts = {name: count / steps for name, count in count_types(loop).items()}
    instructions = len(loop.code) / steps
    busiest = -(-warps // 4)
    # of a group's warps no more than 4 hold cells
    active = -(-warps * min(kernel.splits, 4) // kernel.splits // 4)
    alone = sum(instruction.stall for instruction in loop.code) / steps
    alone += LDSM_LATENCY + MUFU_LATENCY * kernel.mufu_links + STS_LATENCY + EXCHANGE[kernel.regime]
    if kernel.splits > 1:  # the sums of the other warps: one more way through shared memory and a barrier
        alone += STS_LATENCY + EXCHANGE["Onchip"]
    return Row(
        kernel=kernel,
        warps=warps,
        registers=registers,
        cap=cap,
        spills=spills,
        instructions=instructions,
        types=tuple(counts.values()),
        hmma=busiest * counts["HMMA"] * HMMA_CYCLES,
        mufu=active * counts["MUFU"] * MUFU_CYCLES,
        issue=busiest * instructions,
        smem=warps * sum(wavefronts(instruction.text) for instruction in loop.code) / steps,
        warp=alone,
    )


INTRODUCTION = """\
# What the compiler made of the recurrent kernels

Written by `python tools/cuda_check.py --static-report FILE` from ptxas' report and the disassembly for {arch}, {nvcc}.
**Nothing here was timed.** `make gpu` measures; until then this says what to look at first.

## The model

Per step and batch tile of 8 rows, in cycles. The warps are those of the kernel's launch bound, the most a block has.

| column | is |
|---|---|
| instr and the next | instructions of one warp in one turn of the time loop, both sides of every branch counted once |
| hmma | warps on the busiest of 4 schedulers x HMMA x {hmma}: 63 % of peak, the published share of mma.sync |
| mufu | warps there that hold cells x MUFU x {mufu}: 16 lanes a cycle on the whole multiprocessor |
| issue | warps on the busiest scheduler x instructions |
| smem | wavefronts of all warps: LDSM.x4 and 128 bits 4, 64 bits 2, else 1; no bank conflicts |
| warp | one warp alone: ptxas' fixed stalls, LDSM {ldsm}, {link} per dependent MUFU, STS {sts}, and the exchange |
| floor | the largest of hmma, mufu and smem: what the arithmetic cannot go below with this mapping |
| low, high | all of these overlap perfectly; products, activations and the rest follow each other |

MUFU depend on each other 4 deep in GRU and LSTM forward, 2 deep elsewhere. The exchange takes, from a step's last store
to the next step's first load: {exchange}; where warps share K, one more STS and block barrier.
Not in the model: memory that answers late (x comes one step ahead), bank conflicts, clocks below {ghz} GHz, what a
predicated instruction that does not run saves, retries of a wait.

## What the first run on a GPU must look at

1. Cycles per HMMA with 1, 2 and 4 chains per warp, against the assumed {hmma}; MUFU under HMMA, against {mufu}.
2. The exchange in cycles: `__syncthreads`, st.async to 1, 3, 7 and 15 peers, a tagged word through L2.
3. Kernels whose issue is above their floor: listed below with the ratio; there instructions cost more than arithmetic.
4. Whether low or high is nearer to the measured step, per regime; then correct this model.
"""

COLUMNS = (
    *("cell", "pass", "precision", "H to", "warps x K", "warps", "regs (cap)", "spills", "instr", *TYPES),
    *("hmma", "mufu", "issue", "smem", "warp", "floor", "low - high", "us"),
)


def _line(row: Row) -> str:
    kernel = row.kernel
    floor = max(row.hmma, row.mufu, row.smem)
    cells = [
        kernel.cell,
        "backward" if kernel.backward else "forward",
        kernel.precision.lower(),
        kernel.hidden,
        f"{kernel.splits} x {kernel.k_tiles}",
        row.warps,
        f"{row.registers} ({row.cap})",
        row.spills,
        *(f"{value:.0f}" for value in (row.instructions, *row.types)),
        *(f"{value:.0f}" for value in (row.hmma, row.mufu, row.issue, row.smem, row.warp, floor)),
        f"{row.low:.0f} - {row.high:.0f}",
        f"{row.low / GHZ / 1000:.2f} - {row.high / GHZ / 1000:.2f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def report(rows: Sequence[Row], *, arch: str, nvcc: str) -> str:
    """The whole of static.md."""
    exchange = ", ".join(f"{name.lower()} {cycles}" for name, cycles in EXCHANGE.items())
    text = INTRODUCTION.format(
        arch=arch, nvcc=nvcc, hmma=HMMA_CYCLES, mufu=MUFU_CYCLES, ldsm=LDSM_LATENCY, link=MUFU_LATENCY,
        sts=STS_LATENCY, exchange=exchange, ghz=GHZ,
    )  # fmt: skip
    ratios = sorted(((row.issue / max(row.hmma, row.mufu, row.smem), row) for row in rows), key=lambda r: -r[0])
    above = [ratio for ratio, _ in ratios if ratio > 1]
    text += f"\n{len(above)} of {len(rows)} kernels issue for longer than their floor"
    if above:
        text += f", the median of these {above[len(above) // 2]:.1f} times as long, the worst {above[0]:.1f} times"
    text += ".\n"
    for regime in EXCHANGE:
        chosen = [row for row in rows if row.kernel.regime == regime]
        chosen.sort(
            key=attrgetter(*(f"kernel.{name}" for name in ("gates", "cell", "backward", "precision", "hidden")))
        )
        text += f"\n## {regime.lower()}: {len(chosen)} kernels\n\n"
        text += "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|\n"
        text += "".join(_line(row) + "\n" for row in chosen)
    return text
