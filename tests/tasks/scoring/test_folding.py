"""Folding makes look-alikes equal and never one number of two; scorers see folded texts, public rules do not."""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_forget.tasks.scoring.choice_or_text import ChoiceOrTextScorer
from lmm_forget.tasks.scoring.clock import ClockTimeScorer
from lmm_forget.tasks.scoring.exact import ExactMatchScorer, YesNoScorer
from lmm_forget.tasks.scoring.letters import OptionLetterScorer
from lmm_forget.tasks.scoring.numbers import WholeNumberScorer, extract_single_number
from lmm_forget.tasks.scoring.text_match import ANLSScorer, ContainsTextScorer, RelaxedAccuracyScorer, parse_number
from lmm_forget.tasks.scoring.unicode_folding import fold_unicode
from lmm_forget.tasks.scoring.vqa import VQAAccuracyScorer
from lmm_forget.tasks.scoring.yes_no_or_open import YesNoOrOpenScorer
from lmm_forget.tasks.task import Sample, Scorer

MINUS = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u02d7\u2796\ufe63\uff0d\u207b"
PLUS = "+\u2795\ufe62\uff0b"
ZEROS = [chr(code) for code in range(sys.maxunicode) if unicodedata.decimal(chr(code), -1) == 0]
FRACTIONS = {c: Fraction(unicodedata.numeric(c)).limit_denominator(10) for c in "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒↉"}
RAISED, LOWERED, CIRCLED = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉", "⓪①②③④⑤⑥⑦⑧⑨"
POINTS, COMMAS = ".\uff0e\u2024\u066b", ",\uff0c\u066c"
STOPS, SEPARATORS = "\u3002\uff61\ufe12\u06d4", "\u060c\u3001\uff64\ufe51\ufe11"  # in no number


def value_of(text: str) -> Fraction | None:
    """What number a raw text is, read sign by sign from the Unicode tables; None if it is none.

    Knows decimals with commas between groups of three, a/b, mixed numbers, powers, bases and circled figures.
    """
    sign = 1
    if text and text[0] in MINUS + PLUS:
        sign, text = (-1 if text[0] in MINUS else 1), text[1:]
    number = _unsigned(text)
    return None if number is None else sign * number


def _unsigned(text: str) -> Fraction | None:
    if len(text) == 1 and text in CIRCLED:
        return Fraction(unicodedata.digit(text))
    if text and text[-1] in FRACTIONS:
        whole = text[:-1].rstrip(" ")
        return (
            FRACTIONS[text[-1]] + Fraction(int(whole))
            if whole.isdecimal()
            else (FRACTIONS[text] if len(text) == 1 else None)
        )
    for slash in "/\u2044\u2215":
        if slash in text:
            above, _, below = text.partition(slash)
            whole, _, above = above.rpartition(" ")
            if above.isdecimal() and below.isdecimal() and int(below) and (whole.isdecimal() or not whole):
                return Fraction(int(whole or 0)) + Fraction(int(above), int(below))
            return None
    for digits, sign in ((RAISED, "^"), (LOWERED, "_")):
        body = text.rstrip(digits)
        index = text[len(body) :]
        if not index and sign in text:
            body, _, index = text.partition(sign)
        if index:
            figure = "".join(str(unicodedata.digit(c)) if c in digits else c for c in index)
            return _with_index(body, figure, sign)
    return _decimal(text)


def _with_index(body: str, index: str, sign: str) -> Fraction | None:
    base = _decimal(body)
    if base is None or not index.isdecimal() or int(index) > 999:
        return None
    if sign == "^":
        return base ** int(index)
    # A number in base b is another number than that in base c: told apart by its digits and its base.
    return Fraction(10**9) + base * 1000 + int(index)


def _decimal(text: str) -> Fraction | None:
    plain = "".join("." if c in POINTS else "," if c in COMMAS else c for c in text)
    whole, point, part = plain.partition(".")
    groups = whole.split(",")
    if not all(group.isdecimal() for group in groups) or (point and not part.isdecimal()):
        return None
    if len(groups) > 1 and not (len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])):
        return None
    return Fraction(Decimal(plain.replace(",", "")))  # reads the digits of every script


ALPHABET = ["1", "2", "\uff12", "\u0662", "\U0001d7d0", "-", "\u2212", ".", ",", " ", "/", "\u2044", "^", "_"]
ALPHABET += ["½", "²", "¹", "₂", "②", "\u200b", "x"]


def test_no_two_numbers_of_up_to_four_signs_become_one() -> None:
    found: defaultdict[str, set[Fraction]] = defaultdict(set)
    read = 0
    for length in (1, 2, 3, 4):
        for signs in itertools.product(ALPHABET, repeat=length):
            text = "".join(signs)
            value = value_of(text.replace("\u200b", ""))
            if value is not None:
                found[fold_unicode(text)].add(value)
                read += 1
    assert read > 5_000
    assert {text: values for text, values in found.items() if len(values) > 1} == {}


@st.composite
def numbers(draw: st.DrawFn) -> str:
    """A number in some script, with some sign, in some format."""
    zero = draw(st.sampled_from(ZEROS))

    def digits(least: int, most: int) -> str:
        return "".join(chr(ord(zero) + int(d)) for d in str(draw(st.integers(least, most))))

    sign = draw(st.sampled_from(["", "", *MINUS, *PLUS]))
    whole = digits(1, 99)
    kind = draw(st.sampled_from(["whole", "decimal", "grouped", "fraction", "mixed", "power", "ratio", "circled"]))
    match kind:
        case "decimal":
            body = whole + draw(st.sampled_from(POINTS)) + digits(0, 99)
        case "grouped":
            body = whole + draw(st.sampled_from(COMMAS)) + digits(100, 999)
        case "fraction":
            body = draw(st.sampled_from(sorted(FRACTIONS)))
        case "mixed":
            body = whole + draw(st.sampled_from(["", " "])) + draw(st.sampled_from(sorted(FRACTIONS)))
        case "power":
            body = whole + "".join(RAISED[int(d)] for d in str(draw(st.integers(2, 12))))
        case "ratio":
            body = whole + draw(st.sampled_from("/\u2044\u2215")) + digits(2, 19)
        case "circled":
            sign, body = "", draw(st.sampled_from(CIRCLED))
        case _:
            body = whole
    return sign + body


@settings(max_examples=200)
@given(text=numbers())
def test_what_is_read_of_a_number_is_its_value_or_nothing(text: str) -> None:
    value = value_of(text)
    assert value is not None, text
    for read in (parse_number(text), extract_single_number(text)):
        assert read is None or Fraction(read) == value, text
    if value.denominator == 1 and text.lstrip(MINUS + PLUS).isdecimal():
        assert extract_single_number(text) == value


@settings(max_examples=100)
@given(
    groups=st.lists(st.integers(0, 999).map(str) | st.integers(0, 999).map("{:03}".format), min_size=2, max_size=4),
    zero=st.sampled_from(ZEROS),
    sign=st.sampled_from(STOPS + SEPARATORS),
    hidden=st.sampled_from(["", "\u200b", "\ufe0f"]),
)
def test_a_sign_between_items_joins_no_two_numbers(groups: list[str], zero: str, sign: str, hidden: str) -> None:
    written = ["".join(chr(ord(zero) + int(digit)) for digit in group) for group in groups]
    text = (hidden + sign + hidden).join(written)
    plain = "." if sign in STOPS else ","
    assert fold_unicode(text) == f"{plain} ".join(groups)
    joined = Sample("s", "i", (), "?", (plain.join(groups), "".join(groups)))
    for scorer in (ExactMatchScorer(), RelaxedAccuracyScorer(tolerance=0.0), YesNoOrOpenScorer()):
        assert scorer(text, joined)["value"] == 0.0, scorer
    assert parse_number(text) is None
    assert extract_single_number(text) in (None, *map(Decimal, groups))


@settings(max_examples=150)
@given(a=numbers(), b=numbers())
def test_different_numbers_never_score(a: str, b: str) -> None:
    asked = Sample("s", "i", (), "?", (a,))
    scorers: list[Scorer] = [
        ExactMatchScorer(),
        RelaxedAccuracyScorer(tolerance=0.0),
        VQAAccuracyScorer(),
        YesNoOrOpenScorer(),
    ]
    if (
        extract_single_number(a) is not None
        and extract_single_number(a) == extract_single_number(a).to_integral_value()
    ):  # type: ignore[union-attr]
        scorers += [WholeNumberScorer(), ChoiceOrTextScorer()]
    if value_of(a) != value_of(b):
        assert fold_unicode(a) != fold_unicode(b)
        for scorer in scorers:
            assert scorer(b, asked)["value"] == scorer(b, asked)["tolerant"] == 0.0, (scorer, a, b)


EDGES = (
    "".join(
        [
            *MINUS,
            *PLUS,
            *POINTS,
            *COMMAS,
            *RAISED,
            *LOWERED,
            *CIRCLED,
            *FRACTIONS,
            "\u2044\u215f\u00ad\u20e3\ufe0f",
        ]
    )
    + "1٢ａ⒈㎡㍘ªºⁿ™❶🅰🔟\u0301\u200d\u2062\u2028\u00a0´″é"
)


@settings(max_examples=300)
@given(text=st.text(max_size=30) | st.text(EDGES, max_size=8))
def test_folding_twice_is_folding_once(text: str) -> None:
    assert fold_unicode(fold_unicode(text)) == fold_unicode(text)


@given(text=st.text(st.characters(max_codepoint=127), max_size=60))
def test_plain_ascii_stays_as_it_is(text: str) -> None:
    assert fold_unicode(text) == text


DISGUISES: dict[str, str] = {
    "-": MINUS.replace("\u207b", ""),
    "'": "'\u2018\u2019\u201b\u2032\u02bc\uff07\u00b4",
    '"': '"\u201c\u201d\u201e\u2033\uff02\u00ab\u00bb',
    " ": " \u00a0\u2002\u2007\u2009\u200a\u202f\u3000",
    ".": POINTS,
    ",": COMMAS,
    ":": ":\uff1a\u2236",
    "%": "%\uff05\u066a",
    "/": "/\uff0f\u2215\u2044",
    "?": "?\uff1f\u061f",
    "*": "*\uff0a\u2217",
    "x": "xｘ\u00d7",
}
HIDDEN = ["", "", "", "", "\u200b", "\u200d", "\u2060", "\ufeff", "\ufe0f", "\u200e", "\u202c"]


@st.composite
def disguised(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> tuple[str, str]:
    """An ASCII text, and the same with look-alikes in it."""
    text = draw(texts)
    out = []
    for char, following in zip(text, f"{text} "[1:], strict=True):
        if char in ".," and not following.isdigit():
            apart = STOPS if char == "." else SEPARATORS
            out.append(draw(st.sampled_from(DISGUISES[char] + apart)))
        elif char.isdigit():
            out.append(chr(ord(draw(st.sampled_from(ZEROS))) + int(char)))
        elif char in DISGUISES:
            out.append(draw(st.sampled_from(DISGUISES[char])))
        elif char.isalpha() or char in "()[]!;=+":
            out.append(draw(st.sampled_from([char, chr(ord(char) + 0xFEE0)])))
        else:
            out.append(char)
        out.append(draw(st.sampled_from(HIDDEN)))
    return text, "".join(out)


@settings(max_examples=100)
@given(pair=disguised(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)))
def test_texts_that_look_the_same_become_the_same(pair: tuple[str, str]) -> None:
    text, other = pair
    assert fold_unicode(other) == text


BIRDS = ("red bird", "blue bird", "it's 3.5 x 2", "wren")
ASKED: list[tuple[Scorer, Sample]] = [
    (OptionLetterScorer(), Sample("s", "i", (), "?", ("B",), BIRDS)),
    (ExactMatchScorer(), Sample("s", "i", (), "?", ("it's red", "-3.5"))),
    (YesNoScorer(), Sample("s", "i", (), "?", ("no",))),
    (WholeNumberScorer(), Sample("s", "i", (), "?", ("-21",))),
    (ClockTimeScorer(), Sample("s", "i", (), "?", ("03:45",))),
    (ANLSScorer(), Sample("s", "i", (), "?", ("blue bird", "7 %"))),
    (RelaxedAccuracyScorer(), Sample("s", "i", (), "?", ("7 %", "-3.5"))),
    (YesNoOrOpenScorer(open="f1"), Sample("s", "i", (), "?", ("red wren, 3.5",))),
    (ContainsTextScorer(), Sample("s", "i", (), "?", ("3.5 x 2", "21"))),
    (ChoiceOrTextScorer(), Sample("s", "i", (), "Which?\nA. red bird\nB. it's 2", ("B",))),
    (VQAAccuracyScorer(), Sample("s", "i", (), "?", ("it's red", "-3.5"))),
]
SAID = st.lists(
    st.sampled_from(
        [
            *"B.():%7-",
            "yes",
            "no",
            "or",
            "Answer:",
            "**B**",
            "it's",
            "red",
            "bird",
            "wren",
            "-3.5",
            "21",
            "3:45",
            "x 2",
        ]
    ),
    max_size=5,
).map(" ".join)


@settings(max_examples=80)
@given(pair=disguised(SAID))
def test_no_score_depends_on_the_look_alike_that_was_printed(pair: tuple[str, str]) -> None:
    text, other = pair
    for scorer, asked in ASKED:
        assert scorer(other, asked) == scorer(text, asked), scorer


@settings(max_examples=20)
@given(data=st.data(), said=SAID)
def test_no_score_depends_on_the_look_alike_in_a_reference(data: st.DataObject, said: str) -> None:
    for scorer, asked in ASKED:
        answers = tuple(data.draw(disguised(st.just(answer)))[1] for answer in asked.answers)
        choices = asked.choices and tuple(data.draw(disguised(st.just(c)))[1] for c in asked.choices)
        other = Sample("s", "i", (), asked.question, answers, choices)
        assert scorer(said, other) == scorer(said, asked), (scorer, answers)


@settings(max_examples=80)
@given(pair=disguised(SAID), reference=SAID.filter(str.strip))
def test_strict_is_equality_up_to_case_blanks_and_look_alikes(pair: tuple[str, str], reference: str) -> None:
    text, other = pair
    same = " ".join(text.casefold().split()) == " ".join(reference.casefold().split())
    assert ExactMatchScorer()(other, Sample("s", "i", (), "?", (reference,)))["value"] == same
    letter = Sample("s", "i", (), "?", ("B",), BIRDS)
    assert OptionLetterScorer()(other, letter)["value"] == (text.strip() == "B")
    no = Sample("s", "i", (), "?", ("no",))
    for scorer in (YesNoScorer(), YesNoOrOpenScorer()):
        assert scorer(other, no)["value"] == (text.casefold().strip() == "no")


def test_public_rules_get_what_was_printed() -> None:
    asked = Sample("s", "i", (), "?", ("-5",))
    scores = RelaxedAccuracyScorer(compat="paper.chartqa")("\u22125", asked)
    assert scores == {"value": 1.0, "tolerant": 1.0, "compat": 0.0}
    scores = VQAAccuracyScorer(compat="paper.textvqa")("3.5", Sample("s", "i", (), "?", ("-3.5",) * 10))
    assert scores == {"value": 0.0, "tolerant": 0.0, "compat": 1.0}


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("5²", "5^2"),
        ("5²3", "5^{2}3"),
        ("5²³", "5^23"),
        ("10⁻³", "10^-3"),
        ("2ⁿ⁻¹", "2^{n-1}"),
        ("SO₄²⁻", "SO4^{2-}"),
        ("1ˢᵗ", "1st"),
        ("CO₂", "CO2"),
        ("log₂8", "log_{2}8"),
        ("10₂", "10_2"),
        ("5½", "5 1/2"),
        ("½5", "1/2 5"),
        ("½½", "1/2 1/2"),
        ("²⁄₃", "2/3"),
        ("⅟₃", "1/3"),
        ("⅟12", "1/12"),
        ("①②", "(1)(2)"),
        ("5①", "5(1)"),
        ("⒈5", "1. 5"),
        ("5㎡", "5m^2"),
        ("1\ufe0f\u20e32\ufe0f\u20e3", "(1)(2)"),
        ("🔟🅰\ufe0f", "(10)(A)"),
        ("\u00ad3.5 so\u00adft", "-3.5 soft"),
        ("2\u20623", "2 3"),
        ("25 ºC, Nº 5", "25 °C, No 5"),
        ("1\u202f234…", "1 234..."),
        ("Привет, naïve ﬁ", "Привет, naïve fi"),
    ],
)
def test_what_folding_writes(text: str, folded: str) -> None:
    assert fold_unicode(text) == folded
