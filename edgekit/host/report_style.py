"""The look of a report: light and dark by the reader's setting, black on white on paper."""

from __future__ import annotations

STYLE = """
:root { --ink: #1b1f24; --soft: #5b6470; --line: #d8dde3; --ground: #fbfbfa; --card: #ffffff;
  --points: #1f6feb; --exits: #bf5b04; --policies: #1a7f5a; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa4b0; --line: #363c44; --ground: #15181c;
  --card: #1d2126; --points: #6ea8fe; --exits: #f0a35e; --policies: #5fd3a3; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h1 small { color: var(--soft); font-weight: 400; font-size: 1.05rem; }
h2 { font-size: 1.05rem; margin: 0 0 .4rem; }
.verdict { font-size: 1.1rem; margin: .35rem 0 0; }
.verdict span { font-size: .8rem; padding: .1rem .55rem; border-radius: 1rem; border: 1px solid currentColor;
  white-space: nowrap; vertical-align: 2px; margin-left: .35rem; }
.good { color: var(--policies); } .bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .75rem; margin: 1.25rem 0 0; }
.tiles div, section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tiles div { padding: .8rem 1rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: .1rem 0; font-size: 1.2rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tiles p, .note, footer { color: var(--soft); font-size: .85rem; margin: 0; overflow-wrap: anywhere; }
section { padding: 1rem 1.1rem 1.1rem; margin-top: .9rem; }
.note { margin-bottom: .6rem; max-width: 48rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
td.n { white-space: nowrap; }
td { overflow-wrap: anywhere; }
@media screen and (max-width: 44rem) { td { overflow-wrap: normal; } td:last-child:not(.n) { min-width: 11rem; }
  section:has(> svg), figure:has(> svg) { overflow-x: auto; }
  figcaption { position: sticky; left: 0; } svg { min-width: 36rem; } }
.wide td { white-space: nowrap; } .wide td:first-child { white-space: normal; min-width: 9rem; }
.wide td:last-child { white-space: normal; min-width: 12rem; }
pre { margin: 0; padding: .7rem .9rem; background: var(--ground); border: 1px solid var(--line); border-radius: .4rem;
  overflow-x: auto; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
section p, ul { margin: 0; } ul { padding-left: 1.2rem; }
footer { margin-top: 1.2rem; }
svg { display: block; width: 100%; height: auto; max-width: 52rem; }
svg text { fill: var(--soft); font: 12px system-ui, "Segoe UI", Roboto, sans-serif; }
svg .name { fill: var(--ink); }
.grid { stroke: var(--line); stroke-width: 1; } .before { stroke: var(--soft); stroke-dasharray: 5 4; }
.points { fill: none; stroke: var(--points); stroke-width: 2; } .point { fill: var(--points); }
.band { fill: var(--points); fill-opacity: .14; stroke: none; } .tick { stroke: var(--soft); }
.static { fill: none; stroke: var(--exits); stroke-width: 1.2; }
svg .line-name { fill: var(--points); font-weight: 600; } svg .exit-name { fill: var(--exits); }
figure { margin: 0 0 1.1rem; } figure:last-of-type { margin-bottom: 0; } figcaption.note { margin: .25rem 0 0; }
section > div + h2 { margin-top: 1.2rem; }
.exit { fill: var(--card); stroke: var(--exits); stroke-width: 2.5; }
.policy { fill: var(--policies); stroke: var(--card); }
.tried { fill: var(--soft); fill-opacity: .25; stroke: var(--soft); stroke-width: 1.5; }
.tried.chosen { fill: var(--points); fill-opacity: .35; stroke: var(--points); stroke-width: 2.5; }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --ground: #fff; --card: #fff; --points: #1f6feb;
  --exits: #bf5b04; --policies: #1a7f5a; --bad: #b42318; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } section, figure, .tiles div { break-inside: avoid; }
  section:has(> figure) { break-inside: auto; }
  section:has(table tr:nth-child(20)) { break-inside: auto; }
  .scroll { overflow: visible; } .wide { font-size: 8pt; } .wide td, .wide td:last-child, .wide td:first-child
  { white-space: normal; min-width: 0; } th, td { padding-right: .5rem; }
  thead { display: table-header-group; } tr { break-inside: avoid; } }
"""
