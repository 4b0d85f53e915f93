"""Read the header of a Xilinx .bit file: which design it was built for. Loads nothing.

A .bit file begins with a fixed preamble, then fields of one letter, a 16-bit big-endian length and text: `a` the
design's name with `;UserID=0XFFFFFFFF` in it, `b` the part, `c` the date, `d` the time; `e` begins the configuration
data. UserID is what BITSTREAM.CONFIG.USERID was set to (Vivado, UG908): our build.tcl sets it to the first 32 bits of
design_id.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.core.errors import BadInput

_PREAMBLE = bytes.fromhex("00090ff00ff00ff00ff0000001")
_FIELDS = b"abcd"
_USER_ID = re.compile(r"UserID=(?:0[xX])?([0-9a-fA-F]{1,8})(?:;|$)")


@dataclass(frozen=True)
class BitHeader:
    """What the file says of itself. user_id: None where it says nothing."""

    name: str
    part: str
    user_id: int | None


def read_header(content: bytes, where: str) -> BitHeader:
    """The header of a .bit file. Raises BadInput for what is none."""
    if not content.startswith(_PREAMBLE):
        raise BadInput(f"{where}: must be a Xilinx .bit file, its first bytes are others")
    at, texts = len(_PREAMBLE), []
    for letter in _FIELDS:
        size = int.from_bytes(content[at + 1 : at + 3], "big")
        text = content[at + 3 : at + 3 + size]
        if content[at : at + 1] != bytes([letter]) or len(text) != size:
            raise BadInput(f"{where}: must be a Xilinx .bit file, its header is damaged at byte {at}")
        texts.append(text.rstrip(b"\0").decode("ascii", "replace"))
        at += 3 + size
    found = _USER_ID.search(texts[0])
    return BitHeader(texts[0].split(";")[0], texts[1], None if found is None else int(found[1], 16))


def check_design(content: bytes, design_id: str, where: str) -> None:
    """Raise BadInput unless the .bit file says that it was built for this design."""
    header = read_header(content, where)
    wanted = int(design_id[:8], 16)
    if header.user_id != wanted:
        came = "none" if header.user_id is None else f"{header.user_id:#010x}"
        raise BadInput(
            f"{where}: must be built for design_id {design_id} (UserID {wanted:#010x}), its UserID is {came}: build it "
            "from the build.tcl that convert wrote for this folding"
        )
