"""Instruction tests as data: one line a case, `mode | bytes | text | state before => state after`.

State: registers in hexadecimal (others are 0; RSP is in the middle of the window), `flags` (the status flags and
DF; before: default 0), `m+offset` (bytes in the window, see tests.oracles.cases), `vector` (an exception). After: only
what changed, and `undefined`: flags that the manual does not define.

    python -m tests.cpu.statefile     writes text and state after anew, from the host's processor and Unicorn
"""

from pathlib import Path

import numpy as np

from tests.oracles.cases import LAYOUTS, REGISTERS, new_cases, set_code

FILE = Path(__file__).parent / "data" / "integer.txt"
STATUS = 0x0CD5  # CF PF AF ZF SF DF OF
MODES = {"16": 0, "32": 1, "64": 2}


def _state(text):
    return [part.split("=") for part in text.split()]


def parse(line: str):
    """(mode, case before, case after, mask of defined flags) of a line."""
    mode_text, code, _, states = (part.strip() for part in line.split("|", 3))
    mode = MODES[mode_text]
    before_text, _, after_text = states.partition("=>")
    before = new_cases(1, mode)
    set_code(before, 0, bytes.fromhex(code))
    for name, number in _state(before_text):
        _set(before[0], name, number)
    after = before.copy()
    after["rip"] += len(bytes.fromhex(code))
    defined = STATUS
    for name, number in _state(after_text):
        if name == "undefined":
            defined &= ~int(number, 16)
        else:
            _set(after[0], name, number)
    return mode, before, after, defined


def _set(case, name, number):
    if name == "flags":
        case["rflags"] = 0x202 | int(number, 16)
    elif name.startswith("m+"):
        data = bytes.fromhex(number)
        case["memory"][int(name[2:], 16) :][: len(data)] = np.frombuffer(data, np.uint8)
    elif name == "rip":
        case["rip"] = int(number, 16)
    elif name == "vector":
        case["vector"] = int(number)
        case["rip"] = case["rip"] - case["length"]
    else:
        case["gpr"][REGISTERS.index(name)] = int(number, 16)


def format_after(before, after, undefined: int) -> str:
    """The right side of a line."""
    parts = []
    if after["vector"] != -1:
        parts.append(f"vector={after['vector']}")
    elif after["rip"] != before["rip"] + before["length"]:
        parts.append(f"rip={int(after['rip']):x}")
    for n, name in enumerate(REGISTERS):
        if after["gpr"][n] != before["gpr"][n]:
            parts.append(f"{name}={int(after['gpr'][n]):x}")
    if (int(after["rflags"]) ^ int(before["rflags"])) & STATUS & ~undefined:
        parts.append(f"flags={int(after['rflags']) & STATUS & ~undefined:x}")
    changed = np.nonzero(after["memory"] != before["memory"])[0]
    if len(changed):
        a, b = changed[0], changed[-1] + 1
        parts.append(f"m+{a:x}={bytes(after['memory'][a:b]).hex()}")
    if undefined:
        parts.append(f"undefined={undefined:x}")
    return " ".join(parts)


def lines(path=FILE):
    """The lines that are cases."""
    return [line for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]


def regenerate(path=FILE) -> None:
    """Fill in the instruction's text and the state after."""
    import iced_x86 as iced

    from tests.cpu.generate import FLAG_BITS
    from tests.oracles import native
    from tests.oracles.compare import disassembly
    from tests.oracles.unicorn_oracle import Oracle

    oracles = {0: Oracle(0), 1: Oracle(1), 2: native}
    out = []
    for line in path.read_text().splitlines():
        if not line.strip() or line[0] == "#":
            out.append(line)
            continue
        mode, before, _, _ = parse(line.partition("=>")[0])
        fields = [part.strip() for part in line.split("|", 3)]
        code = bytes.fromhex(fields[1])
        ins = iced.Decoder(16 << mode, code, ip=LAYOUTS[mode].rip).decode()
        undefined = sum(bit for key, bit in FLAG_BITS.items() if ins.rflags_undefined & key)
        rotate = ins.mnemonic in (iced.Mnemonic.RCL, iced.Mnemonic.RCR, iced.Mnemonic.ROL, iced.Mnemonic.ROR)
        if rotate and ins.op1_kind == iced.OpKind.IMMEDIATE8 and ins.immediate8 != 1:
            undefined |= 0x800
        after = oracles[mode].run(before)
        if after["vector"][0] != -1:
            undefined = 0
        text = disassembly(code, LAYOUTS[mode].rip, 16 << mode)
        state = fields[3].partition("=>")[0].strip()
        after_text = format_after(before[0], after[0], undefined)
        out.append(f"{fields[0]} | {code.hex()} | {text} | {state} => {after_text}".rstrip())
    path.write_text("\n".join(out) + "\n")
    native.stop()


if __name__ == "__main__":
    regenerate()
