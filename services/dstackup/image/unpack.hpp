#pragma once
#include "services/dstackup/image/tar.hpp"

namespace dstack::image
{

/// What an image may cost the host.
struct Limits
{
    std::uint64_t bytes = std::uint64_t{4} << 30; ///< of file data, unpacked, of all layers
    std::uint64_t entries = 500'000;
};

/// Builds a root file system from layers. Every name is resolved by the kernel inside `root` (openat2 with
/// RESOLVE_IN_ROOT), so that neither ".." nor a symbolic link of an earlier layer leads out. Device nodes are left
/// out: the guest makes its own.
class Unpacker
{
  public:
    static Result<Unpacker> open(const std::string& root, Limits limits);
    Unpacker(Unpacker&&) noexcept;
    ~Unpacker();
    /// One layer, as an uncompressed tar archive; whiteouts remove what earlier layers left (image-spec, layer.md).
    Result<Done> apply(Source& layer);

  private:
    struct State;
    explicit Unpacker(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

} // namespace dstack::image
