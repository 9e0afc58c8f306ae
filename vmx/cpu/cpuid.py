"""CPUID: the table of leaves, and the instruction.

Manual: CPUID in the instruction set reference. The table says what is implemented and nothing else. Caches,
topology and frequencies are those of the model: one package, `cpus` cores, a TSC that never stops.

The table at cpu.host_cpuid has rows of six u4: leaf, subleaf (ANY: the leaf has none), EAX, EBX, ECX, EDX.
Row 0 is a header: number of rows behind it, highest basic leaf, highest extended leaf.
"""

import numpy as np

from vmx.isa.features import FEATURES
from vmx.mmu.access import raw_load
from vmx.mmu.ept import PHYSICAL_ADDRESS_BITS
from vmx.state.bits import ule
from vmx.state.jit import compiled
from vmx.state.processor import CR4_OSXSAVE, PROCESSOR, RAX, RBX, RCX, RDX
from vmx.state.unit import unit

LINEAR_ADDRESS_BITS = 48
ANY = 0xFFFF_FFFF
ROW = 24  # bytes
EAX, EBX, ECX, EDX = 8, 12, 16, 20  # offsets in a row

VENDOR = b"GenuineIntel"
BRAND = "vmx x86-64 processor model"
FAMILY, MODEL, STEPPING = 6, 15, 11

_BASIC_ECX = {
    "sse3": 0, "pclmulqdq": 1, "vmx": 5, "ssse3": 9, "cx16": 13, "pcid": 17, "sse4_1": 19, "sse4_2": 20,
    "x2apic": 21, "movbe": 22, "popcnt": 23, "tsc_deadline": 24, "aes": 25, "xsave": 26, "osxsave": 27, "rdrand": 30,
    "hypervisor": 31,
}  # fmt: skip
_BASIC_EDX = {
    "fpu": 0, "de": 2, "pse": 3, "tsc": 4, "msr": 5, "pae": 6, "mce": 7, "cx8": 8, "apic": 9, "sep": 11,
    "mtrr": 12, "pge": 13, "cmov": 15, "pat": 16, "pse36": 17, "clfsh": 19, "mmx": 23, "fxsr": 24, "sse": 25,
    "sse2": 26, "htt": 28,
}  # fmt: skip
_SEVEN_EBX = {
    "fsgsbase": 0, "tsc_adjust": 1, "bmi1": 3, "smep": 7, "bmi2": 8, "erms": 9, "invpcid": 10, "rdseed": 18,
    "adx": 19, "smap": 20, "clflushopt": 23, "clwb": 24,
}  # fmt: skip
_SEVEN_ECX = {"rdpid": 22, "movdiri": 27}
_SEVEN_EDX = {"serialize": 14, "spec_ctrl": 26, "arch_capabilities": 29}
_EXTENDED_ECX = {"lahf": 0, "lzcnt": 5, "prefetchw": 8}
_EXTENDED_EDX = {"syscall": 11, "nx": 20, "pdpe1gb": 26, "rdtscp": 27, "lm": 29}

OSXSAVE_BIT, VMX_BIT = 1 << _BASIC_ECX["osxsave"], 1 << _BASIC_ECX["vmx"]
OPTIONAL = ("vmx", "hypervisor", "htt", "osxsave", *FEATURES)  # not reported unless something asks for them
XSAVE_AREA = 512 + 64  # legacy region and header: x87 and SSE are all there is


def _bits(names: dict[str, int], without: frozenset[str] | set[str]) -> int:
    return sum(1 << bit for name, bit in names.items() if name not in without)


def _registers(text: bytes) -> tuple[int, ...]:
    return tuple(int(word) for word in np.frombuffer(text, "<u4"))


def cpuid_table(
    cpus: int = 1,
    tsc_khz: int = 1_000_000,
    crystal_hz: int = 0,
    hypervisor: bool = False,
    vmx: bool = False,
    without: frozenset[str] | set[str] = frozenset(),
    brand: str = BRAND,
    features: frozenset[str] | set[str] = frozenset(),
) -> np.ndarray:
    """The table as an array of u4, shape (rows + 1, 6); keep it alive while cpu.host_cpuid points to it.

    `crystal_hz` is the frequency of the local APIC's timer (0: the TSC's own). `features` are those
    of vmx.isa.features that the processor offers. `without` removes features by
    their lower-case names, such as "x2apic". ValueError for a name that is not a feature.
    """
    registers = (_BASIC_ECX, _BASIC_EDX, _SEVEN_EBX, _SEVEN_ECX, _SEVEN_EDX, _EXTENDED_ECX, _EXTENDED_EDX)
    known = {name for register in registers for name in register}
    unknown = sorted(set(without) - known)
    if unknown:
        raise ValueError(f"CPUID: no feature {unknown[0]!r}; there are {', '.join(sorted(known))}")
    chosen = {"vmx": vmx, "hypervisor": hypervisor, "htt": cpus > 1, **dict.fromkeys(features, True)}
    absent = set(without) | {name for name in OPTIONAL if not chosen.get(name)}
    crystal_hz = crystal_hz or tsc_khz * 1000
    core_bits = (cpus - 1).bit_length()
    signature = FAMILY << 8 | MODEL << 4 | STEPPING
    name = brand.encode("ascii")[:47].ljust(48, b"\0")
    low, middle, high = (int.from_bytes(VENDOR[i : i + 4], "little") for i in (0, 8, 4))
    mhz = max(1, tsc_khz // 1000)
    rows = [
        (0, ANY, 0x16, low, middle, high),
        (
            1,
            ANY,
            signature,
            8 << 8 | (1 << core_bits) << 16,
            _bits(_BASIC_ECX, absent),
            _bits(_BASIC_EDX, absent),
        ),
        (2, ANY, 0x00FF_FF01, 0, 0, 0),  # caches: see leaf 4
        *_cache_rows(cpus),
        (6, ANY, 1 << 2, 0, 0, 0),  # the APIC timer runs always
        (7, 0, 0, *(_bits(names, absent) for names in (_SEVEN_EBX, _SEVEN_ECX, _SEVEN_EDX))),
        (0xB, 0, 0, 1, 1 << 8, 0),
        (0xB, 1, core_bits, cpus, 2 << 8 | 1, 0),
        (0xD, 0, 3, XSAVE_AREA, XSAVE_AREA, 0),
        (0xD, 1, 1, 0, 0, 0),  # XSAVEOPT
        (0x15, ANY, 1_000, tsc_khz * 1_000_000 // crystal_hz, crystal_hz, 0),
        (0x16, ANY, mhz, mhz, 100, 0),
        (0x8000_0000, ANY, 0x8000_0008, 0, 0, 0),
        (0x8000_0001, ANY, 0, 0, _bits(_EXTENDED_ECX, absent), _bits(_EXTENDED_EDX, absent)),
        *((0x8000_0002 + i, ANY, *_registers(name[16 * i : 16 * i + 16])) for i in range(3)),
        (0x8000_0006, ANY, 0, 0, 0x0100_8040, 0),  # L2: 256 KiB, 16 ways, 64-byte lines
        (0x8000_0007, ANY, 0, 0, 0, 1 << 8),  # invariant TSC
        (0x8000_0008, ANY, PHYSICAL_ADDRESS_BITS | LINEAR_ADDRESS_BITS << 8, 0, 0, 0),
    ]
    if "xsave" in absent:
        rows = [row for row in rows if row[0] != 0xD]
    return np.array([(len(rows), 0x16, 0x8000_0008, 0, 0, 0), *rows], np.uint32)


def _cache_rows(cpus: int) -> list[tuple[int, ...]]:
    """Leaf 4: L1 data and instruction 32 KiB, L2 256 KiB, private to each core; 64-byte lines."""
    cores = (1 << (cpus - 1).bit_length()) - 1
    rows = []
    for number, (kind, level, ways, sets) in enumerate([(1, 1, 8, 64), (2, 1, 8, 64), (3, 2, 8, 512)]):
        rows.append((4, number, kind | level << 5 | 1 << 8 | cores << 26, (ways - 1) << 22 | 63, sets - 1, 0))
    return rows


# --- the instruction ----------------------------------------------------------------------------------------


@compiled
def _row(cpu, leaf, subleaf):
    """The host address of a leaf's row, or 0."""
    count = raw_load(cpu.host_cpuid, 4)
    for i in range(1, count + 1):
        at = cpu.host_cpuid + i * ROW
        if raw_load(at, 4) == leaf:
            wanted = raw_load(at + 4, 4)
            if wanted == ANY or wanted == subleaf:
                return at
    return 0


@compiled
def reports_vmx(cpu):
    """1 when CPUID reports VMX."""
    if cpu.host_cpuid == 0:
        return 0
    row = _row(cpu, 1, 0)
    return 1 if row and raw_load(row + ECX, 4) & VMX_BIT else 0


@unit(PROCESSOR)
def cpuid(cpu):
    """Fill EAX, EBX, ECX and EDX for the leaf in EAX and the subleaf in ECX."""
    leaf = cpu.gpr[RAX] & 0xFFFF_FFFF
    subleaf = cpu.gpr[RCX] & 0xFFFF_FFFF
    a = 0
    b = 0
    c = 0
    d = 0
    if cpu.host_cpuid:
        basic = raw_load(cpu.host_cpuid + 4, 4)
        highest = raw_load(cpu.host_cpuid + 8, 4)
        if not ule(leaf, basic) and (not ule(0x8000_0000, leaf) or not ule(leaf, highest)):
            leaf = basic  # beyond the highest leaf: data of the highest basic one
        row = _row(cpu, leaf, subleaf)
        if row:
            a = raw_load(row + EAX, 4)
            b = raw_load(row + EBX, 4)
            c = raw_load(row + ECX, 4)
            d = raw_load(row + EDX, 4)
    if leaf == 1:
        b |= cpu.apic_id << 24
        if cpu.cr4 & CR4_OSXSAVE:
            c |= OSXSAVE_BIT
    elif leaf == 0xB:
        c |= subleaf & 0xFF
        d = cpu.apic_id
    cpu.gpr[RAX] = a
    cpu.gpr[RBX] = b & 0xFFFF_FFFF
    cpu.gpr[RCX] = c
    cpu.gpr[RDX] = d
    return 0
