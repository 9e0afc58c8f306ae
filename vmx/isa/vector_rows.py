"""MMX, SSE and SSE2: one row per instruction form of the 0F opcode map.

SDM volume 2, "Opcode Map" (two-byte map) and the instruction reference. Operands are written as there:
V vector register in ModRM.reg, W vector register or memory in ModRM.rm, U vector register in rm; P, Q, N the
same for MMX; G and E general registers; M memory; then the type: ps pd dq (16 bytes), q sd (8), ss d (4), w,
b, y (4, or 8 with REX.W). Destination first.
"""

from dataclasses import dataclass

BYTES = {"ps": 16, "pd": 16, "dq": 16, "q": 8, "sd": 8, "ss": 4, "d": 4, "w": 2, "b": 1, "y": 4}
MEMORY_CODES = "WQEM"


@dataclass(frozen=True, slots=True)
class VectorRow:
    """One instruction form."""

    prefix: str  # mandatory prefix: "", "66", "F3" or "F2"
    opcode: int  # 0x0F00 | second opcode byte, 0x0F3800 | third, or 0x0F3A00 | third
    mnemonic: str
    operands: tuple[str, ...] = ()
    reg: int | None = None  # ModRM.reg as opcode extension
    form: str = "any"  # what ModRM.rm may be: "any", "reg", "mem", or "none": there is no ModRM
    action: str = "stub"  # how it is executed: see vmx.cpu.vector
    numeric: bool = False  # raises SIMD floating-point exceptions
    unaligned: bool = False  # a 16-byte memory operand needs no alignment
    writes_flags: bool = False
    source_offset: int = 0  # moves: byte offset in the source register
    target_offset: int = 0  # moves: byte offset in the destination register
    zeroes: bool = False  # moves: the rest of the destination becomes zero
    feature: str = ""  # what the processor must offer beyond x86-64-v1: see vmx.isa.features
    implicit: str = ""  # a further operand: "xmm0"
    memory_immediate: int = 0xFF  # the bits of imm8 that count when the source is in memory

    @property
    def code(self) -> bytes:
        """The opcode bytes."""
        return self.opcode.to_bytes(3 if self.opcode >> 16 else 2, "big")

    @property
    def depends_on_rex_w(self) -> bool:
        """Whether REX.W makes another instruction of it."""
        return self.action == "string" or any(o in ("Gy", "Ey") for o in self.operands)

    @property
    def imm8(self) -> bool:
        return "Ib" in self.operands

    @property
    def reg_operand(self) -> str:
        """The operand in ModRM.reg, or an empty string."""
        return next((o for o in self.operands if o[0] in "VPG"), "")

    @property
    def rm_operand(self) -> str:
        """The operand in ModRM.rm, or an empty string."""
        return next((o for o in self.operands if o[0] in "WUQNEM"), "")

    @property
    def memory_size(self) -> int:
        """Bytes of the memory operand (of "y" without REX.W); 0: the form has none."""
        rm = self.rm_operand
        return BYTES[rm[1:]] if self.form != "reg" and rm and rm[0] in MEMORY_CODES else 0

    @property
    def mmx(self) -> bool:
        """An MMX register is read or written: x87 exceptions are taken first, and the x87 stack is reset."""
        return any(o[0] in "PQN" for o in self.operands) or self.mnemonic == "emms"

    @property
    def needs_os_support(self) -> bool:
        """#UD by CR0.EM and CR4.OSFXSR, #NM by CR0.TS apply; not to caching and ordering instructions."""
        return self.action not in ("fence", "prefetch", "clflush") and self.mnemonic != "movnti"


def vector_row(prefix, opcode, mnemonic, operands="", **more):
    """A row, its opcode without 0F and its operands as text."""
    escaped = (0x0F0000 if opcode >> 8 else 0x0F00) | opcode
    return VectorRow(prefix, escaped, mnemonic, tuple(operands.split(",")) if operands else (), **more)


_row = vector_row


def _move(prefix, opcode, mnemonic, operands, **more):
    return _row(prefix, opcode, mnemonic, operands, action="move", **more)


def _moves():
    """Loads, stores and register moves: copies of bytes, described by offsets and what becomes zero."""
    for opcode, swap in ((0x10, False), (0x11, True)):

        def order(pair, swap=swap):
            return ",".join(reversed(pair.split(","))) if swap else pair

        yield _move("", opcode, "movups", order("Vps,Wps"), unaligned=True)
        yield _move("66", opcode, "movupd", order("Vpd,Wpd"), unaligned=True)
        for prefix, name, kind in (("F3", "movss", "ss"), ("F2", "movsd", "sd")):
            yield _move(prefix, opcode, name, order(f"V{kind},W{kind}"), form="reg")
            yield _move(prefix, opcode, name, order(f"V{kind},M{kind}"), form="mem", zeroes=not swap)
    yield _move("", 0x12, "movlps", "Vq,Mq", form="mem")
    yield _move("", 0x12, "movhlps", "Vq,Uq", form="reg", source_offset=8)
    yield _move("66", 0x12, "movlpd", "Vq,Mq", form="mem")
    yield _move("", 0x13, "movlps", "Mq,Vq", form="mem")
    yield _move("66", 0x13, "movlpd", "Mq,Vq", form="mem")
    yield _move("", 0x16, "movhps", "Vq,Mq", form="mem", target_offset=8)
    yield _move("", 0x16, "movlhps", "Vq,Uq", form="reg", target_offset=8)
    yield _move("66", 0x16, "movhpd", "Vq,Mq", form="mem", target_offset=8)
    yield _move("", 0x17, "movhps", "Mq,Vq", form="mem", source_offset=8)
    yield _move("66", 0x17, "movhpd", "Mq,Vq", form="mem", source_offset=8)
    yield _move("", 0x28, "movaps", "Vps,Wps")
    yield _move("66", 0x28, "movapd", "Vpd,Wpd")
    yield _move("", 0x29, "movaps", "Wps,Vps")
    yield _move("66", 0x29, "movapd", "Wpd,Vpd")
    yield _move("", 0x2B, "movntps", "Mps,Vps", form="mem")
    yield _move("66", 0x2B, "movntpd", "Mpd,Vpd", form="mem")
    yield _move("", 0x6E, "movd", "Pq,Ey", zeroes=True)
    yield _move("66", 0x6E, "movd", "Vdq,Ey", zeroes=True)
    yield _move("", 0x7E, "movd", "Ey,Pq")
    yield _move("66", 0x7E, "movd", "Ey,Vdq")
    yield _move("", 0x6F, "movq", "Pq,Qq")
    yield _move("66", 0x6F, "movdqa", "Vdq,Wdq")
    yield _move("F3", 0x6F, "movdqu", "Vdq,Wdq", unaligned=True)
    yield _move("", 0x7F, "movq", "Qq,Pq")
    yield _move("66", 0x7F, "movdqa", "Wdq,Vdq")
    yield _move("F3", 0x7F, "movdqu", "Wdq,Vdq", unaligned=True)
    yield _move("F3", 0x7E, "movq", "Vq,Wq", zeroes=True)
    yield _move("66", 0xD6, "movq", "Wq,Vq", zeroes=True)
    yield _move("F3", 0xD6, "movq2dq", "Vq,Nq", form="reg", zeroes=True)
    yield _move("F2", 0xD6, "movdq2q", "Pq,Uq", form="reg")
    yield _move("", 0xC3, "movnti", "My,Gy", form="mem")
    yield _move("", 0xE7, "movntq", "Mq,Pq", form="mem")
    yield _move("66", 0xE7, "movntdq", "Mdq,Vdq", form="mem")


# --- floating point -----------------------------------------------------------------------------------------

_FLOAT_KINDS = (("", "ps"), ("66", "pd"), ("F3", "ss"), ("F2", "sd"))
_ARITHMETIC = (
    (0x51, "sqrt"),
    (0x58, "add"),
    (0x59, "mul"),
    (0x5C, "sub"),
    (0x5D, "min"),
    (0x5E, "div"),
    (0x5F, "max"),
)
_BITWISE = ((0x54, "and"), (0x55, "andn"), (0x56, "or"), (0x57, "xor"))

_CONVERSIONS = (
    ("", 0x2A, "cvtpi2ps", "Vps,Qq", True),
    ("66", 0x2A, "cvtpi2pd", "Vpd,Qq", False),  # exact
    ("F3", 0x2A, "cvtsi2ss", "Vss,Ey", True),
    ("F2", 0x2A, "cvtsi2sd", "Vsd,Ey", True),
    ("", 0x2C, "cvttps2pi", "Pq,Wq", True),
    ("66", 0x2C, "cvttpd2pi", "Pq,Wpd", True),
    ("F3", 0x2C, "cvttss2si", "Gy,Wss", True),
    ("F2", 0x2C, "cvttsd2si", "Gy,Wsd", True),
    ("", 0x2D, "cvtps2pi", "Pq,Wq", True),
    ("66", 0x2D, "cvtpd2pi", "Pq,Wpd", True),
    ("F3", 0x2D, "cvtss2si", "Gy,Wss", True),
    ("F2", 0x2D, "cvtsd2si", "Gy,Wsd", True),
    ("", 0x5A, "cvtps2pd", "Vpd,Wq", True),
    ("66", 0x5A, "cvtpd2ps", "Vps,Wpd", True),
    ("F3", 0x5A, "cvtss2sd", "Vsd,Wss", True),
    ("F2", 0x5A, "cvtsd2ss", "Vss,Wsd", True),
    ("", 0x5B, "cvtdq2ps", "Vps,Wdq", True),
    ("66", 0x5B, "cvtps2dq", "Vdq,Wps", True),
    ("F3", 0x5B, "cvttps2dq", "Vdq,Wps", True),
    ("66", 0xE6, "cvttpd2dq", "Vdq,Wpd", True),
    ("F3", 0xE6, "cvtdq2pd", "Vpd,Wq", False),  # exact
    ("F2", 0xE6, "cvtpd2dq", "Vdq,Wpd", True),
)


def _float():
    """Single and double precision: arithmetic, comparison, conversion, shuffles."""
    for opcode, name in _ARITHMETIC:
        for prefix, kind in _FLOAT_KINDS:
            yield _row(prefix, opcode, name + kind, f"V{kind},W{kind}", numeric=True)
    for opcode, name in ((0x52, "rsqrt"), (0x53, "rcp")):  # approximations: no exceptions
        yield _row("", opcode, name + "ps", "Vps,Wps")
        yield _row("F3", opcode, name + "ss", "Vss,Wss")
    for opcode, name in _BITWISE:
        yield _row("", opcode, name + "ps", "Vps,Wps", action=name)
        yield _row("66", opcode, name + "pd", "Vpd,Wpd", action=name)
    for prefix, opcode, name, operands, numeric in _CONVERSIONS:
        yield _row(prefix, opcode, name, operands, numeric=numeric)
    for prefix, kind in _FLOAT_KINDS:
        yield _row(prefix, 0xC2, "cmp" + kind, f"V{kind},W{kind},Ib", numeric=True)
    for opcode, name in ((0x2E, "ucomi"), (0x2F, "comi")):
        yield _row("", opcode, name + "ss", "Vss,Wss", numeric=True, writes_flags=True)
        yield _row("66", opcode, name + "sd", "Vsd,Wsd", numeric=True, writes_flags=True)
    for prefix, kind in _FLOAT_KINDS[:2]:
        yield _row(prefix, 0x14, "unpckl" + kind, f"V{kind},W{kind}")
        yield _row(prefix, 0x15, "unpckh" + kind, f"V{kind},W{kind}")
        yield _row(prefix, 0x50, "movmsk" + kind, f"Gd,U{kind}", form="reg")
        yield _row(prefix, 0xC6, "shuf" + kind, f"V{kind},W{kind},Ib")


# --- integers -----------------------------------------------------------------------------------------------

# both with MMX registers (no prefix) and with XMM registers (66)
_PACKED = """
60 punpcklbw  61 punpcklwd  62 punpckldq  63 packsswb  64 pcmpgtb  65 pcmpgtw  66 pcmpgtd  67 packuswb
68 punpckhbw  69 punpckhwd  6A punpckhdq  6B packssdw  74 pcmpeqb  75 pcmpeqw  76 pcmpeqd
D1 psrlw  D2 psrld  D3 psrlq  D4 paddq  D5 pmullw  D8 psubusb  D9 psubusw  DA pminub  DB pand
DC paddusb  DD paddusw  DE pmaxub  DF pandn  E0 pavgb  E1 psraw  E2 psrad  E3 pavgw  E4 pmulhuw  E5 pmulhw
E8 psubsb  E9 psubsw  EA pminsw  EB por  EC paddsb  ED paddsw  EE pmaxsw  EF pxor
F1 psllw  F2 pslld  F3 psllq  F4 pmuludq  F5 pmaddwd  F6 psadbw
F8 psubb  F9 psubw  FA psubd  FB psubq  FC paddb  FD paddw  FE paddd
""".split()
_PACKED_BITWISE = {"pand": "and", "pandn": "andn", "por": "or", "pxor": "xor"}
_SHIFTS = (
    (0x71, 2, "psrlw"), (0x71, 4, "psraw"), (0x71, 6, "psllw"), (0x72, 2, "psrld"), (0x72, 4, "psrad"),
    (0x72, 6, "pslld"), (0x73, 2, "psrlq"), (0x73, 6, "psllq"),
)  # fmt: skip


def _integer():
    """Packed integers."""
    for code, name in zip(_PACKED[::2], _PACKED[1::2], strict=True):
        action = _PACKED_BITWISE.get(name, "stub")
        half = name.startswith("punpckl")  # the MMX form reads 4 bytes of memory
        yield _row("", int(code, 16), name, "Pq,Qd" if half else "Pq,Qq", action=action)
        yield _row("66", int(code, 16), name, "Vdq,Wdq", action=action)
    yield _row("66", 0x6C, "punpcklqdq", "Vdq,Wdq")
    yield _row("66", 0x6D, "punpckhqdq", "Vdq,Wdq")
    yield _row("", 0x70, "pshufw", "Pq,Qq,Ib")
    yield _row("66", 0x70, "pshufd", "Vdq,Wdq,Ib")
    yield _row("F3", 0x70, "pshufhw", "Vdq,Wdq,Ib")
    yield _row("F2", 0x70, "pshuflw", "Vdq,Wdq,Ib")
    for opcode, reg, name in _SHIFTS:
        yield _row("", opcode, name, "Nq,Ib", reg=reg, form="reg")
        yield _row("66", opcode, name, "Udq,Ib", reg=reg, form="reg")
    yield _row("66", 0x73, "psrldq", "Udq,Ib", reg=3, form="reg")
    yield _row("66", 0x73, "pslldq", "Udq,Ib", reg=7, form="reg")
    yield _row("", 0xC4, "pinsrw", "Pq,Ew,Ib")
    yield _row("66", 0xC4, "pinsrw", "Vdq,Ew,Ib")
    yield _row("", 0xC5, "pextrw", "Gd,Nq,Ib", form="reg")
    yield _row("66", 0xC5, "pextrw", "Gd,Udq,Ib", form="reg")
    yield _row("", 0xD7, "pmovmskb", "Gd,Nq", form="reg")
    yield _row("66", 0xD7, "pmovmskb", "Gd,Udq", form="reg")
    yield _row("", 0xF7, "maskmovq", "Pq,Nq", form="reg", action="masked store")
    yield _row("66", 0xF7, "maskmovdqu", "Vdq,Udq", form="reg", action="masked store")


def _state():
    """Control and status register, caches, ordering, end of MMX."""
    yield _row("", 0x77, "emms", form="none", action="emms")
    for reg, name in enumerate(("prefetchnta", "prefetcht0", "prefetcht1", "prefetcht2")):
        yield _row("", 0x18, name, "Mb", reg=reg, form="mem", action="prefetch")
    yield _row("", 0xAE, "ldmxcsr", "Md", reg=2, form="mem", action="ldmxcsr")
    yield _row("", 0xAE, "stmxcsr", "Md", reg=3, form="mem", action="stmxcsr")
    yield _row("", 0xAE, "clflush", "Mb", reg=7, form="mem", action="clflush")
    for reg, name in ((5, "lfence"), (6, "mfence"), (7, "sfence")):
        yield _row("", 0xAE, name, reg=reg, form="reg", action="fence")


ROWS: tuple[VectorRow, ...] = (*_moves(), *_float(), *_integer(), *_state())


def add_to(table, rows) -> None:
    """Append rows to the instruction table, in order: row numbers there are consecutive."""
    from vmx.isa.features import FEATURE_NUMBER
    from vmx.isa.operations import OPERATION
    from vmx.isa.table import (
        F_MODRM,
        F_VECTOR,
        I_8,
        I_NONE,
        Row,
    )  # which imports this module while it is built

    for row in rows:
        digit = "/r" if row.reg is None else f"/{row.reg}"
        form = row.form if row.form in ("reg", "mem") else ""
        encoding = (
            f"{row.prefix or 'NP'} {row.code.hex(' ').upper()} {digit if row.form != 'none' else ''} {form}"
        )
        entry = Row(
            f"{' '.join(encoding.split())} | {row.mnemonic.upper()} | {','.join(row.operands)} | op=VECTOR",
            row.mnemonic.upper(),
            list(row.operands),
            OPERATION["VECTOR"],
            map={0x0F: 1, 0x0F38: 2, 0x0F3A: 3}[row.opcode >> 8],
            opcode=row.opcode & 0xFF,
            prefix=row.prefix or "NP",
            digit=row.reg,
            form=form,
            flags=F_VECTOR | (F_MODRM if row.form != "none" else 0),
            immediate=I_8 if row.imm8 else I_NONE,
            data=row,
            feature=FEATURE_NUMBER.get(row.feature, 0),
        )
        table.add(entry)
