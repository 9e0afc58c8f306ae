"""Interrupts and exceptions: faults on the way to a handler, and what is looked at between instructions.

Manual: "Interrupt 8 - Double Fault Exception" (which pairs of exceptions become a double fault), "Priority
Among Simultaneous Exceptions and Interrupts", and for VMX non-root operation "Other Causes of VM Exits" and
"Information for VM Exits That Occur During Event Delivery". The IDT itself is in `vmx.cpu.idt`.
"""

from vmx.cpu.breakpoints import STEP_TF, begin_step, end_step, instruction_breakpoints, watching
from vmx.cpu.idt import (
    EXTERNAL,
    HARDWARE_EXCEPTION,
    NMI_TYPE,
    PRIVILEGED_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    deliver_once,
)
from vmx.cpu.operands import raise_fault
from vmx.cpu.virtual8086 import has_virtual_flag
from vmx.mmu.bus import forget_bus_answers
from vmx.state.bits import ule, ult
from vmx.state.jit import compiled
from vmx.state.processor import (
    ACTIVE,
    ACTIVITY_HLT,
    ACTIVITY_SHUTDOWN,
    CR0_PE,
    DB,
    DELIVERED,
    DF,
    EXIT,
    FLAG_IF,
    FLAG_RF,
    FLAG_TF,
    FLAG_VIF,
    FLAG_VIP,
    GP,
    JUMP,
    NMI,
    OK,
    PF,
    PROCESSOR,
    SHADOW_MOV_SS,
    SHADOW_STI,
    STOP,
    VECTORS_WITH_ERROR_CODE,
    Stop,
)
from vmx.state.unit import unit
from vmx.virt.conditions import (
    acknowledge_on_exit,
    exception_exits,
    external_interrupt_exits,
    interrupt_window_exiting,
    nmi_exiting,
    nmi_window_exiting,
)
from vmx.virt.controls import ACTIVATE_VMX_PREEMPTION_TIMER
from vmx.virt.exit import vm_exit
from vmx.virt.reasons import ExitReason

STEP = 8  # handle_attention's further answer: run one instruction, call after_step, then ask again
EPT_EXIT = 7  # see vmx.mmu.translate

EXCEPTION_NMI = int(ExitReason.EXCEPTION_NMI)
EXTERNAL_INTERRUPT = int(ExitReason.EXTERNAL_INTERRUPT)
TRIPLE_FAULT = int(ExitReason.TRIPLE_FAULT)
INTERRUPT_WINDOW = int(ExitReason.INTERRUPT_WINDOW)
NMI_WINDOW = int(ExitReason.NMI_WINDOW)
PREEMPTION_TIMER = int(ExitReason.VMX_PREEMPTION_TIMER_EXPIRED)
MONITOR_TRAP = int(ExitReason.MONITOR_TRAP_FLAG)
STOP_HALT, STOP_ACKNOWLEDGE = int(Stop.HALT), int(Stop.ACKNOWLEDGE)
STOP_SHUTDOWN, STOP_WAIT_FOR_SIPI = int(Stop.SHUTDOWN), int(Stop.WAIT_FOR_SIPI)

VALID = 1 << 31
OTHER_EVENT = 7  # interruption type: a pending monitor trap
PENDING_BS = 1 << 14  # single step, in DR6 and in the pending debug exceptions
PENDING_BT = 1 << 15  # a switch to a task whose TSS has T set
PENDING_BD = 1 << 13  # general detect
PENDING_IN_DR6 = PENDING_BT | PENDING_BS | PENDING_BD | 0xF
DR7_GD = 1 << 13
CONTRIBUTORY = 1 << 0 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13  # #DE #TS #NP #SS #GP


# --- delivery -----------------------------------------------------------------------------------------------


@compiled
def _is_exception(kind):
    return kind == HARDWARE_EXCEPTION or kind == PRIVILEGED_EXCEPTION or kind == SOFTWARE_EXCEPTION


@compiled
def _double_fault(first, second):
    """1 when a second exception during delivery of the first makes a double fault."""
    contributory = CONTRIBUTORY >> second & 1
    if first == PF:
        return 1 if contributory or second == PF else 0
    return CONTRIBUTORY >> first & contributory & 1


@compiled
def _interruption(vector, kind, has_error):
    return vector | kind << 8 | has_error << 11 | VALID


@compiled
def _exception_exit(cpu, vector, kind, error, has_error):
    """A VM exit because the exception bitmap names this exception; nothing of it is delivered."""
    cpu.exit_interruption_info = _interruption(vector, kind, has_error)
    cpu.exit_interruption_error = error if has_error else 0
    qualification = 0
    if vector == PF:
        qualification = cpu.fault_address
    elif vector == DB:
        qualification = cpu.pending_debug & PENDING_IN_DR6
        cpu.pending_debug = 0
    cpu.has_injected = 0
    return vm_exit(cpu, EXCEPTION_NMI, qualification)


@compiled
def _shut_down(cpu):
    """A triple fault."""
    cpu.has_injected = 0
    cpu.vectoring_info = 0
    if cpu.non_root:
        return vm_exit(cpu, TRIPLE_FAULT, 0)
    cpu.activity = ACTIVITY_SHUTDOWN
    cpu.attention = 1
    cpu.stop = STOP_SHUTDOWN
    return STOP


@compiled
def _note_cause(cpu, vector):
    """The registers that tell a handler more: CR2 for #PF, DR6 for #DB."""
    if vector == PF:
        cpu.cr2 = cpu.fault_address
    elif vector == DB:
        if cpu.pending_debug & PENDING_BD:
            cpu.rflags |= FLAG_RF  # a fault, unlike traps; an instruction breakpoint saves RF as it is
        cpu.dr[6] = cpu.dr[6] | cpu.pending_debug & PENDING_IN_DR6
        cpu.dr[7] = cpu.dr[7] & ~DR7_GD
        cpu.debugctl &= ~1
        cpu.pending_debug = 0


@compiled
def _delivered(cpu, status):
    forget_bus_answers(cpu)  # those of the instruction that faulted, and of the delivery
    cpu.vectoring_info = 0
    cpu.vectoring_error = 0
    cpu.exit_length = 0
    cpu.has_injected = 0
    cpu.step_trap = 0
    cpu.activity = ACTIVE
    if cpu.passing:
        cpu.limit = cpu.retired  # the handler's instructions are not the one that was let through
    return status


@compiled
def _pass_time(cpu):
    """An exception was delivered. One at the first instruction of a handler, which can go round for ever, takes
    the time of an instruction: virtual time goes on, and the limits of the run hold.
    """
    if cpu.faulted_at == cpu.retired + 1:
        cpu.retired += 1
        cpu.attention = 1  # the VMX-preemption timer may have expired
    cpu.faulted_at = cpu.retired + 1


@unit(PROCESSOR, "i64", "i64", "i64", "i64")
def deliver(cpu, vector, kind, error, has_error):
    """Deliver an event; `kind` is its interruption type (EXTERNAL ... SOFTWARE_EXCEPTION).

    Returns JUMP when a software event (INT n and the like) was delivered: its instruction is complete.
    DELIVERED for everything else that ends in a handler, faults on the way included; EXIT; or STOP: nothing
    has happened yet. Software events need cpu.next_rip, and cpu.exit_length for the VM exit they may cause.
    """
    injected = cpu.has_injected  # by VM entry: never intercepted, and CR2 and DR6 are the hypervisor's
    info = cpu.vectoring_info
    info_error = cpu.vectoring_error
    result = JUMP if kind >= SOFTWARE_INTERRUPT and injected == 0 else DELIVERED
    while True:
        if cpu.cr0 & CR0_PE == 0:
            has_error = 0
        if _is_exception(kind) and injected == 0:
            if exception_exits(cpu, vector, error):
                return _exception_exit(cpu, vector, kind, error, has_error)
            if kind == HARDWARE_EXCEPTION:
                _note_cause(cpu, vector)
        cpu.vectoring_info = _interruption(vector, kind, has_error)
        cpu.vectoring_error = error if has_error else 0
        status = deliver_once(cpu, vector, kind, error, has_error)
        if status == OK:
            if kind == HARDWARE_EXCEPTION or injected and kind >= SOFTWARE_INTERRUPT:
                _pass_time(cpu)
            return _delivered(cpu, result)
        cpu.fault = 0
        if status == EXIT:
            return EXIT
        if status == STOP:
            cpu.vectoring_info = info
            cpu.vectoring_error = info_error
            return STOP
        if status == EPT_EXIT:
            cpu.has_injected = 0
            return vm_exit(cpu, cpu.ept_reason, cpu.ept_qualification)

        # a fault on the way
        second = cpu.fault_vector
        if kind == HARDWARE_EXCEPTION and (vector == DF or _double_fault(vector, second)):
            second_error = cpu.fault_error
            has_error = VECTORS_WITH_ERROR_CODE >> second & 1 if cpu.cr0 & CR0_PE else 0
            if exception_exits(cpu, second, second_error):
                return _exception_exit(cpu, second, HARDWARE_EXCEPTION, second_error, has_error)
            if vector == DF:
                return _shut_down(cpu)
            _note_cause(cpu, second)
            cpu.vectoring_info = 0
            vector = DF
            error = 0
        else:
            vector = second
            error = cpu.fault_error
        has_error = VECTORS_WITH_ERROR_CODE >> vector & 1
        kind = HARDWARE_EXCEPTION
        injected = 0
        result = DELIVERED


@unit(PROCESSOR)
def deliver_fault(cpu):
    """Deliver the fault in flight as an exception at cpu.rip. Returns DELIVERED, EXIT or STOP."""
    cpu.fault = 0
    vector = cpu.fault_vector
    has_error = VECTORS_WITH_ERROR_CODE >> vector & 1
    return deliver(cpu, vector, HARDWARE_EXCEPTION, cpu.fault_error, has_error)


@unit(PROCESSOR)
def deliver_injected(cpu):
    """Deliver the event that VM entry left in cpu.vectoring_info ("Event Injection")."""
    info = cpu.vectoring_info
    kind = info >> 8 & 7
    if kind == OTHER_EVENT:
        cpu.has_injected = 0
        cpu.vectoring_info = 0
        return vm_exit(cpu, MONITOR_TRAP, 0)
    cpu.next_rip = cpu.rip + cpu.exit_length
    return deliver(cpu, info & 0xFF, kind, cpu.vectoring_error, info >> 11 & 1)


@compiled
def software_interrupt(cpu, d, vector, kind):
    """INT n, INT3, INTO and INT1 after their own checks."""
    cpu.exit_length = d.length
    return deliver(cpu, vector, kind, 0, 0)


# --- between instructions -----------------------------------------------------------------------------------


@compiled
def _deliver_debug_trap(cpu):
    cpu.fault_error = 0
    return deliver(cpu, DB, HARDWARE_EXCEPTION, 0, 0)


@compiled
def _take_nmi(cpu):
    if nmi_exiting(cpu):
        cpu.nmi_pin = 0
        cpu.exit_interruption_info = _interruption(NMI, NMI_TYPE, 0)
        return vm_exit(cpu, EXCEPTION_NMI, 0)
    status = deliver(cpu, NMI, NMI_TYPE, 0, 0)
    if status != STOP:
        cpu.nmi_pin = 0
    return status


@compiled
def _acknowledge(cpu):
    """STOP while the platform has not yet said which interrupt it is."""
    if cpu.interrupt_vector >= 0:
        return OK
    cpu.stop = STOP_ACKNOWLEDGE
    return STOP


@compiled
def _take_interrupt(cpu):
    """An external interrupt that is not blocked."""
    if external_interrupt_exits(cpu):
        if acknowledge_on_exit(cpu):
            if _acknowledge(cpu):
                return STOP
            cpu.exit_interruption_info = _interruption(cpu.interrupt_vector, EXTERNAL, 0)
            cpu.interrupt_vector = -1
        return vm_exit(cpu, EXTERNAL_INTERRUPT, 0)
    if _acknowledge(cpu):
        return STOP
    status = deliver(cpu, cpu.interrupt_vector, EXTERNAL, 0, 0)
    if status != STOP:
        cpu.interrupt_vector = -1
    return status


@unit(PROCESSOR)
def handle_attention(cpu):
    """What comes before the next instruction, by the manual's priorities.

    OK: go on (cpu.attention is clear unless an interrupt waits for RFLAGS.IF). STEP: run one instruction,
    call after_step, call again. FAULT: instead of the instruction. DELIVERED: RIP is a handler's. EXIT, or STOP with
    cpu.stop.
    """
    if cpu.has_injected:
        return deliver_injected(cpu)
    if cpu.activity > ACTIVITY_HLT and cpu.nmi_pin == 0:
        cpu.stop = STOP_SHUTDOWN if cpu.activity == ACTIVITY_SHUTDOWN else STOP_WAIT_FOR_SIPI
        return STOP
    blocked = cpu.shadow & (SHADOW_STI | SHADOW_MOV_SS)

    if cpu.pending_debug & PENDING_IN_DR6 and cpu.shadow & SHADOW_MOV_SS == 0:
        return _deliver_debug_trap(cpu)
    if cpu.pin_controls & ACTIVATE_VMX_PREEMPTION_TIMER and ule(cpu.preemption_deadline, cpu.retired):
        return vm_exit(cpu, PREEMPTION_TIMER, 0)
    if cpu.shadow == 0 and nmi_window_exiting(cpu):
        return vm_exit(cpu, NMI_WINDOW, 0)
    if cpu.nmi_pin and cpu.shadow == 0:
        return _take_nmi(cpu)
    enabled = cpu.rflags & FLAG_IF != 0 and blocked == 0
    if enabled and interrupt_window_exiting(cpu):
        return vm_exit(cpu, INTERRUPT_WINDOW, 0)
    waiting = cpu.intr_pin != 0 or cpu.interrupt_vector >= 0
    if waiting and (enabled or blocked == 0 and external_interrupt_exits(cpu)):
        return _take_interrupt(cpu)

    if cpu.activity == ACTIVITY_HLT:
        cpu.stop = STOP_HALT
        return STOP
    both = FLAG_VIF | FLAG_VIP
    if cpu.rflags & both == both and has_virtual_flag(cpu) and ult(cpu.retired, cpu.limit):
        return raise_fault(cpu, GP, 0)  # "both set at the beginning of an instruction": the monitor's turn
    if watching(cpu) and cpu.rflags & FLAG_RF == 0 and blocked & SHADOW_MOV_SS == 0:
        found = instruction_breakpoints(cpu)
        if found and ult(cpu.retired, cpu.limit):  # a handler that begins with one goes round for ever
            cpu.pending_debug |= found
            return raise_fault(cpu, DB, 0)
    if blocked or cpu.rflags & FLAG_TF or watching(cpu):
        cpu.step_shadow = blocked
        cpu.step_trap = STEP_TF if cpu.rflags & FLAG_TF else 0
        begin_step(cpu)
        return STEP
    cpu.rflags &= ~FLAG_RF  # the next instruction ends it, and without breakpoints nothing looks at it
    cpu.attention = 1 if waiting else 0
    return OK


@unit(PROCESSOR)
def after_step(cpu):
    """After the instruction that STEP allowed: blocking by STI or MOV SS ends, a single-step trap is due."""
    cpu.shadow &= ~cpu.step_shadow
    cpu.step_shadow = 0
    end_step(cpu)
    if cpu.step_trap & STEP_TF:
        cpu.pending_debug |= PENDING_BS
    cpu.step_trap = 0
    cpu.attention = 1
    return OK
