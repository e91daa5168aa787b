#pragma once
#include <cstdlib>
#include <filesystem>
#include <string>

/// A directory that is gone at the end of the test.
class Scratch
{
  public:
    Scratch()
    {
        std::string name = (std::filesystem::temp_directory_path() / "dstack-state-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) { std::abort(); }
        path_ = name;
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch()
    {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};
