#include "services/vmm-local/rpc.hpp"
#include <cctype>
#include <nlohmann/json.hpp>

namespace dstack::vmm
{

std::string method_of(std::string_view path)
{
    constexpr std::string_view mount = "/prpc/";
    if (path.substr(0, mount.size()) != mount) { return {}; }
    path.remove_prefix(mount.size());
    if (path.find('/') != std::string_view::npos) { return {}; }
    bool stripped = true;
    while (stripped)
    {
        stripped = false;
        for (const std::string_view prefix : {std::string_view{"Teepod."}, std::string_view{"Vmm."}})
        {
            if (path.substr(0, prefix.size()) == prefix)
            {
                path.remove_prefix(prefix.size());
                stripped = true;
            }
        }
    }
    return std::string{path};
}

bool wants_json(std::string_view http_method, std::string_view query, std::string_view content_type)
{
    if (http_method == "GET" || http_method == "HEAD") { return true; }
    while (!query.empty())
    {
        const auto end = std::min(query.find('&'), query.size());
        const std::string_view part = query.substr(0, end);
        if (part == "json" || part == "json=" || part == "json=1" || part == "json=true") { return true; }
        query.remove_prefix(std::min(end + 1, query.size()));
    }
    content_type = content_type.substr(0, content_type.find(';'));
    while (!content_type.empty() && content_type.back() == ' ') { content_type.remove_suffix(1); }
    constexpr std::string_view json = "application/json";
    if (content_type.size() != json.size()) { return false; }
    for (std::size_t i = 0; i < json.size(); ++i)
    {
        if (std::tolower(static_cast<unsigned char>(content_type[i])) != json[i]) { return false; }
    }
    return true;
}

std::string error_body(std::string_view message)
{
    nlohmann::ordered_json body;
    body["error"] = message;
    return body.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

} // namespace dstack::vmm
