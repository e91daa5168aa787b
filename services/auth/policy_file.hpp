#pragma once
#include "services/auth/backend.hpp"
#include "services/auth/policy.hpp"
#include "shared/runtime/scope.hpp"
#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace dstack::auth
{

/// What the policy file said at one moment.
struct Snapshot
{
    std::optional<Policy> policy;
    Ground ground;     ///< its hash: SHA-256 of the file, hex; empty when it could not be read
    std::string error; ///< why there is no policy: everything is denied with this
};

/// The policy on disk. Others may write it: every question looks (stat) whether it is still the same file.
class PolicyFile
{
  public:
    PolicyFile(Loop& loop, std::string path) : loop_(loop), path_(std::move(path)), loading_(loop), writing_(loop), retired_(loop) {}

    /// The file as it is at some moment between the call and the answer. Never an older one, also not when the new one
    /// is damaged.
    Task<std::shared_ptr<const Snapshot>> current();
    /// Looks at the file; then `looked` is the same as `current` when it need not be read, else nullptr. Valid until the
    /// next look.
    void look();
    const std::shared_ptr<const Snapshot>* looked() const { return fresh_ ? &cached_ : nullptr; }
    /// What was read last, without a look at the file; null before the first.
    const std::shared_ptr<const Snapshot>& last() const { return cached_; }
    /// Since the file that was read last was written; 0 when there was none.
    std::uint64_t age_ms() const;

    /// From text to text; nullopt: nothing to change. Runs on another thread: must own what it uses.
    using Edit = std::function<Result<std::optional<std::string>>(std::string_view)>;
    struct Changed
    {
        bool changed = false;
        std::string hash; ///< of the file now
    };
    enum class Missing ///< a file that is not there
    {
        is_error,
        is_empty ///< an empty text is edited
    };
    /// Under the lock file `<path>.lock`, which other writers share: read, edit, replace as a whole.
    Task<Result<Changed>> change(Edit edit, Missing missing);
    Task<Result<Changed>> change(Edit edit);
    /// What the file says now; resource_exhausted when it is longer.
    Task<Result<std::string>> text(std::size_t max_bytes);

    /// Writes `text` unless there is a file; says whether it did. Blocks: for start-up.
    Result<bool> create(std::string_view text);

    /// A change of ours is under way.
    bool changing() const { return writing_.locked(); }
    const std::string& path() const { return path_; }

    struct Identity ///< of one state of the file; two states differ in it, unless they are very close in time
    {
        bool exists = false;
        std::uint64_t device = 0, inode = 0;
        std::int64_t size = 0, modified_ns = 0, changed_ns = 0;
        bool operator==(const Identity&) const = default;
    };

  private:
    bool is_fresh(const Identity& now) const { return cached_ != nullptr && settled_ && now == identity_; }
    void retire(std::shared_ptr<const Snapshot> old);
    Loop& loop_;
    std::string path_;
    AsyncMutex loading_;
    AsyncMutex writing_;
    std::shared_ptr<const Snapshot> cached_;
    Identity identity_;
    bool settled_ = false;
    bool fresh_ = false; ///< at the last look
    std::uint64_t turn_ = 0;      ///< counts questions and loads, so that a question knows which load began after it
    std::uint64_t load_turn_ = 0; ///< when the load behind `cached_` began
    Scope retired_;
};

} // namespace dstack::auth
