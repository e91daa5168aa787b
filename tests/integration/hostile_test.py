"""Peers that mean no good, on both kinds of socket: the broker answers, counts or drops, stays small, and nobody else notices."""
import json
import os
import random
import time
import unittest
from pathlib import Path

import zmtp
from mesh import Prefix, bus_config, wait_for
from remote_test import free_port_pair

MEBI = 1024 * 1024
DEADLINE = str(int(time.time() * 1000) + 600_000)


class HostileTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.port = free_port_pair()
        self.broker = self.prefix.start("bus", bus_config(self.prefix) + f'\n[tcp]\nlisten = "127.0.0.1:{self.port}"\n')
        self.commands = self.prefix.bus / "commands.sock"
        self.live = self.prefix.bus / "events.sock"
        self.everywhere = (self.commands, self.live, ("127.0.0.1", self.port), ("127.0.0.1", self.port + 1))
        self.peers = []
        self.addCleanup(lambda: [peer.close() for peer in self.peers])
        self.good = self.peer()
        self.asked = 0

    def peer(self, **options):
        self.peers.append(zmtp.Peer(options.pop("address", self.commands), **options))
        return self.peers[-1]

    def rss(self):
        return int(Path(f"/proc/{self.broker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def healthy(self):
        """A well-behaved peer gets its answer; gives the seconds that took."""
        self.asked += 1
        started = time.monotonic()
        answer = self.good.ask("1", "call", f"c{self.asked}", "bus.services", DEADLINE, "", "", "{}")
        self.assertEqual(answer[:4], [b"1", b"result", b"c%d" % self.asked, b"ok"])
        self.assertIsNone(self.broker.process.poll())
        return time.monotonic() - started

    def refusals(self, kind):
        reader = zmtp.Peer(self.commands)
        answer = reader.ask("1", "read", "r1", "0", "1000", '{"type":"bus.peer_refused"}')
        reader.close()
        self.assertEqual(answer[1], b"events")
        events = [json.loads(line) for line in answer[9].splitlines()]
        return [event["data"] for event in events if event["data"]["kind"] == kind]

    def test_bytes_that_are_no_protocol(self):
        dice = random.Random(4711)
        self.healthy()
        before = self.rss()
        whole = zmtp.greeting() + zmtp.ready(b"DEALER") + zmtp.message(zmtp.line("1", "hello", "", "x"))
        for turn in range(400):
            address = self.everywhere[turn % 4]
            kind = turn % 8
            if kind == 0:
                data = dice.randbytes(dice.randrange(1, 300))
            elif kind == 1:
                data = whole[:dice.randrange(1, len(whole))]  # half a greeting, half a frame
            elif kind == 2:
                data = zmtp.greeting() + dice.randbytes(dice.randrange(1, 2000))
            elif kind == 3:
                broken = bytearray(whole)
                for _ in range(3):
                    broken[dice.randrange(len(broken))] = dice.randrange(256)
                data = bytes(broken)
            elif kind == 4:
                data = zmtp.greeting() + zmtp.ready(b"DEALER") + b"\x02" + (1 << 62).to_bytes(8, "big")  # a frame of 4 EiB
            elif kind == 5:
                data = zmtp.greeting(b"CURVE") + zmtp.frame(b"\x05HELLO" + dice.randbytes(194), command=True)
            elif kind == 6:
                data = b"GET / HTTP/1.1\r\nHost: bus\r\n\r\n"
            else:
                data = zmtp.SIGNATURE + b"\x01\x05\x00\x00"  # the protocol of 2011, which knows no identity
            peer = zmtp.dial(address)
            try:
                peer.sendall(data)
            except OSError:
                pass
            if dice.random() < 0.5:
                peer.close()
            else:
                self.peers.append(peer)
            if turn % 20 == 0:
                self.assertLess(self.healthy(), 2.0)
        self.assertLess(self.healthy(), 2.0)
        self.assertLess(self.rss() - before, 16 * MEBI)
        said = wait_for(lambda: self.refusals("handshake"), "it is an event")
        self.assertTrue(any(refusal["reason"] for refusal in said))

    def test_messages_that_are_none_are_answered_then_ignored_then_cut(self):
        dice = random.Random(1)
        bad = self.peer()
        bad.socket.settimeout(5)
        for i in range(31):
            answer = bad.ask("1", ("frobnicate", "", "PUBLISH", dice.randbytes(20))[i % 4])
            self.assertEqual(answer[1:3], [b"refused", b"invalid_argument"])
        answer = bad.ask("7", "hello")
        self.assertEqual(answer[1:3], [b"refused", b"resource_exhausted"])
        self.assertIn(b"quota malformed_messages", answer[3])
        bad.send("1", "hello", "", "x")
        self.assertTrue(bad.closed(), "the connection is ended")
        self.healthy()
        said = wait_for(lambda: self.refusals("garbage"), "it is an event")
        self.assertEqual(said[0]["pid"], os.getpid())
        wait_for(lambda: sum(1 + refusal["suppressed"] for refusal in self.refusals("garbage")) >= 32, "none of them is forgotten")
        self.assertLess(len(self.refusals("garbage")), 8, "and few are said")

    def test_frames_at_random_from_a_known_peer(self):
        dice = random.Random(99)
        verbs = ["hello", "ping", "bye", "publish", "call", "read", "reply", "welcome", "request", "zzz"]
        words = ["", "0", "now", "1:1", "time:", "time:5", "-1", "18446744073709551616", "bus.services", "bus.create_token", "lease.list", "{}", "[]", '{"type":7}',
                 "x" * 300, "\0", "c1", DEADLINE]
        self.healthy()
        before = self.rss()
        for _ in range(60):
            peer = self.peer(timeout=2)
            for _ in range(60):
                parts = ["1" if dice.random() < 0.95 else "2", dice.choice(verbs)] + [dice.choice(words) for _ in range(dice.randrange(0, 12))]
                try:
                    peer.send(*parts)
                except OSError:
                    break  # cut
            self.assertLess(self.healthy(), 2.0)
        self.assertLess(self.rss() - before, 24 * MEBI)

    def test_an_oversized_frame_ends_its_connection_and_no_other(self):
        bad = self.peer()
        bad.socket.sendall(b"\x02" + (5 * MEBI).to_bytes(8, "big"))
        self.assertTrue(bad.closed())
        live = self.peer(address=self.live, kind=b"SUB")
        live.socket.sendall(zmtp.frame(b"\x01" + b"x" * 2000))
        self.assertTrue(live.closed())
        many = self.peer()
        many.socket.sendall(zmtp.message(*[b"1"] * 300))  # more frames than a message may have
        self.assertEqual(many.ask("1", "ping")[1], b"pong")
        self.healthy()

    def test_a_peer_that_takes_no_answer_does_not_make_the_broker_grow(self):
        # Something to read: a page of refusals.
        for i in range(4):
            self.peer().ask("1", "zzz")
            wait_for(lambda: len(self.refusals("garbage")) > i, "there is one more event", deadline=10)
        page = self.good.ask("1", "read", "r0", "0", "1000", "{}")
        self.assertGreater(len(page[9]), 1500)
        id_of_100 = "i" * 100
        floods = {
            "pages": ("1", "read", "r1", "0", "1000", "{}"),
            "errors": ("1", "call", "c1", "no.such", DEADLINE, "", "", "{}"),
            "results": ("1", "call", "c1", "bus.stats", DEADLINE, "", "", "{}"),
            "echoes": ("1", "publish", id_of_100, "no.such", "", "info", "1", "", "{}"),
        }
        for what, message in floods.items():
            with self.subTest(what):
                before = self.rss()
                greedy = self.peer(timeout=1)
                one = zmtp.message(zmtp.line(*message))
                data = one * max(1, 60_000 // len(one))
                sent = 0
                try:
                    for _ in range(150):
                        greedy.socket.sendall(data)
                        sent += len(data)
                except OSError:
                    pass  # nothing is taken from it any more, or it was cut
                self.assertGreater(sent, 10_000)
                self.assertLess(self.healthy(), 2.0)
                self.assertLess(self.rss() - before, 160 * MEBI, f"after {sent} bytes")

    def test_quotas_of_one_connection_have_names(self):
        peer = self.peer()
        for i in range(300):
            peer.send("1", "read", f"r{i}", "0", "1", "{}")
        answers = [peer.receive() for _ in range(300)]
        refused = [answer for answer in answers if answer[1] == b"reading_failed"]
        served = [answer for answer in answers if answer[1] == b"events"]
        self.assertGreaterEqual(len(served), 16)
        for answer in refused:
            self.assertEqual(answer[3], b"resource_exhausted")
            self.assertIn(b"quota reads_in_flight: you have 16 of at most 16", answer[4])
        self.healthy()

    def test_subscriptions_without_end_are_ended(self):
        live = self.peer(address=self.live, kind=b"SUB")
        live.socket.settimeout(10)
        try:
            for i in range(5000):
                live.socket.sendall(zmtp.frame(b"\x01e.%06d" % i))
        except OSError:
            pass
        self.assertTrue(live.closed())
        said = wait_for(lambda: [one for one in self.refusals("quota") if one["tried"] == "subscribe"], "it is an event")
        self.assertIn("quota subscriptions", said[0]["reason"])
        self.assertEqual(said[0]["pid"], os.getpid())
        self.healthy()

    def test_five_hundred_that_connect_and_vanish(self):
        quiet = sorted(self.healthy() for _ in range(200))
        before = self.rss()
        slow = []
        for _ in range(500):
            peer = zmtp.dial(self.commands)
            peer.sendall(zmtp.greeting() + zmtp.ready(b"DEALER") + zmtp.message(zmtp.line("1", "hello", "", "x")))
            peer.close()
            slow.append(self.healthy())
        self.assertLess(sorted(slow)[250], max(quiet[100] * 5, 0.02))
        descriptors = Path(f"/proc/{self.broker.pid}/fd")
        wait_for(lambda: len(list(descriptors.iterdir())) < 100, "their descriptors are gone")
        self.assertLess(self.rss() - before, 24 * MEBI)


if __name__ == "__main__":
    unittest.main()
