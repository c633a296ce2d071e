"""A configuration as it may be shown to others: what looks like a secret is hidden."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
_WORDS = {
    *("token", "secret", "password", "passwd", "passphrase", "apikey", "credential", "credentials"),
    *("auth", "authorization", "bearer", "cookie"),
}
_KEYS = {"api", "access", "private", "secret", "signing", "account", "storage"}
_SHORTEST = 8
"""Shorter values of the environment are too common to be replaced wherever they occur."""
_LOOKS = re.compile(
    r"\b(?:hf_|gh[opsru]_|github_pat_|glpat-|sk-|xox[abp]-|AKIA|wandb_v1_)[A-Za-z0-9_\-]{12,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?<=[?&])(?:[A-Za-z-]*(?:signature|token|credential|key)|sig)=[^&\s]+",
    re.IGNORECASE,
)


def scrub(value: Any, env: Mapping[str, str] | None = None) -> Any:
    """`value` (plain data) with secrets replaced by `HIDDEN`.

    Hidden are fields whose name says so (`hf_token`, `api_key`, but not `max_new_tokens`), the values of such
    variables in `env` (default: the environment) wherever they occur, well-known forms of keys, and passwords in
    addresses.
    """
    known = [
        text
        for name, text in (os.environ if env is None else env).items()
        if is_secret(name) and len(text) >= _SHORTEST
    ]
    return _scrub(value, sorted(known, key=len, reverse=True))


def is_secret(name: str) -> bool:
    """Whether a field or a variable of this name holds a secret."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    pairs = zip(words, words[1:], strict=False)
    return bool(_WORDS & set(words)) or any(a in _KEYS and b in ("key", "keys") for a, b in pairs)


def _scrub(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if is_secret(str(key)) and isinstance(inner, (str, list, Mapping)) and inner
            else _scrub(inner, known)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_scrub(inner, known) for inner in value]
    if isinstance(value, str):
        for text in known:
            value = value.replace(text, HIDDEN)
        return _LOOKS.sub(HIDDEN, value)
    return value
