"""The archive of finished work: stage records, weight deltas and answers under content keys."""

from lmm_forget.store.archive import CorruptEntryError, Store
from lmm_forget.store.keys import (
    compute_config_keys,
    compute_response_cache_key,
    compute_stage_key,
    select_training_config,
)
from lmm_forget.store.response_cache import CachedResponse, MemoryResponseCache, ResponseCache, compute_question_key
from lmm_forget.store.stage_checkpoints import StageCheckpoints

__all__ = [
    "CorruptEntryError",
    "CachedResponse",
    "MemoryResponseCache",
    "StageCheckpoints",
    "ResponseCache",
    "Store",
    "compute_response_cache_key",
    "compute_config_keys",
    "compute_question_key",
    "compute_stage_key",
    "select_training_config",
]
