/* A disk as its engines share it, one after the other: the file, its size, and what was counted. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <time.h>

uint64_t vk_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

vk_disk *vk_disk_new(const struct vk_disk_setup *setup)
{
    vk_disk *disk = calloc(1, sizeof *disk);
    if (disk == NULL)
        return NULL;
    disk->setup = *setup;
    disk->sectors = setup->sectors;
    disk->counters.reads.least_ns = UINT64_MAX;
    disk->counters.writes.least_ns = UINT64_MAX;
    return disk;
}

/* Requests already taken go on with the old size; what they miss then ends in an error. */
void vk_disk_set_sectors(vk_disk *disk, uint64_t sectors)
{
    disk->sectors = sectors;
}

void vk_disk_set_written_through(vk_disk *disk, int wanted)
{
    disk->is_written_through = wanted != 0;
}

void vk_disk_count(const vk_disk *disk, struct vk_disk_counters *counters)
{
    *counters = disk->counters;
}

void vk_disk_free(vk_disk *disk)
{
    free(disk);
}

/* Past the file's end there is nothing to lose: the host only says whether it could. */
int vk_punch_hole_past(int fd, uint64_t end)
{
    const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return fallocate(fd, mode, (off_t)((end + 4095) & ~UINT64_C(4095)), 4096) < 0 ? -errno : 0;
}
