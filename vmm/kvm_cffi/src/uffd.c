/* Opening a userfaultfd; Linux Documentation/admin-guide/mm/userfaultfd.rst. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FROM_DEVICE _IO(0xAA, 0x00) /* USERFAULTFD_IOC_NEW, which older headers lack */

static int open_any(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0 || errno != EPERM)
        return fd >= 0 ? fd : -errno;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -EPERM;
    fd = ioctl(device, FROM_DEVICE, O_CLOEXEC | O_NONBLOCK);
    int result = fd >= 0 ? fd : -errno;
    close(device);
    return result;
}

int vk_uffd_open(void)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM |
                    UFFD_FEATURE_MISSING_HUGETLBFS,
    };
    int fd = open_any();
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) == 0)
        return fd;
    int result = -errno;
    close(fd);
    return result;
}
