/* teach: the page-frame allocator. One bit per 4 KiB frame below MEMORY_LIMIT, 1 = free.
 *
 * A bitmap rather than a list through the free pages: setting it up touches 32 KiB, not all of memory. */
#include "kernel.h"

#define FRAMES (MEMORY_LIMIT / PAGE_SIZE)
#define LOW_MEMORY 0x100000 /* the first MiB belongs to firmware and loader */
#define RAM 1

static u64 bitmap[FRAMES / 64];
static u64 first_candidate; /* no free frame in the words below */
u64 pages_total, pages_free, memory_top;

static void add_range(u64 start, u64 end)
{
    u64 kernel_end_physical = (u64)kernel_end - KERNEL_BASE;

    if (end > MEMORY_LIMIT)
        end = MEMORY_LIMIT;
    if (start < LOW_MEMORY)
        start = LOW_MEMORY;
    if (start < kernel_end_physical && end > LOW_MEMORY)
        start = kernel_end_physical;
    start = (start + PAGE_SIZE - 1) / PAGE_SIZE;
    end /= PAGE_SIZE;
    for (u64 frame = start; frame < end;) {
        if (frame % 64 == 0 && frame + 64 <= end) {
            bitmap[frame / 64] = ~0ULL;
            frame += 64, pages_total += 64;
        } else {
            bitmap[frame / 64] |= 1ULL << frame % 64;
            frame++, pages_total++;
        }
    }
    if (end > start && end * PAGE_SIZE > memory_top)
        memory_top = end * PAGE_SIZE;
}

void pages_init(const struct multiboot_info *info)
{
    if (info->flags & MULTIBOOT_INFO_MEM_MAP) {
        u64 at = info->mmap_addr, end = at + info->mmap_length;
        while (at < end) {
            const struct multiboot_mmap_entry *entry = direct(at);
            if (entry->type == RAM)
                add_range(entry->base, entry->base + entry->length);
            at += entry->size + sizeof entry->size;
        }
    } else if (info->flags & MULTIBOOT_INFO_MEMORY) {
        add_range(LOW_MEMORY, LOW_MEMORY + info->mem_upper * 1024ULL);
    }
    pages_free = pages_total;
    if (pages_free < 64)
        panic("the loader reports only %lu usable pages above 1 MiB: give the machine more memory",
              (ulong)pages_free);
}

u64 page_allocate(void)
{
    for (u64 word = first_candidate; word < FRAMES / 64; word++) {
        if (!bitmap[word])
            continue;
        u64 bit = __builtin_ctzll(bitmap[word]);
        bitmap[word] &= ~(1ULL << bit);
        first_candidate = word;
        pages_free--;
        u64 physical = (word * 64 + bit) * PAGE_SIZE;
        memset(direct(physical), 0, PAGE_SIZE);
        return physical;
    }
    return 0;
}

void page_release(u64 physical)
{
    u64 word = physical / PAGE_SIZE / 64;
    bitmap[word] |= 1ULL << physical / PAGE_SIZE % 64;
    if (word < first_candidate)
        first_candidate = word;
    pages_free++;
}
