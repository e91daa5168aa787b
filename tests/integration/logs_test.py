"""dstack-logs as a real process beside a real broker: collects, keeps across kill -9 and removal, answers and follows."""
import http.client
import json
import os
import shutil
import socket
import subprocess
import unittest

from mesh import BUILD, Prefix, program, wait_for

PROBE = BUILD / "tests/integration/bus_probe"
VM = "0b5e3a36-5a4c-4d3c-9a53-0f3d2f1f9d11"


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path, timeout=20):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class LogsTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.probes = self.prefix.path / "probes"
        self.probes.mkdir()
        for name in ("operator", "vmm-local"):
            shutil.copy(PROBE, self.probes / name)
        services = f'logs = "exe:{program("logs")}"\nvmm-local = "exe:{self.probes}/vmm-local"\n'
        self.prefix.start("bus", f'[bus]\ndirectory = "{self.prefix.bus}"\njournal = "{self.prefix.state("bus")}/journal.db"\n\n'
                                 f"[identity.services]\n{services}")
        self.vms = self.prefix.state("vmm-local") / "vms"
        self.vms.mkdir()
        self.socket = self.prefix.path / "run/logs.sock"
        self.services = self.prefix.path / "services"
        self.services.mkdir()
        self.logs = self.prefix.start("logs", f'[logs]\nsocket = "{self.socket}"\nstore_dir = "{self.prefix.state("logs")}"\n'
                                              f'vm_root = "{self.vms}"\nservice_log_dir = "{self.services}"\n'
                                              f'source_bytes = 1048576\nflood_bytes = 1048576\n\n[bus]\ndirectory = "{self.prefix.bus}"\n')
        self.emitted = 0

    def probe(self, who, *arguments):
        done = subprocess.run([str(self.probes / who), str(self.prefix.bus), *arguments], capture_output=True, text=True, timeout=20)
        return done.stdout.strip()

    def emit(self, kind, **data):
        self.emitted += 1
        answer = self.probe("vmm-local", "emit", f"e{self.emitted}", kind, data["vm_id"], json.dumps(data))
        self.assertTrue(answer.startswith("published"), answer)

    def create(self, vm_id=VM, name="hello"):
        folder = self.vms / vm_id
        folder.mkdir()
        self.emit("vm.created", vm_id=vm_id, name=name, app_id="a" * 40, compose_hash="b" * 64, image="i", vcpu=1, memory_mb=512,
                  serial_log=f"{folder}/serial.log")
        return folder / "serial.log"

    def get(self, path):
        connection = UnixHttp(self.socket)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def lines(self, source="hello", **query):
        arguments = "&".join(f"{key}={value}" for key, value in query.items())
        status, body = self.get(f"/logs/{source}?format=json&{arguments}")
        self.assertEqual(status, 200, body)
        return [json.loads(line) for line in body.splitlines()]

    def texts(self, source="hello", **query):
        return [line["text"] for line in self.lines(source, **query)]

    def wait_texts(self, expected, source="hello", **query):
        wait_for(lambda: self.texts(source, **query) == expected, f"the lines {expected}")

    def test_collects_keeps_and_answers(self):
        serial = self.create()
        serial.write_bytes(b"one\r\ntwo \x1b[2Jx\n")
        self.wait_texts(["one", "two \x1b[2Jx"])
        with open(serial, "ab") as out:
            out.write(b"three\nunfinished")
        self.wait_texts(["one", "two \x1b[2Jx", "three"])
        for name in (VM, VM[:8], "a" * 40, f"vm:{VM}"):
            self.assertEqual(len(self.lines(name)), 3)
        self.assertEqual(self.texts(lines=1), ["three"])
        self.assertEqual([line["sequence"] for line in self.lines(**{"from": 2})], [2, 3])
        self.assertEqual(self.get("/logs/hello?lines=2")[1], b"two \x1b[2Jx\nthree\n")

        answer = self.probe("operator", "call", "logs.query", json.dumps({"source": "hello", "lines": 2}))
        self.assertTrue(answer.startswith("ok "), answer)
        reply = json.loads(answer[3:])
        self.assertEqual([line["text"] for line in reply["lines"]], ["two \x1b[2Jx", "three"])
        self.assertEqual((reply["source"], reply["next"]), (VM, 4))
        self.assertTrue(reply["follow_url"].startswith(f"unix:{self.socket}:/logs/vm:{VM}?follow=true"))

    def test_refuses_by_name(self):
        answer = self.probe("operator", "call", "logs.query", json.dumps({"source": "nope"}))
        self.assertTrue(answer.startswith("error not_found logs of nope"), answer)
        answer = self.probe("operator", "call", "logs.query", json.dumps({"source": "nope", "lines": 0}))
        self.assertTrue(answer.startswith("error invalid_argument"), answer)
        for path, status in (("/logs/nope", 404), ("/x", 404), ("/logs/nope?lines=0", 400), ("/logs/nope?lines=x", 400),
                             ("/logs/nope?follow=maybe", 400), ("/logs/..%2f..%2fetc", 404)):
            self.assertEqual(self.get(path)[0], status, path)

    def test_a_log_outside_of_the_vm_root_is_not_read(self):
        secret = self.prefix.path / "secret"
        secret.write_text("secret\n")
        (self.vms / "x").mkdir()
        self.emit("vm.created", vm_id="x", name="x", app_id="", compose_hash="", image="i", vcpu=1, memory_mb=1,
                  serial_log=f"{self.vms}/x/../../../../../secret")
        self.emit("vm.created", vm_id="y", name="y", app_id="", compose_hash="", image="i", vcpu=1, memory_mb=1, serial_log=str(secret))
        wait_for(lambda: self.logs.text().count("log not collected") >= 2, "both are refused")
        self.assertEqual(json.loads(self.get("/logs")[1])["sources"], [])

    def test_killed_at_any_time_loses_and_doubles_nothing(self):
        serial = self.create()
        expected = []
        for round_number in range(4):
            with open(serial, "ab") as out:
                for i in range(500):
                    expected.append(f"round {round_number} line {i}")
                    out.write(expected[-1].encode() + b"\n")
            if round_number == 0:
                wait_for(lambda: len(self.texts(lines=10000)) > 0, "it collects")
            self.logs.kill()
            with open(serial, "ab") as out:
                expected.append(f"while down {round_number}")
                out.write(expected[-1].encode() + b"\n")
            self.logs.start()
        self.wait_texts(expected, lines=10000)
        self.assertEqual([line["sequence"] for line in self.lines(lines=10000)], list(range(1, len(expected) + 1)))

    def test_lines_stay_after_the_vm_is_removed(self):
        serial = self.create()
        serial.write_text("first\nlast words")
        self.wait_texts(["first"])
        shutil.rmtree(serial.parent)
        self.emit("vm.removed", vm_id=VM, name="hello")
        self.wait_texts(["first", "last words"])
        wait_for(lambda: json.loads(self.get("/logs")[1])["sources"][0]["removed"], "it is known to be removed")
        self.logs.kill()
        self.logs.start()
        self.assertEqual(self.texts(), ["first", "last words"])
        # The name is used again: the living one is meant, the old one keeps its own lines.
        other = VM.replace("0b5e", "ffff")
        self.create(other).write_text("new\n")
        self.wait_texts(["new"])
        self.assertEqual(self.texts(VM), ["first", "last words"])

    def test_follows_until_the_vm_is_removed(self):
        serial = self.create()
        serial.write_text("one\n")
        self.wait_texts(["one"])
        connection = UnixHttp(self.socket)
        self.addCleanup(connection.close)
        connection.request("GET", "/logs/hello?follow=true&lines=10")
        answer = connection.getresponse()
        self.assertEqual(answer.readline(), b"one\n")
        for i in range(20):
            with open(serial, "ab") as out:
                out.write(f"line {i}\n".encode())
            self.assertEqual(answer.readline(), f"line {i}\n".encode())
        shutil.rmtree(serial.parent)
        self.emit("vm.removed", vm_id=VM, name="hello")
        self.assertEqual(answer.readline(), b"")

    def test_truncation_is_a_gap_and_an_event(self):
        serial = self.create()
        serial.write_text("one\n")
        self.wait_texts(["one"])
        serial.write_text("x\n")
        self.wait_texts(["one", "lost an unknown number of bytes: truncated", "x"])
        self.assertEqual([line["channel"] for line in self.lines()], ["serial", "gap", "serial"])
        events = subprocess.Popen([str(self.probes / "operator"), str(self.prefix.bus), "subscribe", "0", "log."], stdout=subprocess.PIPE, text=True)
        self.addCleanup(events.stdout.close)
        self.addCleanup(events.wait)
        self.addCleanup(events.kill)
        line = events.stdout.readline()
        self.assertIn("log.gap /dstack/logs", line)
        data = json.loads(line[line.index("{"):])
        self.assertEqual((data["source"], data["from"], data["reason"]), (VM, 2, "truncated"))

    def test_a_flood_is_bounded_and_slows_nobody(self):
        noisy = self.create(VM.replace("0b5e", "eeee"), "noisy")
        quiet = self.create()
        flood = b"".join(b"flood %d %s\n" % (i, b"x" * 80) for i in range(300000))
        quiet.write_text("before\n")
        self.wait_texts(["before"])
        with open(noisy, "ab") as out:
            out.write(flood)
            with open(quiet, "ab") as other:
                other.write(b"during\n")
        self.wait_texts(["before", "during"])
        wait_for(lambda: "".join(self.texts("noisy", lines=1)).startswith("flood 299999 "), "the newest line is there")
        store = self.prefix.state("logs") / f"vm-{noisy.parent.name}"
        self.assertLess(sum(file.stat().st_size for file in store.iterdir()), 1500000)
        first = self.lines("noisy", **{"from": 1, "lines": 1})[0]
        self.assertEqual(first["channel"], "gap")

    def test_services_are_collected_too(self):
        (self.services / "auth.log").write_text("auth says\n")
        wait_for(lambda: self.texts("service:auth") == ["auth says"], "the service's log")
        self.assertEqual([line["channel"] for line in self.lines("auth")], ["service"])

    def test_collects_without_a_broker(self):
        self.prefix.services["bus"].kill()
        self.logs.kill()
        folder = self.vms / VM
        folder.mkdir()
        (folder / "serial.log").write_text("alone\n")
        self.logs.start()
        self.wait_texts(["alone"], VM)


if __name__ == "__main__":
    unittest.main()
