#include "services/guest-agent/oci_spec.hpp"
#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>

namespace dstack::guest
{

namespace
{

using nlohmann::json;

std::optional<std::uint32_t> number(std::string_view text)
{
    std::uint32_t out = 0;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out);
    if (code != std::errc{} || end != text.data() + text.size() || out > 2'147'483'647U) { return std::nullopt; }
    return out;
}

/// The fields of one line, "a:b:c".
std::vector<std::string_view> fields(std::string_view line, char separator)
{
    std::vector<std::string_view> out;
    while (true)
    {
        const std::size_t end = line.find(separator);
        out.push_back(line.substr(0, end));
        if (end == std::string_view::npos) { return out; }
        line.remove_prefix(end + 1);
    }
}

template <class Visit>
void for_lines(std::string_view text, std::size_t min_fields, Visit visit)
{
    for (const std::string_view line : fields(text, '\n'))
    {
        const auto parts = fields(line, ':');
        if (parts.size() >= min_fields && visit(parts)) { return; }
    }
}

} // namespace

Result<User> resolve_user(std::string_view spec, std::string_view passwd, std::string_view group)
{
    User out;
    const std::size_t colon = spec.find(':');
    const std::string_view name = spec.empty() ? std::string_view{"0"} : spec.substr(0, colon);
    const auto uid = number(name);
    bool known = false;
    std::string_view login;
    for_lines(passwd, 6,
              [&](const std::vector<std::string_view>& parts)
              {
                  const auto id = number(parts[2]);
                  const auto gid = number(parts[3]);
                  if (!id || !gid || !(uid ? *id == *uid : parts[0] == name)) { return false; }
                  out.uid = *id;
                  out.gid = *gid;
                  out.home = parts[5].empty() ? "/" : std::string{parts[5]};
                  login = parts[0];
                  known = true;
                  return true;
              });
    if (!known)
    {
        if (!uid)
        {
            return Error{Errc::not_found,
                         "the image has no user '" + std::string{name} + "'",
                         "use a user of the image's /etc/passwd, or a number",
                         {}};
        }
        out.uid = *uid;
    }
    if (colon != std::string_view::npos)
    {
        const std::string_view wanted = spec.substr(colon + 1);
        std::optional<std::uint32_t> gid = number(wanted);
        for_lines(group, 3,
                  [&](const std::vector<std::string_view>& parts)
                  {
                      if (gid || parts[0] != wanted) { return false; }
                      gid = number(parts[2]);
                      return gid.has_value();
                  });
        if (!gid)
        {
            return Error{Errc::not_found,
                         "the image has no group '" + std::string{wanted} + "'",
                         "use a group of the image's /etc/group, or a number",
                         {}};
        }
        out.gid = *gid;
        return out;
    }
    if (!login.empty())
    {
        for_lines(group, 4,
                  [&](const std::vector<std::string_view>& parts)
                  {
                      const auto members = fields(parts[3], ',');
                      const auto gid = number(parts[2]);
                      if (gid && *gid != out.gid && std::ranges::find(members, login) != members.end() &&
                          out.groups.size() < 64)
                      {
                          out.groups.push_back(*gid);
                      }
                      return false;
                  });
    }
    return out;
}

std::vector<std::string> command_line(const compose::Service& service, const ImageConfig& image)
{
    std::vector<std::string> out = service.entrypoint ? *service.entrypoint : image.entrypoint;
    const std::vector<std::string>& rest = service.command ? *service.command : image.cmd;
    if (service.command || !service.entrypoint) { out.insert(out.end(), rest.begin(), rest.end()); }
    return out;
}

namespace
{

json environment(const compose::Service& service, const ImageConfig& image, const User& user)
{
    std::vector<std::pair<std::string, std::string>> all{
        {"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, {"HOME", user.home}};
    const auto set = [&](std::string_view name, std::string_view value)
    {
        const auto found = std::ranges::find(all, name, &std::pair<std::string, std::string>::first);
        if (found == all.end()) { all.emplace_back(name, value); }
        else { found->second = value; }
    };
    for (const std::string& line : image.env)
    {
        const std::size_t equals = line.find('=');
        if (equals != std::string::npos)
        {
            set(std::string_view{line}.substr(0, equals), std::string_view{line}.substr(equals + 1));
        }
    }
    for (const auto& [name, value] : service.environment) { set(name, value); }
    json out = json::array();
    for (const auto& [name, value] : all) { out.push_back(name + "=" + value); }
    return out;
}

json mount(std::string_view target, std::string_view type, std::string_view source, std::vector<std::string> options)
{
    return {{"destination", target}, {"type", type}, {"source", source}, {"options", std::move(options)}};
}

json mounts(const compose::Service& service, const ContainerPaths& paths)
{
    json out = json::array();
    out.push_back(mount("/proc", "proc", "proc", {"nosuid", "noexec", "nodev"}));
    out.push_back(mount("/dev", "tmpfs", "tmpfs", {"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}));
    out.push_back(
        mount("/dev/pts", "devpts", "devpts", {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}));
    out.push_back(mount("/dev/shm", "tmpfs", "shm", {"nosuid", "noexec", "nodev", "mode=1777", "size=64m"}));
    out.push_back(mount("/sys", "sysfs", "sysfs", {"nosuid", "noexec", "nodev", "ro"}));
    out.push_back(mount("/sys/fs/cgroup", "cgroup", "cgroup", {"nosuid", "noexec", "nodev", "ro"}));
    out.push_back(mount("/etc/hosts", "bind", paths.hosts, {"bind", "ro", "nosuid", "nodev"}));
    out.push_back(mount("/etc/resolv.conf", "bind", paths.resolv_conf, {"bind", "ro", "nosuid", "nodev"}));
    out.push_back(mount("/etc/hostname", "bind", paths.hostname, {"bind", "ro", "nosuid", "nodev"}));
    for (const compose::Mount& item : service.mounts)
    {
        std::vector<std::string> options{"nosuid", "nodev", item.read_only ? "ro" : "rw"};
        if (item.kind == compose::Mount::Kind::volume)
        {
            options.emplace_back("rbind");
            out.push_back(mount(item.target, "bind", paths.volumes + "/" + item.source, std::move(options)));
            continue;
        }
        std::string_view rest = item.options;
        while (!rest.empty())
        {
            const std::size_t comma = rest.find(',');
            options.emplace_back(rest.substr(0, comma));
            rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
        }
        out.push_back(mount(item.target, "tmpfs", "tmpfs", std::move(options)));
    }
    return out;
}

json capabilities(const User& user)
{
    const json allowed{"CAP_CHOWN",  "CAP_DAC_OVERRIDE", "CAP_FOWNER",
                       "CAP_FSETID", "CAP_KILL",         "CAP_NET_BIND_SERVICE",
                       "CAP_SETGID", "CAP_SETUID",       "CAP_SYS_CHROOT"};
    const json held = user.uid == 0 ? allowed : json::array();
    return {{"bounding", allowed},
            {"effective", held},
            {"permitted", held},
            {"inheritable", json::array()},
            {"ambient", json::array()}};
}

} // namespace

Result<std::string> oci_spec(const compose::Service& service, const ImageConfig& image, const User& user,
                             const ContainerPaths& paths)
{
    const std::vector<std::string> args = command_line(service, image);
    if (args.empty())
    {
        return Error{Errc::invalid_argument,
                     "service " + service.name + ": neither the image nor the compose file says what to run",
                     "add command:",
                     {}};
    }
    json spec;
    spec["ociVersion"] = "1.0.2";
    std::string workdir = service.working_dir.empty() ? image.workdir : service.working_dir;
    if (workdir.empty() || workdir.front() != '/') { workdir = "/"; }
    spec["process"] = {
        {"terminal", false},
        {"user", {{"uid", user.uid}, {"gid", user.gid}, {"additionalGids", user.groups}}},
        {"args", args},
        {"env", environment(service, image, user)},
        {"cwd", workdir},
        {"capabilities", capabilities(user)},
        {"rlimits", json::array({{{"type", "RLIMIT_NOFILE"}, {"soft", 1024}, {"hard", 524288}}})},
        {"noNewPrivileges", true},
    };
    spec["root"] = {{"path", paths.rootfs}, {"readonly", service.read_only}};
    spec["hostname"] = service.hostname.empty() ? service.name : service.hostname;
    spec["mounts"] = mounts(service, paths);
    spec["linux"] = {
        {"cgroupsPath", "/dstack/" + service.name},
        {"resources", {{"pids", {{"limit", 4096}}}}}, // a fork bomb stays in its container
        {"namespaces",
         json::array(
             {{{"type", "pid"}}, {{"type", "mount"}}, {{"type", "ipc"}}, {{"type", "uts"}}, {{"type", "cgroup"}}})},
        {"maskedPaths",
         {"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug",
          "/proc/scsi", "/sys/firmware"}},
        {"readonlyPaths", {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}},
    };
    return spec.dump(-1, ' ', false, json::error_handler_t::replace);
}

} // namespace dstack::guest
