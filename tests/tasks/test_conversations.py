"""Conversations in LLaVA-style JSON: which pictures a question shows, who speaks, and that nothing is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmm_forget.errors import DataError
from lmm_forget.tasks.llava import LlavaTask
from tests.tasks.published import png
from tests.tasks.test_values import COMMON


def human(text: Any) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


def system(text: Any) -> dict[str, Any]:
    return {"from": "system", "value": text}


def task(folder: Path, *items: dict[str, Any], turns: str = "each") -> LlavaTask:
    for name in "abc":
        (folder / f"{name}.png").write_bytes(png(ord(name)))
    (folder / "data.json").write_text(json.dumps(list(items)))
    return LlavaTask(path=str(folder / "data.json"), turns=turns, **COMMON)


def shown(made: LlavaTask) -> list[tuple[str, list[str], str | None]]:
    """Question, names of the pictures and system prompt of every sample, all of which can be opened."""
    part = made.validate_split("test")
    assert [len(sample.images) for sample in part] == [len(row.images) for row in part.rows]
    return [(s.question, [path.stem for path in row.images], s.system) for s, row in zip(part, part.rows, strict=True)]


TALKS: list[tuple[str, Any, list[dict[str, Any]], list[tuple[str, list[str], str | None]]]] = [
    (
        "a picture in each turn",
        ["a.png", "b.png"],
        [human("<image>\nWhat?"), gpt("x"), human("<image>\nAnd this?"), gpt("y")],
        [("What?", ["a"], None), ("And this?", ["a", "b"], None)],
    ),
    (
        "two in the first turn, one in the third",
        ["a.png", "b.png", "c.png"],
        [human("<image><image> 1?"), gpt("x"), human("2?"), gpt("y"), human("3? <image>"), gpt("z")],
        [("1?", ["a", "b"], None), ("2?", ["a", "b"], None), ("3?", ["a", "b", "c"], None)],
    ),
    (
        "none before the second turn",
        "a.png",
        [human("Hello?"), gpt("x"), human("<image>\nWhat?"), gpt("y")],
        [("Hello?", [], None), ("What?", ["a"], None)],
    ),
    (
        "a mark in the middle of a text",
        ["a.png", "b.png"],
        [human("Is <image> like <image> here?"), gpt("x")],
        [("Is\n like\n here?", ["a", "b"], None)],
    ),
    ("no picture", None, [human("Hello?"), gpt("x")], [("Hello?", [], None)]),
    (
        "a system turn at the start",
        "a.png",
        [system("Be kind. "), human("<image>What?"), gpt("x"), human("Why?"), gpt("y")],
        [("What?", ["a"], "Be kind."), ("Why?", ["a"], "Be kind.")],
    ),
    (
        "a system turn in the middle",
        "a.png",
        [human("<image>What?"), gpt("x"), system("Be brief."), human("Why?"), gpt("y")],
        [("What?", ["a"], None), ("Why?", ["a"], "Be brief.")],
    ),
    (
        "two system turns, one inside an exchange",
        "a.png",
        [system("Be kind."), human("<image>What?"), system("Be brief."), gpt("x"), human("Why?"), gpt("y")],
        [("What?", ["a"], "Be kind.\nBe brief."), ("Why?", ["a"], "Be kind.\nBe brief.")],
    ),
    (
        "the names that OpenAI gives",
        "a.png",
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "x"}]},
        ],
        [("What?", ["a"], "Be kind.")],
    ),
    (
        "pictures named where they are shown",
        None,
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "b.png"}},
                    {"type": "text", "text": "1?"},
                ],
            },
            {"role": "assistant", "content": "x"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "2?"}, {"type": "image", "image": "a.png"}],
            },
            {"role": "assistant", "content": "y"},
        ],
        [("1?", ["b"], None), ("2?", ["b", "a"], None)],
    ),
    (
        "names mixed",
        "a.png",
        [{"from": "user", "value": "<image>What?"}, {"from": "assistant", "value": "x"}],
        [("What?", ["a"], None)],
    ),
]


@pytest.mark.parametrize("key", ["conversations", "messages"])
@pytest.mark.parametrize(("images", "turns", "expected"), [talk[1:] for talk in TALKS], ids=[talk[0] for talk in TALKS])
def test_a_question_has_the_pictures_and_the_system_turns_up_to_it(
    key: str, images: Any, turns: Any, expected: Any, tmp_path: Path
) -> None:
    item = {"id": 1, key: turns, **({} if images is None else {"image": images})}
    assert shown(task(tmp_path, item)) == expected
    assert shown(task(tmp_path, item, turns="first")) == expected[:1]
    if len(expected) == 1:
        assert shown(task(tmp_path, item, turns="one")) == expected


def test_images_may_stand_under_either_key_and_a_system_prompt_beside_the_turns(tmp_path: Path) -> None:
    turns = [system("Be brief."), human("<image>What?"), gpt("x")]
    for key, names in (("image", "a.png"), ("image", ["a.png"]), ("images", "a.png"), ("images", ["a.png"])):
        item = {"id": 1, key: names, "image" if key == "images" else "images": None, "conversations": turns}
        assert shown(task(tmp_path, item)) == [("What?", ["a"], "Be brief.")]
    item = {"id": 1, "image": "a.png", "system": "Be kind.", "conversations": turns}
    assert shown(task(tmp_path, item)) == [("What?", ["a"], "Be kind.\nBe brief.")]
    item = {"id": 1, "image": "a.png", "system": "", "conversations": turns[1:]}
    assert shown(task(tmp_path, item)) == [("What?", ["a"], None)]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"image": ["a.png", "b.png"], "conversations": [human("<image>?"), gpt("x")]},
        "1 <image> mark and 2 images",
    ),
    ({"image": "a.png", "conversations": [human("?"), gpt("x")]}, "0 <image> marks and 1 image"),
    ({"conversations": [human("<image>?"), gpt("x")]}, "1 <image> mark and 0 images"),
    (
        {"image": "a.png", "conversations": [human("?"), gpt("<image> x")]},
        "turn 1, a gpt turn, has 1 <image> mark",
    ),
    (
        {"image": "a.png", "conversations": [system("<image>"), human("?"), gpt("x")]},
        "turn 0, a system turn, has 1",
    ),
    (
        {"image": "a.png", "images": ["b.png"], "conversations": [human("<image>?"), gpt("x")]},
        "both 'image' and 'images'",
    ),
    (
        {"conversations": [human("?"), gpt("x")], "messages": [human("?"), gpt("x")]},
        "both 'conversations' and 'messages'",
    ),
    ({"conversations": [human("?"), human("?"), gpt("x")]}, "3 turns; questions and answers must alternate"),
    ({"conversations": [human("?"), human("?"), gpt("x"), gpt("x")]}, "turns from 'human' and 'human'"),
    ({"conversations": [gpt("x"), human("?")]}, "turns from 'gpt' and 'human'"),
    ({"conversations": [human("?"), gpt("x"), human("?")]}, "3 turns; questions"),
    ({"conversations": [human(""), gpt("x")]}, "'human turn' is empty"),
    ({"conversations": [human("?"), gpt(" \n")]}, "'gpt turn' is empty"),
    ({"conversations": [system(" "), human("?"), gpt("x")]}, "'system turn' is empty"),
    ({"conversations": [system("Be kind.")]}, "0 turns; questions"),
    ({"conversations": [human("?"), gpt("x"), system("Be kind.")]}, "a system turn after the last answer"),
    ({"conversations": [human("?"), gpt("x"), "bye"]}, "turn 2 is a str, not an object"),
    ({"conversations": [human("?"), {"value": "x"}]}, "turn 1 has no speaker; it has 'value'"),
    ({"conversations": [human("?"), {"from": "gpt"}]}, "'gpt turn' is null"),
    ({"conversations": [human("?"), {"from": None, "value": "x"}]}, "turn 1 is from 'None'"),
    (
        {"messages": [human("?"), {"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        "turn 1 calls a tool",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}, gpt("x")]}, "a part of type 'video'"),
    ({"messages": [{"role": "user", "content": []}, gpt("x")]}, "'human turn' is empty"),
    *[
        (
            {"conversations": [human("?"), {"from": who, "value": "x"}, gpt("x")]},
            f"turn 1 is from '{who}'; there are",
        )
        for who in ("tool", "function", "observation", "function_call", "bing", "Human")
    ],
]


@pytest.mark.parametrize(("item", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_used_is_refused_by_id_or_left_out(item: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"id": "good", "image": "a.png", "conversations": [human("<image>?"), gpt("x")]}
    made = task(tmp_path, good, {"id": "odd", **item})
    with pytest.raises(DataError, match=r"1 of 2 samples cannot be used \(first: .*item 1 \(id odd\): .*") as caught:
        made.validate_split("test")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    left = made.validate_split("test", "skip")
    assert [sample.id for sample in left] == ["good"] and len(left.skipped) == 1


def test_the_fingerprint_follows_the_system_prompt(tmp_path: Path) -> None:
    turns = [human("<image>?"), gpt("x")]
    prints = []
    for said in ([], [system("Be kind.")], [system("Be brief.")]):
        item = {"id": 1, "image": "a.png", "conversations": [*said, *turns]}
        prints.append(task(tmp_path, item).fingerprint_split("test"))
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("more", "question", "reason"),
    [
        ({"video": "v.mp4"}, "What happens?", "it has 'video'"),
        ({"audios": ["a.wav"]}, "What is said?", "it has 'audios'"),
        ({"tools": "[{}]"}, "Call one.", "it has 'tools'"),
        ({}, "<video>\nWhat happens?", "turn 0 has the mark <video>"),
        ({}, "<audio>\nWhat is said?", "turn 0 has the mark <audio>"),
    ],
)
def test_what_is_not_shown_to_models_is_not_left_out_of_a_question(
    tmp_path: Path, more: dict[str, Any], question: str, reason: str
) -> None:
    good = {"id": "good", "conversations": [human("Hello?"), gpt("x")], "videos": []}
    odd = {"id": "odd", "conversations": [human(question), gpt("y")], **more}
    made = task(tmp_path, good, odd)
    with pytest.raises(DataError, match="1 of 2 samples cannot be used .*id odd.*") as caught:
        made.validate_split("test")
    assert reason in str(caught.value)
    assert [sample.id for sample in task(tmp_path, good, odd).validate_split("test", "skip")] == ["good"]


def test_a_key_that_stands_twice_makes_a_bad_sample(tmp_path: Path) -> None:
    good = {"id": "good", "conversations": [human("Hello?"), gpt("x")]}
    made = task(tmp_path, good)
    turns = '{"from": "human", "value": "Q"}, {"from": "gpt", "value": "a", "value": "b"}'
    odd = f'{{"id": "odd", "conversations": [{turns}]}}'
    (tmp_path / "data.json").write_text(f"[{json.dumps(good)}, {odd}]")
    with pytest.raises(DataError, match="id odd.*the key 'value' stands twice"):
        made.validate_split("test")
