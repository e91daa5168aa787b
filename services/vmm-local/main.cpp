#include "services/vmm-local/service.hpp"

int main(int argc, char** argv)
{
    return dstack::run_daemon(argc, argv,
                              {"dstack-vmm-local", "embedded VMM: upstream's VMM API over QEMU", "/etc/dstack/vmm-local.toml"},
                              dstack::vmm::parse_config, dstack::vmm::serve);
}
