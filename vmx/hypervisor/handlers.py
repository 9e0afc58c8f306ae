"""The handlers: what the hypervisor does about each exit reason. In the manual's order of reasons.

A handler receives the hypervisor and the guest CPU after the exit and prepares the next entry. `let_run` is the
answer to most instructions that exit only because a control bit was switched on: the processor executes that one
instruction with the intercepts off.
"""

from collections.abc import Callable

from vmx.hypervisor.vcpu import GuestCpu
from vmx.virt.reasons import ExitReason

Handler = Callable[["Hypervisor", GuestCpu, int], None]  # noqa: F821

EXTERNAL, NMI, EXCEPTION, SOFTWARE_EXCEPTION = 0, 2, 3, 6
UD, GP = 6, 13
CR0_NE, CR0_PG, CR4_PAE, CR4_VMXE = 1 << 5, 1 << 31, 1 << 5, 1 << 13
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
IA32E_MODE_GUEST = 1 << 9


def exception_or_nmi(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """An exception that the bitmap selects is given back to the guest."""
    info = cpu.read("vm_exit_interruption_info")
    vector, kind = info & 0xFF, info >> 8 & 7
    if cpu.read("idt_vectoring_info") >> 31:
        hypervisor.reinject(cpu)
        return
    if vector == 14:
        cpu.processor.view.cr2 = qualification
    error = cpu.read("vm_exit_interruption_error_code") if info & 1 << 11 else None
    cpu.inject(vector, kind, error, cpu.read("vm_exit_instruction_length"))


def external_interrupt(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """Some device of the platform wants attention: interrupts are looked at before every entry."""
    hypervisor.reinject(cpu)


def triple_fault(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    hypervisor.machine.finish("TRIPLE_FAULT", hypervisor.machine.where("the guest triple-faulted"))


def interrupt_window(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """The guest can take the interrupt that waits."""
    cpu.want_interrupt_window(False)


def cpuid(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    hypervisor.cpuid(cpu)
    cpu.skip_instruction()


def hlt(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    cpu.skip_instruction()
    enabled = bool(cpu.read("guest_rflags") & 1 << 9)
    hypervisor.machine.wait_for_interrupt(cpu.processor, enabled)


def let_run(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """The processor executes the instruction with the intercepts off."""
    hypervisor.run_one_instruction(cpu)


def skip(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """Instructions without effect here: WBINVD, INVD (no caches are modelled)."""
    cpu.skip_instruction()


def undefined(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """There is no hypercall interface and no nested VMX: #UD."""
    cpu.inject(UD, EXCEPTION)


def cr_access(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    number, kind, register = qualification & 15, qualification >> 4 & 3, qualification >> 8 & 15
    if number in (0, 4) and kind != 1:
        value = _cr_operand(cpu, kind, register, qualification)
        (write_cr0 if number == 0 else write_cr4)(hypervisor, cpu, value)
    elif number == 8:
        lapic = hypervisor.machine.platform.interrupts.lapics[cpu.index]
        if kind == 0:
            lapic.set_tpr((cpu.gpr(register) & 15) << 4)
        else:
            cpu.set_gpr(register, lapic.tpr >> 4)
        cpu.skip_instruction()
    else:
        let_run(hypervisor, cpu, qualification)


def _cr_operand(cpu: GuestCpu, kind: int, register: int, qualification: int) -> int:
    """The value that MOV to CR, CLTS or LMSW would write, as the guest sees it."""
    if kind == 0:
        return cpu.gpr(register)
    seen = _guest_cr0(cpu)
    if kind == 2:
        return seen & ~8
    source = qualification >> 16 & 0xF
    return seen & ~0xE | source | seen & 1


def _guest_cr0(cpu: GuestCpu) -> int:
    mask = cpu.read("cr0_guest_host_mask")
    return cpu.read("guest_cr0") & ~mask | cpu.read("cr0_read_shadow") & mask


def write_cr0(hypervisor, cpu: GuestCpu, value: int) -> None:
    """MOV to CR0 that touches a bit of the hypervisor's: the guest sees its value, the processor keeps NE set."""
    old = cpu.read("guest_cr0")
    efer = cpu.read("guest_ia32_efer")
    if value & CR0_PG and not value & 1 or value & 1 << 29 and not value & 1 << 30:
        cpu.inject(GP, EXCEPTION, 0)
        return
    if value & CR0_PG and not old & CR0_PG and efer & EFER_LME:
        if not cpu.read("guest_cr4") & CR4_PAE:
            cpu.inject(GP, EXCEPTION, 0)
            return
        cpu.write("guest_ia32_efer", efer | EFER_LMA)
        cpu.write("vm_entry_controls", cpu.read("vm_entry_controls") | IA32E_MODE_GUEST)
    elif old & CR0_PG and not value & CR0_PG and efer & EFER_LMA:
        cpu.write("guest_ia32_efer", efer & ~EFER_LMA)
        cpu.write("vm_entry_controls", cpu.read("vm_entry_controls") & ~IA32E_MODE_GUEST)
    cpu.write("cr0_read_shadow", value)
    cpu.write("guest_cr0", value & 0xFFFF_FFFF | CR0_NE | 0x10)
    _load_pdptes(hypervisor, cpu)
    hypervisor.flush(cpu)
    cpu.skip_instruction()


def write_cr4(hypervisor, cpu: GuestCpu, value: int) -> None:
    """MOV to CR4 that touches VMXE: refused, because CPUID does not offer VMX to the guest."""
    cpu.inject(GP, EXCEPTION, 0)


def _load_pdptes(hypervisor, cpu: GuestCpu) -> None:
    """PAE paging keeps its PDPTEs in the VMCS while EPT is on."""
    if cpu.read("guest_cr0") & CR0_PG and cpu.read("guest_cr4") & CR4_PAE and not cpu.read("guest_ia32_efer") & EFER_LMA:
        table = hypervisor.machine.memory.read(cpu.read("guest_cr3") & 0xFFFF_FFE0, 32)
        for i in range(4):
            cpu.write(f"guest_pdpte{i}", int.from_bytes(table[8 * i : 8 * i + 8], "little"))


def io_instruction(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    if qualification & 0x10:  # INS and OUTS: the processor moves the data, the platform serves the port
        let_run(hypervisor, cpu, qualification)
        return
    size, port = (qualification & 7) + 1, qualification >> 16 & 0xFFFF
    ports = hypervisor.machine.platform.ports
    if qualification & 8:
        cpu.set_low(0, ports.read(port, size), size)
    else:
        ports.write(port, size, cpu.gpr(0) & ((1 << 8 * size) - 1))
    cpu.skip_instruction()


def rdmsr(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    index = cpu.gpr(1) & 0xFFFF_FFFF
    if not hypervisor.machine.is_platform_msr(index):
        let_run(hypervisor, cpu, qualification)
        return
    ok, value = hypervisor.machine.platform.interrupts.lapics[cpu.index].read_msr(index)
    if not ok:
        cpu.inject(GP, EXCEPTION, 0)
        return
    cpu.set_gpr(0, value & 0xFFFF_FFFF)
    cpu.set_gpr(2, value >> 32)
    cpu.skip_instruction()


def wrmsr(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    index = cpu.gpr(1) & 0xFFFF_FFFF
    if not hypervisor.machine.is_platform_msr(index):
        let_run(hypervisor, cpu, qualification)
        return
    value = (cpu.gpr(2) & 0xFFFF_FFFF) << 32 | cpu.gpr(0) & 0xFFFF_FFFF
    if hypervisor.machine.write_platform_msr(cpu.index, index, value):
        cpu.skip_instruction()
    else:
        cpu.inject(GP, EXCEPTION, 0)


def ept_violation(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """Device memory: the processor executes the instruction with that page passed through to the platform's bus."""
    address = cpu.read("guest_physical_address")
    if hypervisor.machine.memory.is_ram(address) and address < hypervisor.machine.memory.private_base:
        hypervisor.machine.finish(
            "NOT_MODELLED", hypervisor.machine.where(f"an EPT violation at RAM address {address:#x}")
        )
        return
    hypervisor.reinject(cpu)
    hypervisor.pass_device_page(cpu, address & ~0xFFF)


def ept_misconfiguration(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    address = cpu.read("guest_physical_address")
    hypervisor.machine.finish(
        "ERROR", hypervisor.machine.where(f"EPT misconfiguration at guest-physical {address:#x}")
    )


def preemption_timer(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """The time slice is over: the next entry loads the timer again."""
    hypervisor.reinject(cpu)


def xsetbv(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    value = (cpu.gpr(2) & 0xFFFF_FFFF) << 32 | cpu.gpr(0) & 0xFFFF_FFFF
    if cpu.gpr(1) & 0xFFFF_FFFF or not hypervisor.xcr0_allowed(value):
        cpu.inject(GP, EXCEPTION, 0)
        return
    cpu.processor.view.xcr0 = value
    cpu.skip_instruction()


R = ExitReason
HANDLERS: dict[int, Handler] = {
    R.EXCEPTION_NMI: exception_or_nmi,
    R.EXTERNAL_INTERRUPT: external_interrupt,
    R.TRIPLE_FAULT: triple_fault,
    R.INTERRUPT_WINDOW: interrupt_window,
    R.NMI_WINDOW: external_interrupt,
    R.CPUID: cpuid,
    R.HLT: hlt,
    R.INVD: skip,
    R.INVLPG: let_run,
    R.RDPMC: let_run,
    R.RDTSC: let_run,
    R.RSM: undefined,
    R.VMCALL: undefined,
    R.CR_ACCESS: cr_access,
    R.DR_ACCESS: let_run,
    R.IO_INSTRUCTION: io_instruction,
    R.RDMSR: rdmsr,
    R.WRMSR: wrmsr,
    R.MWAIT: let_run,
    R.MONITOR: let_run,
    R.PAUSE: let_run,
    R.GDTR_IDTR_ACCESS: let_run,
    R.LDTR_TR_ACCESS: let_run,
    R.EPT_VIOLATION: ept_violation,
    R.EPT_MISCONFIGURATION: ept_misconfiguration,
    R.RDTSCP: let_run,
    R.VMX_PREEMPTION_TIMER_EXPIRED: preemption_timer,
    R.WBINVD: skip,
    R.XSETBV: xsetbv,
    R.INVPCID: let_run,
}
for _reason in (R.VMCLEAR, R.VMLAUNCH, R.VMPTRLD, R.VMPTRST, R.VMREAD, R.VMRESUME, R.VMWRITE, R.VMXOFF, R.VMXON,
                R.INVEPT, R.INVVPID):  # fmt: skip
    HANDLERS[_reason] = undefined
