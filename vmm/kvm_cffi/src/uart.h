/* The UART's bits and state, shared by its register file and its host side. */
#ifndef UART_H
#define UART_H

#include "fifo.h"
#include "kvm_cffi.h"

#define FIFO_DEPTH 16u /* a driver that sees THRE may write this many bytes without looking again */

#define IER_MASK 0x0f
#define IER_RX 0x01
#define IER_THRE 0x02
#define IER_LINE 0x04
#define IER_MODEM 0x08

#define IIR_NONE 0x01
#define IIR_MODEM 0x00
#define IIR_THRE 0x02
#define IIR_RX 0x04
#define IIR_LINE 0x06
#define IIR_RX_TIMEOUT 0x0c
#define IIR_FIFOS 0xc0

#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define FCR_KEPT 0xc9 /* enable, DMA mode, trigger level: the clear bits fall back by themselves */

#define LCR_DLAB 0x80
#define MCR_MASK 0x1f
#define MCR_LOOP 0x10
#define LSR_DR 0x01
#define LSR_OE 0x02
#define LSR_ERRORS 0x1e
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define MSR_DELTAS 0x0f
#define MSR_CONNECTED 0xb0 /* carrier, data set ready, clear to send */
#define MSR_RI 0x40

struct vk_uart {
    vk_mechanism mechanism;
    pthread_mutex_t lock; /* several vCPUs and Python; held for a few instructions, never over a call */
    struct vk_uart_state regs;
    struct fifo transmit;
    struct fifo receive;
    uint64_t dropped;
    bool wants_room; /* receive() had to refuse bytes; tell on room_fd when it need not any more */
    int irq_fd;
    int output_fd;
    int room_fd;
};

/* What is to be signalled once the lock is released. */
struct signals {
    bool irq;
    bool output;
    bool room;
};

extern const struct vk_mechanism_ops vk_uart_ops;

static inline bool vk_uart_is_looped(const vk_uart *uart)
{
    return (uart->regs.mcr & MCR_LOOP) != 0;
}

/* Call without the lock. */
void vk_uart_send_signals(const vk_uart *uart, struct signals signals);

/* A condition became true: an edge if the guest wants to hear of it. */
void vk_uart_condition(vk_uart *uart, uint8_t enable, struct signals *signals);

/* The transmitter can take FIFO_DEPTH bytes. */
void vk_uart_set_thre(vk_uart *uart, struct signals *signals);

/* What IIR shows, its FIFO bits apart. */
uint8_t vk_uart_interrupt_id(const vk_uart *uart);

#endif
