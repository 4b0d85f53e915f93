"""`edgekit report`: a bundle's report as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import bundle_argument, check_targets, json_option
from edgekit.cli.output import console, print_json
from edgekit.core.bundle import open_bundle
from edgekit.core.files import write_atomic
from edgekit.core.report import Report
from edgekit.host.report_html import Page, render, verdict


@click.command(epilog="Example:  edgekit report model.edge -o report.html")
@bundle_argument
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The HTML file to write."
)
@json_option
def command(bundle: Path, output: Path, as_json: bool) -> None:
    """Write what was measured about BUNDLE as a page that needs no network, for screen or paper."""
    check_targets({"-o": output}, (bundle,))
    opened = open_bundle(bundle)
    report = Report.parse(opened.report, f"{bundle}: report.json")
    recipe = opened.read(opened.manifest.recipe).decode("utf-8", "replace")
    page = Page(opened.manifest, report, recipe, opened.content_id, opened.size)
    write_atomic(output, render(page).encode())
    if as_json:
        print_json({"bundle": opened.label, "report": str(output)})
    else:
        console.print(f"{opened.label}: {verdict(report)} Written to {output}", markup=False, soft_wrap=True)
