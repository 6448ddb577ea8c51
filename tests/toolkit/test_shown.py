"""Values from outside in messages: one line, without signs that a terminal would obey, and never long."""

import sys
import unicodedata

import numpy as np
import pytest

from seqcls_fast.toolkit._terminal import escaped, kind_of, shown

# Control characters of both blocks, direction marks, joiners, tags, fillers, other spaces, a lone surrogate.
HIDDEN = "\x00\x07\t\n\r\x1b\x7f\x85\x9b\xad"
HIDDEN += "\u034f\u115f\u180e\u200b\u200d\u200e\u2028\u202e\u2066\u2800\u3000\ufeff\U000e0041\udcff"


@pytest.mark.parametrize("sign", HIDDEN, ids=lambda sign: f"U+{ord(sign):04X}")
def test_what_cannot_be_seen_is_written_out(sign: str) -> None:
    for text in (escaped(f"a{sign}b"), shown(f"a{sign}b"), shown([f"a{sign}b"]), shown({f"a{sign}b": 1})):
        assert sign not in text
        assert f"a{ascii(sign)[1:-1]}b" in text


def test_no_control_or_format_character_is_left() -> None:
    signs = [chr(code) for code in range(sys.maxunicode + 1)]
    hidden = "".join(sign for sign in signs if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp"))
    assert not set(escaped(hidden, 10**6)) & set(hidden)
    assert not set(shown(hidden, 10**6)) & set(hidden)


@pytest.mark.parametrize("text", ["plain", "[red]x[/red]", "größer", "汉字", "עברית", "❤️", "a b", r"C:\new", "it's"])
def test_what_can_be_seen_stays(text: str) -> None:
    assert escaped(text) == text == escaped(escaped(text))
    assert shown(text) == repr(text)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        "\x1b" * 10**6,
        b"x" * 10**6,
        ["x" * 10**6] * 1000,
        dict.fromkeys(range(10**5), "x" * 1000),
        {"x" * 10**6: 1},
        np.zeros((1000, 1000)),
        np.array(["x" * 10**5]),
        np.str_("x" * 10**5),
        10**5000,
        type("T" * 10**5, (), {})(),
    ],
    ids=lambda value: type(value).__name__[:20],
)
def test_what_is_long_is_cut(value: object) -> None:
    assert len(shown(value)) <= 80
    assert len(shown(value, 30)) <= 30
    assert not isinstance(value, str) or len(escaped(value)) <= 400
    assert shown(value).isprintable()


def test_both_ends_of_a_long_name_are_shown() -> None:
    assert escaped("folder/" + "x" * 1000 + ".csv", 30) == "folder/xxxxxxx...xxxxxxxxx.csv"


def test_a_value_that_cannot_say_what_it_is_is_named_by_its_type() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert shown(Mute()).startswith("<Mute")
    assert kind_of(Mute()) == "Mute"
