/* A preloaded library: names that end in .test are this host, and finding that out takes as long as the file $SLOW_NAMES exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    const size_t size = node == NULL ? 0 : strlen(node);
    if (size < 5 || strcmp(node + size - 5, ".test") != 0) { return real(node, service, hints, list); }
    const char *flag = getenv("SLOW_NAMES");
    while (flag != NULL && access(flag, F_OK) == 0) { usleep(5000); }
    return real("127.0.0.1", service, hints, list);
}
