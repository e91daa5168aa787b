#include "shared/process/process.hpp"
#include "tests/catch.hpp"
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace dstack;
using namespace dstack::process;

namespace
{
struct TempDir
{
    std::string path;
    TempDir()
    {
        char name[] = "/tmp/process-test-XXXXXX";
        path = mkdtemp(name);
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    ~TempDir()
    {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
};

std::string slurp(const std::string& path)
{
    std::ifstream file{path};
    std::stringstream out;
    out << file.rdbuf();
    return out.str();
}

Task<> do_run(Loop& loop, Spec spec, milliseconds limit, std::optional<Result<Output>>& out)
{
    auto task = run(loop, std::move(spec), limit);
    auto result = co_await task;
    out.emplace(std::move(result));
}

Result<Output> run_now(Spec spec, milliseconds limit = milliseconds{5000})
{
    Loop loop;
    std::optional<Result<Output>> out;
    loop.run(do_run(loop, std::move(spec), limit, out));
    return *out;
}

Spec shell(std::string script)
{
    Spec spec;
    spec.argv = {"/bin/sh", "-c", std::move(script)};
    return spec;
}

/// Polls what can be observed, with a deadline.
template <class F>
bool eventually(F condition)
{
    for (int i = 0; i < 500; ++i)
    {
        if (condition()) { return true; }
        std::this_thread::sleep_for(milliseconds{10});
    }
    return false;
}

/// Looks without reaping: what is another's to reap stays there for it.
bool no_child_is_left()
{
    siginfo_t info{};
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == -1 && errno == ECHILD;
}

Task<> do_terminate(Loop& loop, Identity who, milliseconds grace, std::optional<Result<Terminated>>& out)
{
    auto task = terminate(loop, std::move(who), grace);
    auto result = co_await task;
    out.emplace(std::move(result));
}

Result<Terminated> terminate_now(const Identity& who, milliseconds grace)
{
    Loop loop;
    std::optional<Result<Terminated>> out;
    loop.run(do_terminate(loop, who, grace, out));
    return *out;
}
} // namespace

TEST_CASE("stat text is parsed whatever the command is called")
{
    const std::string tail = " S 7 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 987654 0 0 0";
    for (const std::string name : {"(sh)", "(a b)", "(a) (b))", "(\n)"})
    {
        const auto stat = parse_stat("42 " + name + tail);
        REQUIRE(stat);
        CHECK(stat->state == 'S');
        CHECK(stat->parent == 7);
        CHECK(stat->start_ticks == 987654);
    }
    CHECK_FALSE(parse_stat(""));
    CHECK_FALSE(parse_stat("42 (sh) S 7 1"));
}

TEST_CASE("identities survive a pid file and nothing else is accepted")
{
    const auto self = identify(getpid());
    REQUIRE(self);
    CHECK(alive(*self));
    const auto back = decode(encode(*self));
    REQUIRE(back);
    CHECK(*back == *self);
    for (const char* bad : {"", "1", "1 2", "x 2 b", "0 2 b", "-1 2 b", "1 2 b c", "1 2x b"}) { CHECK_FALSE(decode(bad)); }
    Identity other = *self;
    other.start_ticks += 1;
    CHECK_FALSE(alive(other));
    other = *self;
    other.boot_id = "00000000-0000-0000-0000-000000000000";
    CHECK_FALSE(alive(other));
    CHECK(identify(0x3fffffff).error().code == Errc::not_found);
}

TEST_CASE("a child's output, exit and streams are told apart")
{
    const auto output = run_now(shell("echo out; echo err >&2; exit 3"));
    REQUIRE(output);
    CHECK(output->out == "out\n");
    CHECK(output->err == "err\n");
    CHECK(output->exit.code == 3);
    CHECK(to_string(output->exit) == "exit code 3");
    const auto killed = run_now(shell("kill -9 $$"));
    REQUIRE(killed);
    CHECK(killed->exit.signal == SIGKILL);
    CHECK(to_string(killed->exit) == "killed by signal 9");
}

TEST_CASE("nothing is inherited: environment, descriptors, signal mask, ignored signals")
{
    setenv("A_SECRET", "hunter2", 1);
    const int leaked = open("/etc/passwd", O_RDONLY); // without O_CLOEXEC
    REQUIRE(leaked > 2);
    std::signal(SIGPIPE, SIG_IGN);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
    const auto output = run_now(shell("env | sort; ls /proc/self/fd | wc -l; grep -E '^Sig(Blk|Ign)' /proc/self/status"));
    pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
    close(leaked);
    REQUIRE(output);
    CHECK(output->out.find("hunter2") == std::string::npos);
    CHECK(output->out.find("LANG=C.UTF-8\n") != std::string::npos);
    CHECK(output->out.find("\n4\n") != std::string::npos); // 0, 1, 2 and ls's own directory
    CHECK(output->out.find("SigBlk:\t0000000000000000") != std::string::npos);
    CHECK(output->out.find("SigIgn:\t0000000000000000") != std::string::npos);
}

TEST_CASE("stdin, cwd, environment and files")
{
    const TempDir dir;
    Spec spec = shell("cat; pwd; echo $X; echo file >&2");
    spec.input = std::string(200'000, 'x') + "end\n"; // more than a pipe holds
    spec.env = {"X=y", "PATH=/bin:/usr/bin"};
    spec.cwd = dir.path;
    spec.max_output = 1 << 20;
    const auto output = run_now(spec);
    REQUIRE(output);
    CHECK(output->out.size() == 200'004 + dir.path.size() + 1 + 2);
    CHECK(output->out.substr(output->out.size() - 2) == "y\n");

    Loop loop;
    Spec to_file = shell("echo one; read line || echo no input");
    to_file.out = {Sink::Kind::file, dir.path + "/log"};
    to_file.err = {Sink::Kind::file, dir.path + "/log"};
    for (int i = 0; i < 2; ++i)
    {
        auto child = spawn(loop, to_file);
        REQUIRE(child);
        loop.run([](Child& c) -> Task<> {
            auto wait = c.wait();
            auto exit = co_await wait;
            CHECK(exit);
        }(*child));
    }
    CHECK(slurp(dir.path + "/log") == "one\nno input\none\nno input\n");
}

TEST_CASE("output is bounded and the child is not blocked by it")
{
    Spec spec = shell("head -c 1000000 /dev/zero; echo done >&2");
    spec.max_output = 1000;
    const auto output = run_now(spec);
    REQUIRE(output);
    CHECK(output->out.size() == 1000);
    CHECK(output->truncated);
    CHECK(output->err == "done\n");
}

TEST_CASE("what cannot run is an error that names it")
{
    Spec spec;
    spec.argv = {"/no/such/program"};
    auto output = run_now(spec);
    REQUIRE_FALSE(output);
    CHECK(output.error().code == Errc::not_found);
    CHECK(output.error().message == "run /no/such/program: execute: no such file or directory");
    spec.argv = {"no-such-program-anywhere"};
    CHECK(run_now(spec).error().code == Errc::not_found);
    spec.argv = {"/etc/passwd"};
    CHECK(run_now(spec).error().code == Errc::permission_denied);
    spec.argv = {"true"};
    spec.cwd = "/no/such/dir";
    output = run_now(spec);
    REQUIRE_FALSE(output);
    CHECK(output.error().message == "run /usr/bin/true: change directory /no/such/dir: no such file or directory");
    spec.argv = {};
    CHECK(run_now(spec).error().code == Errc::invalid_argument);
    spec.argv = {std::string("a\0b", 3)};
    CHECK(run_now(spec).error().code == Errc::invalid_argument);
}

TEST_CASE("a child that takes too long is killed with its group")
{
    const TempDir dir;
    Spec spec = shell("sleep 1000 & echo $! > " + dir.path + "/pid; wait");
    spec.new_session = true;
    const auto output = run_now(spec, milliseconds{300});
    REQUIRE_FALSE(output);
    CHECK(output.error().code == Errc::deadline_exceeded);
    CHECK(output.error().message == "run /bin/sh: no answer within 300 ms");
    const pid_t pid = std::atoi(slurp(dir.path + "/pid").c_str());
    REQUIRE(pid > 0);
    CHECK(eventually(
        [pid]
        {
            const auto stat = read_stat(pid);
            return !stat || stat->state == 'Z';
        }));
}

TEST_CASE("a grandchild that keeps the pipe does not keep the waiter")
{
    const auto start = std::chrono::steady_clock::now();
    const auto output = run_now(shell("sleep 4 & echo now"));
    REQUIRE(output);
    CHECK(output->out == "now\n");
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{3});
}

TEST_CASE("a detached process lives in its own session and is nobody's child")
{
    const TempDir dir;
    Spec spec = shell("echo started; exec sleep 1000");
    spec.out = {Sink::Kind::file, dir.path + "/log"};
    bool ran_before_record = true;
    const auto who = spawn_detached(spec,
                                    [&](const Identity& id) -> Result<Done>
                                    {
                                        ran_before_record = !slurp(dir.path + "/log").empty();
                                        CHECK(alive(id));
                                        return Done{};
                                    });
    REQUIRE(who);
    CHECK_FALSE(ran_before_record);
    CHECK(alive(*who));
    CHECK(eventually([&] { return slurp(dir.path + "/log") == "started\n"; }));
    const auto stat = read_stat(who->pid);
    REQUIRE(stat);
    CHECK(stat->parent != getpid());
    CHECK(getsid(who->pid) != getsid(0));
    CHECK(eventually(no_child_is_left)); // one that an earlier test killed may still be on its way out

    const auto ended = terminate_now(*who, milliseconds{2000});
    REQUIRE(ended);
    CHECK(*ended == Terminated::by_request);
    CHECK_FALSE(alive(*who));
    const auto again = terminate_now(*who, milliseconds{2000});
    REQUIRE(again);
    CHECK(*again == Terminated::already_gone);
}

TEST_CASE("a detached process that was not recorded executes nothing")
{
    const TempDir dir;
    Spec spec = shell("echo started > " + dir.path + "/ran");
    Identity seen;
    const auto who = spawn_detached(spec,
                                    [&](const Identity& id) -> Result<Done>
                                    {
                                        seen = id;
                                        return Error{Errc::resource_exhausted, "disk full"};
                                    });
    REQUIRE_FALSE(who);
    CHECK(who.error().message == "disk full");
    CHECK(eventually([&] { return !alive(seen); }));
    CHECK(access((dir.path + "/ran").c_str(), F_OK) != 0);
    spec.argv = {"/no/such"};
    CHECK(spawn_detached(spec).error().code == Errc::not_found);
    spec.argv = {"true"};
    spec.out.kind = Sink::Kind::capture;
    CHECK(spawn_detached(spec).error().code == Errc::invalid_argument);
}

TEST_CASE("a detached process survives the death of the one that started it")
{
    const TempDir dir;
    const pid_t parent = fork();
    if (parent == 0)
    {
        Spec spec;
        spec.argv = {"sleep", "1000"};
        const auto who = spawn_detached(spec);
        if (who)
        {
            std::ofstream{dir.path + "/pid.tmp"} << encode(*who);
            std::rename((dir.path + "/pid.tmp").c_str(), (dir.path + "/pid").c_str());
        }
        std::raise(SIGKILL);
    }
    waitpid(parent, nullptr, 0);
    const auto who = decode(slurp(dir.path + "/pid"));
    REQUIRE(who);
    CHECK(alive(*who));
    CHECK(*terminate_now(*who, milliseconds{0}) == Terminated::by_force);
}

TEST_CASE("terminate forces what does not listen, and never touches a recycled pid")
{
    const TempDir dir;
    Spec spec = shell("trap '' TERM; echo ready > " + dir.path + "/ready; while :; do sleep 1; done");
    const auto who = spawn_detached(spec);
    REQUIRE(who);
    REQUIRE(eventually([&] { return slurp(dir.path + "/ready") == "ready\n"; }));
    Identity recycled = *who;
    recycled.start_ticks -= 1; // as if the pid had belonged to an older process
    CHECK(*terminate_now(recycled, milliseconds{100}) == Terminated::already_gone);
    CHECK(alive(*who));
    CHECK(*terminate_now(*who, milliseconds{100}) == Terminated::by_force);
    CHECK_FALSE(alive(*who));
}

TEST_CASE("a watch wakes up when a stranger ends")
{
    Spec spec;
    spec.argv = {"sleep", "1000"};
    const auto who = spawn_detached(spec);
    REQUIRE(who);
    Loop loop;
    auto watch = PidWatch::open(loop, *who);
    REQUIRE(watch);
    CHECK_FALSE(watch->has_exited());
    REQUIRE(watch->kill(SIGKILL));
    loop.run([](PidWatch& w) -> Task<> { co_await w.exited(); }(*watch));
    CHECK(watch->has_exited());
    CHECK(watch->kill(SIGKILL));
    CHECK(PidWatch::open(loop, *who).error().code == Errc::not_found);
}

TEST_CASE("PDEATHSIG takes a child with its parent")
{
    const TempDir dir;
    const pid_t parent = fork();
    if (parent == 0)
    {
        Loop loop;
        Spec spec;
        spec.argv = {"sleep", "1000"};
        spec.parent_death_signal = SIGKILL;
        auto child = spawn(loop, spec);
        if (child)
        {
            const auto who = identify(child->pid());
            if (who) { std::ofstream{dir.path + "/pid"} << encode(*who) << std::flush; }
        }
        std::raise(SIGKILL);
    }
    waitpid(parent, nullptr, 0);
    const auto who = decode(slurp(dir.path + "/pid"));
    REQUIRE(who);
    CHECK(eventually([&] { return !alive(*who); }));
}
