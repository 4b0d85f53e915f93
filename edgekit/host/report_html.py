"""The HTML face of a report: one self-contained page, for screen and paper. Shows figures; computes none but ratios."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from edgekit.core.curves_text import verdict as worth
from edgekit.core.manifest import METRICS, Manifest
from edgekit.core.report import Change, Latency, Parity, Report
from edgekit.host.report_curves import pictures
from edgekit.host.report_plot import plot
from edgekit.host.report_style import STYLE
from edgekit.host.report_tried import letter, picture

_EXACT_DB = 199.0
_POINTS_SHOWN = 24
_METRIC_NAMES = dict(zip(METRICS, ("top-1 accuracy", "agreement with the model that came in"), strict=True))
_PROVENANCE = {
    "measured": "measured on",
    "estimated": "estimated from",
    "simulated": "simulated on",
    "published": "published for",
}


_PARITY_NOTE = (
    "The same graph, with the same scales, lowered to both runtimes this board has, on validation data. Differences "
    "are in 1/255 of what the answers span."
)
_RECIPE_NOTE = (
    "Save as recipe.toml and give it to --recipe: the same bundle comes out. To decide for yourself, change it: put a "
    "layer's name into keep_float to keep it in float32, take one out to quantize it, change a step's options, or "
    "remove a step."
)
_BINARY_RECIPE_NOTE = "Save as recipe.toml and give it to --recipe: the same bundle comes out."
_BITS = re.compile(r"w\da\d+")  # the formats of layers on bits: "w1a1"


@dataclass(frozen=True)
class Page:
    """What the page shows. recipe: the TOML text; bundle_bytes: the whole file, None before it is written."""

    manifest: Manifest
    report: Report
    recipe: str
    content_id: str
    bundle_bytes: int | None = None


def render(page: Page) -> str:
    """The page. Loads nothing from anywhere; every text from the bundle is escaped."""
    report = page.report
    binary = any(_BITS.fullmatch(layer.format) for layer in report.layers)
    sections = (
        _header(page),
        _tiles(page),
        _section("Accuracy over cost", _plot(page), _plot_note(report)),
        _section("What the exits are worth", pictures(report.curves), worth(report.curves))
        if report.curves
        else "",
        _section("Exits", _exits(page), "Each exit used alone, on the evaluation data."),
        _section(
            "Policies", _policies(page), "One stream of requests under each policy, on the evaluation data."
        ),
        _section("Before and after", _before_after(page)),
        _section("Operating points", _points(page), _points_note(page)),
        "" if binary else _section("What was tried", _tried(report), _tried_note(report)),
        _section(
            "Layers",
            _binary_layers(report) if binary else _layers(report),
            "" if binary else _layers_note(report),
        ),
        _section("Two runtimes", _parity(report.parity), _PARITY_NOTE) if report.parity else "",
        _section("Taken back", _dropped(report)) if report.dropped or not binary else "",
        _section("Limits", _limits(report)),
        _section("Data", _data(report)),
        _section(
            "Recipe", f"<pre>{escape(page.recipe)}</pre>", _BINARY_RECIPE_NOTE if binary else _RECIPE_NOTE
        ),
        _footer(page),
    )
    title = escape(f"{report.bundle} for {report.profile}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


# --- the top ------------------------------------------------------------------------------------------------


def _header(page: Page) -> str:
    report = page.report
    met = not report.limits_missed
    badge = (
        '<span class="good">no limit is missed</span>'
        if met
        else '<span class="bad">a limit is missed</span>'
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes)
    return (
        f"<header><h1>{escape(report.bundle)} <small>for {escape(report.profile)}</small></h1>"
        f'<p class="verdict">{escape(verdict(report))} {badge}</p>{notes}</header>'
    )


def verdict(report: Report) -> str:
    """What the conversion brought, in one sentence."""
    parts = []
    faster = _ratio(typical_ms(report.latency_before), typical_ms(report.latency_after))
    if faster is not None:
        how = {"measured": "", "estimated": " (estimated)"}.get(report.latency_provenance or "", "")
        parts.append(_times(faster, "faster", "slower", "as fast as before") + how)
    smaller = _ratio(report.size_bytes.before, report.size_bytes.after)
    if smaller is not None:
        parts.append(_times(smaller, "smaller", "larger", "as large as before"))
    points = drop_points(report.accuracy)
    if points is not None:
        parts.append(f"{quality(report)} {'unchanged' if abs(points) < 0.005 else f'{-points:+.2f} points'}")
    return (", ".join(parts) or "Nothing could be compared") + "."


def quality(report: Report) -> str:
    """What the shares of right answers are, in a word: without labels it is only agreement."""
    return "accuracy" if report.metric == METRICS[0] else "agreement"


def typical_ms(latency: Latency) -> float | None:
    """The median where requests were measured, else the mean that was predicted."""
    return latency.mean if latency.p50 is None else latency.p50


def drop_points(accuracy: Change) -> float | None:
    """Points lost, None where unknown."""
    if accuracy.before is None or accuracy.after is None:
        return None
    return 100 * (accuracy.before - accuracy.after)


def _ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before and after else None


def _times(ratio: float, more: str, less: str, same: str) -> str:
    """`2.0× faster`; the word for "same" where one decimal would say 1.0×."""
    text = f"{max(ratio, 1 / ratio):.1f}"
    return same if text == "1.0" else f"{text}× {more if ratio > 1 else less}"


def _tiles(page: Page) -> str:
    report = page.report
    metric = _METRIC_NAMES[report.metric]
    latency = f"{_ms(typical_ms(report.latency_before))} → {_ms(typical_ms(report.latency_after))}"
    which = "median" if report.latency_after.p50 is not None else "mean"
    size = f"{_kb(report.size_bytes.before)} → {_kb(report.size_bytes.after)}"
    tiles = (
        (
            metric,
            f"{_percent(report.accuracy.before)} → {_percent(report.accuracy.after)}",
            "last exit, on the evaluation data",
        ),
        (f"{which} latency, all stages", latency, _origin(report)),
        (
            "model files",
            size,
            f"bundle {_kb(page.bundle_bytes)}" if page.bundle_bytes else "without golden cases",
        ),
    )
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><p>{escape(note)}</p></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{inner}</dl>'


def _origin(report: Report) -> str:
    if report.latency_provenance is None:
        return f"nobody measured it on {report.profile}, and the profile cannot tell"
    return f"{_PROVENANCE[report.latency_provenance]} {report.latency_on or 'unknown'}"


# --- sections -----------------------------------------------------------------------------------------------


def _section(title: str, body: str, note: str = "") -> str:
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{body}</section>"


def _plot(page: Page) -> str:
    return plot(page.manifest, page.report)


def _plot_note(report: Report) -> str:
    return (
        "Cost is the expected share of the whole network's multiply-accumulates. Operating points are what the "
        "validation data promised, exits and policies what the evaluation data showed. "
        f"Metric: {_METRIC_NAMES[report.metric]}."
    )


def _exits(page: Page) -> str:
    rows = [
        (
            entry.name,
            _percent(entry.accuracy),
            _percent(entry.agreement),
            _percent(entry.cost_share, 1),
            _ms(entry.latency_mean_ms),
        )
        for entry in page.report.exits
    ]
    return _table(("exit", quality(page.report), "answers as the last", "cost", "mean latency"), rows)


def _policies(page: Page) -> str:
    names = [leaving.name for leaving in page.manifest.exits]
    rows = []
    for entry in page.report.policies:
        total = max(1, entry.requests)
        mix = " / ".join(f"{100 * entry.exit_counts.get(name, 0) / total:.1f}" for name in names)
        rows.append(
            (entry.policy, _percent(entry.accuracy), mix, _ms(entry.latency.mean), _ms(entry.latency.p95))
        )
    return _table(("policy", quality(page.report), "exits taken, %", "mean latency", "p95"), rows)


def _before_after(page: Page) -> str:
    report = page.report

    def spread(latency: Latency) -> tuple[str, ...]:
        return tuple(_ms(value) for value in (latency.mean, latency.p50, latency.p95, latency.p99))

    rows = [
        (
            "model that came in",
            _percent(report.accuracy.before),
            _kb(report.size_bytes.before),
            *spread(report.latency_before),
        ),
        (
            "bundle, policy full",
            _percent(report.accuracy.after),
            _kb(report.size_bytes.after),
            *spread(report.latency_after),
        ),
    ]
    return (
        _table(("", quality(report), "size", "mean", "p50", "p95", "p99"), rows)
        + f'<p class="note">{escape(_origin(report))}</p>'
    )


def _points(page: Page) -> str:
    exits = len(page.manifest.exits)
    if exits == 1:
        return "<p>One exit: there is nothing to choose.</p>"
    points = page.report.operating_points
    step = max(1, -(-len(points) // _POINTS_SHOWN))
    shown = [*points[:-1:step], *points[-1:]]
    rows = [
        (
            _percent(point.cost_share, 1),
            _percent(point.quality),
            _percent(point.quality_low),
            " / ".join(_threshold(value) for value in point.thresholds),
            " / ".join(f"{100 * share:.1f}" for share in point.exit_shares),
        )
        for point in shown
    ]
    left_out = (
        f'<p class="note">{len(shown)} of {len(points)} points.</p>' if len(shown) < len(points) else ""
    )
    head = ("cost", "quality", "at least (95 %)", "leave at confidence", "exits taken, %")
    return _table(head, rows) + left_out


def _threshold(value: float) -> str:
    """Near 1, where overconfident exits differ, with more digits."""
    return "never" if value > 1 else f"{value:.3f}" if value < 0.995 else f"{value:.6f}"


def _points_note(page: Page) -> str:
    return (
        "Found on the validation data; quality is what it promises"
        + (
            ", agreement with the last exit since that data has no labels"
            if page.manifest.quality_metric != METRICS[0]
            else ""
        )
        + ", and at least what so many samples can promise, given the full network's."
    )


def _tried(report: Report) -> str:
    if not report.tried:
        return "<p>Nothing: the recipe said what to do.</p>"
    rows = [
        (
            letter(index),
            f"{entry.label} ✓" if entry.chosen else entry.label,
            "unknown" if entry.lost is None else f"{0.0 - entry.lost:+.2f}",
            "unknown" if entry.sqnr_db is None else _decibels(entry.sqnr_db),
            _ms(entry.latency_ms),
            _kb(entry.size_bytes),
            entry.why,
        )
        for index, entry in enumerate(report.tried)
    ]
    return picture(report.tried) + _table(
        ("", "candidate", "points", "SQNR, dB", "latency", "size", "why"), rows
    )


def _tried_note(report: Report) -> str:
    metric = report.tried[0].metric if report.tried else report.metric
    what = "accuracy" if metric == METRICS[0] else "agreement with the float network"
    return (
        f"Compared on the validation data. Points: of {what}, against the float network. ✓ is in the bundle."
    )


def _layers(report: Report) -> str:
    total = sum(layer.macs for layer in report.layers) or 1.0
    spent = sum(layer.ms or 0.0 for layer in report.layers)
    rows = [
        (
            layer.name,
            layer.op,
            layer.format,
            "" if layer.weights in (None, layer.format) else layer.weights or "",
            str(layer.stage),
            f"{100 * layer.macs / total:.1f}",
            "" if layer.ms is None or not spent else f"{100 * layer.ms / spent:.1f}",
            "unknown" if layer.sqnr_db is None else _decibels(layer.sqnr_db),
            (layer.why or "").removeprefix(f"{layer.format}: "),
        )
        for layer in report.layers
        if layer.macs or layer.sqnr_db is not None
    ]
    head = ("layer", "operator", "format", "weights", "stage", "MACs, %", "time, %", "SQNR, dB", "why")
    return _table(head, rows, "wide")


def _binary_layers(report: Report) -> str:
    total = sum(layer.macs for layer in report.layers) or 1.0
    rows = [
        (layer.name, layer.op, layer.format, str(layer.stage), f"{100 * layer.macs / total:.1f}")
        for layer in report.layers
        if layer.macs
    ]
    return _table(("layer", "operator", "format", "stage", "MACs, %"), rows, "wide")


def _decibels(value: float) -> str:
    return "exact" if value >= _EXACT_DB else f"{value:.1f}"


def _layers_note(report: Report) -> str:
    provenance = next((layer.ms_provenance for layer in report.layers if layer.ms_provenance), None)
    times = {
        "measured": " Time: share of one request, by this machine's profiler.",
        "estimated": f" Time: share of one request, estimated from profile {report.profile}.",
    }.get(provenance or "", "")
    return (
        "SQNR: signal to quantization noise against the float network, on calibration data. It falls along the "
        f"network: a sharp fall names the layer that hurts.{times}"
    )


def _parity(found: Parity) -> str:
    pairs = [
        (" and ".join(found.backends), found.each_other),
        *(
            (f"{name} and float32", rows)
            for name, rows in zip(found.backends, found.float_network, strict=True)
        ),
    ]
    rows = [
        (what, entry.exit, _percent(entry.agreement), f"{entry.mean_steps:.2f}", f"{entry.max_steps:.2f}")
        for what, entries in pairs
        for entry in entries
    ]
    return _table(("", "exit", f"same label of {found.count}", "mean difference", "largest"), rows)


def _dropped(report: Report) -> str:
    if not report.dropped:
        return "<p>Nothing: every step did more good than harm.</p>"
    return _table(
        ("layer", "step", "why"), [(entry.layer, entry.step, entry.why) for entry in report.dropped]
    )


def _limits(report: Report) -> str:
    if not report.limits_missed:
        return "<p>No limit that was given is missed.</p>"
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in report.limits_missed) + "</ul>"


def _data(report: Report) -> str:
    rows = [(use.role, use.source, str(use.count), "yes" if use.labelled else "no") for use in report.data]
    return _table(("role", "source", "samples", "labels"), rows)


def _footer(page: Page) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in page.report.versions.items())
    return (
        f"<footer><p>Made {escape(page.report.made)} with {escape(versions)}.</p>"
        f"<p>content_id {escape(page.content_id)}</p></footer>"
    )


# --- small things -------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "plain") -> str:
    """A table; numbers are not broken over lines."""

    def cell(text: str) -> str:
        kind = ' class="n"' if text.lstrip("+-")[:1].isdigit() or text == "unknown" else ""
        return f"<td{kind}>{escape(text)}</td>"

    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(cell(text) for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _percent(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{100 * value:.{digits}f} %"


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} ms"


def _kb(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"
