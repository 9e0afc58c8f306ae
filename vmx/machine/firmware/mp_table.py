"""The MP table (MultiProcessor Specification 1.4, "MP Configuration Table"), for kernels without ACPI."""

from __future__ import annotations

import struct

from vmx.boot.image import Placement
from vmx.machine.firmware.acpi import IO_APIC, LOCAL_APIC, check_cpus, checksum, io_apic_id

FLOATING_POINTER = 0xF_0000  # scanned on 16-byte boundaries from 0xF0000
CONFIGURATION_TABLE = FLOATING_POINTER + 0x10

PROCESSOR, BUS, IO_APIC_ENTRY, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)

ENABLED = 1 << 0
BOOT_PROCESSOR = 1 << 1
PROCESSOR_SIGNATURE = 0x600  # family 6
FEATURES = 0x201  # on-chip FPU and APIC

INT, NMI, SMI, EXTINT = range(4)
APIC_VERSION = 0x14
IO_APIC_VERSION = 0x11
ISA_BUS = 0
ALL_LOCAL_APICS = 0xFF


def floating_pointer() -> bytes:
    """Points to the configuration table; feature byte 2 is clear: no IMCR, virtual wire mode."""
    data = bytearray(struct.pack("<4sIBBB5s", b"_MP_", CONFIGURATION_TABLE, 1, 4, 0, bytes(5)))
    data[10] = checksum(data)
    return bytes(data)


def configuration_table(cpus: int) -> bytes:
    check_cpus(cpus)
    apic = io_apic_id(cpus)
    entries = []
    for cpu in range(cpus):
        flags = ENABLED | (BOOT_PROCESSOR if cpu == 0 else 0)
        entries.append(
            struct.pack("<BBBBIIII", PROCESSOR, cpu, APIC_VERSION, flags, PROCESSOR_SIGNATURE, FEATURES, 0, 0)
        )
    entries.append(struct.pack("<BB6s", BUS, ISA_BUS, b"ISA   "))
    entries.append(struct.pack("<BBBBI", IO_APIC_ENTRY, apic, IO_APIC_VERSION, ENABLED, IO_APIC))
    for irq in range(16):
        if irq == 2:  # the cascade of the 8259A pair; its pin belongs to IRQ 0
            continue
        pin = 2 if irq == 0 else irq
        entries.append(struct.pack("<BBHBBBB", IO_INTERRUPT, INT, 0, ISA_BUS, irq, apic, pin))
    entries.append(struct.pack("<BBHBBBB", LOCAL_INTERRUPT, EXTINT, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 0))
    entries.append(struct.pack("<BBHBBBB", LOCAL_INTERRUPT, NMI, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1))
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBx",
        b"PCMP",
        44 + len(body),
        4,  # specification 1.4
        0,
        b"VMX     ",
        b"VMXPC       ",
        0,
        0,
        len(entries),
        LOCAL_APIC,
        0,
        0,
    )
    data = bytearray(header + body)
    data[7] = checksum(data)
    return bytes(data)


def placements(cpus: int) -> list[Placement]:
    return [
        Placement(FLOATING_POINTER, floating_pointer(), "MP floating pointer"),
        Placement(CONFIGURATION_TABLE, configuration_table(cpus), "MP configuration table"),
    ]
