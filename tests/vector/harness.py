"""A processor record with a little RAM, and a unit that runs one vector or x87 instruction."""

import numpy as np

from vmx.cpu.decode import DECODED_OK, decode
from vmx.cpu.native import stub_table
from vmx.cpu.vector import execute_vector
from vmx.cpu.x87 import execute_wait, execute_x87
from vmx.cpu.xstate import execute_xstate
from vmx.isa.features import ALL_FEATURES
from vmx.isa.operations import GROUP_NUMBER, GROUP_SHIFT, OPERATION
from vmx.mmu.tlb import BANK_BYTES, BANKS, SUPERVISOR_AC
from vmx.state.flags import get_rflags, set_rflags
from vmx.state.jit import JIT
from vmx.state.memory import host_address
from vmx.state.processor import (
    CR0_NE,
    CR0_PE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CS,
    DECODED,
    NO_REGISTER,
    PROCESSOR,
    new_record,
)
from vmx.state.unit import link, unit

OP_VECTOR, OP_X87, OP_FWAIT = OPERATION["VECTOR"], OPERATION["X87"], OPERATION["FWAIT"]
GROUP_XSTATE = GROUP_NUMBER["XSTATE"]
RAM_BYTES = 1 << 16


@unit(PROCESSOR, DECODED, "i64", "i64")
def step(cpu, d, host, rflags):
    """Decode and execute one instruction; -1 when it does not decode. RFLAGS go through DR0."""
    set_rflags(cpu, rflags)
    cpu.fault = 0
    cpu.bus_position = 0
    if decode(d, host, 15, cpu.code_mode, cpu.features) != DECODED_OK:
        return -1
    cpu.next_rip = cpu.rip + d.length
    status = -2
    if d.op == OP_VECTOR:
        status = execute_vector(cpu, d)
    elif d.op == OP_X87:
        status = execute_x87(cpu, d)
    elif d.op == OP_FWAIT:
        status = execute_wait(cpu, d)
    elif d.op >> GROUP_SHIFT == GROUP_XSTATE:
        status = execute_xstate(cpu, d)
    cpu.dr[0] = get_rflags(cpu)
    return status


class Bench:
    """`gpr`, `xmm` (16 x 2 quadwords), `st` (8 x 16 bytes), `memory` (bytes) are numpy views of the state."""

    def __init__(self):
        self.record, self.decoded = new_record(PROCESSOR), new_record(DECODED)
        self.memory = np.zeros(RAM_BYTES, np.uint8)
        self.page_flags = np.zeros(RAM_BYTES >> 12, np.uint8)
        self.page_stamps = np.zeros(RAM_BYTES >> 12, np.uint32)
        self.tlb = np.zeros(BANKS * BANK_BYTES // 8, np.uint64)
        self.code = np.zeros(16, np.uint8)
        self.cpu = PROCESSOR.view(host_address(self.record))
        self.view = self.record[0]
        self.fx = self.view["fx"]
        self.gpr = self.view["gpr"]
        self.xmm = self.fx[160:416].view(np.uint64).reshape(16, 2)
        self.st = self.fx[32:160].reshape(8, 16)
        self.rflags = 2
        self.reset()

    def reset(self):
        cpu = self.cpu
        self.record.view(np.uint8)[...] = 0
        self.memory[...] = 0
        self.page_flags[...] = 0
        self.tlb[...] = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        cpu.host_ram, cpu.ram_low = host_address(self.memory), RAM_BYTES
        cpu.host_page_flags, cpu.host_page_stamp = (
            host_address(self.page_flags),
            host_address(self.page_stamps),
        )
        cpu.host_tlb = host_address(self.tlb)
        cpu.tlb_bank = cpu.host_tlb + SUPERVISOR_AC * BANK_BYTES
        cpu.tlb_context = 1
        cpu.cr0, cpu.cr4 = CR0_PE | CR0_NE, CR4_OSFXSR | CR4_OSXMMEXCPT
        cpu.code_mode, cpu.long_mode = 2, 1
        cpu.host_vector_stubs = stub_table()
        cpu.segments[CS].selector = 8
        cpu.rip = 0x1000
        cpu.features = ALL_FEATURES
        self.control, self.mxcsr = 0x37F, 0x1F80
        assert cpu.gpr[NO_REGISTER] == 0

    def raw_step(self, code: bytes) -> int:
        """Execute what the bytes, padded with NOPs, begin with; -1: no instruction, -2: not one of ours."""
        self.code[...] = 0x90
        self.code[: len(code)] = np.frombuffer(code, np.uint8)
        status = step(self.cpu, host_address(self.decoded), host_address(self.code), self.rflags)
        if status != -1:
            self.rflags = int(self.view["dr"][0])
        return status

    def step(self, code: bytes) -> int:
        """Execute one instruction and return its status; `self.rflags` goes in and out."""
        status = self.raw_step(code)
        assert self.cpu.cr0 == self.view["cr0"]
        if status != -1:
            assert int(self.decoded[0]["length"]) == len(code)
        return status

    def _half(self, offset):
        return int(self.fx[offset : offset + 2].view(np.uint16)[0])

    def _set_half(self, offset, value):
        self.fx[offset : offset + 2].view(np.uint16)[0] = value

    control = property(lambda self: self._half(0), lambda self, value: self._set_half(0, value))
    status = property(lambda self: self._half(2), lambda self, value: self._set_half(2, value))
    tags = property(lambda self: int(self.fx[4]), lambda self, value: self.fx.__setitem__(4, value))
    mxcsr = property(
        lambda self: int(self.fx[24:28].view(np.uint32)[0]),
        lambda self, value: self.fx[24:28].view(np.uint32).__setitem__(0, value),
    )

    @property
    def fault(self) -> int:
        return int(self.view["fault_vector"])


def linked() -> None:
    """Compile what the tests call."""
    if JIT:
        link(step)
