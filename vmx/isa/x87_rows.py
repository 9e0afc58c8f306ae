"""x87: every instruction form of the escape opcodes D8 to DF.

SDM volume 2, "Escape Opcode Instructions". Register forms are keyed by (opcode, ModRM & 0x3F), memory forms
by (opcode, ModRM.reg). `native` forms are executed by the host's instruction; the others are about the
control, status and tag words and the environment, which are plain data here.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class X87Form:
    """One form. `size`: bytes of the memory operand, of 32-bit environments where it depends on the mode."""

    mnemonic: str
    native: bool = True
    size: int = 0
    stores: bool = False
    flags: bool = False  # reads or writes RFLAGS
    feature: str = ""  # what the processor must offer: see vmx.isa.features


def _registers():
    for reg, name in enumerate(("fadd", "fmul", "fcom", "fcomp", "fsub", "fsubr", "fdiv", "fdivr")):
        for i in range(8):
            yield (0xD8, reg << 3 | i), X87Form(name)
    # DC and DE have the roles of the operands, and so the R of FSUB and FDIV, exchanged
    for reg, name in ((0, "fadd"), (1, "fmul"), (4, "fsubr"), (5, "fsub"), (6, "fdivr"), (7, "fdiv")):
        for i in range(8):
            yield (0xDC, reg << 3 | i), X87Form(name)
            yield (0xDE, reg << 3 | i), X87Form(name + "p")
    for i in range(8):
        yield (0xD9, i), X87Form("fld")
        yield (0xD9, 0x08 | i), X87Form("fxch")
        for reg, name in enumerate(("b", "e", "be", "u")):
            yield (0xDA, reg << 3 | i), X87Form(f"fcmov{name}", flags=True)
            yield (0xDB, reg << 3 | i), X87Form(f"fcmovn{name}", flags=True)
        yield (0xDB, 0x28 | i), X87Form("fucomi", flags=True)
        yield (0xDB, 0x30 | i), X87Form("fcomi", flags=True)
        yield (0xDD, i), X87Form("ffree")
        yield (0xDD, 0x10 | i), X87Form("fst")
        yield (0xDD, 0x18 | i), X87Form("fstp")
        yield (0xDD, 0x20 | i), X87Form("fucom")
        yield (0xDD, 0x28 | i), X87Form("fucomp")
        yield (0xDF, 0x28 | i), X87Form("fucomip", flags=True)
        yield (0xDF, 0x30 | i), X87Form("fcomip", flags=True)
    single = """
    10 fnop  20 fchs  21 fabs  24 ftst  25 fxam  28 fld1  29 fldl2t  2A fldl2e  2B fldpi  2C fldlg2  2D fldln2
    2E fldz  30 f2xm1  31 fyl2x  32 fptan  33 fpatan  34 fxtract  35 fprem1  36 fdecstp  37 fincstp  38 fprem
    39 fyl2xp1  3A fsqrt  3B fsincos  3C frndint  3D fscale  3E fsin  3F fcos
    """.split()
    for low, name in zip(single[::2], single[1::2], strict=True):
        yield (0xD9, int(low, 16)), X87Form(name)
    yield (0xDA, 0x29), X87Form("fucompp")
    yield (0xDE, 0x19), X87Form("fcompp")
    for low, name in (
        (0x20, "fneni"),
        (0x21, "fndisi"),
        (0x22, "fnclex"),
        (0x23, "fninit"),
        (0x24, "fnsetpm"),
    ):
        yield (0xDB, low), X87Form(name, native=False)
    yield (0xDF, 0x20), X87Form("fnstsw", native=False)


def _memory():
    arithmetic = ("add", "mul", "com", "comp", "sub", "subr", "div", "divr")
    for opcode, start, size in ((0xD8, "f", 4), (0xDA, "fi", 4), (0xDC, "f", 8), (0xDE, "fi", 2)):
        for reg, name in enumerate(arithmetic):
            yield (opcode, reg), X87Form(start + name, size=size)
    for opcode, start, load_store_size in ((0xD9, "f", 4), (0xDB, "fi", 4), (0xDD, "f", 8), (0xDF, "fi", 2)):
        yield (opcode, 0), X87Form(start + "ld", size=load_store_size)
        yield (opcode, 2), X87Form(start + "st", size=load_store_size, stores=True)
        yield (opcode, 3), X87Form(start + "stp", size=load_store_size, stores=True)
    for opcode, size in ((0xDB, 4), (0xDD, 8), (0xDF, 2)):
        yield (opcode, 1), X87Form("fisttp", size=size, stores=True, feature="sse3")
    yield (0xDB, 5), X87Form("fld", size=10)
    yield (0xDB, 7), X87Form("fstp", size=10, stores=True)
    yield (0xDF, 4), X87Form("fbld", size=10)
    yield (0xDF, 5), X87Form("fild", size=8)
    yield (0xDF, 6), X87Form("fbstp", size=10, stores=True)
    yield (0xDF, 7), X87Form("fistp", size=8, stores=True)
    yield (0xD9, 4), X87Form("fldenv", native=False, size=28)
    yield (0xD9, 5), X87Form("fldcw", native=False, size=2)
    yield (0xD9, 6), X87Form("fnstenv", native=False, size=28, stores=True)
    yield (0xD9, 7), X87Form("fnstcw", native=False, size=2, stores=True)
    yield (0xDD, 4), X87Form("frstor", native=False, size=108)
    yield (0xDD, 6), X87Form("fnsave", native=False, size=108, stores=True)
    yield (0xDD, 7), X87Form("fnstsw", native=False, size=2, stores=True)


REGISTER_FORMS: dict[tuple[int, int], X87Form] = dict(_registers())
MEMORY_FORMS: dict[tuple[int, int], X87Form] = dict(_memory())


def add_to(table) -> None:
    """Append all forms to the instruction table."""
    from vmx.isa.features import FEATURE_NUMBER
    from vmx.isa.operations import OPERATION
    from vmx.isa.table import F_MODRM, Row  # the table imports this module while it is built

    def add(opcode, form, digit, rm, data):
        encoding = f"{opcode:02X} /{digit} {form}" + ("" if rm is None else f" rm={rm}")
        name = data.mnemonic.upper()
        entry = Row(
            f"{encoding} | {name} | | op=X87", name, [], OPERATION["X87"], 0, opcode,
            digit=digit, form=form, rm=rm, flags=F_MODRM, data=data, feature=FEATURE_NUMBER.get(data.feature, 0),
        )  # fmt: skip
        table.add(entry)

    for (opcode, digit), data in MEMORY_FORMS.items():
        add(opcode, "mem", digit, None, data)
    for (opcode, low), data in REGISTER_FORMS.items():
        if all(REGISTER_FORMS.get((opcode, low & ~7 | i)) == data for i in range(8)):
            if low & 7 == 0:
                add(opcode, "reg", low >> 3, None, data)
        else:
            add(opcode, "reg", low >> 3, low & 7, data)
    table.add(Row("9B | FWAIT | | op=FWAIT", "FWAIT", [], OPERATION["FWAIT"], 0, 0x9B))
