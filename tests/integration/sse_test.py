"""GET /events of dstack-logs: server-sent events with curl over a real bus."""
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import unittest

from bus_test import Bus
from mesh import Prefix, http, need, program, wait_for


class Stream:
    """A curl that stays; its blocks as dicts."""

    def __init__(self, url, *arguments):
        self.process = subprocess.Popen(["curl", "-sS", "-N", *arguments, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.blocks, self.comments, self.ended = [], 0, queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        block = {}
        for line in self.process.stdout:
            line = line.rstrip("\n")
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                block[name] = value
            elif block:
                self.blocks.append(block)
                block = {}
        self.ended.put(True)

    def events(self):
        return [(block["id"], json.loads(block["data"])) for block in list(self.blocks) if "data" in block and "event" not in block]

    def kinds(self):
        return [block["event"] for block in list(self.blocks) if "event" in block]

    def numbers(self):
        return [event["data"]["number"] for _, event in self.events() if event["type"] == "vm.ready"]

    def close(self):
        self.process.kill()
        self.process.wait(10)
        self.reader.join(10)
        self.process.stdout.close()


class SseTest(unittest.TestCase):
    def setUp(self):
        need(subprocess.run(["curl", "--version"], capture_output=True).returncode == 0, "no curl")
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.bus = Bus(self.prefix)
        self.addCleanup(self.bus.close)
        config = self.bus.broker.config
        config.write_text(config.read_text() + f'logs = "exe:{program("logs")}"\n')
        self.bus.restart(signal.SIGTERM)
        self.socket = self.prefix.path / "run/logs.sock"
        self.token_file = self.prefix.state("logs") / "events.token"
        self.log = self.prefix.path / "var/log/dstack/logs.log"
        self.logs = self.start()

    def start(self):
        serving = lambda: [line for line in self.log.read_text().splitlines() if "serving" in line and "events=" in line] if self.log.exists() else []
        before = len(serving())
        logs = self.prefix.start("logs", f'[logs]\nsocket = "{self.socket}"\nstore_dir = "{self.prefix.state("logs")}"\nvm_root = "{self.prefix.path}/vms"\n'
                                 f'[events]\nlisten = "127.0.0.1"\nport = 0\nheartbeat_ms = 200\nstall_ms = 1000\n[bus]\ndirectory = "{self.prefix.bus}"\n')
        line = wait_for(lambda: serving()[before:], "the address")[-1]
        self.address = line.split("events=")[1].split()[0].strip('"')
        return logs

    def token(self):
        return self.token_file.read_text().strip()

    def stream(self, query="", *arguments, local=False):
        if local:
            stream = Stream(f"http://logs/events{query}", "--unix-socket", str(self.socket), *arguments)
        else:
            stream = Stream(f"http://{self.address}/events{query}", "-H", f"Authorization: Bearer {self.token()}", *arguments)
        self.addCleanup(stream.close)
        return stream

    def publish(self, count, first=0):
        self.bus.run("vmm-local", "publish", "vm.ready", str(count), str(first))

    def test_it_replays_and_goes_on_live_across_restarts_of_the_broker(self):
        self.publish(20)
        streams = [self.stream("?from=0&type=vm."), self.stream("?from=0&type=vm.", local=True)]
        for stream in streams:
            wait_for(lambda: stream.kinds() == ["caught_up"], "caught up")
        self.publish(20, 20)
        self.bus.restart()
        self.publish(20, 40)
        for stream in streams:
            wait_for(lambda: len(stream.numbers()) >= 60, "all of them")
            self.assertEqual(stream.numbers(), list(range(60)))
            self.assertTrue(all(cursor == event["sequence"] for cursor, event in stream.events()))
            self.assertEqual(stream.kinds(), ["caught_up"])

    def test_a_client_goes_on_after_its_last_event_id(self):
        self.publish(10)
        first = self.stream("?from=0&type=vm.")
        wait_for(lambda: len(first.numbers()) == 10, "all of them")
        last = first.events()[3][0]
        first.close()
        self.logs.kill()
        self.logs = self.start()
        again = self.stream("?from=0&type=vm.", "-H", f"Last-Event-ID: {last}")
        wait_for(lambda: again.kinds() == ["caught_up"], "caught up")
        self.assertEqual(again.numbers(), list(range(4, 10)))

    def test_filters_times_and_gaps(self):
        self.publish(9)
        rows = [("?from=0&subject=s1", [1, 4, 7], []), ("?from=0&source=vmm-local", list(range(9)), []), ("?from=0&severity=error", [], []),
                ("?from=2023-11-14T22:13:20.007Z&type=vm.", [7, 8], []), ("?from=7:5&type=vm.", list(range(9)), ["gap"])]
        for query, numbers, kinds in rows:
            with self.subTest(query=query):
                stream = self.stream(query)
                wait_for(lambda: "caught_up" in stream.kinds(), "caught up")
                self.assertEqual(stream.numbers(), numbers)
                self.assertEqual(stream.kinds(), kinds + ["caught_up"])
                stream.close()

    def test_a_quiet_stream_says_that_it_is_there(self):
        stream = self.stream("?type=nothing.")
        wait_for(lambda: stream.comments >= 3, "heartbeats")
        self.publish(5)
        last = json.loads(subprocess.run([str(program("dstack")), "events", "--json", "--prefix", str(self.prefix.path)], capture_output=True,
                                         text=True).stdout.splitlines()[-1])["sequence"]
        wait_for(lambda: stream.blocks and stream.blocks[-1].get("id") == last, "its place moves on with what it does not want")
        self.assertEqual(stream.events(), [])

    def test_only_with_the_token(self):
        self.assertEqual(self.token_file.stat().st_mode & 0o777, 0o600)
        self.assertEqual(len(self.token()), 64)
        url = f"http://{self.address}/events"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {self.token()}"}, {"Authorization": f"Bearer {self.token()[:-1]}"}):
            self.assertEqual(http(url, headers=headers)[0], 401, headers)
        self.assertEqual(http(url + "?access_token=wrong")[0], 401)
        good = {"Authorization": f"Bearer {self.token()}"}
        self.assertEqual(http(f"http://{self.address}/logs", headers=good)[0], 404)
        for query in ("?from=yesterday", "?severity=loud"):
            self.assertEqual(http(url + query, headers=good)[0], 400)
        browser = Stream(f"{url}?from=0&access_token={self.token()}")
        self.addCleanup(browser.close)
        wait_for(lambda: "caught_up" in browser.kinds(), "a browser's way in")

    def test_the_page_for_a_browser_needs_no_token_and_has_none(self):
        status, body = http(f"http://{self.address}/")
        self.assertEqual(status, 200)
        self.assertIn(b"EventSource", body)
        self.assertNotIn(self.token().encode(), body)
        self.assertNotIn(b"innerHTML", body)  # what a guest has said is text

    def test_the_token_stays_and_one_that_others_may_read_is_refused(self):
        token = self.token()
        self.logs.kill()
        self.logs = self.start()
        self.assertEqual(self.token(), token)
        self.logs.stop()
        os.chmod(self.token_file, 0o644)
        self.logs.launch()
        self.assertEqual(self.logs.wait(), 70)
        self.assertIn("others may read it", self.logs.text())

    def test_a_client_that_does_not_read_is_disconnected_and_hinders_nobody(self):
        pad = "x" * 100_000
        for number in range(100):  # more than the kernel holds for a connection
            self.bus.run("vmm-local", "emit", f"big-{number}", "vm.ready", "s", json.dumps({"number": number, "pad": pad}))
        host, port = self.address.rsplit(":", 1)
        slow = socket.socket()
        self.addCleanup(slow.close)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(f"GET /events?from=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token()}\r\n\r\n".encode())
        good = self.stream("?from=0&type=vm.")
        wait_for(lambda: len(good.numbers()) == 100, "the other one has all")
        wait_for(lambda: "event stream ended" in self.logs.text(), "the slow one is disconnected")
        self.publish(1, 100)
        wait_for(lambda: good.numbers()[-1] == 100, "the other one goes on")
        slow.settimeout(10)
        received = b""
        try:
            while chunk := slow.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass
        cursors = [line[4:] for line in received.decode(errors="replace").split("\n") if line.startswith("id: ")]
        again = self.stream("?type=vm.", "-H", f"Last-Event-ID: {cursors[-2]}")  # the last one may be cut
        wait_for(lambda: "caught_up" in again.kinds(), "it goes on")
        self.assertEqual(again.numbers()[-1], 100)

    def test_stopping_is_not_held_up_by_a_stream(self):
        stream = self.stream("?from=0")
        wait_for(lambda: "caught_up" in stream.kinds(), "caught up")
        self.assertEqual(self.logs.stop(), 0)
        self.assertTrue(stream.ended.get(timeout=10))


if __name__ == "__main__":
    unittest.main()
