"""Names of the first version, each refused with the one that took its place; this module goes with the next version."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from lmm_forget.errors import ConfigError

RENAMED_KEYS = {
    "training.clip": "training.max_grad_norm",
    "training.warmup": "training.warmup_ratio",
    "training.global_batch": "training.global_batch_size",
    "hardware.micro_batch": "hardware.micro_batch_size",
    "hardware.eval_batch": "hardware.eval_batch_size",
    "hardware.workers": "hardware.num_workers",
    "hardware.jobs": "hardware.max_parallel_jobs",
    "sweep.plan": "sweep.dry_run",
    "data.world": "data.source",
    "probe.ask_at_steps": "probe.evaluate_at_steps",
    "probe.stop_when.taught_mass": "probe.stop_when.trained_mass",
    "model.world": "model.data_source",
    "model.micro_batch": "model.micro_batch_size",
    "model.eval_batch": "model.eval_batch_size",
    "model.training.clip": "model.training.max_grad_norm",
    "model.training.warmup": "model.training.warmup_ratio",
    "model.training.global_batch": "model.training.global_batch_size",
}
"""Configuration keys: old -> new."""
RENAMED_TARGETS = {
    "lmm_forget.tasks.clocks.ClockTask": "lmm_forget.tasks.clock_task.ClockTask",
    "lmm_forget.tasks.cub200.CUB200": "lmm_forget.tasks.cub200.CUB200Task",
    "lmm_forget.tasks.multiple_choice.ListedChoices": "lmm_forget.tasks.multiple_choice.ListedChoicesTask",
    "lmm_forget.tasks.multiple_choice.MultipleChoice": "lmm_forget.tasks.multiple_choice.MultipleChoiceTask",
    "lmm_forget.tasks.pixmocount.PixmoCount": "lmm_forget.tasks.pixmocount.PixmoCountTask",
    "lmm_forget.tasks.published.HubTask": "lmm_forget.tasks.hub.HubTask",
    "lmm_forget.tasks.table.TableTask": "lmm_forget.tasks.csv_table.CsvTask",
    "lmm_forget.tasks.textvqa.TextVQA": "lmm_forget.tasks.textvqa.TextVQATask",
    "lmm_forget.tasks.tiny.TinyTask": "lmm_forget.tasks.tiny_task.TinyTask",
    "lmm_forget.tasks.scoring.clock.ClockTime": "lmm_forget.tasks.scoring.clock.ClockTimeScorer",
    "lmm_forget.tasks.scoring.closed_open.ClosedOpen": "lmm_forget.tasks.scoring.yes_no_or_open.YesNoOrOpenScorer",
    "lmm_forget.tasks.scoring.exact.ExactMatch": "lmm_forget.tasks.scoring.exact.ExactMatchScorer",
    "lmm_forget.tasks.scoring.exact.YesNo": "lmm_forget.tasks.scoring.exact.YesNoScorer",
    "lmm_forget.tasks.scoring.letters.OptionLetter": "lmm_forget.tasks.scoring.letters.OptionLetterScorer",
    "lmm_forget.tasks.scoring.mixed.ChoiceOrText": "lmm_forget.tasks.scoring.choice_or_text.ChoiceOrTextScorer",
    "lmm_forget.tasks.scoring.numbers.WholeNumber": "lmm_forget.tasks.scoring.numbers.WholeNumberScorer",
    "lmm_forget.tasks.scoring.text.ANLS": "lmm_forget.tasks.scoring.text_match.ANLSScorer",
    "lmm_forget.tasks.scoring.text.ContainsText": "lmm_forget.tasks.scoring.text_match.ContainsTextScorer",
    "lmm_forget.tasks.scoring.text.RelaxedAccuracy": "lmm_forget.tasks.scoring.text_match.RelaxedAccuracyScorer",
    "lmm_forget.tasks.scoring.vqa.VQAAccuracy": "lmm_forget.tasks.scoring.vqa.VQAAccuracyScorer",
}
"""Classes that YAMLs name: old -> new."""


def refuse_renamed_key(key: str) -> None:
    """Raise ConfigError for the old name of a configuration key, naming the new one."""
    if key in RENAMED_KEYS:
        raise ConfigError(f"{key} is now called {RENAMED_KEYS[key]}")


def refuse_renamed_keys(config: DictConfig) -> None:
    """Raise ConfigError where a composed configuration (not yet resolved) holds a key under its old name."""
    for key in RENAMED_KEYS:
        group, _, name = key.rpartition(".")
        node = OmegaConf.select(config, group, throw_on_missing=False)
        if isinstance(node, DictConfig) and name in node:
            refuse_renamed_key(key)
