/*
 * A 16550A. National Semiconductor PC16550D data sheet, section 8 (registers).
 *
 * The line has no speed: a byte written is sent at once, so the transmitter is empty whenever there
 * is room for what the guest may write next. When Python is slow and the output queue fills up,
 * LSR.THRE drops and the guest polls or waits for the THRE interrupt, as it would for a slow line.
 *
 * Interrupts are edges on an eventfd: one for each condition that becomes true while it is enabled.
 * OUT2 does not gate them, and IIR always reports enabled FIFOs (spec of the machine, section 5).
 */
#include "uart.h"

enum { RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR };

static const uint8_t trigger_levels[4] = {1, 4, 8, 14};

void vk_uart_send_signals(const vk_uart *uart, struct signals signals)
{
    if (signals.irq)
        vk_signal(uart->irq_fd);
    if (signals.output)
        vk_signal(uart->output_fd);
    if (signals.room)
        vk_signal(uart->room_fd);
}

static void note_room(vk_uart *uart, struct signals *signals)
{
    if (uart->wants_room && !vk_uart_is_looped(uart) && uart->receive.count <= uart->receive.capacity / 2) {
        uart->wants_room = false;
        signals->room = true;
    }
}

void vk_uart_condition(vk_uart *uart, uint8_t enable, struct signals *signals)
{
    if ((uart->regs.ier & enable) != 0)
        signals->irq = true;
}

void vk_uart_set_thre(vk_uart *uart, struct signals *signals)
{
    uart->regs.lsr |= LSR_THRE | LSR_TEMT;
    uart->regs.thre_pending = 1;
    vk_uart_condition(uart, IER_THRE, signals);
}

/* The highest-priority condition that is enabled and true. Data sheet, table III. */
uint8_t vk_uart_interrupt_id(const vk_uart *uart)
{
    const struct vk_uart_state *regs = &uart->regs;
    if ((regs->ier & IER_LINE) != 0 && (regs->lsr & LSR_ERRORS) != 0)
        return IIR_LINE;
    if ((regs->ier & IER_RX) != 0 && uart->receive.count != 0) {
        bool has_fifo = (regs->fcr & FCR_ENABLE) != 0;
        bool is_below = uart->receive.count < trigger_levels[regs->fcr >> 6];
        return has_fifo && is_below ? IIR_RX_TIMEOUT : IIR_RX;
    }
    if ((regs->ier & IER_THRE) != 0 && regs->thre_pending != 0)
        return IIR_THRE;
    if ((regs->ier & IER_MODEM) != 0 && (regs->msr & MSR_DELTAS) != 0)
        return IIR_MODEM;
    return IIR_NONE;
}

/* Take over new modem lines and set the bits that say which changed (RI: only when it ends). */
static void set_modem_lines(vk_uart *uart, uint8_t lines, struct signals *signals)
{
    uint8_t changed = (uart->regs.msr ^ lines) & 0xf0;
    if ((lines & MSR_RI) != 0)
        changed &= (uint8_t)~MSR_RI;
    uart->regs.msr = (uint8_t)(lines | (uart->regs.msr & MSR_DELTAS) | changed >> 4);
    if (changed != 0)
        vk_uart_condition(uart, IER_MODEM, signals);
}

/* In loopback the four modem outputs are wired to the four inputs. */
static void write_mcr(vk_uart *uart, uint8_t value, struct signals *signals)
{
    uint8_t lines = MSR_CONNECTED;
    uart->regs.mcr = value & MCR_MASK;
    if (vk_uart_is_looped(uart))
        lines = (uint8_t)((value & 0x01) << 5 | (value & 0x02) << 3 | (value & 0x0c) << 4);
    set_modem_lines(uart, lines, signals);
    note_room(uart, signals);
}

static void write_looped(vk_uart *uart, uint8_t byte, struct signals *signals)
{
    uint32_t depth = FIFO_DEPTH < uart->receive.capacity ? FIFO_DEPTH : uart->receive.capacity;
    if (uart->receive.count < depth) {
        fifo_push(&uart->receive, byte);
        uart->regs.lsr |= LSR_DR;
        vk_uart_condition(uart, IER_RX, signals);
    } else {
        uart->regs.lsr |= LSR_OE;
        vk_uart_condition(uart, IER_LINE, signals);
    }
}

/* GUEST: may write without looking at THRE; what does not fit is dropped and counted. */
static void write_line(vk_uart *uart, uint8_t byte, struct signals *signals)
{
    if (fifo_room(&uart->transmit) == 0) {
        uart->dropped++;
        return;
    }
    if (uart->transmit.count == 0)
        signals->output = true;
    fifo_push(&uart->transmit, byte);
}

/* In loopback too THRE speaks of the output queue: earlier output may still be waiting in it. */
static void write_thr(vk_uart *uart, uint8_t byte, struct signals *signals)
{
    uart->regs.thre_pending = 0;
    if (vk_uart_is_looped(uart))
        write_looped(uart, byte, signals);
    else
        write_line(uart, byte, signals);
    if (fifo_room(&uart->transmit) >= FIFO_DEPTH)
        vk_uart_set_thre(uart, signals);
    else
        uart->regs.lsr &= (uint8_t) ~(LSR_THRE | LSR_TEMT);
}

static void write_ier(vk_uart *uart, uint8_t value, struct signals *signals)
{
    uint8_t enabled = value & IER_MASK & (uint8_t)~uart->regs.ier;
    uart->regs.ier = value & IER_MASK;
    if ((enabled & IER_THRE) != 0 && (uart->regs.lsr & LSR_THRE) != 0)
        vk_uart_set_thre(uart, signals); /* enabling it with an empty transmitter is itself the condition */
    if ((enabled & IER_RX) != 0 && uart->receive.count != 0)
        vk_uart_condition(uart, IER_RX, signals);
    if ((enabled & IER_LINE) != 0 && (uart->regs.lsr & LSR_ERRORS) != 0)
        vk_uart_condition(uart, IER_LINE, signals);
    if ((enabled & IER_MODEM) != 0 && (uart->regs.msr & MSR_DELTAS) != 0)
        vk_uart_condition(uart, IER_MODEM, signals);
}

/* What was sent is gone already, so clearing the transmit FIFO has nothing to clear. */
static void write_fcr(vk_uart *uart, uint8_t value, struct signals *signals)
{
    if ((value & FCR_CLEAR_RX) != 0 || ((value ^ uart->regs.fcr) & FCR_ENABLE) != 0) {
        fifo_clear(&uart->receive);
        uart->regs.lsr &= (uint8_t)~LSR_DR;
        note_room(uart, signals);
    }
    uart->regs.fcr = (value & FCR_ENABLE) != 0 ? value & FCR_KEPT : 0;
}

static void write_register(vk_uart *uart, uint64_t offset, uint8_t value, struct signals *signals)
{
    bool is_divisor = (uart->regs.lcr & LCR_DLAB) != 0;
    switch (offset) {
    case RBR_THR:
        if (is_divisor)
            uart->regs.dll = value;
        else
            write_thr(uart, value, signals);
        break;
    case IER:
        if (is_divisor)
            uart->regs.dlm = value;
        else
            write_ier(uart, value, signals);
        break;
    case IIR_FCR:
        write_fcr(uart, value, signals);
        break;
    case LCR:
        uart->regs.lcr = value;
        break;
    case MCR:
        write_mcr(uart, value, signals);
        break;
    case SCR:
        uart->regs.scr = value;
        break;
    default: /* LSR and MSR are the chip's to write */
        break;
    }
}

static uint8_t read_rbr(vk_uart *uart, struct signals *signals)
{
    if (uart->receive.count == 0)
        return 0;
    uint8_t byte = fifo_pop(&uart->receive);
    if (uart->receive.count == 0)
        uart->regs.lsr &= (uint8_t)~LSR_DR;
    note_room(uart, signals);
    return byte;
}

static uint8_t read_register(vk_uart *uart, uint64_t offset, struct signals *signals)
{
    struct vk_uart_state *regs = &uart->regs;
    bool is_divisor = (regs->lcr & LCR_DLAB) != 0;
    uint8_t value = 0xff;
    switch (offset) {
    case RBR_THR:
        return is_divisor ? regs->dll : read_rbr(uart, signals);
    case IER:
        return is_divisor ? regs->dlm : regs->ier;
    case IIR_FCR:
        value = vk_uart_interrupt_id(uart);
        if (value == IIR_THRE) /* reading it acknowledges this one, and only this one */
            regs->thre_pending = 0;
        return value | IIR_FIFOS;
    case LCR:
        return regs->lcr;
    case MCR:
        return regs->mcr;
    case LSR:
        value = regs->lsr;
        regs->lsr &= (uint8_t)~LSR_ERRORS;
        return value;
    case MSR:
        value = regs->msr;
        regs->msr &= (uint8_t)~MSR_DELTAS;
        return value;
    case SCR:
        return regs->scr;
    default:
        return value;
    }
}

/* GUEST: only one-byte accesses act; the bus is eight bits wide. */
static bool uart_read(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t *value)
{
    vk_uart *uart = (vk_uart *)self;
    struct signals signals = {0};
    *value = UINT64_MAX;
    if (size == 1) {
        pthread_mutex_lock(&uart->lock);
        *value = read_register(uart, offset, &signals);
        pthread_mutex_unlock(&uart->lock);
        vk_uart_send_signals(uart, signals);
    }
    return true;
}

static bool uart_write(vk_mechanism *self, uint64_t offset, uint32_t size, uint64_t value)
{
    vk_uart *uart = (vk_uart *)self;
    struct signals signals = {0};
    if (size == 1) {
        pthread_mutex_lock(&uart->lock);
        write_register(uart, offset, (uint8_t)value, &signals);
        pthread_mutex_unlock(&uart->lock);
        vk_uart_send_signals(uart, signals);
    }
    return true;
}

const struct vk_mechanism_ops vk_uart_ops = {.read = uart_read, .write = uart_write};
