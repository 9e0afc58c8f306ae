"""A processor in VMX root operation with a VMCS region in RAM, which executes single instructions.

Physical memory beside tests.system.world's: VMCS region 0x20000, VMXON region 0x21000, a second VMCS 0x22000, the
memory operand 0x23000 (RBX points to it), EPT paging structures 0x24000.
"""

import numpy as np

from tests.system.world import World
from vmx.boot import states
from vmx.cpu.cpuid import cpuid_table
from vmx.state.bits import signed, unsigned
from vmx.state.memory import host_address
from vmx.state.processor import CR4_VMXE, RAX, RBX, RCX, Status
from vmx.virt.fields import VMCS, VMCS_REVISION, VMCS_SIZE
from vmx.virt.setup import default_vmcs, ept_pointer

REGION, VMXON_REGION, OTHER_REGION, OPERAND, EPT_ROOT = range(0x2_0000, 0x2_5000, 0x1000)
GUEST_RIP, HOST_RIP = 0x1_0000, 0x1_8000
NO_POINTER = (1 << 64) - 1
BEYOND = 1 << 52  # an address that no processor has

# one form of each, memory operands at [RBX], registers RAX (ModRM.reg) and RCX (ModRM.rm)
CODES = {
    "vmxon": b"\xf3\x0f\xc7\x33",
    "vmxoff": b"\x0f\x01\xc4",
    "vmclear": b"\x66\x0f\xc7\x33",
    "vmptrld": b"\x0f\xc7\x33",
    "vmptrst": b"\x0f\xc7\x3b",
    "vmread": b"\x0f\x78\xc1",
    "vmread_memory": b"\x0f\x78\x03",
    "vmwrite": b"\x0f\x79\xc1",
    "vmwrite_memory": b"\x0f\x79\x03",
    "vmlaunch": b"\x0f\x01\xc2",
    "vmresume": b"\x0f\x01\xc3",
    "vmcall": b"\x0f\x01\xc1",
    "invept": b"\x66\x0f\x38\x80\x03",
    "invvpid": b"\x66\x0f\x38\x81\x03",
}
WITH_MEMORY = (
    "vmxon",
    "vmclear",
    "vmptrld",
    "vmptrst",
    "vmread_memory",
    "vmwrite_memory",
    "invept",
    "invvpid",
)

STATUS = 0x8D5  # the six arithmetic flags
CF, ZF = 1, 1 << 6


class Root(World):
    """In root operation with REGION as current VMCS; `root=False`: before VMXON."""

    def __init__(self, mode="long64", *, root=True):
        super().__init__(mode)
        cpu = self.cpu
        self.cpuid = cpuid_table(vmx=True)
        cpu.host_cpuid = host_address(self.cpuid)
        cpu.cr4 |= CR4_VMXE
        cpu.feature_control = 5
        cpu.gpr[RBX] = OPERAND
        for region in (REGION, VMXON_REGION, OTHER_REGION):
            self.put(region, VMCS_REVISION, 4)
        if root:
            cpu.vmx_on = 1
            cpu.vmxon_pointer = VMXON_REGION
            self.current(REGION)

    def current(self, pointer):
        self.cpu.vmcs_pointer = signed(pointer)
        self.cpu.host_vmcs = 0 if pointer == NO_POINTER else host_address(self.ram) + pointer

    @property
    def vmcs(self):
        return VMCS.view(host_address(self.ram) + REGION)

    def build_vmcs(self, guest=states.long64):
        """A VMCS in REGION that enters a guest at GUEST_RIP, with this processor as 64-bit host."""
        record = default_vmcs(guest(GUEST_RIP)[0], eptp=ept_pointer(EPT_ROOT))
        image = np.frombuffer(record.tobytes(), np.uint8)
        self.ram[REGION : REGION + VMCS_SIZE] = image
        self.vmcs.host_rip = HOST_RIP
        self.vmcs.host_cr3 = self.cpu.cr3
        return self.vmcs

    def do(self, name, operand=None, *, rax=None, rcx=None):
        """Execute CODES[name] with these registers and this quadword at the memory operand."""
        if operand is not None:
            self.put(OPERAND, operand)
        for number, value in ((RAX, rax), (RCX, rcx)):
            if value is not None:
                self.cpu.gpr[number] = signed(value)
        return self.execute(CODES[name])

    def result(self):
        """ "succeed", "invalid", or the VM-instruction error."""
        flags = self.rflags & STATUS
        if flags == ZF:
            return int(VMCS.view(self.cpu.host_vmcs).vm_instruction_error)
        return {0: "succeed", CF: "invalid"}[flags]


__all__ = ["Root", "Status", "signed", "unsigned"]
