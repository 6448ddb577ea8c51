"""Estimates the time of a step of a recurrent kernel from the instructions of its time loop.

The constants are assumptions, from papers and from the latencies that ptxas schedules by. No GPU has confirmed them.
The estimate ranks kernels and shows what limits each of them; a time may be wrong by half of its value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
