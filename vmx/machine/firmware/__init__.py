"""Firmware tables: what a guest finds in low memory instead of a BIOS."""

from __future__ import annotations

from vmx.boot.image import Placement
from vmx.boot.layout import RSDP, check_memory
from vmx.machine.firmware import acpi, bios_data, mp_table

__all__ = ["RSDP", "firmware_placements"]


def firmware_placements(memory_bytes: int, cpus: int) -> list[Placement]:
    """BIOS data area, ACPI tables (RSDP at `RSDP`) and MP table, for a machine with `cpus` processors.

    Power off is what `vmx.devices.acpi_pm` says: SLP_EN with `SLP_TYP_S5`.
    """
    check_memory(memory_bytes)
    return [*bios_data.placements(), *acpi.placements(cpus), *mp_table.placements(cpus)]
