/* A preloaded library that makes writes to files whose path contains $FAULT_PATH fail as the file $FAULT_PLAN says. One line:
   `eio`, `enospc` or `short` for writes, `sync` for fdatasync and fsync; anything else: nothing fails. Read anew at each call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int concerned(int fd)
{
    char link[64], path[512];
    const char *part = getenv("FAULT_PATH");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0 || part == NULL) { return 0; }
    path[size] = 0;
    return strstr(path, part) != NULL;
}

static void read_plan(char *plan, size_t size)
{
    memset(plan, 0, size);
    const char *path = getenv("FAULT_PLAN");
    const int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) { return; }
    ssize_t (*real_read)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    if (real_read(fd, plan, size - 1) < 0) { plan[0] = 0; }
    close(fd);
}

static ssize_t faulty_write(int fd, const void *data, size_t size, off_t offset)
{
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (real == NULL) { real = dlsym(RTLD_NEXT, "pwrite64"); }
    char plan[16];
    if (concerned(fd))
    {
        read_plan(plan, sizeof plan);
        if (strncmp(plan, "eio", 3) == 0) { errno = EIO; return -1; }
        if (strncmp(plan, "enospc", 6) == 0) { errno = ENOSPC; return -1; }
        if (strncmp(plan, "short", 5) == 0 && size > 100)
        {
            if (real(fd, data, size / 2, offset) < 0) { return -1; } /* half of it reaches the file, and then no more */
            errno = ENOSPC;
            return -1;
        }
    }
    return real(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return faulty_write(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return faulty_write(fd, data, size, offset); }

static int faulty_sync(const char *name, int fd)
{
    char plan[16];
    if (concerned(fd))
    {
        read_plan(plan, sizeof plan);
        if (strncmp(plan, "sync", 4) == 0) { errno = EIO; return -1; }
    }
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    return real(fd);
}
int fdatasync(int fd) { return faulty_sync("fdatasync", fd); }
int fsync(int fd) { return faulty_sync("fsync", fd); }
