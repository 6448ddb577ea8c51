"""The exchanges of csrc/cuda/kernels as litmus tests: what would be wrong is a result that PTX's memory model forbids.

Each has variants with a fault (a weaker order, a fence too few, a scope too small), whose wrong result the model must
allow, so that the test would notice the fault. The first tests hold the model to results that the literature agrees on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from ptx.memory_model import Program, Thread, allowed, barrier, fence, read, write

# -- the model --------------------------------------------------------------------------------------------------------


def message(order_out: str, order_in: str, scope: str = "gpu") -> bool:
    """Whether a reader may see the flag and not the data."""
    sender = Thread(0, (write("data", 1), write("flag", 1, order_out, scope)))
    reader = Thread(1, (read("flag", "f", order_in, scope), read("data", "d")))
    return allowed(Program({"data": 0, "flag": 0}, [sender, reader]), f=1, d=0)


def test_message_passing() -> None:
    assert not message("release", "acquire")
    assert message("relaxed", "acquire")
    assert message("release", "relaxed")
    assert message("release", "acquire", "cta")  # the reader is in another block
    assert message("release", "acquire", "cluster") is False
    both = [
        Thread(0, (write("data", 1), fence("gpu"), write("flag", 1, "relaxed"))),
        Thread(1, (read("flag", "f", "relaxed"), fence("gpu"), read("data", "d"))),
    ]
    assert not allowed(Program({"data": 0, "flag": 0}, both), f=1, d=0)


@pytest.mark.parametrize("depends", [False, True])
def test_load_buffering(depends: bool) -> None:
    threads = [
        Thread(0, (read("x", "a", "relaxed"), write("y", 1, "relaxed")), depends_on=("a",) if depends else ()),
        Thread(1, (read("y", "b", "relaxed"), write("x", 1, "relaxed")), depends_on=("b",) if depends else ()),
    ]
    assert allowed(Program({"x": 0, "y": 0}, threads), a=1, b=1) is not depends


def test_store_buffering_and_one_order_for_a_location() -> None:
    threads = [
        Thread(0, (write("x", 1, "relaxed"), read("y", "a", "relaxed"))),
        Thread(1, (write("y", 1, "relaxed"), read("x", "b", "relaxed"))),
    ]
    assert allowed(Program({"x": 0, "y": 0}, threads), a=0, b=0)
    threads = [
        Thread(0, (write("x", 1, "relaxed"),)),
        Thread(1, (read("x", "a", "relaxed"), read("x", "b", "relaxed"))),
    ]
    program = Program({"x": 0}, threads)
    assert not allowed(program, a=1, b=0)
    assert all(allowed(program, a=a, b=b) for a, b in ((0, 0), (0, 1), (1, 1)))


def test_barrier_of_a_block() -> None:
    for meets in (True, False):
        first = (write("x", 1), barrier("b")) if meets else (write("x", 1),)
        second = (barrier("b"), read("x", "a")) if meets else (read("x", "a"),)
        assert allowed(Program({"x": 0}, [Thread(0, first), Thread(0, second)]), a=0) is not meets


# -- cluster.cuh ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """How a block learns of what st.async brought it."""

    completes: str = "release"  # the order of the complete_tx, whose scope is the cluster
    wait_scope: str = "cluster"  # of the relaxed try_wait
    fence_scope: str | None = "cluster"  # of the fence.acquire behind it

    def wait(self, barrier: str, into: str) -> tuple:
        after = () if self.fence_scope is None else (fence(self.fence_scope, "acquire"),)
        return (read(barrier, into, "relaxed", self.wait_scope), *after)

    def sent(self, place: str, value: int, barrier: str) -> tuple:
        return (write(place, value), write(barrier, 1, self.completes, "cluster"))


WEAK_ARRIVALS = [
    Arrival(completes="relaxed"),
    Arrival(wait_scope="cta"),
    Arrival(fence_scope=None),
    Arrival(fence_scope="cta"),
]


def operand_arrives(how: Arrival) -> bool:
    """Whether a block may wait for an operand and then read what was there before."""
    threads = [Thread(0, how.sent("operand", 1, "full")), Thread(1, (*how.wait("full", "f"), read("operand", "o")))]
    return not allowed(Program({"operand": 0, "full": 0}, threads), f=1, o=0)


def test_operand_has_arrived_after_the_wait() -> None:
    assert operand_arrives(Arrival())
    assert [how for how in WEAK_ARRIVALS if operand_arrives(how)] == []


def is_read_before_it_is_overwritten(
    how: Arrival, reads_first: bool = True, waits: bool = True, counts_all: bool = True, tied: str = "issued"
) -> bool:
    """Block 0 reads its operand of step s in warp 0 and sends its slices of s + 1; block 1 waits for both slices, and
    sends its slice of s + 2, which overwrites what warp 0 has read. May warp 0 read the later value?

    tied: whether a send comes after what its thread did before ("issued"), or only depends on the values it read.
    """
    look = read("old", "o")
    issued, by_value = tied == "issued", ("o",) if reads_first else ()
    answered = (*how.wait("full0", "f0"), *(how.wait("full1", "f1") if counts_all else ())) if waits else ()
    if not counts_all:
        answered = how.wait("full1", "f1")
    names = tuple(op.into for op in answered if op.kind == "read")
    values = (read("slice0", "v"),) if waits and counts_all else ()
    threads = [
        Thread(0, (look,)),
        Thread(
            0, how.sent("slice0", 1, "full0"), issued_by=(0, 1) if issued and reads_first else None, depends_on=by_value
        ),
        Thread(0, how.sent("slice1", 1, "full1")),
        Thread(1, (*answered, *values)),
        Thread(
            1,
            how.sent("old", 2, "full2"),
            issued_by=(3, len(answered) + len(values)) if issued else None,
            depends_on=(*names, *(op.into for op in values)),
        ),
    ]
    places = dict.fromkeys(("old", "slice0", "slice1", "full0", "full1", "full2"), 0)
    wanted = {"o": 2} | dict.fromkeys(names, 1) | dict.fromkeys((op.into for op in values), 1)
    return not allowed(Program(places, threads), **wanted)


def test_two_halves_of_the_operand_are_enough() -> None:
    """By the order in which sends are issued, and also by the values alone: what a send of step s + 2 holds depends on
    the slices of s + 1, and those on the operand of s."""
    assert is_read_before_it_is_overwritten(Arrival())
    assert is_read_before_it_is_overwritten(Arrival(), tied="values")
    assert not is_read_before_it_is_overwritten(Arrival(), reads_first=False)
    assert not is_read_before_it_is_overwritten(Arrival(), waits=False)
    assert not is_read_before_it_is_overwritten(Arrival(), counts_all=False)  # a phase that ends some bytes too early


def first_meeting_orders(arrive: str, wait: str, scope: str = "cluster") -> bool:
    """Whether an mbarrier is initialised before another block's bytes are counted by it."""
    threads = [
        Thread(0, (write("full", 1), write("met", 1, arrive, scope))),
        Thread(1, (read("met", "m", wait, scope), read("full", "f"))),
    ]
    return not allowed(Program({"full": 0, "met": 0}, threads), m=1, f=0)


def test_the_meeting_before_the_first_step() -> None:
    assert first_meeting_orders("release", "acquire")
    assert not first_meeting_orders("relaxed", "acquire")
    assert not first_meeting_orders("release", "relaxed")
    assert not first_meeting_orders("release", "acquire", "cta")


# -- grid.cuh ---------------------------------------------------------------------------------------------------------

STEP, LATER = 1, 2  # what a word of one half holds: the tag of step s, and that of step s + 2


def test_a_word_holds_its_tag() -> None:
    """Data and tag are one word, so that a reader that sees the tag has the data. In two words they need an order."""
    for order, wrong in (("relaxed", True), ("release", False)):
        poster = Thread(0, (write("data", 1, "relaxed"), write("tag", 1, order)))
        reader = Thread(1, (read("tag", "t", "acquire" if order == "release" else order), read("data", "d", "relaxed")))
        assert allowed(Program({"data": 0, "tag": 0}, [poster, reader]), t=1, d=0) is wrong


@dataclass(frozen=True)
class Words:
    post: str = "relaxed"
    poll: str = "relaxed"
    scope: str = "gpu"
    peeks: int = 2  # polls of the word
    leaves_with: int = STEP  # the tag with which the reader's loop ends
    answers: bool = True  # whether the other block waits for this one before it overwrites the word


def word_is_lost(how: Words) -> bool:
    """Block 0 polls a word of step s; its threads meet, and another one posts the block's word of s + 1. Block 1 polls
    that, its threads meet, and another one posts its word of s + 2 where the first was. May block 0 see that one?

    A thread that leaves its loop has seen the tag of step s. The question is whether any poll saw the later tag.
    """
    polls = [read("word", f"p{i}", how.poll, how.scope) for i in range(how.peeks)]
    answer = (read("answer", "a", how.poll, how.scope), barrier("1")) if how.answers else (barrier("1"),)
    threads = [
        Thread(0, (*polls, barrier("0"))),
        Thread(0, (barrier("0"), write("answer", 1, how.post, how.scope))),
        Thread(1, answer),
        Thread(1, (barrier("1"), write("word", LATER, how.post, how.scope))),
    ]
    program = Program({"word": STEP, "answer": 0}, threads)
    left = {f"p{how.peeks - 1}": how.leaves_with} | ({"a": 1} if how.answers else {})
    if how.leaves_with == LATER:
        return allowed(program, **left)
    return any(allowed(program, **left, **{f"p{i}": LATER}) for i in range(how.peeks - 1))


def test_a_word_is_not_lost() -> None:
    """Relaxed words suffice, because a reader leaves its loop with the tag of its own step alone. The model has no
    order across the threads of a block here, so that a poll in another order might see the later word; but a thread
    that saw it can see the earlier one no more (one order for a location), would not leave, and block 1 would wait."""
    assert not word_is_lost(Words())
    assert not word_is_lost(Words(peeks=3))


def test_what_would_lose_a_word() -> None:
    assert word_is_lost(Words(leaves_with=LATER))  # a reader that takes a later tag too
    assert not word_is_lost(Words("release", "acquire", leaves_with=LATER))  # for which these orders would be needed
    assert word_is_lost(Words("release", "relaxed", leaves_with=LATER))
    assert word_is_lost(Words("relaxed", "acquire", leaves_with=LATER))
    assert word_is_lost(Words("release", "acquire", "cta", leaves_with=LATER))
    assert word_is_lost(Words("weak", "weak"))  # weak accesses have no order for a location
    assert word_is_lost(Words(scope="cta"))
    assert word_is_lost(Words("release", "acquire", answers=False, leaves_with=LATER))


def test_both_sides_need_an_order() -> None:
    how = Words()
    assert word_is_lost(replace(how, post="weak"))
    assert word_is_lost(replace(how, scope="cluster")) is False  # the blocks of this test share a cluster
