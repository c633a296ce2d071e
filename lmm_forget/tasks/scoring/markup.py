"""Remove what models write around an answer: Markdown, LaTeX, tags, and lead-ins such as "the answer is".

Only tolerant scores use this module; strict scores compare the text as it is.
"""

from __future__ import annotations

import html
import re

from lmm_forget.tasks.scoring.unicode_folding import fold_unicode

MAX_ANSWER_LENGTH = 4000
"""How many characters of an answer a tolerant score reads."""
MAX_MARKUP_DEPTH = 6
"""How many nested layers of markup are removed."""

_MARK = re.compile(r"[*_`$\\<#>•^]")
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>|^.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_TAGGED = re.compile(
    r"<(?:final_?)?answer>(.*?)</(?:final_?)?answer>|<\|begin_of_box\|>(.*?)<\|end_of_box\|>",
    re.DOTALL | re.IGNORECASE,
)
_JSON = re.compile(r"""["'](?:final_?)?answer["']\s*:\s*(?:"([^"]*)"|'([^']*)'|([^\s,{}"']+))""", re.IGNORECASE)
_BOX = re.compile(r"(?:\\f?box(?:ed)?|\x08oxed|(?<!\w)boxed)\s*\{")  # "\b" may have become a control character
_BLANKS = re.compile(r"\s+")
_BREAK = re.compile(r"</?(?:br|p|div|li|ul|ol|h[1-6])\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:b|strong|i|em|u|span|code|mark|center|font|s|answer)\b[^<>]*>"
    r"|<\|[^|<>]*\|>|<(?:eos|end_of_turn)>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*$", re.MULTILINE)
_LINE_START = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]*(?![ \t\d])|[-*•][ \t]+(?![ \t\d]))+", re.MULTILINE)
_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf)?|emph|math(?:rm|bf|it|sf|tt|bb)|operatorname|underline|mbox|bm|boldsymbol)"
    r"\s*\{([^{}]*)\}"
)
_DISPLAY = re.compile(r"\$\$([^$]+)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_INLINE = re.compile(r"(?<![\w\\$])\$(?=\S)([^$\n]*?)(?<=\S)\$(?![\w$])")  # not the "$" of "$5 and $6"
_INDEX = re.compile(r"(?<=[A-Za-z])_\{?(\d+)\}?(?!\d)")
_STARS = re.compile(r"(?<![\w*])(\*{1,3})(?=\S)([^\n]{1,300}?)(?<=\S)\1(?![\w*])")
_LINES = re.compile(r"(?<!\w)(_{1,3})(?=[^\s_])([^\n]{1,300}?)(?<=[^\s_])\1(?!\w)")
_LOOSE = re.compile(r"(?<!\w)\*{2,}|\*{2,}(?!\w)")
_SYMBOLS = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "x"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\sqrt\s*\{([^{}]*)\}"), r"√\1"),
    (re.compile(r"<sup>\s*([^<>]*?)\s*</sup>"), r"^{\1}"),
    (re.compile(r"(?<=[A-Za-z])<sub>\s*(\d+)\s*</sub>(?!\d)"), r"\1"),
    (re.compile(r"<sub>\s*([^<>]*?)\s*</sub>"), r"_{\1}"),
    (re.compile(r"\^\s*\{\s*([-+]?\w+)\s*\}(?!\d)"), r"^\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:[,;:! ]|quad(?![A-Za-z])|left(?![A-Za-z])|right(?![A-Za-z]))"), " "),
    (re.compile(r"\\([^\w\s])"), r"\1"),
)
_ANNOUNCED = re.compile("[Aa](?:ns|NS)|[Ss](?:olution|OLUTION)|[Rr]esponse|答案")
_DECLARED = re.compile(
    r"(?:\b(?:answer|ans\.?|solution|response)\b|答案)(?:\s+to\s+(?:the|this)\s+question)?"
    r"(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b(?!\s+(?:not|n't)\b)\s*:?|\s*[:=是]|\s+-\s)\s*(\S[^\n]*)",
    re.IGNORECASE,
)


def truncate_middle(text: str) -> str:
    """Keep only the start and the end of a text, at word boundaries, if it exceeds `MAX_ANSWER_LENGTH` characters."""
    if len(text) <= MAX_ANSWER_LENGTH:
        return text
    first, last = text[: MAX_ANSWER_LENGTH // 2], text[-(MAX_ANSWER_LENGTH // 2) :]
    first = first[: len(first) - len(_BLANKS.split(first)[-1])]
    return f"{first}\n{last[len(_BLANKS.split(last, maxsplit=1)[0]) :]}"


def strip_markup(text: str) -> str:
    """Apply `fold_unicode` and remove Markdown emphasis, code marks, headings, bullets, LaTeX and HTML markup.

    "**D**", code marks around D, "$D$", r"\\text{D}" and "<b>D</b>" all become "D"; "$5 and $6", "2*3*4", "2**3" stay.
    """
    text = fold_unicode(text)
    if "&" in text and ";" in text:
        text = fold_unicode(html.unescape(text))
    if not _may_have_markup(text):
        return text
    text = _TAG.sub("", _BREAK.sub("\n", _FENCE.sub("", text))).replace("`", "")
    for _ in range(MAX_MARKUP_DEPTH):  # from the innermost layer outwards
        previous = text
        text = _FRACTION.sub(lambda m: f"{m[1]}{' ' if m[1] else ''}{m[2]}/{m[3]}", text)
        text = _COMMAND.sub(r"\1", text)
        text = _DISPLAY.sub(lambda m: _inline_subscripts(m[1] or m[2] or m[3]), text)
        text = _INLINE.sub(lambda m: _inline_subscripts(m[1]), text)
        text = _LINES.sub(r"\2", _STARS.sub(r"\2", text))
        if text == previous:
            break
    for pattern, replacement in _SYMBOLS:
        text = pattern.sub(replacement, text)
    return _LOOSE.sub("", _LINE_START.sub("", text))


def _inline_subscripts(text: str) -> str:
    """Write the subscripts of a formula on the line: "H_2O" becomes "H2O"."""
    return _INDEX.sub(r"\1", text)


def _may_have_markup(text: str) -> bool:
    """A quick test whether a text may contain markup."""
    return _MARK.search(text) is not None or "- " in text


def extract_final_answers(text: str) -> tuple[str, ...]:
    """The parts that a text marks as its answer: all `<answer>` tags, else "answer" in JSON, else all boxes.

    Without such marks it is the whole text. Markup and the content of `<think>` tags are removed.
    """
    text = fold_unicode(text)
    if not (_may_have_markup(text) or any(sign in text for sign in ("box", "\x08", "{", "&"))):
        return (text,)
    if "<" in text:
        text = _THOUGHTS.sub("", text)
        if tagged := [m[1] or m[2] or "" for m in _TAGGED.finditer(text)]:
            return tuple(part for content in tagged for part in extract_final_answers(content))
    if "{" in text and (json_answers := [m[1] or m[2] or m[3] or "" for m in _JSON.finditer(text)]):
        return tuple(map(strip_markup, json_answers))
    return tuple(strip_markup(part) for part in _extract_boxes(text) or (text,))


def extract_stated_answers(text: str) -> tuple[str, ...]:
    """The parts after "the answer is" or "Answer:"; without such a lead-in, `extract_final_answers`."""
    parts = extract_final_answers(text)
    announced_answers = [match[1] for part in parts if _ANNOUNCED.search(part) for match in _DECLARED.finditer(part)]
    return tuple(announced_answers) or parts


def _extract_boxes(text: str) -> list[str]:
    r"""The content of every outermost \boxed{…}; an unclosed box extends to the end of the text."""
    contents: list[str] = []
    end = 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            continue
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        contents.append(_BOX.sub("", text[match.end() : end - (depth == 0)]))
    return contents
