/*
 * Pages of guest memory by request over a socket: after a postcopy migration, the destination asks for
 * those that are touched, and in the background for the rest.
 *
 * Spec: Cloud Hypervisor migration protocol, PageFault.
 */
#ifndef FAULTS_H
#define FAULTS_H

#include "kvm_cffi.h"

/*
 * Asks for `count` pages of `page` bytes from a guest address on, and waits for them: 0 or a negative
 * errno; -ECANCELED once *is_stopping is true.
 */
int vk_faults_ask(int fd, uint64_t gpa, uint64_t page, uint64_t count, uint8_t *to,
                  const _Atomic bool *is_stopping);

#endif
