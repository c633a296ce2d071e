"""Hashes of the Python code that decides results: a user's task, scorer or method, and this package's scorers."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmm_forget.tasks import scoring

PACKAGE_NAME = "lmm_forget"
_STANDARD_LIBRARY = Path(inspect.__file__).parent


def hash_user_code(*objects: Any) -> str | None:
    """SHA-256 (hex) of the source of the user's modules that define `objects` and their base classes; None without any.

    The user's modules that these import are included. Modules of this package, of the standard library and of installed
    packages are not: their versions are recorded instead.
    """
    return _hash_sources(_collect_user_sources(objects))


def hash_scorer_code(scorer: Any) -> str:
    """SHA-256 (hex) of the source that turns an answer into a score: the user's scorer, and all of tasks/scoring."""
    scoring_sources = {
        f"{scoring.__name__}/{path.relative_to(root).as_posix()}": path
        for root in map(Path, scoring.__path__)
        for path in root.rglob("*.py")
    }
    return str(_hash_sources(scoring_sources | _collect_user_sources([scorer])))


def _collect_user_sources(objects: Iterable[Any]) -> dict[str, Path]:
    """Source files, by module name, of the user's modules that define `objects`, and of those that these import."""
    sources: dict[str, Path] = {}
    pending_modules = [
        name
        for each in objects
        for part in (each, getattr(each, "task", each))
        for name in _iterate_defining_modules(part)
    ]
    while pending_modules:
        name = pending_modules.pop()
        path = None if name in sources else _find_user_source(name)
        if path is not None:
            sources[name] = path
            pending_modules += _iterate_imported_names(name, path)
    return sources


def _iterate_defining_modules(value: Any) -> Iterator[str]:
    """Names of the modules that define an object's class and its bases; for a function or a class, its own module."""
    owners: tuple[Any, ...] = value.__mro__ if inspect.isclass(value) else type(value).__mro__
    if inspect.isroutine(value):
        owners = (value,)
    yield from (str(owner.__module__) for owner in owners if getattr(owner, "__module__", None))


def _iterate_imported_names(module_name: str, path: Path) -> Iterator[str]:
    """Names that a module's source imports anywhere, with their packages; for "from a import b" both a and a.b.

    They are read from the source, because an imported value (a table, a number) does not know its module.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    package = module_name if path.name == "__init__.py" else module_name.rpartition(".")[0]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for each in names:
            pieces = each.split(".")
            yield from (".".join(pieces[: i + 1]) for i in range(len(pieces)) if pieces[0])


def _find_user_source(module_name: str) -> Path | None:
    """A user module's source file; None for a module of this package, the standard library or an installed package."""
    if module_name.partition(".")[0] in {PACKAGE_NAME, *sys.stdlib_module_names}:
        return None
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", None)
    if module is None:
        try:
            spec = importlib.util.find_spec(module_name)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec is not None else None
    if file is None or not file.endswith(".py"):
        return None
    path = Path(file)
    is_installed = {"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(_STANDARD_LIBRARY)
    return None if is_installed else path


def _hash_sources(sources: dict[str, Path]) -> str | None:
    if not sources:
        return None
    sha256 = hashlib.sha256()
    for name, path in sorted(sources.items()):
        try:
            content = path.read_bytes()
        except OSError:  # removed since it was imported
            content = b""
        sha256.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return sha256.hexdigest()
