"""Guard bytes around everything that guest-controlled addresses and indices reach in host memory."""

import mmap
from types import SimpleNamespace

import numpy as np

from vmx.machine import memory as memory_module
from vmx.state.memory import host_address

GUARD = 1 << 16
PATTERN = 0xA5


class Guards:
    """Machines made after `install` have guard bytes around guest RAM and the private part behind it.

    `watch` moves a machine's other arrays between guards; `check` says which guard was written to.
    """

    def __init__(self):
        self.whole: dict[str, np.ndarray] = {}
        self._private: bytes | None = None

    def install(self) -> None:
        def mapping(descriptor, size):
            """In the place of mmap.mmap: the middle of a larger mapping."""
            whole = mmap.mmap(descriptor, size + 2 * GUARD)
            view = np.frombuffer(whole, np.uint8)
            view[:GUARD] = view[-GUARD:] = PATTERN
            self.whole = {"guest RAM": view}
            return memoryview(whole)[GUARD : GUARD + size]

        memory_module.mmap = SimpleNamespace(mmap=mapping)

    def _between(self, name: str, array: np.ndarray) -> np.ndarray:
        whole = np.full(array.nbytes + 2 * GUARD, PATTERN, np.uint8)
        inner = whole[GUARD:-GUARD].view(array.dtype).reshape(array.shape)
        inner[...] = array
        self.whole[name] = whole
        return inner

    def watch(self, machine) -> None:
        cpu, memory = machine.processors[0], machine.memory
        memory.page_flags = self._between("page flags", memory.page_flags)
        memory.page_stamps = self._between("page stamps", memory.page_stamps)
        cpu._tlb = self._between("TLB", cpu._tlb)
        cpu._code_cache = self._between("code cache", cpu._code_cache)
        cpu._cpuid = self._between("CPUID table", cpu._cpuid)
        view = cpu.view
        view.host_page_flags, view.host_page_stamp = (
            host_address(memory.page_flags),
            host_address(memory.page_stamps),
        )
        view.host_tlb, view.host_code_cache = host_address(cpu._tlb), host_address(cpu._code_cache)
        view.host_cpuid = host_address(cpu._cpuid)
        self._private = self._tables(machine)

    @staticmethod
    def _tables(machine) -> bytes:
        """The hypervisor's bitmaps and EPT: all of the private memory but the VMCS, which exits write."""
        hypervisor = machine.hypervisor
        if hypervisor is None:
            return b""
        memory = machine.memory
        vmcs = machine.processors[0].view.vmcs_pointer
        pages = range(memory.private_base, memory.private_base + memory.private_size, 4096)
        return b"".join(memory.read(page, 4096) for page in pages if page != int(vmcs))

    def check(self, machine) -> list[str]:
        """What is wrong: names of guards that were written to."""
        touched = [
            name
            for name, whole in self.whole.items()
            if (whole[:GUARD] != PATTERN).any() or (whole[-GUARD:] != PATTERN).any()
        ]
        if self._tables(machine) != self._private:
            touched.append("the hypervisor's EPT and bitmaps")
        return touched
