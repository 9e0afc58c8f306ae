/* cpuid: what the processor says about itself. */
#include "lib.h"

struct feature {
    u8 bit;
    const char *name;
};

static void put_register(char *to, u32 value) { memcpy(to, &value, sizeof value); }

static void print_features(const char *where, u32 value, const struct feature *features)
{
    printf("%-8s", where);
    for (; features->name; features++)
        if (value >> features->bit & 1)
            printf(" %s", features->name);
    printf("\n");
}

static const struct feature leaf1_edx[] = {
    {0, "fpu"}, {3, "pse"}, {4, "tsc"}, {5, "msr"}, {6, "pae"}, {8, "cx8"}, {9, "apic"}, {11, "sep"},
    {12, "mtrr"}, {13, "pge"}, {15, "cmov"}, {16, "pat"}, {19, "clfsh"}, {23, "mmx"}, {24, "fxsr"},
    {25, "sse"}, {26, "sse2"}, {0, NULL},
};
static const struct feature leaf1_ecx[] = {
    {0, "sse3"}, {3, "monitor"}, {5, "vmx"}, {9, "ssse3"}, {13, "cx16"}, {17, "pcid"}, {19, "sse4.1"},
    {20, "sse4.2"}, {21, "x2apic"}, {22, "movbe"}, {23, "popcnt"}, {24, "tsc-deadline"}, {26, "xsave"},
    {28, "avx"}, {30, "rdrand"}, {31, "hypervisor"}, {0, NULL},
};
static const struct feature leaf7_ebx[] = {
    {0, "fsgsbase"}, {3, "bmi1"}, {5, "avx2"}, {7, "smep"}, {8, "bmi2"}, {9, "erms"}, {10, "invpcid"},
    {18, "rdseed"}, {20, "smap"}, {0, NULL},
};
static const struct feature extended_edx[] = {
    {11, "syscall"}, {20, "nx"}, {26, "pdpe1gb"}, {27, "rdtscp"}, {29, "lm"}, {0, NULL},
};

int main(const char *argument)
{
    struct cpuid_result r = cpuid(0, 0);
    u32 highest = r.eax;
    char vendor[13] = {0}, brand[49] = {0};
    (void)argument;

    put_register(vendor, r.ebx);
    put_register(vendor + 4, r.edx);
    put_register(vendor + 8, r.ecx);
    printf("vendor   %s, highest leaf 0x%x\n", vendor, highest);

    if (cpuid(0x80000000, 0).eax >= 0x80000004) {
        for (int i = 0; i < 3; i++) {
            r = cpuid(0x80000002 + i, 0);
            memcpy(brand + i * 16, &r, 16);
        }
        printf("brand    %s\n", brand);
    }
    r = cpuid(1, 0);
    printf("version  0x%x: family %u, model %u, stepping %u\n", r.eax, r.eax >> 8 & 15,
           (r.eax >> 4 & 15) | (r.eax >> 12 & 0xF0), r.eax & 15);
    print_features("1 EDX", r.edx, leaf1_edx);
    print_features("1 ECX", r.ecx, leaf1_ecx);
    if (r.ecx >> 31) {
        struct cpuid_result h = cpuid(0x40000000, 0);
        memset(vendor, 0, sizeof vendor);
        memcpy(vendor, &h.ebx, 12);
        printf("hypervisor `%s`\n", vendor);
    }
    if (highest >= 7)
        print_features("7 EBX", cpuid(7, 0).ebx, leaf7_ebx);
    print_features("8..1 EDX", cpuid(0x80000001, 0).edx, extended_edx);
    return 0;
}
