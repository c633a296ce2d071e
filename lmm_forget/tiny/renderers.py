"""All renderers of synthetic images by name, their instructions and chance scores."""

from __future__ import annotations

import random
from types import MappingProxyType

from lmm_forget.tiny import benchmarks, captions, skills
from lmm_forget.tiny.rendered_image import RenderedImage, Renderer

# Raised when a renderer changes, so that records of the old images are not taken for records of the new ones.
RENDERER_VERSION = 2

SKILLS = MappingProxyType(
    {
        "cub200": skills.render_bird_question,
        "pixmocount": skills.render_counting_question,
        "pathvqa": skills.render_pathology_questions,
        "textvqa": skills.render_reading_question,
        "timeclock": skills.render_clock_question,
    }
)
BENCHMARKS = MappingProxyType(
    {
        "ai2d": benchmarks.render_diagram_questions,
        "chartqa": benchmarks.render_chart_questions,
        "docvqa": benchmarks.render_document_questions,
        "infovqa": benchmarks.render_infographic_questions,
        "realworldqa": benchmarks.render_realworld_questions,
        "seedbench": benchmarks.render_seedbench_questions,
        "scienceqa": benchmarks.render_science_question,
        "mmstar": benchmarks.render_mmstar_question,
    }
)
CAPTIONS = MappingProxyType(
    {
        "caption": captions.render_plain_caption,
        "scene_by_place": captions.render_caption_by_quadrant,
        "scene_by_thing": captions.render_caption_by_shape,
        "cells": captions.render_grid_caption,
        "bird_parts": captions.render_bird_caption,
        "hands": captions.render_clock_hands_caption,
        "nuclei": captions.render_nuclei_caption,
        "bars": captions.render_bars_caption,
        "letters": captions.render_letters_caption,
        "icon_rows": captions.render_icon_rows_caption,
        "arrow": captions.render_arrow_caption,
        "two_things": captions.render_varied_caption,
        "single_thing": captions.render_single_object_question,
    }
)
TEXT_DRILLS = MappingProxyType({"salad": captions.render_repeat_drill})
RENDERERS: MappingProxyType[str, Renderer] = MappingProxyType({**SKILLS, **BENCHMARKS, **CAPTIONS, **TEXT_DRILLS})

OPTION_INSTRUCTION = "\nAnswer with the option's letter."
WORD_INSTRUCTION = "\nAnswer with a single word."
# Text that is added to a question, in training and in evaluation.
INSTRUCTIONS = MappingProxyType(
    {
        "cub200": OPTION_INSTRUCTION,
        "pixmocount": "\nAnswer with an integer.",
        "pathvqa": "\nAnswer yes or no, or name the finding.",
        "textvqa": WORD_INSTRUCTION,
        "timeclock": "\nAnswer in HH:MM format.",
        "ai2d": "\nAnswer with the label's letter.",
        "chartqa": WORD_INSTRUCTION,
        "docvqa": WORD_INSTRUCTION,
        "infovqa": WORD_INSTRUCTION,
        "realworldqa": WORD_INSTRUCTION,
        "seedbench": OPTION_INSTRUCTION,
        "scienceqa": OPTION_INSTRUCTION,
        "mmstar": OPTION_INSTRUCTION,
    }
)

# The best possible score, in points, without looking at the image; the base model must be well above it.
CHANCE_SCORES = MappingProxyType(
    {
        "ai2d": 25.0,
        "chartqa": 100 / 9,
        "docvqa": 1.0,
        "infovqa": 100 / 9,
        "realworldqa": (100 / 3 + (100 / 8 + 50) / 2) / 2,
        "seedbench": (100 / 6 + 100 / 8) / 2,
        "scienceqa": 100 / 3,
        "mmstar": (100 / 6 + 100 / 8 + 25) / 3,
        "cub200": 12.5,
        "pixmocount": 100 / 6,
        "pathvqa": (50 + 25) / 2,
        "textvqa": 0.1,
        "timeclock": 100 / 144,
    }
)


def render_image(renderer_name: str, split: str, image_number: int) -> RenderedImage:
    """Render image `image_number` of a split; splits have separate random seeds. Raises KeyError for unknown names."""
    # The seed does not include the version, so that renderers that did not change draw the same images.
    return RENDERERS[renderer_name](random.Random(f"tiny world 1/{renderer_name}/{split}/{image_number}"))
