"""From YAML files and a command line to one plain, complete, checked configuration."""

from lmm_forget.config.composing import choices, compose, conf_dir, search_path
from lmm_forget.config.messages import one_line
from lmm_forget.config.naming import differences, single_name, slug, swept
from lmm_forget.config.resolving import resolve

__all__ = [
    "choices",
    "compose",
    "conf_dir",
    "differences",
    "one_line",
    "resolve",
    "search_path",
    "single_name",
    "slug",
    "swept",
]
