"""Reads what ``cuobjdump -sass`` prints: kernels, their instructions and their loops.

A branch to an earlier address need not be a loop: ptxas moves code that rarely runs, such as the retry of a wait,
behind the end of a kernel, and this code branches back. Loops are therefore found with dominators.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z].*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
CONTROL = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
SIZE = 16  # bytes of an instruction
TARGET = re.compile(r"0x([0-9a-f]+)\s*$")


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str
    guarded: bool = False  # runs under a predicate
    never: bool = False  # under one that is false: what is left of a branch that ptxas found needless
    stall: int = 1  # cycles until the next instruction of the warp may issue, as set by ptxas

    @property
    def opcode(self) -> str:
        return self.text.split()[0]

    @property
    def operands(self) -> str:
        return self.text[len(self.opcode) :].strip()

    @property
    def calls(self) -> bool:
        """Whether a function is called. Before sm_90 ptxas also leaves loops by a CALL, over the instruction after."""
        return self.opcode.startswith("CALL") and not self.operands.endswith(f"{self.address + 2 * SIZE:#x}")


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop and of the loops inside it, in order of address."""

    code: tuple[Instruction, ...]

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, instruction.text)) for instruction in self.code)

    def contains(self, other: Loop) -> bool:
        return set(other.code) < set(self.code)


def parse(dump: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel, by its mangled name."""
    kernels: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    lines = iter(dump.splitlines())
    for line in lines:
        if "Function :" in line:
            code = kernels.setdefault(line.split("Function :")[1].strip(), [])
        elif found := LINE.match(line):
            control = CONTROL.match(next(lines, ""))
            if control is None:
                raise ValueError(f"expected the second half of an instruction after: {line.strip()}")
            stall = int(control[1], 16) >> 41 & 15
            code.append(
                Instruction(
                    int(found[1], 16),
                    found[3],
                    guarded=found[2] is not None,
                    never=(found[2] or "").strip() == "@!PT",
                    stall=max(stall, 1),
                )
            )
    return kernels


def _successors(code: list[Instruction], i: int) -> tuple[list[int], bool]:
    """The addresses that an instruction may jump to, and whether execution may go on with the instruction after it."""
    at = code[i]
    if at.never:
        return [], True
    name = at.opcode.split(".")[0]
    if name in ("EXIT", "RET", "KILL"):
        return [], at.guarded
    if name in ("BRX", "BRXU", "JMX", "JMXU"):
        raise ValueError(f"{at.text}: an indirect branch, whose targets are not known")
    if at.calls:
        return [], True
    if name in ("BRA", "JMP", "CALL") or at.opcode == "WARPSYNC.COLLECTIVE":
        target = TARGET.search(at.operands)
        if target is None:
            raise ValueError(f"{at.text}: expected an address to branch to")
        always = at.opcode in ("BRA", "JMP") and not at.guarded and "," not in at.operands
        return [int(target[1], 16)], not always
    return [], True


def _blocks(code: list[Instruction]) -> tuple[list[range], list[list[int]]]:
    """The basic blocks (ranges of instructions without a branch), and for each the blocks that may follow it."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    flow = [_successors(code, i) for i in range(len(code))]
    starts = {0}
    for i, (targets, falls) in enumerate(flow):
        starts.update(index[target] for target in targets)
        if (targets or not falls) and i + 1 < len(code):
            starts.add(i + 1)
    order = sorted(starts)
    blocks = [range(start, end) for start, end in zip(order, [*order[1:], len(code)], strict=True)]
    number = {block.start: n for n, block in enumerate(blocks)}
    following = []
    for block in blocks:
        targets, falls = flow[block[-1]]
        after = [number[index[target]] for target in targets]
        following.append([*after, number[block.stop]] if falls and block.stop in number else after)
    return blocks, following


def _reachable(following: list[list[int]]) -> list[int]:
    """The basic blocks that can run, in reverse postorder: except in loops, each comes before its successors."""
    seen, order = {0}, []
    stack: list[tuple[int, Iterator[int]]] = [(0, iter(following[0]))]
    while stack:
        block, rest = stack[-1]
        for after in rest:
            if after not in seen:
                seen.add(after)
                stack.append((after, iter(following[after])))
                break
        else:
            order.append(block)
            stack.pop()
    return order[::-1]


def loops(code: list[Instruction]) -> list[Loop]:
    """Every natural loop: a branch back to a block that dominates it, and all blocks between the two."""
    if not code:
        return []
    blocks, following = _blocks(code)
    order = _reachable(following)
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for after in following[block]:
            before[after].append(block)
    # the blocks through which every way to a block leads, as bits of an integer
    dominators = dict.fromkeys(order, -1)
    dominators[0] = 1
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            common = -1
            for previous in before[block]:
                common &= dominators[previous]
            common |= 1 << block
            changed |= common != dominators[block]
            dominators[block] = common
    bodies: dict[int, set[int]] = {}
    for block in order:
        for head in following[block]:
            if dominators[block] >> head & 1:
                body = bodies.setdefault(head, {head})
                waiting = [block]
                while waiting:
                    one = waiting.pop()
                    if one not in body:
                        body.add(one)
                        waiting += before[one]
    return [Loop(tuple(code[i] for block in sorted(body) for i in blocks[block])) for body in bodies.values()]


def time_loop(found: list[Loop]) -> Loop | None:
    """The loop with the most tensor core instructions, the innermost if several have as many, or None."""
    best = max(found, key=lambda loop: (loop.count("HMMA"), -len(loop.code)), default=None)
    return best if best and best.count("HMMA") else None
