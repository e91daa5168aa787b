#include "services/logs/service.hpp"

int main(int argc, char** argv)
{
    return dstack::run_daemon<dstack::logs::Config>(
        argc, argv, {"dstack-logs", "collects the logs of every VM and service", "/etc/dstack/logs.toml"},
        dstack::logs::parse_config, dstack::logs::serve);
}
