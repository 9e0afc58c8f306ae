"""Constant tables that compiled code indexes."""

import numpy as np

from vmx.state.processor import NO_REGISTER, RBP, RBX, RDI, RSI

# 16-bit addressing forms by ModRM.rm ("16-Bit Addressing Forms with the ModR/M Byte")
BASE16 = np.array([RBX, RBX, RBP, RBP, NO_REGISTER, NO_REGISTER, RBP, RBX], np.int64)
INDEX16 = np.array([RSI, RDI, RSI, RDI, RSI, RDI, NO_REGISTER, NO_REGISTER], np.int64)

# prefix bytes: 1 LOCK, 2 REPNE, 3 REP, 4 operand size, 5 address size, 8 + segment, 16 REX; 0 is no prefix
PREFIX_CLASS = np.zeros(256, np.int64)
for _byte, _class in {
    0xF0: 1,
    0xF2: 2,
    0xF3: 3,
    0x66: 4,
    0x67: 5,
    0x26: 8,
    0x2E: 9,
    0x36: 10,
    0x3E: 11,
    0x64: 12,
    0x65: 13,
}.items():
    PREFIX_CLASS[_byte] = _class
PREFIX_CLASS[0x40:0x50] = 16
