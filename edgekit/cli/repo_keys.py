"""`edgekit repo rotate | sign | refresh`: keys and how long their signatures last. Uploads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from edgekit.cli.options import json_option
from edgekit.cli.output import console, print_json
from edgekit.core.errors import BadInput

if TYPE_CHECKING:
    from edgekit.repo.pending import Outcome

UNFINISHED = 1
folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
keys_option = click.option(
    "--key",
    "--root-key",
    "keys",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A private key that is not in DIR/keys; may be given more than once.",
)


@click.command(epilog="Example:  edgekit repo rotate repository online --key root-1.pem --key root-2.pem")
@folder_argument
@click.argument("role", type=click.Choice(("root", "targets", "measure", "online")))
@keys_option
@click.option("--which", metavar="NAME", help="Replace this one root key only, by its name or id.")
@click.option(
    "--root-keys", type=click.IntRange(1, 20), metavar="N", help="How many root keys there are to be."
)
@click.option("--root-threshold", type=click.IntRange(min=1), metavar="M", help="How many of them must sign.")
@json_option
@click.pass_context
def rotate(
    ctx: click.Context,
    folder: Path,
    role: str,
    keys: tuple[Path, ...],
    which: str | None,
    root_keys: int | None,
    root_threshold: int | None,
    as_json: bool,
) -> None:
    """Draw new keys for ROLE in place of those in force: because one is lost, stolen or old.

    A change of root, targets or online key is a new root: enough of the root keys must sign it, here or elsewhere
    (edgekit repo sign). Until then the old keys stay in force, and the exit code is 1. Boards follow by themselves.
    The measuring key is changed by the targets key alone. New keys lie in DIR/keys afterwards, old ones in
    DIR/keys/retired.
    """
    from edgekit.repo.rotate import rotate as replace
    from edgekit.repo.rotate import rotate_root

    now = datetime.now(timezone.utc)
    if role == "root":
        outcome = rotate_root(folder, now, keys, which=which, count=root_keys, threshold=root_threshold)
    elif (which, root_keys, root_threshold) != (None, None, None):
        raise BadInput("--which, --root-keys and --root-threshold are for: edgekit repo rotate DIR root")
    else:
        outcome = replace(folder, role, now, keys)
    if as_json:
        print_json({"role": role, **_facts(outcome)})
    else:
        done = not outcome.waiting
        what = "a new key" if role != "root" or which else "new keys"
        said = f"has {what}" if done else f"gets {what} once this is signed"
        console.print(Text(f"{role} {said}"), soft_wrap=True)
        _show(outcome, folder)
        if done and role != "online":
            which_ones = "root-*" if role == "root" else role
            console.print(f"  {folder / 'keys' / which_ones}.pem: take off the server again", soft_wrap=True)
    if outcome.waiting:
        ctx.exit(UNFINISHED)


@click.command(epilog="Example:  edgekit repo sign 2.root.json --key root-2.pem")
@click.argument(
    "paths", metavar="DIR|FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@keys_option
@click.option("--cancel", is_flag=True, help="Throw away what waits in DIR, and the keys drawn for it.")
@json_option
@click.pass_context
def sign(
    ctx: click.Context, paths: tuple[Path, ...], keys: tuple[Path, ...], cancel: bool, as_json: bool
) -> None:
    """Sign a root that waits, so that it comes into force.

    With DIR: sign what waits in DIR/pending with --key and the keys in DIR/keys; FILEs beside it are copies that were
    signed elsewhere. What has all its signatures is put in force; if something still waits, the exit code is 1.

    With FILEs alone: sign these copies of DIR/pending/N.root.json where the key is, and carry them back.
    """
    folders = [path for path in paths if path.is_dir()]
    files = [path for path in paths if not path.is_dir()]
    if len(folders) > 1 or (cancel and (files or not folders)):
        raise BadInput("wanted one DIR and files, or files alone; --cancel goes with DIR alone")
    if cancel:
        _cancel(folders[0], as_json)
        return
    if not folders:
        _sign_files(files, keys, as_json)
        return
    from edgekit.repo.keyring import keyring
    from edgekit.repo.pending import sign as sign_pending

    now = datetime.now(timezone.utc)
    outcome = sign_pending(folders[0], keyring(folders[0], more=keys), now, files)
    if as_json:
        print_json(_facts(outcome))
    elif not (outcome.enforced or outcome.waiting):
        console.print("nothing waits to be signed")
    else:
        _show(outcome, folders[0])
    if outcome.waiting:
        ctx.exit(UNFINISHED)


@click.command(
    epilog="Example:  edgekit repo refresh repository --key root-1.pem --key root-2.pem --key targets.pem"
)
@folder_argument
@keys_option
@click.option(
    "--past",
    "past",
    multiple=True,
    metavar="ROLE=VERSION",
    help="After a restore: sign anew above this version of targets, measure, snapshot or timestamp.",
)
@json_option
@click.pass_context
def refresh(
    ctx: click.Context, folder: Path, keys: tuple[Path, ...], past: tuple[str, ...], as_json: bool
) -> None:
    """Sign anew what has used up a third of its life: root and targets with their keys, the rest with the online key.

    The server does the online key's part by itself. What cannot be renewed here is said, with the key it wants. Ends
    with 1 when some of that has less than a third of its life left.
    """
    from edgekit.repo.metadata import read_current
    from edgekit.repo.refresh import advance, versions
    from edgekit.repo.refresh import refresh as renew

    now, before = datetime.now(timezone.utc), versions(read_current(folder))
    if past:
        advance(folder, _versions(past), now, keys)
    found = renew(folder, now, keys)
    after = versions(found.current)
    renewed = {role: version for role, version in after.items() if version != before.get(role)}
    if as_json:
        print_json({"renewed": renewed, "versions": after, "waiting": list(found.waiting)})
    else:
        for role, version in renewed.items():
            console.print(f"{role} signed anew: version {version}")
        if not renewed:
            console.print(
                "nothing was signed anew: nothing " + ("else is due" if found.waiting else "is due")
            )
        _show_waiting(found.waiting)
    if found.alarming:
        ctx.exit(UNFINISHED)


def _versions(past: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for word in past:
        role, _, version = word.partition("=")
        if not version.isdecimal():
            raise BadInput(f"--past {word}: must be ROLE=VERSION, such as timestamp=120")
        found[role] = int(version)
    return found


def _cancel(folder: Path, as_json: bool) -> None:
    from edgekit.repo.pending import cancel

    versions = cancel(folder)
    if as_json:
        print_json({"cancelled": list(versions)})
        return
    what = ", ".join(f"root {version}" for version in versions)
    console.print(f"thrown away: {what}" if versions else "nothing waits to be signed")


def _sign_files(files: list[Path], keys: tuple[Path, ...], as_json: bool) -> None:
    from edgekit.repo.keyring import Held, key_id
    from edgekit.repo.keys import read_key
    from edgekit.repo.pending import sign_file
    from edgekit.repo.root import said

    if not keys:
        raise BadInput("--key FILE: a private root key is needed to sign with")
    opened = {path: read_key(path) for path in keys}
    held = {key_id(key): Held(path, key) for path, key in opened.items()}
    rows: list[Mapping[str, Any]] = []
    for path in files:
        root, names = sign_file(path, held)
        rows.append({"file": str(path), "version": root.signed.version, "signed": list(names)})
        if not as_json:
            console.print(Text(f"{path}: signed by {', '.join(names)}"), soft_wrap=True)
            for line in said(root.signed):
                console.print(Text(f"  {line}"), soft_wrap=True)
    if as_json:
        print_json({"files": rows})
    else:
        console.print("carry it back, and there: edgekit repo sign DIR FILE")


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {
        "root_version": outcome.current.root.signed.version,
        "enforced": list(outcome.enforced),
        "signed": list(outcome.signed),
        "waiting": list(outcome.waiting),
    }


def _show(outcome: Outcome, folder: Path) -> None:
    from edgekit.repo.root import said

    if outcome.signed:
        console.print(Text(f"  signed by {', '.join(outcome.signed)}"), soft_wrap=True)
    if outcome.enforced:
        *before, version = outcome.enforced
        by_way = f" (by way of {', '.join(map(str, before))})" if before else ""
        console.print(f"  root {version} is in force{by_way}")
        for line in said(outcome.current.root.signed):
            console.print(Text(f"    {line}"), soft_wrap=True)
    _show_waiting(outcome.waiting)
    if outcome.waiting:
        console.print(Text(f"  here:      edgekit repo sign {folder} --key FILE"), soft_wrap=True)
        console.print(
            Text("  elsewhere: copy it there, edgekit repo sign COPY --key FILE, carry it back, and")
        )
        console.print(Text(f"             edgekit repo sign {folder} COPY"), soft_wrap=True)


def _show_waiting(lines: tuple[str, ...]) -> None:
    for line in lines:
        console.print(Text.assemble(("waits: ", "yellow"), line), soft_wrap=True)
