"""A rollout in words, shares and colours, for its screens. Pure; knows no NiceGUI."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.fleet import shown

Part = tuple[str, int, str]  # what became of boards, how many, in which colour (screens/style.py)

_STATES: Mapping[str, tuple[str, str]] = {  # in words, and in which colour
    "waiting": ("waiting", "ek-dim"),
    "starting": ("asking boards", "ek-here"),
    "running": ("boards at work", "ek-here"),
    "soaking": ("watching figures", "ek-here"),
    "paused": ("paused", "ek-warn"),
    "rolling_back": ("rolling back", "ek-warn"),
    "rolled_back": ("rolled back", "ek-bad"),
    "completed": ("completed", "ek-good"),
    "aborted": ("aborted", "ek-bad"),
    "failed": ("failed", "ek-bad"),
    # of waves
    "begun": ("under way", "ek-here"),
    "passed": ("passed its gate", "ek-good"),
    "accepted": ("accepted by hand", "ek-good"),
}
_PARTS = (
    ("took", "took it", "good"),
    ("failed", "failed", "bad"),
    ("silent", "silent", "warn"),
    ("refused", "refused", "exit-3"),
    ("superseded", "taken over by a newer job", "exit-5"),
    ("open", "at work", "link"),
)
KINDS = {key: text for key, text, _ in _PARTS} | {"waiting": "not asked yet"}
VERDICTS = {"ok": ("held", "ek-good"), "failed": ("too high", "ek-bad"), "unknown": ("not known", "ek-warn")}
_ORDER = {"failed": 0, "unknown": 1, "ok": 2}
_TIMES, _SHARES, _AWAY, _NUMBER = "times", "shares", "away", "number"
_KIND_OF = {
    "p99": _TIMES,
    "energy": _TIMES,
    "missed deadlines": _SHARES,
    "errors": _SHARES,
    "exit mix": _AWAY,
    "requests": _NUMBER,
}
_DOES = {
    "pause": (
        "Pause this rollout?",
        "No new wave begins and nothing is judged until it is resumed. At work, and going on: {open}. Have it: {took}.",
        "Pause it",
    ),
    "resume": (
        "Resume this rollout?",
        "{wave} goes on; where its gate failed it is judged once more. {waiting} not been asked yet.",
        "Resume it",
    ),
    "accept": (
        "Accept this wave whatever its gate says?",
        "{wave} counts as passed for good, and the next one begins: {waiting} not been asked yet.",
        "Accept it",
    ),
    "abort": (
        "Abort this rollout?",
        "It ends: {waiting} not been asked and will not be. At work, and going on: {open}. Keep it: {took}.",
        "Abort it",
    ),
    "rollback": (
        "Roll this rollout back?",
        "Who was asked goes back to what ran before, at once: {took} that took it, {open} at work, {silent} silent.",
        "Roll it back",
    ),
}
BUTTONS = {
    "pause": "Pause",
    "resume": "Resume",
    "accept": "Accept this wave",
    "abort": "Abort",
    "rollback": "Roll back",
}
DANGEROUS = frozenset({"accept", "abort", "rollback"})
DONE = {
    "pause": "Paused",
    "resume": "Resumed",
    "accept": "The wave is accepted",
    "abort": "Aborted",
    "rollback": "Boards are taken back",
}


def state(word: str) -> tuple[str, str]:
    """A rollout's or a wave's state in words, and its colour's class."""
    return _STATES.get(word, (word.replace("_", " "), "ek-dim"))


def boards(number: int) -> str:
    """`1 board`, `2 000 boards`."""
    return f"{shown.count(number)} board{'' if number == 1 else 's'}"


def parts_of(states: Mapping[str, int], total: int) -> list[Part]:
    """What became of boards, and how many are still to be asked; what is nobody's is left out."""
    found = [(text, states.get(key, 0), color) for key, text, color in _PARTS if states.get(key, 0)]
    rest = total - sum(number for _, number, _ in found)
    return found + ([("not asked yet", rest, "line")] if rest > 0 else [])


def in_words(parts: Sequence[Part]) -> str:
    """`12 took it · 2 failed`."""
    return " · ".join(f"{shown.count(number)} {text}" for text, number, _ in parts) or "no board"


def wave_title(name: str) -> str:
    """`Canary`, `Wave 1`."""
    return name.capitalize()


def stands_at(wave: int, waves: int) -> str:
    """`canary, 1 of 3`; behind the last wave there is none."""
    name = "canary" if wave == 0 else f"wave {wave}"
    return f"{name}, {wave + 1} of {waves}" if wave < waves else f"all {waves} waves done"


def confirmation(action: str, found: Mapping[str, Any]) -> tuple[str, str, str]:
    """Question, what happens and to how many boards, and the button. found: a rollout_detail."""
    question, does, button = _DOES[action]
    counts = found["boards"]
    names = [wave["name"] for wave in found["waves"]]
    wave = found["wave"]
    waiting = counts["total"] - counts["asked"]
    words = {key: boards(counts[key]) for key in ("open", "took")}
    words["silent"] = shown.count(counts["silent"])
    words["waiting"] = f"{boards(waiting)} {'has' if waiting == 1 else 'have'}"
    words["wave"] = wave_title(names[wave]) if wave < len(names) else "What is left"
    return question, does.format(**words), button


def check_rows(checks: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A gate's checks as a table wants them: what failed first."""
    return [_check(check) for check in sorted(checks, key=lambda check: _ORDER[check["verdict"]])]


def _check(check: Mapping[str, Any]) -> dict[str, str]:
    kind = _KIND_OF.get(check["figure"], _NUMBER)
    before, after, limit = check["before"], check["after"], check["limit"]
    word, tone = VERDICTS[check["verdict"]]
    if check["verdict"] == "unknown" and check["blocks"]:
        word, tone = "not known: stops it", "ek-bad"
    return {
        "scope": "all profiles" if check["scope"] == "all" else check["scope"],
        "figure": check["figure"],
        "before": _value(check["figure"], kind, None if kind == _AWAY else before),
        "after": _value(check["figure"], kind, None if kind == _AWAY else after),
        "change": _change(kind, before, after),
        "limit": _limit(kind, limit),
        "verdict": word,
        "tone": tone,
        "note": str(check["text"]).rpartition(": ")[2] if check["verdict"] == "unknown" else "",
    }


def _value(figure: str, kind: str, value: float | None) -> str:
    if value is None:
        return shown.UNKNOWN
    if kind == _SHARES:
        return shown.percent(value, 2)
    if figure == "energy":
        return f"{value:.3g} mJ"
    return shown.ms(value) if kind == _TIMES else shown.count(int(value))


def _change(kind: str, before: float | None, after: float | None) -> str:
    if before is None or after is None or kind == _NUMBER:
        return shown.UNKNOWN
    if kind == _SHARES:
        return f"{100 * (after - before):+.2f} points"
    if kind == _AWAY:
        return f"{after:.2f} away"
    if before <= 0:
        return shown.UNKNOWN if after <= 0 else "from nothing"
    ratio = after / before
    return f"{ratio:.2f} times" if math.isfinite(ratio) else "from nothing"


def _limit(kind: str, limit: float | None) -> str:
    if limit is None:
        return shown.UNKNOWN
    return {_TIMES: f"{limit:g} times", _SHARES: f"+{limit:g} points", _AWAY: f"{limit:g} away"}.get(
        kind, f"{limit:g}"
    )


def plan_pairs(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the plan asks for, in lines."""
    gate, canary = plan["gate"], plan["canary_gate"]
    windows = "; ".join(
        f"{' '.join(window['days'])} {window['from']}-{window['until']}" for window in plan["windows"]
    )
    return [
        ("Waves", f"canary {_size(plan['canary'])}, then up to {', '.join(map(_size, plan['waves']))}"),
        ("Boards per gate", f"at most {gate['max_failed_percent']:g} % failed or silent"),
        ("Figures", ", ".join(_limits(gate)) or "not looked at"),
        ("Soak", f"canary {span(canary['soak_s'])}, other waves {span(gate['soak_s'])}"),
        (
            "If a gate fails",
            f"canary: {_then(canary['on_failure'])}; other waves: {_then(gate['on_failure'])}",
        ),
        ("Boards answer within", span(plan["deadline_s"])),
        ("Windows", f"{windows} ({plan['time_zone']})" if windows else "any time"),
        ("Policy", _policy(plan["policy"])),
    ]


def _size(size: object) -> str:
    return str(size) if isinstance(size, str) else f"{size} boards"


def _then(word: str) -> str:
    return "roll back" if word == "roll-back" else word


def _limits(gate: Mapping[str, Any]) -> list[str]:
    known = (
        ("p99_ratio", "p99 {:g} times"),
        ("energy_ratio", "energy {:g} times"),
        ("deadline_points", "missed deadlines +{:g} points"),
        ("error_points", "errors +{:g} points"),
        ("exit_mix", "exit mix {:g} away"),
    )
    return [text.format(gate[key]) for key, text in known if gate[key] is not None]


def _policy(policy: Mapping[str, Any] | None) -> str:
    if policy is None:
        return "as configured on each board"
    amount = policy.get("budget") or (f"{policy['deadline_ms']:g} ms" if policy.get("deadline_ms") else "")
    return f"{policy['kind']} {amount}".strip()


def span(seconds: float) -> str:
    """`10 min`, `1.5 h`."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {unit}" if seconds % size == 0 else f"{seconds / size:.1f} {unit}"
    return f"{seconds:g} s"
