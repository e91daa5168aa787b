#include "bus/broker/broker.hpp"

int main(int argc, char** argv)
{
    return dstack::run_daemon<dstack::bus::BrokerConfig>(
        argc, argv, {"dstack-bus", "routes commands, journals and publishes events", "/etc/dstack/bus.toml"},
        dstack::bus::parse_config, dstack::bus::serve);
}
