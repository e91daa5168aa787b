#include "services/guest-agent/power_button.hpp"
#include <array>
#include <fcntl.h>
#include <filesystem>
#include <linux/input.h>
#include <unistd.h>

namespace dstack::guest
{

struct PowerButton::Device
{
    PowerButton* owner = nullptr;
    process::Fd fd{};
    UvHandle<uv_poll_t> poll{};

    void readable()
    {
        std::array<input_event, 16> events{};
        const ssize_t got = ::read(fd.get(), events.data(), sizeof events);
        if (got <= 0)
        {
            if (got == 0 || errno != EAGAIN) { uv_poll_stop(poll.get()); }
            return;
        }
        for (std::size_t i = 0; i < static_cast<std::size_t>(got) / sizeof(input_event); ++i)
        {
            if (events[i].type == EV_KEY && events[i].code == KEY_POWER && events[i].value == 1) { owner->pressed_(); }
        }
    }
};

PowerButton::PowerButton(Loop& loop, std::function<void()> pressed) : pressed_(std::move(pressed))
{
    std::error_code code;
    for (const auto& entry : std::filesystem::directory_iterator{"/dev/input", code})
    {
        if (!entry.path().filename().string().starts_with("event")) { continue; }
        auto device = std::make_unique<Device>();
        device->owner = this;
        device->fd = process::Fd{::open(entry.path().c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
        if (!device->fd) { continue; }
        device->poll = make_uv<uv_poll_t>([&](uv_poll_t* h) { return uv_poll_init(loop.raw(), h, device->fd.get()); });
        if (!device->poll) { continue; }
        device->poll->data = device.get();
        uv_poll_start(device->poll.get(), UV_READABLE,
                      [](uv_poll_t* h, int, int) { static_cast<Device*>(h->data)->readable(); });
        devices_.push_back(std::move(device));
    }
}

PowerButton::~PowerButton() = default;

} // namespace dstack::guest
