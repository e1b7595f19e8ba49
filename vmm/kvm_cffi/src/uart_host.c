/* The UART as the host sees it: making it, the two ends of its line, and its saved state. */
#include "uart.h"

#include <errno.h>

vk_uart *vk_uart_new(uint32_t transmit_capacity, uint32_t receive_capacity, int irq_fd,
                     int output_fd, int room_fd)
{
    vk_uart *uart = calloc(1, sizeof *uart);
    if (uart == NULL)
        return NULL;
    bool has_memory = fifo_init(&uart->transmit, transmit_capacity);
    has_memory = fifo_init(&uart->receive, receive_capacity) && has_memory;
    if (!has_memory) {
        fifo_deinit(&uart->transmit);
        fifo_deinit(&uart->receive);
        free(uart);
        return NULL;
    }
    pthread_mutex_init(&uart->lock, NULL);
    uart->mechanism.ops = &vk_uart_ops;
    uart->regs = (struct vk_uart_state){.lcr = 3, .mcr = 0x08, .lsr = LSR_THRE | LSR_TEMT,
                                        .msr = MSR_CONNECTED, .dll = 12};
    uart->irq_fd = irq_fd;
    uart->output_fd = output_fd;
    uart->room_fd = room_fd;
    return uart;
}

uint32_t vk_uart_drain(vk_uart *uart, uint8_t *to, uint32_t room)
{
    struct signals signals = {0};
    pthread_mutex_lock(&uart->lock);
    uint32_t taken = fifo_drain(&uart->transmit, to, room);
    if ((uart->regs.lsr & LSR_THRE) == 0 && fifo_room(&uart->transmit) >= FIFO_DEPTH)
        vk_uart_set_thre(uart, &signals);
    signals.output = uart->transmit.count != 0; /* no write will announce what is left */
    pthread_mutex_unlock(&uart->lock);
    vk_uart_send_signals(uart, signals);
    return taken;
}

/* In loopback the line is cut off from the receiver, so nothing is taken until it ends. */
uint32_t vk_uart_receive(vk_uart *uart, const uint8_t *bytes, uint32_t count)
{
    struct signals signals = {0};
    pthread_mutex_lock(&uart->lock);
    uint32_t room = vk_uart_is_looped(uart) ? 0 : fifo_room(&uart->receive);
    uint32_t taken = count < room ? count : room;
    for (uint32_t i = 0; i < taken; i++)
        fifo_push(&uart->receive, bytes[i]);
    if (taken != 0) {
        uart->regs.lsr |= LSR_DR;
        vk_uart_condition(uart, IER_RX, &signals);
    }
    uart->wants_room = taken < count;
    pthread_mutex_unlock(&uart->lock);
    vk_uart_send_signals(uart, signals);
    return taken;
}

/* From here on it signals nobody: its descriptors are about to be closed. */
void vk_uart_detach(vk_uart *uart)
{
    pthread_mutex_lock(&uart->lock);
    uart->irq_fd = uart->output_fd = uart->room_fd = -1;
    pthread_mutex_unlock(&uart->lock);
}

uint64_t vk_uart_dropped(vk_uart *uart)
{
    pthread_mutex_lock(&uart->lock);
    uint64_t dropped = uart->dropped;
    pthread_mutex_unlock(&uart->lock);
    return dropped;
}

void vk_uart_save(vk_uart *uart, struct vk_uart_state *state, uint8_t *transmit,
                  uint32_t *transmit_count, uint8_t *receive, uint32_t *receive_count)
{
    pthread_mutex_lock(&uart->lock);
    *state = uart->regs;
    *transmit_count = fifo_peek(&uart->transmit, transmit, *transmit_count);
    *receive_count = fifo_peek(&uart->receive, receive, *receive_count);
    pthread_mutex_unlock(&uart->lock);
}

static void fill(struct fifo *fifo, const uint8_t *from, uint32_t count)
{
    fifo_clear(fifo);
    for (uint32_t i = 0; i < count; i++)
        fifo_push(fifo, from[i]);
}

/* Bits that follow from the queues are taken from the queues, whatever the saved state says. */
int vk_uart_load(vk_uart *uart, const struct vk_uart_state *state, const uint8_t *transmit,
                 uint32_t transmit_count, const uint8_t *receive, uint32_t receive_count)
{
    struct signals signals = {0};
    if (transmit_count > uart->transmit.capacity || receive_count > uart->receive.capacity)
        return -ENOSPC;
    pthread_mutex_lock(&uart->lock);
    fill(&uart->transmit, transmit, transmit_count);
    fill(&uart->receive, receive, receive_count);
    struct vk_uart_state *regs = &uart->regs;
    *regs = *state;
    regs->ier &= IER_MASK;
    regs->mcr &= MCR_MASK;
    regs->fcr &= FCR_KEPT;
    regs->lsr &= LSR_ERRORS;
    if (receive_count != 0)
        regs->lsr |= LSR_DR;
    if (fifo_room(&uart->transmit) >= FIFO_DEPTH)
        regs->lsr |= LSR_THRE | LSR_TEMT;
    else
        regs->thre_pending = 0;
    regs->thre_pending = regs->thre_pending != 0;
    signals.output = transmit_count != 0;
    signals.irq = vk_uart_interrupt_id(uart) != IIR_NONE; /* its edge may have been lost with the old machine */
    pthread_mutex_unlock(&uart->lock);
    vk_uart_send_signals(uart, signals);
    return 0;
}

void vk_uart_free(vk_uart *uart)
{
    pthread_mutex_destroy(&uart->lock);
    fifo_deinit(&uart->transmit);
    fifo_deinit(&uart->receive);
    free(uart);
}
