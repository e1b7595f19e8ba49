/* Domains as trees of mappings that do not overlap, and the look-up on behalf of an endpoint. */
#define _GNU_SOURCE
#include "translation.h"

#include <errno.h>
#include <search.h>
#include <stdlib.h>

struct vk_domain {
    void *root; /* of struct vk_mapping, by tsearch */
};

/* Mappings that overlap count as equal, so a search by any range finds one that it touches. */
static int compare(const void *one, const void *other)
{
    const struct vk_mapping *left = one, *right = other;
    if (left->last < right->first)
        return -1;
    return left->first > right->last;
}

static struct vk_mapping *find(const vk_domain *domain, uint64_t first, uint64_t last)
{
    const struct vk_mapping range = {.first = first, .last = last};
    struct vk_mapping **found = tfind(&range, &domain->root, compare);
    return found == NULL ? NULL : *found;
}

vk_domain *vk_domain_new(void)
{
    return calloc(1, sizeof(vk_domain));
}

void vk_domain_free(vk_domain *domain)
{
    tdestroy(domain->root, free);
    free(domain);
}

/* The caller has seen to it that neither range wraps. */
int vk_domain_map(vk_domain *domain, const struct vk_mapping *mapping)
{
    struct vk_mapping *added = malloc(sizeof *added);
    if (added == NULL)
        return -ENOMEM;
    *added = *mapping;
    struct vk_mapping **found = tsearch(added, &domain->root, compare);
    if (found != NULL && *found == added)
        return 0;
    free(added);
    return found == NULL ? -ENOMEM : -EEXIST;
}

/* Only a mapping that holds an end of the range can reach beyond it. */
int vk_domain_unmap(vk_domain *domain, uint64_t first, uint64_t last, uint32_t most)
{
    struct vk_mapping *low = find(domain, first, first), *high = find(domain, last, last);
    if ((low != NULL && low->first < first) || (high != NULL && high->last > last))
        return -ERANGE;
    uint32_t removed = 0;
    struct vk_mapping *mapping;
    while (removed < most && (mapping = find(domain, first, last)) != NULL) {
        tdelete(mapping, &domain->root, compare);
        free(mapping);
        removed++;
    }
    return (int)removed;
}

struct listing {
    struct vk_mapping *next;
    uint32_t room;
};

static void list_one(const void *node, VISIT visit, void *closure)
{
    struct listing *listing = closure;
    const struct vk_mapping *const *mapping = node;
    if ((visit == postorder || visit == leaf) && listing->room != 0) {
        *listing->next++ = **mapping;
        listing->room--;
    }
}

uint32_t vk_domain_list(const vk_domain *domain, struct vk_mapping *to, uint32_t room)
{
    struct listing listing = {.next = to, .room = room};
    twalk_r(domain->root, list_one, &listing);
    return room - listing.room;
}

vk_endpoint *vk_endpoint_new(void)
{
    return calloc(1, sizeof(vk_endpoint));
}

void vk_endpoint_free(vk_endpoint *endpoint)
{
    free(endpoint);
}

void vk_endpoint_place(vk_endpoint *endpoint, const vk_domain *domain, int bypasses)
{
    endpoint->domain = domain;
    endpoint->bypasses = bypasses != 0;
    endpoint->generation++;
}

void vk_endpoint_forget(vk_endpoint *endpoint)
{
    endpoint->generation++;
}

int vk_endpoint_take_fault(vk_endpoint *endpoint, struct vk_fault *fault)
{
    if (!endpoint->has_fault)
        return 0;
    *fault = endpoint->fault;
    endpoint->has_fault = false;
    return 1;
}

static uint64_t fail(vk_endpoint *endpoint, uint64_t address, enum vk_access access)
{
    if (!endpoint->has_fault)
        endpoint->fault = (struct vk_fault){
            .address = address, .access = access, .has_domain = endpoint->domain != NULL};
    endpoint->has_fault = true;
    return 0;
}

/* GUEST: address and size may be anything, but size is not 0. */
uint64_t vk_endpoint_translate(vk_endpoint *endpoint, uint64_t *address, uint64_t size,
                               enum vk_access access)
{
    if (endpoint->domain == NULL)
        return endpoint->bypasses ? size : fail(endpoint, *address, access);
    const struct vk_mapping *mapping = find(endpoint->domain, *address, *address);
    if (mapping == NULL || (mapping->access & access) != access)
        return fail(endpoint, *address, access);
    uint64_t beyond = mapping->last - *address;
    *address = mapping->gpa + (*address - mapping->first);
    return size - 1 <= beyond ? size : beyond + 1;
}
