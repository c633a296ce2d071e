"""Opens a job's W&B run: online if the server answers in time, else offline, always under the same id."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmm_forget.errors import ConfigError
from lmm_forget.files import write_atomic

RUN_ID_FILE = "wandb_run.json"
"""File in the job's folder with the id of its W&B run, so that a restarted job continues the same run."""
SUPERSEDED_FOLDER = "superseded"
DATA_FOLDER_VARIABLE = "WANDB_DATA_DIR"
INTERRUPTED_EXIT_CODE = 255
"""Exit code that W&B shows as killed, not as failed."""
OFFLINE_FINISH_SECONDS = 60.0
"""Seconds that writing the rest of an offline run to disk may take."""
_MAX_TAG_LENGTH = 64


@dataclass
class WandbInit:
    """How to open the W&B run of one job, and, once it is open, how that went.

    `timeout_seconds` bounds the wait for W&B at the start, and again at the end. `opened_mode` is the mode that the run
    was opened in (online, offline, disabled), `offline_reason` why it is offline although `mode` is online.
    `first_missing_row` is the first row that W&B does not have yet: 0, except in an online run that continues.
    """

    folder: Path
    name: str
    mode: str
    timeout_seconds: float
    project: str
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    opened_mode: str = ""
    offline_reason: str | None = None
    first_missing_row: int = 0
    data_folder: Path | None = None

    def open_run(self) -> Any:
        """Open the run, in the background thread. Raises what W&B raises if it cannot open even an offline run."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else an exit waits for W&B's own error report
        import wandb  # optional dependency; imported only with logger=wandb, and after the variable above is set

        self.folder.mkdir(parents=True, exist_ok=True)
        # Tables and artifacts wait for their upload beside the run, not in the user's home.
        if DATA_FOLDER_VARIABLE not in os.environ:
            self.data_folder = (self.folder / "wandb" / f"data-{time.time_ns()}").resolve()
            self.data_folder.mkdir(parents=True)
            os.environ[DATA_FOLDER_VARIABLE] = str(self.data_folder)
        run_id = load_or_create_run_id(self.folder, self.name)
        run = None
        if self.mode == "online":
            earlier_folders = set(self._find_run_folders("run-*"))
            try:
                run = self._init_run(run_id, "online")
                self._set_offline_runs_aside()
            except Exception as error:
                self.offline_reason = _format_error_line(error)
                wandb.teardown(exit_code=1)  # else W&B's service keeps the id for the failed attempt
                for failed_folder in set(self._find_run_folders("run-*")) - earlier_folders:
                    shutil.rmtree(failed_folder, ignore_errors=True)
        if run is None:
            if self.mode != "disabled":
                self._set_offline_runs_aside()
            run = self._init_run(run_id, "disabled" if self.mode == "disabled" else "offline")
        self.opened_mode = str(run.settings.mode)
        self.first_missing_row = int(run.starting_step) if self.opened_mode == "online" else 0
        return run

    def clean_up(self, *, is_complete: bool) -> None:
        """Remove temporary files after the run is closed.

        A complete run holds everything that earlier starts left offline, so that their folders are deleted too.
        """
        if self.data_folder is not None and os.environ.get(DATA_FOLDER_VARIABLE) == str(self.data_folder):
            del os.environ[DATA_FOLDER_VARIABLE]
        if is_complete:
            old_data_folders = [data for data in self._find_run_folders("data-*") if data.resolve() != self.data_folder]
            for old in (self.folder / "wandb" / SUPERSEDED_FOLDER, *old_data_folders):
                shutil.rmtree(old, ignore_errors=True)

    def _init_run(self, run_id: str, mode: Any) -> Any:
        import wandb  # optional dependency; imported only with logger=wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,  # do not publish a remote's address or local changes
            x_disable_stats=True,
            allow_val_change=True,
            init_timeout=self.timeout_seconds,
            finish_timeout=self.timeout_seconds if mode == "online" else OFFLINE_FINISH_SECONDS,
            finish_timeout_raises=True,
            stop_fn=_ignore_stop_request,
        )
        return wandb.init(
            id=run_id,
            name=self.name,
            dir=str(self.folder),
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=[tag[:_MAX_TAG_LENGTH] for tag in self.tags],
            config=dict(self.config),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=settings,
        )

    def _set_offline_runs_aside(self) -> None:
        """Move offline runs of earlier starts aside.

        The new run logs everything again, and uploading an earlier one after it would replace it.
        """
        aside = self.folder / "wandb" / SUPERSEDED_FOLDER
        for old in self._find_run_folders("offline-run-*"):
            aside.mkdir(exist_ok=True)
            old.rename(aside / old.name)

    def _find_run_folders(self, pattern: str) -> list[Path]:
        candidates = (self.folder / "wandb").glob(pattern)
        return sorted(path for path in candidates if path.is_dir() and not path.is_symlink())


def load_or_create_run_id(folder: Path, job_name: str) -> str:
    """The id of the W&B run of the job in `folder`: the job's name and random digits, chosen at its first start.

    The random digits keep equal jobs of two people or of two folders from writing into one run.
    """
    path = folder / RUN_ID_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    new_id = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', job_name)[:80]}-{secrets.token_hex(5)}"
    write_atomic(path, json.dumps({"id": new_id}) + "\n")
    return new_id


def require_wandb() -> None:
    """Raise ConfigError if the package wandb is not installed."""
    if find_spec("wandb") is None:
        raise ConfigError("logger=wandb needs the package wandb: pip install wandb, or use logger=csv")


def _ignore_stop_request() -> None:
    """Do nothing: neither W&B's stop button nor its own failures end a job."""


def _format_error_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
