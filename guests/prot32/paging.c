/* prot32: 32-bit paging with 4 MiB pages for the kernel and 4 KiB pages for ring 3.
 * Intel SDM volume 3, "32-Bit Paging". */
#include "kernel.h"

#define KERNEL_ENTRY (KERNEL_BASE >> 22)
#define POOL_PAGES 256

static u8 pool[POOL_PAGES][PAGE_SIZE] __attribute__((aligned(4096)));
static int pool_used;

/* A zeroed page. Nothing is ever given back: the tests need fewer than the pool has. */
void *page_allocate(void)
{
    if (pool_used == POOL_PAGES) {
        print("prot32: the pool of %d pages is used up\n", POOL_PAGES);
        power_off();
    }
    return memset(pool[pool_used++], 0, PAGE_SIZE);
}

u32 *page_entry(u32 *directory, u32 linear)
{
    u32 *directory_entry = &directory[linear >> 22];
    if (!(*directory_entry & PAGE_P))
        *directory_entry = physical(page_allocate()) | PAGE_P | PAGE_W | PAGE_U;
    u32 *table = (u32 *)((*directory_entry & ~0xFFFu) + KERNEL_BASE);
    return &table[linear >> 12 & 0x3FF];
}

void page_map(u32 *directory, u32 linear, const void *page, u32 flags)
{
    *page_entry(directory, linear) = physical(page) | flags | PAGE_P;
}

/* An address space with the kernel's entries and nothing else. */
u32 *directory_create(void)
{
    u32 *directory = page_allocate();
    memcpy(directory + KERNEL_ENTRY, kernel_directory + KERNEL_ENTRY, (1024 - KERNEL_ENTRY) * sizeof(u32));
    return directory;
}
