#pragma once
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

/// A directory of one test.
class Folder
{
  public:
    Folder() : path_((std::filesystem::temp_directory_path() / "logs_XXXXXX").string())
    {
        if (mkdtemp(path_.data()) == nullptr) { std::abort(); }
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { std::filesystem::remove_all(path_); }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

inline void write_file(const std::string& path, const std::string& text) { std::ofstream{path, std::ios::binary | std::ios::trunc} << text; }
inline void append_file(const std::string& path, const std::string& text) { std::ofstream{path, std::ios::binary | std::ios::app} << text; }
