"""How every screen looks: one style sheet with colours for light and dark. Text has a contrast of at least 4.5 to 1.

Charts take their colours from the same variables, in the browser (charts.py).
"""

# ruff: noqa: E501  (a rule a line)

from __future__ import annotations

from collections.abc import Mapping

_WORDS: Mapping[str, tuple[str, str]] = {  # what is written, and what it is written on: light, dark
    "ink": ("#1b1f24", "#e6edf3"),
    "dim": ("#59636e", "#9aa7b3"),
    "page": ("#f4f5f7", "#101418"),
    "card": ("#ffffff", "#191f26"),
    "line": ("#d9dee4", "#313b45"),
    "good": ("#0b7a55", "#4cc38a"),
    "bad": ("#b3261e", "#ff8a80"),
    "warn": ("#8a5a00", "#e6b450"),
    "link": ("#0b5cad", "#79b8ff"),
    "go": ("#0b5cad", "#1f6fc4"),  # a button's ground, under white
}
_DRAWN: Mapping[str, tuple[str, str]] = {  # lines and areas: told apart with every kind of colour vision
    "p50": ("#0b6fb0", "#58a6f0"),
    "p95": ("#b45f06", "#f2b134"),
    "p99": ("#7a1f6b", "#e06aa8"),
    "one": ("#0b6fb0", "#58a6f0"),
    "exit-0": ("#1a9aa8", "#3cc4c4"),
    "exit-1": ("#0d5c8c", "#3f8fd6"),
    "exit-2": ("#c77700", "#f0b040"),
    "exit-3": ("#a8325e", "#e0708f"),
    "exit-4": ("#4a2b80", "#b79af0"),
    "exit-5": ("#6b7280", "#8b95a1"),
}
COLOURS: Mapping[str, tuple[str, str]] = {**_WORDS, **_DRAWN}


def _variables(mode: int) -> str:
    return "; ".join(f"--{name}: {pair[mode]}" for name, pair in COLOURS.items())


STYLE = (
    f":root {{ {_variables(0)}; color-scheme: light }}\nbody.body--dark {{ {_variables(1)}; color-scheme: dark }}"
    """
body { background: var(--page) !important; color: var(--ink); font-family: system-ui, sans-serif }
html, body { overflow-x: hidden }
:focus-visible { outline: 2px solid var(--link) !important; outline-offset: 2px }
.nicegui-content { padding: 0; gap: 0 }
.ek-page { max-width: 1440px; margin: 0 auto; width: 100%; padding: 1rem; gap: 1rem }
.ek-row { display: flex; flex-wrap: wrap; gap: .75rem; width: 100%; align-items: stretch }
.ek-two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr)); gap: .75rem; width: 100% }
.ek-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; width: 100% }
.ek-bar { background: var(--card); border-bottom: 1px solid var(--line); width: 100%; position: sticky; top: 0; z-index: 10 }
.ek-bar > div { max-width: 1440px; margin: 0 auto; padding: .45rem 1rem; display: flex; align-items: center; gap: .75rem }
.ek-bar nav { display: flex; gap: .15rem; overflow-x: auto; flex: 1 1 auto; min-width: 0; scrollbar-width: none }
.ek-who { white-space: nowrap }
a.ek-nav { color: var(--dim); text-decoration: none; padding: .3rem .6rem; border-radius: 7px; white-space: nowrap }
a.ek-nav:hover { color: var(--ink) }
a.ek-nav.here { color: var(--ink); background: var(--page); font-weight: 600 }
.ek-title { font-size: 1.35rem; font-weight: 650; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
.ek-section { font-size: 1rem; font-weight: 600; margin: 0 !important; line-height: 1.4 }
.ek-card { background: var(--card); color: var(--ink); border: 1px solid var(--line); border-radius: 10px;
  box-shadow: none; padding: .8rem 1rem; min-width: 0; width: 100%; gap: .5rem }
.ek-figure { font-size: 1.2rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.ek-note { font-size: .8rem; color: var(--dim) }
.ek-dim { color: var(--dim) } .ek-good { color: var(--good) }
.ek-bad { color: var(--bad) } .ek-warn { color: var(--warn) }
.ek-here { color: var(--link) }
.ek-clip { display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden }
.ek-wave { border-top: 1px solid var(--line); padding-top: .6rem; width: 100%; display: grid; gap: .35rem; min-width: 0 }
.ek-wave:first-child { border-top: 0; padding-top: 0 }
.ek-wave-head { display: flex; flex-wrap: wrap; gap: .1rem .75rem; align-items: baseline }
.ek-form { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); gap: .9rem .6rem; width: 100% }
.ek-form .q-field__bottom { padding: 3px 12px 0 }
details.ek-more > summary { cursor: pointer; color: var(--link); font-weight: 600; font-size: .88rem }
.ek-note.ek-warn { color: var(--warn) } .ek-note.ek-bad { color: var(--bad) }
.ek-problem { background: color-mix(in srgb, var(--bad) 10%, var(--card)); border: 1px solid var(--bad);
  color: var(--ink); border-radius: 8px; padding: .5rem .8rem; width: 100%; overflow-wrap: anywhere }
.ek-problem.mild { background: color-mix(in srgb, var(--warn) 10%, var(--card)); border-color: var(--warn) }
.q-table__container { background: var(--card) !important; color: var(--ink); border: 1px solid var(--line);
  border-radius: 10px; box-shadow: none !important; max-width: 100% }
.ek-card .q-table__container { border: 0; border-radius: 0 }
.q-table th { color: var(--dim); font-weight: 600; font-size: .8rem; white-space: nowrap !important }
.q-table td { font-variant-numeric: tabular-nums }
.q-table th:not(:first-child), .q-table td:not(:first-child) { padding: 6px 10px }
.q-table td .ek-note { white-space: normal }
.ek-seen, .q-table td a { white-space: nowrap }
.q-table__bottom-nodata-icon { display: none }
.q-table th, .q-table td, .q-table__bottom { border-color: var(--line) !important }
.q-table__bottom { color: var(--dim) }
.q-table__grid-content { padding: .25rem }
.ek-item { border-top: 1px solid var(--line); padding: .6rem .7rem; width: 100%; display: grid; gap: .15rem }
.ek-item .ek-line { display: flex; justify-content: space-between; gap: .75rem; flex-wrap: wrap }
a.ek-link, .q-table a { color: var(--link); text-decoration: none; font-weight: 600 }
a.ek-link:hover, .q-table a:hover { text-decoration: underline }
.ek-dot { display: inline-block; width: .6rem; height: .6rem; border-radius: 50%; margin-right: .5rem; background: var(--good) }
.ek-dot.off { background: transparent; box-shadow: inset 0 0 0 2px var(--dim) }
.ek-mix { display: flex; width: 8rem; height: .85rem; border-radius: 4px; overflow: hidden; background: var(--line) }
.ek-mix.wide { width: 100% }
.ek-meter { height: .5rem; border-radius: 4px; background: var(--line); overflow: hidden; min-width: 5rem; display: flex }
.ek-meter > div { height: 100% }
.ek-tag { white-space: nowrap; border: 1px solid var(--line); border-radius: 5px; padding: 0 .35rem; margin-right: .25rem;
  font-size: .78rem; color: var(--dim) }
.ek-pairs { display: grid; grid-template-columns: minmax(6.5rem, max-content) 1fr; gap: .2rem .9rem; font-size: .9rem; width: 100% }
.ek-pairs > :nth-child(odd) { color: var(--dim) }
.ek-pairs > * { overflow-wrap: anywhere; min-width: 0 }
.ek-lines { list-style: none; margin: 0; padding: 0; width: 100%; display: grid; gap: .35rem }
.ek-lines li { display: grid; grid-template-columns: 9.5rem 1fr; gap: .1rem .75rem; border-top: 1px solid var(--line);
  padding-top: .35rem; overflow-wrap: anywhere }
.ek-lines li:first-child { border-top: 0; padding-top: 0 }
.ek-scroll { overflow-x: auto; width: 100% }
table.ek-plain { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
table.ek-plain th { text-align: left; color: var(--dim); font-weight: 600; font-size: .8rem; padding: .25rem .6rem .25rem 0; white-space: nowrap }
table.ek-plain td { border-top: 1px solid var(--line); padding: .35rem .6rem .35rem 0; vertical-align: top }
table.ek-plain .r { text-align: right }
.ek-go { background: var(--go) !important; color: #fff !important }
.ek-plain-button { color: var(--ink) !important; border: 1px solid var(--line) }
.ek-danger { color: var(--bad) !important; border: 1px solid var(--bad) }
.q-btn { text-transform: none; font-weight: 600; border-radius: 8px }
.q-field__label, .q-field__native, .q-field__input, .q-field__marginal { color: var(--ink) !important }
.q-field__label, .q-field__bottom { color: var(--dim) !important }
.q-field--outlined .q-field__control:before { border-color: var(--line) !important }
.q-menu, .q-dialog .q-card { background: var(--card); color: var(--ink) }
.q-btn-toggle { border: 1px solid var(--line); border-radius: 8px; box-shadow: none }
.q-btn-toggle .q-btn { color: var(--dim) !important }
.q-btn-toggle .q-btn[aria-pressed=true] { color: var(--ink) !important; background: color-mix(in srgb, var(--link) 18%, var(--card)) !important }
@media (max-width: 640px) {
  .ek-page { padding: .75rem; gap: .75rem }
  .ek-brand-fleet { display: none }
  .ek-bar > div { flex-wrap: wrap; padding: .4rem .75rem; row-gap: .1rem }
  .ek-bar nav { order: 3; flex-basis: 100% }
  .ek-lines li { grid-template-columns: 1fr }
  .ek-cards { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .5rem }
}
"""
)

# Charts ask for a colour by its name when they are drawn.
SCRIPT = """<script>
window.ekColour = (name) => getComputedStyle(document.body).getPropertyValue('--' + name).trim();
window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => location.reload());
</script>"""
