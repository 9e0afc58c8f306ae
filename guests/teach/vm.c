/* teach: address spaces. Intel SDM volume 3, "4-Level Paging".
 *
 *   0000000000400000  a program: text, data, then its heap                     \  own tables
 *   00007FFFFFFFF000  its stack, growing down, at most 256 pages               /  per process
 *   FFFF800000000000  all physical memory, 2 MiB pages, no execute             \  the same tables
 *   FFFFFFFF80101000  the kernel, 4 KiB pages: text RX, constants R, data RW   /  in every space
 */
#include "kernel.h"

#define ENTRIES 512
#define KERNEL_HALF 256 /* PML4 entries from here on are shared */
#define PAGE_2M 0x200000ULL

#define CPUID_7_EBX_SMEP (1u << 7)
#define CPUID_80000001_EDX_NX (1u << 20)
#define CR4_PGE (1ULL << 7)
#define CR4_SMEP (1ULL << 20)
#define EFER_NXE (1ULL << 11)

u64 kernel_pml4;
static u64 no_execute; /* PTE_NX where the processor has it */

struct cpuid_result {
    u32 eax, ebx, ecx, edx;
};

static struct cpuid_result cpuid(u32 leaf)
{
    struct cpuid_result r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
    return r;
}

/* The entry for `linear` in the tables at `table` (of the given level, 4 = PML4), down to `stop_level`.
 * Missing tables are made with `create`; NULL when one is missing or cannot be made. */
static u64 *walk(u64 table, u64 linear, int stop_level, bool create)
{
    for (int level = 4;; level--) {
        u64 *entry = (u64 *)direct(table) + (linear >> (12 + 9 * (level - 1))) % ENTRIES;
        if (level == stop_level)
            return entry;
        if (!(*entry & PTE_P)) {
            u64 page = create ? page_allocate() : 0;
            if (!page)
                return NULL;
            *entry = page | PTE_P | PTE_W | (linear < USER_END ? PTE_U : 0); /* the last level decides */
        }
        table = *entry & PTE_ADDRESS;
    }
}

bool space_map(u64 pml4, u64 linear, u64 physical, u64 flags)
{
    u64 *entry = walk(pml4, linear, 1, true);
    if (!entry)
        return false;
    if (!no_execute)
        flags &= ~PTE_NX;
    *entry = physical | flags | PTE_P;
    return true;
}

u64 space_lookup(u64 pml4, u64 linear)
{
    u64 *entry = walk(pml4, linear, 1, false);
    return entry && (*entry & PTE_P) ? *entry : 0;
}

u64 space_create(void)
{
    u64 pml4 = page_allocate();
    if (pml4)
        memcpy((u64 *)direct(pml4) + KERNEL_HALF, (u64 *)direct(kernel_pml4) + KERNEL_HALF,
               (ENTRIES - KERNEL_HALF) * sizeof(u64));
    return pml4;
}

/* Counts a table and all below it; releases them too when asked. */
static u64 visit(u64 table, int level, bool release)
{
    u64 pages = 1, *entries = direct(table);
    int end = level == 4 ? KERNEL_HALF : ENTRIES;

    for (int i = 0; i < end; i++) {
        if (!(entries[i] & PTE_P))
            continue;
        u64 below = entries[i] & PTE_ADDRESS;
        if (level > 1) {
            pages += visit(below, level - 1, release);
        } else {
            pages++;
            if (release)
                page_release(below);
        }
    }
    if (release)
        page_release(table);
    return pages;
}

void space_free(u64 pml4) { visit(pml4, 4, true); }
u64 space_pages(u64 pml4) { return visit(pml4, 4, false); }

static void map_kernel(const char *from, const char *to, u64 flags)
{
    for (u64 linear = (u64)from; linear < (u64)to; linear += PAGE_SIZE)
        if (!space_map(kernel_pml4, linear, linear - KERNEL_BASE, flags | PTE_G))
            panic("no page for the kernel's page tables");
}

/* Replaces boot.S's tables by the kernel's own, which no longer map anything at address 0. */
void vm_init(void)
{
    bool has_leaf_7 = cpuid(0).eax >= 7;
    u64 cr4;

    if (cpuid(0x80000001).edx & CPUID_80000001_EDX_NX) {
        no_execute = PTE_NX;
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    }
    kernel_pml4 = page_allocate();
    /* Every PML4 entry of the kernel's half exists from the start, so that copies of them stay right. */
    for (u64 physical = 0; physical < memory_top; physical += PAGE_2M) {
        u64 *entry = walk(kernel_pml4, DIRECT_MAP + physical, 2, true);
        *entry = physical | PTE_P | PTE_W | PTE_PS | PTE_G | no_execute;
    }
    map_kernel(kernel_text, kernel_rodata, 0);
    map_kernel(kernel_rodata, kernel_data, PTE_NX);
    map_kernel(kernel_data, kernel_end, PTE_NX | PTE_W);
    load_cr3(kernel_pml4);

    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    cr4 |= CR4_PGE;
    if (has_leaf_7 && (cpuid(7).ebx & CPUID_7_EBX_SMEP))
        cr4 |= CR4_SMEP;
    asm volatile("mov %0, %%cr4" : : "r"(cr4));
}
