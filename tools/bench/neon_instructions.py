#!/usr/bin/env python3
"""What the NEON kernel of binary layers executes for 128 multiply-accumulates: counted, not timed.

    python tools/bench/neon_instructions.py [--quick]

Compiles edgekit/native/neon.c with the cross compilers as the library's build does, takes the loop without an inner
loop that holds the most popcounts within the kernel's widest tile, and counts. Vector arithmetic is eor, cnt and add
and the broadcast of the inputs, whichever way the compiler writes it; loads of weights, addresses and the branch are
in the sum of all instructions only. --quick does the same.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.runtime.measure import machine_name

SOURCE = Path(__file__).parents[2] / "edgekit" / "native" / "neon.c"
TARGETS = {"aarch64": ("aarch64-linux-gnu", ()), "armv7": ("arm-linux-gnueabihf", ("-mfpu=neon",))}
FLAGS = ("-std=c11", "-O3", "-DNDEBUG", "-fPIC", "-ffp-contract=off")
TILES = re.compile(r"ek_xnor_block_\w+")
ADDED = re.compile(r"add\s+v\d|vadd\.")
COUNTED = re.compile(r"cnt\s+v|vcnt\.")
ARITHMETIC = re.compile(r"(eor|cnt|add|dup)\s+v\d|v(eor|cnt\.|add\.|dup\.)|ld1r|vld1\.\d+\s+\{d\d+\[\]")
MOST = 3 * 1.1


class Loop(NamedTuple):
    """An innermost loop: its function and its instructions."""

    function: str
    body: list[str]


def compiled(prefix: str, flags: tuple[str, ...]) -> str:
    """neon.c's assembly as objdump writes it."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "neon.o"
        subprocess.run([f"{prefix}-gcc", *FLAGS, *flags, "-c", SOURCE, "-o", built], check=True)
        command = [f"{prefix}-objdump", "-d", "--no-show-raw-insn", str(built)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loops(assembly: str) -> list[Loop]:
    """Every stretch that ends with a branch back to its start and has no other branch."""
    function, lines = "", []
    for line in assembly.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.*)>:", line):
            function = start[1]
        elif found := re.match(r"\s*([0-9a-f]+):\s+(.*)", line):
            lines.append((int(found[1], 16), found[2].split(" @ ")[0].strip(), function))
    places = {address: index for index, (address, _, _) in enumerate(lines)}
    result = []
    for index, (address, text, owner) in enumerate(lines):
        back = re.match(r"(?:b\.?\w\w|cbn?z|tbn?z)\S*\s+(?:\w+, )*([0-9a-f]+) <", text)
        if back is None or int(back[1], 16) > address or int(back[1], 16) not in places:
            continue
        body = [line[1] for line in lines[places[int(back[1], 16)] : index + 1]]
        if not any(re.match(r"(b\.?\w\w|b|cbn?z|tbn?z)(\.[nw])?\s", text) for text in body[:-1]):
            result.append(Loop(owner, body))
    return result


def counts(prefix: str, flags: tuple[str, ...]) -> dict[str, Any]:
    """Of the widest tile's loop: a popcount of 16 bytes stands for 128 multiply-accumulates."""
    found = [loop for loop in loops(compiled(prefix, flags)) if TILES.match(loop.function)]
    loop = max(found, key=lambda loop: sum(bool(COUNTED.match(text)) for text in loop.body))
    popcounts = sum(bool(COUNTED.match(text)) for text in loop.body)
    return {
        "function": loop.function,
        "multiply_accumulates": popcounts * 128,
        "arithmetic": sum(bool(ARITHMETIC.match(text)) for text in loop.body) / popcounts,
        "all": len(loop.body) / popcounts,
        "instructions": dict(Counter(text.split()[0] for text in loop.body)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the same: nothing is timed")
    parser.parse_args()
    versions, targets, seen = {}, [], {}
    for name, (prefix, flags) in TARGETS.items():
        version = subprocess.run([f"{prefix}-gcc", "--version"], check=True, capture_output=True, text=True)
        versions[f"{prefix}-gcc"] = version.stdout.splitlines()[0]
        seen[name] = counts(prefix, flags)
        for kind, most in (("arithmetic", MOST), ("all", None)):
            value = round(seen[name][kind], 3)
            bound = (
                {"target": f"<= {most:.1f}", "met": value <= most} if most else {"target": "", "met": None}
            )
            line = {"name": f"{name}: {kind} instructions", "value": value, "min": value, "max": value}
            targets.append({**line, "unit": "per 128 MAC", **bound})
    report = {"machine": machine_name(), "versions": versions, "rounds": 1, "targets": targets, "loops": seen}
    json.dump(report, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
