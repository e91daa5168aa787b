#include "services/dstackup/cli.hpp"
#include "services/dstackup/dev.hpp"
#include "services/dstackup/image_verbs.hpp"
#include "services/dstackup/policy_verbs.hpp"
#include "services/dstackup/token_verbs.hpp"
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>

namespace dstack::up
{

namespace
{
constexpr const char* default_prefix = "/var/lib/dstack-dev";
constexpr const char* examples = R"(Examples:
  dstackup dev up                     start the development mesh, or say that it is up
  dstackup dev status                 what runs, since when, and why something does not
  dstackup dev down                   stop its guests and services, keep the data
  dstackup dev down --purge --yes     and remove its data
  dstackup image import ./nginx-oci   let guests run that image
  dstackup policy check auth.json     does a file of upstream mean the same here?
  dstackup token create ann --role operator --out ann.join
                                      let a remote operator in

)";

struct Command
{
    Global global{};
    DevUp up{};
    DevDown down{};
    ImageImport import{};
    TokenCreate token{};
    std::string policy_file{};
    std::function<int()> verb{};
};

/// The same flags before or after the verb: each level takes them.
void add_global(CLI::App& app, Global& global)
{
    app.add_flag("-j,--json", global.json, "one JSON document on stdout")->group("Global");
    app.add_flag("-q,--quiet", global.quiet, "no progress on stderr")->group("Global");
    app.add_flag("-v,--verbose,--debug", global.verbose, "more progress on stderr")->group("Global");
    app.add_flag("-y,--yes", global.yes, "answer yes to what would be asked")->group("Global");
    app.add_flag("--no-input", global.no_input, "never ask")->group("Global");
    app.add_flag_callback(
           "--no-color", [] {}, "no colour (there is none)")
        ->group("Global");
    app.add_option("--timeout", global.timeout_s, "seconds to wait at most")
        ->check(CLI::Range(1L, 3600L))
        ->group("Global");
    app.add_option("--prefix", global.prefix, "where the mesh lives (default " + std::string{default_prefix} + ")")
        ->group("Global");
}

void add_port(CLI::App& app, const std::string& flag, std::optional<std::uint16_t>& port, const std::string& what)
{
    app.add_option(flag, port, what + "; 0 takes a free one")->check(CLI::Range(0, 65535));
}

CLI::App* add_verb(CLI::App& parent, Command& command, const std::string& name, const std::string& what,
                   std::function<int()> run)
{
    auto* verb = parent.add_subcommand(name, what);
    add_global(*verb, command.global);
    verb->callback([&command, run = std::move(run)] { command.verb = run; });
    return verb;
}

void add_dev(CLI::App& app, Command& command)
{
    auto* dev = app.add_subcommand("dev", "the development mesh on this machine: embedded VMM and KMS, no systemd");
    dev->require_subcommand(1);
    add_global(*dev, command.global);
    auto* up = add_verb(*dev, command, "up", "start it; ready when this returns",
                        [&command] { return dev_up(command.global, command.up); });
    add_port(*up, "--auth-port", command.up.auth_port, "port of the auth webhook (default 8001)");
    add_port(*up, "--vmm-port", command.up.vmm_port, "port of the VMM's API (default 9080)");
    add_port(*up, "--kms-port", command.up.kms_port, "port of the KMS (default 8443)");
    auto* down = add_verb(*dev, command, "down", "stop its guests and services",
                          [&command] { return dev_down(command.global, command.down); });
    down->add_flag("--purge", command.down.purge, "remove its data too: keys, apps, logs");
    add_verb(*dev, command, "status", "every process: state, since when, restarts, memory",
             [&command] { return dev_status(command.global); });
    add_verb(*dev, command, "supervise", "what dev up starts in the background",
             [&command] { return dev_supervise(command.global); })
        ->group(""); // not in the help
}

void add_image(CLI::App& app, Command& command)
{
    auto* image = app.add_subcommand("image", "container images that guests may run");
    image->require_subcommand(1);
    add_global(*image, command.global);
    auto* import =
        add_verb(*image, command, "import", "add images from an OCI layout (directory or tar) or a docker archive",
                 [&command] { return image_import(command.global, command.import); });
    import->add_option("path", command.import.path, "the layout or archive")->required();
    import->add_option("--name", command.import.name, "the name that compose files use; default: the image's own");
    add_verb(*image, command, "ls", "the images that are there", [&command] { return image_ls(command.global); });
}

void add_token(CLI::App& app, Command& command)
{
    auto* token = app.add_subcommand("token", "who may reach the bus from other hosts, with which role, until when");
    token->require_subcommand(1);
    add_global(*token, command.global);
    auto* create = add_verb(*token, command, "create", "let somebody in: prints a join string, once",
                            [&command] { return token_create(command.global, command.token); });
    create->add_option("name", command.token.name, "a name for it: a-z 0-9 . _ -")->required();
    create->add_option("--role", command.token.role, "viewer, operator or admin")
        ->check(CLI::IsMember({"viewer", "operator", "admin"}))
        ->capture_default_str();
    create->add_option("--expires", command.token.expires, "how long it lives: 12h, 30d, 8w")->type_name("TIME")->capture_default_str();
    create->add_option("--address", command.token.address, "how the operator reaches this host; default: [tcp] advertise, or its name")
        ->type_name("HOST[:PORT]");
    create->add_option("--out", command.token.out, "write the join string to this new file (0600) instead of stdout")->type_name("FILE");
    add_verb(*token, command, "list", "all tokens, also those that ended", [&command] { return token_list(command.global); })->alias("ls");
    auto* revoke = add_verb(*token, command, "revoke", "take its rights and end its connections, at once",
                            [&command] { return token_revoke(command.global, command.token.name); });
    revoke->add_option("name", command.token.name, "its name")->required();
}

void add_policy(CLI::App& app, Command& command)
{
    auto* policy = app.add_subcommand("policy", "the file that says what may boot");
    policy->require_subcommand(1);
    add_global(*policy, command.global);
    auto* check = add_verb(*policy, command, "check", "is it valid, and does it rely on upstream's \"empty means any\"?",
                           [&command] { return policy_check(command.global, command.policy_file); });
    check->add_option("file", command.policy_file, "the policy file, ours or upstream's")->required();
}

/// The word that stands where a verb should.
std::string unknown_verb(const CLI::App& app)
{
    const CLI::App* deepest = &app;
    while (!deepest->get_subcommands().empty()) { deepest = deepest->get_subcommands().front(); }
    for (const auto& word : deepest->remaining())
    {
        if (!word.starts_with('-')) { return word; }
    }
    return {};
}

int refuse(const CLI::App& app, const Command& command, const CLI::ParseError& error)
{
    if (error.get_exit_code() == 0) { return -1; } // --help, --version: CLI11 prints them
    std::string message = error.what();
    const auto word = unknown_verb(app);
    if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr && !word.empty())
    {
        message = "unknown verb '" + word + "'";
    }
    if (!message.empty()) { message[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(message[0]))); }
    return print_error(command.global, {Errc::invalid_argument, message, "see dstackup --help", {}});
}

int canonical_prefix(Global& global)
{
    if (global.prefix.empty()) // not CLI11's envname: on each level it would win over a flag given on another
    {
        const char* from_environment = std::getenv("DSTACK_PREFIX");
        global.prefix = from_environment != nullptr && *from_environment != '\0' ? from_environment : default_prefix;
    }
    std::error_code failed;
    auto path = std::filesystem::weakly_canonical(std::filesystem::absolute(global.prefix, failed), failed).string();
    while (path.size() > 1 && path.ends_with('/')) { path.pop_back(); }
    if (failed || path.empty() || path == "/")
    {
        return print_error(
            global, {Errc::invalid_argument, "--prefix " + global.prefix + ": must be a folder other than /", {}, {}});
    }
    global.prefix = path;
    return exit_ok;
}
} // namespace

int run_cli(int argc, char** argv)
{
    std::signal(SIGPIPE, SIG_IGN);
    Command command;
    CLI::App app{std::string{examples} + "dstackup: sets a host up for confidential VMs, checks it, takes it down",
                 "dstackup"};
    app.set_version_flag("--version", "dstackup " DSTACK_VERSION);
    app.require_subcommand(1);
    app.allow_extras(false);
    add_global(app, command.global);
    add_dev(app, command);
    add_image(app, command);
    add_token(app, command);
    add_policy(app, command);
    try
    {
        app.parse(argc, argv);
    }
    catch (const CLI::ParseError& error)
    {
        const int code = refuse(app, command, error);
        return code >= 0 ? code : app.exit(error);
    }
    if (const int code = canonical_prefix(command.global); code != exit_ok) { return code; }
    return command.verb ? command.verb() : static_cast<int>(exit_usage);
}

} // namespace dstack::up
