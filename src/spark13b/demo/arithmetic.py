"""Addition of two numbers from 0 to 10, and the subtractions that undo it: what Chinese schools call 20以内加减法.

Sums in figures are spaced, `3 + 5 = 8`: a tokenizer makes one piece of `3+5=8`, and a sum it has no such piece for
looks like nothing seen before. `3+5=?` is asked, too, for users will, but never held out, as it is `3 + 5 = ?` again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spark13b.demo.prompt import Language, Prompt, Statement

LARGEST = 10

# (wording, least first number, least second number): nobody eats 0 apples, and "1 apples" is no English
_ADD: dict[Language, tuple[tuple[str, int, int], ...]] = {
    "zh": (
        ("{a}加{b}等于几？", 0, 0),
        ("{a}加上{b}是多少？", 0, 0),
        ("请算一算{a}加{b}得几。", 0, 0),
        ("{a}和{b}的和是多少？", 0, 0),
        ("{a}与{b}相加得几？", 0, 0),
        ("计算{a}加{b}的结果。", 0, 0),
        ("我有{a}个苹果，又买了{b}个，一共有多少个？", 1, 1),
    ),
    "en": (
        ("What is {a} plus {b}?", 0, 0),
        ("How much is {a} and {b}?", 0, 0),
        ("Add {a} and {b}.", 0, 0),
        ("What is the sum of {a} and {b}?", 0, 0),
        ("{a} plus {b} equals what?", 0, 0),
        ("{a} + {b} = ?", 0, 0),
        ("{a}+{b}=?", 0, 0),
        ("I have {a} apples and buy {b} more. How many are there?", 2, 1),
    ),
}
_SUBTRACT: dict[Language, tuple[tuple[str, int, int], ...]] = {
    "zh": (
        ("{a}减{b}等于几？", 0, 0),
        ("{a}减去{b}是多少？", 0, 0),
        ("请算一算{a}减{b}得几。", 0, 0),
        ("{a}与{b}的差是多少？", 0, 0),
        ("从{a}里去掉{b}还剩几？", 0, 0),
        ("计算{a}减{b}的结果。", 0, 0),
        ("我有{a}个苹果，吃了{b}个，还剩多少个？", 1, 1),
    ),
    "en": (
        ("What is {a} minus {b}?", 0, 0),
        ("What is left when you subtract {b} from {a}?", 0, 0),
        ("Take {b} away from {a}.", 0, 0),
        ("What is the difference between {a} and {b}?", 0, 0),
        ("{a} minus {b} equals what?", 0, 0),
        ("{a} - {b} = ?", 0, 0),
        ("{a}-{b}=?", 0, 0),
        ("I have {a} apples and eat {b}. How many are left?", 2, 1),
    ),
}
_ADD_STATEMENTS: tuple[tuple[Language, str], ...] = (
    ("zh", "{a}加{b}等于{c}。"),
    ("zh", "{a}加上{b}得{c}。"),
    ("zh", "{a} + {b} = {c}"),
    ("en", "{a} plus {b} is {c}."),
    ("en", "{a} plus {b} equals {c}."),
)
_SUBTRACT_STATEMENTS: tuple[tuple[Language, str], ...] = (
    ("zh", "{a}减{b}等于{c}。"),
    ("zh", "{a}减去{b}得{c}。"),
    ("zh", "{a} - {b} = {c}"),
    ("en", "{a} minus {b} is {c}."),
    ("en", "{a} minus {b} equals {c}."),
)


@dataclass(frozen=True, slots=True)
class Sum:
    """`a` sign `b` = `c`, all from 0 to 20."""

    a: int
    sign: str
    b: int
    c: int

    def __str__(self) -> str:
        return f"{self.a}{self.sign}{self.b}"


def sums() -> Iterator[Sum]:
    """The 121 additions and the 121 subtractions."""
    for a in range(LARGEST + 1):
        for b in range(LARGEST + 1):
            yield Sum(a, "+", b, a + b)
    for c in range(LARGEST + 1):
        for b in range(LARGEST + 1):
            yield Sum(c + b, "-", b, c)


def arithmetic_prompts() -> Iterator[Prompt]:
    """Every sum in every wording. In both languages the answer is the sum in figures, or its result alone."""
    for entry in sums():
        for language, wordings in (_ADD if entry.sign == "+" else _SUBTRACT).items():
            for wording, least_a, least_b in wordings:
                if entry.a >= least_a and entry.b >= least_b:
                    yield Prompt(
                        wording.format(a=entry.a, b=entry.b),
                        (f"{entry.a} {entry.sign} {entry.b} = {entry.c}", str(entry.c)),
                        "arithmetic",
                        language,
                        "addition" if entry.sign == "+" else "subtraction",
                        (str(entry), wording),
                    )


def arithmetic_statements() -> Iterator[Statement]:
    """Every sum as a sentence, in words and in figures."""
    for entry in sums():
        for language, wording in _ADD_STATEMENTS if entry.sign == "+" else _SUBTRACT_STATEMENTS:
            yield Statement(wording.format(a=entry.a, b=entry.b, c=entry.c), language, str(entry))
