#pragma once
#include "services/guest-agent/console.hpp"
#include "services/guest-agent/line_prefix.hpp"
#include "services/guest-agent/oci_spec.hpp"
#include "shared/process/process.hpp"
#include <memory>
#include <optional>

namespace dstack::guest
{

/// One service's container, from its overlay to its last restart.
class Container
{
  public:
    Container(Loop& loop, Console& console, compose::Service service, StoredImage image);
    Container(const Container&) = delete;
    Container& operator=(const Container&) = delete;
    ~Container();

    const compose::Service& service() const { return service_; }
    /// Makes the bundle: overlay over the image, console pipe, config.json. Blocking; once, before `run`.
    Result<Done> prepare();
    /// Starts it, and again as its restart policy says, until it stays ended.
    Task<> run();
    /// Completes when the first start has come as far as the container's own process, or has failed.
    Event::Awaiter started() { return started_.wait(); }
    bool ended() const { return ended_.is_set(); }
    /// How it ended last; meaningful once it has.
    std::string last_exit() const { return last_exit_; }
    bool failed() const { return failed_; }
    /// SIGTERM, then SIGKILL after `grace` (at once when it does not listen for SIGTERM). No restart after this.
    Task<> stop(milliseconds grace);

  private:
    Task<> once();
    Task<> watch_start();
    Task<> pump();
    Task<Result<Done>> wait_ended();
    Task<Result<Done>> wait_stop();
    std::optional<int> pid() const;

    Loop& loop_;
    Console& console_;
    compose::Service service_;
    StoredImage image_;
    std::string folder_; ///< /run/dstack/containers/<service>
    process::Fd output_;
    LinePrefix prefix_;
    Event started_, ended_, stop_;
    std::string last_exit_;
    bool failed_ = false;
    Scope scope_;
};

} // namespace dstack::guest
