#include "services/kms-local/service.hpp"

int main(int argc, char** argv)
{
    const dstack::DaemonInfo info{"dstack-kms-local", "embedded KMS of a development host",
                                  "/etc/dstack/kms-local.toml"};
    return dstack::run_daemon<dstack::kms::Config>(argc, argv, info, dstack::kms::parse_config, dstack::kms::serve);
}
