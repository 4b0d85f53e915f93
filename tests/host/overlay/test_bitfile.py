"""The header of a .bit file says which design it was built for; another design's is refused."""

from __future__ import annotations

import pytest

from edgekit.core.errors import BadInput
from edgekit.host.overlay.bitfile import check_design, read_header

DESIGN = "0123abcd" + "0" * 24


def bit_file(name: str = "overlay_wrapper;UserID=0X0123ABCD;Version=2022.1") -> bytes:
    """As Vivado writes it: preamble, texts, the length of the data, the data."""
    fields = [name, "7z020clg400", "2026/01/02", "03:04:05"]
    content = bytes.fromhex("00090ff00ff00ff00ff0000001")
    for letter, text in zip(b"abcd", fields, strict=True):
        data = text.encode() + b"\0"
        content += bytes([letter]) + len(data).to_bytes(2, "big") + data
    return content + b"e" + (4).to_bytes(4, "big") + b"\xff" * 4


def test_the_header_gives_name_part_and_user_id() -> None:
    header = read_header(bit_file(), "x.bit")
    assert (header.name, header.part, header.user_id) == ("overlay_wrapper", "7z020clg400", 0x0123ABCD)
    assert read_header(bit_file("overlay_wrapper"), "x.bit").user_id is None


def test_a_design_takes_only_its_own_bitstream() -> None:
    check_design(bit_file(), DESIGN, "x.bit")
    for content, came in ((bit_file("top;UserID=0XFFFFFFFF"), "0xffffffff"), (bit_file("top"), "none")):
        with pytest.raises(
            BadInput, match=f"x.bit: must be built for design_id {DESIGN} .* its UserID is {came}"
        ):
            check_design(content, DESIGN, "x.bit")


@pytest.mark.parametrize("size", [0, 5, 13, 15, 40, 60, 80])
def test_what_is_no_bit_file_is_refused_in_one_line(size: int) -> None:
    for content in (bit_file()[:size], b"\x7fELF" + bytes(100)):
        with pytest.raises(BadInput) as refused:
            read_header(content, "x.bit")
        assert "x.bit: must be a Xilinx .bit file" in str(refused.value)
        assert "\n" not in str(refused.value)
