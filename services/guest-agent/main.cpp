#include "services/guest-agent/agent.hpp"

int main(int argc, char** argv)
{
    return dstack::run_daemon(
        argc, argv, {"dstack-guest-agent", "runs the app of a development guest", "/etc/dstack/guest-agent.toml"},
        dstack::guest::parse_config, dstack::guest::serve);
}
