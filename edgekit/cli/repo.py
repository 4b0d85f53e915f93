"""`edgekit repo`: make, fill and check a signed repository in a folder. Uploads nothing."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.options import bundle_argument, json_option
from edgekit.cli.output import console, print_json
from edgekit.core.bundle import open_bundle

folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@click.group(epilog="Example:  edgekit repo init repository")
def command() -> None:
    """Keep the signed repository of bundles, in a folder."""


@command.command(epilog="Example:  edgekit repo init repository")
@folder_argument
@json_option
def init(folder: Path, as_json: bool) -> None:
    """Make a repository in DIR, with its three keys.

    keys/root.pem belongs offline, keys/targets.pem to the engineers who push, keys/measure.pem to those who convert on
    boards; the server needs keys/online.pem only.
    """
    from edgekit.repo import init as make
    from edgekit.repo.status import describe

    now = datetime.now(timezone.utc)
    found = describe(make.init(folder.absolute(), now), now)
    keys = {role: str(folder / "keys" / f"{role}.pem") for role in make.KEYS}
    if as_json:
        print_json({"folder": str(folder), "keys": keys, **found})
        return
    console.print(Text(f"made a repository in {folder}"), soft_wrap=True)
    console.print(f"  {keys['root']}: keep it offline; it is needed to change keys")
    console.print(f"  {keys['targets']}: for those who push bundles; take it off the server")
    console.print(f"  {keys['measure']}: for those who convert on boards; take it off the server")
    console.print(f"  {keys['online']}: the server's, it stays here")


@command.command(epilog="Example:  edgekit repo add repository model.edge --key targets.pem")
@folder_argument
@bundle_argument
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The private targets key; DIR/keys/targets.pem if nothing is said.",
)
@json_option
def add(folder: Path, bundle: Path, key: Path | None, as_json: bool) -> None:
    """Sign BUNDLE and publish it in DIR; the version before it stays allowed for going back."""
    from edgekit.repo.add import measure, published, sign_targets, with_bundle
    from edgekit.repo.keys import read_key
    from edgekit.repo.metadata import key_file, read_current
    from edgekit.repo.publish import publish

    now = datetime.now(timezone.utc)
    opened = open_bundle(bundle)
    current = read_current(folder)
    known = published(current.targets.signed, opened) is not None
    if not known:
        targets_key = read_key(key or key_file(folder, "targets"))
        data = sign_targets(with_bundle(current.targets, opened, now), targets_key)
        current = publish(folder, data, {measure(bundle)[1]: bundle}, now)
    version = current.targets.signed.version
    if as_json:
        print_json(
            {
                "target": opened.label,
                "content_id": opened.content_id,
                "added": not known,
                "targets_version": version,
            }
        )
        return
    said = "is published already, with this content" if known else "published"
    console.print(Text(f"{opened.label} {said} (targets version {version})"), soft_wrap=True)


@command.command(epilog="Example:  edgekit repo measure repository --key targets.pem")
@folder_argument
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The private targets key; DIR/keys/targets.pem if nothing is said.",
)
@json_option
def measure(folder: Path, key: Path | None, as_json: bool) -> None:
    """Let DIR/keys/measure.pem, drawn if there is none, and no other key sign what boards only measure.

    For repositories made before there was such a key, or to replace it: move the old file away first.
    """
    from edgekit.repo.keys import read_key, read_or_make_key
    from edgekit.repo.metadata import key_file
    from edgekit.repo.publish import delegate

    own = key_file(folder, "measure")
    targets_key = read_key(key or key_file(folder, "targets"))
    current = delegate(folder, targets_key, read_or_make_key(own), datetime.now(timezone.utc))
    version = current.targets.signed.version
    if as_json:
        print_json({"key": str(own), "targets_version": version})
        return
    console.print(Text(f"{own} signs what boards measure (targets version {version})"), soft_wrap=True)
    console.print("  it is for those who convert on boards; take it off the server")


@command.command(epilog="Example:  edgekit repo status repository --json")
@folder_argument
@json_option
@click.pass_context
def status(ctx: click.Context, folder: Path, as_json: bool) -> None:
    """Show what DIR holds, until when it is valid, and what is wrong with it (then the exit code is 1)."""
    from edgekit.repo.status import status as look

    found = look(folder, datetime.now(timezone.utc))
    if as_json:
        print_json(found)
    else:
        show_repository(found)
    if found["problems"]:
        ctx.exit(1)


def show_repository(found: dict[str, Any]) -> None:
    """The tables of a repository's state."""
    roles = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("role", "version", "expires", "days left"):
        roles.add_column(column, justify="left" if column in {"role", "expires"} else "right")
    for role, facts in found["roles"].items():
        roles.add_row(role, str(facts["version"]), facts["expires"][:10], f"{facts['days_left']:.0f}")
    console.print(roles)
    targets = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("target", "state", "profiles", "size"):
        targets.add_column(column, justify="right" if column == "size" else "left")
    for target in found["targets"]:
        targets.add_row(
            target["label"],
            target["state"],
            ", ".join(target["profiles"]),
            f"{target['size'] / 1024:.0f} KiB",
        )
    console.print()
    console.print(
        targets if found["targets"] else "no targets yet: edgekit repo add DIR BUNDLE, or edgekit push"
    )
    for problem in found.get("problems", []):
        console.print(Text.assemble(("problem: ", "red"), problem), soft_wrap=True)
