"""All boards, a page at a time: search, filters, order and page are in the address, so that a link can be shared."""

from __future__ import annotations

import dataclasses
from typing import Any

from nicegui import ui

from edgekit.fleet import tables, views
from edgekit.fleet.context import Context
from edgekit.fleet.screens import parts, reads
from edgekit.fleet.screens.frame import BUILD_S, frame
from edgekit.fleet.screens.fresh import Fresh, Reader

_FILTERS = (("profile", "Profile", "profiles"), ("bundle", "Bundle", "bundles"), ("tag", "Tag", "tags"))
_DEFAULTS = dataclasses.asdict(reads.Query())
_LONGEST = 200


def add(context: Context, reader: Reader) -> None:
    """Register the screen."""

    @ui.page("/boards", response_timeout=BUILD_S)
    async def boards(
        search: str = "",
        profile: str = "",
        bundle: str = "",
        state: str = "",
        tag: str = "",
        sort: str = "name",
        descending: bool = False,
        page: int = 1,
        size: int = 50,
    ) -> None:
        query = reads.Query(
            search[:_LONGEST],
            profile[:_LONGEST],
            bundle[:_LONGEST],
            state if state in reads.STATES else "",
            tag[:_LONGEST],
            sort,
            descending,
            min(max(page, 1), 10**6),
            size if size in {20, 50, 100} else 50,
        )
        asked = [query]

        async def ask(**changes: Any) -> None:
            asked[0] = dataclasses.replace(asked[0], **changes)
            ui.navigate.history.replace(parts.with_query("/boards", dataclasses.asdict(asked[0]), _DEFAULTS))
            await fresh.refresh()

        async def another_page() -> None:
            await ask(
                page=table.page, size=table.size, sort=table.sort or "name", descending=table.descending
            )

        with frame(context, "Boards") as place:
            with ui.row().classes("items-baseline gap-3"):
                parts.heading("Boards")
                number = ui.label().classes("ek-dim")
            selects = _filters(query, ask)
            table = parts.Paged(
                tables.BOARD_COLUMNS,
                "name",
                "No board is like this. Enrol one with: edgekit fleet enroll NAME -o DIR",
                another_page,
                size=query.size,
                page=query.page,
                sort=query.sort,
                descending=query.descending,
            )
            table.table.props(':grid="Quasar.Screen.lt.sm"').add_slot("item", tables.BOARD_ITEM)
            table.cells(
                {
                    "name": tables.BOARD_CELL,
                    "bundle": tables.BUNDLE_CELL,
                    "mix": tables.MIX_CELL,
                    "seen": tables.SEEN_CELL,
                },
                *("requests", "p50", "p95", "p99", "accuracy", "energy"),
            )

        def read() -> dict[str, Any]:
            with context.store.read() as connection:
                found = reads.device_page(connection, context.clock(), asked[0])
                return found | {"facets": views.facets(connection)}

        def show(found: dict[str, Any]) -> None:
            now = context.clock()
            number.set_text(f"{found['total']:,}".replace(",", "\u202f"))
            table.page = found["page"]
            table.show([tables.board_row(row, now) for row in found["devices"]], found["total"])
            for key, _, facet in _FILTERS:
                options = {"": "any"} | {name: f"{name} ({n})" for name, n in found["facets"][facet].items()}
                current = getattr(asked[0], key)
                options.setdefault(current, current)
                if selects[key].options != options:
                    selects[key].set_options(options, value=current)

        fresh = Fresh(reader, place, lambda: ("boards", asked[0]), read, show)
        await fresh.start()


def _filters(query: reads.Query, ask: Any) -> dict[str, ui.select]:
    found = {}
    with ui.row().classes("w-full items-center gap-2"):
        search = ui.input("Search", placeholder="name, profile, bundle, tag", value=query.search)
        search.props("outlined dense clearable debounce=300 maxlength=200").classes("grow min-w-52")
        search.on_value_change(lambda event: ask(search=event.value or "", page=1))
        states = {"": "any"} | {state: state for state in reads.STATES}
        for key, label, options in (
            ("state", "State", states),
            *(
                (key, label, {value: value or "any" for value in ("", getattr(query, key))})
                for key, label, _ in _FILTERS
            ),
        ):
            select = ui.select(options, value=getattr(query, key), label=label)
            select.props("outlined dense options-dense").classes("w-40 max-sm:w-[calc(50%-.25rem)]")
            select.on_value_change(_asker(ask, key))
            found[key] = select
    return found


def _asker(ask: Any, key: str) -> Any:
    return lambda event: ask(**{key: event.value or "", "page": 1})
