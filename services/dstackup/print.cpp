#include "services/dstackup/print.hpp"
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace dstack::up
{

namespace
{
using Json = nlohmann::ordered_json; // the schema's name first
constexpr auto replace = Json::error_handler_t::replace;

void line(std::FILE* to, std::string_view text)
{
    std::fprintf(to, "%.*s\n", static_cast<int>(text.size()), text.data());
}
} // namespace

int exit_code_of(Errc code)
{
    switch (code)
    {
    case Errc::invalid_argument:
        return exit_usage;
    case Errc::not_found:
        return exit_not_found;
    case Errc::permission_denied:
    case Errc::unauthenticated:
        return exit_permission;
    case Errc::already_exists:
    case Errc::aborted:
        return exit_conflict;
    case Errc::data_loss:
        return exit_incomplete;
    case Errc::failed_precondition:
        return exit_precondition;
    case Errc::deadline_exceeded:
        return exit_timeout;
    case Errc::unavailable:
        return exit_unhealthy;
    case Errc::resource_exhausted:
    case Errc::cancelled:
    case Errc::internal:
        return exit_generic;
    }
    return exit_generic;
}

void print_document(std::string_view kind, std::string_view data_json, const std::vector<std::string>& warnings)
{
    const auto data = Json::parse(data_json, nullptr, false);
    const Json document{{"schema", "dstack." + std::string{kind} + "/v1"}, {"data", data}, {"warnings", warnings}};
    line(stdout, document.dump(-1, ' ', false, replace));
}

int print_error(const Global& global, const Error& error)
{
    if (global.json)
    {
        auto details = Json::parse(error.details, nullptr, false);
        if (details.is_discarded()) { details = Json::object(); }
        const Json document{{"schema", "dstack.error/v1"},
                            {"error",
                             {{"code", to_string(error.code)},
                              {"message", error.message},
                              {"hint", error.hint},
                              {"details", std::move(details)}}}};
        line(stdout, document.dump(-1, ' ', false, replace));
    }
    else
    {
        line(stderr, "dstackup: " + error.message);
        if (!error.hint.empty()) { line(stderr, "  next: " + error.hint); }
    }
    return exit_code_of(error.code);
}

void say(const Global& global, std::string_view text)
{
    if (!global.quiet) { line(stderr, text); }
}

void warn(std::string_view text) { line(stderr, "warning: " + std::string{text}); }

Result<bool> confirm(const Global& global, std::string_view question)
{
    if (global.yes) { return true; }
    if (global.no_input || isatty(STDIN_FILENO) == 0)
    {
        return Error{
            Errc::failed_precondition, std::string{question} + " nobody is here to answer", "say it with --yes", {}};
    }
    std::fprintf(stderr, "%.*s [y/N] ", static_cast<int>(question.size()), question.data());
    std::array<char, 64> answer{};
    if (std::fgets(answer.data(), static_cast<int>(answer.size()), stdin) == nullptr) { return false; }
    const std::string_view text{answer.data()};
    return text == "y\n" || text == "Y\n" || text == "yes\n";
}

} // namespace dstack::up
