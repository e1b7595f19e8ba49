/* Descriptors by which a process hears of accesses to memory that is not there. */
#ifndef UFFD_H
#define UFFD_H

/* For faults of the kernel too, such as KVM's, and for memory of all kinds; or a negative errno. */
int vk_uffd_open(void);

#endif
