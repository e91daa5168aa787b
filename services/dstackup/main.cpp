#include "services/dstackup/cli.hpp"

int main(int argc, char** argv) { return dstack::up::run_cli(argc, argv); }
