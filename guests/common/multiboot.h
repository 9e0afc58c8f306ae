/* The part of the Multiboot 0.6.96 specification that the kernels here use. */
#pragma once
#include "common.h"

#define MULTIBOOT_BOOTLOADER_MAGIC 0x2BADB002 /* in EAX at the entry point */

#define MULTIBOOT_INFO_MEMORY 0x01
#define MULTIBOOT_INFO_CMDLINE 0x04
#define MULTIBOOT_INFO_MEM_MAP 0x40

struct multiboot_info { /* EBX points to it */
    u32 flags;
    u32 mem_lower, mem_upper; /* KiB below 640 KiB, and from 1 MiB up */
    u32 boot_device;
    u32 cmdline; /* physical address of a zero-terminated string */
    u32 mods_count, mods_addr;
    u32 syms[4];
    u32 mmap_length, mmap_addr;
} __attribute__((packed));

struct multiboot_mmap_entry {
    u32 size; /* of the rest of the entry: the next one starts at &base + size */
    u64 base, length;
    u32 type; /* 1 is usable RAM */
} __attribute__((packed));
