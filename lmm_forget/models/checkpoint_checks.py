"""Refuse checkpoints that are damaged, pickled, incomplete, or have a processor of another model, in one line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import logging as transformers_logging

from lmm_forget.errors import ConfigError
from lmm_forget.models.family import Family

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Exceptions that Transformers raises for a damaged or foreign folder.
_UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
)


def reject_pickled_weights(spec: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for a local folder whose weights are pickled; only safetensors are read."""
    folder = Path(source)
    if not spec.get("path") or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ConfigError(
            f"the weights in {source} are pickled ({pickles[0]}); only safetensors are read: if you trust their "
            "source, load them elsewhere and write them with save_pretrained"
        )


@contextmanager
def convert_load_errors(spec: Mapping[str, Any], source: str, part_name: str) -> Iterator[None]:
    """Convert Transformers' exceptions while it loads a part ("model", "processor") into a one-line ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except _UNREADABLE as error:
        text = str(error)
        cause = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
        if "custom code" in text:
            raise ConfigError(
                f"the {part_name} in {source} needs Python code that comes with it (trust_remote_code), which is never "
                "run; use a model type that Transformers itself has"
            ) from None
        if spec.get("path"):
            advice = "; copy the whole checkpoint again" if isinstance(error, (OSError, SafetensorError)) else ""
            raise ConfigError(f"the {part_name} in {source} cannot be loaded: {cause}{advice}") from None
        if constants.HF_HUB_OFFLINE:
            cause = "HF_HUB_OFFLINE is set"
        raise ConfigError(
            f"{source} cannot be fetched and is not in the local cache ({cause}); set model.path to a local copy of it"
        ) from None


@contextmanager
def silence_load_report() -> Iterator[None]:
    """Hide Transformers' table of missing tensors, which `verify_loaded_weights` reports in one line."""
    previous_verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(previous_verbosity)


def verify_loaded_weights(model: PreTrainedModel, loading_info: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError if tensors were missing or had another shape; Transformers would initialise them randomly.

    `loading_info` is the second result of `from_pretrained(output_loading_info=True)`.
    """
    shapes = sorted(str(entry[0]) for entry in loading_info["mismatched_keys"])
    missing = sorted(str(name) for name in loading_info["missing_keys"])
    for names, problem in ((shapes, "have other shapes there"), (missing, "are not there")):
        if names:
            raise ConfigError(
                f"the weights in {source} are not those of the {type(model).__name__} that its config.json describes: "
                f"{len(names)} of its tensors {problem}, such as {names[0]}; copy the whole checkpoint again"
            )


def verify_processor(family: Family, config: Any, processor: Any, source: str) -> None:
    """Raise ConfigError if the processor was made for another model than `config` describes.

    The message names the first property in which the two differ.
    """
    expected_class = PROCESSOR_MAPPING.get(type(config), ProcessorMixin)
    if not isinstance(processor, expected_class):
        raise ConfigError(
            f"the processor in {source} is a {type(processor).__name__}, a {config.model_type} model needs a "
            f"{expected_class.__name__}; copy the processor files that belong to the weights"
        )
    rows = config.get_text_config().vocab_size
    image_id = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    known_ids = [i for i in processor.image_token_ids if i is not None]
    largest = max(processor.tokenizer.get_vocab().values())
    pairs = [
        ("image token id", image_id if image_id in known_ids or not known_ids else known_ids[0], image_id),
        ("largest token id", largest if largest >= rows else rows - 1, rows - 1),
        *family.iterate_processor_checks(config, processor),
    ]
    for property_name, processor_value, model_value in pairs:
        if processor_value != model_value:
            raise ConfigError(
                f"the processor in {source} does not match the model: its {property_name} is {processor_value}, "
                f"the model's is {model_value}; copy the processor files that belong to the weights"
            )
