"""What may be shown of a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from lmm_forget.tracking.redaction import REDACTED, is_secret_name, redact_secrets


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("hf_token", True),
        ("HF_TOKEN", True),
        ("wandbApiKey", True),
        ("WANDB_API_KEY", True),
        ("aws_secret_access_key", True),
        ("db.password", True),
        ("credentials", True),
        ("max_new_tokens", False),
        ("token_mean", True),  # a field's name; as a value it stays
        ("tokens", False),
        ("key", False),
        ("keys", False),
        ("author", False),
        ("image_newline", False),
        ("monkey", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"hub": {"token": "x"}}, {"hub": {"token": REDACTED}}),
        ({"credentials": {"user": "me", "pass": "x"}}, {"credentials": REDACTED}),
        ({"token": None, "max_new_tokens": 4}, {"token": None, "max_new_tokens": 4}),
        ({"loss": "token_mean"}, {"loss": "token_mean"}),
        (["a long-enough-value b"], [f"a {REDACTED} b"]),
        ("https://me:pa55@host/x.git", f"https://{REDACTED}@host/x.git"),
        ("https://host/x?X-Amz-Signature=abc&size=3", f"https://host/x?{REDACTED}&size=3"),
        ("hf_" + "a" * 34, REDACTED),
        ("multirun/demo/sa_proj", "multirun/demo/sa_proj"),
        (3.5, 3.5),
    ],
)
def test_what_is_hidden(value: Any, shown: Any) -> None:
    assert redact_secrets(value, {"SOME_TOKEN": "long-enough-value", "OTHER_TOKEN": "a", "HOME": "multirun"}) == shown
