"""The overlay's register map as constants.

Made from registers.toml by tools/make_registers.py: change that file, then run this.
"""

from __future__ import annotations

# what register MAGIC holds
MAGIC = 0x454B424E
# of the register map: major << 16 | minor
VERSION = 0x10000
# ro: 0x454B424E: an overlay of edgekit
REG_MAGIC = 0x0
# ro: of this map: major << 16 | minor
REG_VERSION = 0x4
# ro: hexadecimal digits 0 to 7 of the design's identity
REG_DESIGN_ID_0 = 0x8
# ro: digits 8 to 15
REG_DESIGN_ID_1 = 0xC
# ro: digits 16 to 23
REG_DESIGN_ID_2 = 0x10
# ro: digits 24 to 31
REG_DESIGN_ID_3 = 0x14
# ro: units of the data path
REG_UNITS = 0x18
# ro: 64-bit beats of one image
REG_INPUT_BEATS = 0x1C
# ro: 64-bit beats of one image's sums
REG_OUTPUT_BEATS = 0x20
# rw: START: images are taken. RESET: empties the data path and clears STATUS, ERROR and the
# counters, keeps weights and thresholds; reads as 0. CLEAR: the counters become 0; reads as 0
REG_CONTROL = 0x24
CONTROL_START = 0x1
CONTROL_RESET = 0x2
CONTROL_CLEAR = 0x4
# ro: IDLE: no image inside. BUSY: at least one. FAILED: some bit of ERROR is set
REG_STATUS = 0x28
STATUS_IDLE = 0x1
STATUS_BUSY = 0x2
STATUS_FAILED = 0x4
# w1c: FRAME: the input's tlast came inside an image. LOAD_WHILE_BUSY: weights or thresholds were
# written while an image was inside
REG_ERROR = 0x2C
ERROR_FRAME = 0x1
ERROR_LOAD_WHILE_BUSY = 0x2
# rw: which bits of IRQ_STATUS raise the interrupt line
REG_IRQ_ENABLE = 0x30
IRQ_ENABLE_IMAGE = 0x1
IRQ_ENABLE_IDLE = 0x2
IRQ_ENABLE_ERROR = 0x4
# w1c: IMAGE: an image's last sum was taken. IDLE: no image is inside any more. ERROR: a bit of
# ERROR was set
REG_IRQ_STATUS = 0x34
IRQ_STATUS_IMAGE = 0x1
IRQ_STATUS_IDLE = 0x2
IRQ_STATUS_ERROR = 0x4
# ro: images whose last beat came in, since the last RESET or CLEAR
REG_TAKEN = 0x54
# ro: images whose last sum was taken, since the last RESET or CLEAR
REG_IMAGES = 0x38
# ro: clock cycles in which an image was inside; reading it keeps the upper half for CYCLES_HIGH
REG_CYCLES_LOW = 0x3C
# ro: the upper half as it was when CYCLES_LOW was read
REG_CYCLES_HIGH = 0x40
# ro: clock cycles between the last sums of the last two images
REG_INTERVAL = 0x44
# rw: images in one transfer: tlast ends the sums of every BATCH-th image; written while idle, 0
# counts as 1
REG_BATCH = 0x48
# rw: what the window writes: a lane of a memory of a unit
REG_LOAD_SELECT = 0x4C
LOAD_SELECT_UNIT = 0xFF
LOAD_SELECT_UNIT_SHIFT = 0x0
LOAD_SELECT_MEMORY = 0x300
LOAD_SELECT_MEMORY_SHIFT = 0x8
LOAD_SELECT_LANE = 0xFFF0000
LOAD_SELECT_LANE_SHIFT = 0x10
# rw: the entry that the window's first word writes; 20 bits
REG_LOAD_BASE = 0x50
# word i writes entry LOAD_BASE + i of the selected lane; reads as 0
LOAD_WINDOW = 0x1000
LOAD_WINDOW_WORDS = 0x400
# LOAD_SELECT.MEMORY: an mvu's weights
MEMORY_WEIGHTS = 0x0
# LOAD_SELECT.MEMORY: an mvu's or binarize's thresholds
MEMORY_THRESHOLDS = 0x1
# LOAD_SELECT.MEMORY: a pool's channels that take the smallest
MEMORY_MASK = 0x2
