"""One VM exit as a record: the dtype of every exit file that vmx writes.

`virtual_ns` is the guests' time; `handler_ns` is the host's, the only field that differs between two runs of
the same machine with the same inputs. The order leaves no padding: numpy does not copy what lies between fields,
and files are compared byte for byte.
"""

import numpy as np

EXIT_RECORD = np.dtype(
    [
        ("sequence", "u8"),  # 0 for the first exit of the run
        ("retired", "u8"),  # instructions that this virtual CPU had retired before the exit
        ("virtual_ns", "u8"),  # virtual time of the exit
        ("cpu", "u2"),  # virtual CPU
        ("reason", "u2"),  # basic exit reason
        ("instruction_length", "u4"),  # VM-exit instruction length, bytes
        ("qualification", "u8"),  # exit qualification
        ("guest_rip", "u8"),
        ("guest_physical", "u8"),  # guest-physical address
        ("guest_linear", "u8"),  # guest-linear address
        ("interruption_info", "u4"),  # VM-exit interruption information
        ("idt_vectoring", "u4"),  # IDT-vectoring information
        ("handler_ns", "u8"),  # host time that the handler took
    ],
    align=True,
)

HOST_TIME_FIELDS = ("handler_ns",)


def struct_format(dtype: np.dtype) -> str:
    """The `struct` format, with explicit padding, that packs one record of an aligned dtype."""
    codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
    if dtype.fields is None:
        raise TypeError(f"{dtype} has no fields")
    parts, end = ["<"], 0
    for field, offset, *_ in sorted(dtype.fields.values(), key=lambda entry: entry[1]):
        if offset > end:
            parts.append(f"{offset - end}x")
        parts.append(codes[field.itemsize])
        end = offset + field.itemsize
    if dtype.itemsize > end:
        parts.append(f"{dtype.itemsize - end}x")
    return "".join(parts)
