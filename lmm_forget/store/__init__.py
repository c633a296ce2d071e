"""The archive of finished work: stage records, weight deltas and answers under content keys."""

from lmm_forget.store.answers import Kept, Said, question_key
from lmm_forget.store.archive import Damaged, Store
from lmm_forget.store.keys import answering_key, path_keys, stage_key, training_view
from lmm_forget.store.partial import Partial

__all__ = [
    "Damaged",
    "Kept",
    "Partial",
    "Said",
    "Store",
    "answering_key",
    "path_keys",
    "question_key",
    "stage_key",
    "training_view",
]
