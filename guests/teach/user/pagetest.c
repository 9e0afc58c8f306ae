/* pagetest: touches pages that do not exist yet, on the heap and on the stack. Each first touch is a page
 * fault that the kernel answers with a zeroed page. */
#include "lib.h"

#define HEAP_PAGES 256
#define STACK_PAGES 64

static __attribute__((noinline)) u64 grow_stack(int pages)
{
    volatile u8 page[PAGE_SIZE];
    page[0] = pages;
    u64 below = pages > 1 ? grow_stack(pages - 1) : 0;
    return below + page[0]; /* read after the call, so that every page stays on the stack until then */
}

int main(const char *argument)
{
    u64 *heap = sbrk(HEAP_PAGES * PAGE_SIZE), bad = 0, faults = self().faults;
    const u64 step = PAGE_SIZE / sizeof *heap;
    (void)argument;

    for (u64 i = 0; i < HEAP_PAGES; i += 2) { /* the even pages by reading, the odd ones by writing */
        bad += heap[i * step] != 0;
        heap[(i + 1) * step] = i + 1;
    }
    for (u64 i = 0; i < HEAP_PAGES; i++)
        bad += heap[i * step] != (i % 2 ? i : 0);
    printf("pagetest: heap, %d pages, %lu faults, %lu wrong\n", HEAP_PAGES, (ulong)(self().faults - faults),
           (ulong)bad);

    faults = self().faults;
    u64 sum = grow_stack(STACK_PAGES);
    printf("pagetest: stack, %d pages, %lu faults, %s\n", STACK_PAGES, (ulong)(self().faults - faults),
           sum == STACK_PAGES * (STACK_PAGES + 1) / 2 ? "right" : "WRONG");
    return bad != 0;
}
