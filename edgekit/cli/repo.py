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
from edgekit.cli.repo_keys import refresh, rotate, sign
from edgekit.cli.server import client_of, maybe_server_options
from edgekit.client import Client, Conflict
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic

_ATTEMPTS = 5  # somebody else may publish between our reading and our writing
folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@click.group(epilog="Example:  edgekit repo init repository")
def command() -> None:
    """Keep the signed repository of bundles, in a folder."""


@command.command(epilog="Example:  edgekit repo init repository --root-keys 1")
@folder_argument
@click.option("--root-keys", type=click.IntRange(1, 20), metavar="N", help="How many root keys to draw (3).")
@click.option(
    "--root-threshold",
    type=click.IntRange(min=1),
    metavar="M",
    help="How many of them must sign a change of keys; more than half if nothing is said.",
)
@json_option
def init(folder: Path, root_keys: int | None, root_threshold: int | None, as_json: bool) -> None:
    """Make a repository in DIR, with its keys.

    Of the root keys keys/root-1.pem and so on, any two of three change keys: one lost key locks nobody out, one stolen
    key signs nothing. Each belongs with another person, offline. keys/targets.pem is for the engineers who push,
    keys/measure.pem for those who convert on boards; the server needs keys/online.pem only.
    """
    from edgekit.repo import init as make
    from edgekit.repo.status import describe

    now = datetime.now(timezone.utc)
    count = root_keys or make.ROOT_KEYS
    found = describe(make.init(folder.absolute(), now, count, root_threshold), now)
    names = make.root_names(count)
    keys = {name: str(folder / "keys" / f"{name}.pem") for name in (*names, *make.OTHER_KEYS)}
    threshold = found["roles"]["root"]["threshold"]
    if as_json:
        print_json({"folder": str(folder), "keys": keys, "root_threshold": threshold, **found})
        return
    console.print(Text(f"made a repository in {folder}"), soft_wrap=True)
    if count == 1:
        console.print(f"  {keys['root']}: keep it offline; it is needed to change keys")
    else:
        console.print(
            f"  {', '.join(keys[name] for name in names)}: keep each offline, with another person; any {threshold} of "
            "them change keys",
            soft_wrap=True,
        )
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
    """Sign BUNDLE, or an environment of the agent, and publish it in DIR.

    The version before it stays allowed for going back.
    """
    from edgekit.repo.add import measure, open_publishable, published, sign_targets, with_bundle
    from edgekit.repo.keys import read_key
    from edgekit.repo.metadata import key_file, read_current
    from edgekit.repo.publish import publish

    now = datetime.now(timezone.utc)
    opened = open_publishable(bundle)
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


@command.command(epilog="Example:  edgekit repo environment wheels/ -o agent-3.env --version 3")
@click.argument("wheels", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.",
)
@click.option("--version", required=True, type=click.IntRange(1, 2**31), help="Higher than the one before.")
@click.option("--name", default="agent", show_default=True, help="Versions count within a name.")
@click.option(
    "--python", "pythons", multiple=True, help="Such as 3.11; all that every wheel runs on if left out."
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    help="A kind of board it is for; all with such a Python and processor if left out.",
)
@click.option(
    "--system-packages", is_flag=True, help="It sees what the board's own Python has installed as well."
)
@json_option
def environment(
    wheels: tuple[Path, ...],
    output: Path,
    version: int,
    name: str,
    pythons: tuple[str, ...],
    profiles: tuple[str, ...],
    system_packages: bool,
    as_json: bool,
) -> None:
    """Pack WHEELS (files, or folders of them) as an environment for boards' agents.

    Which Pythons and processors it runs on follows from the wheels; docs/board.md says how to fetch those of a board.
    `edgekit push` signs it and sends it to boards.
    """
    from edgekit.cli.environment import pack

    packed = pack(wheels, name, version, pythons, profiles, system_packages=system_packages)
    write_atomic(output, packed.data)
    made = packed.environment
    if as_json:
        print_json({"environment": str(output), "content_id": made.content_id, **made.to_json()})
        return
    console.print(
        Text(f"{output}: {made.label}, {len(made.wheels)} wheels, {len(packed.data) / 2**20:.1f} MiB")
    )
    console.print(Text(f"  Python: {', '.join(made.pythons)}"), soft_wrap=True)
    glibc = f", glibc {made.glibc} or newer" if made.glibc else ""
    console.print(Text(f"  processors: {', '.join(made.machines) or 'any'}{glibc}"), soft_wrap=True)
    console.print(Text(f"  profiles: {', '.join(made.profiles)}"), soft_wrap=True)


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

    For repositories made before there was such a key. To replace it: edgekit repo rotate DIR measure.
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


@command.command(epilog="Example:  edgekit repo revoke repository toy/3 --key targets.pem")
@click.argument("words", metavar="[DIR] NAME/VERSION", nargs=-1, required=True)
@maybe_server_options
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The private targets key; DIR/keys/targets.pem if nothing is said.",
)
@json_option
def revoke(
    words: tuple[str, ...], server: str | None, token_file: Path | None, key: Path | None, as_json: bool
) -> None:
    """Take NAME/VERSION back, in DIR or on the --server: boards that run it stop. Nothing undoes that.

    A board goes back to the bundle that it ran before, where that is not revoked, else it serves nothing and says so.
    Those online are told at once, the others find out when they next look (once a day).
    """
    if len(words) == 2:
        version, revoked = _revoke_in(Path(words[0]), words[1], key)
    elif len(words) == 1 and server is not None and key is not None:
        version, revoked = _revoke_on(client_of(server, token_file), words[0], key)
    elif len(words) == 1 and server is not None:
        raise BadInput("--key FILE: the private targets key is needed; the server does not have it")
    else:
        raise BadInput("wanted: edgekit repo revoke DIR NAME/VERSION, or NAME/VERSION with --server URL")
    label = words[-1]
    if as_json:
        print_json({"target": label, "revoked": revoked, "targets_version": version})
        return
    said = "revoked" if revoked else "was revoked before"
    console.print(Text(f"{label} {said} (targets version {version})"), soft_wrap=True)


def _revoke_in(folder: Path, label: str, key: Path | None) -> tuple[int, bool]:
    from edgekit.repo.add import sign_targets
    from edgekit.repo.keys import read_key
    from edgekit.repo.metadata import key_file, read_current
    from edgekit.repo.publish import publish
    from edgekit.repo.revoke import is_revoked, with_revoked

    now = datetime.now(timezone.utc)
    current = read_current(folder)
    if is_revoked(current.targets.signed, label):
        return current.targets.signed.version, False
    data = sign_targets(
        with_revoked(current.targets, label, now), read_key(key or key_file(folder, "targets"))
    )
    return publish(folder, data, {}, now).targets.signed.version, True


def _revoke_on(client: Client, label: str, key_path: Path) -> tuple[int, bool]:
    from edgekit.repo.add import sign_targets
    from edgekit.repo.keys import read_key
    from edgekit.repo.metadata import parse_targets, signed_by_or_refused
    from edgekit.repo.revoke import is_revoked, with_revoked

    key = read_key(key_path)
    for _ in range(_ATTEMPTS):
        current = parse_targets(client.targets_metadata(), "the server's targets metadata")
        signed_by_or_refused(current, key, str(key_path))
        if is_revoked(current.signed, label):
            return current.signed.version, False
        new = with_revoked(current, label, datetime.now(timezone.utc))
        try:
            client.publish(sign_targets(new, key))
        except Conflict:
            continue
        return new.signed.version, True
    raise WorldFailed(f"others published at the same time, {_ATTEMPTS} times over: try again")


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


def _show_keys(rows: list[dict[str, Any]]) -> None:
    keys = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("key", "id", "signs", "private half"):
        keys.add_column(column, overflow="fold")
    for row in rows:
        where = "not here" if row["file"] is None else row["file"][row["file"].rindex("keys/") :]
        keys.add_row(Text(row["name"] or "?"), row["id"][:8], ", ".join(row["roles"]), Text(where))
    console.print()
    console.print(keys)


def show_repository(found: dict[str, Any]) -> None:
    """The tables of a repository's state."""
    roles = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("role", "version", "expires", "days left", "signed by"):
        roles.add_column(column, justify="right" if column in {"version", "days left"} else "left")
    for role, facts in found["roles"].items():
        signers = f"{facts['threshold']} of {facts['keys']} key{'s' if facts['keys'] > 1 else ''}"
        left = f"{facts['days_left']:.0f}"
        roles.add_row(role, str(facts["version"]), facts["expires"][:10], left, signers)
    console.print(roles)
    _show_keys(found.get("keys", []))
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
    for row in found.get("pending", []):
        console.print(Text.assemble(("waits: ", "yellow"), row["line"]), soft_wrap=True)
    for problem in found.get("problems", []):
        console.print(Text.assemble(("problem: ", "red"), problem), soft_wrap=True)


for _verb in (rotate, sign, refresh):
    command.add_command(_verb)
