"""What the form of a new rollout holds, as a plan. Pure; Plan.parse says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.core.errors import BadInput
from edgekit.core.policy import KINDS
from edgekit.fleet.rollouts.plan import Gate, Plan

POLICIES = {"": "as configured on each board", **{kind: kind for kind in KINDS}}
THEN = {"roll-back": "roll back", "pause": "pause"}
LIMITS = (  # key of Gate, label, whether it may be left empty (not looked at)
    ("max_failed_percent", "Failed or silent, at most %", False),
    ("p99_ratio", "p99, at most times", True),
    ("energy_ratio", "Energy, at most times", True),
    ("error_points", "Errors, at most points more", True),
    ("deadline_points", "Late, at most points more", True),
    ("exit_mix", "Exit mix, at most away (0-1)", True),
    ("min_requests", "Requests to judge on, at least", False),
)


def defaults(target: str) -> dict[str, Any]:
    """The form as it opens. target: a published bundle's label, or empty."""
    gate = Gate()
    return {
        "target": target,
        "to": "all",
        "canary": str(Plan.canary.to_json()),
        "waves": ", ".join(str(size.to_json()) for size in Plan.waves),
        **{key: getattr(gate, key) for key, _, _ in LIMITS},
        "canary_fails": "roll-back",
        "wave_fails": gate.on_failure,
        "soak_min": gate.soak_s / 60,
        "deadline_min": Plan.deadline_s / 60,
        "windows": [],
        "time_zone": "UTC",
        "policy": "",
        "amount": "",
        "overlap": False,
    }


def plan_of(form: Mapping[str, Any]) -> Plan:
    """What the form asks for. Raises BadInput."""
    if not form["target"]:
        raise BadInput("choose a bundle")
    gate: dict[str, Any] = {
        key: _number(form[key], label, may_be_empty=empty) for key, label, empty in LIMITS
    }
    gate["min_requests"] = int(gate["min_requests"])
    gate |= {
        "soak_s": 60 * _number(form["soak_min"], "Soak"),
        "on_failure": form["wave_fails"],
    }
    gate["wait_s"] = max(Gate().wait_s, gate["soak_s"])
    return Plan.parse(
        {
            "target": form["target"],
            "to": str(form["to"] or "").strip(),
            "canary": str(form["canary"] or "").strip(),
            "waves": [part.strip() for part in str(form["waves"] or "").split(",") if part.strip()],
            "gate": gate,
            "canary_gate": {"on_failure": form["canary_fails"]},
            "deadline_s": 60 * _number(form["deadline_min"], "Boards answer within"),
            "windows": [dict(window) for window in form["windows"]],
            "time_zone": str(form["time_zone"] or "").strip(),
            "policy": _policy(str(form["policy"]), str(form["amount"] or "").strip()),
            "overlap": bool(form["overlap"]),
        }
    )


def _number(value: object, label: str, *, may_be_empty: bool = False) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if may_be_empty and value in (None, ""):
        return None
    raise BadInput(f"{label}: must be a number")


def _policy(kind: str, amount: str) -> dict[str, Any] | None:
    """A kind and its one amount: a budget (3ms, 5mJ), a deadline in ms, or a drop in points."""
    if not kind:
        return None
    if kind == "budget":
        return {"kind": kind, "budget": amount}
    key = {"anytime": "deadline_ms", "confidence": "max_drop"}.get(kind)
    if key is None or (key == "max_drop" and not amount):
        return {"kind": kind}
    try:
        return {"kind": kind, key: float(amount)}
    except ValueError as err:
        wanted = "a deadline in ms" if key == "deadline_ms" else "a drop in points"
        raise BadInput(f"policy {kind}: its amount must be {wanted}, got {amount!r}") from err
