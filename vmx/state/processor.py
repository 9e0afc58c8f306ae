"""The processor state: one record per virtual CPU, its segments, decoded instructions and codes shared by all layers.

The record is the architecture's state plus what the run loop needs. Fields that begin with `host_` are
addresses in this process: they are set when a machine is built or loaded, and mean nothing in a snapshot.
"""

import enum

import numpy as np

from vmx.state.struct import struct

# --- segments -----------------------------------------------------------------------------------------------

ES, CS, SS, DS, FS, GS, LDTR, TR, FLAT = range(9)  # VMCS order; FLAT is base 0 without limit (64-bit mode)

SEGMENT = struct(
    "Segment",
    [
        ("base", "u8"),
        ("limit", "u4"),  # bytes, after granularity
        (
            "access",
            "u4",
        ),  # "Guest Register State": 3:0 type, 4 S, 6:5 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable
        ("selector", "u2"),
    ],
)

ACCESS_TYPE, ACCESS_S, ACCESS_P = 0xF, 1 << 4, 1 << 7
ACCESS_L, ACCESS_DB, ACCESS_G, ACCESS_UNUSABLE = 1 << 13, 1 << 14, 1 << 15, 1 << 16

# --- registers ----------------------------------------------------------------------------------------------

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)
NO_REGISTER = 16  # gpr[16] is always zero: an absent base or index
RIP_REGISTER = 17  # base of RIP-relative addressing

BUS_LOG = 192  # bus accesses that one instruction may make: XSAVE makes 72, twice that across a page

PROCESSOR = struct(
    "Processor",
    [
        # x87, MMX and SSE state in the layout of FXSAVE64 (512 bytes, 16-byte aligned by allocation)
        ("fx", "u1", (512,)),
        # general registers; [16] is zero; index 17 reaches next_rip, so RIP-relative addressing is no special case
        ("gpr", "u8", (17,)),
        ("next_rip", "u8"),  # of the instruction after this one; branches write it
        ("rip", "u8"),  # of the instruction being executed
        # RFLAGS without CF PF AF ZF SF OF, which are lazy: see vmx.state.flags
        ("rflags", "u8"),
        ("flag_result", "u8"),
        ("flag_carries", "u8"),
        ("segments", SEGMENT.dtype, (9,)),
        ("gdtr_base", "u8"),
        ("idtr_base", "u8"),
        ("gdtr_limit", "u4"),
        ("idtr_limit", "u4"),
        ("cr0", "u8"),
        ("cr2", "u8"),
        ("cr3", "u8"),
        ("cr4", "u8"),
        ("cr8", "u8"),  # task priority, bits 3:0
        ("xcr0", "u8"),
        ("dr", "u8", (8,)),
        ("pdpte", "u8", (4,)),  # PAE paging caches them at MOV CR3
        # model-specific registers
        ("efer", "u8"),
        ("star", "u8"),
        ("lstar", "u8"),
        ("cstar", "u8"),
        ("fmask", "u8"),
        ("kernel_gs_base", "u8"),
        ("sysenter_cs", "u8"),
        ("sysenter_esp", "u8"),
        ("sysenter_eip", "u8"),
        ("tsc_aux", "u8"),
        ("tsc_adjust", "u8"),
        ("pat", "u8"),
        ("debugctl", "u8"),
        ("misc_enable", "u8"),
        ("feature_control", "u8"),
        ("apic_base", "u8"),
        ("mtrr_def_type", "u8"),
        ("mtrr_fixed", "u8", (11,)),
        ("mtrr_variable", "u8", (16,)),
        ("xss", "u8"),
        ("perf_global_ctrl", "u8"),
        # derived from the above by vmx.mmu.mode.update_mode
        ("cpl", "u1"),
        ("code_mode", "u1"),  # 0: 16-bit, 1: 32-bit, 2: 64-bit code
        ("paging_mode", "u1"),  # 0 none, 1 32-bit, 2 PAE, 3 4-level (4: 5-level, later)
        ("long_mode", "u1"),  # EFER.LMA
        # events
        ("activity", "u1"),  # "Guest Non-Register State": 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI
        (
            "shadow",
            "u1",
        ),  # interruptibility: bit 0 blocking by STI, bit 1 blocking by MOV SS; bit 3 blocking by NMI
        ("attention", "u1"),  # something must be looked at before the next block of instructions
        ("intr_pin", "u1"),
        ("nmi_pin", "u1"),
        ("interrupt_vector", "i4"),  # the platform's answer to an interrupt acknowledge; -1: none yet
        ("pending_debug", "u8"),  # layout of "Pending debug exceptions" in the VMCS; bit 14 single step
        (
            "has_injected",
            "u1",
        ),  # an event being delivered comes from VM entry (for IDT-vectoring information)
        # the fault in flight: a memory or instruction helper sets it and returns `fault`
        ("fault", "u1"),  # Status to return to the run loop; 0: none
        ("fault_vector", "u1"),
        ("fault_error", "u4"),
        ("fault_address", "u8"),  # linear address for #PF
        # the event being delivered through the IDT, as IDT-vectoring information (0: none)
        ("vectoring_info", "u4"),
        ("vectoring_error", "u4"),
        # counters and time
        ("retired", "u8"),  # instructions (one chunk of a REP instruction counts as one)
        ("limit", "u8"),  # the run loop returns when retired reaches it
        ("time_base_ns", "u8"),  # virtual ns at retired == 0, moved forward by HLT
        ("ns_per_instruction", "u8"),
        ("tsc_khz", "u8"),
        ("tsc_base", "u8"),  # added to the count derived from virtual time (WRMSR to the TSC)
        # host stop
        ("stop", "u4"),  # Stop
        ("stop_detail", "u8"),
        # bus accesses: see vmx.mmu.bus
        ("bus_kind", "u1"),  # Bus
        ("bus_size", "u1"),  # bytes
        ("bus_write", "u1"),
        ("bus_count", "u1"),  # answered accesses of this instruction
        ("bus_position", "u1"),  # how many of them it has used since it was restarted
        ("bus_address", "u8"),
        ("bus_value", "u8"),
        ("bus_log", "u8", (BUS_LOG,)),
        ("bus_elements", "u8"),  # elements of string instructions that used the bus, see vmx.cpu.string
        # translation
        ("tlb_bank", "u8"),  # host address of the bank for the current privilege
        ("tlb_context", "u8"),  # low 12 bits of tags that match
        ("tlb_global_context", "u8"),
        ("tlb_next_context", "u8"),
        ("fetch_page", "u8"),  # unused by the architecture: linear page | context of the last fetch
        ("fetch_host", "u8"),
        ("walk_gpa", "u8"),  # result of vmx.mmu.translate: guest-physical address
        ("walk_hpa", "u8"),  # and the physical address after EPT (equal without EPT)
        ("walk_references", "u8"),  # paging-structure references made so far, guest and EPT
        ("guest_walks", "u8"),
        (
            "device_gpa",
            "u8",
        ),  # guest-physical page that the hypervisor's emulator passes through EPT; -1: none
        ("code_changed", "u1"),  # a store hit the page being executed: leave the block
        # VMX
        ("vmx_on", "u1"),
        ("non_root", "u1"),
        ("python_hypervisor", "u1"),  # VM exits stop the run loop instead of going to HOST_RIP
        ("host_vmcs", "u8"),  # host address of the current VMCS region; 0: none
        ("vmcs_pointer", "u8"),  # its physical address (machine-code hypervisors)
        ("vmxon_pointer", "u8"),
        ("pin_controls", "u4"),  # copies of the current VMCS's controls while in non-root operation, else 0
        ("primary_controls", "u4"),
        ("secondary_controls", "u4"),
        ("exception_bitmap", "u4"),
        ("vpid", "u2"),
        ("eptp", "u8"),  # 0: EPT off
        ("tsc_offset", "u8"),
        ("preemption_deadline", "u8"),  # in retired instructions; all ones: none
        ("vm_exits", "u8"),
        # staged by whoever causes a VM exit, used and cleared by vmx.virt.exit.vm_exit
        ("exit_length", "u4"),  # bytes of the instruction
        ("exit_instruction_info", "u4"),
        ("exit_interruption_info", "u4"),
        ("exit_interruption_error", "u4"),
        ("exit_linear", "u8"),
        ("exit_physical", "u8"),
        # identity
        ("cpu_index", "u4"),
        ("apic_id", "u4"),
        # decode statistics: undecoded opcodes are counted (key: map << 8 | opcode ... see vmx.cpu.decode)
        ("undecoded", "u4", (7 * 256,)),
        # host addresses
        ("host_ram", "u8"),
        ("ram_low", "u8"),  # bytes of RAM from address 0
        ("ram_high", "u8"),  # bytes of RAM from 4 GiB
        ("host_page_flags", "u8"),  # one byte per RAM page, see PageFlag
        ("host_page_stamp", "u8"),  # one u4 per RAM page: decoded code of another stamp is stale
        ("host_tlb", "u8"),
        ("host_code_cache", "u8"),
        ("host_cpuid", "u8"),  # table of CPUID leaves
        ("host_vector_stubs", "u8"),  # table of native stubs for vector and x87 instructions
        ("memory_digest", "u8"),
        # arguments of a native stub (vmx.cpu.native.BLOCK), aligned to 64 bytes inside this space
        ("vector_block", "u1", (768,)),
        # the instruction that runs alone (handle_attention answered STEP), for after_step
        ("step_shadow", "u1"),  # blocking by STI or MOV SS that ends with it
        ("step_trap", "u1"),  # TF was set before it
        ("faulted_at", "u8"),  # cpu.retired when the last fault was delivered, plus 1
        ("spec_ctrl", "u8"),  # IA32_SPEC_CTRL
        ("passing", "u1"),  # the hypervisor lets one instruction through: RDMSR and WRMSR do not exit
        # staged by vmx.mmu.ept when a translation needs a VM exit (status EPT_EXIT)
        ("ept_reason", "u1"),  # 48 EPT violation, 49 EPT misconfiguration
        ("ept_qualification", "u8"),
        ("features", "u8"),  # what is offered beyond x86-64-v1: a mask of vmx.isa.features
        ("random_state", "u8"),  # of RDRAND and RDSEED: see vmx.cpu.extension
    ],
)

DECODED = struct(
    "Decoded",
    [
        ("op", "u2"),  # vmx.isa.operations
        ("code", "u1"),  # hot dispatch code of the interpreter; 0: by operation
        ("size", "u1"),  # operand size in bytes: 1, 2, 4, 8 (16 for vectors)
        ("length", "u1"),  # bytes of the instruction
        ("dst", "u1"),  # operand codes, see below
        ("src", "u1"),
        ("reg", "u1"),  # ModRM.reg with REX.R: segment, control or vector register number
        ("base", "u1"),
        ("index", "u1"),
        ("scale", "u1"),  # 0..3
        ("segment", "u1"),  # ES..GS or FLAT
        ("address_size", "u1"),  # bytes: 2, 4, 8
        ("modrm", "u1"),
        ("prefixes", "u1"),  # PREFIX_*
        ("rex", "u1"),
        ("displacement", "i4"),
        ("row", "u2"),  # row of the instruction table
        ("opcode", "u2"),  # map << 8 | opcode byte
        (
            "immediate",
            "i8",
        ),  # also a 64-bit displacement (MOV moffs); second immediate of ENTER and far pointers: bits 63:32
    ],
)

# operand codes: 0..15 general register, 16..19 AH CH DH BH
OPERAND_HIGH, OPERAND_MEMORY, OPERAND_IMMEDIATE, OPERAND_NONE = 16, 32, 33, 34

PREFIX_LOCK, PREFIX_REPNE, PREFIX_REP, PREFIX_OPERAND_SIZE, PREFIX_ADDRESS_SIZE, PREFIX_SEGMENT = (
    1,
    2,
    4,
    8,
    16,
    32,
)

# --- codes --------------------------------------------------------------------------------------------------


class Status(enum.IntEnum):
    """What an instruction's semantic function returns to the run loop."""

    OK = 0  # completed; the next instruction follows
    JUMP = 1  # completed; cpu.next_rip, the mode or pending events may have changed: leave the block
    FAULT = 2  # not completed: deliver cpu.fault_vector
    EXIT = 3  # a VM exit was made: the state is the host's now; nothing of the instruction remains to be done
    STOP = 4  # not completed: return to the host with cpu.stop; the instruction will be restarted
    TRAP_EXIT = 5  # completed, then a VM exit was made: the instruction counts as retired
    DELIVERED = 6  # an event was delivered: RIP is the handler's


OK, JUMP, FAULT, EXIT, STOP, TRAP_EXIT, DELIVERED = (int(s) for s in Status)


class Stop(enum.IntEnum):
    """Why the run loop returned to the host. Not the guest's business: compare ExitReason."""

    NONE = 0
    LIMIT = 1  # cpu.retired reached cpu.limit
    VM_EXIT = 2  # to the Python hypervisor; the VMCS holds the exit information
    PORT = 3  # cpu.bus_*: IN or OUT wants the platform
    MMIO = 4  # cpu.bus_*: a physical access outside RAM
    HALT = 5  # HLT (or MWAIT): nothing to do until an event
    ACKNOWLEDGE = 6  # an external interrupt is accepted: the platform must set cpu.interrupt_vector
    SHUTDOWN = 7  # triple fault outside VMX non-root operation
    MSR = 8  # cpu.bus_*: a model-specific register of the platform (local APIC)
    TASK_PRIORITY = 9  # CR8 changed: interrupt lines must be looked at again
    NOT_MODELLED = 10  # cpu.stop_detail says what (NotModelled)
    WAIT_FOR_SIPI = 11
    ENTRY_FAILED = 12  # VM entry by the Python hypervisor failed its checks
    BREAKPOINT = 13


class Bus(enum.IntEnum):
    PORT = 0
    MEMORY = 1
    MSR = 2


class NotModelled(enum.IntEnum):
    TASK_SWITCH = 1
    VIRTUAL_8086 = 2
    CALL_GATE_16 = 3
    HOST_WITHOUT_VECTOR_STUBS = 4
    FIVE_LEVEL_PAGING = 5
    SHUTDOWN_STATE = 6
    BUS_ACCESSES = 7  # more than BUS_LOG by one instruction


class PageFlag(enum.IntFlag):
    """One byte per page of guest RAM."""

    CODE = 1  # holds decoded instructions: a store must take the slow path
    DIRTY = 2  # written since last asked
    WATCHED = 4  # an observer wants to see stores


# --- architectural bits -------------------------------------------------------------------------------------

CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE = 1, 2, 4, 8, 16, 32
CR0_WP, CR0_AM, CR0_NW, CR0_CD, CR0_PG = 1 << 16, 1 << 18, 1 << 29, 1 << 30, 1 << 31
CR4_VME, CR4_PVI, CR4_TSD, CR4_DE, CR4_PSE, CR4_PAE, CR4_MCE, CR4_PGE = (1 << i for i in range(8))
CR4_PCE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_UMIP, CR4_LA57, CR4_VMXE = (1 << i for i in (8, 9, 10, 11, 12, 13))
CR4_FSGSBASE, CR4_PCIDE, CR4_OSXSAVE, CR4_SMEP, CR4_SMAP, CR4_PKE = (1 << i for i in (16, 17, 18, 20, 21, 22))
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11
FLAG_CF, FLAG_PF, FLAG_AF, FLAG_ZF, FLAG_SF, FLAG_TF, FLAG_IF, FLAG_DF, FLAG_OF = (
    1 << i for i in (0, 2, 4, 6, 7, 8, 9, 10, 11)
)
FLAG_IOPL, FLAG_NT, FLAG_RF, FLAG_VM, FLAG_AC, FLAG_VIF, FLAG_VIP, FLAG_ID = (
    3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21,
)  # fmt: skip
ARITHMETIC_FLAGS = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF

DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS, NP, SS_FAULT, GP, PF, MF, AC, MC, XM = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19,
)  # fmt: skip
VECTORS_WITH_ERROR_CODE = 1 << DF | 1 << TS | 1 << NP | 1 << SS_FAULT | 1 << GP | 1 << PF | 1 << AC

SHADOW_STI, SHADOW_MOV_SS, SHADOW_NMI = 1, 2, 8  # bits of "Interruptibility state"
ACTIVE, ACTIVITY_HLT, ACTIVITY_SHUTDOWN, ACTIVITY_WAIT_FOR_SIPI = range(4)

NEVER = -1  # as unsigned: a deadline that does not come


def new_record(layout) -> np.ndarray:
    """A zeroed record (shape (1,)), aligned to 64 bytes."""
    size = layout.size
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(layout.dtype)
