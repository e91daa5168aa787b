#include "services/dstack/options.hpp"
#include "bus/protocol/endpoint.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/port_spec.hpp"
#include "services/dstack/text.hpp"
#include <CLI/CLI.hpp>
#include <algorithm>

namespace dstack::cli
{

namespace
{
constexpr const char* examples = R"(Examples:
  dstack deploy -n hello -c docker-compose.yaml --port auto:80
  dstack ls
  dstack logs hello -f
  dstack events -f
  dstack rm hello --yes

dstack deploys and manages the apps of this host.)";

/// Text that becomes something else, after CLI11 is done.
struct Words
{
    std::vector<std::string> ports;
    std::string memory;
    std::string timeout;
    std::string instance;
    std::string how_long;
    std::string until;
    bool debug = false;
    bool version = false;
    bool no_allow = false;
    bool no_kms = false;
    bool no_wait = false;
    bool privileged = false;
};

void add_globals(CLI::App& app, Options& o, Words& w)
{
    app.add_flag("-j,--json", o.json, "one JSON document on stdout; streams are one document per line");
    app.add_flag("-q,--quiet", o.quiet, "no progress and no hints");
    app.add_flag("-v,--verbose", o.verbose, "more progress");
    app.add_flag("--debug", w.debug, "like -v");
    app.add_flag("--no-color", o.no_color, "no colour (also NO_COLOR)");
    app.add_flag("--no-input", o.no_input, "never ask");
    app.add_flag("-y,--yes", o.yes, "yes to every question");
    app.add_flag("--dry-run", o.dry_run, "change nothing; say what would be done");
    app.add_option("--timeout", w.timeout, "how long to wait, such as 90s")->type_name("TIME");
    app.add_option("--prefix", o.prefix, "the instance under this directory (also DSTACK_PREFIX)")->type_name("DIR");
    app.add_option("--instance", w.instance, "a named instance")->type_name("NAME");
    app.add_option("--host", o.host, "the bus of another host (also DSTACK_HOST); default: the one in the token file")->type_name("HOST[:PORT]");
    app.add_option("--token-file", o.token_file, "join string from `dstackup token create`; - is stdin (also DSTACK_TOKEN_FILE)")->type_name("FILE");
    app.add_flag("--version", w.version, "the version");
}

void add_deploy(CLI::App& app, Options& o, Words& w)
{
    auto* deploy = app.add_subcommand("deploy", "run a compose file in a confidential VM, and wait until it answers");
    deploy->alias("run");
    deploy->add_option("-n,--name", o.name, "the app's name on this host")->required();
    deploy->add_option("-c,--compose,compose", o.compose, "docker-compose file; - is stdin")->required()->type_name("FILE");
    deploy->add_option("-p,--port", w.ports, "publish a port: vm | host:vm | proto:host:vm | proto:addr:host:vm; host may be auto, both may be ranges")
        ->type_name("SPEC")
        ->allow_extra_args(false)
        ->take_all();
    deploy->add_flag("--privileged-ports", w.privileged, "host ports below 1024 may be taken too");
    deploy->add_option("--image", o.image, "guest OS image; default: the newest in the store");
    deploy->add_option("--vcpu", o.vcpu, "virtual CPUs")->capture_default_str();
    deploy->add_option("--memory", w.memory, "memory, MiB or with M or G (512)")->type_name("SIZE");
    deploy->add_option("--disk", o.disk_gb, "data disk in GiB; 0: none")->capture_default_str();
    deploy->add_flag("--no-allow", w.no_allow, "do not allow the compose hash: the policy must do so already");
    deploy->add_flag("--no-kms", w.no_kms, "an app without keys");
    deploy->add_flag("--wait,!--no-wait", o.wait, "wait until the app answers (default)");
}

void add_policy_changes(CLI::App& app, Options& o, Words& w)
{
    auto* allow = app.add_subcommand("allow", "let the KMS release keys to a compose hash of an app, or to an OS image");
    auto* revoke = app.add_subcommand("revoke", "take that back: a hash, a whole app, or an OS image");
    allow->add_option("--for", w.how_long, "only so long, such as 2h")->type_name("TIME");
    allow->add_option("--until", w.until, "only until then (RFC 3339)")->type_name("TIME");
    for (auto* verb : {allow, revoke})
    {
        verb->add_option("hash", o.hash, "compose hash, 64 hex digits");
        verb->add_option("--app", o.app, "the app: its id, or the name of one that is deployed here");
        verb->add_option("--image", o.image, "instead of an app: the hash of an OS image")->type_name("HASH");
        verb->add_option("--reason", o.reason, "why, for the record");
    }
}

/// What CLI11 cannot say: which of them go together.
Result<Done> check_policy_change(const Options& o)
{
    const bool image = !o.image.empty();
    const bool app = !o.app.empty();
    if (image && (app || !o.hash.empty())) { return Error{Errc::invalid_argument, "--image stands alone: it allows an OS image, not an app", {}, {}}; }
    if (image) { return Done{}; }
    if (!app) { return Error{Errc::invalid_argument, o.verb + " needs --app APP (or --image HASH)", "see `dstack " + o.verb + " --help`", {}}; }
    if (o.hash.empty() && o.verb == "allow") { return Error{Errc::invalid_argument, "allow needs a compose hash", "`dstack deploy --dry-run` shows the one of a compose file", {}}; }
    return Done{};
}

CLI::App* add_app_verb(CLI::App& app, Options& o, const char* name, const char* about)
{
    auto* verb = app.add_subcommand(name, about);
    verb->add_option("app", o.app, "name, app id or VM id")->required();
    return verb;
}

void add_streams(CLI::App& app, Options& o)
{
    auto* logs = add_app_verb(app, o, "logs", "what an app's VM, or a service of the mesh, has printed");
    logs->add_flag("-f,--follow,!--no-follow", o.follow, "go on as it comes");
    logs->add_option("--lines", o.lines, "the last this many")->capture_default_str()->check(CLI::Range(1U, 10000U));
    logs->add_flag("--raw", o.raw, "do not escape control bytes");

    auto* events = app.add_subcommand("events", "everything that happened, in order");
    events->add_flag("-f,--follow,!--no-follow", o.follow, "go on as it comes");
    events->add_option("--from", o.from, "0 (everything), behind a cursor EPOCH:SEQUENCE, a time (RFC 3339), or how long ago (10m)")
        ->type_name("CURSOR|TIME|AGE|0");
    events->add_option("--type", o.type, "only types that begin like this, such as vm.");
    events->add_option("--subject", o.subject, "only of this subject");
    events->add_option("--source", o.source, "only of this service, such as vmm-local");
    events->add_option("--severity", o.severity, "this severity or worse")->check(CLI::IsMember({"debug", "info", "warning", "error"}));
}

void add_bus(CLI::App& app, Options& o)
{
    auto* trace = app.add_subcommand("trace", "one deploy (start, stop, rm) as a tree: its commands, steps and events, with durations");
    trace->add_option("id", o.app, "an app (its last operation), an operation, a trace id, an event's id or cursor")->required();
    auto* bus = app.add_subcommand("bus", "the bus itself: who is on it, and how it fares");
    bus->require_subcommand(1);
    bus->add_subcommand("services", "who is registered, since when, and how often it was restarted");
    bus->add_subcommand("top", "rates, queues and slow consumers; refreshed every second on a terminal");
    for (auto* verb : bus->get_subcommands({})) { verb->fallthrough(); }
}

void add_leases(CLI::App& app, Options& o)
{
    auto* leases = app.add_subcommand("leases", "CIDs and ports that are taken, and by whom");
    leases->add_flag("--all", o.all, "everything on this host: other installs' leases, and what others use without one");
    leases->require_subcommand(0, 1);
    auto* explain = leases->add_subcommand("explain", "who has a port or a CID, and whether it would be granted");
    explain->add_option("what", o.app, "8080, tcp:127.0.0.1:8080, udp:[::1]:53, cid:1003 or vsock:10000")->required();
    auto* release = leases->add_subcommand("release", "give one lease back; refused while its owner lives");
    release->add_option("id", o.app, "such as lease-12")->required();
    for (auto* verb : leases->get_subcommands({})) { verb->fallthrough(); }
}

void add_app_verbs(CLI::App& app, Options& o)
{
    auto* ls = app.add_subcommand("ls", "the apps of this host");
    ls->alias("apps")->alias("ps");
    add_app_verb(app, o, "info", "one app");
    auto* stop = add_app_verb(app, o, "stop", "shut an app's VM down; it keeps its ports and its disk");
    stop->add_flag("--force", o.force, "kill the VM instead of asking it");
    stop->add_flag("--wait,!--no-wait", o.wait, "wait until it is done (default)");
    auto* start = add_app_verb(app, o, "start", "start a stopped app");
    start->add_flag("--wait,!--no-wait", o.wait, "wait until it answers (default)");
    auto* rm = add_app_verb(app, o, "rm", "remove an app: its VM, disk, ports and allowed hash; logs and events stay");
    rm->add_flag("--wait,!--no-wait", o.wait, "wait until it is done (default)");
    add_leases(app, o);
    app.add_subcommand("version", "the version");
    auto* completion = app.add_subcommand("completion", "shell completion: source <(dstack completion bash)");
    completion->add_option("shell", o.shell, "bash")->required()->check(CLI::IsMember({"bash"}));
}

void add_record_filters(CLI::App& verb, Options& o)
{
    verb.add_option("--app", o.app, "only of this app: name or app id");
    verb.add_option("--kind", o.kind, "only this kind")->check(CLI::IsMember({"app", "kms", "policy", "repair"}));
    verb.add_flag("--denied", o.denied, "only decisions that denied");
    verb.add_flag("--allowed", o.allowed, "only decisions that allowed");
    verb.add_option("--since", o.since, "only from this time on (RFC 3339), or how long ago (2h)")->type_name("TIME|AGE");
}

void add_audit(CLI::App& app, Options& o)
{
    auto* audit = app.add_subcommand("audit", "the decision ledger: every answer that the KMS got, and every change of the policy");
    audit->require_subcommand(1);
    auto* list = audit->add_subcommand("list", "records, newest first");
    add_record_filters(*list, o);
    list->add_option("--limit", o.limit, "at most this many")->capture_default_str()->check(CLI::Range(1U, 1'000'000U));
    auto* show = audit->add_subcommand("show", "one record, with every rule that was checked");
    show->add_option("record", o.decision, "its number")->required();
    add_record_filters(*audit->add_subcommand("export", "the records as they are in the ledger, one JSON object per line, oldest first"), o);
    auto* verify = audit->add_subcommand("verify", "walk the ledger's files, without the service: is every record as it was written?");
    verify->add_option("--dir", o.directory, "where the ledger is; default: of the instance on this host")->type_name("DIR");
    verify->add_option("--key", o.key_file, "the public key of its checkpoints; default: checkpoint.pub beside it")->type_name("FILE");
    verify->add_option("--expect", o.expect, "that record must be there with that hash, as an earlier verify said")->type_name("RECORD:HASH");
    auto* why = app.add_subcommand("why", "why a boot got its keys or not: the checks, the changes of the policy behind it, and what would allow it");
    why->add_option("id", o.app, "an app (its last decision), a VM, or the number of a decision")->required();
    auto* policy = app.add_subcommand("policy", "who may boot");
    policy->require_subcommand(1);
    auto* test = policy->add_subcommand("test", "decide boots without telling anybody: which would flip?");
    test->add_option("--boot-info", o.boot_info, "a body as the KMS posts it; - is stdin")->type_name("FILE");
    test->add_option("--kind", o.kind, "what that body is of")->check(CLI::IsMember({"app", "kms"}));
    test->add_option("--decision", o.decision, "the boot of that decision")->type_name("NUMBER");
    test->add_option("--last", o.last, "the boots of the newest decisions")->type_name("N")->check(CLI::Range(1U, 100'000U));
    test->add_option("--with", o.with, "this policy instead of the one in force; - is stdin")->type_name("FILE");
    test->add_flag("--exit-code", o.with_exit_code, "exit 11 when a decision would be another");
    for (auto* verb : audit->get_subcommands({})) { verb->fallthrough(); }
    test->fallthrough();
}

/// Before CLI11 understands anything: does the caller want documents?
bool asks_for_json(int argc, const char* const* argv)
{
    return std::any_of(argv + 1, argv + argc, [](const char* arg) { return std::string_view{arg} == "--json" || std::string_view{arg} == "-j"; });
}

Result<Done> finish(Options& o, Words& w)
{
    for (const std::string& spec : w.ports)
    {
        auto ports = parse_port_specs(spec);
        if (!ports) { return std::move(ports).error(); }
        for (auto& port : *ports)
        {
            port.privileged = w.privileged;
            o.ports.push_back(std::move(port));
        }
    }
    if (!w.memory.empty())
    {
        auto memory = parse_mebibytes(w.memory);
        if (!memory) { return std::move(memory).error().within("--memory"); }
        o.memory_mb = *memory;
    }
    if (!w.timeout.empty())
    {
        auto timeout = parse_duration(w.timeout);
        if (!timeout) { return std::move(timeout).error().within("--timeout"); }
        o.timeout_ms = std::max<std::uint64_t>(*timeout, 1);
    }
    if (!w.how_long.empty() && !w.until.empty()) { return Error{Errc::invalid_argument, "--for and --until say the same", "leave one of them away", {}}; }
    if (!w.how_long.empty())
    {
        auto how_long = parse_duration(w.how_long);
        if (!how_long) { return std::move(how_long).error().within("--for"); }
        if (*how_long == 0) { return Error{Errc::invalid_argument, "--for: must be longer than nothing", {}, {}}; }
        o.for_ms = *how_long;
    }
    if (!w.until.empty())
    {
        auto until = parse_time(w.until);
        if (!until) { return std::move(until).error().within("--until"); }
        o.until_ms = *until;
    }
    if (o.verb == "allow" || o.verb == "revoke")
    {
        auto fits = check_policy_change(o);
        if (!fits) { return fits; }
    }
    if (!w.instance.empty())
    {
        return Error{Errc::invalid_argument, "--instance: this version has no named instances", "use --prefix DIR for another instance on this host", {}};
    }
    if (!o.prefix.empty() && (!o.host.empty() || !o.token_file.empty()))
    {
        return Error{Errc::invalid_argument, "--prefix is for an instance on this host, --host and --token-file for another one", "leave one of them away", {}};
    }
    if (!o.host.empty())
    {
        auto host = bus::parse_endpoint(o.host);
        if (!host) { return std::move(host).error().within("--host"); }
    }
    if (o.token_file == "-" && o.compose == "-") { return Error{Errc::invalid_argument, "stdin cannot be both the token and the compose file", "put one of them into a file", {}}; }
    if (o.denied && o.allowed) { return Error{Errc::invalid_argument, "--denied and --allowed leave nothing", "leave one of them away", {}}; }
    if (o.verb == "policy test" && (o.boot_info.empty() ? 0 : 1) + (o.decision == 0 ? 0 : 1) + (o.last == 0 ? 0 : 1) != 1)
    {
        return Error{Errc::invalid_argument, "policy test needs one of --boot-info, --decision and --last", "see `dstack policy test --help`", {}};
    }
    if (o.boot_info == "-" && o.with == "-") { return Error{Errc::invalid_argument, "stdin cannot be both the boot and the policy", "put one of them into a file", {}}; }
    o.allow = !w.no_allow;
    o.kms = !w.no_kms;
    o.verbose = o.verbose || w.debug;
    if (o.source.starts_with("/dstack/")) { o.source.erase(0, 8); } // as events have it
    return Done{};
}

Leave mistake(int argc, const char* const* argv, std::string message, std::string hint)
{
    if (!message.empty() && message[0] >= 'A' && message[0] <= 'Z' && message.rfind("INT", 0) != 0)
    {
        message[0] = static_cast<char>(message[0] - 'A' + 'a');
    }
    return Leave{exit_usage, {}, std::move(message), std::move(hint), asks_for_json(argc, argv)};
}
} // namespace

std::variant<Options, Leave> parse_options(int argc, const char* const* argv)
{
    Options o;
    Words w;
    CLI::App app{examples, "dstack"};
    app.fallthrough();
    app.set_help_flag("-h,--help", "this text");
    add_globals(app, o, w);
    add_deploy(app, o, w);
    add_app_verbs(app, o);
    add_policy_changes(app, o, w);
    add_streams(app, o);
    add_bus(app, o);
    add_audit(app, o);
    for (auto* verb : app.get_subcommands({})) { verb->fallthrough(); }
    app.require_subcommand(0, 1);
    try
    {
        app.parse(argc, argv);
    }
    catch (const CLI::CallForHelp&)
    {
        const auto chosen = app.get_subcommands();
        if (chosen.empty()) { return Leave{exit_ok, app.help(), {}, {}, false}; }
        const auto below = chosen.front()->get_subcommands();
        const std::string name = "dstack " + chosen.front()->get_name();
        return Leave{exit_ok, below.empty() ? chosen.front()->help("dstack") : below.front()->help(name), {}, {}, false};
    }
    catch (const CLI::ParseError& error)
    {
        const auto chosen = app.get_subcommands();
        const std::string help = chosen.empty() ? "see `dstack --help`" : "see `dstack " + chosen.front()->get_name() + " --help`";
        return mistake(argc, argv, error.what(), help);
    }
    if (w.version) { o.verb = "version"; }
    else
    {
        const auto chosen = app.get_subcommands();
        if (chosen.empty()) { return mistake(argc, argv, "no command", "see `dstack --help`"); }
        o.verb = chosen.front()->get_name();
        for (const auto* below : chosen.front()->get_subcommands()) { o.verb += " " + below->get_name(); } // "bus top"
    }
    auto finished = finish(o, w);
    if (!finished) { return Leave{exit_usage, {}, finished.error().message, finished.error().hint, o.json}; }
    return o;
}

std::string bash_completion()
{
    return R"(_dstack() {
    local verbs="deploy run ls apps ps info logs events trace why audit policy bus stop start rm allow revoke leases version completion"
    local flags="--json --quiet --verbose --no-color --no-input --yes --dry-run --timeout --prefix --host --token-file --help --version"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "$verbs $flags" -- "${COMP_WORDS[COMP_CWORD]}"))
        return
    fi
    case "${COMP_WORDS[1]}" in
    info|logs|trace|why|stop|start|rm) COMPREPLY=($(compgen -W "$(dstack ls 2>/dev/null | awk 'NR > 1 { print $1 }') $flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    deploy|run) COMPREPLY=($(compgen -f -W "-n -c --port --privileged-ports --image --vcpu --memory --disk --no-allow --no-kms --no-wait $flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    allow|revoke) COMPREPLY=($(compgen -W "--app --image --for --until --reason $flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    audit) COMPREPLY=($(compgen -W "list show export verify --app --kind --denied --allowed --since --limit --dir --key --expect $flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    policy) COMPREPLY=($(compgen -f -W "test --boot-info --decision --last --with --exit-code $flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    leases) COMPREPLY=($(compgen -W "explain release --all $flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    bus) COMPREPLY=($(compgen -W "services top $flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    events) COMPREPLY=($(compgen -W "-f --from --type --subject --source --severity $flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    *) COMPREPLY=($(compgen -W "$flags" -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    esac
}
complete -F _dstack dstack
)";
}

} // namespace dstack::cli
