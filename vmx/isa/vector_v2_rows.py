"""SSE3, SSSE3, SSE4.1, SSE4.2, AES-NI, PCLMULQDQ and the newer cache instructions: rows beyond x86-64-v1.

SDM volume 2, "Opcode Map" (two-byte map, three-byte maps 0F 38 and 0F 3A). Notation: see vmx.isa.vector_rows.
CRC32 and the bit manipulation instructions are in vmx.isa.integer_rows.
"""

from vmx.isa.vector_rows import vector_row


def _maker(feature):
    def make(prefix, opcode, mnemonic, operands="", **more):
        return vector_row(prefix, opcode, mnemonic, operands, feature=feature, **more)

    return make


def _sse3():
    row = _maker("sse3")
    yield row("F2", 0x12, "movddup", "Vpd,Wq")
    yield row("F3", 0x12, "movsldup", "Vps,Wps")
    yield row("F3", 0x16, "movshdup", "Vps,Wps")
    yield row("F2", 0xF0, "lddqu", "Vdq,Mdq", form="mem", action="move", unaligned=True)
    for opcode, name in ((0x7C, "hadd"), (0x7D, "hsub"), (0xD0, "addsub")):
        yield row("66", opcode, name + "pd", "Vpd,Wpd", numeric=True)
        yield row("F2", opcode, name + "ps", "Vps,Wps", numeric=True)


_SSSE3 = """
00 pshufb  01 phaddw  02 phaddd  03 phaddsw  04 pmaddubsw  05 phsubw  06 phsubd  07 phsubsw
08 psignb  09 psignw  0A psignd  0B pmulhrsw  1C pabsb  1D pabsw  1E pabsd
""".split()


def _ssse3():
    row = _maker("ssse3")
    for code, name in zip(_SSSE3[::2], _SSSE3[1::2], strict=True):
        yield row("", 0x3800 | int(code, 16), name, "Pq,Qq")
        yield row("66", 0x3800 | int(code, 16), name, "Vdq,Wdq")
    yield row("", 0x3A0F, "palignr", "Pq,Qq,Ib")
    yield row("66", 0x3A0F, "palignr", "Vdq,Wdq,Ib")


_SSE41 = """
28 pmuldq  29 pcmpeqq  2B packusdw  38 pminsb  39 pminsd  3A pminuw  3B pminud  3C pmaxsb  3D pmaxsd
3E pmaxuw  3F pmaxud  40 pmulld  41 phminposuw
""".split()
_EXTENSIONS = ("bw q", "bd d", "bq w", "wd q", "wq d", "dq q")  # PMOVSX, PMOVZX: suffix and source


def _sse41():
    row = _maker("sse4_1")
    for code, name in zip(_SSE41[::2], _SSE41[1::2], strict=True):
        yield row("66", 0x3800 | int(code, 16), name, "Vdq,Wdq")
    for i, (suffix, source) in enumerate(map(str.split, _EXTENSIONS)):
        yield row("66", 0x3820 + i, "pmovsx" + suffix, f"Vdq,W{source}")
        yield row("66", 0x3830 + i, "pmovzx" + suffix, f"Vdq,W{source}")
    for opcode, name in ((0x3810, "pblendvb"), (0x3814, "blendvps"), (0x3815, "blendvpd")):
        yield row("66", opcode, name, "Vdq,Wdq", implicit="xmm0")
    yield row("66", 0x3817, "ptest", "Vdq,Wdq", writes_flags=True)
    yield row("66", 0x382A, "movntdqa", "Vdq,Mdq", form="mem", action="move")
    for opcode, kind in enumerate(("ps", "pd", "ss", "sd"), 0x3A08):
        yield row("66", opcode, "round" + kind, f"V{kind},W{kind},Ib", numeric=True)
    for opcode, name in ((0x3A0C, "blendps"), (0x3A0D, "blendpd"), (0x3A0E, "pblendw"), (0x3A42, "mpsadbw")):
        yield row("66", opcode, name, "Vdq,Wdq,Ib")
    for opcode, kind in ((0x3A40, "ps"), (0x3A41, "pd")):
        yield row("66", opcode, "dp" + kind, f"V{kind},W{kind},Ib", numeric=True)
    for opcode, name, operand in (
        (0x3A14, "pextrb", "Eb"),
        (0x3A15, "pextrw", "Ew"),
        (0x3A16, "pextrd", "Ey"),
        (0x3A17, "extractps", "Ed"),
    ):
        yield row("66", opcode, name, f"{operand},Vdq,Ib", action="extract")
    yield row("66", 0x3A20, "pinsrb", "Vdq,Eb,Ib")
    # a source in memory is the doubleword itself: bits 7:6 of the immediate do not select
    yield row("66", 0x3A21, "insertps", "Vdq,Wd,Ib", memory_immediate=0x3F)
    yield row("66", 0x3A22, "pinsrd", "Vdq,Ey,Ib")


def _sse42():
    row = _maker("sse4_2")
    yield row("66", 0x3837, "pcmpgtq", "Vdq,Wdq")
    for opcode, name in enumerate(("pcmpestrm", "pcmpestri", "pcmpistrm", "pcmpistri"), 0x3A60):
        yield row("66", opcode, name, "Vdq,Wdq,Ib", action="string", unaligned=True)


def _cryptography():
    row = _maker("aes")
    for opcode, name in enumerate(("aesimc", "aesenc", "aesenclast", "aesdec", "aesdeclast"), 0x38DB):
        yield row("66", opcode, name, "Vdq,Wdq")
    yield row("66", 0x3ADF, "aeskeygenassist", "Vdq,Wdq,Ib")
    yield _maker("pclmulqdq")("66", 0x3A44, "pclmulqdq", "Vdq,Wdq,Ib")


def _caches():
    yield _maker("clflushopt")("66", 0xAE, "clflushopt", "Mb", reg=7, form="mem", action="clflush")
    yield _maker("clwb")("66", 0xAE, "clwb", "Mb", reg=6, form="mem", action="clflush")


ROWS_V2 = (*_sse3(), *_ssse3(), *_sse41(), *_sse42(), *_cryptography(), *_caches())
