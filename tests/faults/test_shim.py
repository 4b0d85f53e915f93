"""The recording file layer sees every operation, whichever function of the C library it comes through."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from power_cuts import Disk
from recording import FOLDER, OPS, Op, environment, read_log, under

# Every way in which Python, its libraries and SQLite change files, once each.
REFERENCE = """
import os, shutil, sqlite3, sys, tempfile
from pathlib import Path
root = Path(sys.argv[1])
folder = os.open(root, os.O_RDONLY)
(root / "a").write_bytes(b"first")
with (root / "a").open("ab") as file:
    file.write(b" more"); file.flush(); os.fsync(file.fileno())
with (root / "a").open("r+b") as file:
    file.truncate(3)
os.truncate(root / "a", 2)
descriptor = os.open("b", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
os.write(descriptor, b"one"); os.pwrite(descriptor, b"two", 10); os.writev(descriptor, [b"th", b"ree"])
os.pwritev(descriptor, [b"fo", b"ur"], 20); os.posix_fallocate(descriptor, 0, 4096); os.fdatasync(descriptor)
other = os.dup(descriptor); os.write(other, b"dup"); os.close(other); os.close(descriptor)
shutil.copyfile(root / "b", root / "c")
with open(root / "b", "rb") as source, open(root / "d", "wb") as made:
    os.copy_file_range(source.fileno(), made.fileno(), 7)
os.rename(root / "c", root / "e"); os.replace(root / "e", root / "f"); (root / "f").rename(root / "g")
os.rename("g", "h", src_dir_fd=folder, dst_dir_fd=folder)
os.link(root / "h", root / "i"); os.symlink("h", root / "j"); os.unlink(root / "i"); os.remove(root / "j")
os.symlink("h", "k", dir_fd=folder); os.unlink("k", dir_fd=folder)
(root / "sub").mkdir(); os.mkdir("deeper", dir_fd=os.open(root / "sub", os.O_RDONLY))
(root / "sub/deeper/file").write_text("x")
os.rename(root / "sub", root / "moved")
shutil.rmtree(root / "moved")
os.mkdir(root / "empty"); os.rmdir(root / "empty"); os.fsync(folder)
with tempfile.NamedTemporaryFile(dir=root, delete=False) as file:
    file.write(b"temporary")
os.chdir(root); open("relative", "w").close(); os.rename("relative", "../%s/relative2" % root.name)
db = sqlite3.connect(root / "db", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL"); db.execute("PRAGMA synchronous = FULL")
db.execute("CREATE TABLE t (x)"); db.execute("INSERT INTO t VALUES (1)"); db.execute("PRAGMA wal_checkpoint")
db.close()
"""
CALLS = {  # system call -> what the shim calls it
    "write": "write",
    "pwrite64": "write",
    "writev": "write",
    "pwritev": "write",
    "pwritev2": "write",
    "sendfile": "write",
    "copy_file_range": "write",
    "ftruncate": "trunc",
    "fallocate": "trunc",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "link": "link",
    "linkat": "link",
    "symlink": "symlink",
    "symlinkat": "symlink",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "rmdir",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "truncate": "trunc",
    "creat": "open",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


def run(root: Path, script: str, *before: str, **settings: object) -> tuple[int, list[Op]]:
    log = root.parent / "log"
    variables = environment(root, log=log, **settings)  # type: ignore[arg-type]
    if before:  # the variables are the traced program's alone
        before = (*before, *(word for name, value in variables.items() for word in ("-E", f"{name}={value}")))
        variables = {}
    command = [*before, sys.executable, "-c", script, str(root)]
    done = subprocess.run(command, env=under(variables), check=False, timeout=60)
    return done.returncode, read_log(log)


def test_every_operation_of_a_reference_program_is_recorded(root: Path) -> None:
    code, ops = run(root, REFERENCE)
    assert code == 0
    kinds = Counter(op.kind for op in ops)
    assert not [op for op in ops if op.kind == "unseen"]
    assert set(kinds) >= set(OPS) - {"", "sync", "read", "mark", "unseen"}
    assert kinds["symlink"] == 2
    assert kinds["link"] == 1
    assert kinds["mkdir"] == 3
    assert sum(op.kind == "rename" for op in ops) == 6
    assert [op for op in ops if op.kind == "fsync" and op.flags & FOLDER]
    b = [(op.offset, op.data) for op in ops if op.kind == "write" and op.path.endswith("root/b")]
    assert b == [(0, b"one"), (10, b"two"), (3, b"three"), (20, b"four"), (8, b"dup")]


def test_what_is_recorded_gives_the_same_files_when_it_is_done_again(root: Path) -> None:
    disk = Disk.of(root)
    _, ops = run(root, REFERENCE)
    for number, op in enumerate(ops):
        disk.do(op, str(root), number)
    made = {path: leaf.content for path, leaf in disk.tree(disk.pending).items() if leaf.kind == "file"}
    assert made == {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_the_kernel_saw_nothing_that_was_not_recorded(root: Path) -> None:
    """Counted by strace, which no function of the C library can go past."""
    if shutil.which("strace") is None:
        pytest.skip("not installed: strace")
    trace = root.parent / "trace"
    strace = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(trace), "-e", f"trace={','.join(CALLS)}"]
    code, ops = run(root, REFERENCE, *strace)
    assert code == 0
    seen: Counter[str] = Counter()
    for line in trace.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\((.*) = (\d+)", line)
        if match is None or match[1] not in CALLS or "/log>" in line:
            continue
        at_end = CALLS[match[1]] == "write" and match[3] == "0"  # a copy's last call, which copies nothing
        if not at_end and ("root" in match[2] or match[1] == "rename"):
            removed = match[1] == "unlinkat" and "AT_REMOVEDIR" in line
            seen["rmdir" if removed else CALLS[match[1]]] += 1
    recorded = Counter(op.kind for op in ops if op.kind in CALLS.values())
    recorded.pop("open", None)
    assert recorded == seen


SAVE = """
import os, sys
for name in "abc":
    with open(os.path.join(sys.argv[1], name), "w") as file:
        file.write(name); file.flush(); os.fsync(file.fileno())
"""


@pytest.mark.parametrize(("kill", "left"), [("before:2", 1), ("after:2", 2), ("before:4", 3)])
def test_a_process_dies_before_or_after_the_nth_point(root: Path, kill: str, left: int) -> None:
    code, ops = run(root, SAVE, kill=kill, kinds=("fsync",))
    assert code == (0 if left == 3 else -signal.SIGKILL)
    assert sum(op.kind == "fsync" for op in ops) == left


@pytest.mark.parametrize("how", ["once", "on"])
def test_the_nth_point_fails_with_the_errno_asked_for(root: Path, how: str) -> None:
    script = SAVE.replace("        file", "        try: file").replace(
        "os.fsync(file.fileno())", "os.fsync(file.fileno())\n        except OSError as err: print(err.errno)"
    )
    variables = environment(root, fail=f"28:2:{how}", kinds=("fsync",))
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)],
        env=under(variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["28"] * (1 if how == "once" else 2)


def test_a_swallowed_fsync_looks_done_and_was_not(root: Path) -> None:
    code, ops = run(root, SAVE, swallow=2)
    assert code == 0
    assert [Path(op.path).name for op in ops if op.kind == "fsync"] == ["a", "c"]


def test_nothing_is_recorded_before_it_is_armed_and_marks_stand_in_their_place(root: Path) -> None:
    script = SAVE + (
        "open(sys.argv[1] + '/../armed', 'w').close()\n"
        "try: open(sys.argv[1] + '/.mark/hello', 'rb')\n"
        "except FileNotFoundError: os.unlink(sys.argv[1] + '/a')\n"
    )
    _, ops = run(root, script, arm=root.parent / "armed")
    assert [(op.kind, Path(op.path).name) for op in ops] == [("mark", "hello"), ("unlink", "a")]
