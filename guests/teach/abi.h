/* What teach's kernel and its user programs agree on: system call numbers and the records they fill. */
#pragma once
#include "common.h"

enum system_call_number {
    SYS_EXIT = 1, /* (status) */
    SYS_WRITE,    /* (buffer, count) -> count, to the console */
    SYS_READ,     /* (buffer, count) -> count >= 1, raw bytes from the console; waits for the first */
    SYS_SPAWN,    /* (name, argument) -> pid, or -1 */
    SYS_WAIT,     /* (pid or 0 for any child, struct wait_result *, no_hang) -> pid, 0 (none yet), -1 */
    SYS_YIELD,    /* () */
    SYS_SLEEP,    /* (ticks of 10 ms) */
    SYS_SBRK,     /* (bytes) -> old end of the heap, or -1 */
    SYS_GETPID,   /* () -> pid */
    SYS_UPTIME,   /* () -> ticks of 10 ms since boot */
    SYS_PROCESSES, /* (struct process_info *, count) -> number filled */
    SYS_MEMORY,   /* (struct memory_info *) */
    SYS_CMDLINE,  /* (buffer, size): the kernel's command line */
    SYS_KERNEL,   /* (enum kernel_operation, times): run a privileged instruction in ring 0 */
    SYS_POWER,    /* (0 power off, 1 reset) */
};

enum kernel_operation { OP_HLT, OP_RDMSR, OP_READ_CR0, OP_LOAD_CR3, OP_INVLPG, OP_IN, OP_WBINVD, OP_COUNT };

#define NAME_SIZE 16
#define TICKS_PER_SECOND 100
#define PAGE_SIZE 4096

/* A process that an exception ended has this status plus the vector. */
#define STATUS_KILLED 128

struct wait_result {
    u64 pid, status;
};

struct process_info {
    u64 pid, parent;
    char name[NAME_SIZE];
    char state[NAME_SIZE];
    u64 pages;      /* of memory that it holds, page tables included */
    u64 ticks;      /* timer ticks that found it running */
    u64 preempted;  /* times the timer took the processor away */
    u64 faults;     /* page faults that were handled by mapping a page */
    u64 calls;      /* system calls */
};

struct memory_info {
    u64 total_pages, free_pages, kernel_bytes;
};
