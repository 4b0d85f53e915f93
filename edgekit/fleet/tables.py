"""The page's tables: columns, cells (Vue templates), and a view's row as the cells want it. Knows no NiceGUI."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from edgekit.core import jobs as job_states
from edgekit.fleet import shown

BOARD_CELL = """<q-td :props="props">
  <span class="ek-dot" :class="{off: !props.row.online}" role="img"
    :aria-label="props.row.online ? 'online' : 'offline'"></span>
  <a :href="'/board/' + props.row.name">{{ props.row.name }}</a>
  <div class="ek-note">{{ props.row.profile }} <span v-for="tag in props.row.tags" class="ek-tag">{{ tag }}</span></div>
</q-td>"""
BUNDLE_CELL = """<q-td :props="props">{{ props.row.bundle }}
  <div class="ek-note" :class="{'ek-warn': props.row.differs}">{{ props.row.policy }}</div></q-td>"""
MIX_CELL = """<q-td :props="props">
  <div v-if="props.row.mix.length" class="ek-mix" role="img"
    :aria-label="props.row.mix_names" :title="props.row.mix_names">
  <div v-for="exit in props.row.mix" :style="{width: exit.share + '%', background: exit.color}"></div></div>
  <div class="ek-note">{{ props.row.mix_text }}</div></q-td>"""
FIGURE_CELL = """<q-td :props="props">{{ props.row[props.col.name + '_text'] }}
  <div class="ek-note">{{ props.row[props.col.name + '_note'] }}</div></q-td>"""
SEEN_CELL = """<q-td :props="props"><span class="ek-seen">{{ props.row.seen_text }}</span>
  <div v-if="props.row.warning" class="ek-note ek-warn">{{ props.row.warning }}</div></q-td>"""
BOARD_LINK_CELL = (
    """<q-td :props="props"><a :href="'/board/' + props.row.name">{{ props.row.name }}</a></q-td>"""
)
JOB_CELL = """<q-td :props="props"><a :href="'/job/' + props.row.id">{{ props.row.id }}</a></q-td>"""
GROUP_CELL = """<q-td :props="props"><a v-if="props.row.url" :href="props.row.url">{{ props.value }}</a>
  <span v-else class="ek-dim">{{ props.value }}</span></q-td>"""
LINK_CELL = """<q-td :props="props"><a :href="props.row.url">{{ props.value }}</a>
  <div v-if="props.row.note" class="ek-note">{{ props.row.note }}</div></q-td>"""
BOARD_ITEM = """<div class="ek-item">
  <div class="ek-line"><span><span class="ek-dot" :class="{off: !props.row.online}" role="img"
    :aria-label="props.row.online ? 'online' : 'offline'"></span>
    <a class="ek-link" :href="'/board/' + props.row.name">{{ props.row.name }}</a></span>
    <span class="ek-note">{{ props.row.seen_text }}</span></div>
  <div class="ek-note">{{ props.row.profile }} · {{ props.row.bundle }}
    <span v-if="props.row.differs" class="ek-warn">{{ props.row.policy }}</span>
    <span v-if="props.row.warning" class="ek-warn"> · {{ props.row.warning }}</span></div>
  <div class="ek-line ek-note"><span>{{ props.row.requests_text }} requests</span>
    <span>p95 {{ props.row.p95_text }}</span><span>{{ props.row.energy_text }}</span></div>
</div>"""
STATE_CELL = """<q-td :props="props"><span :class="'ek-' + props.row.color">{{ props.value }}</span></q-td>"""


_STATE_COLORS = {"active": "good", "done": "good", "failed": "bad", "refused": "bad", "expired": "bad"}


def board_row(row: dict[str, Any], now: float) -> dict[str, Any]:
    """A board in the fleet's table."""
    desired = row["desired"]
    revoked = row["revoked_at"] is not None  # then nothing is wanted of it any more
    differs = not revoked and desired is not None and desired["target"] not in {None, row["bundle"]}
    return {
        "name": row["name"],
        "online": row["online"],
        "profile": row["profile"] or "profile unknown",
        "tags": row["tags"],
        "bundle": row["bundle"] or "none",
        "policy": f"wanted: {desired['target']}" if differs else row["policy"] or "",
        "differs": differs,
        **figures(row),
        "seen": row["last_seen"] or 0.0,
        "seen_text": shown.ago(row["last_seen"], now),
        "warning": _warning(row),
    }


def _warning(row: dict[str, Any]) -> str:
    """The one thing to be said beside when it was last seen."""
    for key, word in (
        ("revoked_at", "revoked"),
        ("throttled", "throttled"),
        ("malformed", "malformed messages"),
    ):
        if row[key]:
            return word
    return ""


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """A summary's figures: the number that sorts, its text, and a note below it."""
    mix, energy, latency = shown.exit_mix(row["exit_counts"]), row["energy_mj"], row["latency_ms"]
    return {
        "requests": row["requests"],
        "requests_text": shown.count(row["requests"]),
        "requests_note": missed(row),
        **{key: latency[key] for key in ("p50", "p95", "p99")},
        **{f"{key}_text": shown.ms(latency[key]) for key in ("p50", "p95", "p99")},
        "mix": mix,
        "mix_names": ", ".join(f"{exit_['name']} {exit_['share']:.1f} %" for exit_ in mix),
        "mix_text": " · ".join(f"{exit_['share']:.0f}" for exit_ in mix) + " %" if mix else "",
        "accuracy": row["accuracy"],
        "accuracy_text": shown.percent(row["accuracy"], 2),
        "accuracy_note": f"of {shown.count(row['labelled'])}" if row["labelled"] else "no labels",
        "energy": energy["mean"],
        "energy_text": shown.energy(energy),
        "energy_note": shown.energy_source(energy) if row["requests"] else "",
    }


def change_rows(change: dict[str, Any]) -> list[dict[str, Any]]:
    """Boards that went from one version to another: a row before, and a row after with how many times it was."""
    number = shown.count(change["boards"])
    if change["looked_at"] < change["of"]:
        number += f", among {change['looked_at']} looked at of {shown.count(change['of'])}"
    old, new = figures(change["before"]), figures(change["after"])
    for key in ("p50", "p95", "p99", "energy"):
        if old[key] and new[key] is not None:
            new[f"{key}_note"] = f"{new[key] / old[key]:.2f} times" + (
                f", {new['energy_note']}" if key == "energy" else ""
            )
    key = f"{change['from']} {change['to']}"
    return [
        {"key": f"{key} before", "when": f"{number}: before", "bundle": change["from"], **old},
        {"key": f"{key} after", "when": f"{number}: after", "bundle": change["to"], **new},
    ]


def job_row(job: dict[str, Any], now: float) -> dict[str, Any]:
    """A job in a table."""
    return {
        "id": job["job_id"],
        "target": job_states.title(job),
        "to": job["to"],
        "policy": job["policy"] or "as configured",
        "created": job["created"],
        "seen_text": shown.ago(job["created"], now),
        "states": ", ".join(f"{number} {state}" for state, number in job.get("states", {}).items()),
    }


def job_device_row(name: str, row: dict[str, Any], now: float) -> dict[str, Any]:
    """A board in a job's table."""
    return {
        "name": name,
        **state(row),
        "updated": row["updated"],
        "seen_text": shown.ago(row["updated"], now),
    }


def state(row: dict[str, Any]) -> dict[str, Any]:
    """How a job stands on a board, why, and in which colour."""
    why = ": ".join(part for part in (row["reason"], row["detail"]) if part)
    return {"state": row["state"], "why": why, "color": _STATE_COLORS.get(row["state"], "dim")}


def event_row(index: int, event: dict[str, Any]) -> dict[str, Any]:
    """An event in a board's table."""
    detail = ", ".join(f"{key} {value}" for key, value in event["detail"].items())
    return {
        "key": index,
        "at": clock(event["at"]),
        "kind": event["kind"].replace("_", " "),
        "detail": detail,
    }


def missed(row: dict[str, Any]) -> str:
    """Errors and missed deadlines; empty where there are none."""
    parts = [
        f"{shown.count(row[key])} {what}"
        for key, what in (("errors", "errors"), ("deadline_missed", "late"))
        if row[key]
    ]
    return ", ".join(parts)


def energy_note(row: dict[str, Any]) -> str:
    """How an energy figure came about, and how busy the board was."""
    note = shown.energy_source(row["energy_mj"])
    return note if row["utilisation"] is None else f"{note}, busy {shown.percent(row['utilisation'], 0)}"


def health(row: dict[str, Any]) -> str:
    """Throttling and under-voltage, as the last record says."""
    words = [
        word for key, word in (("throttled", "throttled"), ("under_voltage", "under-voltage")) if row[key]
    ]
    if words:
        return ", ".join(words)
    return "not throttled" if row["throttled"] is False else "throttling unknown"


def clock(at: float) -> str:
    """A moment in this machine's time zone."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


_LONG = {"target", "states"}  # a job's settings, and its states, fill more than a line


def _columns(*described: tuple[str, str, str]) -> list[dict[str, Any]]:
    """name, label, align ("l" or "r")."""
    return [
        {
            "name": name,
            "label": label,
            "field": name,
            "align": {"l": "left", "r": "right"}[align],
            "sortable": True,
            "style": "white-space: normal" if name in _LONG else "",
        }
        for name, label, align in described
    ]


_FIGURES = (("p50", "p50", "r"), ("p95", "p95", "r"), ("p99", "p99", "r"))
BOARD_COLUMNS = _columns(
    ("name", "Board", "l"),
    ("bundle", "Bundle", "l"),
    ("requests", "Requests, 24 h", "r"),
    *_FIGURES,
    ("mix", "Exit mix", "l"),
    ("accuracy", "Accuracy", "r"),
    ("energy", "Energy / request", "r"),
    ("seen", "Last seen", "r"),
)
BUNDLE_COLUMNS = _columns(
    ("bundle", "Bundle", "l"),
    ("requests", "Requests", "r"),
    *_FIGURES,
    ("mix", "Exit mix", "l"),
    ("accuracy", "Accuracy", "r"),
    ("energy", "Energy / request", "r"),
)
UNSORTED = ("mix",)
for _column in BOARD_COLUMNS:  # the server sorts by what a figure of one day can be sorted by
    _column["sortable"] = _column["name"] not in UNSORTED


def group_columns(key: str) -> list[dict[str, Any]]:
    """A table with a row for each bundle or profile."""
    return _columns(
        (key, key.capitalize(), "l"),
        ("boards", "Boards", "r"),
        ("requests", "Requests", "r"),
        *_FIGURES,
        ("mix", "Exit mix", "l"),
        ("energy", "Energy / request", "r"),
    )


JOB_COLUMNS = _columns(
    ("id", "Job", "l"),
    ("target", "Bundle", "l"),
    ("to", "Boards", "l"),
    ("policy", "Policy", "l"),
    ("states", "State", "l"),
    ("created", "Created", "r"),
)
BOARD_JOB_COLUMNS = _columns(
    ("id", "Job", "l"),
    ("target", "Bundle", "l"),
    ("state", "State", "l"),
    ("why", "Why", "l"),
    ("created", "Created", "r"),
)
JOB_DEVICE_COLUMNS = _columns(
    ("name", "Board", "l"), ("state", "State", "l"), ("why", "Why", "l"), ("updated", "Changed", "r")
)
ROLLOUT_BOARD_COLUMNS = _columns(
    ("name", "Board", "l"),
    ("profile", "Profile", "l"),
    ("wave", "Wave", "l"),
    ("state", "State", "l"),
    ("why", "Why", "l"),
    ("before", "Ran before", "l"),
    ("back", "Going back", "l"),
    ("updated", "Changed", "r"),
)
for _column in ROLLOUT_BOARD_COLUMNS:  # by name, as the server gives them
    _column["sortable"] = False
EVENT_COLUMNS = _columns(("at", "When", "l"), ("kind", "What", "l"), ("detail", "Detail", "l"))
VERSION_COLUMNS = _columns(
    ("bundle", "Version", "l"),
    ("boards", "Boards", "r"),
    ("requests", "Requests", "r"),
    *_FIGURES,
    ("mix", "Exit mix", "l"),
    ("accuracy", "Accuracy", "r"),
    ("energy", "Energy / request", "r"),
)
CHANGE_COLUMNS = _columns(
    ("when", "Boards", "l"),
    ("bundle", "Version", "l"),
    *_FIGURES,
    ("mix", "Exit mix", "l"),
    ("energy", "Energy / request", "r"),
)
VERSION_PROFILE_COLUMNS = _columns(
    ("profile", "Profile", "l"),
    ("bundle", "Version", "l"),
    ("requests", "Requests", "r"),
    *_FIGURES,
    ("mix", "Exit mix", "l"),
    ("accuracy", "Accuracy", "r"),
    ("energy", "Energy / request", "r"),
)
