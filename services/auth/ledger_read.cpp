#include "services/auth/ledger_read.hpp"
#include "shared/ledger/chain.hpp"
#include "shared/ledger/files.hpp"
#include <algorithm>

namespace dstack::auth
{

namespace
{

constexpr std::size_t head_bytes = 96; // "seq", "time" and "kind" are in these

std::uint64_t first_number(const ledger::File& file)
{
    ledger::LineReader reader{file.fd(), 0};
    std::string_view line;
    auto got = reader.next(line);
    if (!got || !*got) { return 0; }
    auto link = ledger::read_link(line);
    return link ? link->sequence : 0;
}

struct Part
{
    ledger::File file;
    std::uint64_t end = 0; ///< of its whole lines
};

/// The file of the snapshot with that number; the active one may have been closed and renamed since.
Result<Part> open_part(const LedgerSnapshot& ledger, std::size_t index)
{
    const std::uint64_t first = ledger.files[index];
    const bool active = index + 1 == ledger.files.size();
    const std::string sealed = ledger.directory + "/" + ledger::sealed_name(first);
    auto file = ledger::File::open(active ? ledger.directory + "/" + std::string{ledger::active_name} : sealed);
    if (active && ledger.active_bytes == 0 && file) { return Part{std::move(*file), 0}; }
    if (active && (!file || first_number(*file) != first)) { file = ledger::File::open(sealed); }
    if (!file) { return std::move(file).error(); }
    if (active) { return Part{std::move(*file), ledger.active_bytes}; }
    auto size = file->size();
    if (!size) { return std::move(size).error(); }
    return Part{std::move(*file), *size};
}

/// Index of the file that holds the record.
std::size_t index_of(const LedgerSnapshot& ledger, std::uint64_t sequence)
{
    const auto behind = std::upper_bound(ledger.files.begin(), ledger.files.end(), sequence);
    return behind == ledger.files.begin() ? 0 : static_cast<std::size_t>(behind - ledger.files.begin()) - 1;
}

} // namespace

bool is_decision(std::string_view line)
{
    const std::string_view head = line.substr(0, head_bytes);
    return head.find(R"("kind":"app")") != std::string_view::npos || head.find(R"("kind":"kms")") != std::string_view::npos;
}

bool is_of_app(std::string_view line, std::string_view app_id) { return line.find(app_id) != std::string_view::npos; }

Result<EntryPage> read_entries(const LedgerSnapshot& ledger, std::uint64_t from, std::size_t limit, std::uint64_t first,
                               std::uint64_t offset)
{
    EntryPage out;
    std::size_t index = index_of(ledger, from);
    EntryReader entries;
    std::uint64_t number = from;
    bool known = first != 0 && ledger.files[index] == first;
    for (; index < ledger.files.size() && out.entries.size() < limit; ++index)
    {
        auto part = open_part(ledger, index);
        if (!part) { return std::move(part).error(); }
        std::uint64_t start = 0;
        if (known) { start = offset; }
        else if (number > ledger.files[index] && part->end > 0)
        {
            auto found = ledger::find_record(part->file.fd(), part->end, number);
            if (!found) { return std::move(found).error(); }
            start = *found;
        }
        known = false;
        ledger::LineReader reader{part->file.fd(), start};
        std::string_view line;
        while (out.entries.size() < limit && reader.position() < part->end)
        {
            auto got = reader.next(line);
            if (!got) { return std::move(got).error(); }
            if (!*got) { break; }
            auto entry = entries.read(line);
            if (!entry) { return std::move(entry).error().within("record " + std::to_string(number)); }
            number = entry->sequence + 1;
            out.entries.push_back(std::move(*entry));
        }
        out.first = ledger.files[index];
        out.offset = reader.position();
    }
    out.next = number;
    return out;
}

Result<bool> scan_backwards(const LedgerSnapshot& ledger, std::uint64_t before, std::uint64_t max_bytes,
                            const std::function<bool(std::string_view)>& take)
{
    if (before == 0 || before > ledger.newest) { before = ledger.newest + 1; }
    if (before <= 1) { return true; }
    bool over = false;    // take has enough
    std::uint64_t left = max_bytes;
    for (std::size_t index = index_of(ledger, before - 1) + 1; index-- > 0 && !over;)
    {
        auto part = open_part(ledger, index);
        if (!part) { return std::move(part).error(); }
        std::uint64_t end = part->end;
        const bool within = index + 1 == ledger.files.size() ? before <= ledger.newest : before < ledger.files[index + 1];
        if (within)
        {
            auto found = ledger::find_record(part->file.fd(), part->end, before);
            if (!found) { return std::move(found).error(); }
            end = *found;
        }
        bool tired = false;
        auto read = ledger::read_backwards(part->file.fd(), end,
                                           [&](std::string_view line)
                                           {
                                               tired = left < line.size() + 1;
                                               if (tired) { return false; }
                                               left -= line.size() + 1;
                                               over = !take(line);
                                               return !over;
                                           });
        if (!read) { return std::move(read).error(); }
        if (tired) { return false; }
    }
    return true;
}

Result<bool> scan_forwards(const LedgerSnapshot& ledger, std::uint64_t from, std::uint64_t max_bytes,
                           const std::function<bool(std::string_view)>& take)
{
    from = std::max<std::uint64_t>(from, 1);
    if (from > ledger.newest) { return true; }
    std::uint64_t left = max_bytes;
    for (std::size_t index = index_of(ledger, from); index < ledger.files.size(); ++index)
    {
        auto part = open_part(ledger, index);
        if (!part) { return std::move(part).error(); }
        std::uint64_t start = 0;
        if (from > ledger.files[index])
        {
            auto found = ledger::find_record(part->file.fd(), part->end, from);
            if (!found) { return std::move(found).error(); }
            start = *found;
        }
        ledger::LineReader reader{part->file.fd(), start};
        std::string_view line;
        while (reader.position() < part->end)
        {
            auto got = reader.next(line);
            if (!got) { return std::move(got).error(); }
            if (!*got) { break; }
            if (left < line.size() + 1) { return false; }
            left -= line.size() + 1;
            if (!take(line)) { return true; }
        }
    }
    return true;
}

Result<std::string> read_line(const LedgerSnapshot& ledger, std::uint64_t sequence)
{
    const Error missing{Errc::not_found, "there is no record " + std::to_string(sequence),
                        "the newest one is " + std::to_string(ledger.newest), {}};
    if (sequence == 0 || sequence > ledger.newest) { return missing; }
    auto part = open_part(ledger, index_of(ledger, sequence));
    if (!part) { return std::move(part).error(); }
    auto start = ledger::find_record(part->file.fd(), part->end, sequence);
    if (!start) { return std::move(start).error(); }
    ledger::LineReader reader{part->file.fd(), *start};
    std::string_view line;
    auto got = reader.next(line);
    if (!got) { return std::move(got).error(); }
    return *got ? Result<std::string>{std::string{line}} : Result<std::string>{missing};
}

Result<std::vector<schema::Decision>> newest_decisions(const LedgerSnapshot& ledger, const std::string& app_id, std::size_t limit)
{
    std::vector<schema::Decision> out;
    if (limit == 0) { return out; }
    EntryReader entries;
    std::optional<Error> failed;
    auto scanned = scan_backwards(ledger, 0, max_scan,
                                  [&](std::string_view line)
                                  {
                                      if (!is_decision(line) || (!app_id.empty() && !is_of_app(line, app_id))) { return true; }
                                      auto entry = entries.read(line);
                                      if (!entry)
                                      {
                                          failed = std::move(entry).error();
                                          return false;
                                      }
                                      if (app_id.empty() || entry->decision.app_id == app_id) { out.push_back(std::move(entry->decision)); }
                                      return out.size() < limit;
                                  });
    if (failed) { return *failed; }
    if (!scanned) { return std::move(scanned).error(); }
    return out;
}

} // namespace dstack::auth
