/* Ring 3's side of prot32: system calls by INT 80h, and the entry points of user.c. */
#pragma once
#include "common.h"

enum system_call_number {
    SYS_EXIT = 1, /* EBX: status */
    SYS_TICKS,    /* -> EAX: timer ticks since boot */
    SYS_SUM,      /* EBX, ECX, EDX, ESI, EDI -> EAX: their sum */
};

#define SHARED_ADDRESS 0x800000 /* the same linear address in every task, another page in each */

void user_system_call(void), user_stack_switch(void), user_hlt(void), user_cli(void), user_mov_cr(void);
void user_port(void), user_touch(void), user_read(void), user_write(void), user_interrupt(void);
void user_call_gate(void), user_count(void);
