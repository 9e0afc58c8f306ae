"""ACPI and MP tables: structure, checksums, and that they lead from one to the next."""

import shutil
import struct
import subprocess

import pytest

from vmx.boot import layout
from vmx.devices import acpi_pm
from vmx.machine.firmware import acpi, aml, e820, firmware_placements, mp_table


class Memory:
    def __init__(self, placements):
        self.placements = placements

    def read(self, address, size):
        for p in self.placements:
            if p.address <= address and address + size <= p.end:
                return p.data[address - p.address : address - p.address + size]
        raise AssertionError(f"nothing at {address:#x}")

    def number(self, address, size):
        return int.from_bytes(self.read(address, size), "little")

    def table(self, address):
        data = self.read(address, self.number(address + 4, 4))
        assert sum(data) & 0xFF == 0
        return data


@pytest.fixture(params=[1, 2, 16, 254])
def cpus(request):
    return request.param


@pytest.fixture
def memory(cpus):
    return Memory(firmware_placements(256 * layout.MIB, cpus))


def test_tables_do_not_overlap_and_are_not_in_free_ram(memory):
    placed = sorted(memory.placements, key=lambda p: p.address)
    for first, second in zip(placed, placed[1:], strict=False):
        assert first.end <= second.address
    for p in placed[1:]:
        assert not layout.is_ram(p.address, p.end, 256 * layout.MIB) and p.end <= layout.HIGH_MEMORY


def test_rsdp_leads_to_all_tables(memory, cpus):
    rsdp = memory.read(layout.RSDP, 36)
    assert rsdp[:8] == b"RSD PTR " and sum(rsdp[:20]) & 0xFF == 0 and sum(rsdp) & 0xFF == 0
    rsdt, xsdt = (
        memory.table(memory.number(layout.RSDP + 16, 4)),
        memory.table(memory.number(layout.RSDP + 24, 8)),
    )
    addresses = list(struct.unpack(f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:]))
    assert addresses == list(struct.unpack(f"<{(len(rsdt) - 36) // 4}I", rsdt[36:]))
    tables = {memory.read(a, 4): memory.table(a) for a in addresses}
    assert set(tables) == {b"FACP", b"APIC"}
    facs, dsdt = struct.unpack_from("<II", tables[b"FACP"], 36)
    assert memory.read(facs, 4) == b"FACS" and facs % 64 == 0 and memory.number(facs + 4, 4) == 64
    assert memory.table(dsdt)[:4] == b"DSDT"
    assert struct.unpack_from("<Q", tables[b"FACP"], 140)[0] == dsdt


def test_fadt_fields():
    data = acpi.fadt(0x1000, 0x2000)
    assert len(data) == 244
    assert struct.unpack_from("<H", data, 46)[0] == 9  # SCI_INT
    assert struct.unpack_from("<I", data, 48)[0] == 0  # SMI_CMD
    assert struct.unpack_from("<IIII", data, 56)[0::2] == (0x600, 0x604)  # PM1a_EVT_BLK, PM1a_CNT_BLK
    assert struct.unpack_from("<II", data, 76) == (0x608, 0x610)  # PM_TMR_BLK, GPE0_BLK
    assert data[88:94] == bytes([4, 2, 0, 4, 4, 0])  # lengths
    assert data[108] == 0x32 and struct.unpack_from("<H", data, 109)[0] == 3
    assert struct.unpack_from("<I", data, 112)[0] & (1 << 10 | 1 << 20) == 1 << 10  # reset yes, reduced no
    assert struct.unpack_from("<BBBBQB", data, 116) == (1, 8, 0, 1, 0xCF9, 6)
    assert struct.unpack_from("<BBBBQ", data, 208) == (1, 32, 0, 3, 0x608)  # X_PM_TMR_BLK


def test_madt_entries(cpus):
    data = acpi.madt(cpus)
    offset, seen = 44, []
    while offset < len(data):
        seen.append(data[offset : offset + data[offset + 1]])
        offset += data[offset + 1]
    local = [e for e in seen if e[0] == 0]
    assert [e[3] for e in local] == list(range(cpus)) and all(e[4] == 1 for e in local)
    (io_apic,) = [e for e in seen if e[0] == 1]
    assert struct.unpack_from("<II", io_apic, 4) == (0xFEC0_0000, 0)
    overrides = {e[3]: struct.unpack_from("<IH", e, 4) for e in seen if e[0] == 2}
    assert overrides == {0: (2, 0), 9: (9, 0xD)}


def test_mp_table(memory, cpus):
    pointer = memory.read(mp_table.FLOATING_POINTER, 16)
    assert pointer[:4] == b"_MP_" and sum(pointer) & 0xFF == 0
    table = memory.number(mp_table.FLOATING_POINTER + 4, 4)
    data = memory.read(table, memory.number(table + 4, 2))
    assert data[:4] == b"PCMP" and sum(data) & 0xFF == 0
    offset, kinds = 44, []
    while offset < len(data):
        kinds.append(data[offset])
        offset += 20 if data[offset] == 0 else 8
    assert offset == len(data) and len(kinds) == struct.unpack_from("<H", data, 34)[0]
    assert [kinds.count(kind) for kind in range(5)] == [cpus, 1, 1, 15, 2]


def test_too_many_processors():
    for cpus in (0, 255):
        with pytest.raises(ValueError, match="1 to 254"):
            acpi.madt(cpus)


def test_aml_encodings():
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c41d00a03")
    assert aml.name("\\_S5", aml.package(aml.integer(5))) == bytes.fromhex("085c5f53355f 1204 01 0a05")
    assert [aml.integer(n).hex() for n in (0, 1, 2, 0x100, 0x10000)] == [
        "00",
        "01",
        "0a02",
        "0b0001",
        "0c00000100",
    ]
    for size in (10, 62, 63, 4000, 5000):
        encoded = aml.package_length(bytes(size))
        follow = encoded[0] >> 6
        value = (
            encoded[0] & 0x3F
            if follow == 0
            else encoded[0] & 0xF | int.from_bytes(encoded[1:], "little") << 4
        )
        assert len(encoded) == follow + 1 and value == size + len(encoded)


def test_s5_is_what_the_power_management_device_expects():
    assert bytes([0x0A, acpi_pm.SLP_TYP_S5]) in acpi.dsdt()


@pytest.mark.oracle
@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (Debian: acpica-tools) is not installed")
def test_iasl_reads_the_tables(tmp_path):
    for name, data in (("dsdt", acpi.dsdt()), ("apic", acpi.madt(2)), ("facp", acpi.fadt(0x1000, 0x2000))):
        (tmp_path / f"{name}.aml").write_bytes(data)
        subprocess.run(["iasl", "-d", f"{name}.aml"], cwd=tmp_path, check=True, capture_output=True)
        result = subprocess.run(["iasl", f"{name}.dsl"], cwd=tmp_path, capture_output=True, text=True)
        assert "0 Errors, 0 Warnings" in result.stdout


@pytest.mark.parametrize("mib", [2, 512, 3072, 3073, 8192])
def test_memory_map(mib):
    rows = e820.memory_map(mib * layout.MIB)
    ram = [row for row in rows if row.type == layout.RAM]
    lost = layout.HIGH_MEMORY - layout.EBDA
    assert sum(row.length for row in ram) == mib * layout.MIB - lost
    assert all(row.end <= layout.HOLE or row.start >= layout.ABOVE_HOLE for row in ram)
    assert all(a.end <= b.start for a, b in zip(rows, rows[1:], strict=False))
    assert len(e820.e820_file(mib * layout.MIB)) == 20 * len(rows)
