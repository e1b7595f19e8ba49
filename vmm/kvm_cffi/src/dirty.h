/*
 * The pages of guest RAM that this process has written, for whoever copies RAM while devices write it.
 * KVM knows of the guest's writes alone.
 *
 * A bit is set after the write it stands for. Who takes the bits and then copies the pages may copy one
 * in the middle of a write; that write's bit then comes with the next take.
 */
#ifndef DIRTY_H
#define DIRTY_H

#include "kvm_cffi.h"

/* Bytes outside the regions are ignored. */
void vk_dirty_mark(vk_dirty *dirty, uintptr_t hva, uint64_t size);

#endif
