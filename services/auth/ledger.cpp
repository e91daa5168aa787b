#include "services/auth/ledger.hpp"
#include "services/auth/ledger_disk.hpp"
#include "services/auth/ledger_read.hpp"
#include "shared/base/time.hpp"
#include "shared/ledger/chain.hpp"
#include "shared/ledger/files.hpp"
#include <algorithm>
#include <chrono>

namespace dstack::auth
{

namespace
{

constexpr std::size_t max_collecting_bytes = 8 * 1024 * 1024;
constexpr std::size_t max_spare = 256 * 1024;
constexpr milliseconds watch_every{1'000};
constexpr int space_every = 5; // of those
constexpr milliseconds check_after{1'000}; // the start is over then
constexpr std::size_t check_block = 512 * 1024;
constexpr milliseconds check_pause{10};

/// Where the next record goes.
struct Tip
{
    std::uint64_t sequence = 0;
    std::string hash{ledger::genesis};
};

std::string percent(double share) { return std::to_string(static_cast<int>(share * 100)) + " %"; }

} // namespace

/// Records that go to the disk with one write and one fsync.
struct Ledger::Batch
{
    explicit Batch(Loop& loop) : done(loop) {}
    std::string bytes;
    std::size_t records = 0;
    std::size_t denied = 0; ///< of them, when it fails
    std::string hash;       ///< of the last one
    std::string policy_hash; ///< then
    Event done;
    std::optional<Error> error;
};

struct Ledger::State
{
    State(Loop& l, LedgerOptions o) : loop(l), options(std::move(o)), more(l), grown(l), changed(l) {}

    bool waits_for_disk() const { return options.flush.count() == 0; }
    bool has_work() const { return collecting || retry || probing || finishing; }
    void begin_batch();
    void add(const Record& record, bool denied_on_failure);
    void close_batch();
    void succeeded(Batch& batch);
    void failed(std::shared_ptr<Batch> batch, const Error& error);
    void set_trouble(std::string text);
    void set_warning(std::string text);
    bool checkpoint_due() const;
    Task<> write_batch();
    Task<> write_checkpoint();
    Task<> rotate();
    Task<> watch();
    Task<> check_rest();
    Task<> work();

    Loop& loop;
    LedgerOptions options;
    std::shared_ptr<Disk> disk; ///< used by one job at a time; `layout` is what it had done when the last one ended
    Disk::Layout layout;
    Tip durable; ///< what is on disk
    Tip tip;     ///< and what goes there
    std::string identity;
    std::string policy_hash;         ///< of the newest record about it
    std::string durable_policy_hash; ///< that is on disk
    RecordWriter writer;
    std::string spare; ///< the room of a batch that is on disk
    std::shared_ptr<Batch> collecting;
    std::shared_ptr<Batch> writing;
    std::shared_ptr<Batch> retry; ///< with `flush`: answered already, and still to be written
    Event more;
    Event grown;
    Event changed;
    std::string trouble;
    std::string low_space;
    std::string unsigned_why;
    std::string warning;
    std::uint64_t free_bytes = 0;
    std::uint64_t denied = 0;
    std::uint64_t trouble_since_ms = 0;
    std::string last_trouble; ///< to be written down as soon as that can be
    std::optional<Error> damage;
    Unchecked rest; ///< what `open` left out
    std::string first_hash; ///< of record 1, while there is none on disk
    bool probing = false;   ///< try whether it can be written again
    bool finishing = false; ///< a clean stop: sign what is there
    std::chrono::steady_clock::time_point signed_at;
    struct Reading
    {
        std::uint64_t next = 0; ///< the record that is at `offset`
        std::uint64_t first = 0;
        std::uint64_t offset = 0;
    } reading; ///< where the last read ended: the publisher goes on there
};

// --- collecting -------------------------------------------------------------------------------------------------------

void Ledger::State::add(const Record& record, bool denied_on_failure)
{
    std::string& bytes = collecting->bytes;
    const std::string_view line = writer.line(record, ++tip.sequence, tip.hash, bytes.empty());
    const auto hash = ledger::hash_line(line);
    tip.hash.assign(hash.data(), hash.size());
    bytes += line;
    if (tip.sequence == 1) { first_hash = tip.hash; }
    bytes += '\n';
    ++collecting->records;
    if (denied_on_failure) { ++collecting->denied; }
    if (record.kind == "policy") { policy_hash = record.policy_hash; }
}

/// What the batch ends with, once nothing more comes into it.
void Ledger::State::close_batch()
{
    collecting->hash = tip.hash;
    collecting->policy_hash = policy_hash;
}

void Ledger::State::begin_batch()
{
    collecting = std::make_shared<Batch>(loop);
    collecting->bytes = std::move(spare);
    spare = {};
    if (last_trouble.empty()) { return; }
    Record record;
    record.time_ms = unix_ms();
    record.kind = "repair";
    record.policy_hash = policy_hash;
    record.reason = "nothing could be recorded since " + rfc3339(trouble_since_ms) + ": " + last_trouble + "; " +
                    std::to_string(denied) + " decisions were denied for that";
    add(record, false);
}

Ledger::Append Ledger::append(const Record& record)
{
    State& self = *state_;
    if (self.damage) { return Append{*self.damage}; }
    const bool waits = self.waits_for_disk();
    if (!waits && !self.trouble.empty())
    {
        ++self.denied;
        return Append{Error{Errc::unavailable, self.trouble, {}, {}}};
    }
    if (self.collecting && self.collecting->bytes.size() >= max_collecting_bytes)
    {
        return Append{Error{Errc::resource_exhausted, "the disk of the decision ledger is behind by 8 MiB", {}, {}}};
    }
    if (!self.collecting) { self.begin_batch(); }
    self.add(record, record.kind == "app" || record.kind == "kms");
    self.more.set();
    return Append{self.collecting, self.tip.sequence, waits};
}

Ledger::Append::Append(std::shared_ptr<Batch> batch, std::uint64_t sequence, bool wait)
    : batch_(std::move(batch)), sequence_(sequence), wait_(wait)
{
}
Ledger::Append::Append(Error error) : refused_(std::move(error)) {}
Ledger::Append::~Append() = default;

bool Ledger::Append::await_ready() const noexcept { return refused_ || !wait_ || batch_->done.is_set(); }

void Ledger::Append::await_suspend(std::coroutine_handle<> handle)
{
    awaiter_.emplace(batch_->done);
    awaiter_->await_suspend(handle);
}

Result<std::uint64_t> Ledger::Append::await_resume() const
{
    if (refused_) { return *refused_; }
    if (batch_->error) { return *batch_->error; }
    return sequence_;
}

// --- writing ----------------------------------------------------------------------------------------------------------

void Ledger::State::set_trouble(std::string text)
{
    if (text == trouble) { return; }
    if (!text.empty())
    {
        if (trouble_since_ms == 0) { trouble_since_ms = unix_ms(); }
        last_trouble = text;
    }
    trouble = std::move(text);
    changed.set();
}

void Ledger::State::set_warning(std::string text)
{
    if (text == warning) { return; }
    warning = std::move(text);
    changed.set();
}

void Ledger::State::succeeded(Batch& batch)
{
    durable.sequence += batch.records;
    durable.hash = batch.hash;
    durable_policy_hash = batch.policy_hash;
    if (identity.empty()) { identity = first_hash; }
    if (!last_trouble.empty() || !trouble.empty())
    {
        set_trouble("");
        last_trouble.clear();
        trouble_since_ms = 0;
        denied = 0;
    }
    batch.done.set();
    grown.set();
}

void Ledger::State::failed(std::shared_ptr<Batch> batch, const Error& error)
{
    set_trouble(error.message);
    if (!waits_for_disk())
    {
        // Answered already: it must still get there. What came meanwhile follows it.
        if (collecting)
        {
            close_batch();
            batch->bytes += collecting->bytes;
            batch->records += collecting->records;
            batch->hash = collecting->hash;
            batch->policy_hash = collecting->policy_hash;
            collecting.reset();
        }
        retry = std::move(batch);
        return;
    }
    // What came meanwhile is chained to what is not there.
    for (const auto& lost : {batch, std::exchange(collecting, nullptr)})
    {
        if (!lost) { continue; }
        lost->error = error;
        denied += lost->denied;
        lost->done.set();
    }
    tip = durable;
    policy_hash = durable_policy_hash;
}

Task<> Ledger::State::write_batch()
{
    if (!retry && !collecting) { begin_batch(); } // to see whether it works again
    if (collecting) { close_batch(); }
    auto batch = retry ? std::exchange(retry, nullptr) : std::exchange(collecting, nullptr);
    probing = false;
    if (batch->records == 0) { co_return; }
    writing = batch;
    auto job = [disk = disk, batch] { return disk->write(batch->bytes); };
    auto written = co_await offload(loop, job);
    writing.reset();
    if (!written)
    {
        failed(std::move(batch), written.error());
        co_return;
    }
    layout = std::move(*written);
    succeeded(*batch);
    if (batch->bytes.capacity() <= max_spare)
    {
        spare = std::move(batch->bytes);
        spare.clear();
    }
}

bool Ledger::State::checkpoint_due() const
{
    const std::uint64_t fresh = durable.sequence - layout.signed_records;
    if (fresh == 0) { return false; }
    return finishing || fresh >= options.checkpoint_records ||
           std::chrono::steady_clock::now() - signed_at >= options.checkpoint_every;
}

Task<> Ledger::State::write_checkpoint()
{
    auto job = [disk = disk, sequence = durable.sequence, hash = durable.hash, identity = identity]
    { return disk->sign(sequence, hash, identity); };
    auto done = co_await offload(loop, job);
    signed_at = std::chrono::steady_clock::now();
    if (done) { layout = std::move(*done); }
    unsigned_why = done ? "" : "no checkpoint can be signed: " + done.error().message;
    set_warning(unsigned_why.empty() ? low_space : unsigned_why);
}

Task<> Ledger::State::rotate()
{
    auto job = [disk = disk, next = durable.sequence + 1] { return disk->rotate(next); };
    auto done = co_await offload(loop, job);
    if (done) { layout = std::move(*done); }
    else { set_warning("a new file cannot be begun: " + done.error().message); }
}

Task<> Ledger::State::work()
{
    for (;;)
    {
        more.reset();
        const bool pauses = retry && !probing && !finishing; // until the next try
        if (!has_work() || damage || pauses)
        {
            co_await more.wait();
            continue;
        }
        const bool rests = !waits_for_disk() && !finishing && trouble.empty();
        if (rests) { co_await sleep_for(loop, options.flush); }
        co_await write_batch();
        const bool full = layout.active_bytes >= options.segment_bytes;
        const bool due = full || checkpoint_due();
        if (due) { co_await write_checkpoint(); }
        if (full) { co_await rotate(); }
        const bool idle = !collecting && !retry;
        if (finishing && (idle || !trouble.empty()))
        {
            finishing = false;
            changed.set();
        }
    }
}

/// Space, the next try after trouble, and a checkpoint when there was no other reason for one.
Task<> Ledger::State::watch()
{
    for (int turn = 0;; ++turn)
    {
        if (turn % space_every == 0 || !trouble.empty())
        {
            auto job = [directory = options.directory] { return space_of(directory); };
            auto space = co_await offload(loop, job);
            free_bytes = space.free_bytes;
            const bool low = space.total_bytes != 0 && space.share() < 0.1;
            low_space = low ? "only " + percent(space.share()) + " of the disk of " + options.directory +
                                  " is free: when it is full, every boot is denied"
                            : "";
            set_warning(unsigned_why.empty() ? low_space : unsigned_why);
        }
        if (!trouble.empty() || checkpoint_due())
        {
            probing = true;
            more.set();
        }
        co_await sleep_for(loop, watch_every);
    }
}

/// What `open` left out: the part of the file before the last checkpoint.
Task<> Ledger::State::check_rest()
{
    co_await sleep_for(loop, check_after);
    while (rest.from < rest.to)
    {
        auto job = [rest = rest] { return check_part(rest, check_block); };
        auto checked = co_await offload(loop, job);
        if (!checked)
        {
            damage = checked.error();
            set_trouble(checked.error().message);
            co_return;
        }
        rest = std::move(*checked);
        co_await sleep_for(loop, check_pause);
    }
}

Task<> Ledger::run()
{
    State& self = *state_;
    Scope inner{self.loop};
    inner.spawn(self.watch());
    inner.spawn(self.check_rest());
    co_await self.work();
}

Task<> Ledger::finish()
{
    State& self = *state_;
    self.finishing = true;
    self.more.set();
    while (self.finishing && !self.damage)
    {
        self.changed.reset();
        co_await self.changed.wait();
    }
    self.disk->trim();
}

// --- opening and reading ----------------------------------------------------------------------------------------------

Ledger::Ledger(std::unique_ptr<State> state) : state_(std::move(state)) {}
Ledger::~Ledger() = default;

Result<std::unique_ptr<Ledger>> Ledger::open(Loop& loop, const std::string& directory)
{
    LedgerOptions options;
    options.directory = directory;
    return open(loop, std::move(options));
}

Result<std::unique_ptr<Ledger>> Ledger::open(Loop& loop, LedgerOptions options)
{
    auto state = std::make_unique<State>(loop, std::move(options));
    auto opened = Disk::open(state->options.directory);
    if (!opened) { return std::move(opened).error(); }
    state->disk = std::move(opened->disk);
    state->layout = std::move(opened->layout);
    state->durable = {opened->sequence, opened->hash};
    state->tip = state->durable;
    state->identity = opened->identity;
    state->policy_hash = state->durable_policy_hash = opened->policy_hash;
    state->rest = std::move(opened->unchecked);
    state->signed_at = std::chrono::steady_clock::now();
    return std::unique_ptr<Ledger>{new Ledger{std::move(state)}};
}

LedgerSnapshot Ledger::snapshot() const
{
    const State& self = *state_;
    return {self.options.directory, self.layout.files, self.layout.active_bytes, self.durable.sequence};
}

Task<Result<std::vector<Entry>>> Ledger::read(std::uint64_t from, std::size_t limit)
{
    State& self = *state_;
    from = std::max<std::uint64_t>(from, 1);
    if (from > self.durable.sequence || limit == 0) { co_return std::vector<Entry>{}; }
    const bool goes_on = self.reading.next == from;
    auto job = [now = snapshot(), from, limit, first = goes_on ? self.reading.first : 0, offset = self.reading.offset]
    { return read_entries(now, from, limit, first, offset); };
    auto page = co_await offload(self.loop, job);
    if (!page) { co_return std::move(page).error(); }
    self.reading = {page->next, page->first, page->offset};
    co_return std::move(page->entries);
}

Task<Result<std::vector<schema::Decision>>> Ledger::newest(std::string app_id, std::size_t limit)
{
    auto job = [now = snapshot(), app_id = std::move(app_id), limit] { return newest_decisions(now, app_id, limit); };
    co_return co_await offload(state_->loop, job);
}

std::uint64_t Ledger::sequence() const { return state_->durable.sequence; }
std::string Ledger::identity() const { return state_->identity.substr(0, 16); }
const std::string& Ledger::last_policy_hash() const { return state_->policy_hash; }
const std::string& Ledger::trouble() const { return state_->trouble; }
const std::string& Ledger::warning() const { return state_->warning; }
std::uint64_t Ledger::free_bytes() const { return state_->free_bytes; }
std::uint64_t Ledger::denied() const { return state_->denied; }
const std::optional<Error>& Ledger::damage() const { return state_->damage; }
Event& Ledger::changed() { return state_->changed; }
Event& Ledger::grown() { return state_->grown; }
const std::string& Ledger::directory() const { return state_->options.directory; }

std::size_t Ledger::lag() const
{
    const State& self = *state_;
    std::size_t out = 0;
    for (const auto& batch : {self.collecting, self.writing, self.retry}) { out += batch ? batch->records : 0; }
    return out;
}

} // namespace dstack::auth
