"""Token sets on the tokenizer that travels with the package, and on made-up vocabularies."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from lmm_forget.errors import ConfigError
from lmm_forget.models.model_source import find_packaged_model
from lmm_forget.probes.token_sets import (
    decode_token_texts,
    find_clock_tokens,
    find_letter_tokens,
    find_number_tokens,
    find_token_sets,
    find_yes_no_tokens,
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(find_packaged_model("tiny_onevision"))


def test_words_count_with_and_without_a_space(tokenizer):
    found = find_number_tokens(decode_token_texts(tokenizer))
    assert {"two", " two", "three", " three", " twelve", "0", "9"} <= set(found.tokens)
    assert not {" on", " in", " is", "o"} & set(found.tokens)
    assert [tokenizer.decode([i]) for i in found.ids] == list(found.tokens)
    assert "seventeen" in found.split_words and "two" not in found.split_words


def test_special_tokens_are_in_no_set(tokenizer):
    texts = decode_token_texts(tokenizer)
    assert not set(texts) & set(tokenizer.all_special_ids)
    assert tokenizer.convert_tokens_to_ids("<image>") not in texts


def test_answer_formats(tokenizer):
    texts = decode_token_texts(tokenizer)
    assert {"A", "H", " A"} <= set(find_letter_tokens(texts).tokens)
    assert not {"a", " a"} & set(find_letter_tokens(texts).tokens)
    assert set(find_yes_no_tokens(texts).tokens) == {"yes", " yes", "no", " no"}
    assert set(find_clock_tokens(texts).tokens) == {*"0123456789", ":"}


@pytest.mark.parametrize(
    ("text", "number", "clock", "letter"),
    [
        (" Two", True, False, False),
        ("TWENTY", True, False, False),
        ("1,000", True, False, False),
        ("2.5", True, False, False),
        ("3rd", True, False, False),
        ("12th", True, False, False),
        (" third", True, False, False),
        (":45", False, True, False),
        ("75", True, False, False),
        ("59", True, True, False),
        ("(B", False, False, True),
        ("C.", False, False, True),
        ("someone", False, False, False),
        ("often", False, False, False),
        ("４", False, False, False),
        (" ", False, False, False),
    ],
)
def test_every_token_is_judged_as_a_whole(text, number, clock, letter):
    texts = {0: text}
    assert [bool(f(texts).ids) for f in (find_number_tokens, find_clock_tokens, find_letter_tokens)] == [
        number,
        clock,
        letter,
    ]


def test_a_set_is_learned_from_what_a_task_teaches(tokenizer):
    captions = ["a red circle in the top left", "two blue stars", "a green cross and a red star"] * 5
    lessons = {
        "count": ["There are 4 stars in this image."] * 3 + ["There is 1 star in this image."],
        "bird": ["A"],
    }
    found = find_token_sets(tokenizer, ["trained"], lessons, captions)
    learned = set(found["trained:count"].tokens)
    assert {"There", "4", "1", " image"} <= learned
    assert " star" not in learned  # a third of the captions have it as well
    assert found["trained:bird"].tokens == ("A",)
    everywhere = find_token_sets(tokenizer, ["trained"], {"t": captions}, captions)["trained:t"]
    assert everywhere.ids and "none" in everywhere.source


def test_an_unknown_set_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="number, letter"):
        find_token_sets(tokenizer, ["digits"], {}, [])
