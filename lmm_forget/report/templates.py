"""The package's page templates, as jinja2 reads them."""

from __future__ import annotations

from importlib import resources

import jinja2


def create_jinja_environment() -> jinja2.Environment:
    """Templates of this folder by file name; values are escaped, a missing one is an error."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read_template(name: str) -> str:
    """A file of lmm_forget/report, as text."""
    return resources.files("lmm_forget.report").joinpath(name).read_text(encoding="utf-8")
