"""Exits of control-register accesses: what the guest wanted to write is checked and written on its behalf.

Manual: "Control Registers", "MOV - Move to/from Control Registers", "Guest/Host Masks and Read Shadows for CR0
and CR4". A write exits when it would change a bit that a mask gives to the hypervisor. The guest gets what it
asked for - the register, and the read shadow that it sees - but for CR0.NE and CR4.VMXE, which VMX operation
holds at 1.
"""

from vmx.cpu.system import CR0_WRITABLE, CR4_WRITABLE
from vmx.hypervisor.vcpu import IA32E_MODE_GUEST, GuestCpu
from vmx.mmu.ept import PHYSICAL_ADDRESS_BITS
from vmx.state.processor import (
    ACCESS_L,
    CR0_CD,
    CR0_ET,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMEP,
    CR4_VMXE,
    EFER_LMA,
    EFER_LME,
    GP,
)
from vmx.virt.conditions import CR_CLTS, CR_LMSW, CR_MOV_FROM, CR_MOV_TO
from vmx.virt.interruption import TYPE_EXCEPTION

MASK32 = 0xFFFF_FFFF
CR4_LOADS_PDPTES = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP
PDPTE_RESERVED = 0x1E6 | (1 << 64) - (1 << PHYSICAL_ADDRESS_BITS)
MP_EM_TS = 0xE


def cr_access(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """Handler of the exit reason "control-register accesses"."""
    number, kind, register = qualification & 15, qualification >> 4 & 3, qualification >> 8 & 15
    if number == 8:
        _task_priority(hypervisor, cpu, kind, register)
    elif number == 3 or kind == CR_MOV_FROM:
        hypervisor.run_one_instruction(cpu)
    elif (write_cr0 if number == 0 else write_cr4)(
        hypervisor, cpu, _operand(cpu, kind, register, qualification)
    ):
        hypervisor.flush(cpu)
        cpu.skip_instruction()
    else:
        cpu.inject(GP, TYPE_EXCEPTION, 0)


def _task_priority(hypervisor, cpu: GuestCpu, kind: int, register: int) -> None:
    """CR8 is the local APIC's task priority."""
    lapic = hypervisor.machine.platform.interrupts.lapics[cpu.index]
    if kind == CR_MOV_FROM:
        cpu.set_gpr(register, lapic.tpr >> 4)
    elif cpu.gpr(register) & ~15:
        cpu.inject(GP, TYPE_EXCEPTION, 0)
        return
    else:
        cpu.processor.view.cr8 = cpu.gpr(register)
        lapic.set_tpr(cpu.gpr(register) << 4)
    cpu.skip_instruction()


def _operand(cpu: GuestCpu, kind: int, register: int, qualification: int) -> int:
    """The value that MOV to CR, CLTS or LMSW would write."""
    if kind == CR_MOV_TO:
        return cpu.gpr(register) if cpu.in_64_bit_mode else cpu.gpr(register) & MASK32
    mask = cpu.read("cr0_guest_host_mask")
    seen = cpu.read("guest_cr0") & ~mask | cpu.read("cr0_read_shadow") & mask
    if kind == CR_CLTS:
        return seen & ~CR0_TS
    assert kind == CR_LMSW
    return seen & ~MP_EM_TS | qualification >> 16 & (MP_EM_TS | CR0_PE)


def write_cr0(hypervisor, cpu: GuestCpu, value: int) -> bool:
    """Set CR0 as MOV to CR0 does, PG with EFER.LMA and the PDPTEs included. False: #GP(0)."""
    if value >> 32:
        return False
    value = value & CR0_WRITABLE | CR0_ET
    if value & CR0_PG and not value & CR0_PE or value & CR0_NW and not value & CR0_CD:
        return False
    old, efer, cr4 = cpu.read("guest_cr0"), cpu.read("guest_ia32_efer"), cpu.read("guest_cr4")
    if value & CR0_PG and not old & CR0_PG and efer & EFER_LME:
        if not cr4 & CR4_PAE or cpu.read("guest_cs_access_rights") & ACCESS_L:
            return False
        efer |= EFER_LMA
    elif old & CR0_PG and not value & CR0_PG:
        if cr4 & CR4_PCIDE or cpu.in_64_bit_mode:
            return False
        efer &= ~EFER_LMA
    loads = (value ^ old) & (CR0_PG | CR0_CD | CR0_NW)
    if loads and not _load_pdptes(hypervisor, cpu, value, cr4, efer):
        return False
    cpu.write("guest_ia32_efer", efer)
    controls = cpu.read("vm_entry_controls")
    long_mode = IA32E_MODE_GUEST if efer & EFER_LMA else 0
    cpu.write("vm_entry_controls", controls & ~IA32E_MODE_GUEST | long_mode)
    cpu.write("cr0_read_shadow", value)
    cpu.write("guest_cr0", value | CR0_NE)
    return True


def write_cr4(hypervisor, cpu: GuestCpu, value: int) -> bool:
    """Set CR4 as MOV to CR4 does. False: #GP(0), for VMXE too, because CPUID does not offer VMX to the guest."""
    if value & ~CR4_WRITABLE:
        return False
    old, efer, cr0 = cpu.read("guest_cr4"), cpu.read("guest_ia32_efer"), cpu.read("guest_cr0")
    long_mode = efer & EFER_LMA
    if long_mode and not value & CR4_PAE:
        return False
    if value & ~old & CR4_PCIDE and (not long_mode or cpu.read("guest_cr3") & 0xFFF):
        return False
    if (value ^ old) & CR4_LOADS_PDPTES and not _load_pdptes(hypervisor, cpu, cr0, value, efer):
        return False
    cpu.write("cr4_read_shadow", value)
    cpu.write("guest_cr4", value | CR4_VMXE)
    return True


def _load_pdptes(hypervisor, cpu: GuestCpu, cr0: int, cr4: int, efer: int) -> bool:
    """PAE paging keeps its PDPTEs in the VMCS while EPT is on. False: a reserved bit is set in one of them."""
    if not cr0 & CR0_PG or not cr4 & CR4_PAE or efer & EFER_LMA:
        return True
    address, memory = cpu.read("guest_cr3") & 0xFFFF_FFE0, hypervisor.machine.memory
    # Where there is no RAM the bus answers with ones, and then reserved bits are set.
    table = memory.read(address, 32) if memory.is_ram(address, 32) else b"\xff" * 32
    entries = [int.from_bytes(table[at : at + 8], "little") for at in range(0, 32, 8)]
    if any(entry & 1 and entry & PDPTE_RESERVED for entry in entries):
        return False
    for i, entry in enumerate(entries):
        cpu.write(f"guest_pdpte{i}", entry)
    return True
