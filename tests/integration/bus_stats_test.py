"""`dstack bus services`, `dstack bus top` and the broker's metrics, against a real broker."""
import http.client
import json
import os
import pty
import re
import select
import socket
import subprocess
import time
import unittest

from bus_test import Bus
from mesh import Prefix, program, wait_for

# OpenMetrics 1.0, as far as a line of text goes.
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABELS = r'\{[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z_]+="(?:[^"\\\n]|\\[\\"n])*")*\}'
SAMPLE = re.compile(rf"^({NAME})({LABELS})? (-?[0-9]+(?:\.[0-9]+)?)$")
SUFFIXES = {"counter": ["_total"], "gauge": [""], "info": ["_info"], "histogram": ["_bucket", "_count", "_sum"]}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


def get(path, target="/metrics", method="GET"):
    connection = UnixConnection(path)
    connection.request(method, target)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def parse(text):
    """{sample name + labels: value}; AssertionError where it is not OpenMetrics."""
    assert text.endswith("# EOF\n") and text.count("# EOF") == 1
    samples, types, family = {}, {}, None
    for line in text.splitlines()[:-1]:
        if line.startswith("# TYPE "):
            family, kind = line.split()[2:]
            assert family not in types, line
            types[family] = kind
        elif line.startswith("# "):
            assert line.split()[1] in ("HELP", "UNIT") and line.split()[2] == family, line
            assert line.split()[1] != "UNIT" or family.endswith("_" + line.split()[3]), line
        else:
            match = SAMPLE.match(line)
            assert match, line
            assert any(match.group(1) == family + suffix for suffix in SUFFIXES[types[family]]), line
            assert match.group(1) + (match.group(2) or "") not in samples, line
            samples[match.group(1) + (match.group(2) or "")] = float(match.group(3))
    return samples


class BusStatsTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.bus = Bus(self.prefix)
        self.addCleanup(self.bus.close)

    def dstack(self, *arguments, code=0):
        done = subprocess.run([str(program("dstack")), *arguments, "--prefix", str(self.prefix.path)], capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, code, done)
        return done.stdout

    def document(self, *arguments, kind):
        document = json.loads(self.dstack(*arguments, "--json"))
        self.assertEqual(document["schema"], f"dstack.{kind}/v1")
        self.assertEqual(document["warnings"], [])
        return document["data"]

    def serve(self, delay_ms=0):
        probe = self.bus.start("allocator", "serve", "allocator", "lease.list", str(delay_ms))
        probe.expect(lambda lines: "ready" in lines, "the service registers")
        return probe

    def test_services(self):
        def allocator():
            return next((entry for entry in self.document("bus", "services", kind="bus_services")["services"] if entry["service"] == "allocator"), None)

        self.assertIsNone(allocator())
        service = self.serve()
        entry = allocator()
        self.assertEqual((entry["state"], entry["pid"], entry["restarts"]), ("up", service.process.pid, 0))
        self.assertTrue(entry["version"] and entry["since"].endswith("Z") and entry["lastSeen"].endswith("Z"))
        service.kill()
        wait_for(lambda: allocator()["state"] == "down", "it is down")
        again = self.serve()
        entry = allocator()
        self.assertEqual((entry["state"], entry["pid"], entry["restarts"]), ("up", again.process.pid, 1))
        text = self.dstack("bus", "services").splitlines()
        self.assertEqual(text[0].split()[:3], ["SERVICE", "STATE", "PID"])
        self.assertEqual(text[1].split()[:3], ["allocator", "up", str(again.process.pid)])

    def test_top_counts_what_happens(self):
        self.serve()
        slow = self.bus.start("operator", "call", "lease.list", "{}", "", "20000")
        slow.expect(lambda lines: lines, "an answer")
        publisher = self.bus.start("vmm-local", "publish", "vm.ready", "1000000")
        publisher.expect(lambda lines: len(lines) > 10, "it publishes")
        top = self.document("bus", "top", kind="bus_top")
        published = len(publisher.lines)
        publisher.kill()
        self.assertGreater(top["rates"]["events"], 10)
        self.assertLess(top["rates"]["events"], published * 2 + 1000)
        self.assertGreaterEqual(top["interval_ms"], 900)
        self.assertGreater(top["rates"]["messagesIn"], 10)
        self.assertGreater(top["commit"]["mean_ms"], 0)
        self.assertGreater(top["resident_bytes"], 1_000_000)
        busiest = next(peer for peer in top["peers"] if peer["service"] == "vmm-local")
        self.assertEqual(busiest["pid"], publisher.process.pid)
        self.assertGreater(busiest["messagesIn"], 10)
        text = self.dstack("bus", "top")
        self.assertIn("SERVICE", text)
        self.assertIn("PEER", text)
        self.assertNotIn("\x1b", text)

    def test_top_shows_a_command_that_is_being_worked_on_and_one_that_waits(self):
        service = self.serve(delay_ms=60_000)
        self.bus.start("operator", "call", "lease.list", "{}", "", "30000")
        service.expect(lambda lines: any(line.startswith("request") for line in lines), "it is being worked on")
        allocator = lambda: self.document("bus", "top", kind="bus_top")["services"][0]
        self.assertEqual((allocator()["working"], allocator()["waiting"]), (1, 0))
        service.kill()
        wait_for(lambda: allocator()["state"] == "down", "it is down")
        self.bus.start("operator", "call", "lease.list", "{}", "", "30000")
        wait_for(lambda: allocator()["waiting"] == 1, "the next one waits")

    def test_a_slow_consumer_is_seen(self):
        self.bus.run("vmm-local", "publish", "vm.ready", "1500")
        process = subprocess.Popen([str(program("dstack")), "events", "-f", "--from", "0", "--json", "--prefix", str(self.prefix.path)], stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait, 10)
        self.addCleanup(process.kill)

        def lag():  # its first page ends 1000 events in; then nobody takes what it prints
            peers = self.document("bus", "top", kind="bus_top")["peers"]
            return [peer for peer in peers if peer["pid"] == process.pid and peer["reads"] > 0 and peer["behind"] >= 400]

        self.assertTrue(wait_for(lag, "it lags"))

    def test_top_on_a_terminal_goes_on(self):
        parent, child = pty.openpty()
        process = subprocess.Popen([str(program("dstack")), "bus", "top", "--prefix", str(self.prefix.path)], stdout=child, stdin=subprocess.DEVNULL)
        self.addCleanup(process.kill)
        os.close(child)
        seen, end = b"", time.monotonic() + 15
        while seen.count(b"\x1b[H") < 3 and time.monotonic() < end:
            if select.select([parent], [], [], 0.2)[0]:
                seen += os.read(parent, 65536)
        self.assertGreaterEqual(seen.count(b"\x1b[H"), 3)
        process.terminate()
        self.assertEqual(process.wait(10), 143)
        os.close(parent)

    def test_mistakes(self):
        self.dstack("bus", code=2)
        self.dstack("bus", "sideways", code=2)
        self.assertIn("services", self.dstack("bus", "--help"))
        self.bus.broker.kill()
        self.dstack("bus", "top", code=3)

    def test_metrics_are_openmetrics(self):
        service = self.serve()
        self.bus.run("operator", "call", "lease.list", "{}")
        self.bus.run("vmm-local", "publish", "vm.ready", "20")
        self.bus.run("operator", "publish", "vm.ready", "1")  # refused
        path = self.prefix.bus / "metrics.sock"
        self.assertEqual(path.stat().st_mode & 0o777, 0o660)
        status, headers, text = get(path)
        self.assertEqual(status, 200)
        self.assertEqual(headers["Content-Type"], "application/openmetrics-text; version=1.0.0; charset=utf-8")
        samples = parse(text)
        self.assertGreaterEqual(samples["dstack_bus_events_total"], 21)
        self.assertEqual(samples['dstack_bus_service_up{service="allocator"}'], 1)
        self.assertEqual(samples['dstack_bus_commands_total{service="allocator",code="ok"}'], 1)
        self.assertEqual(samples['dstack_bus_command_duration_seconds_count{service="allocator"}'], 1)
        self.assertEqual(samples['dstack_bus_command_duration_seconds_bucket{service="allocator",le="+Inf"}'], 1)
        self.assertGreaterEqual(samples["dstack_bus_refusals_total"], 1)
        self.assertGreater(samples["process_resident_memory_bytes"], 1_000_000)
        service.kill()
        wait_for(lambda: parse(get(path)[2])['dstack_bus_service_up{service="allocator"}'] == 0, "down")
        self.assertEqual(get(path, "/other")[0], 404)
        self.assertEqual(get(path, method="POST")[0], 405)
        self.bus.restart()
        wait_for(lambda: get(path)[0] == 200, "metrics after kill -9")

    def test_metrics_can_be_turned_off(self):
        config = self.bus.broker.config
        config.write_text(config.read_text().replace("[bus]\n", '[bus]\nmetrics = ""\n'))
        self.bus.broker.kill()
        (self.prefix.bus / "metrics.sock").unlink()
        self.bus.broker.start()
        self.assertFalse((self.prefix.bus / "metrics.sock").exists())


if __name__ == "__main__":
    unittest.main()
