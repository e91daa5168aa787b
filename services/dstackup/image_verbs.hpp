#pragma once
#include "services/dstackup/print.hpp"

namespace dstack::up
{

struct ImageImport
{
    std::string path{};
    std::string name{};
};
int image_import(const Global& global, const ImageImport& wish);
int image_ls(const Global& global);

} // namespace dstack::up
