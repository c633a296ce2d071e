"""From YAML files and a command line to one plain, complete, checked configuration."""

from lmm_forget.config.composing import compose_config
from lmm_forget.config.conf_dirs import find_conf_dir, list_config_dirs, list_group_choices
from lmm_forget.config.error_messages import format_config_error
from lmm_forget.config.job_names import (
    build_job_name,
    build_single_job_name,
    find_swept_choices,
    list_config_differences,
)
from lmm_forget.config.resolving import resolve_config
from lmm_forget.config.schema.job_config import JobConfig

__all__ = [
    "JobConfig",
    "list_group_choices",
    "compose_config",
    "find_conf_dir",
    "list_config_differences",
    "format_config_error",
    "resolve_config",
    "list_config_dirs",
    "build_single_job_name",
    "build_job_name",
    "find_swept_choices",
]
