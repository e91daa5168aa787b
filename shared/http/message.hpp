#pragma once
#include "shared/base/result.hpp"
#include "shared/runtime/task.hpp"
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::http
{

/// ASCII case-insensitive equality, as field names compare (RFC 9110, 5.1).
bool iequals(std::string_view a, std::string_view b);

struct Header
{
    std::string name;
    std::string value;
};

/// Ordered as sent; names compare case-insensitively.
class Headers
{
  public:
    Headers() = default;
    Headers(std::initializer_list<Header> list) : list_(list) {}
    void add(std::string name, std::string value)
    {
        if (list_.capacity() == 0) { list_.reserve(usual); }
        list_.push_back({std::move(name), std::move(value)});
    }
    /// Replaces all fields of this name.
    void set(std::string_view name, std::string value);
    void remove(std::string_view name);
    /// The first field of this name; nullptr when there is none.
    const std::string* find(std::string_view name) const;
    /// The first value of this name, or an empty text.
    std::string_view get(std::string_view name) const;
    /// Does the comma-separated list of this name hold `token`?
    bool has_token(std::string_view name, std::string_view token) const;
    std::size_t size() const { return list_.size(); }
    bool empty() const { return list_.empty(); }
    void clear() { list_.clear(); }
    void reserve(std::size_t n) { list_.reserve(n); }
    Header& back() { return list_.back(); }
    auto begin() const { return list_.begin(); }
    auto end() const { return list_.end(); }

  private:
    static constexpr std::size_t usual = 8;
    std::vector<Header> list_;
};

/// The body of a request whose route asked for it in pieces. Owned by the connection; valid while the handler runs.
class BodyReader
{
  public:
    virtual ~BodyReader() = default;
    /// The next bytes; empty at the end of the body. Over the limit: resource_exhausted; the peer went away: aborted.
    virtual Task<Result<std::string>> read() = 0;
};

struct Request
{
    std::string method;               ///< "GET"
    std::string target;               ///< as sent: "/logs/abc?lines=3"
    Headers headers;
    std::string body;                 ///< whole, unless `stream` is set
    std::string peer;                 ///< "127.0.0.1:40312", "[::1]:40312" or "unix"
    std::string peer_certificate_der; ///< the TLS client's certificate, when it sent one
    BodyReader* stream = nullptr;     ///< for routes that asked for it (BodyPlan::stream)
    bool tls = false;

    /// Without the query; not percent-decoded.
    std::string_view path() const;
    /// After '?', without it; empty when there is none.
    std::string_view query() const;
    /// The percent-decoded value of a query parameter ("a=1&b" has a = "1" and b = "").
    std::optional<std::string> query_value(std::string_view name) const;
};

/// "%2f" and, in queries, '+'. Broken escapes stay as they are.
std::string percent_decode(std::string_view text, bool plus_is_space = false);
/// Everything but unreserved characters (RFC 3986, 2.3) becomes %XX.
std::string percent_encode(std::string_view text);

/// Writes a streamed response body. Owned by the connection; valid while the stream function runs.
class BodyWriter
{
  public:
    virtual ~BodyWriter() = default;
    /// Waits while the peer is slow (more than a bounded number of bytes unsent); fails with `aborted` when it went away.
    virtual Task<Result<Done>> write(std::string bytes) = 0;
};

struct Response
{
    int status = 200;
    Headers headers{}; ///< Content-Length, Transfer-Encoding and Connection are the server's
    std::string body{};
    /// When set, `body` is ignored and this writes it, chunked. An error cuts the connection, so that the peer sees a
    /// truncated body, not a complete one. When the peer goes away, the task is destroyed.
    /// A lambda here must not itself be a coroutine: `[state](BodyWriter& out) { return follow(state, &out); }`.
    std::function<Task<Result<Done>>(BodyWriter&)> stream{};
};

Response text_response(int status, std::string text);
Response json_response(int status, std::string json);
/// "Not Found"; "" for what has no name.
std::string_view reason_phrase(int status);

} // namespace dstack::http
