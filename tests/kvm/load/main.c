/*
 * The command line is the program: words, each a step with its numbers, done one after the other.
 *
 *   ecam:BASE                             where configuration space is mapped; without it: CF8 and CFC
 *   packed                                the devices used from now on have packed rings
 *   disk:TYPE:RANDOM:DEPTH:BYTES:CYCLES   type 0 reads, 1 writes
 *   check:BLOCKS:DEPTH
 *   send:BYTES:FRAMES
 *   receive:FRAMES:WINDOW:CYCLES          says "ready receive" first
 *   echo:FRAMES:CYCLES                    says "ready echo" first
 *   console:BYTES:TIMES
 *   serial:BYTES
 *   idle                                  says "ready idle" and halts
 *
 * Other words are not its own, and passed over.
 */
#include "pci.h"
#include "steps.h"
#include "virtio.h"

#define NUMBERS 5
#define START_INFO_COMMAND_LINE 24 /* struct hvm_start_info.cmdline_paddr */

struct step {
    const char *name;
    void (*run)(const uint64_t *numbers);
};

static void use_ecam(const uint64_t *numbers)
{
    pci_use_ecam(numbers[0]);
}

static void use_packed(const uint64_t *numbers)
{
    (void)numbers;
    use_packed_rings();
}

static void place_bars(void)
{
    static bool is_done;
    if (!is_done)
        pci_place_bars();
    is_done = true;
}

static void run_disk(const uint64_t *numbers)
{
    place_bars();
    disk_run((uint32_t)numbers[0], numbers[1] != 0, (uint32_t)numbers[2], (uint32_t)numbers[3],
             numbers[4]);
}

static void check_disk(const uint64_t *numbers)
{
    place_bars();
    disk_check(numbers[0], (uint32_t)numbers[1]);
}

static void send(const uint64_t *numbers)
{
    place_bars();
    net_send((uint32_t)numbers[0], numbers[1]);
}

static void receive(const uint64_t *numbers)
{
    place_bars();
    net_receive(numbers[0], numbers[1], numbers[2]);
}

static void echo(const uint64_t *numbers)
{
    place_bars();
    net_echo(numbers[0], numbers[1]);
}

static void write_console(const uint64_t *numbers)
{
    place_bars();
    console_write((uint32_t)numbers[0], numbers[1]);
}

static void write_serial(const uint64_t *numbers)
{
    serial_write(numbers[0]);
}

static void idle(const uint64_t *numbers)
{
    (void)numbers;
    say("ready idle\n");
    halt_for_ever();
}

static const struct step steps[] = {
    {"ecam", use_ecam}, {"packed", use_packed}, {"disk", run_disk},         {"check", check_disk},
    {"send", send},     {"receive", receive},   {"echo", echo},             {"serial", write_serial},
    {"idle", idle},     {"console", write_console},
};

static uint64_t read_number(const char **at)
{
    uint64_t value = 0;
    for (; **at >= '0' && **at <= '9'; (*at)++)
        value = value * 10 + (uint64_t)(**at - '0');
    return value;
}

/* Whether a word begins with a step's name: then it is done, and `at` is behind its numbers. */
static bool is_done(const struct step *step, const char **at)
{
    const char *name = step->name, *text = *at;
    while (*name != 0 && *name == *text)
        name++, text++;
    if (*name != 0 || (*text != 0 && *text != ':' && *text != ' '))
        return false;
    uint64_t numbers[NUMBERS] = {0};
    for (int i = 0; i < NUMBERS && *text == ':'; i++) {
        text++;
        numbers[i] = read_number(&text);
    }
    *at = text;
    step->run(numbers);
    return true;
}

void run(const uint8_t *start_info)
{
    const char *at =
        (const char *)(uintptr_t) * (const uint64_t *)(start_info + START_INFO_COMMAND_LINE);
    while (*at != 0) {
        for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
            if (is_done(&steps[i], &at))
                break;
        while (*at != 0 && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    say("done\n");
    halt_for_ever();
}
