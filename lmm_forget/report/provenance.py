"""How the numbers of a report came about: configuration, versions, data and stage keys of its jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lmm_forget.report.job_results import Sweep
from lmm_forget.report.job_rows import extract_setting_fields


def describe_provenance(sweep: Sweep) -> dict[str, Any]:
    """What the page shows under "How it was made".

    That is: the configuration that all jobs share, the settings in which they differ, versions, data, stage keys.
    """
    results = sweep.results
    setting_fields = {
        job: extract_setting_fields(job_results["config"], ()) | {"seed": job_results["config"].get("seed")}
        for job, job_results in results.items()
    }
    names = list(dict.fromkeys(name for each in setting_fields.values() for name in each if name != "trained"))
    differing_names = [name for name in names if len({str(each.get(name)) for each in setting_fields.values()}) > 1]
    configs = [job_results["config"] for job_results in results.values()]
    shared = _intersect_configs(configs) if configs else {}
    versions: dict[str, list[str]] = {}
    for job_results in results.values():
        for name, version in (job_results.get("versions") or {}).items():
            known_values = versions.setdefault(name, [])
            if version not in known_values:
                known_values.append(version)
    data: dict[tuple[str, str], list[str]] = {}
    for job_results in results.values():
        for task, entry in (job_results.get("data") or {}).items():
            for use, about in entry.items():
                data_description = f"{about['samples']:,} of {about['split']}, {about['fingerprint']}"
                known_values = data.setdefault((task, use), [])
                if data_description not in known_values:
                    known_values.append(data_description)
    if "git" in versions:  # the commit of this code, not the version of the program git
        versions["the code (git commit)"] = versions.pop("git")
    return {
        "shared": yaml.safe_dump(shared, sort_keys=False, allow_unicode=True, width=100) if shared else "",
        "differ": differing_names[:20],
        "values": [
            (job, [_format_value(setting_fields[job].get(name)) for name in differing_names[:20]]) for job in results
        ],
        "versions": [(name, ", ".join(known)) for name, known in versions.items()],
        "mixed": [name for name, known in versions.items() if len(known) > 1],
        "data": [(task, use, known) for (task, use), known in data.items()],
        "jobs": [
            {
                "job": job,
                "hash": job_results["job"].get("hash"),
                "base": str(job_results["base"].get("weights_hash") or "")[:16],
                "stages": [(stage["task"], str(stage.get("key") or "")[:16]) for stage in job_results["stages"]],
            }
            for job, job_results in results.items()
        ],
    }


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _intersect_configs(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all configurations have in common, in the layout of the first."""
    first_config, *others = configs
    shared_config: dict[str, Any] = {}
    for key, value in first_config.items():
        if not all(key in other_config for other_config in others):
            continue
        values = [other_config[key] for other_config in others]
        if isinstance(value, Mapping) and all(isinstance(each, Mapping) for each in values):
            inner = _intersect_configs([value, *values])
            if inner or not value:
                shared_config[key] = inner
        elif all(each == value for each in values):
            shared_config[key] = value
    return shared_config
