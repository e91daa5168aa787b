#include "services/auth/ledger.hpp"
#include "shared/base/time.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::auth
{

namespace
{

constexpr std::size_t kept_entries = 1000;
constexpr std::size_t max_waiting = 4096;
constexpr std::size_t max_batch = 1024;
constexpr std::size_t max_line = 1024 * 1024;
constexpr std::uint64_t mark_every = 256;

struct Slot
{
    explicit Slot(Loop& loop, Record r) : record(std::move(r)), done(loop) {}
    Record record;
    Event done;
    std::optional<Result<Entry>> result;
};

struct Writing
{
    int fd = -1;
    std::string path;
    std::uint64_t offset = 0;
    std::string bytes;
};

struct Outcome
{
    std::optional<Error> error;
    bool lost_track = false; ///< what is on disk is unknown: an fsync that failed may have dropped the pages
};

Error deleted(const std::string& path)
{
    return Error{Errc::data_loss,
                 path + ": the file was removed or replaced under the running process",
                 "restart dstack-auth",
                 {}};
}

bool is_same_file(int fd, const std::string& path)
{
    struct stat here
    {
    };
    struct stat there
    {
    };
    return ::fstat(fd, &here) == 0 && ::stat(path.c_str(), &there) == 0 && here.st_ino == there.st_ino &&
           here.st_dev == there.st_dev;
}

Outcome write_out(const Writing& job)
{
    if (!is_same_file(job.fd, job.path)) { return {deleted(job.path), false}; }
    std::size_t done = 0;
    while (done < job.bytes.size())
    {
        const ssize_t put =
            ::pwrite(job.fd, job.bytes.data() + done, job.bytes.size() - done, static_cast<off_t>(job.offset + done));
        if (put < 0 && errno == EINTR) { continue; }
        if (put < 0)
        {
            const Error error = errno_error("write " + job.path, errno);
            const bool cut = ::ftruncate(job.fd, static_cast<off_t>(job.offset)) == 0;
            return {error, !cut};
        }
        done += static_cast<std::size_t>(put);
    }
    if (::fdatasync(job.fd) != 0) { return {errno_error("fsync " + job.path, errno), true}; }
    return {};
}

/// Lines of a part of the file, each with the offset of its end.
class LineReader
{
  public:
    LineReader(int fd, std::uint64_t offset) : fd_(fd), offset_(offset) {}
    /// False at the end; `rest()` then holds what has no newline.
    Result<bool> next(std::string& line)
    {
        for (;;)
        {
            const auto end = buffer_.find('\n', scanned_);
            if (end != std::string::npos)
            {
                line.assign(buffer_, start_, end - start_);
                start_ = scanned_ = end + 1;
                return true;
            }
            scanned_ = buffer_.size();
            if (buffer_.size() - start_ > max_line)
            {
                return Error{Errc::data_loss, "a line is longer than 1 MiB", {}, {}};
            }
            buffer_.erase(0, start_);
            scanned_ -= start_;
            consumed_ += start_;
            start_ = 0;
            std::array<char, 65536> chunk{};
            const auto at = static_cast<off_t>(offset_ + consumed_ + buffer_.size());
            const ssize_t got = ::pread(fd_, chunk.data(), chunk.size(), at);
            if (got < 0 && errno == EINTR) { continue; }
            if (got < 0) { return errno_error("read", errno); }
            if (got == 0) { return false; }
            buffer_.append(chunk.data(), static_cast<std::size_t>(got));
        }
    }
    /// Where the next line starts.
    std::uint64_t position() const { return offset_ + consumed_ + start_; }
    std::size_t rest() const { return buffer_.size() - start_; }

  private:
    int fd_;
    std::uint64_t offset_;
    std::uint64_t consumed_ = 0;
    std::string buffer_;
    std::size_t start_ = 0;
    std::size_t scanned_ = 0;
};

/// Entries [from, from + limit) by walking the lines from a mark; the chain was checked when it was written or opened.
Result<std::vector<Entry>> read_lines(int fd, std::uint64_t offset, std::uint64_t first, std::uint64_t from,
                                      std::size_t limit);

} // namespace

struct Ledger::State
{
    explicit State(Loop& l) : loop(l), more(l), grown(l) {}
    ~State()
    {
        if (fd >= 0) { ::close(fd); }
    }

    void take(Entry entry)
    {
        if ((entry.sequence - 1) % mark_every == 0) { marks.push_back(line_start); }
        if (entry.kind == "policy") { last_policy_hash = entry.policy_hash; }
        kept.push_back(std::move(entry));
        if (kept.size() > kept_entries) { kept.pop_front(); }
    }

    /// The lines of a batch, chained to what is on disk.
    std::vector<std::string> encode(const std::vector<std::shared_ptr<Slot>>& batch) const
    {
        std::vector<std::string> lines;
        lines.reserve(batch.size());
        std::string hash = chain.hash();
        std::uint64_t number = chain.sequence();
        for (const auto& slot : batch)
        {
            lines.push_back(encode_record(slot->record, ++number, hash));
            hash = line_hash(lines.back());
        }
        return lines;
    }

    void finish(std::vector<std::shared_ptr<Slot>>& batch, const std::vector<std::string>& lines,
                const Outcome& outcome)
    {
        trouble = outcome.error ? outcome.error->message : "";
        if (outcome.lost_track) { dead = outcome.error; }
        for (std::size_t i = 0; i < batch.size(); ++i)
        {
            if (outcome.error) { batch[i]->result = *outcome.error; }
            else
            {
                line_start = size;
                size += lines[i].size() + 1;
                auto entry = chain.next(lines[i]);
                if (entry) { take(*entry); }
                else { dead = entry.error(); }
                batch[i]->result = std::move(entry);
            }
            batch[i]->done.set();
        }
        if (!outcome.error) { grown.set(); }
    }

    Result<Done> load();
    Result<Done> repair(std::uint64_t keep, std::size_t torn);

    Loop& loop;
    int fd = -1;
    std::string path;
    Chain chain;
    std::uint64_t size = 0;           ///< bytes that are durable
    std::uint64_t line_start = 0;     ///< of the entry that `take` is given
    std::vector<std::uint64_t> marks; ///< where the entries 1, 257, 513, ... start
    std::deque<Entry> kept;
    std::string last_policy_hash;
    std::vector<std::shared_ptr<Slot>> waiting;
    Event more;
    Event grown;
    std::string trouble;
    std::optional<Error> dead; ///< nothing can be appended any more; a restart looks at the file anew
};

Result<Done> Ledger::State::load()
{
    LineReader reader{fd, 0};
    std::string line;
    for (;;)
    {
        const std::uint64_t at = reader.position();
        auto got = reader.next(line);
        if (!got) { return std::move(got).error().within(path + ", offset " + std::to_string(at)); }
        if (!*got) { break; }
        auto entry = chain.next(line);
        if (!entry)
        {
            return std::move(entry)
                .error()
                .within(path + ", offset " + std::to_string(at))
                .with_hint("the ledger was changed; keep it as evidence, move it away, and start with a new one");
        }
        line_start = at;
        take(std::move(*entry));
    }
    size = reader.position();
    if (reader.rest() == 0) { return Done{}; }
    return repair(reader.position(), reader.rest());
}

Result<Done> Ledger::State::repair(std::uint64_t keep, std::size_t torn)
{
    if (::ftruncate(fd, static_cast<off_t>(keep)) != 0) { return errno_error("truncate " + path, errno); }
    Record record;
    record.time_ms = unix_ms();
    record.kind = "repair";
    record.policy_hash = last_policy_hash;
    record.reason = "cut off " + std::to_string(torn) + " bytes at offset " + std::to_string(keep) +
                    ": a record that a crash left unfinished";
    const std::string text = encode_record(record, chain.sequence() + 1, chain.hash());
    const Outcome outcome = write_out({fd, path, keep, text + "\n"});
    if (outcome.error) { return *outcome.error; }
    auto entry = chain.next(text);
    if (!entry) { return std::move(entry).error(); }
    line_start = keep;
    size = keep + text.size() + 1;
    take(std::move(*entry));
    return Done{};
}

Ledger::Ledger(std::unique_ptr<State> state) : state_(std::move(state)) {}
Ledger::~Ledger() = default;

Result<std::unique_ptr<Ledger>> Ledger::open(Loop& loop, const std::string& directory)
{
    auto made = state::make_dirs(directory, 0750);
    if (!made) { return std::move(made).error(); }
    auto state = std::make_unique<State>(loop);
    state->path = directory + "/decisions.ndjson";
    state->fd = ::open(state->path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (state->fd < 0) { return errno_error("open " + state->path, errno); }
    if (::flock(state->fd, LOCK_EX | LOCK_NB) != 0)
    {
        return Error{Errc::failed_precondition,
                     state->path + ": another process writes this ledger",
                     "is dstack-auth running already? `fuser " + state->path + "` names it",
                     {}};
    }
    auto durable = state::fsync_dir(directory);
    if (!durable) { return std::move(durable).error(); }
    auto loaded = state->load();
    if (!loaded) { return std::move(loaded).error(); }
    return std::unique_ptr<Ledger>{new Ledger{std::move(state)}};
}

Task<> Ledger::run()
{
    State& self = *state_;
    for (;;)
    {
        self.more.reset();
        if (self.waiting.empty())
        {
            co_await self.more.wait();
            continue;
        }
        const std::size_t count = std::min(self.waiting.size(), max_batch);
        std::vector<std::shared_ptr<Slot>> batch{self.waiting.begin(),
                                                 self.waiting.begin() + static_cast<std::ptrdiff_t>(count)};
        self.waiting.erase(self.waiting.begin(), self.waiting.begin() + static_cast<std::ptrdiff_t>(count));
        const std::vector<std::string> lines = self.encode(batch);
        Writing writing{self.fd, self.path, self.size, {}};
        for (const std::string& line : lines) { (writing.bytes += line) += '\n'; }
        auto job = [writing = std::move(writing)] { return write_out(writing); };
        Outcome outcome;
        if (self.dead) { outcome.error = self.dead; }
        else
        {
            auto written = co_await offload(self.loop, job);
            outcome = std::move(written);
        }
        self.finish(batch, lines, outcome);
    }
}

Task<Result<Entry>> Ledger::append(Record record)
{
    State& self = *state_;
    if (self.waiting.size() >= max_waiting)
    {
        co_return Error{Errc::resource_exhausted,
                        "the decision ledger is behind by " + std::to_string(max_waiting) + " records",
                        {},
                        {}};
    }
    auto slot = std::make_shared<Slot>(self.loop, std::move(record));
    self.waiting.push_back(slot);
    self.more.set();
    co_await slot->done.wait();
    co_return std::move(*slot->result);
}

Task<Result<std::vector<Entry>>> Ledger::read(std::uint64_t from, std::size_t limit)
{
    State& self = *state_;
    std::vector<Entry> out;
    from = std::max<std::uint64_t>(from, 1);
    if (from > self.chain.sequence()) { co_return out; }
    if (!self.kept.empty() && from >= self.kept.front().sequence)
    {
        const auto skip = static_cast<std::ptrdiff_t>(from - self.kept.front().sequence);
        const auto count = std::min<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(limit), std::ssize(self.kept) - skip);
        out.assign(self.kept.begin() + skip, self.kept.begin() + skip + count);
        co_return out;
    }
    const std::uint64_t mark = (from - 1) / mark_every;
    auto job = [fd = self.fd, offset = self.marks[mark], first = mark * mark_every + 1, from, limit]
    { return read_lines(fd, offset, first, from, limit); };
    auto lines = co_await offload(self.loop, job);
    co_return lines;
}

std::vector<schema::Decision> Ledger::newest(std::string_view app_id, std::size_t limit) const
{
    std::vector<schema::Decision> out;
    for (auto entry = state_->kept.rbegin(); entry != state_->kept.rend() && out.size() < limit; ++entry)
    {
        if (entry->decision.sequence == 0) { continue; }
        if (app_id.empty() || entry->decision.app_id == app_id) { out.push_back(entry->decision); }
    }
    return out;
}

std::uint64_t Ledger::sequence() const { return state_->chain.sequence(); }
std::string Ledger::identity() const { return state_->chain.identity().substr(0, 16); }
const std::string& Ledger::last_policy_hash() const { return state_->last_policy_hash; }
const std::string& Ledger::trouble() const { return state_->trouble; }
Event& Ledger::grown() { return state_->grown; }

namespace
{

Result<std::vector<Entry>> read_lines(int fd, std::uint64_t offset, std::uint64_t first, std::uint64_t from,
                                      std::size_t limit)
{
    LineReader reader{fd, offset};
    std::vector<Entry> out;
    std::string line;
    EntryReader entries;
    for (std::uint64_t number = first; out.size() < limit; ++number)
    {
        auto got = reader.next(line);
        if (!got) { return std::move(got).error(); }
        if (!*got) { return out; }
        if (number < from) { continue; }
        auto entry = entries.read(line);
        if (!entry) { return std::move(entry).error(); }
        out.push_back(std::move(*entry));
    }
    return out;
}

} // namespace

} // namespace dstack::auth
