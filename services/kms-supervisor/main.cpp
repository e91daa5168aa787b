#include "services/kms-supervisor/supervisor.hpp"

int main(int argc, char** argv)
{
    const dstack::DaemonInfo info{"dstack-kms-supervisor", "brings the KMS up and keeps its identity",
                                  "/etc/dstack/kms-supervisor.toml"};
    return dstack::run_daemon<dstack::kms_supervisor::Config>(argc, argv, info, dstack::kms_supervisor::parse_config,
                                                              dstack::kms_supervisor::serve);
}
