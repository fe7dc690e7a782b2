"""What is said of a plan: its fields in the manifest, and its text for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnigraph.quantization.budget import Plan
from omnigraph.quantization.judge import Judge
from omnigraph.quantization.metrics.metric import loss_text
from omnigraph.report import table


def plan_fields(plan: Plan, judge: Judge, most: float | None, measured_on: str) -> dict[str, Any]:
    """A plan as JSON-ready fields, for manifest and report.

    Args:
        most: the bound on the loss.
        measured_on: where the loss of the plan was measured, for a person.
    """
    fields: dict[str, Any] = {"layers": [choice.to_dict() for choice in plan.choices]}
    if plan.losses is not None:
        fields |= {
            **judge.fields(plan.losses),
            "measured_on": measured_on,
            "stepped_back": list(plan.stepped_back),
        }
    if most is not None:
        fields["max_loss"] = most
    return fields


def plan_text(fields: Mapping[str, Any]) -> str:
    """The table of a plan, from its JSON fields, for a person."""
    rows = []
    for row in fields["layers"]:
        times = row.get("milliseconds")
        rows.append(
            (
                " and ".join(row["layers"]),
                row["choice"],
                f"{row['loss']:+.3%}" if "loss" in row else "",
                f"{times['float']:.3f}" if times else "",
                f"{times['quantized']:.3f}" if times else "",
                row["reason"],
            )
        )
    return table(("layer", "choice", "loss alone", "ms float", "ms quantized", "reason"), rows)


def loss_lines(fields: Mapping[str, Any]) -> list[str]:
    """What a plan loses, line by line, from its JSON fields, for a person."""
    if "loss" not in fields:
        return []
    lines = []
    for name, loss in fields["programs"].items():
        lines.append(
            f"{name}: {loss['metric']} on {loss['samples']} samples of {loss['evaluation']}: "
            + loss_text(loss)
            + ("" if loss["counts"] else "; its layers are judged by other programs")
        )
    lines.append(f"measured on {fields['measured_on']}")
    if "ranked_by" in fields:
        lines.append(f"the loss of each layer alone is by {fields['ranked_by']}")
    if back := fields["stepped_back"]:
        lines.append(
            f"{len(back)} layers stepped back: with them the loss was within the budget in "
            f"onnxruntime, but beyond it on the target: {', '.join(back)}"
        )
    return lines
