#pragma once
#include "shared/process/fd.hpp"
#include "shared/runtime/loop.hpp"
#include <functional>
#include <memory>
#include <vector>

namespace dstack::guest
{

/// Calls `pressed` when the ACPI power button is pressed (QMP system_powerdown): KEY_POWER of any input device.
class PowerButton
{
  public:
    PowerButton(Loop& loop, std::function<void()> pressed);
    ~PowerButton();
    std::size_t devices() const { return devices_.size(); }

  private:
    struct Device;
    std::function<void()> pressed_;
    std::vector<std::unique_ptr<Device>> devices_;
};

} // namespace dstack::guest
