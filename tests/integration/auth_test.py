"""dstack-auth as a real process: the webhook as the KMS calls it, the policy file, the ledger, the bus."""
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import unittest

from mesh import Prefix, free_port, http, need, program, wait_for
from peers import Peers

APP = "1" * 40
COMPOSE = "d" * 64
IMAGE = "b" * 64


def boot(**changes):
    """A body as the KMS posts it."""
    body = {"teeVariant": "dstack-tdx", "mrAggregated": "a" * 64, "osImageHash": IMAGE, "mrSystem": "c" * 64, "appId": APP,
            "composeHash": COMPOSE, "instanceId": "2" * 40, "deviceId": "e" * 64, "keyProviderInfo": "", "tcbStatus": "UpToDate",
            "advisoryIds": []}
    body.update(changes)
    return {key: value for key, value in body.items() if value is not None}


def open_policy(**changes):
    policy = {"osImages": [IMAGE], "gatewayAppId": "gw", "apps": {APP: {"composeHashes": [COMPOSE], "allowAnyDevice": True}}}
    policy.update(changes)
    return policy


class Auth:
    """One dstack-auth in a prefix."""

    def __init__(self, prefix, policy=None, bus=False, create=False):
        self.prefix = prefix
        self.port = free_port()
        self.policy = prefix.path / "etc/policy.json"
        self.ledger = prefix.state("auth") / "decisions.ndjson"
        if policy is not None:
            self.write(policy)
        self.config = (f'[auth]\nport = {self.port}\npolicy_file = "{self.policy}"\nledger_dir = "{self.ledger.parent}"\n'
                       f'create_policy = {"true" if create else "false"}\nrequest_timeout_ms = 2000\n')
        if bus:
            self.config += f'[bus]\ndirectory = "{prefix.bus}"\n'
        self.service = prefix.start("auth", self.config)

    def write(self, policy):
        text = policy if isinstance(policy, str) else json.dumps(policy)
        temp = self.policy.with_suffix(".new")
        temp.write_text(text)
        temp.rename(self.policy)

    def ask(self, body, kind="app"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = http(f"http://127.0.0.1:{self.port}/bootAuth/{kind}", data,
                              {"Content-Type": "application/json", "User-Agent": "dstack-kms/0.5.4"})
        return status, json.loads(answer)

    def allowed(self, body=None, kind="app"):
        status, answer = self.ask(body or boot(), kind)
        assert status == 200, (status, answer)
        return answer["isAllowed"]

    def records(self):
        return [json.loads(line) for line in self.ledger.read_text().splitlines()]

    def verify(self):
        """Walks the hash chain as an outsider would; gives the records."""
        previous = "0" * 64
        records = []
        for number, line in enumerate(self.ledger.read_bytes().split(b"\n")[:-1], 1):
            record = json.loads(line)
            assert record["seq"] == number and record["prev"] == previous, f"record {number} breaks the chain"
            previous = hashlib.sha256(line).hexdigest()
            records.append(record)
        return records


class WebhookTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)

    def test_the_kms_gets_its_three_keys(self):
        auth = Auth(self.prefix, open_policy(kms={"mrAggregated": ["0x" + "A" * 64], "devices": ["e" * 64]}))
        self.assertEqual(auth.ask(boot()), (200, {"isAllowed": True, "gatewayAppId": "gw", "reason": ""}))
        self.assertEqual(auth.ask(boot(), "kms"), (200, {"isAllowed": True, "gatewayAppId": "gw", "reason": ""}))
        status, answer = auth.ask(boot(composeHash="9" * 64))
        self.assertEqual((status, answer["isAllowed"], answer["gatewayAppId"]), (200, False, "gw"))
        self.assertTrue(answer["reason"].startswith("compose hash not allowed (rule compose_hash: expected " + COMPOSE), answer)
        self.assertIn(f"run `dstack allow {'9' * 64} --app {APP}`", answer["reason"])
        status, answer = auth.ask(boot(mrAggregated="0" * 64), "kms")
        self.assertTrue(answer["reason"].startswith("aggregated MR not allowed"), answer)
        status, answer = auth.ask(boot(composeHash="d" * 62))
        self.assertEqual((status, set(answer), answer["isAllowed"]), (400, {"isAllowed", "gatewayAppId", "reason"}, False))
        self.assertEqual(answer["reason"], "invalid authorization request: composeHash: must be 64 hex digits, has 62")
        for key in ("teeVariant", "tcbStatus", "advisoryIds", "mrSystem"):
            self.assertEqual(auth.ask(boot(**{key: None}))[0], 200, key)
        self.assertFalse(auth.allowed(boot(tcbStatus=None)))
        info = json.loads(http(f"http://127.0.0.1:{auth.port}/")[1])
        self.assertEqual(info, {"status": "ok", "kmsContractAddr": "", "gatewayAppId": "gw", "chainId": 0, "appAuthImplementation": "",
                                "appImplementation": ""})
        self.assertEqual(http(f"http://127.0.0.1:{auth.port}/bootAuth/app")[0], 405)
        self.assertEqual(http(f"http://127.0.0.1:{auth.port}/nothing", b"{}")[0], 404)

    def test_hostile_bodies(self):
        auth = Auth(self.prefix, open_policy())
        twice = json.dumps(boot())[:-1] + f', "composeHash": "{COMPOSE}"}}'
        rows = [(b"", 400), (b"null", 400), (b"{", 400), (b"[" * 5000, 400), (b'{"a":' * 100 + b"1" + b"}" * 100, 400), (b"\xff\xfe", 400),
                (twice.encode(), 400), (json.dumps(boot()).encode() + b"x", 400), (b"x" * 70000, 413)]
        for body, wanted in rows:
            with self.subTest(body[:20]):
                status, _ = http(f"http://127.0.0.1:{auth.port}/bootAuth/app", body)
                self.assertEqual(status, wanted)
        self.assertTrue(auth.allowed())

    def test_pipelined_requests_and_a_client_that_stalls(self):
        auth = Auth(self.prefix, open_policy())
        stalled = socket.create_connection(("127.0.0.1", auth.port))
        self.addCleanup(stalled.close)
        stalled.sendall(b"POST /bootAuth/app HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
        body = json.dumps(boot()).encode()
        one = b"POST /bootAuth/app HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        with socket.create_connection(("127.0.0.1", auth.port)) as client:
            client.sendall(one * 5)
            client.settimeout(10)
            got = b""
            while got.count(b'"isAllowed":true') < 5:
                part = client.recv(65536)
                self.assertTrue(part, got)
                got += part
        stalled.settimeout(10)
        self.assertIn(stalled.recv(4096)[:12], (b"", b"HTTP/1.1 408"))

    def test_the_next_request_sees_the_policy_of_others(self):
        auth = Auth(self.prefix, open_policy())
        for _ in range(30):
            self.assertTrue(auth.allowed())
            auth.write(open_policy(apps={}))
            self.assertFalse(auth.allowed())
            auth.write(open_policy())
        # written in place, the same size, at once: the times may be the same
        closed = json.dumps(open_policy())
        opened = closed.replace(COMPOSE, "9" * 64)
        for _ in range(30):
            auth.policy.write_text(opened)
            self.assertFalse(auth.allowed())
            auth.policy.write_text(closed)
            self.assertTrue(auth.allowed())

    def test_without_a_valid_policy_everything_is_denied_with_the_reason(self):
        auth = Auth(self.prefix)
        url = f"http://127.0.0.1:{auth.port}"
        self.assertIn("no such file", auth.ask(boot())[1]["reason"])
        self.assertEqual(http(url + "/health")[0], 503)
        self.assertEqual(http(url + "/")[0], 500)
        for text, reason in [("{", "no valid JSON at line 1"), ('{"osImage": []}', "osImage: unknown key"), ("{} x", "no valid JSON"),
                             (json.dumps(open_policy(osImages=["b" * 62])), "osImages[0]: must be 64 hex digits, has 62"),
                             (json.dumps(open_policy(osImages=[])), "OS image is not allowed")]:
            auth.write(text)
            with self.subTest(text[:20]):
                status, answer = auth.ask(boot())
                self.assertEqual((status, answer["isAllowed"]), (200, False))
                self.assertIn(reason, answer["reason"])
        auth.write(open_policy())
        self.assertTrue(auth.allowed())
        self.assertEqual(http(url + "/health")[0], 200)

    def test_a_passed_socket_refuses_no_connection_across_kill_9(self):
        auth = Auth(self.prefix, open_policy())
        auth.service.kill()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/health"
            command = ["/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" --config "$1" 3<&"$2"', str(program("auth")),
                       str(auth.service.config), str(listener.fileno())]
            answers = []
            for _ in range(3):
                asking = threading.Thread(target=lambda: answers.append(http(url)[0]))
                asking.start()  # before there is a process: the kernel keeps the connection
                process = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
                try:
                    asking.join(15)
                finally:
                    process.kill()
                    process.wait(10)
            self.assertEqual(answers, [200, 200, 200])

    def test_create_policy_makes_one_that_allows_nothing(self):
        auth = Auth(self.prefix, create=True)
        self.assertIn("OS image is not allowed", auth.ask(boot())[1]["reason"])
        created = auth.policy.read_bytes()
        auth.service.stop()
        auth.service.start()
        self.assertEqual(auth.policy.read_bytes(), created)
        self.assertEqual(auth.verify()[0]["change"], "created")

    def test_a_mixed_policy_is_never_applied(self):
        # Either policy denies in its own way; a mix of both would allow.
        one = open_policy(apps={})
        two = open_policy(osImages=[])
        auth = Auth(self.prefix, one)
        stop = threading.Event()

        def swap():
            while not stop.is_set():
                auth.write(two)
                auth.write(one)

        writer = threading.Thread(target=swap)
        writer.start()
        try:
            reasons = set()
            for _ in range(200):
                answer = auth.ask(boot())[1]
                self.assertFalse(answer["isAllowed"], answer)
                reasons.add(answer["reason"].split(" (")[0])
        finally:
            stop.set()
            writer.join()
        self.assertLessEqual(reasons, {"OS image is not allowed", "app not registered"})


class LedgerTest(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)

    def test_every_answer_is_in_the_ledger_after_kill_9(self):
        auth = Auth(self.prefix, open_policy())
        answered = []
        lock = threading.Lock()
        stop = threading.Event()

        def load(digit):
            while not stop.is_set():
                compose = f"{digit}{len(answered):063x}"
                try:
                    status, answer = auth.ask(boot(composeHash=compose))
                except OSError:
                    continue  # it is just being killed
                if status == 200:
                    with lock:
                        answered.append((compose, answer["isAllowed"]))

        clients = [threading.Thread(target=load, args=(digit,)) for digit in "abcdef"]
        for client in clients:
            client.start()
        try:
            for _ in range(5):
                before = len(answered)
                wait_for(lambda: len(answered) > before + 20, "decisions")
                auth.service.kill(signal.SIGKILL)
                auth.service.start()
        finally:
            stop.set()
            for client in clients:
                client.join()
        written = {(record["boot"]["composeHash"], record["allowed"]) for record in auth.verify() if record["kind"] == "app"}
        self.assertGreater(len(answered), 100)
        self.assertEqual([one for one in answered if one not in written], [])

    def test_a_torn_tail_is_repaired_and_recorded(self):
        auth = Auth(self.prefix, open_policy())
        auth.allowed()
        auth.allowed()
        auth.service.kill()
        whole = auth.ledger.read_bytes()
        auth.ledger.write_bytes(whole + b'{"seq":4,"time":"20')
        auth.service.start()
        records = auth.verify()
        self.assertEqual([record["kind"] for record in records], ["policy", "app", "app", "repair"])
        self.assertIn("cut off 19 bytes at offset", records[3]["reason"])
        self.assertTrue(auth.allowed())
        self.assertEqual(len(auth.verify()), 5)

    def test_damage_in_the_middle_stops_the_process_with_the_offset(self):
        auth = Auth(self.prefix, open_policy())
        auth.allowed(boot(composeHash="9" * 64))
        auth.allowed()
        auth.service.kill()
        whole = auth.ledger.read_bytes()
        lines = whole.split(b"\n")
        for damaged, offset in [(whole.replace(b'"allowed":false', b'"allowed":true '), len(lines[0]) + len(lines[1]) + 2),
                                (b"\n".join([lines[0], *lines[2:]]), len(lines[0]) + 1)]:
            auth.ledger.write_bytes(damaged)
            auth.service.launch()
            self.assertEqual(auth.service.wait(), 70)
            self.assertIn(f"decisions.ndjson, offset {offset}: record", auth.service.text())
            self.assertEqual(auth.ledger.read_bytes(), damaged)
        auth.ledger.write_bytes(whole)
        auth.service.start()
        self.assertTrue(auth.allowed())

    def test_a_ledger_that_cannot_be_written_denies(self):
        auth = Auth(self.prefix, open_policy())
        self.assertTrue(auth.allowed())
        moved = auth.ledger.with_suffix(".away")
        auth.ledger.rename(moved)
        status, answer = auth.ask(boot())
        self.assertEqual((status, answer["isAllowed"]), (200, False))
        self.assertIn("the decision could not be recorded", answer["reason"])
        self.assertEqual(http(f"http://127.0.0.1:{auth.port}/health")[0], 503)
        moved.rename(auth.ledger)
        self.assertTrue(auth.allowed())
        self.assertEqual(http(f"http://127.0.0.1:{auth.port}/health")[0], 200)
        self.assertEqual([record["kind"] for record in auth.verify()], ["policy", "app", "repair", "app"])  # what was missed is recorded

    def test_a_full_disk_denies_until_there_is_room(self):
        disk = self.prefix.state("auth")
        need(os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True).returncode == 0,
             "cannot mount a small tmpfs here")
        self.addCleanup(subprocess.run, ["umount", str(disk)], check=True)
        self.addCleanup(lambda: self.prefix.services["auth"].kill())
        auth = Auth(self.prefix, open_policy())
        answers = [auth.ask(boot())[1] for _ in range(100)]
        self.assertTrue(answers[0]["isAllowed"])
        self.assertFalse(answers[-1]["isAllowed"])
        self.assertIn("the decision could not be recorded", answers[-1]["reason"])
        self.assertIn("no space left on device", answers[-1]["reason"])
        self.assertEqual(http(f"http://127.0.0.1:{auth.port}/health")[0], 503)
        told = sum(answer["isAllowed"] for answer in answers)
        self.assertEqual(sum(record["kind"] == "app" for record in auth.verify()), told)
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        self.assertTrue(auth.allowed())
        self.assertEqual(sum(record["kind"] == "app" for record in auth.verify()), told + 1)

    def test_one_writer_only(self):
        auth = Auth(self.prefix, open_policy())
        config = self.prefix.path / "etc/second.toml"
        config.write_text(auth.config.replace(str(auth.port), str(free_port())))
        second = subprocess.run([str(program("auth")), "--config", str(config)], capture_output=True, text=True, timeout=20)
        self.assertEqual(second.returncode, 70)
        self.assertIn("another process writes this ledger", second.stderr)
        self.assertTrue(auth.allowed())


class BusTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prefix = Peers("auth")
        cls.auth = Auth(cls.prefix, bus=True, create=True)

    @classmethod
    def tearDownClass(cls):
        cls.prefix.close()

    def test_deployer_allows_and_revokes(self):
        image = {"os_image_hash": IMAGE}
        self.prefix.ok("auth.allow_image", image, who="operator")
        self.assertFalse(self.auth.allowed())
        wanted = {"app_id": APP, "compose_hash": "0x" + COMPOSE.upper(), "reason": "deploy"}
        first = self.prefix.ok("auth.allow_app", wanted)
        self.assertEqual((first["changed"], first["policy_hash"]), (True, hashlib.sha256(self.auth.policy.read_bytes()).hexdigest()))
        again = self.prefix.ok("auth.allow_app", wanted)
        self.assertEqual((again["changed"], again["policy_hash"]), (False, first["policy_hash"]))
        self.assertTrue(self.auth.allowed())
        self.assertTrue(self.prefix.ok("auth.revoke_app", {"app_id": APP, "compose_hash": COMPOSE})["changed"])
        self.assertFalse(self.auth.allowed())
        self.assertFalse(self.prefix.ok("auth.revoke_app", {"app_id": APP, "compose_hash": COMPOSE})["changed"])
        other = {"app_id": APP, "compose_hash": "5" * 64}
        self.prefix.ok("auth.allow_app", other)
        self.assertFalse(self.auth.allowed())
        self.assertTrue(self.prefix.ok("auth.revoke_app", {"app_id": APP})["changed"])
        self.assertEqual(self.prefix.call("auth.allow_app", {"app_id": "12", "compose_hash": COMPOSE}),
                         ("invalid_argument", "app_id: must be 40 hex digits, has 2"))

        decisions = self.prefix.ok("auth.decisions", {"app_id": APP, "limit": 3}, who="operator")["decisions"]
        self.assertEqual([(one["allowed"], one["rule"]) for one in decisions], [(False, "compose_hash"), (False, "app"), (True, "device")])

        def told():
            events = self.prefix.events("auth.")
            changes = [data["change"] for name, data in events if name == "auth.policy_changed"]
            decided = [data["sequence"] for name, data in events if name == "auth.decided"]
            self.assertEqual(len(decided), len(set(decided)))
            return (changes[:6] == ["created", "allow_image", "allow_app", "revoke_app", "allow_app", "revoke_app"]
                    and set(decided) >= {one["sequence"] for one in decisions} and events)

        events = wait_for(told, "the events of the changes and decisions")
        denied = next(data for name, data in events if name == "auth.decided" and data["sequence"] == decisions[0]["sequence"])
        self.assertEqual((denied["rule"], denied["got"], denied["expected"]), ("compose_hash", COMPOSE, "5" * 64))

    def test_a_damaged_policy_is_not_repaired_by_guessing(self):
        good = self.auth.policy.read_text()
        self.auth.write("{")
        self.addCleanup(self.auth.write, good)
        code, message = self.prefix.call("auth.allow_app", {"app_id": "3" * 40, "compose_hash": COMPOSE})
        self.assertEqual(code, "failed_precondition")
        self.assertIn("the policy file is not valid", message)
        self.assertEqual(self.auth.policy.read_text(), "{")

    def test_events_of_a_time_without_a_bus_come_later_and_once(self):
        self.prefix.services["bus"].kill()
        other = "4" * 40
        for _ in range(3):
            self.auth.allowed(boot(appId=other))
        self.auth.service.kill()
        self.auth.service.start()
        self.auth.allowed(boot(appId=other))
        self.prefix.services["bus"].start()
        wanted = [record["seq"] for record in self.auth.verify() if record.get("boot", {}).get("appId") == other]
        self.assertEqual(len(wanted), 4)

        def told():
            return [data["sequence"] for name, data in self.prefix.events("auth.decided") if data["app_id"] == other] == wanted

        wait_for(told, "each decision as one event, in order", deadline=30)


if __name__ == "__main__":
    unittest.main()
