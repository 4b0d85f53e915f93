"""Bundles on disk: one folder per content, entered by one rename after everything in it is safe. Runs nothing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.core import checks
from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.errors import BadBundle, BadInput, EdgekitError, WorldFailed, one_line
from edgekit.core.files import sync_folder, write_atomic
from edgekit.core.target import parse_label

log = logging.getLogger(__name__)
BUNDLE, COMMITTED = "bundle.edge", "committed.json"
_PART, _GONE = ".part-", ".gone-"
MARGIN = 16 * 10**6  # bytes that a download leaves free: state, outbox and whoever else writes need some


def check_room(folder: Path, missing: int) -> None:
    """Raise WorldFailed where the disk has no room for `missing` bytes more in `folder`, and some to go on with."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as err:
        raise WorldFailed(f"{folder}: free space is not known: {err.strerror or err}") from err
    if free < missing + MARGIN:
        raise WorldFailed(
            f"{folder}: {missing / 1e6:.1f} MB are still to come and {MARGIN / 1e6:.0f} MB must stay free, "
            f"there are {free / 1e6:.1f} MB: make room on the disk"
        )


@dataclass(frozen=True)
class Slot:
    """A committed bundle: it passed its trial here."""

    content_id: str
    label: str  # name/version

    @classmethod
    def parse(cls, value: object, where: str) -> Slot:
        """Read from JSON. Raises BadInput."""
        data = checks.table(value, where)
        label = checks.text(data.get("label"), f"{where}.label")
        parse_label(label, f"{where}.label")
        return cls(checks.sha256(data.get("content_id"), f"{where}.content_id"), label)

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {"content_id": self.content_id, "label": self.label}


class Slots:
    """`folder/CONTENT_ID/bundle.edge`, verified whenever it is opened. A folder under its final name is complete."""

    def __init__(self, folder: Path, max_bundle_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bundle_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as err:
            raise WorldFailed(f"{folder}: could not be made: {err.strerror}") from err

    def path(self, content_id: str) -> Path:
        """Where the bundle of that content lies, or would lie."""
        return self.folder / content_id / BUNDLE

    def part(self, sha256: str) -> Path:
        """Where a file of that hash is collected while it is fetched; what came so far may be there already."""
        folder = self.folder / f"{_PART}{sha256}"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as err:
            raise WorldFailed(f"{folder}: could not be made: {err.strerror}") from err
        return folder / BUNDLE

    def open(self, content_id: str) -> Bundle:
        """The verified bundle of a slot. Raises BadInput (none there, damaged, other content), WorldFailed."""
        return self.check(self.path(content_id), content_id)

    def check(self, path: Path, content_id: str) -> Bundle:
        """Verify a bundle file and that it is the one that was promised. Raises BadBundle, BadInput, WorldFailed."""
        bundle = open_bundle(path, self._max_bytes)
        if bundle.content_id != content_id:
            raise BadBundle(f"{path}: content must be {content_id[:12]}…, got {bundle.content_id[:12]}…")
        return bundle

    def holds(self, content_id: str) -> bool:
        """Whether a slot has that content, whole."""
        try:
            self.open(content_id)
        except EdgekitError:
            return False
        return True

    def install(self, part: Path, content_id: str) -> None:
        """Make a verified part, synced as `Repository.fetch` leaves it, the slot of its content. Raises WorldFailed."""
        final = self.folder / content_id
        try:
            sync_folder(part.parent)
            if final.exists():
                self._remove(final)
            part.parent.rename(final)
            sync_folder(self.folder)
        except OSError as err:
            raise WorldFailed(f"{final}: could not be installed: {err.strerror or err}") from err

    def check_room(self, sha256: str, length: int) -> None:
        """Raise WorldFailed where the disk has no room for a download of `length` bytes, and some to go on with.

        sha256: of the file; what has come of it already is not needed again. No slot is given up for it: the one before
        the active one is what a bundle that fails later gives way to.
        """
        part = self.folder / f"{_PART}{sha256}" / BUNDLE
        check_room(self.folder, max(0, length - (part.stat().st_size if part.is_file() else 0)))

    def is_marked(self, content_id: str) -> bool:
        """Whether it is noted beside a bundle that it passed its trial."""
        return (self.folder / content_id / COMMITTED).is_file()

    def mark(self, content_id: str, number: int) -> None:
        """Note beside a bundle that it passed its trial as the `number`-th: what a lost state file is repaired from."""
        note = json.dumps({"v": 1, "number": number}).encode()
        write_atomic(self.folder / content_id / COMMITTED, note, 0o600)

    def committed(self) -> tuple[tuple[int, Slot], ...]:
        """Verified slots that once passed their trial, with their numbers, the latest first."""
        found = []
        try:
            folders = tuple(self.folder.iterdir())
        except OSError as err:
            log.warning("%s: could not be looked through: %s", self.folder, err.strerror)
            return ()
        for folder in folders:
            if not checks.SHA256.fullmatch(folder.name):
                continue
            try:
                note = checks.parse_json((folder / COMMITTED).read_bytes(), str(folder / COMMITTED))
                number = checks.integer(checks.table(note, folder.name).get("number"), folder.name)
                found.append((number, Slot(folder.name, self.open(folder.name).label)))
            except (OSError, BadInput, WorldFailed) as err:
                log.info("slot %s does not count: %s", folder.name[:12], one_line(err))
        return tuple(sorted(found, key=lambda entry: entry[0], reverse=True))

    def bundles(self, first: Collection[str] = ()) -> tuple[Path, ...]:
        """Every bundle file here, begun downloads too: what a member of a new one may be copied from. Not verified.

        first: contents to begin with.
        """
        try:
            names = [folder.name for folder in self.folder.iterdir() if not folder.name.startswith(_GONE)]
        except OSError:
            return ()
        names.sort(key=lambda name: (name not in first, name.startswith(_PART), name))
        return tuple(self.folder / name / BUNDLE for name in names)

    def discard_part(self, part: Path) -> None:
        """Forget what was fetched of a file."""
        shutil.rmtree(part.parent, ignore_errors=True)

    def keep(self, content_ids: Collection[str], *, parts: bool = False) -> None:
        """Remove every other slot and what interrupted work left behind; with `parts`, begun downloads stay."""
        try:
            folders = sorted(self.folder.iterdir())
        except OSError as err:
            log.warning("%s: could not be looked through: %s", self.folder, err.strerror)
            return
        for folder in folders:
            if folder.name in content_ids or (parts and folder.name.startswith(_PART)):
                continue
            log.info("remove %s", folder.name[:20])
            try:
                self._remove(folder)
            except OSError as err:
                log.warning("%s: could not be removed: %s", folder, err.strerror)

    def _remove(self, folder: Path) -> None:
        """Take the name away first, so that a half-removed folder is never taken for a slot."""
        gone = folder
        if not folder.name.startswith(_GONE):
            gone = folder.with_name(f"{_GONE}{folder.name}")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
