#pragma once

namespace dstack::up
{
/// The whole program: reads the command line, runs one verb, gives its exit code.
int run_cli(int argc, char** argv);
} // namespace dstack::up
