/* prot32: the tests. Each answers whether the machine did what the manual says. */
#include "kernel.h"
#include "user.h"

#define TEST_LINEAR 0xD0000000u /* nothing of the kernel lives here */
#define CR0_WP 0x10000
#define CR4_PSE 0x10
#define DR6_BS 0x4000

/* Runs instructions that should fault; afterwards `caught` says which exception came, or NO_FAULT. They may
 * leave anything in ES: the string instructions of compiled code need the flat segment back.
 * `%=` is another number at each use, and so makes the label unique. */
#define TRY(code, ...)                                                                                       \
    do {                                                                                                     \
        caught = (struct caught){.vector = NO_FAULT};                                                        \
        asm volatile("movl $recover%=, %0\n\t" code "\n"                                                     \
                     "recover%=:\n\tmovl $0, %0\n\tpush %%ds\n\tpop %%es"                                    \
                     : "+m"(caught.recover)                                                                  \
                     : __VA_ARGS__                                                                           \
                     : "eax", "edx", "memory", "cc");                                                        \
    } while (0)

static bool caught_is(u32 vector, u32 error) { return caught.vector == vector && caught.error == error; }

/* --- Segments */

static bool flat_segments(void)
{
    u32 cs, limit, access;
    bool code_writable;
    asm volatile("mov %%cs, %0" : "=r"(cs));
    asm volatile("lsl %1, %0" : "=r"(limit) : "r"(KERNEL_DS));
    asm volatile("lar %1, %0" : "=r"(access) : "r"(USER_CS));
    asm volatile("verw %w1" : "=@ccz"(code_writable) : "r"(KERNEL_CS));
    return cs == KERNEL_CS && limit == 0xFFFFFFFF && (access >> 8 & 0xFE) == 0xFA && !code_writable;
}

static bool segment_limit(void)
{
    small_segment[PAGE_SIZE - 1] = 0x5A;
    TRY("mov %1, %%es; movb %%es:0xFFF, %%al", "r"(SMALL_SELECTOR));
    if (caught.vector != NO_FAULT)
        return false;
    TRY("mov %1, %%es; movb %%es:0x1000, %%al", "r"(SMALL_SELECTOR));
    if (!caught_is(GP, 0))
        return false;
    TRY("mov %1, %%es; movl %%es:0xFFD, %%eax", "r"(SMALL_SELECTOR)); /* four bytes: the last one is outside */
    return caught_is(GP, 0);
}

static bool expand_down(void)
{
    TRY("mov %1, %%es; movb %%es:0x1000, %%al", "r"(EXPAND_DOWN_SELECTOR));
    if (caught.vector != NO_FAULT)
        return false;
    TRY("mov %1, %%es; movb %%es:0xFFF, %%al", "r"(EXPAND_DOWN_SELECTOR));
    return caught_is(GP, 0);
}

static bool absent_segment(void)
{
    TRY("mov %1, %%es", "r"(ABSENT_SELECTOR));
    return caught_is(NP, ABSENT_SELECTOR);
}

static bool null_segment(void)
{
    TRY("mov %1, %%es; movb %%es:(%2), %%al", "r"(0), "r"(small_segment));
    return caught_is(GP, 0);
}

static bool beyond_gdt(void)
{
    TRY("mov %1, %%es", "r"(0x1000));
    return caught_is(GP, 0x1000);
}

static bool stack_segment_privilege(void)
{
    TRY("mov %1, %%ss", "r"(USER_DS));
    return caught_is(GP, USER_DS & ~3u);
}

static bool task_register(void)
{
    u32 selector = 0;
    asm volatile("str %w0" : "+r"(selector));
    return selector == TSS_SELECTOR && (gdt[TSS_SELECTOR / 8][1] >> 8 & 0xF) == 0xB; /* LTR made it busy */
}

/* --- Paging */

static bool large_pages(void)
{
    u32 cr4;
    volatile u32 *entry = &kernel_directory[TEST_LINEAR >> 22];
    volatile u8 *target = small_segment, *alias = (u8 *)TEST_LINEAR + physical(small_segment);
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    *entry = PAGE_P | PAGE_W | PAGE_PS; /* the first 4 MiB a second time */
    invlpg((void *)TEST_LINEAR);
    *target = 0xA5;
    bool same = *alias == 0xA5 && (*entry & (PAGE_A | PAGE_D)) == PAGE_A;
    *alias = 0x77;
    bool dirty = *target == 0x77 && (*entry & (PAGE_A | PAGE_D)) == (PAGE_A | PAGE_D);
    *entry = 0;
    load_cr3(kernel_directory);
    return (cr4 & CR4_PSE) && same && dirty;
}

static bool accessed_and_dirty(void)
{
    volatile u32 *entry = page_entry(kernel_directory, TEST_LINEAR);
    page_map(kernel_directory, TEST_LINEAR, small_segment, PAGE_W);
    invlpg((void *)TEST_LINEAR);
    bool untouched = !(*entry & (PAGE_A | PAGE_D));
    (void)*(volatile u8 *)TEST_LINEAR;
    bool accessed = (*entry & (PAGE_A | PAGE_D)) == PAGE_A;
    *(volatile u8 *)TEST_LINEAR = 1;
    return untouched && accessed && (*entry & PAGE_D);
}

static bool not_present(void)
{
    *page_entry(kernel_directory, TEST_LINEAR) = 0;
    invlpg((void *)TEST_LINEAR);
    TRY("movl (%1), %%eax", "r"(TEST_LINEAR + 8));
    if (!caught_is(PF, 0) || caught.cr2 != TEST_LINEAR + 8)
        return false;
    TRY("movl %%eax, (%1)", "r"(TEST_LINEAR + 12));
    return caught_is(PF, 2) && caught.cr2 == TEST_LINEAR + 12;
}

static bool page_crossing(void)
{
    page_map(kernel_directory, TEST_LINEAR, small_segment, PAGE_W);
    *page_entry(kernel_directory, TEST_LINEAR + PAGE_SIZE) = 0;
    invlpg((void *)(TEST_LINEAR + PAGE_SIZE));
    invlpg((void *)TEST_LINEAR);
    memset(small_segment, 0x11, PAGE_SIZE);
    TRY("movl $0x22222222, (%1)", "r"(TEST_LINEAR + PAGE_SIZE - 2));
    /* The fault names the second page, and the first is not half written. */
    return caught_is(PF, 2) && caught.cr2 == TEST_LINEAR + PAGE_SIZE && small_segment[PAGE_SIZE - 1] == 0x11;
}

static bool write_protect(void)
{
    u32 cr0;
    page_map(kernel_directory, TEST_LINEAR, small_segment, 0);
    invlpg((void *)TEST_LINEAR);
    TRY("movl %%eax, (%1)", "r"(TEST_LINEAR));
    bool refused = caught_is(PF, 3);
    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~CR0_WP) : "memory");
    TRY("movl %%eax, (%1)", "r"(TEST_LINEAR));
    bool allowed = caught.vector == NO_FAULT;
    asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
    return refused && allowed;
}

static bool invalidate_page(void)
{
    u8 *first = page_allocate(), *second = page_allocate();
    first[0] = 1;
    second[0] = 2;
    page_map(kernel_directory, TEST_LINEAR, first, PAGE_W);
    invlpg((void *)TEST_LINEAR);
    bool before = *(volatile u8 *)TEST_LINEAR == 1;
    page_map(kernel_directory, TEST_LINEAR, second, PAGE_W);
    invlpg((void *)TEST_LINEAR);
    return before && *(volatile u8 *)TEST_LINEAR == 2;
}

/* --- Exceptions in ring 0 */

static bool divide_error(void)
{
    TRY("mov $1, %%eax; xor %%edx, %%edx; divl %1", "m"((u32){0}));
    if (!caught_is(DE, 0))
        return false;
    TRY("mov $0x80000000, %%eax; cltd; idivl %1", "m"((u32){-1})); /* the quotient has no 32-bit value */
    return caught_is(DE, 0);
}

static bool overflow_into(void)
{
    TRY("mov $0x7FFFFFFF, %%eax; inc %%eax; into", "i"(0));
    return caught_is(OF, 0);
}

static bool bound_range(void)
{
    static const int bounds[2] = {-5, 5};
    TRY("mov $5, %%eax; bound %%eax, %1", "m"(bounds));
    if (caught.vector != NO_FAULT)
        return false;
    TRY("mov $6, %%eax; bound %%eax, %1", "m"(bounds));
    return caught_is(BR, 0);
}

static bool invalid_opcode(void)
{
    TRY("ud2", "i"(0));
    return caught_is(UD, 0);
}

static bool breakpoint(void)
{
    TRY("int3", "i"(0));
    return caught_is(BP, 0);
}

/* TF set by POPF: the trap comes after the instruction that follows it. */
static bool single_step(void)
{
    u32 dr6;
    extern const u8 after_step[];
    asm volatile("mov %0, %%dr6" : : "r"(0));
    TRY("pushf; orl $0x100, (%%esp); popf; nop; .globl after_step; after_step: nop; nop", "i"(0));
    asm volatile("mov %%dr6, %0" : "=r"(dr6));
    return caught_is(DB, 0) && caught.eip == (u32)after_step && (dr6 & DR6_BS);
}

/* --- Instructions that 64-bit mode no longer has */

static bool decimal_arithmetic(void)
{
    u32 sum, product, back;
    asm("mov $0x38, %%al; add $0x45, %%al; daa; movzbl %%al, %0" : "=a"(sum));
    asm("mov $7 * 9, %%eax; aam; movzwl %%ax, %0" : "=a"(product));
    asm("mov $0x0603, %%eax; aad; movzbl %%al, %0" : "=a"(back));
    return sum == 0x83 && product == 0x0603 && back == 63;
}

static bool push_all(void)
{
    u32 spread;
    asm volatile("mov %%esp, %0; pusha; sub %%esp, %0; xor %%ecx, %%ecx; popa" : "=&a"(spread) : : "memory");
    /* POPA brought EAX back as PUSHA found it: the old ESP, before the subtraction. */
    u32 esp;
    asm volatile("mov %%esp, %0" : "=r"(esp));
    return spread == esp;
}

static bool far_pointer(void)
{
    struct {
        u32 offset;
        u16 selector;
    } __attribute__((packed)) pointer = {0x12345678, SMALL_SELECTOR};
    u32 offset, es;
    asm volatile("les %2, %0; mov %%es, %1" : "=&r"(offset), "=&r"(es) : "m"(pointer));
    asm volatile("mov %0, %%es" : : "r"(KERNEL_DS));
    return offset == 0x12345678 && (u16)es == SMALL_SELECTOR;
}

/* --- Ring 3 */

static struct task run_one(void (*entry)(void), u32 argument)
{
    struct task t = task_create(entry, argument);
    tasks_run(&t, 1);
    return t;
}

static bool faults(void (*entry)(void), u32 argument, u32 vector, u32 error)
{
    struct task t = run_one(entry, argument);
    return t.vector == vector && t.error == error;
}

static bool system_call(void) { return run_one(user_system_call, 0).status == 54321; }
static bool stack_switch(void) { return run_one(user_stack_switch, 0).status == 1; }

static bool privileged_instructions(void)
{
    return faults(user_hlt, 0, GP, 0) && faults(user_cli, 0, GP, 0) && faults(user_mov_cr, 0, GP, 0);
}

static bool io_bitmap(void)
{
    return run_one(user_port, ALLOWED_PORT).status == 1 && faults(user_port, 0x70, GP, 0) &&
           faults(user_port, 0x3F8, GP, 0);
}

static bool gate_privilege(void) { return faults(user_interrupt, 0, GP, 0x20 << 3 | 2); }
static bool call_gate(void) { return run_one(user_call_gate, 21).status == 42; }

static bool user_protection(void)
{
    return faults(user_read, KERNEL_BASE + 0x100000, PF, 5) && faults(user_write, 0x400000, PF, 7) &&
           faults(user_read, 0, PF, 4);
}

static bool demand_paging(void)
{
    struct task t = run_one(user_touch, 16);
    return t.status == 16 * 17 / 2 && t.demand_pages == 16;
}

/* --- Time */

static bool timer_wakes_hlt(void)
{
    u32 before = ticks;
    for (int i = 0; i < 3; i++)
        asm volatile("sti; hlt; cli" : : : "memory");
    return ticks == before + 3;
}

static bool preemption(void)
{
    struct task pair[2] = {task_create(user_count, 6), task_create(user_count, 6)};
    tasks_run(pair, 2);
    return pair[0].status == 1 && pair[1].status == 1 && pair[0].preempted && pair[1].preempted;
}

const struct test tests[] = {
    {"flat segments: LSL, LAR, VERW", flat_segments},
    {"segment limit", segment_limit},
    {"expand-down segment", expand_down},
    {"segment not present", absent_segment},
    {"null segment", null_segment},
    {"selector beyond the GDT", beyond_gdt},
    {"stack segment privilege", stack_segment_privilege},
    {"task register", task_register},
    {"4 MiB pages", large_pages},
    {"accessed and dirty bits", accessed_and_dirty},
    {"page not present", not_present},
    {"write across a page end", page_crossing},
    {"write protection and CR0.WP", write_protect},
    {"INVLPG", invalidate_page},
    {"divide error", divide_error},
    {"INTO", overflow_into},
    {"BOUND", bound_range},
    {"invalid opcode", invalid_opcode},
    {"INT3", breakpoint},
    {"single step", single_step},
    {"DAA, AAM, AAD", decimal_arithmetic},
    {"PUSHA and POPA", push_all},
    {"LES", far_pointer},
    {"system call by INT 80h", system_call},
    {"stack switch through the TSS", stack_switch},
    {"privileged instructions in ring 3", privileged_instructions},
    {"I/O permission bitmap", io_bitmap},
    {"gate privilege", gate_privilege},
    {"call gate with a parameter", call_gate},
    {"page protection in ring 3", user_protection},
    {"demand paging in ring 3", demand_paging},
    {"timer interrupt ends HLT", timer_wakes_hlt},
    {"preemption and separate address spaces", preemption},
};
const int test_count = sizeof tests / sizeof *tests;
