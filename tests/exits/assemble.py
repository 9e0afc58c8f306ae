"""Assembles the guests of rows.py with GNU as into code.json: `python -m tests.exits.assemble` after a change.

Tests read code.json only. `exit` is the offset of the instruction that exits, `length` its length.
"""

import json
import subprocess
import tempfile
from pathlib import Path

from tests.exits.rows import CODE, HANDLER_BODY, HANDLERS, IDT, IDT_POINTER, OTHER, ROWS

FILE = Path(__file__).parent / "code.json"
ERROR_CODES = (8, 10, 11, 12, 13, 14, 17)


def assembled(source: str, address: int) -> tuple[bytes, dict[str, int]]:
    """The bytes of AT&T assembly at an address, and its labels."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "a.s").write_text(source + "\n")
        subprocess.run(["as", "-o", base / "a.o", base / "a.s"], check=True)
        subprocess.run(
            ["ld", "-Ttext", hex(address), "-e", hex(address), "-o", base / "a.elf", base / "a.o"], check=True
        )
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", base / "a.elf", base / "a.bin"], check=True)
        names = subprocess.run(["nm", base / "a.elf"], check=True, capture_output=True, text=True).stdout
        labels = {line.split()[2]: int(line.split()[0], 16) for line in names.splitlines()}
        return (base / "a.bin").read_bytes(), labels


def guest(asm: str) -> dict:
    """A guest: it loads the IDT (R13 points to it), does what the row says, and leaves by isa-debug-exit."""
    body = asm.replace("> ", "exit_here: ", 1) if "> " in asm else "exit_here: " + asm
    if "> " in asm:
        before, after = asm.split("> ", 1)
        instruction, _, rest = after.partition("\n")
        body = f"{before}\nexit_here: {instruction}\nexit_end:\n{rest}"
    source = f"lidt {IDT_POINTER:#x}; mov ${IDT:#x}, %r13d\n{body}\nfinish: out %al, $0xF4"
    code, labels = assembled(source, CODE)
    start = labels["exit_here"]
    return {
        "code": code.hex(),
        "exit": start - CODE,
        "length": labels.get("exit_end", start) - start,
        "finish": labels["finish"] - CODE,
    }


def handlers() -> str:
    """The stubs and the common body."""
    stubs = []
    for vector in range(256):
        error = "" if vector in ERROR_CODES else "push $0;"
        stubs.append(
            f".org {vector * 16}; {error} push ${vector - 256 if vector > 127 else vector}; jmp common"
        )
    code, _ = assembled("\n".join(stubs) + "\n.org 4096\n" + HANDLER_BODY, HANDLERS)
    return code.hex()


def everything() -> dict:
    """The contents of code.json."""
    sources = {row.name: row.asm for row in ROWS} | OTHER
    return {"handlers": handlers(), "guests": {name: guest(asm) for name, asm in sources.items()}}


if __name__ == "__main__":
    FILE.write_text(json.dumps(everything(), indent=0) + "\n")
