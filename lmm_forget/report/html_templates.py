"""The jinja templates of the report's pages; they lie beside this module as *.html.j2, with one .css and one .js."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jinja2


def render_template(name: str, **values: Any) -> str:
    """The template `name` (summary.html.j2) filled with `values`; text is escaped, and a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_template_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def read_template_file(name: str) -> str:
    """The text of a file beside this module."""
    return resources.files("lmm_forget.report").joinpath(name).read_text(encoding="utf-8")


def encode_script_json(data: Any) -> str:
    """JSON that cannot end the <script> element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
