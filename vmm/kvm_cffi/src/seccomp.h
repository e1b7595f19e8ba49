/* What a thread that is made here owes before it does anything else. */
#ifndef SECCOMP_H
#define SECCOMP_H

#include "kvm_cffi.h"

/* Obey the program of this kind from now on, if one was declared. 0, or a negative errno. */
int vk_seccomp_enter(enum vk_thread_kind kind);

#endif
