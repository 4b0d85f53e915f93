"""A training as a page: its figures, its learning curve, its recipe. For screen and paper; loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from edgekit.host.report_axes import Scale
from edgekit.host.report_style import STYLE

if TYPE_CHECKING:
    from edgekit.host.train.result import Result

_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 30, 22, 48
_FEWEST = 2  # points of a line


def page(made: Result) -> str:
    """The whole page."""
    recipe = made.wanted.recipe
    title = f"{recipe.title}: {made.model}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"<header><h1>{escape(made.model)} <small>{escape(recipe.title)}</small></h1>"
        f'<p class="verdict">{escape(_verdict(made))}</p>'
        f'<p class="note">{escape(recipe.source)}. {escape(" ".join(recipe.about.split()))}</p></header>\n'
        f'<section><h2>Learning curve</h2><p class="note">{escape(_said(made))}</p>{_curves(made)}</section>\n'
        f"<section><h2>Epochs</h2>{_epochs(made)}</section>\n"
        f"{_rounds(made)}"
        f"<section><h2>Network and file</h2>{_file(made)}</section>\n"
        f"<section><h2>Recipe</h2><pre>{escape(recipe.text)}</pre></section>\n"
        "</main></body></html>\n"
    )


def _verdict(made: Result) -> str:
    trained = made.trained
    now = trained.judged.accuracy[-1]
    text = f"{100 * now:.2f} % right on {made.held_out:,} held-out samples"
    if trained.before is not None:
        text += f", {100 * (now - trained.before[-1]):+.2f} points from what it started with"
    return text


def _said(made: Result) -> str:
    return (
        f"Accuracy on samples that are held out and decide nothing, after each epoch of {made.samples:,} samples; "
        f"seed {made.wanted.seed}."
    )


def _curves(made: Result) -> str:
    curve = made.trained.curve
    if len(curve) < _FEWEST:
        return "<p>Too few epochs for a curve.</p>"
    lines = [
        [(float(point.epoch), point.accuracy[place]) for point in curve]
        for place in range(len(curve[0].accuracy))
    ]
    heights = [y for line in lines for _, y in line]
    margin = max(0.002, 0.1 * (max(heights) - min(heights)))
    up = Scale(min(heights) - margin, min(max(heights) + margin, 1.0 + margin), _HEIGHT - _BOTTOM, _TOP)
    across = Scale(0.5, curve[-1].epoch + 0.5, _LEFT, _WIDTH - _RIGHT)
    parts = _grid(across, up, curve[-1].epoch)
    for place, line in enumerate(lines):
        last = place == len(lines) - 1
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line)
        parts.append(f'<polyline class="{"points" if last else "static"}" points="{path}"/>')
        parts += [
            f'<circle class="{"point" if last else "exit"}" cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="2.8">'
            f"<title>epoch {x:.0f}: {100 * y:.2f} %</title></circle>"
            for x, y in line
        ]
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="accuracy over epochs">{"".join(parts)}</svg>'


def _grid(across: Scale, up: Scale, epochs: int) -> list[str]:
    parts = []
    rows, digits = up.lines()
    shown = max(0, digits - 2)
    for value in rows:
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * value:.{shown}f} %</text>'
        )
    step = -(-epochs // 15)
    parts += [
        f'<text x="{across.at(float(epoch)):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{epoch}</text>'
        for epoch in range(step, epochs + 1, step)
    ]
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">epoch</text>'
    )
    return parts


def _epochs(made: Result) -> str:
    curve = made.trained.curve
    losses = list(curve[0].losses) if curve else []
    exits = len(curve[0].accuracy) if curve else 0
    named = ["accuracy"] if exits == 1 else [f"exit {place + 1}" for place in range(exits)]
    head = ("epoch", *losses, *named)
    rows = [
        (
            str(point.epoch),
            *(f"{point.losses[name]:.4f}" for name in losses),
            *(f"{100 * right:.2f} %" for right in point.accuracy),
        )
        for point in curve
    ]
    return _table(head, rows)


def _rounds(made: Result) -> str:
    found = made.trained.rounds
    if not found:
        return ""
    rows = [
        (
            f"{100 * each.density:.1f} %",
            *(
                f"{100 * right:.2f} %"
                for side in (each.ticket, each.control)
                for right in (side[0], side[-1])
            ),
        )
        for each in found
    ]
    head = ("density", "ticket, epoch 1", "ticket, last", "drawn anew, epoch 1", "drawn anew, last")
    return f"<section><h2>Tickets</h2>{_table(head, rows)}</section>\n"


def _file(made: Result) -> str:
    bits, trained = made.wanted.recipe.bits, made.trained
    rows = [
        ("bits of a weight, an activation, a weight's gradient, an error", _slashed(bits)),
        ("parameters", f"{made.parameters:,}"),
        ("multiply-accumulates", f"{made.macs:,}"),
        ("weights of products, packed, with scales and tables", f"{made.weight_bytes:,} bytes"),
        ("file", f"{made.output.name}, {made.size_bytes:,} bytes"),
        ("sha256", made.sha256),
        ("time of training", "resumed" if trained.seconds is None else f"{trained.seconds:.0f} s"),
    ]
    adapted = trained.adapted
    if adapted is not None:
        rows += [
            ("bits of a weight, mean, without the table of widths", f"{adapted.bits_per_weight:.2f}"),
            ("table of widths", f"{adapted.table_bits // 8:,} bytes"),
            ("weights by their bits", ", ".join(f"{width}: {n:,}" for width, n in adapted.widths.items())),
            ("loss on the training samples", f"{adapted.before:.4f} before, {adapted.after:.4f} after"),
        ]
    return _table(("", ""), rows)


def _slashed(bits: object) -> str:
    names = ("weights", "activations", "gradients", "errors")
    return " / ".join(str(getattr(bits, name)) for name in names)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    shown = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{shown}<tbody>{body}</tbody></table></div>'
