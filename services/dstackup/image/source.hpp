#pragma once
#include "shared/base/result.hpp"
#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace dstack::image
{

/// Bytes that are read once, in order.
class Source
{
  public:
    virtual ~Source() = default;
    /// Fills the front of `out`; 0 is the end. Fewer bytes than asked for are normal.
    virtual Result<std::size_t> read(std::span<char> out) = 0;
};

/// All of `out`, or fewer bytes only at the end.
Result<std::size_t> read_full(Source& source, std::span<char> out);

Result<std::unique_ptr<Source>> open_file(const std::string& path);

/// Hashes what passes. `digest` is complete when the end was read.
class HashingSource : public Source
{
  public:
    explicit HashingSource(std::unique_ptr<Source> inner);
    ~HashingSource() override;
    Result<std::size_t> read(std::span<char> out) override;
    /// Reads what is left, then gives "sha256:<hex>". Call once.
    Result<std::string> digest();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

/// Whatever is inside gzip or zstd (known from the first bytes), or the bytes as they are. `inner` must outlive it.
Result<std::unique_ptr<Source>> decompress(Source& inner);

} // namespace dstack::image
