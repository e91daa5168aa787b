#pragma once
#include "shared/runtime/scope.hpp"
#include <memory>
#include <string>

namespace dstack::vmm
{

/// One connection to a QEMU's monitor (QMP). QEMU serves one at a time and goes on without any: after a restart of the VMM
/// a new connection takes the old one's place.
class Qmp
{
  public:
    /// `<directory>/qmp.sock`, whatever the length of the path. Tries until the monitor answers or `limit` is over.
    static Task<Result<std::unique_ptr<Qmp>>> connect(Loop& loop, std::string directory, milliseconds limit);
    Qmp(const Qmp&) = delete;
    Qmp& operator=(const Qmp&) = delete;
    ~Qmp();

    /// `command` without arguments; the text of "return". One at a time.
    Task<Result<std::string>> execute(std::string command, milliseconds limit);
    /// The reason of the last SHUTDOWN event; empty when there was none.
    const std::string& shutdown_reason() const;
    bool closed() const;
    /// Completes when QEMU has closed the connection, which is after its last event.
    Task<> until_closed();

    struct Impl;

  private:
    explicit Qmp(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace dstack::vmm
