/* sh: the first process. Reads commands from the console, or takes them from the kernel's command line:
 * `run=primes,fault:kernel,ps` executes those three (a colon stands for a space), then powers off. */
#include "lib.h"

#define PROMPT "teach> "
#define LINE 80
#define PROCESSES 32
#define CTRL_C 3
#define CTRL_U 21
#define BACKSPACE 8
#define DELETE 127

static void command_help(void)
{
    printf("help              this text\n"
           "ps                processes: memory, ticks, preemptions, page faults, system calls\n"
           "mem               physical memory\n"
           "uptime            since boot\n");
    printf("run NAME [ARG] [&]  a program; & leaves it in the background. `run` may be left out\n"
           "  hello           says hello from ring 3, sleeps, says goodbye\n"
           "  primes [N]      sieve of Eratosthenes up to N (100000)\n"
           "  counter         two processes at once, preempted by the timer\n");
    printf("  fault [KIND]    a bad access: write, read, kernel, text, exec, stack, hlt, ud, div\n"
           "  pagetest        touches many pages that do not exist yet\n"
           "  cpuid           what the processor says it is\n"
           "  exits           instructions that a hypervisor may want to see\n"
           "poweroff, reboot\n");
}

static void command_ps(void)
{
    struct process_info all[PROCESSES];
    long count = processes(all, PROCESSES);

    printf(" PID PARENT NAME      STATE     PAGES  TICKS PREEMPTED FAULTS  CALLS\n");
    for (long i = 0; i < count; i++) {
        struct process_info *p = &all[i];
        printf("%4lu %6lu %-9s %-9s %5lu %6lu %9lu %6lu %6lu\n", (ulong)p->pid, (ulong)p->parent, p->name,
               p->state, (ulong)p->pages, (ulong)p->ticks, (ulong)p->preempted, (ulong)p->faults,
               (ulong)p->calls);
    }
}

static void command_mem(void)
{
    struct memory_info m;
    memory(&m);
    printf("%lu of %lu pages free (%lu MiB), kernel %lu KiB\n", (ulong)m.free_pages, (ulong)m.total_pages,
           (ulong)(m.free_pages * PAGE_SIZE >> 20), (ulong)m.kernel_bytes / 1024);
}

static void command_uptime(void)
{
    u64 ticks = uptime();
    printf("up %lu.%02lu s\n", (ulong)(ticks / TICKS_PER_SECOND), (ulong)(ticks % TICKS_PER_SECOND));
}

/* Cuts the next word off *text. */
static char *word(char **text)
{
    char *start = *text;
    while (*start == ' ')
        start++;
    char *end = start;
    while (*end && *end != ' ')
        end++;
    *text = *end ? end + 1 : end;
    *end = 0;
    return start;
}

static void command_run(const char *name, char *rest)
{
    struct wait_result result;
    size_t length = strlen(rest);
    bool background = length && rest[length - 1] == '&';

    if (background)
        rest[length - 1] = 0;
    long pid = spawn(name, word(&rest));
    if (pid < 0) {
        printf("sh: no command or program `%s` (or no memory for it); `help` lists them\n", name);
    } else if (background) {
        printf("[%ld] %s\n", pid, name);
    } else if (wait(pid, &result, false) == pid && result.status) {
        printf("sh: %s ended with status %lu\n", name, (ulong)result.status);
    }
}

static void execute(char *line)
{
    char *name = word(&line);

    if (!strcmp(name, "run"))
        name = word(&line);
    if (!*name)
        return;
    if (!strcmp(name, "help"))
        command_help();
    else if (!strcmp(name, "ps"))
        command_ps();
    else if (!strcmp(name, "mem"))
        command_mem();
    else if (!strcmp(name, "uptime"))
        command_uptime();
    else if (!strcmp(name, "poweroff"))
        power(0);
    else if (!strcmp(name, "reboot"))
        power(1);
    else
        command_run(name, line);
}

/* Programs left in the background that have ended meanwhile. */
static void reap(void)
{
    struct wait_result result;
    while (wait(0, &result, true) > 0)
        printf("[%lu] ended with status %lu\n", (ulong)result.pid, (ulong)result.status);
}

static void read_line(char *line)
{
    static char previous;
    size_t length = 0;

    for (;;) {
        char c;
        read(&c, 1);
        bool second_half = c == '\n' && previous == '\r'; /* a terminal that sends both: one line */
        previous = c;
        if (second_half)
            continue;
        if (c == '\r' || c == '\n')
            break;
        if (c == BACKSPACE || c == DELETE) {
            if (length) {
                length--;
                write("\b \b", 3);
            }
        } else if (c == CTRL_U || c == CTRL_C) {
            printf("%s\n" PROMPT, c == CTRL_C ? "^C" : "^U");
            length = 0;
        } else if (c >= ' ' && length < LINE - 1) {
            line[length++] = c;
            write(&c, 1);
        }
    }
    line[length] = 0;
    write("\n", 1);
}

static void run_script(const char *script)
{
    char line[LINE];

    while (*script && *script != ' ') {
        size_t length = 0;
        for (; *script && *script != ' ' && *script != ','; script++)
            if (length < LINE - 1)
                line[length++] = *script == ':' ? ' ' : *script;
        line[length] = 0;
        if (*script == ',')
            script++;
        printf(PROMPT "%s\n", line);
        execute(line);
        reap();
    }
    power(0);
}

int main(const char *argument)
{
    char line[256];
    (void)argument;

    cmdline(line, sizeof line);
    const char *script = find_word(line, "run=");
    if (script)
        run_script(script);

    printf("Type `help` for the commands.\n");
    for (;;) {
        reap();
        printf(PROMPT);
        read_line(line);
        execute(line);
    }
}
