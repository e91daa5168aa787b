#include "services/guest-agent/agent.hpp"
#include "services/guest-agent/app_keys.hpp"
#include "services/guest-agent/boot_plan.hpp"
#include "services/guest-agent/console.hpp"
#include "services/guest-agent/container.hpp"
#include "services/guest-agent/forwarder.hpp"
#include "services/guest-agent/host_disks.hpp"
#include "services/guest-agent/info.hpp"
#include "services/guest-agent/listening.hpp"
#include "services/guest-agent/notifier.hpp"
#include "services/guest-agent/notify_body.hpp"
#include "services/guest-agent/power_button.hpp"
#include "shared/compose/compose.hpp"
#include "shared/crypto/aead.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/http/server.hpp"
#include "shared/log/log.hpp"
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>

namespace dstack::guest
{

namespace
{

Result<Done> write_small(const std::string& path, std::string_view text)
{
    const process::Fd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
    if (!fd) { return errno_error("open " + path, errno); }
    if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    {
        return errno_error("write " + path, errno);
    }
    return Done{};
}

class Agent
{
  public:
    Agent(Daemon& daemon, Config config)
        : daemon_(daemon), loop_(daemon.loop()), config_(std::move(config)), console_(loop_), over_(loop_),
          scope_(loop_), boot_scope_(loop_),
          server_(loop_, {}, [this](http::Request request) { return answer(std::move(request)); }),
          button_(loop_, [&daemon] { daemon.request_stop(); })
    {
    }

    Task<> run()
    {
        scope_.spawn(watch_stop());
        boot_scope_.spawn(boot_to_end());
        co_await over_.wait();
        if (booted_ && *booted_)
        {
            over_.reset();
            co_await daemon_.stop_requested();
        }
        else if (booted_) { tell_error(booted_->error()); }
        boot_scope_.cancel(); // a stop in the middle of a boot starts nothing more
        co_await shut_down();
    }

  private:
    Task<http::Response> answer(http::Request request) { co_return answer_info(request, plan_ ? &*plan_ : nullptr); }

    Task<> watch_stop()
    {
        co_await daemon_.stop_requested();
        over_.set();
    }

    Task<> boot_to_end()
    {
        auto outcome = co_await boot();
        booted_.emplace(std::move(outcome));
        over_.set();
    }

    void progress(std::string what)
    {
        log::info("boot progress", {{"step", what}});
        if (notifier_) { notifier_->push("boot.progress", std::move(what)); }
    }

    void tell_error(const Error& error)
    {
        const std::string text = one_line(error);
        console_.write("boot error: " + text + "\n");
        if (notifier_) { notifier_->push("boot.error", text); }
    }

    Task<Result<Done>> boot();
    Result<Done> open_rpc();
    Task<Result<compose::Variables>> get_keys(std::string simulator, std::optional<std::string> encrypted_env);
    Result<Done> make_containers(compose::ComposeApp app, const std::vector<StoredImage>& images);
    Task<> start_containers();
    Task<> wait_ready();
    bool all_ready();
    Task<> shut_down();

    Daemon& daemon_;
    Loop& loop_;
    Config config_;
    Console console_;
    std::optional<BootPlan> plan_;
    std::optional<Notifier> notifier_;
    std::optional<Result<Done>> booted_;
    std::vector<std::unique_ptr<Container>> containers_;
    std::vector<std::unique_ptr<Forwarder>> forwarders_;
    Event over_;
    Scope scope_;
    Scope boot_scope_;
    http::Server server_;
    PowerButton button_;
};

/// The environment that the deployer encrypted for this app (D.4).
Result<compose::Variables> open_environment(const AppKeys& keys, std::string_view blob,
                                            const std::vector<std::string>& allowed)
{
    auto secret = crypto::from_hex_fixed<32>(keys.env_crypt_key);
    if (!secret) { return std::move(secret).error().within("env_crypt_key"); }
    auto plain = crypto::open_env(*secret, crypto::view(blob));
    if (!plain) { return std::move(plain).error().within("decrypt the environment"); }
    auto list = read_env(crypto::text(*plain), allowed);
    if (!list) { return std::move(list).error(); }
    compose::Variables out;
    for (auto& [name, value] : *list) { out.insert_or_assign(std::move(name), std::move(value)); }
    return out;
}

Task<Result<compose::Variables>> Agent::get_keys(std::string simulator, std::optional<std::string> encrypted_env)
{
    if (plan_->key_provider == KeyProvider::none) { co_return compose::Variables{}; }
    progress("requesting app keys");
    auto keys = co_await fetch_app_keys(loop_, *plan_, std::move(simulator), config_.kms_timeout);
    if (!keys) { co_return std::move(keys).error(); }
    log::info("app keys received", {{"attestation", "simulated"}});
    if (!encrypted_env || encrypted_env->empty()) { co_return compose::Variables{}; }
    co_return open_environment(*keys, *encrypted_env, plan_->allowed_envs);
}

/// The external port tells what this guest is; without it the app still runs.
Result<Done> Agent::open_rpc()
{
    auto listening = server_.listen_tcp(config_.listen, config_.port);
    if (!listening) { log::warn("external port closed", {{"error", listening.error().message}}); }
    return Done{};
}

Result<Done> Agent::make_containers(compose::ComposeApp app, const std::vector<StoredImage>& images)
{
    std::string hosts{"127.0.0.1 localhost\n::1 localhost\n"};
    for (const compose::Service& service : app.services) { hosts += "127.0.0.1 " + service.name + "\n"; }
    if (auto written = write_small("/run/dstack/hosts", hosts); !written) { return written; }
    // Containers share this network: their users may bind low ports, as in a network of their own.
    if (auto set = write_small("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0\n"); !set)
    {
        log::warn("low ports stay reserved", {{"error", set.error().message}});
    }
    for (compose::Service& service : app.services)
    {
        auto image = find_image(images, service.image);
        if (!image) { return std::move(image).error().within("service " + service.name); }
        containers_.push_back(std::make_unique<Container>(loop_, console_, std::move(service), std::move(*image)));
    }
    return Done{};
}

Task<> Agent::start_containers()
{
    for (const auto& container : containers_)
    {
        auto running = container->run();
        scope_.spawn(std::move(running));
        co_await container->started();
    }
}

bool Agent::all_ready()
{
    std::set<std::uint16_t> ports;
    for (const char* file : {"/proc/net/tcp", "/proc/net/tcp6"})
    {
        auto text = read_bounded(file, 4 * 1024 * 1024);
        if (text) { ports.merge(listening_ports(*text)); }
    }
    for (const auto& container : containers_)
    {
        for (const compose::Port& port : container->service().ports)
        {
            if (!ports.contains(port.target)) { return false; }
        }
    }
    return true;
}

/// `done` when every published port has its listener. An app that does not come that far is a boot error, and the VM
/// stays up, as upstream's does: its log is there to be read, and its restart policy may yet help.
Task<> Agent::wait_ready()
{
    const auto deadline = loop_.now() + config_.ready_timeout;
    const auto complain = [this](std::string what) {
        tell_error({Errc::unavailable, "failed to start containers: " + std::move(what), {}, {}});
    };
    while (!all_ready())
    {
        for (const auto& container : containers_)
        {
            if (container->ended())
            {
                complain("service " + container->service().name + " ended: " + container->last_exit());
                co_return;
            }
        }
        if (loop_.now() >= deadline)
        {
            complain("not every published port is listened on after " + std::to_string(config_.ready_timeout.count()) +
                     " ms");
            co_return;
        }
        const milliseconds pause{10};
        co_await sleep_for(loop_, pause);
    }
    for (const auto& container : containers_)
    {
        if (container->ended() && container->failed())
        {
            complain("service " + container->service().name + " ended: " + container->last_exit());
            co_return;
        }
        for (const compose::Port& port : container->service().ports)
        {
            if (port.published == port.target) { continue; }
            auto forwarder = std::make_unique<Forwarder>(loop_);
            if (auto listening = forwarder->listen(port.host_ip, port.published, port.target); !listening)
            {
                complain("service " + container->service().name + ": " + listening.error().message);
                co_return;
            }
            forwarders_.push_back(std::move(forwarder));
        }
    }
    progress("done");
}

Task<Result<Done>> Agent::boot()
{
    std::error_code ignored;
    std::filesystem::create_directories("/run/dstack", ignored);
    auto share = read_host_share();
    if (!share) { co_return std::move(share).error(); }
    auto plan = plan_boot(*share, crypto::random_fixed<20>());
    if (!plan)
    {
        notifier_.emplace(loop_, host_api_of(*share));
        co_return std::move(plan).error();
    }
    plan_ = std::move(*plan);
    notifier_.emplace(loop_, plan_->host_api_url);
    console_.write(console_report(*plan_));
    for (const std::string& warning : plan_->warnings)
    {
        log::warn("not done in a development guest", {{"what", warning}});
    }
    if (auto opened = open_rpc(); !opened) { co_return opened; }

    std::string simulator = share->simulator.value_or(std::string{});
    auto variables = co_await get_keys(std::move(simulator), share->encrypted_env);
    if (!variables) { co_return std::move(variables).error(); }

    progress("initializing data disk");
    notifier_->push("instance.info", instance_info_json(*plan_));
    progress("data disk ready");
    progress("setting up docker");
    auto app = compose::parse_compose(plan_->compose_file, *variables);
    if (!app) { co_return std::move(app).error().within("docker_compose_file"); }
    for (const std::string& volume : app->volumes)
    {
        log::warn("volume is in memory: it ends with the vm", {{"volume", volume}});
    }
    auto images = open_image_store();
    if (!images) { co_return std::move(images).error(); }
    if (auto made = make_containers(std::move(*app), *images); !made) { co_return made; }
    for (const auto& container : containers_)
    {
        if (auto prepared = container->prepare(); !prepared) { co_return prepared; }
    }
    progress("starting containers");
    co_await start_containers();
    co_await wait_ready();
    co_return Done{};
}

Task<> Agent::shut_down()
{
    log::info("shutting down");
    if (notifier_) { notifier_->push("shutdown.progress", "powering off"); }
    forwarders_.clear();
    server_.stop_accepting();
    const auto deadline = loop_.now() + config_.stop_grace;
    for (auto container = containers_.rbegin(); container != containers_.rend(); ++container)
    {
        const milliseconds left = std::chrono::duration_cast<milliseconds>(deadline - loop_.now());
        const milliseconds grace = std::max(left, milliseconds{0});
        co_await (*container)->stop(grace);
    }
    const milliseconds limit{3'000};
    if (notifier_) { co_await notifier_->flush(limit); }
    ::sync();
    console_.flush();
}

} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    Agent agent{daemon, std::move(config)};
    co_await agent.run();
    co_return Done{};
}

} // namespace dstack::guest
