#include "shared/ledger/verify.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/ledger/chain.hpp"
#include "shared/ledger/checkpoint.hpp"
#include "shared/ledger/files.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <chrono>
#include <thread>

namespace dstack::ledger
{

namespace
{

constexpr std::size_t max_findings = 20;
constexpr int max_retries = 50;

class Verifier
{
  public:
    Verifier(const VerifyOptions& options, const std::function<void(std::uint64_t)>& progress)
        : options_(options), progress_(progress)
    {
    }
    Result<VerifyReport> run();

  private:
    Result<Done> load_key();
    Result<std::pair<std::vector<Segment>, std::vector<File>>> open_files();
    Result<Done> read_checkpoints();
    void check_checkpoint(std::string_view line, std::uint64_t offset);
    Result<Done> walk(const Segment& segment, const File& file, bool last);
    void take(const Segment& segment, std::string_view line, std::uint64_t start, std::uint64_t end);
    void compare(const Segment& segment, std::uint64_t start, std::uint64_t end);
    void finish();
    void find(const std::string& file, std::uint64_t offset, std::uint64_t sequence, std::string what)
    {
        if (report_.findings.size() == max_findings) { report_.more_findings = true; }
        else { report_.findings.push_back({file, offset, sequence, std::move(what)}); }
    }

    const VerifyOptions& options_;
    const std::function<void(std::uint64_t)>& progress_;
    VerifyReport report_;
    crypto::Bytes32 key_{};
    std::string checkpoints_path_;
    struct Signed
    {
        Checkpoint checkpoint;
        std::uint64_t offset = 0; ///< of its line
    };
    std::vector<Signed> signed_;
    std::size_t next_signed_ = 0;
    std::uint64_t last_number_ = 0;
    std::string last_checkpoint_hash_{genesis};
    Chain chain_;
    std::uint64_t segment_first_ = 0;
    bool expected_seen_ = false;
};

Result<Done> Verifier::load_key()
{
    const std::string path =
        options_.public_key_path.empty() ? options_.directory + "/" + std::string{public_name} : options_.public_key_path;
    auto pem = state::read_file(path, 65536);
    if (!pem)
    {
        return std::move(pem).error().within("the public key of the checkpoints").with_hint("name it with --key FILE");
    }
    auto key = public_from_pem(*pem);
    if (!key) { return std::move(key).error().within(path); }
    key_ = *key;
    report_.public_key = crypto::to_hex(key_);
    return Done{};
}

void Verifier::check_checkpoint(std::string_view line, std::uint64_t offset)
{
    auto read = read_checkpoint(line, key_);
    if (!read)
    {
        find(checkpoints_path_, offset, last_number_ + 1, "checkpoint " + std::to_string(last_number_ + 1) + ": " + read.error().message);
        ++last_number_;
        last_checkpoint_hash_ = view(hash_line(line));
        return;
    }
    if (read->number != last_number_ + 1)
    {
        find(checkpoints_path_, offset, last_number_ + 1,
             "checkpoint " + std::to_string(last_number_ + 1) + " is missing: " + std::to_string(read->number) + " is in its place");
    }
    else if (read->previous != last_checkpoint_hash_)
    {
        find(checkpoints_path_, offset, read->number,
             "checkpoint " + std::to_string(read->number) + " does not follow the one before: that one was changed");
    }
    last_number_ = read->number;
    last_checkpoint_hash_ = view(hash_line(line));
    ++report_.checkpoints;
    if (!signed_.empty() && read->records < signed_.back().checkpoint.records)
    {
        find(checkpoints_path_, offset, read->number, "checkpoint " + std::to_string(read->number) + " has fewer records than the one before");
        return;
    }
    signed_.push_back({std::move(*read), offset});
}

Result<Done> Verifier::read_checkpoints()
{
    checkpoints_path_ = options_.directory + "/" + std::string{checkpoints_name};
    auto file = File::open(checkpoints_path_);
    if (!file)
    {
        if (file.error().code != Errc::not_found) { return std::move(file).error(); }
        find(checkpoints_path_, 0, 0, "there are no checkpoints: whether records were removed at the end cannot be told");
        return Done{};
    }
    LineReader reader{file->fd(), 0};
    std::string_view line;
    for (;;)
    {
        const std::uint64_t at = reader.position();
        auto got = reader.next(line);
        if (!got) { return std::move(got).error().within(checkpoints_path_); }
        if (!*got) { return Done{}; } // a torn one at the end was acknowledged to nobody
        check_checkpoint(line, at);
    }
}

/// The chain is behind the record that starts at `start`.
void Verifier::compare(const Segment& segment, std::uint64_t start, std::uint64_t end)
{
    const std::uint64_t sequence = chain_.sequence();
    if (options_.expect_sequence == sequence)
    {
        expected_seen_ = true;
        if (chain_.hash() != options_.expect_hash)
        {
            find(segment.path, start, sequence, "record " + std::to_string(sequence) + " is not the one that was expected: it has the hash " + chain_.hash());
        }
    }
    for (; next_signed_ < signed_.size() && signed_[next_signed_].checkpoint.records <= sequence; ++next_signed_)
    {
        const Checkpoint& checkpoint = signed_[next_signed_].checkpoint;
        if (checkpoint.records < sequence) { continue; } // its record is missing, which was found
        const std::string name = "checkpoint " + std::to_string(checkpoint.number);
        if (checkpoint.hash != chain_.hash())
        {
            find(segment.path, start, sequence, "record " + std::to_string(sequence) + " is not the one that " + name + " signed: it, or one before, was changed");
        }
        else if (checkpoint.offset != end || checkpoint.segment != segment_first_)
        {
            find(segment.path, start, sequence, "record " + std::to_string(sequence) + " is not at the place that " + name + " signed");
        }
        else if (checkpoint.ledger != report_.ledger) { find(segment.path, start, sequence, name + " is of another ledger"); }
    }
}

void Verifier::take(const Segment& segment, std::string_view line, std::uint64_t start, std::uint64_t end)
{
    auto follows = chain_.next(line);
    if (!follows)
    {
        find(segment.path, start, chain_.sequence() + 1, follows.error().message);
        // Go on behind it: there may be more than one place.
        const auto resumed = chain_.resume(line);
        if (!resumed) { return; }
    }
    if (segment_first_ == 0)
    {
        segment_first_ = chain_.sequence();
        if (segment.first != 0 && segment.first != segment_first_) { find(segment.path, start, segment_first_, "the name of the file says another number"); }
    }
    if (report_.ledger.empty()) { report_.ledger = chain_.hash(); }
    compare(segment, start, end);
}

Result<Done> Verifier::walk(const Segment& segment, const File& file, bool last)
{
    LineReader reader{file.fd(), 0};
    std::string_view line;
    segment_first_ = 0;
    std::uint64_t told = 0;
    int retries = 0;
    for (;;)
    {
        const std::uint64_t start = reader.position();
        auto got = reader.next(line);
        if (!got)
        {
            find(segment.path, start, chain_.sequence() + 1, got.error().message);
            return Done{};
        }
        if (!*got) { break; }
        // A block that was read while the one before it was being written: what was room then is a record by now.
        if (last && retries < max_retries && line.find('\0') != std::string_view::npos)
        {
            ++retries;
            std::this_thread::sleep_for(std::chrono::milliseconds{2});
            reader = LineReader{file.fd(), start};
            continue;
        }
        retries = 0;
        take(segment, line, start, reader.position());
        report_.bytes += line.size() + 1;
        if (progress_ && report_.bytes - told > 4 * 1024 * 1024) { progress_(told = report_.bytes); }
    }
    const Tail tail = tail_of(reader.rest(), reader.position());
    if (last) { report_.unfinished = tail.torn; }
    else if (!reader.rest().empty())
    {
        find(segment.path, tail.start, chain_.sequence() + 1, "the last record of a file that was full is not whole");
    }
    return Done{};
}

void Verifier::finish()
{
    report_.records = chain_.sequence();
    report_.head = chain_.hash();
    const auto signed_here = signed_.empty() ? 0 : signed_.back().checkpoint.records;
    if (!signed_.empty()) { report_.signed_at_ms = signed_.back().checkpoint.time_ms; }
    report_.signed_records = std::min(signed_here, report_.records);
    if (signed_here > report_.records)
    {
        find(checkpoints_path_, signed_.back().offset, signed_.back().checkpoint.number,
             "checkpoint " + std::to_string(signed_.back().checkpoint.number) + " signed " + std::to_string(signed_here) + " records, and there are " +
                 std::to_string(report_.records) + ": records were removed at the end");
    }
    if (options_.expect_sequence && !expected_seen_)
    {
        find(options_.directory, 0, *options_.expect_sequence, "record " + std::to_string(*options_.expect_sequence) + ", which was expected, is not there");
    }
}

/// All of one moment: a file that is full gets another name, and a new one takes its place.
Result<std::pair<std::vector<Segment>, std::vector<File>>> Verifier::open_files()
{
    const auto same = [](const std::vector<Segment>& a, const std::vector<Segment>& b)
    { return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Segment& x, const Segment& y) { return x.path == y.path; }); };
    for (;;)
    {
        auto segments = list_segments(options_.directory);
        if (!segments) { return std::move(segments).error(); }
        std::vector<File> files;
        bool whole = true;
        for (const Segment& segment : *segments)
        {
            auto file = File::open(segment.path);
            whole = whole && file;
            if (!file && file.error().code != Errc::not_found) { return std::move(file).error(); }
            if (file) { files.push_back(std::move(*file)); }
        }
        auto again = list_segments(options_.directory);
        if (!again) { return std::move(again).error(); }
        if (whole && same(*segments, *again)) { return std::pair{std::move(*segments), std::move(files)}; }
    }
}

Result<VerifyReport> Verifier::run()
{
    auto key = load_key();
    if (!key) { return std::move(key).error(); }
    auto checkpoints = read_checkpoints(); // before the records: those that are written meanwhile are behind all of them
    if (!checkpoints) { return std::move(checkpoints).error(); }
    auto opened = open_files();
    if (!opened) { return std::move(opened).error(); }
    const auto& [segments, files] = *opened;
    report_.files = files.size();
    if (files.empty()) { find(options_.directory, 0, 0, "there is no ledger"); }
    for (std::size_t i = 0; i < files.size(); ++i)
    {
        auto walked = walk(segments[i], files[i], i + 1 == files.size());
        if (!walked) { return std::move(walked).error(); }
    }
    finish();
    return std::move(report_);
}

} // namespace

Result<VerifyReport> verify(const VerifyOptions& options, const std::function<void(std::uint64_t)>& progress)
{
    Verifier verifier{options, progress};
    return verifier.run();
}

} // namespace dstack::ledger
