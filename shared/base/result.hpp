#pragma once
#include <cassert>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace dstack
{

/// Closed set with gRPC's status names: a caller branches on the code, a human reads the message.
enum class Errc
{
    invalid_argument,
    not_found,
    already_exists,
    permission_denied,
    unauthenticated,
    unavailable,
    deadline_exceeded,
    failed_precondition,
    resource_exhausted,
    aborted,
    data_loss,
    cancelled,
    internal,
};

/// "invalid_argument", ... : the name on the wire and in --json.
std::string_view to_string(Errc code);
/// The inverse; an unknown name is `internal`, because a peer that we cannot understand has failed.
Errc errc_from_string(std::string_view name);
/// Classifies a positive errno value: ENOENT is not EPERM, ENOSPC is resource_exhausted.
Errc errc_from_errno(int error_number);

struct Error
{
    Errc code = Errc::internal;
    std::string message{}; ///< lower-case first letter; names the object: "bind 127.0.0.1:8001: address in use"
    std::string hint{};    ///< what to do next; may be empty
    std::string details{}; ///< one JSON value with machine-readable facts; may be empty

    /// Adds context on the way up: "start vm: connect: refused".
    Error within(std::string_view context) &&
    {
        message.insert(0, std::string{context} + ": ");
        return std::move(*this);
    }
    Error with_hint(std::string_view next_step) &&
    {
        hint = next_step;
        return std::move(*this);
    }
};

/// `errno` as an Error: "open /x/y: no such file or directory".
Error errno_error(std::string_view what, int error_number);

struct [[nodiscard]] Done
{
};

/// std::expected<T, Error> until C++23; keep to the subset they share.
template <class T>
class [[nodiscard]] Result
{
  public:
    Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : v_(std::in_place_index<1>, std::move(error)) {}
    explicit operator bool() const { return v_.index() == 0; }
    T& operator*() &
    {
        assert(*this);
        return *std::get_if<0>(&v_);
    }
    const T& operator*() const&
    {
        assert(*this);
        return *std::get_if<0>(&v_);
    }
    T&& operator*() &&
    {
        assert(*this);
        return std::move(*std::get_if<0>(&v_));
    }
    T* operator->()
    {
        assert(*this);
        return std::get_if<0>(&v_);
    }
    const T* operator->() const
    {
        assert(*this);
        return std::get_if<0>(&v_);
    }
    Error& error() &
    {
        assert(!*this);
        return *std::get_if<1>(&v_);
    }
    const Error& error() const&
    {
        assert(!*this);
        return *std::get_if<1>(&v_);
    }
    Error&& error() &&
    {
        assert(!*this);
        return std::move(*std::get_if<1>(&v_));
    }

  private:
    std::variant<T, Error> v_;
};

} // namespace dstack
