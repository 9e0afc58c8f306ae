"""VGA registers (IBM VGA technical reference, "Registers") as plain state: they read back, nothing is drawn.

`screen_text` shows what a text-mode screen would.
"""

from __future__ import annotations

from .device import Device

# Offsets from port 0x3B0
ATTRIBUTE, ATTRIBUTE_READ, MISC_WRITE, SEQUENCER, SEQUENCER_DATA = 0x10, 0x11, 0x12, 0x14, 0x15
PEL_MASK, PEL_READ_INDEX, PEL_WRITE_INDEX, PEL_DATA = 0x16, 0x17, 0x18, 0x19
FEATURE_READ, MISC_READ, GRAPHICS, GRAPHICS_DATA = 0x1A, 0x1C, 0x1E, 0x1F
CRTC, CRTC_DATA, STATUS1 = 0x04, 0x05, 0x0A  # plus 0x20 while MISC selects the colour addresses

CRTC_END_DISPLAY, CRTC_MAX_SCAN_LINE, CRTC_START_HIGH, CRTC_START_LOW = 0x01, 0x09, 0x0C, 0x0D
CRTC_CURSOR_HIGH, CRTC_CURSOR_LOW, CRTC_PROTECT_REGISTER, CRTC_PROTECT = 0x0E, 0x0F, 0x11, 0x80
STATUS_DISPLAY_DISABLED, STATUS_VERTICAL_RETRACE = 0x01, 0x08
MISC_COLOUR = 0x01

# 720 x 400 at 70 Hz: 449 lines of 31.78 us, 400 of them shown; each shows picture for 25.4 us
LINE_NS, SHOWN_NS, LINES, SHOWN_LINES, RETRACE_LINES = 31_778, 25_422, 449, 400, range(412, 414)

# Mode 3: 80 x 25 text
MODE_3_CRTC = bytes.fromhex("5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff")
TEXT_ADDRESS = 0xB8000


class Vga(Device):
    """Ports 0x3B0 to 0x3DF."""

    access_sizes = (1,)
    WINDOWS = ((0x3B4, 2, 0x04), (0x3BA, 1, 0x0A), (0x3C0, 0x10, 0x10), (0x3D4, 2, 0x24), (0x3DA, 1, 0x2A))
    FIELDS = (
        "crtc crtc_index attribute attribute_index attribute_data_next sequencer sequencer_index graphics "
        "graphics_index misc palette palette_at palette_reading pel_mask"
    ).split()

    def __init__(self, clock):
        self.clock = clock
        self.reset()

    def reset(self) -> None:
        self.crtc = bytearray(MODE_3_CRTC) + bytearray(32 - len(MODE_3_CRTC))
        self.attribute = bytearray(32)
        self.sequencer = bytearray(8)
        self.graphics = bytearray(16)
        self.palette = bytearray(768)
        self.crtc_index = self.attribute_index = self.sequencer_index = self.graphics_index = 0
        self.attribute_data_next = False
        self.misc = 0x67
        self.palette_at = 0  # byte index into `palette`
        self.palette_reading = False
        self.pel_mask = 0xFF

    def _status(self) -> int:
        self.attribute_data_next = False
        line, in_line = divmod(self.clock.now % (LINES * LINE_NS), LINE_NS)
        status = 0
        if line >= SHOWN_LINES or in_line >= SHOWN_NS:
            status |= STATUS_DISPLAY_DISABLED
        if line in RETRACE_LINES:
            status |= STATUS_VERTICAL_RETRACE
        return status

    def _at_crtc(self, offset: int) -> int | None:
        """CRTC, CRTC_DATA or STATUS1 when `offset` is the selected one of their two places."""
        if ATTRIBUTE <= offset < 0x20:
            return None
        colour = bool(offset & 0x20)
        return offset & 0x1F if colour == bool(self.misc & MISC_COLOUR) else None

    def read(self, offset: int, size: int) -> int:
        here = self._at_crtc(offset)
        if here == STATUS1:
            return self._status()
        if here == CRTC:
            return self.crtc_index
        if here == CRTC_DATA:
            return self.crtc[self.crtc_index]
        if offset == ATTRIBUTE:
            return self.attribute_index
        if offset == ATTRIBUTE_READ:
            return self.attribute[self.attribute_index & 0x1F]
        if offset == MISC_WRITE:
            return 0  # input status 0
        if offset == SEQUENCER:
            return self.sequencer_index
        if offset == SEQUENCER_DATA:
            return self.sequencer[self.sequencer_index]
        if offset == PEL_MASK:
            return self.pel_mask
        if offset == PEL_READ_INDEX:
            return 3 if self.palette_reading else 0
        if offset == PEL_WRITE_INDEX:
            return self.palette_at // 3
        if offset == PEL_DATA:
            return self.palette[self._step_palette()]
        if offset == MISC_READ:
            return self.misc
        if offset == FEATURE_READ:
            return 0
        if offset == GRAPHICS:
            return self.graphics_index
        if offset == GRAPHICS_DATA:
            return self.graphics[self.graphics_index]
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        here = self._at_crtc(offset)
        if here == CRTC:
            self.crtc_index = value & 0x1F
        elif here == CRTC_DATA:
            self._write_crtc(value)
        elif offset == ATTRIBUTE:
            if self.attribute_data_next:
                self.attribute[self.attribute_index & 0x1F] = value
            else:
                self.attribute_index = value & 0x3F
            self.attribute_data_next = not self.attribute_data_next
        elif offset == MISC_WRITE:
            self.misc = value
        elif offset == SEQUENCER:
            self.sequencer_index = value & 7
        elif offset == SEQUENCER_DATA:
            self.sequencer[self.sequencer_index] = value
        elif offset == PEL_MASK:
            self.pel_mask = value
        elif offset == PEL_READ_INDEX or offset == PEL_WRITE_INDEX:
            self.palette_at = 3 * value
            self.palette_reading = offset == PEL_READ_INDEX
        elif offset == PEL_DATA:
            self.palette[self._step_palette()] = value & 0x3F
        elif offset == GRAPHICS:
            self.graphics_index = value & 0x0F
        elif offset == GRAPHICS_DATA:
            self.graphics[self.graphics_index] = value

    def _write_crtc(self, value: int) -> None:
        index = self.crtc_index
        if index < 8 and self.crtc[CRTC_PROTECT_REGISTER] & CRTC_PROTECT:
            if index == 7:  # of the protected registers, only the line-compare bit stays writable
                self.crtc[7] = self.crtc[7] & ~0x10 | value & 0x10
            return
        self.crtc[index] = value

    def _step_palette(self) -> int:
        at = self.palette_at
        self.palette_at = (at + 1) % 768
        return at

    @property
    def cursor(self) -> tuple[int, int]:
        """(row, column) on the screen."""
        crtc = self.crtc
        at = (crtc[CRTC_CURSOR_HIGH] << 8 | crtc[CRTC_CURSOR_LOW]) - self._start()
        return divmod(at, self._columns())

    def _columns(self) -> int:
        return self.crtc[CRTC_END_DISPLAY] + 1

    def _start(self) -> int:
        return self.crtc[CRTC_START_HIGH] << 8 | self.crtc[CRTC_START_LOW]

    def screen_text(self, memory: bytes, rows: int = 25) -> str:
        """The text on the screen; `memory` is the buffer from 0xB8000 on (character, attribute pairs)."""
        columns = self._columns()
        cells = len(memory) // 2
        lines = []
        for row in range(rows):
            first = self._start() + row * columns
            line = bytes(memory[2 * ((first + i) % cells)] if cells else 0 for i in range(columns))
            # Control codes have glyphs on the screen; a blank is what a log wants.
            text = line.decode("cp437").translate({code: " " for code in range(32)})
            lines.append(text.rstrip())
        return "\n".join(lines)
