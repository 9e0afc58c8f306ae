/* teach: the console, a 16550A UART at 0x3F8. Output waits for the transmitter, input comes by interrupt. */
#include "kernel.h"

#define COM1 0x3F8
#define RBR_THR (COM1 + 0) /* receiver buffer, transmitter holding; divisor low while DLAB is set */
#define IER (COM1 + 1)     /* interrupt enable; divisor high while DLAB is set */
#define FCR (COM1 + 2)     /* FIFO control */
#define LCR (COM1 + 3)     /* line control */
#define MCR (COM1 + 4)     /* modem control */
#define LSR (COM1 + 5)     /* line status */

#define LCR_8N1 0x03
#define LCR_DLAB 0x80
#define LSR_DATA_READY 0x01
#define LSR_THRE 0x20
#define IER_RECEIVED 0x01
#define MCR_DTR_RTS_OUT2 0x0B /* OUT2 connects the UART to its interrupt line */

static u8 ring[256]; /* input that nobody has read yet; the indices wrap with their type */
static u8 ring_put, ring_get;

/* Takes bytes from the UART while there is room. What does not fit waits in the UART's FIFO, and the sender
 * behind it: console_get() looks there again, so nothing is lost. */
static void receive(void)
{
    while ((u8)(ring_put + 1) != ring_get && (inb(LSR) & LSR_DATA_READY))
        ring[ring_put++] = inb(RBR_THR);
}

void console_init(void)
{
    outb(IER, 0);
    outb(LCR, LCR_DLAB);
    outb(RBR_THR, 1); /* divisor 1: 115200 baud */
    outb(IER, 0);
    outb(LCR, LCR_8N1);
    receive(); /* switching the FIFOs on empties them: take early input first */
    outb(FCR, 0x01);
    outb(MCR, MCR_DTR_RTS_OUT2);
    outb(IER, IER_RECEIVED);
}

void console_interrupt(void)
{
    receive();
    wake(ring);
}

int console_get(void)
{
    if (ring_get == ring_put)
        receive();
    return ring_get == ring_put ? -1 : ring[ring_get++];
}

void console_wait(void) { sleep_on(ring); }

static void put_raw(char c)
{
    while (!(inb(LSR) & LSR_THRE))
        ;
    outb(RBR_THR, c);
}

void console_put(char c)
{
    if (c == '\n')
        put_raw('\r');
    put_raw(c);
}

static void put_callback(void *unused, char c)
{
    (void)unused;
    console_put(c);
}

void kprintf(const char *text, ...)
{
    va_list arguments;
    va_start(arguments, text);
    format(put_callback, NULL, text, arguments);
    va_end(arguments);
}

void panic(const char *text, ...)
{
    va_list arguments;
    va_start(arguments, text);
    kprintf("\nteach: kernel panic: ");
    format(put_callback, NULL, text, arguments);
    kprintf("\n");
    va_end(arguments);
    power_off();
}
