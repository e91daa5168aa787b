#pragma once
#include "services/dstack/session.hpp"
#include <chrono>
#include <string>
#include <vector>

namespace dstack::cli
{

/// How an operation ended.
struct Outcome
{
    bool succeeded = false;
    std::string evidence;
    Error error{}; ///< when failed
    std::string step;
    bool denied = false;
};

/// Watches the events of one operation. Made before the command is sent, so that nothing is missed.
class OperationWatch
{
  public:
    explicit OperationWatch(Session& session);
    /// Reads up to the present.
    Task<Result<Done>> catch_up();
    /// Says each phase on stderr until the operation has ended; deadline_exceeded when that takes longer than `limit`.
    Task<Result<Outcome>> wait(std::string operation, std::string app, std::string app_id, milliseconds limit);

  private:
    /// Asks the deployer; true when the operation has ended.
    Task<bool> ask(Outcome& out);
    void phase(std::string_view what, std::string_view detail) const;
    /// True when the operation has ended.
    bool take(const bus::EventRecord& event, Outcome& out);
    bool take_operation_event(const bus::EventRecord& event, Outcome& out);
    void take_vm_event(const bus::EventRecord& event);

    Session& session_;
    bus::Subscription events_;
    std::string operation_;
    std::string app_;
    std::string app_id_;
    std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
};

/// The newest lines of the app's serial log, as far as the log store has them; nothing when it does not answer.
Task<std::vector<std::string>> last_lines(Session& session, std::string app);

/// Says how an operation failed: reason, last lines, hint; the exit code.
int fail_operation(Session& session, std::string_view what, const std::string& operation, Outcome outcome,
                   const std::vector<std::string>& lines);

} // namespace dstack::cli
