#include "services/allocator/service.hpp"

int main(int argc, char** argv)
{
    return dstack::run_daemon<dstack::allocator::Config>(
        argc, argv, {"dstack-allocator", "leases CIDs and host ports", "/etc/dstack/allocator.toml"},
        dstack::allocator::parse_config, dstack::allocator::serve);
}
