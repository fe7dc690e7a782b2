"""Describes models, artifacts and passes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnigraph.artifact import Artifact
from omnigraph.artifact.signature import Key
from omnigraph.errors import UsageError
from omnigraph.exporting.options import ExportOptions
from omnigraph.report import size_text, table

if TYPE_CHECKING:
    from omnigraph.inspection.stages import Subject
    from omnigraph.passes.pipeline import Pipeline
    from omnigraph.program import Program


def inspect(
    subject: object,
    *,
    target: str | None = None,
    options: ExportOptions | None = None,
    trusted: Key | Sequence[Key] | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Describe an artifact, or a model as traced and after the passes.

    Args:
        subject: the path of an artifact, or a model as for ``export``.
        target: for a model, whose passes to run; None is the passes that all targets begin with.
        options: for a model, as for ``export``.
        trusted: for an artifact, as for ``load``.
        given: fields of `ExportOptions` by keyword.

    Returns:
        JSON-ready fields: the manifest of an artifact; or the programs of a model, each with
        inputs, outputs, nodes by op as traced and after the passes, the changes of each pass, and
        the form of each attention.

    Raises:
        ArtifactError: the path is not a valid artifact, or no trusted key has signed it.
        UsageError: there is no such model, or keys are given for one.
    """
    if isinstance(subject, str | os.PathLike) and Path(subject).exists():
        from omnigraph.frontends.resolve import is_model_path

        path = Path(subject)
        if path.suffix != ".py" and not is_model_path(path):
            artifact = Artifact(path, trusted=trusted)
            return {"artifact": str(path), "bytes": artifact.size, **artifact.manifest}
    if trusted is not None:
        raise UsageError(
            "Only an artifact is signed, and this is a model",
            found=str(subject),
            hint="leave --trusted out",
        )
    from omnigraph.inspection.stages import Subject

    return _inspect_model(Subject(subject, target, ExportOptions.of(options, given)))


def _inspect_model(subject: Subject) -> dict[str, Any]:
    from omnigraph.exporting.expendable import tried
    from omnigraph.frontends.training_modes import TrainingModes

    pipeline = subject.pipeline()
    with TrainingModes() as modes:
        source = subject.source(modes)
        programs, why = tried(
            source.programs, lambda program: (program.name, _inspect_program(program, pipeline))
        )
    source = replace(source, not_made={**source.not_made, **why})
    return {"model": source.to_dict(), "name": source.name, "programs": dict(programs)}


def _inspect_program(program: Program, pipeline: Pipeline) -> dict[str, Any]:
    from omnigraph.graph import count_ops
    from omnigraph.ledger.attention import attention_sites
    from omnigraph.passes.base import run_passes
    from omnigraph.tracing.names import output_specs
    from omnigraph.tracing.trace import trace_within_limits

    program, graph = trace_within_limits(program)
    traced = dict(sorted(count_ops(graph).items()))
    outputs = [spec.to_dict() for spec in output_specs(graph)]
    records = run_passes(graph, pipeline)
    return {
        "inputs": [spec.to_dict() for spec in program.inputs],
        "outputs": outputs,
        "traced_ops": traced,
        "ops": dict(sorted(count_ops(graph).items())),
        "passes": [{"name": r.name, "changes": r.changes} for r in records if r.modified],
        "attention": [site.to_dict() for site in attention_sites(graph, records)],
    }


def describe_text(found: Mapping[str, Any]) -> str:
    """The result of ``inspect`` as text."""
    from omnigraph.inspection.precision_table import precision_text

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
    for name, why in found.get("model", {}).get("not_made", {}).items():
        lines += ["", f"no program {name}: {why}"]
    for name, program in found["programs"].items():
        lines += ["", f"program {name}", _tensors_text(program), "", _ops_text(program)]
        rows = [
            (step["name"], _changes_text(step["changes"])) for step in program.get("passes", ())
        ]
        lines += ["", table(("pass", "nodes more (+) or fewer (-)"), rows)]
        if program.get("layers"):
            lines += ["", precision_text(program["layers"])]
        if program.get("attention"):
            lines += ["", attention_text(program["attention"])]
    return "\n".join(lines)


#: Vendors' names of kernels for a whole attention.
_ATTENTION_KERNELS = ("Attention",)


def add_kernels(found: dict[str, Any]) -> None:
    """Load an artifact that ``inspect`` described, and add the kernel that runs each attention.

    Raises:
        UsageError: it is not an artifact, or its runtime does not report kernels.
        DeviceError: it cannot run here.
    """
    from omnigraph.runtimes import load
    from omnigraph.runtimes.kernels import kernels_of

    if "artifact" not in found:
        raise UsageError(
            "Only a compiled artifact has kernels",
            found="a model",
            hint="export it, and inspect the artifact with --kernels",
        )
    with load(found["artifact"]) as session:
        for name, program in found["programs"].items():
            sites = [site for site in program.get("attention", ()) if site["fused"]]
            names = [site["node"] for site in sites]
            kernels = session.kernels(name)
            if kernels is None:
                raise UsageError(
                    f"The runtime of {found['target']!r} does not report its kernels",
                    hint="leave --kernels out",
                )
            for site, kernel in zip(
                sites, kernels_of(kernels, names, _ATTENTION_KERNELS), strict=True
            ):
                site["kernel"] = kernel or "not reported"


def attention_text(sites: Sequence[Mapping[str, Any]]) -> str:
    """The fusion ledger of one program as a table, with equal sites in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for site in sites:
        became = f"{site['op']}: {site.get('form', '')}" if site["fused"] else "not fused"
        row = (became, site.get("reason", ""), site.get("kernel", ""))
        rows.setdefault(row, []).append(site.get("module") or site["node"])
    kernels = any(kernel for _, _, kernel in rows)
    header = ("attention of", "sites", "became", "why not", *(("kernel",) if kernels else ()))
    return table(
        header,
        [
            (_span(modules), str(len(modules)), became, why, *((kernel,) if kernels else ()))
            for (became, why, kernel), modules in rows.items()
        ],
    )


def _span(modules: Sequence[str]) -> str:
    first, last = modules[0], modules[-1]
    return first if first == last else f"{first} … {last}"


def _tensors_text(program: Mapping[str, Any]) -> str:
    rows = []
    for way in ("inputs", "outputs"):
        for spec in program[way]:
            shape = "[" + ", ".join(map(str, spec["shape"])) + "]"
            notes = [f"default {spec['default']}"] if "default" in spec else []
            notes += _range_text(spec)
            rows.append((way[:-1], spec["name"], spec["dtype"], shape, ", ".join(notes)))
    return table(("", "name", "dtype", "shape", ""), rows)


def _range_text(spec: Mapping[str, Any]) -> list[str]:
    """The values that a tensor may have, where not all of its type."""
    least, greatest = spec.get("least"), spec.get("greatest")
    if least is None and greatest is None:
        return []
    if spec["dtype"].startswith("float"):
        return ["no NaN"]
    if greatest is None:
        return [f"at least {least}"]
    return [f"at most {greatest}" if least is None else f"{least} to {greatest}"]


def _ops_text(program: Mapping[str, Any]) -> str:
    after = program.get("ops", {})
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
    """The installed passes: name, options with defaults, purpose, and whether it rounds."""
    from omnigraph.passes.base import purpose
    from omnigraph.passes.registry import describe_options, installed_passes

    return [
        {
            "name": name,
            "options": describe_options(kind),
            "purpose": purpose(kind),
            "rounds": kind.rounds,
        }
        for name, kind in installed_passes().items()
    ]
