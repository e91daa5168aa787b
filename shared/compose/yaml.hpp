#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dstack::compose
{

/// One node of a YAML document: aliases copied, merge keys (`<<`) applied.
struct Yaml
{
    enum class Kind
    {
        null,
        scalar,
        list,
        map,
    };
    Kind kind = Kind::null;
    std::string text{};        ///< scalar
    bool plain = false;        ///< scalar written without quotes: true and 80 are no strings then
    int line = 0;              ///< 1-based
    std::vector<Yaml> items{}; ///< list
    std::vector<std::pair<std::string, Yaml>>
        keys{}; ///< map, in the order of the text; the value's line is that of its key

    const Yaml* find(std::string_view key) const;
};

/// Limits that no honest compose file meets; a bomb does.
struct YamlLimits
{
    std::size_t bytes = 256 * 1024;
    std::size_t nodes = 10'000; ///< after aliases are copied
    std::size_t depth = 48;
};

/// Exactly one document. The size is checked before anything is parsed; duplicate keys, tags, keys that are no
/// scalars, NUL bytes and aliases that refer to themselves are refused. Messages begin with "line N: ".
Result<Yaml> parse_yaml(std::string_view text, const YamlLimits& limits = {});

} // namespace dstack::compose
