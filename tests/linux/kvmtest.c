/*
 * A hypervisor of one page: opens /dev/kvm and runs a guest in real mode that adds 2 and 2, writes the sum and
 * a line feed to port 0x3f8 and halts. It prints what the guest wrote, how often KVM_RUN came back, and Linux's own
 * count of VM exits if debugfs is mounted: here, because that count forgets a virtual machine when it is closed.
 *
 * No C library, so that the executable is small enough to be committed beside its source:
 *   gcc -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -fno-pie \
 *       -no-pie -fcf-protection=none -Wl,--build-id=none,-z,noseparate-code,-z,noexecstack -s -o kvmtest kvmtest.c
 */
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/kvm.h>
#include <linux/mman.h>

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void print(const char *text)
{
    long length = 0;
    while (text[length])
        length++;
    call(__NR_write, 1, (long)text, length, 0, 0, 0);
}

static void print_number(unsigned long value)
{
    char digits[24], *at = digits + sizeof digits;
    *--at = 0;
    do
        *--at = '0' + value % 10;
    while (value /= 10);
    print(at);
}

static void quit(int status)
{
    call(__NR_exit_group, status, 0, 0, 0, 0, 0);
    __builtin_unreachable();
}

/* The result of a system call; a failure ends the program with its name and number. */
static long good(const char *name, long result)
{
    if (result >= 0 || result < -4095)
        return result;
    print("kvmtest: ");
    print(name);
    print(" failed with errno ");
    print_number(-result);
    print("\n");
    quit(1);
    return 0;
}

#define IOCTL(fd, request, argument) good(#request, call(__NR_ioctl, fd, request, (long)(argument), 0, 0, 0))

static void *map(long bytes, long flags, long fd)
{
    return (void *)good("mmap", call(__NR_mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0));
}

static void print_exits(void)
{
    char text[24];
    long file = call(__NR_open, (long)"/sys/kernel/debug/kvm/exits", O_RDONLY, 0, 0, 0, 0);
    long length = file < 0 ? 0 : call(__NR_read, file, (long)text, sizeof text - 1, 0, 0, 0);
    if (length <= 0)
        return;
    text[length] = 0;
    print("Linux counted exits: ");
    print(text);
}

static const unsigned char guest[] = {
    0xba, 0xf8, 0x03, /* mov dx, 0x3f8 */
    0x00, 0xd8,       /* add al, bl */
    0x04, '0',        /* add al, '0' */
    0xee,             /* out dx, al */
    0xb0, '\n',       /* mov al, '\n' */
    0xee,             /* out dx, al */
    0xf4,             /* hlt */
};

static struct kvm_sregs sregs;
static struct kvm_regs regs;

void __attribute__((noreturn, force_align_arg_pointer)) _start(void)
{
    long kvm = good("open /dev/kvm", call(__NR_open, (long)"/dev/kvm", O_RDWR, 0, 0, 0, 0));
    long vm = IOCTL(kvm, KVM_CREATE_VM, 0);
    unsigned char *memory = map(0x1000, MAP_ANONYMOUS, -1);
    for (unsigned i = 0; i < sizeof guest; i++)
        memory[i] = guest[i];
    struct kvm_userspace_memory_region region = {0, 0, 0x1000, 0x1000, (unsigned long)memory};
    IOCTL(vm, KVM_SET_USER_MEMORY_REGION, &region);
    /* Pages that KVM needs for real mode on a processor without unrestricted guests. */
    unsigned long identity_map = 0xfffbc000;
    IOCTL(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
    IOCTL(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
    long cpu = IOCTL(vm, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = map(IOCTL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), 0, cpu);
    IOCTL(cpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    IOCTL(cpu, KVM_SET_SREGS, &sregs);
    regs.rip = 0x1000;
    regs.rax = regs.rbx = 2;
    regs.rflags = 2;
    IOCTL(cpu, KVM_SET_REGS, &regs);
    for (unsigned long runs = 1;; runs++) {
        IOCTL(cpu, KVM_RUN, 0);
        if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT && run->io.port == 0x3f8) {
            char text[] = {((char *)run)[run->io.data_offset], 0};
            print(text[0] == '\n' ? "" : "guest wrote ");
            print(text);
        } else if (run->exit_reason == KVM_EXIT_HLT) {
            print("guest halted after ");
            print_number(runs);
            print(" runs\n");
            print_exits();
            quit(0);
        } else {
            print("kvmtest: KVM_RUN stopped with exit reason ");
            print_number(run->exit_reason);
            print(", suberror ");
            print_number(run->internal.suberror);
            print("\n");
            quit(1);
        }
    }
}
