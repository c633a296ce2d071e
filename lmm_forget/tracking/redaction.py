"""Hides what looks like a secret in a configuration before others see it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "(hidden)"
_SECRET_WORDS = {
    *("token", "secret", "password", "passwd", "passphrase", "apikey", "credential", "credentials"),
    *("auth", "authorization", "bearer", "cookie"),
}
_KEY_QUALIFIERS = {"api", "access", "private", "secret", "signing", "account", "storage"}
_MIN_SECRET_LENGTH = 8
"""Shorter environment values are too common to be replaced wherever they occur."""
_SECRET_PATTERN = re.compile(
    r"\b(?:hf_|gh[opsru]_|github_pat_|glpat-|sk-|xox[abp]-|AKIA|wandb_v1_)[A-Za-z0-9_\-]{12,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?<=[?&])(?:[A-Za-z-]*(?:signature|token|credential|key)|sig)=[^&\s]+",
    re.IGNORECASE,
)


def redact_secrets(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """A copy of `value` (plain data) in which `REDACTED` replaces every secret.

    Secrets are: fields with the name of a secret (hf_token, api_key, but not max_new_tokens); the values of variables
    with such a name in `environment` (default: os.environ), wherever they occur; well-known forms of keys; and
    passwords in addresses.
    """
    secret_values = [
        text
        for name, text in (os.environ if environment is None else environment).items()
        if is_secret_name(name) and len(text) >= _MIN_SECRET_LENGTH
    ]
    return _redact_values(value, sorted(secret_values, key=len, reverse=True))


def is_secret_name(name: str) -> bool:
    """Whether a field or a variable of this name holds a secret."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    pairs = zip(words, words[1:], strict=False)
    return bool(_SECRET_WORDS & set(words)) or any(a in _KEY_QUALIFIERS and b in ("key", "keys") for a, b in pairs)


def _redact_values(value: Any, secret_values: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: REDACTED
            if is_secret_name(str(key)) and isinstance(inner, (str, list, Mapping)) and inner
            else _redact_values(inner, secret_values)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redact_values(inner, secret_values) for inner in value]
    if isinstance(value, str):
        for text in secret_values:
            value = value.replace(text, REDACTED)
        return _SECRET_PATTERN.sub(REDACTED, value)
    return value
