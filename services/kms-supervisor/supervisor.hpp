#pragma once
#include "bus/client/publisher.hpp"
#include "bus/schema/kms.hpp"
#include "services/kms-supervisor/machine.hpp"
#include "shared/http/client.hpp"
#include "shared/process/process.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::kms_supervisor
{

/// Does what the machine decides: starts, adopts and kills the KMS, asks it, pins its identity, tells the world.
class Supervisor
{
  public:
    Supervisor(Daemon& daemon, const Config& config, std::optional<Identity> pinned, bus::Publisher& events);

    /// Until the daemon is asked to stop. The KMS goes on running: the next supervisor adopts it.
    Task<Result<Done>> run();
    /// Before `run`: nothing is started, the reason is told.
    void give_up(std::string reason);

  private:
    Task<> keep_process();
    Task<> start_process();
    Task<bool> adopt();
    Task<> end_process(process::Identity who);
    Task<> keep_probing();
    Task<Probe> probe();
    Task<> pin(Identity identity);
    Task<Result<schema::KmsStatus::Reply>> status();

    void apply(Machine::Outcome outcome);
    void tell(Notice notice);
    schema::KmsState snapshot() const;
    Task<Result<Done>> changed_event();
    Task<Result<Done>> settled_event();
    std::string pid_file() const { return config_.state_dir + "/kms.pid"; }

    Daemon& daemon_;
    Loop& loop_;
    const Config& config_;
    Machine machine_;
    http::Client http_;
    bus::Publisher& events_;
    std::optional<process::PidWatch> watch_;
    std::optional<std::string> kill_reason_;
    std::string observed_at_;
    Event changed_; ///< the process came or went: sleepers look again
    Event settled_; ///< the first verdict is there
    Scope scope_; ///< last: its tasks use all of the above
};

/// Reads the pin, then runs.
Task<Result<Done>> serve(Daemon& daemon, Config config);

/// Where the pinned identity lies.
std::string pin_file(const Config& config);

} // namespace dstack::kms_supervisor
