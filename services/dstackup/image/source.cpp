#include "services/dstackup/image/source.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/process/fd.hpp"
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <vector>
#include <zlib.h>
#include <zstd.h>

namespace dstack::image
{

namespace
{
constexpr std::size_t chunk = 64 * 1024;

class FileSource : public Source
{
  public:
    FileSource(process::Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
    Result<std::size_t> read(std::span<char> out) override
    {
        ssize_t got = 0;
        do {
            got = ::read(fd_.get(), out.data(), out.size());
        } while (got < 0 && errno == EINTR);
        if (got < 0) { return errno_error("read " + path_, errno); }
        return static_cast<std::size_t>(got);
    }

  private:
    process::Fd fd_;
    std::string path_;
};

/// Gives back the bytes that were looked at.
class Buffered
{
  public:
    explicit Buffered(Source& inner) : inner_(inner), buffer_(chunk) {}
    /// What is in the buffer; reads when it is empty. Empty is the end.
    Result<std::span<char>> peek()
    {
        if (from_ == to_)
        {
            auto got = inner_.read(buffer_);
            if (!got) { return std::move(got).error(); }
            from_ = 0;
            to_ = *got;
        }
        return std::span<char>{buffer_}.subspan(from_, to_ - from_);
    }
    /// At least the first bytes, for looking at what it is.
    Result<std::span<char>> first(std::size_t n)
    {
        auto got = read_full(inner_, std::span<char>{buffer_}.first(n));
        if (!got) { return std::move(got).error(); }
        to_ = *got;
        return std::span<char>{buffer_}.first(to_);
    }
    void consume(std::size_t n) { from_ += n; }

  private:
    Source& inner_;
    std::vector<char> buffer_;
    std::size_t from_ = 0;
    std::size_t to_ = 0;
};

class PlainSource : public Source
{
  public:
    explicit PlainSource(Buffered in) : in_(std::move(in)) {}
    Result<std::size_t> read(std::span<char> out) override
    {
        auto have = in_.peek();
        if (!have) { return std::move(have).error(); }
        const auto n = std::min(out.size(), have->size());
        if (n != 0) { std::memcpy(out.data(), have->data(), n); }
        in_.consume(n);
        return n;
    }

  private:
    Buffered in_;
};

class GzipSource : public Source
{
  public:
    explicit GzipSource(Buffered in) : in_(std::move(in)) { ok_ = inflateInit2(&stream_, 16 + MAX_WBITS) == Z_OK; }
    GzipSource(const GzipSource&) = delete;
    GzipSource& operator=(const GzipSource&) = delete;
    ~GzipSource() override { inflateEnd(&stream_); }
    Result<std::size_t> read(std::span<char> out) override
    {
        if (!ok_) { return Error{Errc::internal, "zlib did not start", {}, {}}; }
        stream_.next_out = reinterpret_cast<Bytef*>(out.data());
        stream_.avail_out = static_cast<uInt>(std::min<std::size_t>(out.size(), 1 << 30));
        const auto wanted = stream_.avail_out;
        while (stream_.avail_out == wanted)
        {
            auto have = in_.peek();
            if (!have) { return std::move(have).error(); }
            if (have->empty())
            {
                if (between_) { return std::size_t{0}; }
                return Error{Errc::data_loss, "gzip data ends too early", {}, {}};
            }
            if (between_)
            {
                inflateReset(&stream_); // gzip files may be concatenated
                between_ = false;
            }
            stream_.next_in = reinterpret_cast<Bytef*>(have->data());
            stream_.avail_in = static_cast<uInt>(have->size());
            const int code = inflate(&stream_, Z_NO_FLUSH);
            in_.consume(have->size() - stream_.avail_in);
            if (code == Z_STREAM_END) { between_ = true; }
            else if (code != Z_OK && code != Z_BUF_ERROR)
            {
                return Error{Errc::data_loss, "gzip data is damaged", {}, {}};
            }
        }
        return static_cast<std::size_t>(wanted - stream_.avail_out);
    }

  private:
    Buffered in_;
    z_stream stream_{};
    bool ok_ = false;
    bool between_ = false; ///< one member ended, another may follow
};

class ZstdSource : public Source
{
  public:
    explicit ZstdSource(Buffered in) : in_(std::move(in)), stream_(ZSTD_createDStream())
    {
        ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, 27); // 128 MiB of memory at most
    }
    ZstdSource(const ZstdSource&) = delete;
    ZstdSource& operator=(const ZstdSource&) = delete;
    ~ZstdSource() override { ZSTD_freeDStream(stream_); }
    Result<std::size_t> read(std::span<char> out) override
    {
        ZSTD_outBuffer to{out.data(), out.size(), 0};
        while (to.pos == 0)
        {
            auto have = in_.peek();
            if (!have) { return std::move(have).error(); }
            if (have->empty())
            {
                if (complete_) { return std::size_t{0}; }
                return Error{Errc::data_loss, "zstd data ends too early", {}, {}};
            }
            ZSTD_inBuffer from{have->data(), have->size(), 0};
            const std::size_t code = ZSTD_decompressStream(stream_, &to, &from);
            if (ZSTD_isError(code) != 0)
            {
                return Error{Errc::data_loss, std::string{"zstd data is damaged: "} + ZSTD_getErrorName(code), {}, {}};
            }
            complete_ = code == 0;
            in_.consume(from.pos);
        }
        return to.pos;
    }

  private:
    Buffered in_;
    ZSTD_DStream* stream_;
    bool complete_ = false;
};
} // namespace

Result<std::size_t> read_full(Source& source, std::span<char> out)
{
    std::size_t filled = 0;
    while (filled < out.size())
    {
        auto got = source.read(out.subspan(filled));
        if (!got) { return got; }
        if (*got == 0) { break; }
        filled += *got;
    }
    return filled;
}

Result<std::unique_ptr<Source>> open_file(const std::string& path)
{
    process::Fd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY)};
    if (!fd) { return errno_error("open " + path, errno); }
    return std::unique_ptr<Source>{std::make_unique<FileSource>(std::move(fd), path)};
}

struct HashingSource::State
{
    std::unique_ptr<Source> inner;
    crypto::Sha256 hash{};
};

HashingSource::HashingSource(std::unique_ptr<Source> inner) : state_(std::make_unique<State>())
{
    state_->inner = std::move(inner);
}
HashingSource::~HashingSource() = default;

Result<std::size_t> HashingSource::read(std::span<char> out)
{
    auto got = state_->inner->read(out);
    if (got) { state_->hash.update(crypto::view(std::string_view{out.data(), *got})); }
    return got;
}

Result<std::string> HashingSource::digest()
{
    std::vector<char> rest(chunk);
    while (true)
    {
        auto got = read(rest);
        if (!got) { return std::move(got).error(); }
        if (*got == 0) { break; }
    }
    return "sha256:" + crypto::to_hex(state_->hash.finish());
}

Result<std::unique_ptr<Source>> decompress(Source& inner)
{
    Buffered in{inner};
    auto first = in.first(4);
    if (!first) { return std::move(first).error(); }
    const std::string_view magic{first->data(), first->size()};
    using namespace std::string_view_literals;
    if (magic.starts_with("\x1f\x8b"sv))
    {
        return std::unique_ptr<Source>{std::make_unique<GzipSource>(std::move(in))};
    }
    if (magic == "\x28\xb5\x2f\xfd"sv) { return std::unique_ptr<Source>{std::make_unique<ZstdSource>(std::move(in))}; }
    return std::unique_ptr<Source>{std::make_unique<PlainSource>(std::move(in))};
}

} // namespace dstack::image
