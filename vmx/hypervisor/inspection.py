"""Looking at a guest that does not run: its registers wherever they are, its memory by linear address.

While a guest is between a VM exit and the next entry its registers are in the VMCS, otherwise in the processor.
Nothing here changes anything: linear addresses are walked by the plain-Python walker, and accessed flags stay.
"""

from vmx.cpu.disassembly import describe
from vmx.hypervisor.vcpu import GuestCpu
from vmx.machine.memory import Memory
from vmx.machine.processor import REGISTERS, SEGMENTS, VirtualCpu
from vmx.mmu import twin

CODE_L, CODE_DB = 1 << 13, 1 << 14
MAX_LENGTH = 15


class Inspector:
    """One virtual CPU's view, root or guest."""

    def __init__(self, processor: VirtualCpu, memory: Memory, guest: GuestCpu | None):
        self.processor, self.memory = processor, memory
        self.guest = guest if guest is not None and not int(processor.state["non_root"]) else None

    def _field(self, name: str) -> int:
        if self.guest is not None:
            return self.guest.read({"efer": "guest_ia32_efer"}.get(name, f"guest_{name}"))
        return int(self.processor.state[name])

    def _segment(self, name: str, part: str) -> int:
        if self.guest is not None:
            return self.guest.read(f"guest_{name}_{'access_rights' if part == 'access' else part}")
        return int(self.processor.state["segments"][SEGMENTS.index(name)][part])

    @property
    def registers(self) -> dict[str, int]:
        """General registers, RIP, RFLAGS, control registers, EFER and selectors; unsigned."""
        values = self.processor.registers
        if self.guest is not None:
            values |= {name: self.guest.gpr(i) for i, name in enumerate(REGISTERS)}
            values |= {name: self._field(name) for name in ("rip", "rflags", "cr0", "cr3", "cr4", "efer")}
            values |= {name: self._segment(name, "selector") for name in SEGMENTS}
        return values

    @property
    def code_mode(self) -> int:
        """0, 1, 2: 16-, 32-, 64-bit code."""
        access = self._segment("cs", "access")
        if self._field("efer") >> 10 & 1 and access & CODE_L:
            return 2
        return 1 if access & CODE_DB else 0

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self._segment("ss", "access") >> 5 & 3 if self._field("cr0") & 1 else 0

    @property
    def mode(self) -> str:
        """In words: "64-bit", "protected (32-bit)", "real (16-bit)" and so on."""
        width = (16, 32, 64)[self.code_mode]
        if not self._field("cr0") & 1:
            return f"real ({width}-bit)"
        if self._field("efer") >> 10 & 1:
            return "64-bit" if width == 64 else f"compatibility ({width}-bit)"
        return f"protected ({width}-bit)"

    def translate(self, linear: int) -> twin.Result:
        """The walk of a linear address for a supervisor's read: a vmx.mmu.twin.Result, with every step."""
        state = self.processor.state
        pdptes = tuple(int(v) for v in state["pdpte"])
        if self.guest is not None:
            pdptes = tuple(self.guest.read(f"guest_pdpte{i}") for i in range(4))
        eptp = self.guest.read("eptp") if self.guest is not None else int(state["eptp"])
        walk_state = twin.State(
            read=self._read_entry,
            cr0=self._field("cr0") & ~(1 << 16),
            cr3=self._field("cr3"),
            cr4=self._field("cr4") & ~(1 << 20 | 1 << 21),
            efer=self._field("efer"),
            pdptes=pdptes,
            eptp=eptp,
        )
        return twin.walk(walk_state, linear, twin.READ)

    def _read_entry(self, address: int) -> int:
        if not self.memory.is_ram(address, 8):
            return (1 << 64) - 1
        return int.from_bytes(self.memory.read(address, 8), "little")

    def read(self, linear: int, length: int) -> bytes:
        """Up to `length` bytes of guest memory at a linear address; shorter where a page is not there."""
        data = b""
        while len(data) < length:
            result = self.translate(linear + len(data) & (1 << 64) - 1)
            part = min(length - len(data), 4096 - (result.hpa & 4095))
            if result.kind != "ok" or not self.memory.is_ram(result.hpa, part):
                break
            data += self.memory.read(result.hpa, part)
        return data

    def code_at_rip(self, length: int = MAX_LENGTH) -> bytes:
        """The bytes at RIP."""
        linear = self._field("rip")
        if self.code_mode != 2:
            linear = (linear + self._segment("cs", "base")) & 0xFFFF_FFFF
        return self.read(linear, length)

    @property
    def instruction(self) -> str:
        """The instruction at RIP as text."""
        return describe(self.code_at_rip(), self.code_mode, self._field("rip"))

    def where(self) -> str:
        """RIP, mode and instruction, for messages."""
        return (
            f"RIP {self._field('rip'):#x}, {self.mode} mode, CPL {self.cpl}, instruction {self.instruction}"
        )
