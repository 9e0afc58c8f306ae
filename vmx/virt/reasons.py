"""Basic exit reasons: the manual's numbers (appendix "VMX Basic Exit Reasons") and two spellings of each.

Members carry the names of exit_reasons.tsv beside this file; `linux_name` is what Linux prints for the same
number, so that exit tables can be laid beside those of KVM. Numbers that the manual reserves have no member.
"""

from enum import IntEnum


class ExitReason(IntEnum):
    """Bits 15:0 of the VMCS field "exit reason"."""

    EXCEPTION_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT = 3
    SIPI = 4
    IO_SMI = 5
    SMI = 6
    INTERRUPT_WINDOW = 7
    NMI_WINDOW = 8
    TASK_SWITCH = 9
    CPUID = 10
    GETSEC = 11
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDPMC = 15
    RDTSC = 16
    RSM = 17
    VMCALL = 18
    VMCLEAR = 19
    VMLAUNCH = 20
    VMPTRLD = 21
    VMPTRST = 22
    VMREAD = 23
    VMRESUME = 24
    VMWRITE = 25
    VMXOFF = 26
    VMXON = 27
    CR_ACCESS = 28
    DR_ACCESS = 29
    IO_INSTRUCTION = 30
    RDMSR = 31
    WRMSR = 32
    VMENTRY_FAILURE_GUEST_STATE = 33
    VMENTRY_FAILURE_MSR = 34
    MWAIT = 36
    MONITOR_TRAP_FLAG = 37
    MONITOR = 39
    PAUSE = 40
    VMENTRY_FAILURE_MCA = 41
    TPR_THRESHOLD = 43
    APIC_ACCESS = 44
    VIRTUALIZED_EOI = 45
    GDTR_IDTR_ACCESS = 46
    LDTR_TR_ACCESS = 47
    EPT_VIOLATION = 48
    EPT_MISCONFIGURATION = 49
    INVEPT = 50
    RDTSCP = 51
    VMX_PREEMPTION_TIMER_EXPIRED = 52
    INVVPID = 53
    WBINVD = 54
    XSETBV = 55
    APIC_WRITE = 56
    RDRAND = 57
    INVPCID = 58
    VMFUNC = 59
    ENCLS = 60
    RDSEED = 61
    PML_LOGFULL = 62
    XSAVES = 63
    XRSTORS = 64
    PCONFIG = 65
    SPP = 66
    UMWAIT = 67
    TPAUSE = 68
    LOADIWKEY = 69
    ENCLV = 70
    ENQCMD_PASID = 72
    ENQCMDS_PASID = 73
    BUS_LOCK = 74
    INSTRUCTION_TIMEOUT = 75
    SEAMCALL = 76
    TDCALL = 77
    RDMSRLIST = 78
    WRMSRLIST = 79
    URDMSR = 80
    UWRMSR = 81
    RDMSR_IMM = 84
    WRMSRNS = 85

    @property
    def linux_name(self) -> str:
        """The name that Linux's tracepoints and `perf kvm stat` print."""
        return _LINUX_NAMES.get(self.value, self.name)


# Only where Linux's spelling differs from the manual-derived name above.
_LINUX_NAMES = {
    3: "INIT_SIGNAL",
    4: "SIPI_SIGNAL",
    26: "VMOFF",
    27: "VMON",
    31: "MSR_READ",
    32: "MSR_WRITE",
    33: "INVALID_STATE",
    34: "MSR_LOAD_FAIL",
    36: "MWAIT_INSTRUCTION",
    39: "MONITOR_INSTRUCTION",
    40: "PAUSE_INSTRUCTION",
    41: "MCE_DURING_VMENTRY",
    43: "TPR_BELOW_THRESHOLD",
    45: "EOI_INDUCED",
    46: "GDTR_IDTR",
    47: "LDTR_TR",
    49: "EPT_MISCONFIG",
    52: "PREEMPTION_TIMER",
    62: "PML_FULL",
    75: "NOTIFY",
}


def linux_name(reason: int) -> str:
    """Linux's spelling for any basic exit reason; a number without a name prints as `REASON_<number>`."""
    try:
        return ExitReason(reason).linux_name
    except ValueError:
        return f"REASON_{reason}"
