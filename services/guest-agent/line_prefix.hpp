#pragma once
#include <string>
#include <string_view>

namespace dstack::guest
{

/// Puts "[service] " before each line of a container's output. A line that never ends is cut at 8 KiB.
class LinePrefix
{
  public:
    explicit LinePrefix(std::string_view service) : prefix_("[" + std::string{service} + "] ") {}
    /// The whole lines that are complete with these bytes.
    std::string feed(std::string_view bytes);
    /// What is left when the output has ended.
    std::string finish();

  private:
    std::string prefix_;
    std::string rest_;
};

} // namespace dstack::guest
