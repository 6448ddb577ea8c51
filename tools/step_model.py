"""Estimates the time of a step of a recurrent kernel from the instructions of its time loop, and writes the report.

The constants are assumptions, from papers and from the latencies that ptxas schedules by. No GPU has confirmed them.
The estimate ranks kernels and shows what limits each of them; a time may be wrong by half of its value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import median

from sass import Loop

HMMA_CYCLES = 6.4  # of one scheduler's tensor core, for an m16n8k16 of 16 bits or an m16n8k8 of TF32
HMMA_ISSUE, MUFU_CYCLES = 6, 8  # cycles from one such instruction of a warp to its next
LDSM_LATENCY, MUFU_LATENCY, STS_LATENCY, SHFL_LATENCY = 33, 20, 20, 24
# Cycles from a step's last store to the next step's first load, for the first bytes that one block sends to another.
EXCHANGE = {"Onchip": 30, "Cluster": 250, "Grid": 700}
CLUSTER_BYTES = 14  # that a multiprocessor receives from others of its cluster per cycle
L2_LATENCY = 270  # cycles of a load from the L2 cache
GHZ = 1.98

STRONG_LOAD, STRONG_STORE = r"LDG\.E\.64\.STRONG\.GPU", r"STG\.E\.64\.STRONG\.GPU"

# The type of an instruction is that of the first pattern that matches.
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


LAYER = ("gates", "base", "backward", "precision", "hidden")  # of a Kernel: what the rows of a table are ordered by


@dataclass(frozen=True)
class Kernel:
    """The template arguments of a recurrent kernel."""

    cell: str
    gates: int
    backward: bool
    precision: str
    splits: int  # warps that share 16 units
    k_tiles: int  # of each of these warps; a k-tile is 32 bytes of a row of H
    regime: str
    options: bool = False  # the variant for zoneout, dropouts and peepholes

    @property
    def base(self) -> str:  # the cell without its option
        return self.cell.removesuffix("_layer_norm").removesuffix("_reset_before")

    @property
    def exchanges(self) -> int:  # operands of products in a step
        return 2 if self.cell.endswith("_reset_before") else 1

    @property
    def meetings(self) -> int:  # how often the units of a row meet within a step, for layer normalisation
        return (2 if self.base == "lstm" else 1) if self.cell.endswith("_layer_norm") else 0

    @property
    def shuffles(self) -> int:
        """In a chain: over 8 lanes and over the slices of a row; forward twice, for the mean and the variance."""
        slices = self.hidden // (16 if self.splits == 1 else 8)
        return self.meetings * (1 if self.backward else 2) * (3 + min(5, (slices - 1).bit_length()))

    @property
    def products(self) -> int:
        return 3 if self.precision == "Tf32x3" else 1

    @property
    def hidden(self) -> int:
        return self.splits * self.k_tiles * (16 if self.precision in ("Bf16", "Fp16") else 8)

    @property
    def step_hmma(self) -> int:
        """Tensor core instructions of one warp for one step of one batch tile of 8 rows."""
        times = self.exchanges if self.backward else 1  # going back, both products run over the K of all gates
        return self.gates * self.k_tiles * self.products * times

    @property
    def operands(self) -> int:
        """Values of one cell that other blocks need for their next step."""
        return self.gates if self.backward else 1

    @property
    def element_bytes(self) -> int:
        return 2 if self.precision in ("Bf16", "Fp16") else 4

    @property
    def planes(self) -> int:
        return 2 if self.precision == "Tf32x3" else 1

    def team(self, warps: int) -> Team:
        """How plan.h divides the largest layer that the kernel serves among blocks of at most ``warps`` warps."""
        groups, most = self.hidden // 16, warps // self.splits
        blocks = -(-groups // most)
        in_block = -(-groups // blocks)
        return Team(blocks, blocks * in_block, in_block * self.splits)

    @property
    def mufu_links(self) -> int:
        """The longest chain of special functions of which each needs the result of the one before."""
        if self.base == "rnn_relu":
            return 0
        return 2 if self.backward or self.gates == 1 else 4


@dataclass(frozen=True)
class Team:
    blocks: int
    groups: int
    warps: int  # of a block


@dataclass(frozen=True)
class Traffic:
    """What the exchange moves per step and batch tile: bytes into a block, and instructions of one warp."""

    received: int = 0
    sends: int = 0  # each of 32 lanes
    loads: int = 0
    rounds: int = 0  # loads that wait for one another
    rows: int = 1  # of the operand that a warp loads
    part_loads: int = 0  # of the parts of sums over rows, in one meeting
    total_rows: int = 1  # rows of which a warp adds up the parts


LOADS_AT_ONCE = 4  # words that a lane has on their way in the grid regime


def traffic(kernel: Kernel, warps: int) -> Traffic:
    team = kernel.team(warps)
    total_rows = -(-8 // team.warps)
    if kernel.regime == "Onchip":
        return Traffic(total_rows=total_rows)
    row_bytes = kernel.operands * team.groups * 16 * kernel.element_bytes
    rows = 8 * kernel.planes
    units, columns = (16 if kernel.splits == 1 else 8), (8 if kernel.splits < 4 else 4)
    packets = kernel.planes * columns * units * kernel.operands * kernel.element_bytes // 16
    if kernel.regime == "Cluster":
        return Traffic(rows * row_bytes, -(-packets * team.blocks // 32))
    mine = -(-rows // team.warps)
    rounds = mine * -(-row_bytes // (4 * LOADS_AT_ONCE * 32))  # a word has 4 bytes of data
    parts = 2 * (2 if kernel.gates == 3 else 1) * 8 * kernel.hidden // units  # words of 8 bytes
    return Traffic(
        received=kernel.exchanges * 2 * rows * row_bytes + kernel.meetings * 8 * parts,
        sends=-(-packets * 4 // 32),
        loads=LOADS_AT_ONCE * rounds,
        rounds=rounds,
        rows=mine,
        part_loads=LOADS_AT_ONCE * -(-parts // (LOADS_AT_ONCE * 32 * team.warps)),
        total_rows=total_rows,
    )


def trips(inner: Sequence[Loop], moved: Traffic) -> dict[int, float]:
    """How often an instruction of the time loop runs per iteration, by its address, where that is not once.

    The loops inside are those of the exchange: the copies, whose trips follow from what they move, and the retries of a
    wait or a load, which do not run when everything comes in time. The first operand is set before the first step. The
    loads of an operand lie in a loop over its rows, those of parts in none.
    """
    times: dict[int, float] = {}
    known = []
    for pattern, needed in ((r"STAS", moved.sends), (STRONG_STORE, moved.sends), (STRONG_LOAD, moved.loads)):
        copies = [one for one in inner if one.count(pattern)]
        known += copies
        for outermost in (one for one in copies if not any(other.contains(one) for other in copies)):
            within = [one for one in copies if one == outermost or outermost.contains(one)]
            copy = max(within, key=lambda one: (one.count(pattern), -len(one.code)))
            retries = [one for one in within if copy.contains(one)]
            once = copy.count(pattern) - sum(one.count(pattern) for one in retries)
            of_parts = pattern == STRONG_LOAD and moved.part_loads and copy == outermost
            around = {i.address for one in within if one.contains(copy) for i in one.code}
            times |= dict.fromkeys(around, moved.rows)
            times |= dict.fromkeys(
                (i.address for i in copy.code), (moved.part_loads if of_parts else needed) / max(once, 1)
            )
            times |= dict.fromkeys((i.address for one in retries for i in one.code), 0)
    for one in inner:
        if one.count("SHFL"):
            times |= dict.fromkeys((i.address for i in one.code), moved.total_rows)
        elif one not in known and not one.count(r"SYNCS\.PHASECHK"):
            times |= dict.fromkeys((i.address for i in one.code), 0)
    return times


@dataclass(frozen=True)
class Row:
    """One line of the report: a kernel, the figures of ptxas, and cycles per step and batch tile of 8 rows."""

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
    received: int
    exchange: float

    @property
    def low(self) -> float:
        """Cycles if all phases overlap perfectly."""
        return max(self.hmma, self.mufu, self.issue, self.smem, self.warp)

    @property
    def high(self) -> float:
        """Cycles if no phases overlap: the products, the activations, then the rest of one warp's work."""
        own = dict(zip(TYPES, self.types, strict=True))
        rest = self.warp - own["HMMA"] * HMMA_ISSUE - own["MUFU"] * MUFU_CYCLES
        return max(self.low, max(self.hmma, self.smem) + self.mufu + max(0.0, rest))


def wavefronts(text: str) -> int:
    """Passes through shared memory that an instruction of a warp takes without bank conflicts."""
    name = text.split()[0]
    if name.startswith("LDSM"):
        return 4 if name.endswith(".4") else 2 if name.endswith(".2") else 1
    if re.match(r"LDS|STS(\.|$)", name):
        return 4 if ".128" in name else 2 if ".64" in name else 1
    return 0


def count_types(loop: Loop, times: Mapping[int, float]) -> dict[str, float]:
    counts = dict.fromkeys(TYPES, 0.0)
    for one in loop.code:
        counts[next(name for name, pattern in TYPES.items() if re.match(pattern, one.text))] += times.get(
            one.address, 1
        )
    return counts


def exchange_cycles(kernel: Kernel, moved: Traffic) -> float:
    """Cycles from the last store of a step until the next operand has come whole."""
    waiting = EXCHANGE[kernel.regime]
    if kernel.regime == "Cluster":
        return waiting + moved.received / CLUSTER_BYTES
    return waiting + max(moved.rounds - 1, 0) * L2_LATENCY


def estimate(
    kernel: Kernel, loop: Loop, inner: Sequence[Loop] = (), *, warps: int, registers: int, cap: int, spills: int
) -> Row:
    steps = loop.count("HMMA") / kernel.step_hmma  # in one iteration of the loop
    moved = traffic(kernel, warps)
    times = trips(inner, moved)
    counts = {name: count / steps for name, count in count_types(loop, times).items()}
    instructions = sum(counts.values())
    exchange = exchange_cycles(kernel, moved) * kernel.exchanges + kernel.shuffles * SHFL_LATENCY
    barriers = 2 if kernel.regime == "Grid" else 1  # behind the parts, if they came from other blocks, and the totals
    meeting = EXCHANGE[kernel.regime] + barriers * EXCHANGE["Onchip"] + 2 * STS_LATENCY
    meeting += max(moved.part_loads // LOADS_AT_ONCE - 1, 0) * L2_LATENCY
    exchange += kernel.meetings * meeting
    busiest = -(-warps // 4)
    # at most 4 warps of a group hold cells
    active = -(-warps * min(kernel.splits, 4) // kernel.splits // 4)
    alone = sum(one.stall * times.get(one.address, 1) for one in loop.code) / steps
    alone += LDSM_LATENCY + MUFU_LATENCY * kernel.mufu_links + STS_LATENCY + exchange
    if kernel.splits > 1:  # the sums of the other warps come through shared memory, behind one more barrier
        alone += (STS_LATENCY + EXCHANGE["Onchip"]) * kernel.exchanges
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
        smem=warps * sum(wavefronts(one.text) * times.get(one.address, 1) for one in loop.code) / steps,
        warp=alone,
        received=moved.received,
        exchange=exchange,
    )


INTRODUCTION = """\
# Static estimates of the recurrent CUDA kernels

Generated by `make cuda-static`; do not edit. The figures come from the report of ptxas and from the disassembly for
{arch}, compiled by {nvcc}. **Nothing here was timed**: `make gpu` measures on a GPU. [CUDA kernels](cuda.md)
explains the regimes and tilings, the [glossary](glossary.md) other words.

## The model

All figures from "instr" on are per step and batch tile of 8 rows; those from "hmma" to "low - high" are cycles. A block
has as many warps as the kernel allows.

| column | meaning |
|---|---|
| H to | the largest H that the kernel serves |
| warps x K | warps that share 16 units x the k-tiles that each of them has |
| regs (cap) | registers of a thread, and how many it may have |
| instr, HMMA ... other | instructions of one warp in a step, in all and by type (see below) |
| hmma | warps on the busiest of the 4 schedulers x HMMA x {hmma} cycles, which is 63 % of the tensor cores' peak rate |
| mufu | warps on that scheduler that hold cells x MUFU x {mufu} cycles, as a scheduler computes 4 lanes per cycle |
| issue | warps on the busiest scheduler x instructions, since a scheduler issues one per cycle |
| smem | passes through shared memory of all warps: 4 for LDSM.x4 and 128 bits, 2 for 64 bits, otherwise 1 |
| received | bytes that a block receives from its team, its own included; in the grid regime with their tags |
| exchange | cycles from the last store of a step until the next operand has come whole; with those within a step |
| warp | one warp alone: stalls set by ptxas, LDSM {ldsm}, {link} per MUFU in a chain, STS {sts}, and the exchange |
| floor | the largest of hmma, mufu and smem: the least that the arithmetic takes, divided among warps as it is |
| low - high | low: all of these overlap perfectly. high: products, activations and the rest follow each other |
| us | low - high in microseconds at {ghz} GHz |

A chain of MUFU, of which each needs the result of the one before, has 4 in the forward of GRU and LSTM, otherwise at
most 2. The first bytes of an exchange take, in cycles: {exchange}. In a cluster the others follow at {cluster} bytes
per cycle. In the grid regime a warp loads words in rounds, each of which waits {l2} cycles for the L2 cache. Where
warps share K, one more STS and one more barrier are added. Where rows of the batch are added up within a step, so are
one exchange, one barrier (two in the grid regime), two STS, and a chain of SHFL, of {shfl} cycles each. Instructions on
both sides of a branch count. Those in the loops of an exchange count as often as they run at the largest H, without
retries.

The model leaves out: loads from global memory that take longer than a step, bank conflicts, clocks below {ghz} GHz,
retries of a wait, and the time saved by predicated instructions that do not run.

## To measure first on a GPU

1. Cycles per HMMA with 1, 2 and 4 independent sums per warp (assumed: {hmma}), and per MUFU beside them ({mufu}).
2. The exchange: `__syncthreads`, st.async to 1, 3, 7 and 15 blocks, and a tagged word through the L2 cache.
3. The kernels below whose "issue" is above their floor. They spend more time on other instructions than on arithmetic.
4. Whether low or high is nearer to the measured step of each regime. Then correct this model.
"""

OPTIONS = """
## Kernels with options

Medians over the regimes, precisions and sizes, beside the plain kernel. The variant "with options" is for zoneout, the
dropouts and peepholes; layer normalisation and the GRU whose r meets h before the product have kernels of their own.
Both sides of a branch count, so each is a layer that draws every mask and has peepholes where its cell can. What layer
normalisation needs before and behind the recurrence is left out.

"""

COLUMNS = (
    *("cell", "pass", "precision", "H to", "warps x K", "warps", "regs (cap)", "spills", "instr", *TYPES),
    *("hmma", "mufu", "issue", "smem", "received", "exchange", "warp", "floor", "low - high", "us"),
)


def _line(row: Row) -> str:
    kernel = row.kernel
    floor = max(row.hmma, row.mufu, row.smem)
    cells = [
        kernel.cell + (" with options" if kernel.options and kernel.cell == kernel.base else ""),
        "backward" if kernel.backward else "forward",
        kernel.precision.lower(),
        kernel.hidden,
        f"{kernel.splits} x {kernel.k_tiles}",
        row.warps,
        f"{row.registers} ({row.cap})",
        row.spills,
        *(f"{value:.0f}" for value in (row.instructions, *row.types)),
        *(f"{value:.0f}" for value in (row.hmma, row.mufu, row.issue, row.smem)),
        *(f"{value:.0f}" for value in (row.received, row.exchange, row.warp, floor)),
        f"{row.low:.0f} - {row.high:.0f}",
        f"{row.low / GHZ / 1000:.2f} - {row.high / GHZ / 1000:.2f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _options(rows: Sequence[Row]) -> str:
    """The medians, by cell and pass, of what the kernels with options take more than the plain ones."""
    plain = {(row.kernel.regime, *attrgetter(*LAYER)(row.kernel)): row for row in rows if not row.kernel.options}
    found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for row in rows:
        if row.kernel.options:
            beside = plain[(row.kernel.regime, *attrgetter(*LAYER)(row.kernel))]
            pair = row.kernel.cell, "backward" if row.kernel.backward else "forward"
            ratios = row.low / beside.low, row.high / beside.high
            found.setdefault(pair, []).append((beside.instructions, row.instructions, *ratios))
    text = "| cell | pass | kernels | instr, plain | instr, with options | low, ratio | high, ratio |\n"
    text += "|---" * 7 + "|\n"
    for (cell, which), each in sorted(found.items()):
        instructions, with_options, low, high = (median(column) for column in zip(*each, strict=True))
        text += (
            f"| {cell} | {which} | {len(each)} | {instructions:.0f} | {with_options:.0f} | {low:.2f} | {high:.2f} |\n"
        )
    return text


def report(rows: Sequence[Row], *, arch: str, nvcc: str) -> str:
    """The text of docs/design/cuda-static.md."""
    exchange = ", ".join(f"{name.lower()} {cycles}" for name, cycles in EXCHANGE.items())
    text = INTRODUCTION.format(
        arch=arch, nvcc=nvcc, hmma=HMMA_CYCLES, mufu=MUFU_CYCLES, ldsm=LDSM_LATENCY, link=MUFU_LATENCY,
        shfl=SHFL_LATENCY, sts=STS_LATENCY, exchange=exchange, cluster=CLUSTER_BYTES, l2=L2_LATENCY, ghz=GHZ,
    )  # fmt: skip
    ratios = sorted(((row.issue / max(row.hmma, row.mufu, row.smem), row) for row in rows), key=lambda r: -r[0])
    above = [ratio for ratio, _ in ratios if ratio > 1]
    text += f"\n{len(above)} of {len(rows)} kernels issue for longer than their floor"
    if above:
        text += f", the median of these {above[len(above) // 2]:.1f} times as long, the worst {above[0]:.1f} times"
    text += ".\n"
    text += OPTIONS + _options(rows)
    for regime in EXCHANGE:
        chosen = [row for row in rows if row.kernel.regime == regime]
        chosen.sort(key=attrgetter(*(f"kernel.{name}" for name in (*LAYER, "cell", "options"))))
        text += f"\n## {regime.lower()}: {len(chosen)} kernels\n\n"
        text += "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|\n"
        text += "".join(_line(row) + "\n" for row in chosen)
    return text
