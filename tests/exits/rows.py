"""The exit conditions as data: one row per condition, a few instructions of a 64-bit guest, and what the exit says.

The line that starts with `>` is the instruction that exits. `on` and `off` are the controls of the two runs;
without `off` the exit is unconditional. In both runs the guest must end with the same registers and memory. The
assembled bytes are in code.json (see assemble.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from vmx.virt.reasons import ExitReason as R

CODE, HANDLERS, IDT, IDT_POINTER, LOG, SCRATCH = (
    0x10_0000,
    0x11_0000,
    0x12_0000,
    0x12_1000,
    0x13_0000,
    0x14_0000,
)
UNMAPPED = 1 << 32  # a linear address that the boot page tables do not map
INTERRUPT_VECTOR = 0x40
TS, TSD = 1 << 3, 1 << 2
VALID, ERROR_CODE = 1 << 31, 1 << 11
HARDWARE, SOFTWARE_INTERRUPT, PRIVILEGED, SOFTWARE = 3 << 8, 4 << 8, 5 << 8, 6 << 8


@dataclass
class Row:
    """One exit condition; every field that is None is not compared."""

    name: str
    asm: str
    reason: R
    qualification: int | None = 0
    on: dict = field(default_factory=dict)
    off: dict | None = None
    fields_on: dict = field(default_factory=dict)  # VMCS fields of the run with the condition on
    bitmap: int = 0  # exception bitmap of the run with the condition on
    info: int | None = None  # VM-exit instruction information
    linear: int | None = None
    physical: int | None = None
    interruption: int | None = None
    error: int | None = None
    vectoring: int | None = None
    length: bool = True  # the exit reports the instruction's length
    prepare: Callable = lambda machine: None  # both runs
    prepare_on: Callable = lambda machine: None
    prepare_off: Callable = lambda machine: None
    count: int = 1
    rip: str = "at"  # the guest RIP of the exit: "at" the instruction, "after" it, or "any"


def switch(name, **other):
    """Controls of a run with a control on, and of one with it off."""
    return {"on": {name: True, **other}, "off": {name: False, **other}}


def memory_info(*, base, scale=0, index=None, register=0, segment=3):
    """VM-exit instruction information of a 64-bit memory operand."""
    no_index = 1 << 22 if index is None else index << 18
    return scale | 2 << 7 | segment << 15 | no_index | base << 23 | register << 28


def interrupt_at(ns, vector=INTERRUPT_VECTOR):
    """An interrupt message reaches the local APIC at a virtual time."""

    def prepare(machine):
        lapic = machine.platform.interrupts.lapics[0]
        lapic.svr |= 0x100
        machine.platform.clock.set_event("test", ns, lambda now: lapic.receive(0, vector, False))

    return prepare


def nmi_at(ns):
    def prepare(machine):
        machine.platform.clock.set_event("test", ns, lambda now: machine._nmi(0))

    return prepare


def set_cr0_ts(machine):
    machine.processors[0].view.cr0 = int(machine.processors[0].view.cr0) | TS


def ports_pass(*ports):
    return lambda machine: machine.hypervisor.intercept_ports(ports, False)


def intercept(msr):
    return lambda machine: machine.hypervisor.intercept_msr(msr)


WAIT = "1: test %r14, %r14; jz 1b"

ROWS = [
    # --- instructions that always exit ---
    Row("cpuid", "mov $1, %eax; xor %ecx, %ecx\n> cpuid", R.CPUID),
    Row("invd", "> invd", R.INVD),
    Row("xsetbv", "mov %cr4, %rax; bts $18, %rax; mov %rax, %cr4; mov $3, %eax; xor %edx, %edx; xor %ecx, %ecx\n"
        "> xsetbv\nxgetbv", R.XSETBV),
    Row("xsetbv_refused", "mov %cr4, %rax; bts $18, %rax; mov %rax, %cr4; lea 2f(%rip), %r15; mov $2, %eax\n"
        "xor %edx, %edx; xor %ecx, %ecx\n> xsetbv\n2:", R.XSETBV),
    Row("vmcall", "lea 2f(%rip), %r15\n> vmcall\n2:", R.VMCALL),
    Row("vmlaunch", "lea 2f(%rip), %r15\n> vmlaunch\n2:", R.VMLAUNCH),
    Row("vmxoff", "lea 2f(%rip), %r15\n> vmxoff\n2:", R.VMXOFF),
    Row("vmptrld", "mov $0x140000, %ebx; lea 2f(%rip), %r15\n> vmptrld 8(%rbx)\n2:", R.VMPTRLD, 8,
        info=memory_info(base=3)),
    # --- instructions with a control ---
    Row("hlt", "sti\n> hlt", R.HLT, **switch("HLT_EXITING"), prepare=interrupt_at(100_000)),
    Row("invlpg", "mov $0x140000, %ebx\n> invlpg 0x123(%rbx)", R.INVLPG, 0x140123, **switch("INVLPG_EXITING")),
    Row("invpcid", "mov $0x140000, %ebx; xor %ecx, %ecx; mov $2, %edx\n> invpcid 0x10(%rbx,%rcx,2), %rdx",
        R.INVPCID, 0x10, **switch("INVLPG_EXITING"), info=memory_info(base=3, scale=1, index=1, register=2)),
    Row("rdtsc", "> rdtsc", R.RDTSC, **switch("RDTSC_EXITING")),
    Row("rdtscp", "> rdtscp", R.RDTSCP, **switch("RDTSC_EXITING")),
    Row("rdpmc", "lea 2f(%rip), %r15; xor %ecx, %ecx\n> rdpmc\n2:", R.RDPMC, **switch("RDPMC_EXITING")),
    Row("pause", "> pause", R.PAUSE, **switch("PAUSE_EXITING")),
    Row("monitor", "xor %ecx, %ecx; xor %edx, %edx; mov $0x140000, %eax\n> monitor", R.MONITOR,
        **switch("MONITOR_EXITING")),
    Row("mwait", "xor %ecx, %ecx; xor %eax, %eax\n> mwait", R.MWAIT, **switch("MWAIT_EXITING")),
    Row("wbinvd", "> wbinvd", R.WBINVD, **switch("WBINVD_EXITING")),
    # --- control registers ---
    Row("mov_to_cr3", "mov %cr3, %rdx\n> mov %rdx, %cr3", R.CR_ACCESS, 3 | 2 << 8, **switch("CR3_LOAD_EXITING")),
    Row("mov_from_cr3", "> mov %cr3, %r9", R.CR_ACCESS, 3 | 1 << 4 | 9 << 8, **switch("CR3_STORE_EXITING")),
    Row("mov_to_cr8", "mov $5, %ebx\n> mov %rbx, %cr8\nmov %cr8, %rcx", R.CR_ACCESS, 8 | 3 << 8,
        **switch("CR8_LOAD_EXITING", CR8_STORE_EXITING=False)),
    Row("mov_to_cr8_refused", "lea 2f(%rip), %r15; mov $0x15, %ebx\n> mov %rbx, %cr8\n2: mov %cr8, %rcx",
        R.CR_ACCESS, 8 | 3 << 8, **switch("CR8_LOAD_EXITING", CR8_STORE_EXITING=False)),
    Row("mov_from_cr8", "mov $7, %ebx; mov %rbx, %cr8\n> mov %cr8, %rsi", R.CR_ACCESS, 8 | 1 << 4 | 6 << 8,
        **switch("CR8_STORE_EXITING", CR8_LOAD_EXITING=False)),
    Row("mov_to_cr0", "mov %cr0, %rax; or $8, %rax\n> mov %rax, %cr0\nmov %cr0, %rbx", R.CR_ACCESS, 0,
        off={}, fields_on={"cr0_guest_host_mask": TS | 1 << 5}),
    Row("mov_to_cr0_paging_off", "lea 2f(%rip), %r15; mov %cr0, %rax; btr $31, %rax\n> mov %rax, %cr0\n"
        "2: mov %cr0, %rbx", R.CR_ACCESS, 0, off={},
        fields_on={"cr0_guest_host_mask": 1 << 31 | 1 << 5}),
    Row("clts", "> clts\nmov %cr0, %rbx", R.CR_ACCESS, 2 << 4, off={}, prepare=set_cr0_ts,
        fields_on={"cr0_guest_host_mask": TS | 1 << 5, "cr0_read_shadow": 0x8000_0039}),
    Row("lmsw", "mov $0xA, %eax\n> lmsw %ax\nmov %cr0, %rbx", R.CR_ACCESS, 3 << 4 | 0xA << 16, off={},
        fields_on={"cr0_guest_host_mask": TS | 1 << 5}),
    Row("lmsw_memory", "mov $0x140000, %ebx; movw $8, 4(%rbx)\n> lmsw 4(%rbx)\nmov %cr0, %rcx", R.CR_ACCESS,
        3 << 4 | 1 << 6 | 8 << 16, off={}, linear=SCRATCH + 4, fields_on={"cr0_guest_host_mask": TS | 1 << 5}),
    Row("mov_to_cr4", "mov %cr4, %rax; or $4, %rax\n> mov %rax, %cr4\nmov %cr4, %rbx", R.CR_ACCESS, 4, off={},
        fields_on={"cr4_guest_host_mask": TSD | 1 << 13}),
    Row("mov_to_cr4_pae_off", "lea 2f(%rip), %r15; xor %eax, %eax\n> mov %rax, %cr4\n2: mov %cr4, %rbx",
        R.CR_ACCESS, 4, off={}, fields_on={"cr4_guest_host_mask": 1 << 5 | 1 << 13}),
    Row("mov_to_cr4_vmxe", "lea 2f(%rip), %r15; mov %cr4, %rax; bts $13, %rax\n> mov %rax, %cr4\n2: mov %cr4, %rbx",
        R.CR_ACCESS, 4),
    # --- debug registers ---
    Row("mov_to_dr", "mov $0x140000, %r11d\n> mov %r11, %db3", R.DR_ACCESS, 3 | 11 << 8, **switch("MOV_DR_EXITING")),
    Row("mov_from_dr", "> mov %db7, %rdx", R.DR_ACCESS, 7 | 1 << 4 | 2 << 8, **switch("MOV_DR_EXITING")),
    # --- descriptor tables ---
    Row("sgdt", "mov $0x140000, %ebx\n> sgdt 2(%rbx)", R.GDTR_IDTR_ACCESS, 2, **switch("DESCRIPTOR_TABLE_EXITING"),
        info=memory_info(base=3)),
    Row("sidt", "mov $0x140000, %ebx\n> sidt 2(%rbx)", R.GDTR_IDTR_ACCESS, 2, **switch("DESCRIPTOR_TABLE_EXITING"),
        info=memory_info(base=3) | 1 << 28),
    Row("lgdt", "mov $0x140000, %ebx; sgdt (%rbx)\n> lgdt (%rbx)", R.GDTR_IDTR_ACCESS, 0, count=2,
        **switch("DESCRIPTOR_TABLE_EXITING"), info=memory_info(base=3) | 2 << 28),
    Row("sldt", "> sldt %eax", R.LDTR_TR_ACCESS, 0, **switch("DESCRIPTOR_TABLE_EXITING"), info=None),
    Row("str", "mov $0x140000, %ebx\n> str 6(%rbx)", R.LDTR_TR_ACCESS, 6, **switch("DESCRIPTOR_TABLE_EXITING"),
        info=memory_info(base=3) | 1 << 28),
    Row("lldt", "xor %eax, %eax\n> lldt %ax", R.LDTR_TR_ACCESS, 0, **switch("DESCRIPTOR_TABLE_EXITING")),
    # --- ports ---
    Row("out_immediate", "mov $0x5A, %al\n> out %al, $0x80", R.IO_INSTRUCTION, 1 << 6 | 0x80 << 16,
        **switch("UNCONDITIONAL_IO_EXITING")),
    Row("out_dx", "mov $0x80, %dx; mov $0x1234, %eax\n> out %eax, %dx", R.IO_INSTRUCTION, 3 | 0x80 << 16,
        **switch("UNCONDITIONAL_IO_EXITING")),
    Row("in_dx", "mov $0x61, %dx; mov $-1, %rax\n> in %dx, %al", R.IO_INSTRUCTION, 1 << 3 | 0x61 << 16,
        **switch("UNCONDITIONAL_IO_EXITING")),
    Row("in_immediate_word", "mov $-1, %rax\n> in $0x60, %ax", R.IO_INSTRUCTION, 1 | 1 << 3 | 1 << 6 | 0x60 << 16,
        **switch("UNCONDITIONAL_IO_EXITING")),
    Row("ins", "mov $0x61, %dx; mov $0x140010, %edi\n> insb", R.IO_INSTRUCTION, 1 << 3 | 1 << 4 | 0x61 << 16,
        **switch("UNCONDITIONAL_IO_EXITING"), linear=SCRATCH + 0x10, info=2 << 7 | 0 << 15),
    Row("rep_outs", "mov $0xE9, %dx; lea 2f(%rip), %rsi; mov $5, %ecx\n> rep outsb\njmp 3f; 2: .ascii \"hello\"; 3:",
        R.IO_INSTRUCTION, 1 << 4 | 1 << 5 | 0xE9 << 16, **switch("UNCONDITIONAL_IO_EXITING"), info=2 << 7 | 3 << 15),
    Row("rep_insw", "mov $0x70, %dx; mov $0x140010, %edi; mov $3, %ecx\n> rep insw", R.IO_INSTRUCTION,
        1 | 1 << 3 | 1 << 4 | 1 << 5 | 0x70 << 16, **switch("UNCONDITIONAL_IO_EXITING"), linear=SCRATCH + 0x10),
    Row("io_bitmap_low", "mov $3, %al\n> out %al, $0x80", R.IO_INSTRUCTION, 1 << 6 | 0x80 << 16,
        on={"USE_IO_BITMAPS": True}, off={"USE_IO_BITMAPS": True}, prepare_off=ports_pass(0x80)),
    Row("io_bitmap_high", "mov $0xFEED, %dx\n> in %dx, %ax", R.IO_INSTRUCTION, 1 | 1 << 3 | 0xFEED << 16,
        on={"USE_IO_BITMAPS": True}, off={"USE_IO_BITMAPS": True}, prepare_on=ports_pass(0xFEED),
        prepare_off=ports_pass(0xFEED, 0xFEEE)),
    Row("io_bitmap_wraps", "mov $0xFFFF, %dx\n> in %dx, %ax", R.IO_INSTRUCTION, 1 | 1 << 3 | 0xFFFF << 16,
        on={"USE_IO_BITMAPS": True}, prepare_on=ports_pass(0xFFFF, 0)),
    # --- model-specific registers ---
    Row("rdmsr", "mov $0x277, %ecx\n> rdmsr", R.RDMSR, off={}, prepare_on=intercept(0x277)),
    Row("wrmsr", "mov $0xC0000102, %ecx; mov $0x1234, %eax; xor %edx, %edx\n> wrmsr\nrdmsr", R.WRMSR, off={},
        prepare_on=lambda m: m.hypervisor.intercept_msr(0xC000_0102, read=False)),
    Row("rdmsr_without_bitmaps", "mov $0xC0000080, %ecx\n> rdmsr", R.RDMSR, **{
        "on": {"USE_MSR_BITMAPS": False}, "off": {"USE_MSR_BITMAPS": True}}),
    Row("wrmsr_without_bitmaps", "mov $0x174, %ecx; mov $8, %eax; xor %edx, %edx\n> wrmsr", R.WRMSR, **{
        "on": {"USE_MSR_BITMAPS": False}, "off": {"USE_MSR_BITMAPS": True}}),
    Row("rdmsr_out_of_range", "lea 2f(%rip), %r15; mov $0x40000000, %ecx\n> rdmsr\n2:", R.RDMSR),
    Row("wrmsr_out_of_range", "lea 2f(%rip), %r15; mov $0x40000000, %ecx\n> wrmsr\n2:", R.WRMSR),
    Row("rdmsr_apic_base", "mov $0x1B, %ecx\n> rdmsr", R.RDMSR),
    # --- EPT ---
    Row("ept_read", "mov $0xFEE00030, %ebx\n> mov (%rbx), %eax", R.EPT_VIOLATION, 0x181, length=False,
        linear=0xFEE0_0030, physical=0xFEE0_0030),
    Row("ept_write", "mov $0xFEE00080, %ebx; mov $0x20, %eax\n> mov %eax, (%rbx)\nmov %cr8, %rcx", R.EPT_VIOLATION,
        0x182, length=False, linear=0xFEE0_0080, physical=0xFEE0_0080),
    Row("ept_copy", "mov $0xFEC00000, %edi; mov $0xFEE00030, %esi\n> movsl", R.EPT_VIOLATION, 0x181, length=False,
        linear=0xFEE0_0030, physical=0xFEE0_0030),
    Row("ept_beyond_ram", "mov $0x40001000, %ebx\n> mov (%rbx), %rax", R.EPT_VIOLATION, 0x181, length=False,
        physical=0x4000_1000),
    # --- exceptions ---
    Row("ud", "lea 2f(%rip), %r15\n> ud2\n2:", R.EXCEPTION_NMI, off={}, bitmap=1 << 6, length=False,
        interruption=VALID | HARDWARE | 6),
    Row("de", "lea 2f(%rip), %r15; xor %ebx, %ebx\n> div %ebx\n2:", R.EXCEPTION_NMI, off={}, bitmap=1, length=False,
        interruption=VALID | HARDWARE | 0),
    Row("bp", "> int3", R.EXCEPTION_NMI, off={}, bitmap=1 << 3, interruption=VALID | SOFTWARE | 3),
    Row("int1", "> .byte 0xF1", R.EXCEPTION_NMI, off={}, bitmap=1 << 1, interruption=VALID | PRIVILEGED | 1),
    Row("db_trap", "pushfq; orl $0x100, (%rsp); popfq\n> nop\npushfq; andl $~0x100, (%rsp); popfq",
        R.EXCEPTION_NMI, 1 << 14, off={}, bitmap=1 << 1, length=False, rip="after", count=4,
        interruption=VALID | HARDWARE | 1),
    Row("gp", "lea 2f(%rip), %r15; mov $0x1234, %eax\n> mov %eax, %ds\n2:", R.EXCEPTION_NMI, off={}, bitmap=1 << 13,
        length=False, interruption=VALID | HARDWARE | ERROR_CODE | 13, error=0x1234),
    Row("pf", "lea 2f(%rip), %r15; mov $0x100000008, %rbx\n> mov %eax, (%rbx)\n2:", R.EXCEPTION_NMI, UNMAPPED + 8,
        off={}, bitmap=1 << 14, length=False, interruption=VALID | HARDWARE | ERROR_CODE | 14, error=2),
    Row("pf_match", "lea 2f(%rip), %r15; mov $0x100000008, %rbx\n> mov (%rbx), %eax\n2:", R.EXCEPTION_NMI,
        UNMAPPED + 8, off={}, bitmap=1 << 14, length=False, error=0,
        interruption=VALID | HARDWARE | ERROR_CODE | 14, fields_on={"page_fault_error_code_mask": 2}),
    Row("pf_inverted", "lea 2f(%rip), %r15; mov $0x100000008, %rbx\n> mov (%rbx), %eax\n2:", R.EXCEPTION_NMI,
        UNMAPPED + 8, off={}, bitmap=0, length=False, error=0, interruption=VALID | HARDWARE | ERROR_CODE | 14,
        fields_on={"page_fault_error_code_mask": 2, "page_fault_error_code_match": 2}),
    Row("np_during_int", "lea 2f(%rip), %r15\n> int $0x50\n2:", R.EXCEPTION_NMI, off={}, bitmap=1 << 11,
        interruption=VALID | HARDWARE | ERROR_CODE | 11, error=0x50 << 3 | 2,
        vectoring=VALID | SOFTWARE_INTERRUPT | 0x50),
    Row("np_during_de", "lea 2f(%rip), %r15; movb $0x0E, 5(%r13); xor %ebx, %ebx\n> div %ebx\n2:", R.EXCEPTION_NMI,
        off={}, bitmap=1 << 11, length=False, interruption=VALID | HARDWARE | ERROR_CODE | 11, error=3,
        vectoring=VALID | HARDWARE | 0),
    Row("df", "lea 2f(%rip), %r15; movb $0x0E, 5(%r13); xor %ebx, %ebx\n> div %ebx\n2:", R.EXCEPTION_NMI, off={},
        bitmap=1 << 8, length=False, interruption=VALID | HARDWARE | ERROR_CODE | 8, error=0, vectoring=0),
    # --- events ---
    Row("nmi", f"> {WAIT}", R.EXCEPTION_NMI, **switch("NMI_EXITING"), length=False, rip="any", prepare=nmi_at(50_000),
        interruption=VALID | 2 << 8 | 2),
]  # fmt: skip

# What the tests of test_events.py and test_stops.py run.
OTHER = {
    "wait": f"sti\n{WAIT}",
    "window": "sti; nop; nop\n> nop\nnop",
    "spin": "mov $200, %ecx; 1: dec %ecx; jnz 1b",
    "halt_loop": f"sti; hlt; {WAIT}",
    "read_cr0": "mov %cr0, %rax; mov %cr4, %rbx; smsw %ecx",
    "write_cr3": "mov %cr3, %rax; mov %rax, %cr3",
    "triple": "mov $0x140000, %ebx; movq $0, (%rbx); movq $0, 8(%rbx); lidt (%rbx)\n> ud2",
    "cpuid_in_trap_mode": "pushfq; orl $0x100, (%rsp); xor %eax, %eax; xor %ecx, %ecx; popfq; cpuid\n"
    "pushfq; andl $~0x100, (%rsp); popfq",
    "cpuid_twice": "mov $0x11, %r12d; xor %eax, %eax; cpuid; mov $1, %eax; cpuid",
    "touch_ram": "mov $0x200000, %ebx; mov (%rbx), %rax; add $1, %rax; mov %rax, (%rbx)",
    "undefined_rdtscp": "lea 2f(%rip), %r15; rdtscp; 2: mov $0x80000001, %eax; cpuid",
    "privileged": "xor %eax, %eax; cpuid",
}

# Handlers: 256 stubs of 16 bytes, then one body that logs vector, error code, RIP, RFLAGS and CR2.
# R15, when not 0, is where to go on after a fault; R14 becomes the vector of an interrupt.
HANDLER_BODY = """
common: push %rax; push %rbx
mov $0x130000, %rbx
add (%rbx), %rbx
mov 16(%rsp), %rax; mov %rax, 8(%rbx)
mov 24(%rsp), %rax; mov %rax, 16(%rbx)
mov 32(%rsp), %rax; mov %rax, 24(%rbx)
mov 48(%rsp), %rax; mov %rax, 32(%rbx)
mov %cr2, %rax; mov %rax, 40(%rbx)
addq $40, 0x130000
cmpb $32, 16(%rsp); jb 1f; movzbq 16(%rsp), %r14; 1:
cmpb $2, 16(%rsp); jne 1f; mov $2, %r14; 1:
test %r15, %r15; jz 1f; mov %r15, 32(%rsp); xor %r15, %r15; 1:
pop %rbx; pop %rax; add $16, %rsp; iretq
"""
