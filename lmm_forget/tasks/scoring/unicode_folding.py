"""Fold Unicode look-alikes to one form: signs, dashes, quotes, spaces, digits, fractions and superscripts.

`fold_unicode` makes texts equal that look the same, or that differ only in how a keyboard, a font or a script writes
the same sign. It never merges two numbers: between a digit and a superscript, fraction or circled number beside it
comes a sign or a blank ("5²" is "5^2", "5½" is "5 1/2", "5①" is "5(1)"). ASCII text stays as it is. Letters are not
folded across scripts (Cyrillic "А" stays).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_LOOKALIKES: dict[str, str] = {
    "'": "\u2018\u2019\u201a\u201b\u2032\u2035\u00b4\u02b9\u02bb\u02bc\u02bd\u02c8\u2039\u203a\u275b\u275c",
    '"': "\u201c\u201d\u201e\u201f\u2033\u2036\u02ba\u00ab\u00bb\u275d\u275e\u301d\u301e\u301f",
    "-": "\u2212\u02d7\u2043\u2796\u23af",  # with every dash of category Pd but those below
    "~": "\u223c\u02dc\u301c\u3030",
    "+": "\u2795",
    "*": "\u2217\u204e\u066d\u26b9",
    "x": "\u00d7\u2715\u2716\u2a2f\u2a09",
    "/": "\u2044\u2215\u29f8",
    "\\": "\u2216\u29f5",
    "|": "\u2223",
    ":": "\u2236\ua789\ufe55",
    ",": "\u066c",
    ".": "\u066b",
    ";": "\u061b",
    "?": "\u061f",
    "%": "\u066a",
    "°": "\u02da\u2218",
    "·": "\u22c5\u2219\u2027",
    "...": "\u22ef",
    "'''": "\u2034",
    " ": "\u2800\u3164\uffa0\u2062\u2063\u2064",
    "\n": "\u2028\u2029",
}
_SEPARATORS = {"\u060c": ",", "\u3001": ",", "\ufe51": ",", "\u3002": ".", "\u06d4": "."}
"""Signs between items or after sentences that never occur inside a number."""
_SIGNS = {ord(sign): to for to, signs in reversed(_LOOKALIKES.items()) for sign in signs}
_VISIBLE_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u2062\u2063\u2064")
_SOFT_HYPHEN = "\u00ad"
_SOFT_MINUS = re.compile(r"(?<!\w)\u00ad(?=[.,\u066b]?\d)")
_ENCLOSED = re.compile(r"([A-Za-z\d#*])[\u20dd-\u20e0\u20e2-\u20e4]")  # "1" and a keycap
_ENCLOSING = dict.fromkeys([*range(0x20DD, 0x20E1), 0x20E2, 0x20E3, 0x20E4])
_DIGITS = frozenset("0123456789")
_BETWEEN = frozenset(".,/")
_EXPONENT = re.compile(r"[-+]?\d+|[A-Za-z]")

Piece = tuple[str, str]
"""A part of a folded text: (kind, text), with kind one of text, apart, separator, fraction, raised, lowered."""


def fold_unicode(text: str) -> str:
    """Fold look-alike characters to one form, in NFKC; folding a second time changes nothing.

    - digits of every script, also full-width and mathematical ones, become 0 to 9;
    - minus signs, hyphens and dashes become "-"; so does a soft hyphen before a number, other soft hyphens are removed;
    - quotes, primes and accents that stand alone become ' or "; full-width forms, ligatures and "…" become the ASCII
      characters that they look like;
    - blanks of every width become a blank; zero-width characters, direction marks and variation selectors are removed;
    - Arabic, Chinese and Japanese commas, stops and per cent signs become ASCII, with a blank before a digit for those
      that never occur inside a number ("、", "。"); "×" becomes "x";
    - superscripts become "^2" (letters alone: plain letters), subscripts become plain after a letter ("CO₂" is "CO2"),
      else "_2"; both in braces before a digit;
    - fractions become "1/2", with a blank beside a digit; circled and boxed numbers or letters become "(1)", "(A)".
    """
    return text if text.isascii() else _fold_non_ascii(text)


@lru_cache(maxsize=32768)
def _fold_non_ascii(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    if _SOFT_HYPHEN in text:
        text = _SOFT_MINUS.sub("-", text).replace(_SOFT_HYPHEN, "")
    text = _ENCLOSED.sub(r"(\1)", text).translate(_ENCLOSING)
    pieces: list[Piece] = []
    for char in text:
        if char < "\x80":
            pieces.append(("text", char))
        else:
            pieces += _PIECES[char]
    return unicodedata.normalize("NFKC", _join_pieces(_merge_fractions(_merge_raised_runs(pieces))))


class _InvisibleTable(dict[int, int | None]):
    """Code point -> None for invisible characters, which are removed, else itself; computed on first use."""

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        is_invisible = (
            unicodedata.category(char) == "Cf" and char not in _VISIBLE_FORMATS and char != _SOFT_HYPHEN
        ) or "VARIATION SELECTOR" in unicodedata.name(char, "")
        self[code] = None if is_invisible or char == "\u034f" else code
        return self[code]


class _PieceCache(dict[str, tuple[Piece, ...]]):
    """Character -> its folded pieces; computed on first use."""

    def __missing__(self, char: str) -> tuple[Piece, ...]:
        self[char] = pieces = _split_character(char)
        return pieces


_INVISIBLE = _InvisibleTable()
_PIECES = _PieceCache()


def _split_character(char: str) -> tuple[Piece, ...]:
    category = unicodedata.category(char)
    if char in _SEPARATORS:
        return (("separator", _SEPARATORS[char]),)
    if category == "Nd":
        return (("text", str(unicodedata.decimal(char))),)
    if ord(char) in _SIGNS:
        return (("text", _SIGNS[ord(char)]),)
    if category in ("Pd", "Zs"):
        return (("text", "-" if category == "Pd" else " "),)
    if label := _get_enclosed_label(char):
        return (("text", f"({label})"),)
    tag, _, parts = unicodedata.decomposition(char).rpartition("> ")
    if not tag:
        return (("text", char),)
    inner = [chr(int(code, 16)) for code in parts.split()]
    folded = "".join(text for part in inner for _, text in _PIECES[part])
    match tag:
        case "<fraction":
            return (("fraction", folded),)
        case "<super" | "<sub":
            return (("raised" if tag == "<super" else "lowered", folded),)
        case "<circle":
            return (("text", f"({folded})"),)
    kinds = {kind for part in inner for kind, _ in _PIECES[part]}
    if kinds != {"text"}:
        return tuple(piece for part in inner for piece in _PIECES[part])
    stands_apart = len(inner) > 1 and not _DIGITS.isdisjoint(folded) and not folded.startswith("(")
    return (("apart" if stands_apart else "text", folded),)


def _get_enclosed_label(char: str) -> str | None:
    """The number or letter of an enclosed character without a Unicode decomposition (❶, ➀, 🅐, 🅰); else None."""
    name = unicodedata.name(char, "")
    if "CIRCLED" in name and unicodedata.category(char) == "No" and not unicodedata.decomposition(char):
        return str(int(unicodedata.numeric(char)))
    if match := re.fullmatch(r"(?:NEGATIVE )?(?:CIRCLED|SQUARED) LATIN CAPITAL LETTER ([A-Z])", name):
        return match[1]
    return "10" if name == "KEYCAP TEN" else None


def _merge_raised_runs(pieces: list[Piece]) -> list[Piece]:
    """Merge neighbouring superscripts, and neighbouring subscripts."""
    merged: list[Piece] = []
    for kind, text in pieces:
        if merged and kind in ("raised", "lowered") and merged[-1][0] == kind:
            merged[-1] = (kind, merged[-1][1] + text)
        else:
            merged.append((kind, text))
    return merged


def _merge_fractions(pieces: list[Piece]) -> list[Piece]:
    """Replace fractions that are written as superscript and subscript ("²⁄₃", "⅟₃") by fraction pieces."""
    merged: list[Piece] = []
    for kind, text in pieces:
        if kind == "lowered" and text.isdecimal() and merged:
            if merged[-1] == ("fraction", "1/"):
                merged[-1] = ("fraction", f"1/{text}")
                continue
            if merged[-1] == ("text", "/") and len(merged) > 1:
                numerator_kind, numerator = merged[-2]
                if numerator_kind == "raised" and numerator.isdecimal():
                    merged[-2:] = [("fraction", f"{numerator}/{text}")]
                    continue
        merged.append((kind, text))
    return merged


def _join_pieces(pieces: list[Piece]) -> str:
    """Join the pieces to one text, with a sign or a blank between digits that are not one number."""
    joined = ""
    for i, (kind, text) in enumerate(pieces):
        following = "".join(next_text for _, next_text in pieces[i + 1 : i + 3])
        on_baseline = i + 1 < len(pieces) and pieces[i + 1][0] not in ("raised", "lowered")
        digit_next = on_baseline and following[:1] in _DIGITS
        if kind == "raised" and text == "o" and joined.rstrip()[-1:].isdecimal():
            joined += "°"  # "25 ºC"
        elif kind == "raised" and (text.strip("+-") == "" or (text.isalpha() and text not in ("n", "i"))):
            joined += text  # "Na⁺", "1ˢᵗ"
        elif kind == "lowered" and joined[-1:].isalpha() and not digit_next:
            joined += text
        elif kind in ("raised", "lowered"):
            sign = "^" if kind == "raised" else "_"
            needs_no_braces = _EXPONENT.fullmatch(text) and not digit_next
            joined += f"{sign}{text}" if needs_no_braces else f"{sign}{{{text}}}"
        elif kind == "separator":
            joined += f"{text} " if digit_next else text
        elif kind in ("fraction", "apart"):
            joined += " " if joined and (joined[-1].isnumeric() or joined[-1] in ".,/}") else ""
            number_follows = digit_next or (on_baseline and following[:1] in _BETWEEN and following[1:2] in _DIGITS)
            joined += text + (" " if number_follows and not text.endswith("/") else "")
        else:
            joined += text
    return joined
