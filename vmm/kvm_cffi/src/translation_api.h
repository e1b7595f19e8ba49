/*
 * What Python may call of the IOMMU's view of guest memory; translation.h says what a domain and an
 * endpoint are. api.h has the rest, and says how both are read.
 */

typedef struct vk_domain vk_domain;
typedef struct vk_endpoint vk_endpoint;

enum vk_access { VK_ACCESS_READ = 1, VK_ACCESS_WRITE = 2 };

/* From `first` to `last`, both included, a device's addresses are the guest's from `gpa` on. */
struct vk_mapping {
    uint64_t first;
    uint64_t last;
    uint64_t gpa;
    uint32_t access; /* enum vk_access */
};

struct vk_fault {
    uint64_t address;
    uint32_t access;
    int has_domain; /* whether its device was in one */
};

vk_domain *vk_domain_new(void);
void vk_domain_free(vk_domain *domain);
/* -EEXIST: a part of it is mapped already; -ENOMEM. */
int vk_domain_map(vk_domain *domain, const struct vk_mapping *mapping);
/* Removes up to `most` mappings: how many; -ERANGE, and none: one reaches beyond the range. */
int vk_domain_unmap(vk_domain *domain, uint64_t first, uint64_t last, uint32_t most);
/* Copies the mappings, ascending, as far as there is room: how many. */
uint32_t vk_domain_list(const vk_domain *domain, struct vk_mapping *to, uint32_t room);

vk_endpoint *vk_endpoint_new(void);
void vk_endpoint_free(vk_endpoint *endpoint);
/* Puts it into a domain, which outlives that; into none, it may have all of memory or nothing. */
void vk_endpoint_place(vk_endpoint *endpoint, const vk_domain *domain, int bypasses);
/* Has it translate again what was translated before: its domain has lost a mapping. */
void vk_endpoint_forget(vk_endpoint *endpoint);
/*
 * How many bytes from `address` on lie in one mapping that allows such access; `address` becomes where
 * they are for the guest. 0: none, and that is a fault.
 */
uint64_t vk_endpoint_translate(vk_endpoint *endpoint, uint64_t *address, uint64_t size,
                               enum vk_access access);
/* 1: there was a fault, which is forgotten. */
int vk_endpoint_take_fault(vk_endpoint *endpoint, struct vk_fault *fault);
