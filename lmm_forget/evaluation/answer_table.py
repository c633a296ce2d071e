"""Answers as a parquet table."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lmm_forget.evaluation.scored_answers import Answer
from lmm_forget.store.record_schemas import ANSWERS_SCHEMA

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("references", pa.list_(pa.string()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("tolerant", pa.float64()),
        pa.field("compat", pa.float64()),
        pa.field("group", pa.string()),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("logit_margin", pa.float64(), nullable=False),
    ],
    metadata={"lmm_forget.answers": ANSWERS_SCHEMA},
)


def make_answer_table(answers: Sequence[Answer]) -> pa.Table:
    """One row per answer, in order; columns as in `Answer`."""
    columns = {name: [getattr(answer, name) for answer in answers] for name in ANSWER_SCHEMA.names}
    columns["references"] = [list(references) for references in columns["references"]]
    return pa.table(columns, schema=ANSWER_SCHEMA)
