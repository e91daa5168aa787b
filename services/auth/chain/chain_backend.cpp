#include "services/auth/chain/chain_backend.hpp"
#include "services/auth/chain/resolver.hpp"
#include "services/auth/chain/ruling.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/http/client.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <random>
#include <sys/stat.h>

namespace dstack::auth::chain
{

namespace
{

constexpr std::size_t max_answer_bytes = 1024 * 1024; // a block names all its transactions
constexpr std::size_t max_header_bytes = 16 * 1024;
constexpr std::size_t max_file_bytes = 64 * 1024;
constexpr std::size_t max_questions = 64;
constexpr milliseconds connect_limit{1500};
constexpr std::chrono::seconds head_age{10};
constexpr std::chrono::seconds info_age{5};

Error refused(const std::string& what, std::string_view why, std::string_view next)
{
    return Error{Errc::invalid_argument, what + ": " + std::string{why}, std::string{next}, {}};
}

/// A name without a slash is a systemd credential.
Result<std::string> place_of(const std::string& name)
{
    if (name.find('/') != std::string::npos) { return name; }
    const char* folder = std::getenv("CREDENTIALS_DIRECTORY");
    if (folder == nullptr)
    {
        return refused("backend.rpc_urls_file", "no credential '" + name + "' was given to this process",
                       "add LoadCredential=" + name + ":FILE to the unit, or write a path with a slash");
    }
    return std::string{folder} + "/" + name;
}

Result<std::vector<std::string>> read_urls(const std::string& name)
{
    auto path = place_of(name);
    if (!path) { return std::move(path).error(); }
    struct stat about
    {
    };
    if (::stat(path->c_str(), &about) == 0 && (about.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0)
    {
        return refused(*path, "others can read or write it, and it may hold api keys", "chmod 0640 " + *path);
    }
    auto text = state::read_file(*path, max_file_bytes);
    if (!text) { return std::move(text).error(); }
    return lines_of(*text);
}

/// The client's errors name the whole URL: only the class and what comes after the URL may go further.
Failure failure_of(const Error& error, const std::string& url)
{
    static constexpr std::pair<std::string_view, Fault> classes[] = {
        {"connect_timeout", Fault::timeout}, {"timeout", Fault::timeout},           {"tls_", Fault::tls},
        {"response_too_large", Fault::too_large}, {"bad_response", Fault::malformed}};
    Failure out{Fault::unreachable, {}, {}};
    for (const auto& [prefix, fault] : classes)
    {
        if (error.message.starts_with(prefix))
        {
            out.fault = fault;
            break;
        }
    }
    out.detail = plain(error.message.substr(0, error.message.find(':')), 40);
    const std::string where = url.substr(0, url.find('?')) + ": ";
    const auto at = error.message.find(where);
    if (at != std::string::npos) { out.detail += ": " + plain(error.message.substr(at + where.size()), 80); }
    return out;
}

bool never_connected(const Failure& failure)
{
    return failure.fault == Fault::unreachable || failure.detail.starts_with("connect_timeout");
}

class Driver final : public ChainBackend
{
  public:
    Driver(Loop& loop, Settings settings, std::vector<Endpoint> endpoints, http::TlsClientConfig tls)
        : loop_(loop), settings_(std::move(settings)), endpoints_(std::move(endpoints)), tls_(std::move(tls)), client_(loop),
          resolver_(loop), health_(endpoints_.size()), heads_(endpoints_.size()), refreshed_(loop), scope_(loop)
    {
    }

    void begin() override;
    std::size_t endpoints() const override { return endpoints_.size(); }
    Task<Judgement> decide(Kind kind, const BootInfo& boot) override;
    std::optional<Judgement> decide_now(Kind, const BootInfo&) override { return std::nullopt; }
    std::shared_ptr<const Ground> ground() const override { return ground_; }
    Task<Info> info() override;
    Task<auth::Health> health() override;
    void append_metrics(std::string& out) const override { chain::append_metrics(out, knowledge(), newest_); }

  private:
    struct Head ///< the newest block that an endpoint told of
    {
        std::uint64_t number = 0;
        Clock::time_point at{};
        bool known = false;
    };
    struct Asked ///< one question on its way
    {
        Asked(Loop& loop, Race r) : race(std::move(r)), changed(loop), scope(loop) {}
        Race race;
        Event changed;
        Scope scope; ///< of the attempts: last, as they use the rest
    };

    Task<Finding> ask(Question question);
    Task<> attempt(std::size_t endpoint, Asked* asked, Question question, Clock::time_point deadline);
    Task<Outcome<Answer>> ask_endpoint(std::size_t endpoint, Question question, Clock::time_point deadline);
    Task<Outcome<std::vector<Reply>>> exchange(std::size_t endpoint, std::vector<Call> calls, Clock::time_point deadline);
    Task<Outcome<std::vector<Reply>>> exchange_at(std::size_t endpoint, std::string address, std::string body, std::size_t count,
                                                  Clock::time_point deadline);
    Task<> refresh();
    Task<> probe(std::size_t endpoint);
    Task<> keep_probing();
    void note(std::size_t endpoint, const Outcome<Answer>& outcome);
    milliseconds left(Clock::time_point deadline) const;
    Knowledge knowledge() const { return {settings_, endpoints_, health_, loop_.now()}; }

    Loop& loop_;
    Settings settings_;
    std::vector<Endpoint> endpoints_;
    http::TlsClientConfig tls_;
    http::Client client_;
    Resolver resolver_;
    BatchReader reader_;
    std::vector<EndpointHealth> health_;
    std::vector<Head> heads_;
    std::minstd_rand chance_{std::random_device{}()};
    std::size_t questions_ = 0;
    std::shared_ptr<const Ground> ground_ = std::make_shared<const Ground>();
    std::optional<InfoValues> newest_; ///< of any question
    std::optional<InfoValues> info_;   ///< of GET /'s
    std::string info_cause_ = "no rpc endpoint has been asked yet"; ///< why `info_` is not newer; empty: nothing is wrong
    bool refreshing_ = false;
    Event refreshed_;
    Scope scope_; ///< last: its tasks use the rest
};

milliseconds Driver::left(Clock::time_point deadline) const
{
    const auto rest = std::chrono::duration_cast<milliseconds>(deadline - loop_.now());
    return std::max(rest, milliseconds{1});
}

void Driver::note(std::size_t endpoint, const Outcome<Answer>& outcome)
{
    EndpointHealth& health = health_[endpoint];
    const std::string& label = endpoints_[endpoint].label;
    const bool was_bad = health.last.has_value();
    const auto* failure = std::get_if<Failure>(&outcome);
    if (failure == nullptr)
    {
        note_answer(health, loop_.now());
        newest_ = InfoValues{std::get<Answer>(outcome), loop_.now()};
        if (was_bad) { log::info("rpc endpoint answers again", {{"endpoint", label}}); }
        return;
    }
    const bool news = !was_bad || health.last->fault != failure->fault;
    const double chance = static_cast<double>(chance_() - std::minstd_rand::min()) / static_cast<double>(std::minstd_rand::max());
    note_failure(health, *failure, loop_.now(), std::min(chance, 0.999));
    if (!news) { return; }
    if (failure->fault == Fault::wrong_chain)
    {
        log::error("rpc endpoint is on the wrong chain", {{"endpoint", label}, {"detail", failure->detail}});
        return;
    }
    log::warn("rpc endpoint failed", {{"endpoint", label}, {"fault", to_string(failure->fault)}, {"detail", failure->detail}});
}

Task<Outcome<std::vector<Reply>>> Driver::exchange_at(std::size_t endpoint, std::string address, std::string body, std::size_t count,
                                                      Clock::time_point deadline)
{
    const Endpoint& to = endpoints_[endpoint];
    http::ClientRequest request;
    request.method = "POST";
    request.url = url_at(to, address);
    request.headers.set("Host", to.authority);
    request.headers.set("Content-Type", "application/json");
    request.headers.set("Accept", "application/json");
    request.headers.set("User-Agent", "dstack-auth");
    if (!to.authorization.empty()) { request.headers.set("Authorization", to.authorization); }
    request.body = std::move(body);
    request.timeout = left(deadline);
    request.connect_timeout = std::min(request.timeout, connect_limit);
    request.max_header_bytes = max_header_bytes;
    request.max_response_bytes = max_answer_bytes;
    request.tls = tls_;
    request.tls.server_name = to.host;
    const std::string url = request.url;
    auto sending = client_.send(std::move(request));
    auto response = co_await sending;
    if (!response) { co_return failure_of(response.error(), url); }
    auto refusal = failure_of_status(response->status, response->headers.get("Retry-After"), unix_ms() / 1000);
    if (refusal) { co_return std::move(*refusal); }
    auto replies = reader_.read(response->body, count);
    if (!replies)
    {
        Failure failure{Fault::malformed, plain(replies.error().message), {}};
        co_return failure;
    }
    co_return std::move(*replies);
}

Task<Outcome<std::vector<Reply>>> Driver::exchange(std::size_t endpoint, std::vector<Call> calls, Clock::time_point deadline)
{
    const std::string host = endpoints_[endpoint].host;
    const milliseconds limit = left(deadline);
    auto resolving = resolver_.addresses(host, limit);
    auto addresses = co_await resolving;
    if (!addresses)
    {
        Failure failure{Fault::unreachable, "no address: " + plain(addresses.error().message, 80), {}};
        co_return failure;
    }
    const std::string body = batch_body(calls);
    Outcome<std::vector<Reply>> last = Failure{Fault::unreachable, "no address", {}};
    for (const std::string& address : *addresses)
    {
        auto trying = exchange_at(endpoint, address, body, calls.size(), deadline);
        auto outcome = co_await trying;
        last = std::move(outcome);
        const auto* failure = std::get_if<Failure>(&last);
        if (failure == nullptr) { resolver_.prefer(host, address); }
        if (failure == nullptr || !never_connected(*failure) || loop_.now() >= deadline) { break; }
    }
    co_return last;
}

Task<Outcome<Answer>> Driver::ask_endpoint(std::size_t endpoint, Question question, Clock::time_point deadline)
{
    for (;;)
    {
        std::optional<std::uint64_t> pin;
        bool remembered = false;
        Head& head = heads_[endpoint];
        if (settings_.confirmations)
        {
            remembered = head.known && loop_.now() - head.at < head_age && head.number >= *settings_.confirmations;
            if (!remembered)
            {
                auto finding = exchange(endpoint, head_batch(), deadline);
                auto replies = co_await finding;
                if (auto* failure = std::get_if<Failure>(&replies)) { co_return std::move(*failure); }
                auto number = head_of(std::get<std::vector<Reply>>(replies), settings_);
                if (auto* failure = std::get_if<Failure>(&number)) { co_return std::move(*failure); }
                head = Head{std::get<std::uint64_t>(number), loop_.now(), true};
            }
            pin = head.number - *settings_.confirmations;
        }
        auto asking = exchange(endpoint, batch_for(question, settings_, pin), deadline);
        auto replies = co_await asking;
        if (auto* failure = std::get_if<Failure>(&replies)) { co_return std::move(*failure); }
        auto answer = answer_of(std::get<std::vector<Reply>>(replies), question, settings_, pin, unix_ms() / 1000);
        const auto* failure = std::get_if<Failure>(&answer);
        if (failure != nullptr) { head.known = false; }
        // The remembered block may be gone: another node behind the same name, or a chain that was rolled back.
        if (failure != nullptr && failure->fault == Fault::stale && remembered) { continue; }
        if (failure == nullptr && pin) { head = Head{std::get<Answer>(answer).head, loop_.now(), true}; }
        co_return answer;
    }
}

Task<> Driver::attempt(std::size_t endpoint, Asked* asked, Question question, Clock::time_point deadline)
{
    auto asking = ask_endpoint(endpoint, std::move(question), deadline);
    auto outcome = co_await asking;
    note(endpoint, outcome);
    if (auto* failure = std::get_if<Failure>(&outcome)) { asked->race.failed(endpoint, std::move(*failure)); }
    else { asked->race.answered(endpoint, std::move(std::get<Answer>(outcome))); }
    asked->changed.set();
}

Task<Result<Done>> wait_for(Event* event)
{
    co_await event->wait();
    co_return Done{};
}

Task<Finding> Driver::ask(Question question)
{
    if (questions_ >= max_questions)
    {
        Finding busy;
        busy.note = "busy: " + std::to_string(max_questions) + " questions are waiting for the chain";
        co_return busy;
    }
    struct Counted
    {
        std::size_t& count;
        explicit Counted(std::size_t& c) : count(c) { ++count; }
        ~Counted() { --count; }
    } counted{questions_};
    const auto deadline = loop_.now() + settings_.deadline;
    Asked asked{loop_, Race{order_of(health_, loop_.now()), settings_.quorum, settings_.hedge_delay}};
    while (!asked.race.over())
    {
        asked.changed.reset();
        const auto now = loop_.now();
        if (now >= deadline) { break; }
        while (const auto next = asked.race.start(now)) { asked.scope.spawn(attempt(*next, &asked, question, deadline)); }
        const auto wake = std::min(deadline, asked.race.next_start().value_or(deadline));
        const milliseconds limit = left(wake);
        auto waiting = wait_for(&asked.changed);
        auto ended = co_await with_timeout(loop_, limit, "rpc", std::move(waiting));
        static_cast<void>(ended);
    }
    const Failure blame = asked.race.over() ? Failure{Fault::slow, "another endpoint was faster", {}}
                                            : Failure{Fault::timeout, "no answer in " + std::to_string(settings_.deadline.count()) + " ms", {}};
    for (const std::size_t endpoint : asked.race.late(loop_.now())) { note(endpoint, blame); }
    asked.race.expire();
    asked.scope.cancel();
    co_return asked.race.take();
}

Task<Judgement> Driver::decide(Kind kind, const BootInfo& boot)
{
    Judgement out;
    out.ground = std::make_shared<const Ground>();
    auto calldata = encode_question(kind, boot);
    if (!calldata)
    {
        const bool snp = boot.device_id.size() == 128;
        out.verdict = deny("request", "the contract cannot be asked: " + plain(calldata.error().message, 200) +
                                          (snp ? " (a device id of SEV-SNP has 64 bytes, the contract's field 32)" : ""));
        co_return out;
    }
    Question question;
    question.topic = kind == Kind::app ? Topic::app : Topic::kms;
    question.calldata = crypto::to_hex(*calldata);
    auto asking = ask(std::move(question));
    auto finding = co_await asking;
    out.verdict = verdict_of(kind, finding, knowledge());
    if (out.verdict.rule == "contract")
    {
        const Answer& answer = finding.answers.front().answer;
        out.ground = std::make_shared<const Ground>(Ground{answer.gateway_app_id, answer.block.hash});
        ground_ = out.ground;
    }
    co_return out;
}

Task<> Driver::refresh()
{
    Question question;
    auto asking = ask(std::move(question));
    auto finding = co_await asking;
    if (finding.kind == Finding::Kind::answered)
    {
        info_ = InfoValues{finding.answers.front().answer, loop_.now()};
        info_cause_.clear();
        const Answer& answer = info_->answer;
        ground_ = std::make_shared<const Ground>(Ground{answer.gateway_app_id, answer.block.hash});
    }
    else { info_cause_ = cause_of(finding, knowledge()); }
    refreshing_ = false;
    refreshed_.set();
}

Task<Info> Driver::info()
{
    if (!info_ || loop_.now() - info_->at > info_age || !info_cause_.empty())
    {
        if (!refreshing_)
        {
            refreshing_ = true;
            refreshed_.reset();
            scope_.spawn(refresh());
        }
        const milliseconds limit = settings_.deadline + milliseconds{500};
        auto waiting = wait_for(&refreshed_);
        auto ended = co_await with_timeout(loop_, limit, "rpc", std::move(waiting));
        static_cast<void>(ended);
    }
    Info out;
    if (info_) { out.body = info_body(*info_, info_cause_, knowledge()); }
    else
    {
        out.status = 500;
        out.body = info_error(info_cause_);
    }
    co_return out;
}

Task<auth::Health> Driver::health()
{
    auth::Health out;
    out.policy_hash = ground_->policy_hash;
    std::size_t well = 0;
    bool wrong_chain = false;
    for (const EndpointHealth& one : health_)
    {
        well += one.last ? 0 : 1;
        wrong_chain = wrong_chain || (one.last && one.last->fault == Fault::wrong_chain);
    }
    if (well < settings_.quorum || wrong_chain) { out.trouble = cause_of(Finding{}, knowledge()); }
    co_return out;
}

Task<> Driver::probe(std::size_t endpoint)
{
    const auto deadline = loop_.now() + settings_.deadline;
    Question question;
    auto asking = ask_endpoint(endpoint, std::move(question), deadline);
    auto outcome = co_await asking;
    note(endpoint, outcome);
    const auto* answer = std::get_if<Answer>(&outcome);
    if (answer == nullptr || settings_.quorum > 1 || info_) { co_return; }
    info_ = InfoValues{*answer, loop_.now()}; // so that GET / has something to tell when an outage begins now
    info_cause_.clear();
}

Task<> Driver::keep_probing()
{
    for (;;)
    {
        co_await sleep_for(loop_, settings_.probe_interval);
        auto asking = info();
        auto ended = co_await asking;
        static_cast<void>(ended);
    }
}

void Driver::begin()
{
    for (std::size_t i = 0; i < endpoints_.size(); ++i) { scope_.spawn(probe(i)); }
    if (settings_.probe_interval.count() > 0) { scope_.spawn(keep_probing()); }
}

} // namespace

Result<std::unique_ptr<ChainBackend>> ChainBackend::open(Loop& loop, Settings settings)
{
    std::vector<std::string> urls = settings.rpc_urls;
    if (urls.empty())
    {
        auto read = read_urls(settings.rpc_urls_file);
        if (!read) { return std::move(read).error(); }
        urls = std::move(*read);
    }
    auto endpoints = parse_endpoints(urls, settings.plain_http);
    if (!endpoints) { return std::move(endpoints).error(); }
    if (settings.quorum > endpoints->size())
    {
        return refused("backend.quorum", "more than there are endpoints", "add endpoints, or lower the quorum");
    }
    http::TlsClientConfig tls;
    if (!settings.ca_file.empty())
    {
        auto roots = state::read_file(settings.ca_file, max_answer_bytes);
        if (!roots) { return std::move(roots).error().within("backend.ca_file"); }
        tls.verify = http::TlsClientConfig::Verify::ca;
        tls.ca_pem = std::move(*roots);
    }
    return std::unique_ptr<ChainBackend>{std::make_unique<Driver>(loop, std::move(settings), std::move(*endpoints), std::move(tls))};
}

} // namespace dstack::auth::chain
