#pragma once
#include "bus/client/client.hpp"
#include "services/dstack/options.hpp"
#include <string>
#include <string_view>

namespace dstack::cli
{

/// Where the bus of this host, or of the prefix, has its sockets.
std::string bus_directory(const std::string& prefix, const char* environment_prefix);
/// The bus that was asked for: of another host when --host, --token-file or their environment say so.
Result<bus::ClientConfig> locate_bus(const Options& options);
/// At once when nobody listens there: one clear error instead of a wait.
Result<Done> check_bus(const std::string& directory);

/// One run of the program: what was asked, the bus, and the two outputs. stdout is data only.
class Session
{
  public:
    Session(Loop& loop, Options options);
    Loop& loop() { return loop_; }
    const Options& options() const { return options_; }
    bus::Client& bus() { return client_; }
    Task<Result<Done>> connect();
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    bus::CallOptions call_options(std::uint64_t default_ms = 10'000) const;

    /// Data, as it is; flushed when `flush`. A reader that went away ends the program quietly.
    void out(std::string_view text, bool flush = false);
    /// A stream is watched from here on: when its reader goes away the program ends at once, not at the next line.
    void watch_reader();
    /// Something is missing in what was said: the exit code tells, however the program ends.
    void note_gap() { incomplete_ = true; }
    bool incomplete() const { return incomplete_; }
    /// Progress and hints, on stderr, unless --quiet. Escaped.
    void note(std::string_view line) const;
    /// Also with --quiet.
    void warn(std::string_view line) const;
    /// Says the error where it belongs, and gives back `code`.
    int fail(const Error& error, int code);
    int fail(const Error& error);

  private:
    Loop& loop_;
    Options options_;
    Result<bus::ClientConfig> where_;
    bus::Client client_;
    std::string traceparent_ = bus::make_traceparent(); ///< of all that this run asks for
    bool incomplete_ = false;
    UvHandle<uv_poll_t> reader_;
    int reader_fd_ = -1;
};

} // namespace dstack::cli
