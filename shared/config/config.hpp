#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <concepts>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::config
{

class Section;

/// A TOML text being read into structs. Every mistake is remembered with its place, and `finish` reports the one that
/// comes first in the file: "line 3, column 1: auth.prot: unknown key; known keys: listen, port".
///
///     auto document = Document::parse(text);
///     if (!document) { return std::move(document).error(); }
///     Section auth = document->section("auth");
///     auth.read("listen", out.listen).read("port", out.port, 1, 65535).require("policy_file", out.policy_file);
///     auto complete = document->finish();
class Document
{
  public:
    static Result<Document> parse(std::string_view text);
    Document(Document&&) noexcept;
    Document& operator=(Document&&) noexcept;
    ~Document();

    /// A table that may be absent: "" is the top of the file, "a.b" a nested table. May be asked for more than once.
    Section section(std::string_view name);
    /// The names of the tables directly inside `name`, in the order of the alphabet; they count as known only when
    /// read.
    std::vector<std::string> tables_in(std::string_view name);
    /// invalid_argument unless every key and section of the text was asked for and every value fitted.
    Result<Done> finish();

    struct State; ///< private to config.cpp

  private:
    explicit Document(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

/// One table of a Document, and no longer alive than it. A `read` leaves `out` as it is (the default) when the key is
/// absent or its value is wrong; a `require` complains when it is absent.
class Section
{
  public:
    bool present() const;
    Section& read(std::string_view key, std::string& out);
    Section& read(std::string_view key, bool& out);
    Section& read(std::string_view key, std::vector<std::string>& out);
    template <std::integral T>
    requires(!std::same_as<T, bool>) Section& read(std::string_view key, T& out, std::int64_t low, std::int64_t high)
    {
        std::int64_t value = 0;
        if (read_integer(key, value, at_least<T>(low), at_most<T>(high))) { out = static_cast<T>(value); }
        return *this;
    }
    /// An integer number of milliseconds; by convention the key ends in `_ms`.
    Section& read_ms(std::string_view key, std::chrono::milliseconds& out, std::int64_t low, std::int64_t high);
    /// A string, not empty.
    Section& require(std::string_view key, std::string& out);
    /// One of a closed list of words.
    Section& read_choice(std::string_view key, std::string& out, const std::vector<std::string_view>& choices);
    /// The whole table as string -> string: every key of it is known then.
    Section& read_map(std::map<std::string, std::string>& out);
    /// A value that the caller's own check refused; reported like the others, with the place of `key`.
    Section& refuse(std::string_view key, std::string_view why);

  private:
    friend class Document;
    Section(Document::State* state, std::string name) : state_(state), name_(std::move(name)) {}
    bool read_integer(std::string_view key, std::int64_t& out, std::int64_t low, std::int64_t high);
    template <class T>
    static std::int64_t at_least(std::int64_t low)
    {
        return std::cmp_less(low, std::numeric_limits<T>::min())
                   ? static_cast<std::int64_t>(std::numeric_limits<T>::min())
                   : low;
    }
    template <class T>
    static std::int64_t at_most(std::int64_t high)
    {
        return std::cmp_greater(high, std::numeric_limits<T>::max())
                   ? static_cast<std::int64_t>(std::numeric_limits<T>::max())
                   : high;
    }
    Document::State* state_;
    std::string name_;
};

} // namespace dstack::config
