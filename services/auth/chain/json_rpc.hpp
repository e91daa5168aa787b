#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// JSON-RPC 2.0 batches: one HTTP body out, one in. Pure.
namespace dstack::auth::chain
{

struct Call
{
    std::string_view method;
    std::string parameters; ///< a JSON array
};

/// The array of calls; the first has id 1.
std::string batch_body(std::span<const Call> calls);

struct RpcError
{
    std::int64_t code = 0;
    std::string message; ///< any bytes, at most 1 KiB
    std::string data;    ///< hex text of a revert, when there is one
};

struct Block
{
    std::uint64_t number = 0;
    std::string hash; ///< 64 hex digits
    std::uint64_t time = 0; ///< unix seconds
};

/// What came for one call: an error, a string, a block, or null.
struct Reply
{
    std::optional<RpcError> error{};
    std::optional<std::string> text{};
    std::optional<Block> block{};
};

/// Reads answers; keeps its buffers from one to the next.
class BatchReader
{
  public:
    BatchReader();
    ~BatchReader();
    /// Exactly one reply for each of the `count` calls, in their order whatever the order on the wire. A single error
    /// object instead of the array is the answer to every call: so endpoints refuse a whole batch.
    Result<std::vector<Reply>> read(std::string_view body, std::size_t count);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

/// "0x1a": 1 to 16 digits after 0x.
std::optional<std::uint64_t> quantity(std::string_view text);
std::string to_quantity(std::uint64_t value);

} // namespace dstack::auth::chain
