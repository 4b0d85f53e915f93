"""What a power cut can leave of recorded operations on files: every state a file system may have on disk afterwards.

The model is POSIX's promise and no more. What was written is safe after an fsync of that file, a name after one of its
folder; until then each change may be there, or not, or (contents) in part, whatever came before or after it. A rename
is one change. ext4, f2fs and btrfs leave fewer states.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from recording import CREATED, TRUNCATED, Op

Tree = dict[str, "Leaf"]  # path below the root -> what is there; "" is not in it


@dataclass(frozen=True)
class Leaf:
    """kind: file, folder or link. content: a file's bytes, a link's text; key: the same for the same content."""

    kind: str
    content: bytes = b""
    key: str = ""


@dataclass(frozen=True)
class Change:
    """One thing that a cut may lose.

    names: (folder, name, node or None) of a change of names; else `node` is the file, resized to `size` or with
    `data` at `offset`.
    """

    number: int
    names: tuple[tuple[int, str, int | None], ...] = ()
    node: int = 0
    offset: int = 0
    data: bytes | None = None
    size: int | None = None

    @property
    def kind(self) -> str:
        return "names" if self.names else "data"


@dataclass
class Disk:
    """What is safe, and what is not yet. Nodes are numbered; 0 is the root."""

    kinds: dict[int, str] = field(default_factory=dict)
    links: dict[int, bytes] = field(default_factory=dict)
    safe_names: dict[int, dict[str, int]] = field(default_factory=dict)
    safe_data: dict[int, bytes] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)  # of safe_data, for keys
    pending: list[Change] = field(default_factory=list)
    names: dict[int, dict[str, int]] = field(default_factory=dict)  # as the running system sees them
    nodes: dict[int, int] = field(default_factory=dict)  # inode -> node, as long as it lives

    @classmethod
    def of(cls, folder: Path) -> Disk:
        """A folder as it is, all of it safe."""
        disk = cls()
        disk._add(folder)
        return disk

    def _add(self, path: Path) -> int:
        inode = path.lstat().st_ino
        node = self.nodes[inode] = len(self.kinds)
        self.versions[node] = 0
        if path.is_symlink():
            self.kinds[node], self.links[node] = "link", os.fsencode(path.readlink())
        elif path.is_dir():
            self.kinds[node], self.safe_names[node] = "folder", {}
            for entry in sorted(path.iterdir()):
                self.safe_names[node][entry.name] = self._add(entry)
            self.names[node] = dict(self.safe_names[node])
        else:
            self.kinds[node], self.safe_data[node] = "file", path.read_bytes()
        return node

    # --- what the system does ---

    def do(self, op: Op, root: str, number: int) -> None:
        """Apply one recorded operation."""
        if op.kind in ("open", "mkdir", "symlink"):
            if op.kind != "open" or op.flags & CREATED:
                node = len(self.kinds)
                self.nodes[op.inode] = node
                self.versions[node] = 0
                self.kinds[node] = {"open": "file", "mkdir": "folder", "symlink": "link"}[op.kind]
                if op.kind == "mkdir":
                    self.safe_names[node], self.names[node] = {}, {}
                self.safe_data[node] = b""
                self.links[node] = os.fsencode(op.other)
                self._rename(number, [(*self._place(op.path, root), node)])
            elif op.flags & TRUNCATED:
                self.pending.append(Change(number, node=self.nodes[op.inode], size=0))
        elif op.kind == "write":
            node = self.nodes[op.inode]
            self.pending.append(Change(number, node=node, offset=op.offset, data=op.data))
        elif op.kind == "trunc":
            self.pending.append(Change(number, node=self.nodes[op.inode], size=op.offset))
        elif op.kind == "rename":
            node = self.nodes[op.inode]
            self._rename(number, [(*self._place(op.path, root), None), (*self._place(op.other, root), node)])
        elif op.kind == "link":
            self._rename(number, [(*self._place(op.other, root), self.nodes[op.inode])])
        elif op.kind in ("unlink", "rmdir"):
            self._rename(number, [(*self._place(op.path, root), None)])
        elif op.kind in ("fsync", "fdatasync"):
            self.sync(self.nodes[op.inode])
        elif op.kind == "sync":
            self.sync(None)
        else:
            assert op.kind == "mark", f"{op} is not understood"

    def _place(self, path: str, root: str) -> tuple[int, str]:
        """The folder's node and the name in it."""
        node = 0
        *folders, name = Path(path).relative_to(root).parts
        for folder in folders:
            node = self.names[node][folder]
        return node, name

    def _rename(self, number: int, names: list[tuple[int, str, int | None]]) -> None:
        for folder, name, node in names:
            _put(self.names[folder], name, node)
        self.pending.append(Change(number, names=tuple(names)))

    def sync(self, node: int | None) -> None:
        """What belongs to that node is safe from now on; None: everything."""
        waiting: list[Change] = []
        for change in self.pending:
            if change.kind == "data" and node in (None, change.node):
                self.safe_data[change.node] = changed(self.safe_data[change.node], change)
                self.versions[change.node] += 1
            elif change.kind == "names" and (
                node is None or any(folder == node for folder, _, _ in change.names)
            ):
                for folder, name, entry in change.names:
                    _put(self.safe_names[folder], name, entry)
            else:
                waiting.append(change)
        self.pending = waiting

    # --- what a cut leaves ---

    def tree(self, kept: Sequence[Change]) -> Tree:
        """What is on disk when of all pending changes exactly these, in their order, have arrived."""
        names = {node: dict(entries) for node, entries in self.safe_names.items()}
        data: dict[int, list[Change]] = {}
        for change in kept:
            if change.kind == "data":
                data.setdefault(change.node, []).append(change)
            for folder, name, node in change.names:
                _put(names[folder], name, node)
        made: Tree = {}

        def walk(node: int, path: str) -> None:
            for name, entry in names[node].items():
                below = f"{path}{name}"
                if self.kinds[entry] == "folder":
                    made[below] = Leaf("folder")
                    walk(entry, f"{below}/")
                elif self.kinds[entry] == "link":
                    made[below] = Leaf("link", self.links[entry], f"link {self.links[entry]!r}")
                else:
                    made[below] = self._leaf(entry, data.get(entry, ()))

        walk(0, "")
        return made

    def _leaf(self, node: int, changes: Sequence[Change]) -> Leaf:
        """A file's content; equal contents have equal keys."""
        marks = tuple(
            (c.number, c.size, None if c.data is None else (len(c.data), c.data[:1])) for c in changes
        )
        known = _LEAVES.get((id(self.safe_data[node]), marks))
        if known is None or known[0] is not self.safe_data[node]:
            content = self.safe_data[node]
            for change in changes:
                content = changed(content, change)
            leaf = Leaf("file", content, hashlib.sha256(content).hexdigest())
            known = _LEAVES[id(self.safe_data[node]), marks] = (self.safe_data[node], leaf)
        return known[1]


_LEAVES: dict[tuple[int, object], tuple[bytes, Leaf]] = {}


def _put(names: dict[str, int], name: str, node: int | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def changed(content: bytes, change: Change) -> bytes:
    """A file's content after one change of it."""
    if change.size is not None:
        return content[: change.size].ljust(change.size, b"\0")
    data = change.data or b""
    return content[: change.offset].ljust(change.offset, b"\0") + data + content[change.offset + len(data) :]


def torn(change: Change) -> tuple[Change, ...]:
    """What a cut in the middle of writing it leaves: the first half, or its full length in zeros."""
    if change.data is None or not change.data:
        return ()
    half = replace(change, data=change.data[: len(change.data) // 2])
    return (half, replace(change, data=bytes(len(change.data))))


def cuts(pending: Sequence[Change], chance: random.Random, shuffled: int = 4) -> Iterator[list[Change]]:
    """Which of the pending changes may have arrived: none, all, any first ones, all but one, only one, names without
    contents and contents without names, each content torn, and a few drawn ones."""
    changes = list(pending)
    for count in range(len(changes) + 1):
        yield changes[:count]
    names = [change for change in changes if change.kind == "names"]
    data = [change for change in changes if change.kind == "data"]
    yield names
    yield data
    for index, change in enumerate(changes):
        yield changes[:index] + changes[index + 1 :]
        yield [change]
        for part in torn(change):
            yield [*changes[:index], part]
            yield [*changes[:index], part, *changes[index + 1 :]]
    for node in {change.node for change in data}:
        yield [change for change in changes if change.kind == "names" or change.node != node]
        yield names + [change for change in data if change.node == node]
        zeros = [replace(c, data=bytes(len(c.data))) if c.data and c.node == node else c for c in changes]
        yield zeros
    for _ in range(shuffled if len(changes) > 2 else 0):
        yield [change for change in changes if chance.random() < 0.5]


@dataclass(frozen=True)
class Cut:
    """after: how many operations were done. marks: what the program had noted by then."""

    after: int
    tree: Tree
    marks: tuple[str, ...]


def states(
    base: Disk,
    ops: Sequence[Op],
    root: str,
    key: Callable[[Tree, int], object],
    start: int = 0,
    seed: int = 0,
) -> Iterator[Cut]:
    """Every state after every operation but the first `start`, each once by `key(tree, marks so far)`.

    `base` is used up.
    """
    chance, seen, marks = random.Random(seed), set(), []
    for number, op in enumerate([None, *ops]):
        if op is not None:
            if op.kind == "mark":
                marks.append(op.path)
            base.do(op, root, number)
        for kept in cuts(base.pending, chance) if number >= start else ():
            tree = base.tree(kept)
            known = key(tree, len(marks))
            if known not in seen:
                seen.add(known)
                yield Cut(number, tree, tuple(marks))


def digest(tree: Mapping[str, Leaf], wanted: Callable[[str], bool] = lambda path: True) -> frozenset[object]:
    """The same for trees that are the same, in the paths that are wanted."""
    return frozenset((path, leaf.kind, leaf.key) for path, leaf in tree.items() if wanted(path))


def lay_out(
    tree: Mapping[str, Leaf], folder: Path, wanted: Callable[[str], bool] = lambda path: True
) -> None:
    """Write a tree to a folder that is made for it."""
    folder.mkdir()
    for path, leaf in sorted(tree.items()):
        if not wanted(path):
            continue
        place = folder / path
        if leaf.kind == "folder":
            place.mkdir()
        elif leaf.kind == "link":
            place.symlink_to(os.fsdecode(leaf.content))
        else:
            place.write_bytes(leaf.content)
