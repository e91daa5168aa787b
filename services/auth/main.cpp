#include "services/auth/service.hpp"

int main(int argc, char** argv)
{
    return dstack::run_daemon<dstack::auth::Config>(
        argc, argv, {"dstack-auth", "answers the KMS: may this boot get keys?", "/etc/dstack/auth.toml"},
        dstack::auth::parse_config, dstack::auth::serve);
}
