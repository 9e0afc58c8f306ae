"""Guard bytes around everything that guest-controlled addresses and indices reach in host memory."""

import mmap
from types import SimpleNamespace

import numpy as np

from vmx.hypervisor import machine as machine_module
from vmx.machine import memory as memory_module
from vmx.machine import processor as processor_module

GUARD = 1 << 16
PATTERN = 0xA5


class Guards:
    """Machines made after `install` have guard bytes around guest RAM, its page flags and stamps, the TLB, the
    code cache and the CPUID table. One machine at a time: `start` once it is made, then `touched`.
    """

    def __init__(self):
        self._whole: dict[str, tuple[np.ndarray, int, int]] = {}  # array, first and last byte in use
        self._tables = b""

    def install(self) -> None:
        """Replace the functions that make these arrays."""

        def mapping(descriptor, size):
            whole = mmap.mmap(descriptor, size + 2 * GUARD)
            view = np.frombuffer(whole, np.uint8)
            view[:GUARD] = view[-GUARD:] = PATTERN
            self._whole["guest RAM"] = view, GUARD, GUARD + size
            return memoryview(whole)[GUARD : GUARD + size]

        memory_module.mmap = SimpleNamespace(mmap=mapping)
        guards = self

        class GuardedMemory(memory_module.Memory):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.page_flags = guards._between("page flags", self.page_flags)
                self.page_stamps = guards._between("page stamps", self.page_stamps)

        machine_module.Memory = GuardedMemory
        for name in ("new_tlb", "new_code_cache", "cpuid_table"):
            setattr(processor_module, name, self._guarded(name, getattr(processor_module, name)))

    def _guarded(self, name, make):
        return lambda *arguments, **options: self._between(name, make(*arguments, **options))

    def _between(self, name: str, array: np.ndarray) -> np.ndarray:
        whole = np.full(array.nbytes + 2 * GUARD, PATTERN, np.uint8)
        first = GUARD - (whole.ctypes.data + GUARD) % 64  # on a cache line, as these arrays are
        inner = whole[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
        inner[...] = array
        self._whole[name] = whole, first, first + array.nbytes
        return inner

    def start(self, machine) -> None:
        """The machine is made and has not run."""
        self._tables = self._private(machine)

    @staticmethod
    def _private(machine) -> bytes:
        """The hypervisor's bitmaps and EPT: all of the private memory but the VMCS, which exits write."""
        if machine.hypervisor is None:
            return b""
        memory, vmcs = machine.memory, int(machine.processors[0].view.vmcs_pointer)
        pages = range(memory.private_base, memory.private_base + memory.private_size, 4096)
        return b"".join(memory.read(page, 4096) for page in pages if page != vmcs)

    def touched(self, machine) -> list[str]:
        """Names of what was written to and must not have been."""
        names = [
            name
            for name, (whole, first, last) in self._whole.items()
            if (whole[:first] != PATTERN).any() or (whole[last:] != PATTERN).any()
        ]
        if self._private(machine) != self._tables:
            names.append("the hypervisor's EPT and bitmaps")
        return names
