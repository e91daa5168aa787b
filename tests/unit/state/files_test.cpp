#include "shared/state/files.hpp"
#include "tests/catch.hpp"
#include "tests/unit/state/scratch.hpp"
#include <csignal>
#include <fstream>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace dstack;
using namespace dstack::state;

namespace
{
std::size_t entries(const std::string& dir)
{
    std::size_t n = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir)) { ++n; }
    return n;
}
} // namespace

TEST_CASE("an atomic write replaces the whole file and sets the mode")
{
    const Scratch dir;
    REQUIRE(write_file_atomic(dir / "f", "first and longer", 0600));
    REQUIRE(write_file_atomic(dir / "f", "second", 0640));
    auto text = read_file(dir / "f", 100);
    REQUIRE(text);
    CHECK(*text == "second");
    struct stat facts = {};
    REQUIRE(::stat((dir / "f").c_str(), &facts) == 0);
    CHECK((facts.st_mode & 07777) == 0640);
    CHECK(entries(dir.path()) == 1); // no temp file stays
}

TEST_CASE("a write that runs out of space leaves the old file and no temp file")
{
    const Scratch dir;
    REQUIRE(write_file_atomic(dir / "f", "old", 0600));
    const pid_t child = ::fork();
    if (child == 0)
    {
        ::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{4096, 4096};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        auto written = write_file_atomic(dir / "f", std::string(100'000, 'x'), 0600);
        ::_exit(!written && written.error().code == Errc::resource_exhausted ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WEXITSTATUS(status) == 0);
    auto text = read_file(dir / "f", 100);
    REQUIRE(text);
    CHECK(*text == "old");
    CHECK(entries(dir.path()) == 1);
}

TEST_CASE("reading says what is wrong")
{
    const Scratch dir;
    auto missing = read_file(dir / "none", 10);
    REQUIRE(!missing);
    CHECK(missing.error().code == Errc::not_found);
    CHECK(missing.error().message.find("none") != std::string::npos);

    REQUIRE(write_file_atomic(dir / "big", std::string(11, 'x'), 0600));
    auto big = read_file(dir / "big", 10);
    REQUIRE(!big);
    CHECK(big.error().code == Errc::resource_exhausted);
    REQUIRE(read_file(dir / "big", 11));

    auto directory = read_file(dir.path(), 10);
    REQUIRE(!directory);
    CHECK(directory.error().code == Errc::invalid_argument);
}

TEST_CASE("directories are made and trees removed without following links")
{
    const Scratch dir;
    REQUIRE(make_dirs(dir / "a/b/c", 0755));
    REQUIRE(make_dirs(dir / "a/b/c", 0755));
    REQUIRE(write_file_atomic(dir / "a/b/c/f", "x", 0600));
    REQUIRE(write_file_atomic(dir / "keep", "x", 0600));
    std::filesystem::create_symlink(dir / "keep", dir / "a/link");
    auto blocked = make_dirs(dir / "keep/sub", 0755);
    REQUIRE(!blocked);
    CHECK(blocked.error().code == Errc::invalid_argument);
    REQUIRE(remove_tree(dir / "a"));
    REQUIRE(remove_tree(dir / "a"));
    CHECK(!std::filesystem::exists(dir / "a"));
    CHECK(std::filesystem::exists(dir / "keep"));
}

TEST_CASE("a lock is held by one and freed by death")
{
    const Scratch dir;
    auto mine = FileLock::acquire(dir / "lock", std::chrono::milliseconds{0});
    REQUIRE(mine);
    auto other = FileLock::acquire(dir / "lock", std::chrono::milliseconds{20});
    REQUIRE(!other);
    CHECK(other.error().code == Errc::unavailable);
    {
        const FileLock gone = std::move(*mine);
    }
    int ready[2] = {-1, -1};
    REQUIRE(::pipe(ready) == 0);
    const pid_t child = ::fork();
    if (child == 0)
    {
        auto held = FileLock::acquire(dir / "lock", std::chrono::milliseconds{0});
        const char ok = held ? 'y' : 'n';
        (void)!::write(ready[1], &ok, 1);
        ::pause();
        ::_exit(0);
    }
    char held = 0;
    REQUIRE(::read(ready[0], &held, 1) == 1);
    CHECK(held == 'y');
    CHECK(!FileLock::acquire(dir / "lock", std::chrono::milliseconds{0}));
    ::kill(child, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(FileLock::acquire(dir / "lock", std::chrono::milliseconds{1000}));
    ::close(ready[0]);
    ::close(ready[1]);
}
