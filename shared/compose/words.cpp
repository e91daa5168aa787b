#include "shared/compose/words.hpp"

namespace dstack::compose
{

namespace
{

Error invalid(std::string what, std::string hint = {})
{
    return {Errc::invalid_argument, std::move(what), std::move(hint), {}};
}

bool name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool name_char(char c) { return name_start(c) || (c >= '0' && c <= '9'); }

/// One `${...}` without its braces.
Result<std::string> braced(std::string_view body, const Variables& variables)
{
    std::size_t size = 0;
    while (size < body.size() && name_char(body[size])) { ++size; }
    const std::string_view name = body.substr(0, size);
    std::string_view rest = body.substr(size);
    if (name.empty() || !name_start(name.front()))
    {
        return invalid("'${" + std::string{body} + "}' is not a variable");
    }
    const auto found = variables.find(name);
    const bool colon = rest.starts_with(':');
    const bool set = found != variables.end() && !(colon && found->second.empty());
    if (colon) { rest.remove_prefix(1); }
    if (!rest.empty() && (rest.front() == '-' || rest.front() == '?'))
    {
        if (set) { return found->second; }
        if (rest.front() == '-') { return std::string{rest.substr(1)}; }
        return invalid("the variable " + std::string{name} + " is not set: " + std::string{rest.substr(1)});
    }
    if (!rest.empty() || colon)
    {
        return invalid("'${" + std::string{body} + "}' is not supported", "use ${NAME} or ${NAME:-default}");
    }
    if (set) { return found->second; }
    return invalid("the variable " + std::string{name} + " is not set",
                   "give it a default, ${NAME:-value}, or write $$ for a dollar sign");
}

} // namespace

Result<std::vector<std::string>> split_words(std::string_view line)
{
    std::vector<std::string> out;
    std::string word;
    bool in_word = false;
    char quote = 0;
    for (std::size_t i = 0; i < line.size(); ++i)
    {
        const char c = line[i];
        const bool blank = c == ' ' || c == '\t' || c == '\n' || c == '\r';
        if (quote == 0 && blank)
        {
            if (in_word) { out.push_back(std::move(word)); }
            word.clear();
            in_word = false;
            continue;
        }
        in_word = true;
        if (quote == 0 && (c == '\'' || c == '"')) { quote = c; }
        else if (quote != 0 && c == quote) { quote = 0; }
        else if (c == '\\' && quote != '\'')
        {
            if (i + 1 == line.size()) { return invalid("the command ends in a backslash"); }
            const char next = line[++i];
            if (quote == '"' && next != '"' && next != '\\') { word += c; }
            word += next;
        }
        else { word += c; }
    }
    if (quote != 0) { return invalid(std::string{"a quote "} + quote + " in the command is not closed"); }
    if (in_word) { out.push_back(std::move(word)); }
    return out;
}

Result<std::string> interpolate(std::string_view text, const Variables& variables)
{
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i)
    {
        if (text[i] != '$')
        {
            out += text[i];
            continue;
        }
        const char next = i + 1 < text.size() ? text[i + 1] : '\0';
        if (next == '$')
        {
            out += '$';
            ++i;
            continue;
        }
        std::string_view body;
        if (next == '{')
        {
            const std::size_t end = text.find('}', i);
            if (end == std::string_view::npos) { return invalid("'${' is not closed", "write $$ for a dollar sign"); }
            body = text.substr(i + 2, end - i - 2);
            i = end;
        }
        else if (name_start(next))
        {
            std::size_t end = i + 1;
            while (end < text.size() && name_char(text[end])) { ++end; }
            body = text.substr(i + 1, end - i - 1);
            i = end - 1;
        }
        else { return invalid("a dollar sign stands alone", "write $$ for a dollar sign"); }
        auto value = braced(body, variables);
        if (!value) { return value; }
        out += *value;
    }
    return out;
}

} // namespace dstack::compose
