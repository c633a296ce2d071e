"""What may be shown of a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from lmm_forget.tracking.secrets import HIDDEN, is_secret, scrub


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
    assert is_secret(name) is secret


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"hub": {"token": "x"}}, {"hub": {"token": HIDDEN}}),
        ({"credentials": {"user": "me", "pass": "x"}}, {"credentials": HIDDEN}),
        ({"token": None, "max_new_tokens": 4}, {"token": None, "max_new_tokens": 4}),
        ({"loss": "token_mean"}, {"loss": "token_mean"}),
        (["a long-enough-value b"], [f"a {HIDDEN} b"]),
        ("https://me:pa55@host/x.git", f"https://{HIDDEN}@host/x.git"),
        ("https://host/x?X-Amz-Signature=abc&size=3", f"https://host/x?{HIDDEN}&size=3"),
        ("hf_" + "a" * 34, HIDDEN),
        ("multirun/demo/sa_proj", "multirun/demo/sa_proj"),
        (3.5, 3.5),
    ],
)
def test_what_is_hidden(value: Any, shown: Any) -> None:
    assert scrub(value, {"SOME_TOKEN": "long-enough-value", "OTHER_TOKEN": "a", "HOME": "multirun"}) == shown
