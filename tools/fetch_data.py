#!/usr/bin/env python3
"""Print the folder that holds Fashion-MNIST's four files, fetching and checking them first. A script: never imported.

The files are those of the Debian package dataset-fashion-mnist. Where it is installed they are used in place; else it
is downloaded and unpacked, without root, into EDGEKIT_CACHE (default ~/.cache/edgekit). No folder is printed whose
files do not have the sha256 they should. Standard library only. Exit code 3: apt could not bring the package.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
SHA256 = {
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
}


def wrong_files(folder: Path) -> list[str]:
    """What is missing or has other content than it should; empty: the folder is good."""
    wrong = []
    for name, wanted in SHA256.items():
        try:
            got = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as err:
            wrong.append(f"{folder / name}: {err.strerror}")
            continue
        if got != wanted:
            wrong.append(f"{folder / name}: wanted sha256 {wanted}, got {got}")
    return wrong


def cache_root() -> Path:
    named = os.environ.get("EDGEKIT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "edgekit"


def run(command: list[str], folder: Path) -> None:
    """Raise OSError with the last line of what the command complained of, when it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaint = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OSError(f"{command[0]}: {complaint[-1]}")


def fetch(folder: Path) -> None:
    """Download the package and move its checked files to `folder` in one step; raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
        run(["apt-get", "download", PACKAGE], Path(scratch))
        package = next(iter(Path(scratch).glob(f"{PACKAGE}_*.deb")), None)
        if package is None:
            raise OSError(f"apt-get download {PACKAGE} brought no .deb file")
        unpacked = Path(scratch) / "unpacked"
        run(["dpkg-deb", "-x", str(package), str(unpacked)], Path(scratch))
        files = unpacked / INSTALLED.relative_to("/")
        wrong = wrong_files(files)
        if wrong:
            raise OSError(f"in package {PACKAGE}: {wrong[0]}")
        if folder.exists() and wrong_files(folder):
            shutil.rmtree(folder)
        try:
            files.rename(folder)
        except OSError:  # another process was faster: what it left is as good
            if wrong_files(folder):
                raise


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--ignore-installed", action="store_true", help="use the cache even where the package is installed"
    )
    wanted = parser.parse_args()

    if not wanted.ignore_installed and INSTALLED.is_dir():
        wrong = wrong_files(INSTALLED)
        if not wrong:
            print(INSTALLED)
            return 0
        print(f"fetch_data: not using the installed package: {wrong[0]}", file=sys.stderr)

    folder = cache_root() / "fashion-mnist"
    if not folder.is_dir() or wrong_files(folder):
        print(f"fetch_data: fetching Debian package {PACKAGE} into {folder}", file=sys.stderr)
        try:
            fetch(folder)
        except OSError as err:
            print(
                f"fetch_data: {PACKAGE} could not be fetched: {err}; try: sudo apt-get install {PACKAGE}",
                file=sys.stderr,
            )
            return 3
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
