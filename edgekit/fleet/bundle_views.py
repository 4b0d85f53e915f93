"""What is shown of bundles: versions across boards, and boards before and after they changed version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from edgekit.fleet import schema as db
from edgekit.fleet.board_views import boards_by, points_of
from edgekit.fleet.figures import Sum, total
from edgekit.fleet.names import BUNDLE, all_of, texts_of
from edgekit.fleet.reading import board_sums, fleet_series, step_of
from edgekit.fleet.viewing import DEFAULT_WINDOW_S, Unknown

_MOST_ROWS = 2400  # of boards' roll-ups that are read to compare versions
_DONE = "active"


def bundle_rows(
    connection: sa.Connection, now: float, window_s: float = DEFAULT_WINDOW_S
) -> list[dict[str, Any]]:
    """Every bundle version that boards run or have run within the window: boards, and figures of all of them."""
    sums: dict[str, list[Sum]] = {}
    found = fleet_series(connection, now - window_s, now)
    texts = texts_of(connection, {bundle for _, _, bundle, _ in found})
    for _, _, bundle, figures in found:
        if bundle in texts:
            sums.setdefault(texts[bundle], []).append(figures)
    boards = {bundle: (count, here) for bundle, count, here in boards_by(connection, now, "bundle") if bundle}
    rows = []
    for label in sorted({*sums, *boards}, key=_order):
        figures = total(sums.get(label, ()))
        count, here = boards.get(label, (0, 0))
        name, version = _parts(label)
        head = {"bundle": label, "name": name, "version": version, "boards": count, "online": here}
        rows.append(head | figures.summary(texts_of(connection, figures.names)))
    return rows


def bundle_detail(
    connection: sa.Connection, name: str, now: float, window_s: float = DEFAULT_WINDOW_S
) -> dict[str, Any]:
    """The versions of a bundle, newest first, each with its boards, figures, and the same by profile and over time.

    `changes`: figures of the same boards before and after they changed from one version to another. Raises Unknown.
    """
    ids = {number: label for number, label in all_of(connection, BUNDLE).items() if _parts(label)[0] == name}
    found = [part for part in fleet_series(connection, now - window_s, now) if part[2] in ids]
    counts = {
        (label, profile): (count, here)
        for label, profile, count, here in boards_by(connection, now, "bundle", "profile")
        if label and _parts(label)[0] == name
    }
    labels = {ids[part[2]] for part in found} | {label for label, _ in counts}
    if not labels and not ids:
        raise Unknown(f"no board has run a bundle called {name!r}")
    texts = texts_of(connection, {part[1] for part in found} | {n for part in found for n in part[3].names})
    step = step_of(window_s)
    versions = []
    for label in sorted(labels, key=_order, reverse=True):
        own = [part for part in found if ids[part[2]] == label]
        boards = [count for (at, _), count in counts.items() if at == label]
        versions.append(
            {
                "bundle": label,
                "version": _parts(label)[1],
                "boards": sum(count for count, _ in boards),
                "online": sum(here for _, here in boards),
                **total(part[3] for part in own).summary(texts),
                "profiles": _by_profile(label, own, counts, texts),
                "series": points_of(connection, [(at, bundle, s) for at, _, bundle, s in own], step),
            }
        )
    changes = [] if len(labels) < 2 else _changes(connection, ids, now, window_s)
    return {"name": name, "versions": versions, "changes": changes}


def _by_profile(
    label: str,
    own: Sequence[tuple[int, int, int, Sum]],
    counts: Mapping[tuple[str, str], tuple[int, int]],
    texts: Mapping[int, str],
) -> list[dict[str, Any]]:
    sums: dict[str, list[Sum]] = {}
    for _, profile, _, figures in own:
        sums.setdefault(texts.get(profile, "unknown"), []).append(figures)
    names = {*sums, *(profile or "unknown" for at, profile in counts if at == label)}
    return [
        {
            "profile": name,
            "boards": counts.get((label, name), (0, 0))[0],
            **total(sums.get(name, ())).summary(texts),
        }
        for name in sorted(names)
    ]


def _changes(
    connection: sa.Connection, ids: Mapping[int, str], now: float, window_s: float
) -> list[dict[str, Any]]:
    """Of boards that a job has brought a version within the window: `boards` of them are compared, `of` there are."""
    jobs, states = db.jobs, db.job_devices
    query = (
        sa.select(states.c.device)
        .join(jobs, jobs.c.id == states.c.job)
        .where(
            jobs.c.target.in_(sorted(ids.values())),
            states.c.state == _DONE,
            states.c.updated >= now - window_s,
        )
        .distinct()
        .order_by(states.c.device)
    )
    boards = list(connection.scalars(query))
    most = max(1, _MOST_ROWS // max(1, int(window_s // step_of(window_s))))
    chosen = boards[:: max(1, -(-len(boards) // most))]
    before: dict[tuple[str, str], list[tuple[Sum, Sum]]] = {}
    for parts in board_sums(connection, now - window_s, now, chosen).values():
        labels = sorted((ids[key] for key in parts if key in ids and parts[key].requests), key=_order)
        own = {ids[key]: figures for key, figures in parts.items() if key in ids}
        for older, newer in pairwise(labels):
            before.setdefault((older, newer), []).append((own[older], own[newer]))
    found = []
    for (older, newer), pairs in sorted(before.items()):
        sums = (total(a for a, _ in pairs), total(b for _, b in pairs))
        texts = texts_of(connection, sums[0].names | sums[1].names)
        head = {"from": older, "to": newer, "boards": len(pairs), "looked_at": len(chosen), "of": len(boards)}
        found.append(head | {"before": sums[0].summary(texts), "after": sums[1].summary(texts)})
    return found


def _parts(label: str) -> tuple[str, int | None]:
    """Name and version; a board may call its bundle anything."""
    name, _, version = label.rpartition("/")
    return (name, int(version)) if name and version.isdecimal() and len(version) < 19 else (label, None)


def _order(label: str) -> tuple[str, int, str]:
    name, version = _parts(label)
    return name, -1 if version is None else version, label
