"""Two sets of cases after their instruction: where they differ, in words."""

import numpy as np

from tests.oracles.cases import LAYOUTS, REGISTERS

PAGE_FAULT, FETCH = 14, 0x10
FLAG_NAMES = {0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 10: "DF", 11: "OF"}


def settle(cases):
    """A fault while the next instruction is fetched is not this instruction's: it completed at that RIP."""
    fetch = (cases["vector"] == PAGE_FAULT) & (cases["error"] & FETCH != 0)
    cases["vector"][fetch] = -1
    return cases


def disagreements(ours, theirs, defined):
    """Boolean array: which cases differ in registers, RIP, defined flags, memory or exception."""
    bad = (ours["vector"] != theirs["vector"]) | (ours["rip"] != theirs["rip"])
    bad |= (ours["gpr"] != theirs["gpr"]).any(axis=1)
    bad |= (ours["memory"] != theirs["memory"]).any(axis=1)
    # a fault leaves the flags alone
    mask = np.where(theirs["vector"] == -1, defined, np.uint64(0xED5))
    bad |= ((ours["rflags"] ^ theirs["rflags"]) & mask) != 0
    fault = theirs["vector"] == PAGE_FAULT
    # a kernel's pages are present for the host and absent for vmx: bit 0 of the error code says so
    visible = np.where(theirs["address"] >> np.uint64(47) != 0, np.uint64(~1 & 0xFFFF), np.uint64(0xFFFF))
    bad |= fault & ((ours["error"] ^ theirs["error"]) & visible != 0)
    bad |= fault & (ours["address"] != theirs["address"])
    return bad


def explain(before, ours, theirs, defined, mode=2) -> str:
    """One disagreement as text: the instruction, and each field as before -> vmx, oracle."""
    lines = []
    for n, name in enumerate(REGISTERS):
        if ours["gpr"][n] != theirs["gpr"][n]:
            lines.append(
                f"  {name} {int(before['gpr'][n]):#x} -> {int(ours['gpr'][n]):#x}, oracle {int(theirs['gpr'][n]):#x}"
            )
    for name in ("rip", "vector"):
        if ours[name] != theirs[name]:
            lines.append(f"  {name} {int(ours[name]):#x}, oracle {int(theirs[name]):#x}")
    changed = (int(ours["rflags"]) ^ int(theirs["rflags"])) & int(defined)
    if changed:
        names = " ".join(FLAG_NAMES.get(b, f"bit {b}") for b in range(22) if changed >> b & 1)
        values = [f"{int(each['rflags']):#x}" for each in (before, ours, theirs)]
        lines.append(f"  rflags {values[0]} -> {values[1]}, oracle {values[2]}: {names}")
    if theirs["vector"] == PAGE_FAULT and ours["vector"] == PAGE_FAULT:
        for name in ("error", "address"):
            if ours[name] != theirs[name]:
                lines.append(f"  page fault's {name} {int(ours[name]):#x}, oracle {int(theirs[name]):#x}")
    where = np.nonzero(ours["memory"] != theirs["memory"])[0]
    if len(where):
        a, b = where[0], where[-1] + 1
        lines.append(
            f"  memory {LAYOUTS[mode].window + a:#x}: {bytes(before['memory'][a:b]).hex()} -> "
            f"{bytes(ours['memory'][a:b]).hex()}, oracle {bytes(theirs['memory'][a:b]).hex()}"
        )
    code = bytes(before["code"][: int(before["length"])])
    return f"{code.hex()} {disassembly(code, int(before['rip']), 16 << mode)}\n" + "\n".join(lines)


def disassembly(code: bytes, rip: int, bits: int = 64) -> str:
    """The instruction as text."""
    import iced_x86

    return str(iced_x86.Decoder(bits, code, ip=rip).decode())


def report(cases, ours, theirs, defined, mode=2, limit=12) -> str:
    """Text for an assertion: empty when everything agrees."""
    which = np.nonzero(disagreements(ours, theirs, defined))[0]
    if not len(which):
        return ""
    texts, seen = [], set()
    for i in which:
        code = bytes(cases[i]["code"][: int(cases[i]["length"])])
        name = disassembly(code, int(cases[i]["rip"]), 16 << mode).split()[0]
        if name in seen and len(which) > limit:
            continue
        seen.add(name)
        texts.append(explain(cases[i], ours[i], theirs[i], defined[i], mode))
        if len(texts) == limit:
            break
    return f"{len(which)} of {len(cases)} cases differ\n" + "\n".join(texts)
