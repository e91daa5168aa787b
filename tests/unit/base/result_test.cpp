#include "shared/base/result.hpp"
#include "tests/catch.hpp"
#include <cerrno>
#include <memory>

using namespace dstack;

TEST_CASE("every code has a name, and the name leads back")
{
    struct Row
    {
        Errc code;
        std::string_view name;
    };
    const Row rows[] = {
        {Errc::invalid_argument, "invalid_argument"},
        {Errc::not_found, "not_found"},
        {Errc::already_exists, "already_exists"},
        {Errc::permission_denied, "permission_denied"},
        {Errc::unauthenticated, "unauthenticated"},
        {Errc::unavailable, "unavailable"},
        {Errc::deadline_exceeded, "deadline_exceeded"},
        {Errc::failed_precondition, "failed_precondition"},
        {Errc::resource_exhausted, "resource_exhausted"},
        {Errc::aborted, "aborted"},
        {Errc::data_loss, "data_loss"},
        {Errc::cancelled, "cancelled"},
        {Errc::internal, "internal"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.name);
        CHECK(to_string(row.code) == row.name);
        CHECK(errc_from_string(row.name) == row.code);
    }
    CHECK(errc_from_string("") == Errc::internal);
    CHECK(errc_from_string("NOT_FOUND") == Errc::internal);
}

TEST_CASE("errno values are told apart")
{
    struct Row
    {
        int number;
        Errc code;
    };
    const Row rows[] = {
        {ENOENT, Errc::not_found},
        {EPERM, Errc::permission_denied},
        {EACCES, Errc::permission_denied},
        {EROFS, Errc::permission_denied},
        {EEXIST, Errc::already_exists},
        {ENOSPC, Errc::resource_exhausted},
        {EDQUOT, Errc::resource_exhausted},
        {EMFILE, Errc::resource_exhausted},
        {ECONNREFUSED, Errc::unavailable},
        {ETIMEDOUT, Errc::deadline_exceeded},
        {EADDRINUSE, Errc::failed_precondition},
        {EIO, Errc::data_loss},
        {EINVAL, Errc::invalid_argument},
        {ENOTTY, Errc::internal},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.number);
        CHECK(errc_from_errno(row.number) == row.code);
    }
    const Error error = errno_error("open /x/y", ENOENT);
    CHECK(error.code == Errc::not_found);
    CHECK(error.message == "open /x/y: no such file or directory");
}

TEST_CASE("an error gains context and a hint on its way up")
{
    const Error error = Error{Errc::unavailable, "connect: refused", {}, {}}.within("start vm").with_hint("start it");
    CHECK(error.message == "start vm: connect: refused");
    CHECK(error.hint == "start it");
    CHECK(error.code == Errc::unavailable);
}

TEST_CASE("a result holds one of the two")
{
    Result<std::unique_ptr<int>> value{std::make_unique<int>(7)};
    REQUIRE(value);
    CHECK(**value == 7);
    const std::unique_ptr<int> taken = *std::move(value);
    CHECK(*taken == 7);

    const Result<std::string> failed{Error{Errc::aborted, "lost", {}, {}}};
    REQUIRE_FALSE(failed);
    CHECK(failed.error().message == "lost");
}
