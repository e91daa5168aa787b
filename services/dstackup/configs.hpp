#pragma once
#include "services/dstackup/settings.hpp"
#include <functional>
#include <string>
#include <vector>

namespace dstack::up
{

struct File
{
    std::string path{};
    std::string text{};
};

/// The configuration of every service of the development mesh: what differs from the defaults.
/// `program_of` gives the path of a service's executable; the broker attests its peers by it.
std::vector<File> service_configs(const Settings& settings,
                                  const std::function<std::string(const Service&)>& program_of);

/// Puts a first line over `text` by which a later run knows whether somebody has edited the file.
std::string managed(const std::string& text);
/// Was this file written by `managed` and not touched since?
bool is_unedited(std::string_view file);

} // namespace dstack::up
