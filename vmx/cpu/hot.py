"""Hot dispatch codes: the forms that make up most of any kernel have a case in the interpreter's first switch.

A code says that the operand kinds and sizes are what the case expects, so the case tests nothing. 0 is everything else.
"""

from vmx.isa.operations import OPERATION
from vmx.state.jit import compiled
from vmx.state.processor import OPERAND_HIGH, OPERAND_IMMEDIATE, OPERAND_MEMORY

(
    COLD, MOV_RR, MOV_RI, MOV_RM, MOV_MR, MOV_MI, LEA_R, ALU_RR, ALU_RI, ALU_RM, ALU_MX, TEST_RX, JCC, JMP_REL,
    CALL_REL, RET_NEAR, PUSH_R, POP_R, EXTEND_R, EXTEND_M, STEP_R, SHIFT_RI, CMOV_R, SETCC_R, NOTHING,
) = range(25)  # fmt: skip

OP_CMP, OP_TEST, OP_MOV, OP_INC, OP_DEC, OP_LEA = (
    OPERATION[n] for n in ("CMP", "TEST", "MOV", "INC", "DEC", "LEA")
)
OP_MOVZX_B, OP_MOVSX_D = OPERATION["MOVZX_B"], OPERATION["MOVSX_D"]
OP_CMOV, OP_SETCC, OP_NOP = OPERATION["CMOV"], OPERATION["SETCC"], OPERATION["NOP"]
OP_SHL, OP_SHR, OP_SAR = OPERATION["SHL"], OPERATION["SHR"], OPERATION["SAR"]
OP_JCC, OP_JMP, OP_CALL, OP_RET = (OPERATION[n] for n in ("JCC", "JMP", "CALL", "RET"))
OP_PUSH, OP_POP = OPERATION["PUSH"], OPERATION["POP"]


@compiled
def hot_code(d):
    """The dispatch code of a decoded instruction."""
    op, size, dst, src = d.op, d.size, d.dst, d.src
    to_register = dst < OPERAND_HIGH
    wide = size >= 4
    if op == OP_MOV:
        if d.opcode & ~3 == 0xA0:
            return COLD  # memory offset
        if dst == OPERAND_MEMORY:
            return MOV_MI if src == OPERAND_IMMEDIATE else MOV_MR
        if not to_register:
            return COLD
        if src == OPERAND_MEMORY:
            return MOV_RM
        if not wide:
            return COLD
        return MOV_RI if src == OPERAND_IMMEDIATE else MOV_RR
    if op <= OP_CMP:
        if dst == OPERAND_MEMORY:
            return ALU_MX if d.prefixes & 1 == 0 else COLD
        if src == OPERAND_MEMORY:
            return ALU_RM if to_register else COLD
        if not wide:
            return COLD
        return ALU_RI if src == OPERAND_IMMEDIATE else ALU_RR
    if op == OP_TEST:
        return TEST_RX if dst != OPERAND_MEMORY else COLD
    if op == OP_LEA:
        return LEA_R if wide else COLD
    if op == OP_INC or op == OP_DEC:
        return STEP_R if wide and to_register else COLD
    if op >= OP_MOVZX_B and op <= OP_MOVSX_D:
        if not wide:
            return COLD
        return EXTEND_M if src == OPERAND_MEMORY else EXTEND_R
    if op == OP_CMOV:
        return CMOV_R if wide and src != OPERAND_MEMORY else COLD
    if op == OP_SETCC:
        return SETCC_R if to_register else COLD
    if op == OP_NOP:
        return NOTHING
    if op == OP_SHL or op == OP_SHR or op == OP_SAR:
        return SHIFT_RI if wide and to_register and src == OPERAND_IMMEDIATE else COLD
    if size != 8 or d.address_size != 8:
        return JCC if op == OP_JCC else COLD
    if op == OP_JCC:
        return JCC
    if op == OP_JMP:
        return JMP_REL
    if op == OP_CALL:
        return CALL_REL
    if op == OP_RET:
        return RET_NEAR if src != OPERAND_IMMEDIATE and dst != OPERAND_IMMEDIATE else COLD
    if op == OP_PUSH:
        return PUSH_R if to_register else COLD
    if op == OP_POP:
        return POP_R if to_register else COLD
    return COLD
