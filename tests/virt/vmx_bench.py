"""A processor with a little RAM and a VMCS, for the tests of vmx.virt."""

from dataclasses import replace

import numpy as np

from vmx.boot import states
from vmx.mmu.tlb import new_tlb
from vmx.state.bits import signed
from vmx.state.flags import get_rflags
from vmx.state.memory import host_address
from vmx.state.processor import CR0_PG, CR4_PAE, PROCESSOR, new_record
from vmx.state.unit import unit
from vmx.virt.entry import vm_entry
from vmx.virt.fields import VMCS
from vmx.virt.setup import default_vmcs, ept_pointer

RAM = 1 << 20
EPT_ROOT = 0x1000


def guest_states():
    """Initial states in every mode."""
    flat = states.protected32(0x10000)[0]
    return {
        "long64": states.long64(0x10000)[0],
        "protected32": flat,
        "paged32": replace(flat, cr0=flat.cr0 | CR0_PG, cr3=0x2000),
        "pae32": replace(flat, cr0=flat.cr0 | CR0_PG, cr3=0x2000, cr4=CR4_PAE),
        "real": states.real(0x7C00)[0],
    }


@unit(PROCESSOR)
def rflags_of(cpu):
    return get_rflags(cpu)


class Bench:
    """`cpu` and `vmcs` are views; `ram` is the memory."""

    def __init__(self, mode="long64", *, python_hypervisor=1, **options):
        options.setdefault("eptp", ept_pointer(EPT_ROOT))
        self.ram = np.zeros(RAM, np.uint8)
        self.page_flags = np.zeros(RAM >> 12, np.uint8)
        self.stamps = np.zeros(RAM >> 12, np.uint32)
        self.tlb = new_tlb()
        self.record = new_record(PROCESSOR)
        self.region = default_vmcs(guest_states()[mode], **options)
        self.vmcs = VMCS.view(host_address(self.region))
        self.cpu = cpu = PROCESSOR.view(host_address(self.record))
        cpu.host_ram, cpu.ram_low = host_address(self.ram), RAM
        cpu.host_page_flags, cpu.host_page_stamp = host_address(self.page_flags), host_address(self.stamps)
        cpu.host_tlb = host_address(self.tlb)
        cpu.host_vmcs = host_address(self.region)
        cpu.python_hypervisor = python_hypervisor
        cpu.ns_per_instruction, cpu.tsc_khz = 16, 1_000_000
        cpu.preemption_deadline = -1
        cpu.segments[8].limit = 0xFFFFFFFF

    def enter(self):
        return vm_entry(self.cpu)

    def set(self, **fields):
        """VMCS fields, read-only ones too."""
        for name, value in fields.items():
            setattr(self.vmcs, name, signed(value))
