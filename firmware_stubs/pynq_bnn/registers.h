/* Made from registers.toml by tools/make_registers.py: change that file, then run this. */
#ifndef EDGEKIT_PYNQ_BNN_REGISTERS_H
#define EDGEKIT_PYNQ_BNN_REGISTERS_H

#include <stdint.h>

#define EK_OVERLAY_MAGIC UINT32_C(0x454b424e) /* what register MAGIC holds */
#define EK_OVERLAY_VERSION UINT32_C(0x10000) /* of the register map: major << 16 | minor */
#define EK_OVERLAY_REG_MAGIC UINT32_C(0x0) /* ro: 0x454B424E: an overlay of edgekit */
#define EK_OVERLAY_REG_VERSION UINT32_C(0x4) /* ro: of this map: major << 16 | minor */
#define EK_OVERLAY_REG_DESIGN_ID_0 UINT32_C(0x8) /* ro: hexadecimal digits 0 to 7 of the design's identity */
#define EK_OVERLAY_REG_DESIGN_ID_1 UINT32_C(0xc) /* ro: digits 8 to 15 */
#define EK_OVERLAY_REG_DESIGN_ID_2 UINT32_C(0x10) /* ro: digits 16 to 23 */
#define EK_OVERLAY_REG_DESIGN_ID_3 UINT32_C(0x14) /* ro: digits 24 to 31 */
#define EK_OVERLAY_REG_UNITS UINT32_C(0x18) /* ro: units of the data path */
#define EK_OVERLAY_REG_INPUT_BEATS UINT32_C(0x1c) /* ro: 64-bit beats of one image */
#define EK_OVERLAY_REG_OUTPUT_BEATS UINT32_C(0x20) /* ro: 64-bit beats of one image's sums */
#define EK_OVERLAY_REG_CONTROL UINT32_C(0x24) /* rw: START: images are taken. RESET: empties the data path and clears STATUS, ERROR and the counters, keeps weights and thresholds; reads as 0. CLEAR: the counters become 0; reads as 0 */
#define EK_OVERLAY_CONTROL_START UINT32_C(0x1)
#define EK_OVERLAY_CONTROL_RESET UINT32_C(0x2)
#define EK_OVERLAY_CONTROL_CLEAR UINT32_C(0x4)
#define EK_OVERLAY_REG_STATUS UINT32_C(0x28) /* ro: IDLE: no image inside. BUSY: at least one. FAILED: some bit of ERROR is set */
#define EK_OVERLAY_STATUS_IDLE UINT32_C(0x1)
#define EK_OVERLAY_STATUS_BUSY UINT32_C(0x2)
#define EK_OVERLAY_STATUS_FAILED UINT32_C(0x4)
#define EK_OVERLAY_REG_ERROR UINT32_C(0x2c) /* w1c: FRAME: the input's tlast came inside an image. LOAD_WHILE_BUSY: weights or thresholds were written while an image was inside */
#define EK_OVERLAY_ERROR_FRAME UINT32_C(0x1)
#define EK_OVERLAY_ERROR_LOAD_WHILE_BUSY UINT32_C(0x2)
#define EK_OVERLAY_REG_IRQ_ENABLE UINT32_C(0x30) /* rw: which bits of IRQ_STATUS raise the interrupt line */
#define EK_OVERLAY_IRQ_ENABLE_IMAGE UINT32_C(0x1)
#define EK_OVERLAY_IRQ_ENABLE_IDLE UINT32_C(0x2)
#define EK_OVERLAY_IRQ_ENABLE_ERROR UINT32_C(0x4)
#define EK_OVERLAY_REG_IRQ_STATUS UINT32_C(0x34) /* w1c: IMAGE: an image's last sum was taken. IDLE: no image is inside any more. ERROR: a bit of ERROR was set */
#define EK_OVERLAY_IRQ_STATUS_IMAGE UINT32_C(0x1)
#define EK_OVERLAY_IRQ_STATUS_IDLE UINT32_C(0x2)
#define EK_OVERLAY_IRQ_STATUS_ERROR UINT32_C(0x4)
#define EK_OVERLAY_REG_TAKEN UINT32_C(0x54) /* ro: images whose last beat came in, since the last RESET or CLEAR */
#define EK_OVERLAY_REG_IMAGES UINT32_C(0x38) /* ro: images whose last sum was taken, since the last RESET or CLEAR */
#define EK_OVERLAY_REG_CYCLES_LOW UINT32_C(0x3c) /* ro: clock cycles in which an image was inside; reading it keeps the upper half for CYCLES_HIGH */
#define EK_OVERLAY_REG_CYCLES_HIGH UINT32_C(0x40) /* ro: the upper half as it was when CYCLES_LOW was read */
#define EK_OVERLAY_REG_INTERVAL UINT32_C(0x44) /* ro: clock cycles between the last sums of the last two images */
#define EK_OVERLAY_REG_BATCH UINT32_C(0x48) /* rw: images in one transfer: tlast ends the sums of every BATCH-th image; written while idle, 0 counts as 1 */
#define EK_OVERLAY_REG_LOAD_SELECT UINT32_C(0x4c) /* rw: what the window writes: a lane of a memory of a unit */
#define EK_OVERLAY_LOAD_SELECT_UNIT UINT32_C(0xff)
#define EK_OVERLAY_LOAD_SELECT_UNIT_SHIFT UINT32_C(0x0)
#define EK_OVERLAY_LOAD_SELECT_MEMORY UINT32_C(0x300)
#define EK_OVERLAY_LOAD_SELECT_MEMORY_SHIFT UINT32_C(0x8)
#define EK_OVERLAY_LOAD_SELECT_LANE UINT32_C(0xfff0000)
#define EK_OVERLAY_LOAD_SELECT_LANE_SHIFT UINT32_C(0x10)
#define EK_OVERLAY_REG_LOAD_BASE UINT32_C(0x50) /* rw: the entry that the window's first word writes; 20 bits */
#define EK_OVERLAY_LOAD_WINDOW UINT32_C(0x1000) /* word i writes entry LOAD_BASE + i of the selected lane; reads as 0 */
#define EK_OVERLAY_LOAD_WINDOW_WORDS UINT32_C(0x400)
#define EK_OVERLAY_MEMORY_WEIGHTS UINT32_C(0x0) /* LOAD_SELECT.MEMORY: an mvu's weights */
#define EK_OVERLAY_MEMORY_THRESHOLDS UINT32_C(0x1) /* LOAD_SELECT.MEMORY: an mvu's or binarize's thresholds */
#define EK_OVERLAY_MEMORY_MASK UINT32_C(0x2) /* LOAD_SELECT.MEMORY: a pool's channels that take the smallest */

#endif
