"""The child process of tests.oracles.native: runs cases on the host's processor. Standard library only.

Protocol: a count (8 bytes), then that many records of tests.oracles.cases on standard input; the same number of
records, with the state after, on standard output. Offsets of the record's fields are the arguments.

A case ends with an exception in any event: INT3 follows the instruction. The signal handler copies the
registers that the kernel saved, and returns to the caller of `enter`.
"""

import ctypes
import json
import mmap
import signal
import struct
import sys

DATA, CODE, CONTROL, HANDLER = 0x10_0000, 0x12_0000, 0x13_0000, 0x14_0000
PAGE = 4096
MAP_FIXED_NOREPLACE = 0x10_0000
# control page: the state to load, the host's stack pointer, the saved state
LOAD, HOST_RSP, SAVED = CONTROL, CONTROL + 0x100, CONTROL + 0x200
GREGS = 40  # offset of the general registers in ucontext_t
WORDS = 23
# order of ucontext's gregs; the same order is loaded
ORDER = (8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4)  # R8-R15 RDI RSI RBP RBX RDX RAX RCX RSP
RIP, EFLAGS, ERROR, TRAP, CR2 = 16, 17, 19, 20, 22


def u32(value):
    return value.to_bytes(4, "little")


ENTER = (
    bytes.fromhex("53 55 41 54 41 55 41 56 41 57")  # push rbx, rbp, r12-r15
    + bytes.fromhex("48 89 24 25") + u32(HOST_RSP)  # mov [HOST_RSP], rsp
    + bytes.fromhex("48 C7 C4") + u32(LOAD)  # mov rsp, LOAD
    + bytes.fromhex("41 58 41 59 41 5A 41 5B 41 5C 41 5D 41 5E 41 5F 5F 5E 5D 5B 5A 58 59")  # pop r8-r15 ... rcx
    + bytes.fromhex("9D")  # popfq
    + bytes.fromhex("48 8B 24 25") + u32(LOAD + 8 * 16)  # mov rsp, [..]
    + bytes.fromhex("FF 24 25") + u32(LOAD + 8 * 17)  # jmp [..]
)  # fmt: skip
# handler(signal, siginfo, ucontext in rdx)
HANDLE = (
    bytes.fromhex("48 8D 72") + bytes((GREGS,))  # lea rsi, [rdx + GREGS]
    + bytes.fromhex("48 C7 C7") + u32(SAVED)  # mov rdi, SAVED
    + bytes.fromhex("B9") + u32(WORDS)  # mov ecx, WORDS
    + bytes.fromhex("FC F3 48 A5")  # cld; rep movsq
    + bytes.fromhex("48 8B 24 25") + u32(HOST_RSP)  # mov rsp, [HOST_RSP]
    + bytes.fromhex("41 5F 41 5E 41 5D 41 5C 5D 5B C3")  # pop r15-r12, rbp, rbx; ret
)  # fmt: skip

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]


def place(address, protection):
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    if libc.mmap(address, PAGE, protection, flags, -1, 0) != address:
        raise OSError(ctypes.get_errno(), f"no page at {address:#x}")
    return (ctypes.c_ubyte * PAGE).from_address(address)


class SigAction(ctypes.Structure):
    """What the kernel takes (not libc): handler, flags, restorer, mask."""

    _fields_ = [(n, ctypes.c_uint64) for n in ("handler", "flags", "restorer", "mask")]


class SigStack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_uint64), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def install():
    """Pages, handler and its stack; returns the function that enters a case, and the data and code pages."""
    write = mmap.PROT_READ | mmap.PROT_WRITE
    data, code = place(DATA, write), place(CODE, write | mmap.PROT_EXEC)
    place(CONTROL, write)
    handler = place(HANDLER, write | mmap.PROT_EXEC)
    handler[: len(HANDLE)] = HANDLE
    handler[0x800 : 0x800 + len(ENTER)] = ENTER
    stack = ctypes.create_string_buffer(1 << 16)
    libc.sigaltstack(ctypes.byref(SigStack(ctypes.addressof(stack), 0, len(stack))), None)
    siginfo, onstack, nodefer, restorer = 4, 0x0800_0000, 0x4000_0000, 0x0400_0000
    for number in (signal.SIGFPE, signal.SIGSEGV, signal.SIGILL, signal.SIGTRAP, signal.SIGBUS):
        action = SigAction(HANDLER, siginfo | onstack | nodefer | restorer, HANDLER, 0)
        rt_sigaction = 13
        if libc.syscall(rt_sigaction, int(number), ctypes.byref(action), None, 8):
            raise OSError(ctypes.get_errno(), "rt_sigaction")
    return ctypes.CFUNCTYPE(None)(HANDLER + 0x800), data, code, stack


def main():
    offsets = json.loads(sys.argv[1])
    size, window = offsets["size"], offsets["window"]
    enter, data, code, _stack = install()
    load = (ctypes.c_ubyte * (18 * 8)).from_address(LOAD)
    saved = (ctypes.c_ubyte * (WORDS * 8)).from_address(SAVED)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    window_address, zeroes = DATA + PAGE - window, PAGE - window
    while header := source.read(8):
        libc.alarm(10)  # an instruction that never ends ends the child
        count = int.from_bytes(header, "little")
        cases = bytearray(source.read(count * size))
        base = ctypes.addressof(ctypes.c_ubyte.from_buffer(cases))
        for i in range(count):
            at = i * size
            ctypes.memset(DATA, 0, zeroes)
            ctypes.memmove(window_address, base + at + offsets["memory"], window)
            ctypes.memset(CODE, 0xCC, PAGE)
            (length,) = struct.unpack_from("<Q", cases, at + offsets["length"])
            rip, rflags = struct.unpack_from("<2Q", cases, at + offsets["rip"])
            ctypes.memmove(rip, base + at + offsets["code"], length)
            gpr = struct.unpack_from("<16Q", cases, at + offsets["gpr"])
            words = [gpr[n] for n in ORDER]
            struct.pack_into("<18Q", load, 0, *words[:15], rflags, words[15], rip)
            enter()
            words = struct.unpack_from("<23Q", saved)
            gpr = [0] * 16
            for n, value in zip(ORDER, words, strict=False):
                gpr[n] = value
            vector, rip = words[TRAP], words[RIP]
            if vector == 3:  # the INT3 that was reached: the instruction completed
                vector, rip = -1, rip - 1
            after = (*gpr, rip, words[EFLAGS], vector, words[ERROR], words[CR2])
            struct.pack_into("<18Qq2Q", cases, at + offsets["gpr"], *after)
            ctypes.memmove(base + at + offsets["memory"], window_address, window)
        libc.alarm(0)
        target.write(cases)
        target.flush()


if __name__ == "__main__":
    main()
