#pragma once
#include "shared/base/result.hpp"
#include "shared/runtime/loop.hpp"
#include <cstdint>
#include <list>
#include <memory>
#include <string>

namespace dstack::guest
{

/// "8080:80": hands TCP connections on one port of the guest to another on its loopback. Bounded: 512 connections, and
/// a side that does not read stops the other from being read.
class Forwarder
{
  public:
    explicit Forwarder(Loop& loop);
    ~Forwarder();
    Forwarder(const Forwarder&) = delete;
    Forwarder& operator=(const Forwarder&) = delete;
    Result<Done> listen(const std::string& address, std::uint16_t port, std::uint16_t target);

  private:
    struct Pair;
    static constexpr std::size_t max_pairs = 512;
    void accept();
    void drop(Pair* pair);
    Loop& loop_;
    UvHandle<uv_tcp_t> listener_;
    std::uint16_t target_ = 0;
    std::list<std::unique_ptr<Pair>> pairs_;
};

} // namespace dstack::guest
