/* A preloaded library that ends the process with SIGKILL before its Nth write or sync of a file whose path contains $KILL_PATH,
   counted from when $KILL_PLAN holds the number N; an empty file kills nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int steps;

static int concerned(int fd)
{
    char link[64], path[512];
    const char *part = getenv("KILL_PATH");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0 || part == NULL) { return 0; }
    path[size] = 0;
    return strstr(path, part) != NULL;
}

static void step(int fd)
{
    char text[16] = {0};
    const char *plan = getenv("KILL_PLAN");
    if (plan == NULL || !concerned(fd)) { return; }
    const int file = open(plan, O_RDONLY | O_CLOEXEC);
    if (file < 0) { return; }
    const ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    if (size <= 0) { steps = 0; return; }
    if (++steps >= atoi(text)) { kill(getpid(), SIGKILL); }
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset)
{
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (real == NULL) { real = dlsym(RTLD_NEXT, "pwrite64"); }
    step(fd);
    return real(fd, data, size, offset);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

int fdatasync(int fd)
{
    static int (*real)(int);
    if (real == NULL) { real = dlsym(RTLD_NEXT, "fdatasync"); }
    step(fd);
    return real(fd);
}

int fsync(int fd)
{
    static int (*real)(int);
    if (real == NULL) { real = dlsym(RTLD_NEXT, "fsync"); }
    step(fd);
    return real(fd);
}
