"""The TLB: direct-mapped banks of translations, one bank per privilege, tagged with a context.

A bank answers one question: may code of this privilege access this linear page, and where in host memory is
it? Three tags per entry (read, write, fetch) hold linear page | context when the access is allowed, -1 when
not. A context (12 bits) stands for one (VPID, PCID, EPTP): see `context_of`.
"""

from vmx.state.struct import struct

ENTRIES = 1024  # per bank; a power of two
SUPERVISOR, SUPERVISOR_AC, USER, NONE = range(4)  # banks; AC: SMAP does not apply; NONE is never filled
BANKS = 4

TLB_ENTRY = struct(
    "TlbEntry",
    [
        ("read", "u8"),
        ("write", "u8"),  # also -1 while the page is clean, holds decoded code, or is watched
        ("fetch", "u8"),
        ("host_delta", "u8"),  # host address = linear address + host_delta
        ("physical", "u8"),  # of the 4 KiB page, after EPT
        ("guest_physical", "u8"),
        ("global_context", "u8"),  # context of global pages of this VPID and EPTP, 0: not global
        ("page_size", "u8"),  # bytes of the guest's page: INVLPG drops all of it
    ],
)
BANK_BYTES = ENTRIES * TLB_ENTRY.size
