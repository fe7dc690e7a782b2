"""Looking at models, artifacts, passes and targets."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from omnigraph.report import size_text, table


def inspect(
    subject: object,
    *,
    config: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What is in an artifact, or what a model traces to and what the passes make of it.

    Args:
        subject: the path of an artifact, or whatever ``export`` takes as a model.

    Returns:
        JSON-ready fields: the manifest of an artifact; of a model its programs, each with inputs,
        outputs, nodes by op as traced and after the passes, and what each pass changed.

    Raises:
        ArtifactError: the path is of no sound artifact.
        UsageError: there is no such model.
    """
    if isinstance(subject, str | os.PathLike) and Path(subject).exists():
        path = Path(subject)
        if path.suffix != ".py":
            from omnigraph.artifact import Artifact

            artifact = Artifact(path)
            return {"artifact": str(path), "bytes": artifact.size, **artifact.manifest}
    return _inspect_model(subject, config, settings)


def _inspect_model(
    subject: object, config: str | None, settings: Mapping[str, str] | None
) -> dict[str, Any]:
    from omnigraph.model_source import resolve
    from omnigraph.passes.base import count_ops, run_passes
    from omnigraph.passes.pipelines import canonical
    from omnigraph.trace import output_specs, trace

    source = resolve(subject, config=config, settings=settings)
    programs = {}
    for program in source.programs:
        graph = trace(program)
        traced = dict(sorted(count_ops(graph).items()))
        outputs = [spec.to_dict() for spec in output_specs(graph)]
        records = run_passes(graph, canonical())
        programs[program.name] = {
            "inputs": [spec.to_dict() for spec in program.inputs],
            "outputs": outputs,
            "traced_ops": traced,
            "ops": dict(sorted(count_ops(graph).items())),
            "passes": [{"name": r.name, "changes": r.changes} for r in records if r.modified],
        }
    return {"model": {"config": dict(source.config)}, "name": source.name, "programs": programs}


def describe_text(found: Mapping[str, Any]) -> str:
    """What ``inspect`` found, for a person."""
    lines = []
    if "artifact" in found:
        lines.append(
            f"{found['artifact']}: {found['name']} for {found['target']} on {found['device']}, "
            f"{found['precision']}, {size_text(found['bytes'])}"
        )
        tools = {**found["tools"], **{k: f"needs {v}" for k, v in found["requires"].items()}}
        lines.append(", ".join(f"{name} {version}" for name, version in tools.items()))
        lines.append(
            "\n"
            + table(
                ("file", "size"),
                [(name, size_text(file["bytes"])) for name, file in found["files"].items()],
            )
        )
    else:
        lines.append(found["name"])
    for name, program in found["programs"].items():
        lines += ["", f"program {name}", _tensors_text(program), "", _ops_text(program)]
        rows = [
            (step["name"], _changes_text(step["changes"])) for step in program.get("passes", ())
        ]
        lines += ["", table(("pass", "nodes more (+) or fewer (-)"), rows)]
    return "\n".join(lines)


def _tensors_text(program: Mapping[str, Any]) -> str:
    rows = []
    for way in ("inputs", "outputs"):
        for spec in program[way]:
            shape = "[" + ", ".join(map(str, spec["shape"])) + "]"
            default = f"default {spec['default']}" if "default" in spec else ""
            rows.append((way[:-1], spec["name"], spec["dtype"], shape, default))
    return table(("", "name", "dtype", "shape", ""), rows)


def _ops_text(program: Mapping[str, Any]) -> str:
    after = program["ops"]
    before = program.get("traced_ops")
    if before is None:
        return table(("op", "nodes"), list(after.items()))
    ops = sorted({*before, *after})
    return table(
        ("op", "traced", "after the passes"),
        [(op, str(before.get(op, 0)), str(after.get(op, 0))) for op in ops],
    )


def _changes_text(changes: Mapping[str, int]) -> str:
    return ", ".join(f"{op} {count:+d}" for op, count in changes.items()) or "values only"


def list_passes() -> list[dict[str, Any]]:
    """Every pass that is installed: name, options and defaults, purpose, whether it rounds."""
    from omnigraph import passes
    from omnigraph.passes.base import Pass, pass_name, purpose

    found: dict[str, type[Pass]] = {}
    for module in pkgutil.iter_modules(passes.__path__):
        for value in vars(importlib.import_module(f"{passes.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Pass) and value is not Pass:
                found[pass_name(value)] = value
    return [
        {
            "name": name,
            "options": [
                f.name if f.default is MISSING else f"{f.name}={f.default}" for f in fields(kind)
            ],
            "purpose": purpose(kind),
            "rounds": kind.rounds,
        }
        for name, kind in sorted(found.items())
    ]


def list_targets() -> list[dict[str, Any]]:
    """Every target that is installed: what it is, whether it compiles here and runs here."""
    from omnigraph.lowering import targets

    return [
        {
            "name": name,
            "purpose": target.purpose,
            "precisions": list(target.precisions),
            "options": dict(target.options),
            "unusable": target.unusable(),
            "unrunnable": target.unrunnable(),
        }
        for name, target in targets().items()
    ]
