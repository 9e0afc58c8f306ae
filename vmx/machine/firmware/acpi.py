"""ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, MADT and DSDT (ACPI: "ACPI Software Programming Model").

The addresses of registers are those of the platform's ACPI power-management device, I/O APIC and local
APIC; the FADT says "always in ACPI mode" by having no SMI command port.
"""

from __future__ import annotations

import struct

from vmx.boot import layout
from vmx.boot.image import Placement
from vmx.devices import acpi_pm, rtc
from vmx.machine.firmware import aml

# The registers that the FADT describes, where the power-management device has them.
PM_BASE = acpi_pm.AcpiPm.WINDOWS[0][0]
PM1A_EVENT = PM_BASE + acpi_pm.PM1_STS
PM1A_CONTROL = PM_BASE + acpi_pm.PM1_CNT
PM_TIMER = PM_BASE + acpi_pm.PM_TMR
GPE0 = PM_BASE + acpi_pm.GPE0_STS
GPE0_LENGTH = 4  # two bytes of status, two of enable
SCI_IRQ = 9
RESET_PORT = 0xCF9

LOCAL_APIC = 0xFEE0_0000
IO_APIC = 0xFEC0_0000
MOST_CPUS = 254  # APIC ID 255 is the broadcast address

OEM_ID = b"VMX   "
OEM_TABLE_ID = b"VMXPC   "

# FADT, IA-PC boot architecture flags.
LEGACY_DEVICES = 1 << 0
KEYBOARD_8042 = 1 << 1

# FADT, fixed feature flags.
WBINVD = 1 << 0
PROC_C1 = 1 << 2
SLP_BUTTON = 1 << 5  # set: no sleep button among the fixed features; the power button is one
FIX_RTC = 1 << 6  # set: RTC wake-up is not reported in PM1_STS
TMR_VAL_EXT = 1 << 8  # the PM timer has 32 bits
RESET_REG_SUP = 1 << 10

SYSTEM_IO = 1
ACTIVE_HIGH_LEVEL = 0x000D  # MPS INTI flags


def checksum(data: bytes) -> int:
    """The byte that makes the sum of `data` and itself zero."""
    return -sum(data) & 0xFF


def check_cpus(cpus: int) -> None:
    if not 1 <= cpus <= MOST_CPUS:
        raise ValueError(f"firmware tables for {cpus} processors: 1 to {MOST_CPUS} can be described")


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the common header, the body, and the checksum over both."""
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        36 + len(body),
        revision,
        0,
        OEM_ID,
        OEM_TABLE_ID,
        1,
        b"VMX ",
        1,
    )
    data = bytearray(header + body)
    data[9] = checksum(data)
    return bytes(data)


def rsdp(rsdt_address: int, xsdt_address: int) -> bytes:
    data = bytearray(
        struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, rsdt_address, 36, xsdt_address, 0)
    )
    data[8] = checksum(data[:20])
    data[32] = checksum(data)
    return bytes(data)


def rsdt(addresses: list[int]) -> bytes:
    return table(b"RSDT", 1, struct.pack(f"<{len(addresses)}I", *addresses))


def xsdt(addresses: list[int]) -> bytes:
    return table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def facs() -> bytes:
    """Waking vectors and global lock; it has neither the common header nor a checksum."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 1)


def _generic_address(port: int, length: int) -> bytes:
    """A generic address structure for a port register of `length` bytes; all zero where there is none."""
    if port == 0:
        return bytes(12)
    access_size = {1: 1, 2: 2, 4: 3}[length]
    return struct.pack("<BBBBQ", SYSTEM_IO, 8 * length, 0, access_size, port)


def fadt(facs_address: int, dsdt_address: int) -> bytes:
    body = struct.pack(
        "<IIBBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBBHBI",
        facs_address,
        dsdt_address,
        0,  # reserved
        0,  # preferred power management profile: unspecified
        SCI_IRQ,
        0,  # SMI_CMD: the system is in ACPI mode from the start
        0,  # ACPI_ENABLE
        0,  # ACPI_DISABLE
        0,  # S4BIOS_REQ
        0,  # PSTATE_CNT
        PM1A_EVENT,
        0,  # PM1b_EVT_BLK
        PM1A_CONTROL,
        0,  # PM1b_CNT_BLK
        0,  # PM2_CNT_BLK
        PM_TIMER,
        GPE0,
        0,  # GPE1_BLK
        4,  # PM1_EVT_LEN
        2,  # PM1_CNT_LEN
        0,  # PM2_CNT_LEN
        4,  # PM_TMR_LEN
        GPE0_LENGTH,
        0,  # GPE1_BLK_LEN
        0,  # GPE1_BASE
        0,  # CST_CNT
        0xFFF,  # P_LVL2_LAT: above 100 means no C2
        0xFFF,  # P_LVL3_LAT: above 1000 means no C3
        0,  # FLUSH_SIZE, for processors without WBINVD
        0,  # FLUSH_STRIDE
        0,  # DUTY_OFFSET
        0,  # DUTY_WIDTH
        0,  # DAY_ALRM
        0,  # MON_ALRM
        rtc.CENTURY,
        LEGACY_DEVICES | KEYBOARD_8042,
        0,  # reserved
        WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | TMR_VAL_EXT | RESET_REG_SUP,
    )
    body += _generic_address(RESET_PORT, 1)
    # X_FIRMWARE_CTRL stays 0, since the FACS is below 4 GiB.
    body += struct.pack("<B3xQQ", acpi_pm.RESET_VALUE, 0, dsdt_address)
    body += _generic_address(PM1A_EVENT, 4)
    body += _generic_address(0, 0)  # X_PM1b_EVT_BLK
    body += _generic_address(PM1A_CONTROL, 2)
    body += _generic_address(0, 0)  # X_PM1b_CNT_BLK
    body += _generic_address(0, 0)  # X_PM2_CNT_BLK
    body += _generic_address(PM_TIMER, 4)
    body += _generic_address(GPE0, GPE0_LENGTH)
    body += _generic_address(0, 0)  # X_GPE1_BLK
    return table(b"FACP", 3, body)


def madt(cpus: int) -> bytes:
    check_cpus(cpus)
    pcat_compat = 1  # there is an 8259A pair as well
    body = struct.pack("<II", LOCAL_APIC, pcat_compat)
    for cpu in range(cpus):
        body += struct.pack("<BBBBI", 0, 8, cpu, cpu, 1)  # processor local APIC, enabled
    body += struct.pack("<BBBBII", 1, 12, io_apic_id(cpus), 0, IO_APIC, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)  # IRQ 0, the PIT, is pin 2 of the I/O APIC
    body += struct.pack("<BBBBIH", 2, 10, 0, SCI_IRQ, SCI_IRQ, ACTIVE_HIGH_LEVEL)
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI on LINT1 of every local APIC
    return table(b"APIC", 3, body)


def io_apic_id(cpus: int) -> int:
    """The I/O APIC's ID: the first that no local APIC has, within its four bits."""
    return cpus if cpus < 16 else 0


def dsdt() -> bytes:
    r"""\_S5 for power off, and the ISA devices that a guest cannot find by itself."""
    sleep_type = aml.integer(acpi_pm.SLP_TYP_S5)
    body = aml.name("\\_S5", aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0)))
    body += aml.scope(
        "\\_SB",
        _isa_device("RTC", "PNP0B00", aml.io(0x70, 2), aml.irq(8)),
        _isa_device("KBD", "PNP0303", aml.io(0x60, 1), aml.io(0x64, 1), aml.irq(1)),
        _isa_device("COM1", "PNP0501", aml.io(0x3F8, 8), aml.irq(4)),
    )
    return table(b"DSDT", 2, body)


def _isa_device(segment: str, identifier: str, *resources: bytes) -> bytes:
    return aml.device(
        segment,
        aml.name("_HID", aml.eisa_id(identifier)),
        aml.name("_UID", aml.integer(1)),
        aml.name("_CRS", aml.resources(*resources)),
    )


def placements(cpus: int) -> list[Placement]:
    """All tables, from the RSDP's fixed address on; each starts on a 64-byte boundary as the FACS must."""
    address = layout.RSDP + 0x40
    placed: list[Placement] = []

    def place(data: bytes, what: str) -> int:
        nonlocal address
        here = address
        placed.append(Placement(here, data, f"ACPI {what}"))
        address = (here + len(data) + 0x3F) & ~0x3F
        return here

    facs_address = place(facs(), "FACS")
    dsdt_address = place(dsdt(), "DSDT")
    tables = [place(fadt(facs_address, dsdt_address), "FADT"), place(madt(cpus), "MADT")]
    root = rsdp(place(rsdt(tables), "RSDT"), place(xsdt(tables), "XSDT"))
    return [Placement(layout.RSDP, root, "ACPI RSDP"), *placed]
