#include "shared/log/log.hpp"
#include <cstdlib>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace dstack::log
{

namespace
{
bool journald = false;

void write(spdlog::level::level_enum level, char priority, std::string_view message,
           std::initializer_list<Field> fields)
{
    if (!spdlog::default_logger_raw()->should_log(level)) { return; }
    std::string text;
    if (journald) { text = {'<', priority, '>'}; }
    text += line(message, fields);
    spdlog::log(level, "{}", text);
}

/// U+0080..U+009F in UTF-8: terminals obey these like the escape sequences that they abbreviate (U+009B is CSI).
bool is_c1(std::string_view text, std::size_t i)
{
    if (text[i] != '\xc2' || i + 1 >= text.size()) { return false; }
    const auto next = static_cast<unsigned char>(text[i + 1]);
    return next >= 0x80 && next < 0xa0;
}

void append_escaped(std::string& out, std::string_view value)
{
    static constexpr std::string_view hex = "0123456789abcdef";
    for (std::size_t i = 0; i < value.size(); ++i)
    {
        const char c = value[i];
        const auto byte = static_cast<unsigned char>(is_c1(value, i) ? value[i + 1] : c);
        if (is_c1(value, i))
        {
            ((out += "\\u00") += hex[byte >> 4]) += hex[byte & 15];
            ++i;
        }
        else if (c == '"' || c == '\\') { (out += '\\') += c; }
        else if (c == '\n') { out += "\\n"; }
        else if (byte < 0x20 || byte == 0x7f) { ((out += "\\x") += hex[byte >> 4]) += hex[byte & 15]; }
        else { out += c; }
    }
}
} // namespace

void init(std::string_view program, Level level)
{
    journald = std::getenv("JOURNAL_STREAM") != nullptr;
    auto logger = spdlog::stderr_logger_mt(std::string{program});
    logger->set_pattern(journald ? "%v" : "%Y-%m-%dT%H:%M:%S.%eZ %n[%P] %l: %v", spdlog::pattern_time_type::utc);
    switch (level)
    {
    case Level::debug: logger->set_level(spdlog::level::debug); break;
    case Level::info: logger->set_level(spdlog::level::info); break;
    case Level::warn: logger->set_level(spdlog::level::warn); break;
    case Level::error: logger->set_level(spdlog::level::err); break;
    }
    spdlog::set_default_logger(std::move(logger));
}

std::string line(std::string_view message, std::initializer_list<Field> fields)
{
    std::string out{message};
    for (const Field& field : fields)
    {
        ((out += ' ') += field.key) += '=';
        bool quote = field.value.empty();
        for (std::size_t i = 0; i < field.value.size(); ++i)
        {
            const char c = field.value[i];
            quote = quote || c == ' ' || c == '=' || c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7f ||
                    is_c1(field.value, i);
        }
        if (!quote) { out += field.value; }
        else
        {
            out += '"';
            append_escaped(out, field.value);
            out += '"';
        }
    }
    return out;
}

void debug(std::string_view message, std::initializer_list<Field> fields) { write(spdlog::level::debug, '7', message, fields); }
void info(std::string_view message, std::initializer_list<Field> fields) { write(spdlog::level::info, '6', message, fields); }
void warn(std::string_view message, std::initializer_list<Field> fields) { write(spdlog::level::warn, '4', message, fields); }
void error(std::string_view message, std::initializer_list<Field> fields) { write(spdlog::level::err, '3', message, fields); }

} // namespace dstack::log
