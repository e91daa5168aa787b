#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::logs
{

/// What is known of one collected VM or service; kept beside its segments as source.json.
struct SourceInfo
{
    enum class Kind
    {
        vm,
        service,
    };
    Kind kind = Kind::vm;
    std::string id;     ///< VM id or service name
    std::string name;   ///< of the VM as given by its owner; the service's name
    std::string app_id; ///< of the VM; may be empty
    std::string path;   ///< of the file on the host
    bool removed = false;         ///< the VM is gone; its lines stay until the quota
    std::uint64_t created_ms = 0; ///< when this service first heard of it, unix time
    friend bool operator==(const SourceInfo&, const SourceInfo&) = default;
};

std::string encode(const SourceInfo& info);
Result<SourceInfo> decode_source(std::string_view json);
/// "vm-<id>" or "service-<name>": the directory's name.
std::string directory_name(const SourceInfo& info);

/// Which source an operator means: a VM id, the name of a VM, an app id, a service name, or the beginning (8 or more
/// characters) of a VM id. Of several with one name or app id the one that is not removed wins, then the newest.
/// "vm:X" and "service:X" say which kind. Returns an index into `sources`; not_found names what there is.
Result<std::size_t> resolve(const std::vector<SourceInfo>& sources, std::string_view wanted);

} // namespace dstack::logs
