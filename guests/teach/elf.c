/* teach: loads a user program, an ELF64 file inside the kernel image, into an address space. */
#include "kernel.h"

#define ELF_MAGIC 0x464C457F
#define ET_EXEC 2
#define EM_X86_64 62
#define PT_LOAD 1
#define PF_X 1
#define PF_W 2

struct elf_header {
    u32 magic;
    u8 class, data, version, abi[9];
    u16 type, machine;
    u32 version_again;
    u64 entry, program_headers, section_headers;
    u32 flags;
    u16 header_size, program_header_size, program_header_count;
};

struct program_header {
    u32 type, flags;
    u64 offset, linear, physical, file_size, memory_size, alignment;
};

/* Copies one page's share of a segment. Segments are page-aligned (user.ld), so no two share a page. */
static bool load_page(u64 pml4, const struct program_header *segment, const u8 *file, u64 done)
{
    u64 page = page_allocate(), flags = PTE_U;
    if (!page)
        return false;
    if (segment->flags & PF_W)
        flags |= PTE_W;
    if (!(segment->flags & PF_X))
        flags |= PTE_NX;
    if (!space_map(pml4, segment->linear + done, page, flags)) {
        page_release(page);
        return false;
    }
    if (done < segment->file_size) {
        u64 count = segment->file_size - done;
        memcpy(direct(page), file + segment->offset + done, count < PAGE_SIZE ? count : PAGE_SIZE);
    }
    return true;
}

bool elf_load(const struct program *program, u64 pml4, u64 *entry, u64 *end)
{
    const struct elf_header *elf = (void *)program->start;
    if (elf->magic != ELF_MAGIC || elf->type != ET_EXEC || elf->machine != EM_X86_64)
        panic("program %s is not an x86-64 ELF executable", program->name);

    *entry = elf->entry;
    *end = 0;
    for (u64 i = 0; i < elf->program_header_count; i++) {
        const struct program_header *segment =
            (void *)(program->start + elf->program_headers + i * elf->program_header_size);
        if (segment->type != PT_LOAD)
            continue;
        for (u64 done = 0; done < segment->memory_size; done += PAGE_SIZE)
            if (!load_page(pml4, segment, program->start, done))
                return false;
        u64 segment_end = (segment->linear + segment->memory_size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1ULL);
        if (segment_end > *end)
            *end = segment_end;
    }
    return true;
}
