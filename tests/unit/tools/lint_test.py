"""The lints find what they are for, and nothing else."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
import lint_coroutines
import lint_includes
import lint_text


class Coroutines(unittest.TestCase):
    def test_allowed_shapes(self):
        for text in ["auto x = co_await f(a, b);", "const auto x = co_await f(a);", "{ co_await sleep_for(loop, period); }",
                     "co_return co_await f(a);", "co_await f(milliseconds{5}, a);", "const bool b = co_await f(a);",
                     "case State::up: co_await f(a);", "co_await jobs[i].wait();",
                     "// co_await in { a comment }\n", 'log("co_await {x}");', "Awaiter operator co_await() && noexcept { return {}; }",
                     "const auto n = 1'000; co_await f(n); const auto c = 'x';",
                     "auto g = [](int a) -> Task<> { co_await f(a); };", "auto g = [x] { return f(x); };",
                     "[[nodiscard]] Task<> f() { co_await g(a); }"]:
            with self.subTest(text):
                self.assertEqual(lint_coroutines.check(text), [])

    def test_refused_shapes(self):
        for text in ["if (co_await f(a)) { }", "while (co_await f(a)) { }", "x = co_await f(a);", "return 1 + co_await f(a);",
                     "auto [a, b] = co_await f(x);", "co_await f(Options{1});", "co_await f({1, 2});", "auto x = co_await f(a ? b : c);",
                     "co_await f([] { return 1; });", "auto x = co_await f(co_await g(a));", "g(co_await f(a));",
                     "auto g = [x](int a) -> Task<> { co_await f(a); };", "spawn([&]() -> Task<> { co_return; });",
                     "co_return *co_await f(a);"]:
            with self.subTest(text):
                self.assertNotEqual(lint_coroutines.check(text), [])

    def test_names_the_line(self):
        self.assertEqual([line for line, _ in lint_coroutines.check("int a;\n\nif (co_await f(a)) {}\n")], [3])


class Includes(unittest.TestCase):
    def test_direction(self):
        for name, include, allowed in [
                ("services/auth/main.cpp", "bus/client/client.hpp", True), ("services/auth/main.cpp", "shared/http/server.hpp", True),
                ("services/auth/main.cpp", "services/auth/policy.hpp", True), ("services/auth/main.cpp", "services/logs/store.hpp", False),
                ("bus/client/client.cpp", "services/auth/policy.hpp", False), ("bus/client/client.cpp", "bus/broker/broker.hpp", False),
                ("bus/schema/events.hpp", "bus/protocol/frames.hpp", False), ("shared/http/server.cpp", "bus/client/client.hpp", False),
                ("tests/unit/auth/policy_test.cpp", "services/auth/policy.hpp", True), ("tests/unit/a.cpp", "services/auth/policy.cpp", False)]:
            with self.subTest(f"{name} -> {include}"):
                self.assertEqual(lint_includes.check(name, f'#include "{include}"\n') == [], allowed)


class Text(unittest.TestCase):
    def test_marks(self):
        self.assertEqual(lint_text.check("a.hpp", "#pragma once\nint a;\n"), [])
        self.assertNotEqual(lint_text.check("a.hpp", "int a;\n"), [])
        self.assertNotEqual(lint_text.check("a.cpp", "int a; // TO" + "DO later\n"), [])
        self.assertNotEqual(lint_text.check("a.cpp", "int a; \n"), [])


if __name__ == "__main__":
    unittest.main()
