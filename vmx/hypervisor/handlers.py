"""The handlers: what the hypervisor does about each exit reason. In the manual's order of reasons.

A handler receives the hypervisor and the guest CPU after the exit and prepares the next entry. `let_run` is the
answer to most instructions that exit only because a control bit was switched on: the processor executes that one
instruction with the intercepts off.
"""

from collections.abc import Callable

from vmx.hypervisor.control_registers import cr_access
from vmx.hypervisor.vcpu import GuestCpu
from vmx.state.bits import signed
from vmx.state.processor import ACTIVITY_HLT, DB, DE, DF, FLAG_RF, GP, NP, PF, SS_FAULT, TS, UD
from vmx.virt.interruption import INFO_ERROR_CODE, INFO_VALID, TYPE_EXCEPTION, TYPE_NMI
from vmx.virt.reasons import ExitReason

Handler = Callable[["Hypervisor", GuestCpu, int], None]  # noqa: F821

EXCEPTION = TYPE_EXCEPTION
CONTRIBUTORY = (DE, TS, NP, SS_FAULT, GP)
DR6_CAUSES, DR7_GD = 0x600F, 1 << 13


def exception_or_nmi(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """An exception that the bitmap selects is given back to the guest, as its processor would have gone on.

    An exception during the delivery of another may make a double fault, or end in a triple fault; one during the
    delivery of anything else takes its place ("Reflecting Exceptions to Guest Software").
    """
    info = cpu.read("vm_exit_interruption_info")
    vector, kind = info & 0xFF, info >> 8 & 7
    if kind == EXCEPTION:
        _note_cause(cpu, vector, qualification)
        original = cpu.read("idt_vectoring_info")
        if original & INFO_VALID and original >> 8 & 7 == EXCEPTION:
            first = original & 0xFF
            if first == DF:
                triple_fault(hypervisor, cpu, qualification)
                return
            if double_fault(first, vector):
                # The exit has set RF for the second fault; a double fault saves the interrupted RFLAGS.
                cpu.write("guest_rflags", cpu.read("guest_rflags") & ~FLAG_RF)
                cpu.inject(DF, EXCEPTION, 0)
                return
    elif kind != TYPE_NMI:
        cpu.count_instruction()  # INT3, INTO and INT1 complete with their delivery
    error = cpu.read("vm_exit_interruption_error_code") if info & INFO_ERROR_CODE else None
    cpu.inject(vector, kind, error, cpu.read("vm_exit_instruction_length"))


def _note_cause(cpu: GuestCpu, vector: int, qualification: int) -> None:
    """An exit leaves CR2, DR6, DR7.GD and DEBUGCTL.LBR as they were; delivery would have written them."""
    view = cpu.processor.view
    if vector == PF:
        view.cr2 = signed(qualification)
    elif vector == DB:
        view.dr[6] = view.dr[6] | qualification & DR6_CAUSES
        cpu.write("guest_dr7", cpu.read("guest_dr7") & ~DR7_GD)
        cpu.write("guest_ia32_debugctl", cpu.read("guest_ia32_debugctl") & ~1)


def double_fault(first: int, second: int) -> bool:
    """Whether an exception during the delivery of an exception makes a double fault (manual: vector 8)."""
    contributory = second in CONTRIBUTORY
    return contributory or second == PF if first == PF else contributory and first in CONTRIBUTORY


def external_interrupt(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """Some device of the platform wants attention: interrupts are looked at before every entry.

    With "acknowledge interrupt on exit" it is acknowledged already, and kept until the guest can take it.
    """
    info = cpu.read("vm_exit_interruption_info")
    if info & INFO_VALID:
        cpu.acknowledged.append(info & 0xFF)


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
    if hypervisor.machine.outcome is not None:  # the run ends here; another one goes on waiting
        cpu.write("guest_activity_state", ACTIVITY_HLT)


def let_run(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """The processor executes the instruction with the intercepts off."""
    hypervisor.run_one_instruction(cpu)


def skip(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """Instructions without effect here: WBINVD, INVD (no caches are modelled)."""
    cpu.skip_instruction()


def undefined(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """There is no hypercall interface and no nested VMX: #UD."""
    cpu.inject(UD, EXCEPTION)


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
    hypervisor.run_one_instruction(cpu, address & ~0xFFF)


def ept_misconfiguration(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    address = cpu.read("guest_physical_address")
    hypervisor.machine.finish(
        "ERROR", hypervisor.machine.where(f"EPT misconfiguration at guest-physical {address:#x}")
    )


def preemption_timer(hypervisor, cpu: GuestCpu, qualification: int) -> None:
    """The time slice is over: another begins."""
    hypervisor.reinject(cpu)
    hypervisor.load_slice(cpu)


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
