#!/usr/bin/env python3
"""Write the overlay's register constants for Verilog, C and Python from registers.toml; `--check` only compares.

Checks that registers do not overlap and fields fit. Imported by its test alone.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.core.toml import read_toml

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "firmware_stubs" / "pynq_bnn" / "registers.toml"
MADE_BY = "Made from registers.toml by tools/make_registers.py: change that file, then run this."
WORD = 4


def main() -> None:
    """Write the three files, or exit with 1 where --check finds a difference."""
    wanted = files(read_toml(SOURCE))
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)}: differs from registers.toml\n")
        sys.exit(bool(stale))
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    sys.stderr.write(f"{len(stale)} of {len(wanted)} files written\n")


def files(table: Mapping[str, Any]) -> dict[Path, str]:
    """Each generated file and its text."""
    check(table)
    folder = SOURCE.parent
    return {
        folder / "rtl" / "registers.vh": verilog(table),
        folder / "registers.h": c_header(table),
        ROOT / "edgekit" / "runtime" / "overlay" / "registers.py": python(table),
    }


def check(table: Mapping[str, Any]) -> None:
    """Raise ValueError for overlapping or misaligned registers, repeated names, fields that do not fit."""
    taken: set[int] = set()
    window = table["window"]
    spans = [(row["name"], row["offset"], WORD) for row in table["register"]]
    for name, offset, size in [*spans, (window["name"], window["offset"], window["words"] * WORD)]:
        cells = set(range(offset, offset + size))
        if offset % WORD or cells & taken or offset + size > 1 << table["address_bits"]:
            raise ValueError(f"{name}: its offset {offset:#x} is taken, misaligned or too large")
        taken |= cells
    names = [name for name, _, _ in spans]
    if len(set(names)) != len(names):
        raise ValueError("a register's name stands twice")
    for row in table["register"]:
        bits = [low + i for low, count in row.get("fields", {}).values() for i in range(count)]
        if len(set(bits)) != len(bits) or any(bit >= 32 for bit in bits):
            raise ValueError(f"{row['name']}: its fields overlap or do not fit")


def constants(table: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Name, value, meaning, in the file's order. A field of one bit has a mask, a wider one also a shift."""
    rows: list[tuple[str, int, str]] = [
        ("MAGIC", table["magic"], "what register MAGIC holds"),
        ("VERSION", table["version"], "of the register map: major << 16 | minor"),
    ]
    for row in table["register"]:
        rows.append((f"REG_{row['name']}", row["offset"], f"{row['access']}: {row['text']}"))
        for field, (low, count) in row.get("fields", {}).items():
            rows.append((f"{row['name']}_{field}", ((1 << count) - 1) << low, ""))
            if count > 1:
                rows.append((f"{row['name']}_{field}_SHIFT", low, ""))
    window = table["window"]
    rows.append((window["name"], window["offset"], window["text"]))
    rows.append((f"{window['name']}_WORDS", window["words"], ""))
    rows += [(name, value["value"], value["text"]) for name, value in table["values"].items()]
    return rows


def verilog(table: Mapping[str, Any]) -> str:
    """Offsets in the width of an address; of a field its lowest bit."""
    bits = table["address_bits"]
    lines = [f"// {MADE_BY}", "`ifndef EDGEKIT_REGISTERS_VH", "`define EDGEKIT_REGISTERS_VH"]
    lines += [
        f"`define EK_ADDRESS_BITS {bits}",
        f"`define EK_MAGIC 32'h{table['magic']:08x}",
        f"`define EK_VERSION 32'h{table['version']:08x}",
    ]
    for row in table["register"]:
        lines.append(f"`define EK_REG_{row['name']} {bits}'h{row['offset']:04x}")
        lines += [
            f"`define EK_{row['name']}_{field} {_range(*span)}"
            for field, span in row.get("fields", {}).items()
        ]
    window = table["window"]
    lines.append(f"`define EK_{window['name']}_BITS {(window['words'] - 1).bit_length()}")
    lines.append(f"`define EK_{window['name']}_BIT {window['offset'].bit_length() - 1}")
    for name, value in table["values"].items():
        lines.append(f"`define EK_{name} {value['bits']}'d{value['value']}")
    return "\n".join([*lines, "`endif", ""])


def _range(low: int, count: int) -> str:
    return f"{low + count - 1}:{low}" if count > 1 else str(low)


def c_header(table: Mapping[str, Any]) -> str:
    """Masks and shifts for firmware that drives the overlay."""
    lines = [
        f"/* {MADE_BY} */",
        "#ifndef EDGEKIT_PYNQ_BNN_REGISTERS_H",
        "#define EDGEKIT_PYNQ_BNN_REGISTERS_H",
        "",
    ]
    lines += [
        f"#define EK_OVERLAY_{name} UINT32_C({value:#x})" + (f" /* {text} */" if text else "")
        for name, value, text in constants(table)
    ]
    return "\n".join([*lines[:3], "", "#include <stdint.h>", "", *lines[4:], "", "#endif", ""])


def python(table: Mapping[str, Any]) -> str:
    """The same numbers for the driver."""
    lines = [
        '"""The overlay\'s register map as constants.',
        "",
        MADE_BY,
        '"""',
        "",
        "from __future__ import annotations",
        "",
    ]
    return "\n".join([*lines, *_python_rows(constants(table)), ""])


def _python_rows(rows: Sequence[tuple[str, int, str]]) -> list[str]:
    found = []
    for name, value, text in rows:
        if text:
            found += textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")
        found.append(f"{name} = 0x{value:X}")
    return found


if __name__ == "__main__":
    main()
