"""The archive of finished work: stage records, weight deltas and answers under content keys."""

from lmm_forget.store.archive import Store
from lmm_forget.store.keys import answers_key, stage_key, training_view

__all__ = ["Store", "answers_key", "stage_key", "training_view"]
