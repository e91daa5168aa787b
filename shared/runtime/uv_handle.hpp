#pragma once
#include <memory>
#include <uv.h>

namespace dstack
{

/// libuv keeps using a handle's memory until its close callback has run,
/// so the memory is freed there and nowhere else.
struct UvClose
{
    template <class H>
    void operator()(H* handle) const
    {
        uv_close(reinterpret_cast<uv_handle_t*>(handle), [](uv_handle_t* h) { delete reinterpret_cast<H*>(h); });
    }
};
template <class H>
using UvHandle = std::unique_ptr<H, UvClose>;

/// `init` must be one of the uv_*_init calls; a handle that failed to initialise is never closed.
template <class H, class Init>
UvHandle<H> make_uv(Init init)
{
    auto raw = std::make_unique<H>();
    if (init(raw.get()) != 0) { return nullptr; }
    return UvHandle<H>{raw.release()};
}

} // namespace dstack
