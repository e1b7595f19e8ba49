/*
 * Seccomp: the program of the whole process, those of the threads that live here, and the last words
 * of a thread that breaks one.
 *
 * What is kept here is the process's, as the filter itself is: whoever makes a thread need not know
 * of it, so none can be made without.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "seccomp.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef SYS_SECCOMP /* an si_code, which not every libc's headers have */
#define SYS_SECCOMP 1
#endif

#define KINDS 2
#define SYSCALL_BYTES 2 /* of the instruction, be it syscall or int 0x80 */

static struct sock_fprog declared[KINDS];
static char *call_names; /* of 0, 1, 2 …, each ended by a zero; none for a number that is not used */
static uint32_t call_names_bytes;

static int install(const struct sock_fprog *program, unsigned int flags)
{
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program);
    return result == 0 ? 0 : result > 0 ? -ESRCH : -errno;
}

int vk_seccomp_enter(enum vk_thread_kind kind)
{
    return declared[kind].len == 0 ? 0 : install(&declared[kind], 0);
}

int vk_seccomp_declare(enum vk_thread_kind kind, const void *program, uint32_t bytes)
{
    if ((uint32_t)kind >= KINDS || bytes == 0 || bytes > BPF_MAXINSNS * sizeof(struct sock_filter))
        return -EINVAL;
    if (declared[kind].len != 0)
        return -EALREADY;
    struct sock_filter *copy = malloc(bytes);
    if (copy == NULL)
        return -ENOMEM;
    memcpy(copy, program, bytes);
    declared[kind] = (struct sock_fprog){.len = bytes / sizeof *copy, .filter = copy};
    return 0;
}

int vk_seccomp_restrict(const void *program, uint32_t bytes)
{
    if (bytes == 0 || bytes > BPF_MAXINSNS * sizeof(struct sock_filter))
        return -EINVAL;
    /* Always, also where CAP_SYS_ADMIN could do without: nothing that is run from here gains by it. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -errno;
    const struct sock_fprog everyone = {
        .len = (unsigned short)(bytes / sizeof(struct sock_filter)),
        .filter = (struct sock_filter *)(uintptr_t)program,
    };
    return install(&everyone, SECCOMP_FILTER_FLAG_TSYNC);
}

/* ---- a breach: async-signal-safe from here on ---- */

static char *append(char *at, const char *text)
{
    while (*text != '\0')
        *at++ = *text++;
    return at;
}

static char *append_number(char *at, uint64_t number, unsigned int base)
{
    char digits[20];
    int count = 0;
    do
        digits[count++] = "0123456789abcdef"[number % base];
    while ((number /= base) != 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

static const char *name_of(int number)
{
    const char *at = call_names, *end = call_names + call_names_bytes;
    for (; number > 0 && at < end; at++)
        number -= *at == '\0';
    return at < end && *at != '\0' ? at : "unknown";
}

static void report(const siginfo_t *info)
{
    char text[192]; /* the longest name has 23 letters */
    char *at = append(text, "\nProbable seccomp violation: system call ");
    at = append_number(at, (unsigned int)info->si_syscall, 10);
    at = append(at, " (");
    at = append(at, name_of(info->si_syscall));
    at = append(at, ") at 0x");
    at = append_number(at, (uintptr_t)info->si_call_addr, 16);
    at = append(at, " in thread ");
    at = append_number(at, (unsigned int)gettid(), 10);
    at = append(at, "; --seccomp log goes on and has the kernel log each\n");
    if (write(STDERR_FILENO, text, (size_t)(at - text)) < 0) {
        /* nobody is left to tell */
    }
}

/*
 * The handler is gone once it has been called. So the call, made again, is the process's end by the
 * signal's default action, with all registers as they were: a core file shows who made it.
 */
static void on_trap(int number, siginfo_t *info, void *context)
{
    if (info->si_code == SYS_SECCOMP) {
        report(info);
        ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] -= SYSCALL_BYTES;
    } else {
        raise(number); /* somebody sent it */
    }
}

int vk_seccomp_report_traps(const char *names, uint32_t bytes)
{
    char *copy = malloc(bytes);
    if (copy == NULL)
        return -ENOMEM;
    memcpy(copy, names, bytes);
    call_names = copy;
    call_names_bytes = bytes;
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGSYS, &action, NULL) == 0 ? 0 : -errno;
}
