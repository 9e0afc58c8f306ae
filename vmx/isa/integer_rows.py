"""The integer and system instructions: one line per opcode form, in opcode order.

    [VEX] opcode [/r | /digit] [mem | reg | rm=n]   mnemonic   operands   attributes

Opcode: hexadecimal bytes; a leading NP, 66, F3 or F2 is a mandatory prefix; "+r" puts a register into bits 2:0,
"+c" a condition into bits 3:0. Operands: the letters of the manual's appendix "Opcode Map": E general register or
memory (ModRM.rm), G general register (ModRM.reg), Z register in the opcode, I immediate, J relative displacement,
M memory, B register in VEX.vvvv, O memory offset, S segment register, C/D control/debug register, A far pointer,
X/Y string operands;
b w d q sizes, v operand size, z 16 or 32 bits, y 32 or 64 bits, p far pointer. Attributes:
op=NAME (operation if not the mnemonic), lock (LOCK allowed), d64 (64-bit by default in 64-bit mode), f64 (always
64-bit there), i64 (invalid there), o64 (only there), end (last of its block), value=n (constant operand, decoded
as the immediate), feature=NAME (needed beyond x86-64-v1: see vmx.isa.features), sized=n (operand n, not the first,
has the operand size).
"""

ALU_NAMES = "ADD OR ADC SBB AND SUB XOR CMP".split()


def _alu_rows():
    for number, name in enumerate(ALU_NAMES):
        lock = "" if name == "CMP" else "lock"
        base = number << 3
        yield f"{base:02X} /r | {name} | Eb,Gb | {lock}"
        yield f"{base + 1:02X} /r | {name} | Ev,Gv | {lock}"
        yield f"{base + 2:02X} /r | {name} | Gb,Eb |"
        yield f"{base + 3:02X} /r | {name} | Gv,Ev |"
        yield f"{base + 4:02X} | {name} | AL,Ib |"
        yield f"{base + 5:02X} | {name} | rAX,Iz |"
        yield f"80 /{number} | {name} | Eb,Ib | {lock}"
        yield f"81 /{number} | {name} | Ev,Iz | {lock}"
        yield f"82 /{number} | {name} | Eb,Ib | {lock} i64"
        yield f"83 /{number} | {name} | Ev,Ibs | {lock}"


def _shift_rows():
    for number, name in enumerate("ROL ROR RCL RCR SHL SHR SAL SAR".split()):
        yield f"C0 /{number} | {name} | Eb,Ib |"
        yield f"C1 /{number} | {name} | Ev,Ib |"
        yield f"D0 /{number} | {name} | Eb,1 |"
        yield f"D1 /{number} | {name} | Ev,1 |"
        yield f"D2 /{number} | {name} | Eb,CL |"
        yield f"D3 /{number} | {name} | Ev,CL |"


ONE_BYTE = """
06 | PUSH | ES | op=PUSH_SREG value=0 i64
07 | POP | ES | op=POP_SREG value=0 i64 end
0E | PUSH | CS | op=PUSH_SREG value=1 i64
16 | PUSH | SS | op=PUSH_SREG value=2 i64
17 | POP | SS | op=POP_SREG value=2 i64 end
1E | PUSH | DS | op=PUSH_SREG value=3 i64
1F | POP | DS | op=POP_SREG value=3 i64 end
27 | DAA | | i64
2F | DAS | | i64
37 | AAA | | i64
3F | AAS | | i64
40+r | INC | Zv | i64
48+r | DEC | Zv | i64
50+r | PUSH | Zv | d64
58+r | POP | Zv | d64
60 | PUSHA | v | i64
61 | POPA | v | i64
62 /r mem | BOUND | Gv,Ma | i64
63 /r | ARPL | Ew,Gw | i64
63 /r | MOVSXD | Gv,Ed | op=MOVSX_D o64
68 | PUSH | Iz | d64
69 /r | IMUL | Gv,Ev,Iz | op=IMUL3
6A | PUSH | Ibs | d64
6B /r | IMUL | Gv,Ev,Ibs | op=IMUL3
6C | INS | Yb,DX |
6D | INS | Yz,DX |
6E | OUTS | DX,Xb |
6F | OUTS | DX,Xz |
70+c | JCC | Jbs | f64 end
84 /r | TEST | Eb,Gb |
85 /r | TEST | Ev,Gv |
86 /r | XCHG | Eb,Gb | lock
87 /r | XCHG | Ev,Gv | lock
88 /r | MOV | Eb,Gb |
89 /r | MOV | Ev,Gv |
8A /r | MOV | Gb,Eb |
8B /r | MOV | Gv,Ev |
8C /r | MOV | Ev,Sw | op=MOV_FROM_SREG
8D /r mem | LEA | Gv,M |
8E /r | MOV | Sw,Ew | op=MOV_TO_SREG end
8F /0 | POP | Ev | d64
90 | NOP | |
90+r | XCHG | Zv,rAX |
F3 90 | PAUSE | | end
98 | CONVERT_A | v |
99 | CONVERT_D | v |
9A | CALL | Ap | op=CALL_FAR i64 end
9C | PUSHF | v | d64
9D | POPF | v | d64 end
9E | SAHF | |
9F | LAHF | |
A0 | MOV | AL,Ob |
A1 | MOV | rAX,Ov |
A2 | MOV | Ob,AL |
A3 | MOV | Ov,rAX |
A4 | MOVS | Yb,Xb |
A5 | MOVS | Yv,Xv |
A6 | CMPS | Xb,Yb |
A7 | CMPS | Xv,Yv |
A8 | TEST | AL,Ib |
A9 | TEST | rAX,Iz |
AA | STOS | Yb,AL |
AB | STOS | Yv,rAX |
AC | LODS | AL,Xb |
AD | LODS | rAX,Xv |
AE | SCAS | AL,Yb |
AF | SCAS | rAX,Yv |
B0+r | MOV | Zb,Ib |
B8+r | MOV | Zv,Iv |
C2 | RET | Iw | f64 end
C3 | RET | v | f64 end
C4 /r mem | LES | Gv,Mp | op=LOAD_FAR value=0 i64 end
C5 /r mem | LDS | Gv,Mp | op=LOAD_FAR value=3 i64 end
C6 /0 | MOV | Eb,Ib |
C7 /0 | MOV | Ev,Iz |
C8 | ENTER | Iwb | d64
C9 | LEAVE | v | d64
CA | RETF | Iw,v | op=RET_FAR end
CB | RETF | v | op=RET_FAR end
CC | INT3 | | end
CD | INT | Ib | op=INT_N end
CE | INTO | | i64 end
CF | IRET | v | end
D4 | AAM | Ib | i64
D5 | AAD | Ib | i64
D6 | SALC | | i64
D7 | XLAT | |
E0 | LOOPNE | Jbs | f64 end
E1 | LOOPE | Jbs | f64 end
E2 | LOOP | Jbs | f64 end
E3 | JCXZ | Jbs | f64 end
E4 | IN | AL,Ib | end
E5 | IN | eAX,Ib | end
E6 | OUT | Ib,AL | end
E7 | OUT | Ib,eAX | end
E8 | CALL | Jz | f64 end
E9 | JMP | Jz | f64 end
EA | JMP | Ap | op=JMP_FAR i64 end
EB | JMP | Jbs | f64 end
EC | IN | AL,DX | end
ED | IN | eAX,DX | end
EE | OUT | DX,AL | end
EF | OUT | DX,eAX | end
F1 | INT1 | | op=ICEBP end
F4 | HLT | | end
F5 | CMC | |
F6 /0 | TEST | Eb,Ib |
F6 /1 | TEST | Eb,Ib |
F6 /2 | NOT | Eb | lock
F6 /3 | NEG | Eb | lock
F6 /4 | MUL | Eb |
F6 /5 | IMUL | Eb |
F6 /6 | DIV | Eb |
F6 /7 | IDIV | Eb |
F7 /0 | TEST | Ev,Iz |
F7 /1 | TEST | Ev,Iz |
F7 /2 | NOT | Ev | lock
F7 /3 | NEG | Ev | lock
F7 /4 | MUL | Ev |
F7 /5 | IMUL | Ev |
F7 /6 | DIV | Ev |
F7 /7 | IDIV | Ev |
F8 | CLC | |
F9 | STC | |
FA | CLI | | end
FB | STI | | end
FC | CLD | |
FD | STD | |
FE /0 | INC | Eb | lock
FE /1 | DEC | Eb | lock
FF /0 | INC | Ev | lock
FF /1 | DEC | Ev | lock
FF /2 | CALL | Ev | op=CALL_IND f64 end
FF /3 mem | CALL | Mp | op=CALL_FAR end
FF /4 | JMP | Ev | op=JMP_IND f64 end
FF /5 mem | JMP | Mp | op=JMP_FAR end
FF /6 | PUSH | Ev | d64
"""

TWO_BYTE = """
0F 00 /0 | SLDT | Ev |
0F 00 /1 | STR | Ev |
0F 00 /2 | LLDT | Ew | end
0F 00 /3 | LTR | Ew | end
0F 00 /4 | VERR | Ew |
0F 00 /5 | VERW | Ew |
0F 01 /0 mem | SGDT | M |
0F 01 /1 mem | SIDT | M |
0F 01 /2 mem | LGDT | M | end
0F 01 /3 mem | LIDT | M | end
0F 01 /4 | SMSW | Ev |
0F 01 /6 | LMSW | Ew | end
0F 01 /7 mem | INVLPG | Mb | end
NP 0F 01 /0 reg rm=1 | VMCALL | | end
NP 0F 01 /0 reg rm=2 | VMLAUNCH | | op=VMX_OTHER value=20 end
NP 0F 01 /0 reg rm=3 | VMRESUME | | op=VMX_OTHER value=24 end
NP 0F 01 /0 reg rm=4 | VMXOFF | | op=VMX_OTHER value=26 end
NP 0F 01 /1 reg rm=0 | MONITOR | | end
NP 0F 01 /1 reg rm=1 | MWAIT | | end
NP 0F 01 /1 reg rm=2 | CLAC | | end
NP 0F 01 /1 reg rm=3 | STAC | | end
NP 0F 01 /5 reg rm=0 | SERIALIZE | | op=NOP feature=serialize
NP 0F 01 /2 reg rm=0 | XGETBV | |
NP 0F 01 /2 reg rm=1 | XSETBV | | end
0F 01 /7 reg rm=0 | SWAPGS | | o64 end
0F 01 /7 reg rm=1 | RDTSCP | | end
0F 02 /r | LAR | Gv,Ew |
0F 03 /r | LSL | Gv,Ew |
0F 05 | SYSCALL | | end
0F 06 | CLTS | | end
0F 07 | SYSRET | v | end
0F 08 | INVD | | end
0F 09 | WBINVD | | end
0F 0B | UD2 | | op=UD end
0F 0D /r | PREFETCHW | Mb | op=NOP
0F 1F /r | NOP | Ev |
0F 18 /r | NOP | Ev |
0F 19 /r | NOP | Ev |
0F 1A /r | NOP | Ev |
0F 1B /r | NOP | Ev |
0F 1C /r | NOP | Ev |
0F 1D /r | NOP | Ev |
0F 1E /r | NOP | Ev |
0F 20 /r | MOV | Ry,Cy | op=MOV_FROM_CR f64 end
0F 21 /r | MOV | Ry,Dy | op=MOV_FROM_DR f64 end
0F 22 /r | MOV | Cy,Ry | op=MOV_TO_CR f64 end
0F 23 /r | MOV | Dy,Ry | op=MOV_TO_DR f64 end
0F 30 | WRMSR | | end
0F 31 | RDTSC | | end
0F 32 | RDMSR | | end
0F 33 | RDPMC | | end
0F 34 | SYSENTER | | end
0F 35 | SYSEXIT | v | end
0F 40+c /r | CMOV | Gv,Ev |
NP 0F 78 /r | VMREAD | Ey,Gy | op=VMX_OTHER value=23 f64 end
NP 0F 79 /r | VMWRITE | Gy,Ey | op=VMX_OTHER value=25 f64 end
0F 80+c | JCC | Jz | f64 end
0F 90+c /r | SETCC | Eb |
0F A0 | PUSH | FS | op=PUSH_SREG value=4 d64
0F A1 | POP | FS | op=POP_SREG value=4 d64 end
0F A2 | CPUID | | end
0F A3 /r | BT | Ev,Gv |
0F A4 /r | SHLD | Ev,Gv,Ib |
0F A5 /r | SHLD | Ev,Gv,CL |
0F A8 | PUSH | GS | op=PUSH_SREG value=5 d64
0F A9 | POP | GS | op=POP_SREG value=5 d64 end
0F AA | RSM | | end
0F AB /r | BTS | Ev,Gv | lock
0F AC /r | SHRD | Ev,Gv,Ib |
0F AD /r | SHRD | Ev,Gv,CL |
NP 0F AE /0 mem | FXSAVE | M |
NP 0F AE /1 mem | FXRSTOR | M |
NP 0F AE /4 mem | XSAVE | M |
NP 0F AE /5 mem | XRSTOR | M |
NP 0F AE /6 mem | XSAVEOPT | M |
F3 0F AE /0 reg | RDFSBASE | Ry | o64
F3 0F AE /1 reg | RDGSBASE | Ry | o64
F3 0F AE /2 reg | WRFSBASE | Ry | o64
F3 0F AE /3 reg | WRGSBASE | Ry | o64
0F AF /r | IMUL | Gv,Ev | op=IMUL2
0F B0 /r | CMPXCHG | Eb,Gb | lock
0F B1 /r | CMPXCHG | Ev,Gv | lock
0F B2 /r mem | LSS | Gv,Mp | op=LOAD_FAR value=2 end
0F B3 /r | BTR | Ev,Gv | lock
0F B4 /r mem | LFS | Gv,Mp | op=LOAD_FAR value=4 end
0F B5 /r mem | LGS | Gv,Mp | op=LOAD_FAR value=5 end
0F B6 /r | MOVZX | Gv,Eb | op=MOVZX_B
0F B7 /r | MOVZX | Gv,Ew | op=MOVZX_W
F3 0F B8 /r | POPCNT | Gv,Ev |
0F B9 /r | UD1 | Gv,Ev | op=UD end
0F BA /4 | BT | Ev,Ib |
0F BA /5 | BTS | Ev,Ib | lock
0F BA /6 | BTR | Ev,Ib | lock
0F BA /7 | BTC | Ev,Ib | lock
0F BB /r | BTC | Ev,Gv | lock
0F BC /r | BSF | Gv,Ev |
0F BD /r | BSR | Gv,Ev |
F3 0F BC /r | TZCNT | Gv,Ev | feature=bmi1
F3 0F BD /r | LZCNT | Gv,Ev | feature=lzcnt
0F BE /r | MOVSX | Gv,Eb | op=MOVSX_B
0F BF /r | MOVSX | Gv,Ew | op=MOVSX_W
0F C0 /r | XADD | Eb,Gb | lock
0F C1 /r | XADD | Ev,Gv | lock
0F C7 /1 mem | CMPXCHG8B | Mdq | lock
NP 0F C7 /6 mem | VMPTRLD | Mq | op=VMX_OTHER value=21 end
NP 0F C7 /7 mem | VMPTRST | Mq | op=VMX_OTHER value=22 end
66 0F C7 /6 mem | VMCLEAR | Mq | op=VMX_OTHER value=19 end
F3 0F C7 /6 mem | VMXON | Mq | op=VMX_OTHER value=27 end
NP 0F C7 /6 reg | RDRAND | Rv | feature=rdrand
66 0F C7 /6 reg | RDRAND | Rv | feature=rdrand
NP 0F C7 /7 reg | RDSEED | Rv | feature=rdseed
66 0F C7 /7 reg | RDSEED | Rv | feature=rdseed
F3 0F C7 /7 reg | RDPID | Ry | f64 feature=rdpid
0F C8+r | BSWAP | Zv |
0F FF /r | UD0 | Gv,Ev | op=UD end
"""

THREE_BYTE = """
NP 0F 38 F0 /r mem | MOVBE | Gv,Ev |
NP 0F 38 F1 /r mem | MOVBE | Ev,Gv |
66 0F 38 F0 /r mem | MOVBE | Gv,Ev |
66 0F 38 F1 /r mem | MOVBE | Ev,Gv |
66 0F 38 80 /r mem | INVEPT | Gy,M | op=VMX_OTHER value=50 f64 end
66 0F 38 81 /r mem | INVVPID | Gy,M | op=VMX_OTHER value=53 f64 end
66 0F 38 82 /r mem | INVPCID | Gy,M | f64 end
F2 0F 38 F0 /r | CRC32 | Gy,Eb | feature=sse4_2 sized=1
F2 0F 38 F1 /r | CRC32 | Gy,Ev | feature=sse4_2 sized=1
66 0F 38 F6 /r | ADCX | Gy,Ey | feature=adx
F3 0F 38 F6 /r | ADOX | Gy,Ey | feature=adx
NP 0F 38 F9 /r mem | MOVDIRI | My,Gy | op=MOV feature=movdiri
"""

VEX = """
VEX NP 0F 38 F2 /r | ANDN | Gy,By,Ey | feature=bmi1
VEX NP 0F 38 F3 /1 | BLSR | By,Ey | feature=bmi1
VEX NP 0F 38 F3 /2 | BLSMSK | By,Ey | feature=bmi1
VEX NP 0F 38 F3 /3 | BLSI | By,Ey | feature=bmi1
VEX NP 0F 38 F5 /r | BZHI | Gy,Ey,By | feature=bmi2
VEX F3 0F 38 F5 /r | PEXT | Gy,By,Ey | feature=bmi2
VEX F2 0F 38 F5 /r | PDEP | Gy,By,Ey | feature=bmi2
VEX F2 0F 38 F6 /r | MULX | Gy,By,Ey | feature=bmi2
VEX NP 0F 38 F7 /r | BEXTR | Gy,Ey,By | feature=bmi1
VEX 66 0F 38 F7 /r | SHLX | Gy,Ey,By | feature=bmi2
VEX F3 0F 38 F7 /r | SARX | Gy,Ey,By | feature=bmi2
VEX F2 0F 38 F7 /r | SHRX | Gy,Ey,By | feature=bmi2
VEX F2 0F 3A F0 /r | RORX | Gy,Ey,Ib | feature=bmi2
"""


def lines():
    """All rows as text, without empty lines."""
    yield from _alu_rows()
    yield from _shift_rows()
    for block in (ONE_BYTE, TWO_BYTE, THREE_BYTE, VEX):
        yield from (line for line in block.splitlines() if line.strip())
