#include "services/deployer/service.hpp"

int main(int argc, char** argv)
{
    return dstack::run_daemon(argc, argv,
                              {"dstack-deployer", "turns compose files into running, permitted, reachable VMs", "/etc/dstack/deployer.toml"},
                              &dstack::deployer::parse_config, &dstack::deployer::serve);
}
