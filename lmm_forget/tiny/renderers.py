"""The index of the tiny world: every renderer by name, and how a (task, split, number) becomes a picture."""

from __future__ import annotations

import random
from types import MappingProxyType

from lmm_forget.tiny import benchmarks, captions, skills
from lmm_forget.tiny.rendered_image import RenderedImage, Renderer

# Raised when any renderer changes, so that no record of the old world is taken for one of the new.
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
        "scene_by_place": captions.render_scene_by_place,
        "scene_by_thing": captions.render_scene_by_thing,
        "cells": captions.render_grid_caption,
        "bird_parts": captions.render_bird_caption,
        "hands": captions.render_clock_hands_caption,
        "nuclei": captions.render_nuclei_caption,
        "bars": captions.render_bars_caption,
        "letters": captions.render_letters_caption,
        "icon_rows": captions.render_icon_rows_caption,
        "arrow": captions.render_arrow_caption,
        "two_things": captions.render_two_things_caption,
        "single_thing": captions.render_single_thing_question,
    }
)
TEXT_DRILLS = MappingProxyType({"salad": captions.render_repeat_drill})
RENDERERS: MappingProxyType[str, Renderer] = MappingProxyType({**SKILLS, **BENCHMARKS, **CAPTIONS, **TEXT_DRILLS})

OPTION_INSTRUCTION = "\nAnswer with the option's letter."
WORD_INSTRUCTION = "\nAnswer with a single word."
# What is added to a question when it is asked and when it is taught.
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

# The score of the best guess that never looks at the picture, in points; the base must stand well above it.
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
    """Picture `number` of a renderer's split; splits never share random numbers. KeyError for an unknown name."""
    # The seed keeps its text when the version rises: renderers that did not change draw the same pictures.
    return RENDERERS[renderer_name](random.Random(f"tiny world 1/{renderer_name}/{split}/{image_number}"))
