#include "services/auth/service.hpp"
#include <malloc.h>

int main(int argc, char** argv)
{
    // A policy of many apps is read into one block, and freed: such blocks go back to the system at once.
    ::mallopt(M_MMAP_THRESHOLD, 256 * 1024);
    ::mallopt(M_ARENA_MAX, 2);
    return dstack::run_daemon<dstack::auth::Config>(
        argc, argv, {"dstack-auth", "answers the KMS: may this boot get keys?", "/etc/dstack/auth.toml"},
        dstack::auth::parse_config, dstack::auth::serve);
}
