"""Many byte strings through the compiled decoder in one call."""

import numpy as np

from vmx.cpu.decode import DECODED_OK, INVALID, NEED_MORE, TOO_LONG, decode
from vmx.state.memory import host_address, store64
from vmx.state.processor import DECODED
from vmx.state.unit import unit

SLOT = 16  # bytes per string: 15 that may be an instruction, one that is never read
__all__ = ["DECODED_OK", "INVALID", "NEED_MORE", "SLOT", "TOO_LONG", "decode_all", "decode_many"]

DECODED_BYTES = DECODED.size


@unit("i64", "i64", "i64", "i64", "i64", "i64")
def decode_many(out, statuses, code, count, mode, features):
    """Decode `count` slots of bytes at `code` into DECODED records at `out` and int64 statuses."""
    for i in range(count):
        d = DECODED.at(out + i * DECODED_BYTES)
        store64(statuses + 8 * i, decode(d, code + SLOT * i, 15, mode, features))
    return 0


def decode_all(code: np.ndarray, mode: int, features: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Decode byte strings (uint8, shape (n, SLOT)); mode 0, 1, 2 is 16-, 32-, 64-bit code.
    `features` is the mask of what is there beyond x86-64-v1.

    Returns the records (dtype DECODED, shape (n,)) and the statuses (int64, shape (n,)).
    """
    code = np.ascontiguousarray(code, np.uint8)
    records, statuses = np.zeros(len(code), DECODED.dtype), np.zeros(len(code), np.int64)
    decode_many(host_address(records), host_address(statuses), host_address(code), len(code), mode, features)
    return records, statuses


def slots(strings) -> np.ndarray:
    """Byte strings as slots, padded with zeros (uint8, shape (n, SLOT))."""
    return np.frombuffer(b"".join(s[:SLOT].ljust(SLOT, b"\0") for s in strings), np.uint8).reshape(-1, SLOT)
