/*
 * What stands between a device's addresses and guest memory when it is behind the IOMMU: domains, which
 * are address spaces made of mappings, and endpoints, which are devices and know their domain.
 *
 * All of it is the loop's thread's: requests to the IOMMU and rings are served there, one after the
 * other. Worker threads only use what was translated before.
 */
#ifndef TRANSLATION_H
#define TRANSLATION_H

#include "kvm_cffi.h"

struct vk_endpoint {
    const vk_domain *domain; /* NULL: it is in none */
    bool bypasses;           /* in no domain: whether its addresses are the guest's own */
    bool has_fault;
    uint64_t generation;     /* another one when what it was told before may not hold any more */
    struct vk_fault fault;   /* the first one that nobody has taken yet */
};

#endif
