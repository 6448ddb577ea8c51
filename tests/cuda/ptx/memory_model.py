"""Which results the memory model of PTX allows for a few threads: every execution is enumerated and held to its axioms.

The axioms are those of the scoped model in the PTX manual, without proxies: coherence, no values out of thin air, one
order for each location, causality. An asynchronous store is a thread of its own: it writes its data, then makes its
arrival, and only `issued_by` ties it to the thread that issued it. An mbarrier is a location for each arrival that its
phase counts; a wait reads all of them, since a phase ends with the last one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Pairs = frozenset[tuple[int, int]]
SCOPES = ("cta", "cluster", "gpu")


@dataclass(frozen=True)
class Op:
    """One operation. ``order`` is weak, relaxed, acquire or release; ``scope`` counts unless it is weak."""

    kind: str  # "write", "read", "fence" or "barrier" (of the block)
    place: str = ""  # the location, or the barrier
    value: int = 0  # a write's
    into: str = ""  # the name of a read's result
    order: str = "weak"
    scope: str = "gpu"


@dataclass(frozen=True)
class Thread:
    block: int
    ops: tuple[Op, ...]
    cluster: int = 0
    # Reads, by the name of their results, on whose values all of this thread's writes depend.
    depends_on: tuple[str, ...] = ()
    # The number of operations of another thread that come before this one: it issues this asynchronous operation.
    issued_by: tuple[int, int] | None = None


def write(place: str, value: int, order: str = "weak", scope: str = "gpu") -> Op:
    return Op("write", place, value, order=order, scope=scope)


def read(place: str, into: str, order: str = "weak", scope: str = "gpu") -> Op:
    return Op("read", place, into=into, order=order, scope=scope)


def fence(scope: str, order: str = "acq_rel") -> Op:
    return Op("fence", order=order, scope=scope)


def barrier(name: str) -> Op:
    return Op("barrier", name)


@dataclass(frozen=True)
class Event:
    index: int
    thread: int  # -1: an initial write
    block: int
    cluster: int
    op: Op

    @property
    def strong(self) -> bool:
        return self.op.kind == "fence" or (self.op.kind in ("read", "write") and self.op.order != "weak")

    def includes(self, other: Event) -> bool:
        """Whether the scope of this event has the thread of the other."""
        if self.op.scope == "gpu":
            return True
        same_cluster = self.cluster == other.cluster
        return self.block == other.block if self.op.scope == "cta" else same_cluster


def then(first: Iterable[tuple[int, int]], second: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    after: dict[int, list[int]] = {}
    for a, b in second:
        after.setdefault(a, []).append(b)
    return {(a, c) for a, b in first for c in after.get(b, ())}


def closure(pairs: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """With every pair that a chain of pairs makes."""
    found = set(pairs)
    while True:
        more = found | then(found, found)
        if more == found:
            return found
        found = more


def cyclic(pairs: Iterable[tuple[int, int]]) -> bool:
    return any(a == b for a, b in closure(pairs))


class Program:
    """Threads with the initial values of their locations."""

    def __init__(self, initial: Mapping[str, int], threads: Sequence[Thread]) -> None:
        self.initial, self.threads = dict(initial), tuple(threads)
        self.events: list[Event] = []
        self.of_thread: list[list[Event]] = []
        for number, thread in enumerate(threads):
            mine = [
                Event(len(self.events) + i, number, thread.block, thread.cluster, op) for i, op in enumerate(thread.ops)
            ]
            self.events += mine
            self.of_thread.append(mine)
        for place, value in initial.items():
            self.events.append(Event(len(self.events), -1, -1, -1, write(place, value)))
        self.writes = [e for e in self.events if e.op.kind == "write"]
        self.reads = [e for e in self.events if e.op.kind == "read"]
        self.order = self._program_order()

    def _program_order(self) -> set[tuple[int, int]]:
        pairs = {(a.index, b.index) for mine in self.of_thread for a, b in itertools.combinations(mine, 2)}
        for thread, mine in zip(self.threads, self.of_thread, strict=True):
            if thread.issued_by is not None:
                issuer, count = thread.issued_by
                pairs |= {(a.index, b.index) for a in self.of_thread[issuer][:count] for b in mine}
        return closure(pairs)

    def _morally_strong(self, a: Event, b: Event) -> bool:
        if (a.index, b.index) in self.order or (b.index, a.index) in self.order:
            return True
        return a.strong and b.strong and a.includes(b) and b.includes(a)

    def _dependencies(self) -> set[tuple[int, int]]:
        named = {e.op.into: e.index for e in self.reads}
        return {
            (named[name], e.index)
            for thread, mine in zip(self.threads, self.of_thread, strict=True)
            for name in thread.depends_on
            for e in mine
            if e.op.kind == "write"
        }

    def _releases(self) -> set[tuple[int, int]]:
        """Release patterns: from the event that orders what came before it to the write that others observe."""
        found = set()
        for a, b in itertools.product(self.events, self.writes):
            if b.thread < 0 or not b.strong:
                continue
            later = (a.index, b.index) in self.order
            if a.op.kind == "write" and a.op.order == "release" and (a is b or (later and a.op.place == b.op.place)):
                found.add((a.index, b.index))
            if a.op.kind == "fence" and later and a.op.order == "acq_rel":
                found.add((a.index, b.index))
        return found

    def _acquires(self) -> set[tuple[int, int]]:
        found = set()
        for a, b in itertools.product(self.reads, self.events):
            if not a.strong:
                continue
            later = (a.index, b.index) in self.order
            if b.op.kind == "read" and b.op.order == "acquire" and (a is b or (later and a.op.place == b.op.place)):
                found.add((a.index, b.index))
            if b.op.kind == "fence" and later:
                found.add((a.index, b.index))
        return found

    def executions(self) -> Iterator[dict[str, int]]:
        """The results of every execution that the axioms allow."""
        events, order = self.events, self.order
        barriers = {
            (a.index, b.index)
            for a, b in itertools.permutations(events, 2)
            if a.op.kind == b.op.kind == "barrier" and a.op.place == b.op.place and a.block == b.block
        }
        initial = {(w.index, e.index) for w in self.writes if w.thread < 0 for e in events if e.thread >= 0}
        depends, releases, acquires = self._dependencies(), self._releases(), self._acquires()
        for sources in itertools.product(*[[w for w in self.writes if w.op.place == r.op.place] for r in self.reads]):
            reads_from = {(w.index, r.index) for w, r in zip(sources, self.reads, strict=True)}
            if cyclic(reads_from | depends):  # no values out of thin air
                continue
            observed = {
                (w.index, r.index)
                for w, r in zip(sources, self.reads, strict=True)
                if w.thread >= 0 and self._morally_strong(w, r)
            }
            synchronised = {
                (a, b)
                for a, b in then(then(releases, observed), acquires)
                if events[a].strong
                and events[b].strong
                and events[a].includes(events[b])
                and events[b].includes(events[a])
            }
            base = closure(order | synchronised | barriers | initial)
            cause = base | then(observed, base)
            if any(self._fits(reads_from, coherence, cause, sources) for coherence in self._coherences()):
                yield {r.op.into: w.op.value for w, r in zip(sources, self.reads, strict=True)}

    def _coherences(self) -> Iterator[set[tuple[int, int]]]:
        """Every order of the writes to each location, the initial one first."""
        by_place = [[w for w in self.writes if w.op.place == place] for place in self.initial]
        orders = [
            [[*(w for w in ws if w.thread < 0), *p] for p in itertools.permutations([w for w in ws if w.thread >= 0])]
            for ws in by_place
        ]
        for chosen in itertools.product(*orders):
            yield {(a.index, b.index) for one in chosen for a, b in itertools.combinations(one, 2)}

    def _fits(
        self,
        reads_from: set[tuple[int, int]],
        coherence: set[tuple[int, int]],
        cause: set[tuple[int, int]],
        sources: Sequence[Event],
    ) -> bool:
        events = self.events
        for a, b in cause:
            both = events[a].op.kind == events[b].op.kind == "write" and events[a].op.place == events[b].op.place
            if both and (b, a) in coherence:
                return False
        overwritten = {
            (r.index, later)
            for w, r in zip(sources, self.reads, strict=True)
            for w2, later in coherence
            if w2 == w.index
        }
        if any((b, a) in reads_from or (b, a) in overwritten for a, b in cause):  # causality
            return False
        communication = {
            (a, b) for a, b in reads_from | coherence | overwritten if self._morally_strong(events[a], events[b])
        }
        at_one_place = {(a, b) for a, b in self.order if events[a].op.place == events[b].op.place != ""}
        return not cyclic(communication | at_one_place)


def allowed(program: Program, **results: int) -> bool:
    """Whether some execution gives these results."""
    return any(all(found[name] == value for name, value in results.items()) for found in program.executions())
