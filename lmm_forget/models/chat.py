"""The chat format of a processor, derived from its own template: prompts, end of an answer, reserved tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import ProcessorMixin

from lmm_forget.errors import ConfigError, DataError

_ANSWER_PLACEHOLDER = "ANSWER-ENDS-HERE"
_QUESTION_PLACEHOLDER = "QUESTION-STANDS-HERE"
_SYSTEM_SUPPORT: WeakKeyDictionary[ProcessorMixin, dict[tuple[str, bool], bool]] = WeakKeyDictionary()
"""Processor -> {(template, whether the system message is a text): whether the template accepts it}."""


def build_user_turn(question: str, num_images: int) -> list[dict[str, Any]]:
    """One user message: `num_images` images, then the question."""
    content: list[dict[str, str]] = [{"type": "image"} for _ in range(num_images)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def build_chat_messages(
    processor: ProcessorMixin, question: str, num_images: int, system: str | None = None
) -> list[dict[str, Any]]:
    """The messages of a question: its system prompt, if it has one, and the user turn.

    Without a system prompt the template's default, if there is one, applies. Raises DataError if the processor's chat
    template does not accept a system prompt.
    """
    if system is None:
        return build_user_turn(question, num_images)
    for content in _build_system_contents(system):
        if _accepts_system_message(processor, isinstance(content, str)):
            return [{"role": "system", "content": content}, *build_user_turn(question, num_images)]
    raise DataError(
        "it has a system prompt, but this model's chat template takes none; leave it out, or put its text into the "
        "question"
    )


def _build_system_contents(system: str) -> tuple[list[dict[str, str]], str]:
    """The two forms of a system message's content: a list as in a user turn, or a text."""
    return [{"type": "text", "text": system}], system


def _accepts_system_message(processor: ProcessorMixin, is_text: bool) -> bool:
    """Whether the template renders a system message of this form exactly once and unchanged before the question."""
    template = processor.chat_template or processor.tokenizer.chat_template
    support = _SYSTEM_SUPPORT.setdefault(processor, {})
    key = (str(template), is_text)
    if key not in support:
        content = _build_system_contents(_ANSWER_PLACEHOLDER)[int(is_text)]
        try:
            text = render_chat(
                processor,
                [{"role": "system", "content": content}, *build_user_turn(_QUESTION_PLACEHOLDER, 0)],
                add_generation_prompt=True,
            )
        except ConfigError:  # no template at all
            raise
        except Exception:  # templates raise any type of exception for an unknown role
            text = ""
        before, question, _ = text.partition(_QUESTION_PLACEHOLDER)
        # Some templates print a list as Python or JSON source.
        support[key] = (
            bool(question)
            and before.count(_ANSWER_PLACEHOLDER) == 1
            and "'text':" not in before
            and '"text":' not in before
        )
    return support[key]


def render_chat(processor: ProcessorMixin, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
    """Render `messages` with the processor's chat template. Raises ConfigError if it has none."""
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise ConfigError(f"{type(processor).__name__} has no chat template; the checkpoint's processor files lack one")
    text = processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    return text if isinstance(text, str) else text[0]


def find_answer_end_token(processor: ProcessorMixin) -> str:
    """The first special token after the answer in a rendered assistant turn; the tokenizer's EOS if there is none."""
    after = _render_answered_turn(processor).rpartition(_ANSWER_PLACEHOLDER)[2]
    positions = [(after.index(token), token) for token in list_reserved_tokens(processor) if token in after]
    return min(positions)[1] if positions else str(processor.tokenizer.eos_token)


def find_answer_prefix(processor: ProcessorMixin) -> str:
    """The spaces that the template writes between its generation prompt and an answer ("Assistant: yes"), or ""."""
    prompt = render_chat(processor, build_user_turn("?", 0), add_generation_prompt=True)
    answered = _render_answered_turn(processor).rpartition(_ANSWER_PLACEHOLDER)[0]
    between = answered[len(prompt) :] if answered.startswith(prompt) else ""
    return "" if between.strip(" ") else between


def _render_answered_turn(processor: ProcessorMixin) -> str:
    reply = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER_PLACEHOLDER}]}
    return render_chat(processor, [*build_user_turn("?", 0), reply], add_generation_prompt=False)


def list_reserved_tokens(processor: ProcessorMixin) -> tuple[str, ...]:
    """All special tokens, including those added without a role (`<|im_start|>`)."""
    tokenizer = processor.tokenizer
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added, getattr(processor, "image_token", "<image>")]))


def reject_reserved_tokens(processor: ProcessorMixin, texts: Sequence[str], text_kind: str) -> None:
    """Raise DataError for a text that contains a control token (an image slot, an end of turn) of the chat format."""
    if not any("<" in text or "[" in text for text in texts):
        return
    reserved = list_reserved_tokens(processor)
    for i, text in enumerate(texts):
        for token in reserved:
            if token in text:
                raise DataError(
                    f"sample {i} of the batch: its {text_kind} contains the model's reserved token {token}; "
                    "remove it from the data"
                )
