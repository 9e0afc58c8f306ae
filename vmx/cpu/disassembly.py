"""What instruction some bytes are, in the words of the instruction table."""

import numpy as np

from vmx.cpu.decode import DECODED_OK, decode
from vmx.isa.features import ALL_FEATURES
from vmx.isa.table import TABLE
from vmx.state.memory import host_address
from vmx.state.processor import DECODED, new_record

MODE_BITS = (16, 32, 64)


def describe(code: bytes, mode: int, ip: int = 0) -> str:
    """The first instruction of `code` as text: its bytes, and assembly (iced-x86's where installed, else the table's).

    `mode` is cpu.code_mode: 0, 1, 2 for 16-, 32- and 64-bit code; `ip` is where the instruction is.
    """
    if not code:
        return "not readable"
    buffer = np.zeros(32, np.uint8)
    buffer[: len(code)] = np.frombuffer(code, np.uint8)
    record = new_record(DECODED)
    status = decode(host_address(record), host_address(buffer), len(code), mode, ALL_FEATURES)
    if status != DECODED_OK:
        return f"{code[:8].hex(' ')} (no instruction)"
    d = record[0]
    text = code[: int(d["length"])].hex(" ")
    return f"{text} ({_iced(code, mode, ip) or TABLE.rows[int(d['row'])].name.lower()})"


def _iced(code: bytes, mode: int, ip: int) -> str | None:
    try:
        from iced_x86 import Decoder, Formatter, FormatterSyntax
    except ImportError:
        return None
    return Formatter(FormatterSyntax.INTEL).format(Decoder(MODE_BITS[mode], code, ip=ip).decode())
