"""dstack-auth alone and in a mesh: the wire as a KMS uses it, the policy's additions, and the verbs that change it."""
import datetime
import http.client
import json
import socket
import subprocess
import threading
import unittest

from auth_test import APP, COMPOSE, IMAGE, Auth, boot, open_policy
from mesh import Mesh, Prefix, free_port, http as fetch, program, wait_for

POST = b"POST /bootAuth/app HTTP/1.1\r\nHost: a\r\n"


def at(seconds):
    """That many seconds from now, RFC 3339."""
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def answers(text):
    """The responses in a byte stream, as (status, headers, body)."""
    out = []
    while text:
        head, _, rest = text.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(b":") for line in lines[1:])}
        length = int(headers.get(b"content-length", b"0")) if status != 100 else 0
        if len(rest) < length:
            break
        out.append((status, headers, rest[:length]))
        text = rest[length:]
    return out


class Standalone:
    """dstack-auth --standalone, without configuration, bus or (by default) ledger."""

    def __init__(self, test, policy, *arguments):
        self.prefix = Prefix()
        test.addCleanup(self.prefix.close)
        self.port = free_port()
        self.policy = self.prefix.path / "policy.json"
        self.write(policy)
        self.log = self.prefix.path / f"standalone-{self.port}.log"  # a pipe that nobody reads would stop it
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([program("auth"), "--standalone", "--policy", self.policy, "--listen", f"127.0.0.1:{self.port}", *arguments],
                                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        test.addCleanup(self.end)
        wait_for(lambda: self.up(), "an answer", 30)

    def up(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return fetch(f"http://127.0.0.1:{self.port}/health")[0] in (200, 503)
        except OSError:
            return False

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)

    def write(self, policy):
        temp = self.policy.with_suffix(".new")
        temp.write_text(policy if isinstance(policy, str) else json.dumps(policy))
        temp.rename(self.policy)

    def ask(self, body=None, kind="app"):
        status, answer = fetch(f"http://127.0.0.1:{self.port}/bootAuth/{kind}", json.dumps(boot() if body is None else body).encode())
        return status, json.loads(answer)

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.port))
        client.settimeout(30)
        return client

    def talk(self, *parts, count=1):
        """Sends the parts, and reads so many final responses (fewer when the server closes)."""
        with self.connect() as client:
            for part in parts:
                client.sendall(part)
            got = b""
            while sum(1 for one in answers(got) if one[0] != 100) < count:
                more = client.recv(65536)
                if not more:
                    break
                got += more
        return answers(got)


class WireTest(unittest.TestCase):
    def setUp(self):
        self.auth = Standalone(self, open_policy())
        self.body = json.dumps(boot()).encode()

    def test_head_says_what_get_says_without_the_body(self):
        for path in ("/", "/health", "/metrics"):
            client = http.client.HTTPConnection("127.0.0.1", self.auth.port, timeout=30)
            client.request("HEAD", path)
            head = client.getresponse()
            self.assertEqual((head.status, head.read()), (200, b""), path)
            client.request("GET", path)  # on the same connection: nothing of a body was left behind
            got = client.getresponse()
            self.assertTrue(got.read(), path)
            self.assertEqual(head.getheader("Content-Type"), got.getheader("Content-Type"))
            client.close()

    def test_bodies_in_chunks_after_a_hundred_continue_and_pipelined(self):
        chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (self.body[:7], self.body[7:])) + b"0\r\n\r\n"
        sized = POST + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body
        got = self.auth.talk(chunked + sized + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + sized, count=4)
        self.assertEqual([status for status, _, _ in got], [200] * 4)
        self.assertEqual([b"isAllowed" in body for _, _, body in got], [True, True, False, True])
        with self.auth.connect() as client:
            client.sendall(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(self.body))
            self.assertEqual(client.recv(65536), b"HTTP/1.1 100 Continue\r\n\r\n")
            client.sendall(self.body)
            got = b""
            while not answers(got):
                got += client.recv(65536)
        self.assertEqual(json.loads(answers(got)[0][2]), {"isAllowed": True, "gatewayAppId": "gw", "reason": ""})

    def test_what_is_too_large_is_refused_in_short_ascii(self):
        for part in (b"Content-Length: 10000000\r\n\r\n", b"Content-Length: 65537\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n11000\r\n" + b"x" * 0x11000):
            status, _, body = self.auth.talk(POST + part)[0]
            self.assertEqual(status, 413, part[:30])
            self.assertTrue(body.isascii() and len(body) < 200, body)
        padded = self.body[:-1] + b" " * (65536 - len(self.body)) + b"}"
        self.assertEqual(self.auth.talk(POST + b"Content-Length: 65536\r\n\r\n" + padded)[0][0], 200)
        self.assertEqual(self.auth.talk(b"POST /bootAuth/app HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20000 + b"\r\n\r\n")[0][0], 431)
        for wrong in (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", b"PUT /bootAuth/kms HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"):
            self.assertEqual(self.auth.talk(wrong)[0][0], 405)

    def test_a_body_that_is_none_is_400_with_the_three_keys(self):
        rows = {key: {k: v for k, v in boot().items() if k != key} for key in ("mrAggregated", "osImageHash", "appId", "composeHash", "instanceId", "deviceId")}
        for key, body in rows.items():
            for kind in ("app", "kms"):
                status, answer = self.auth.ask(body, kind)
                self.assertEqual((status, answer["isAllowed"], answer["reason"]), (400, False, f"invalid authorization request: {key}: missing"))
        for key in boot():
            status, answer = self.auth.ask({**boot(), key: None})
            self.assertEqual((status, set(answer)), (400, {"isAllowed", "gatewayAppId", "reason"}), key)
            self.assertIn(key, answer["reason"])

    def test_many_half_open_clients_cost_others_nothing(self):
        stalled = [self.auth.connect() for _ in range(200)]
        try:
            for number, client in enumerate(stalled):
                client.sendall((POST + b"Content-Length: 100\r\n\r\n{", b"POST /boot", b"", POST)[number % 4])
            for _ in range(20):
                self.assertTrue(self.auth.ask()[1]["isAllowed"])
        finally:
            for client in stalled:
                client.close()

    def test_metrics_count_what_was_answered(self):
        self.auth.ask()
        self.auth.ask(boot(composeHash="9" * 64))
        self.auth.ask({})
        status, text = fetch(f"http://127.0.0.1:{self.auth.port}/metrics")
        lines = (text if isinstance(text, str) else text.decode()).splitlines()
        self.assertEqual((status, lines[-1]), (200, "# EOF"))
        for wanted in ('dstack_auth_decisions_total{kind="app",rule="device",result="allowed"} 1', "dstack_auth_decision_duration_seconds_count 3",
                       'dstack_auth_decisions_total{kind="app",rule="compose_hash",result="denied"} 1', "dstack_auth_policy_valid 1", "dstack_auth_policy_apps 1",
                       'dstack_auth_decisions_total{kind="app",rule="request",result="denied"} 1', 'dstack_auth_decision_duration_seconds_bucket{le="+Inf"} 3'):
            self.assertIn(wanted, lines)
        named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
        for line in lines:
            if not line.startswith("#"):
                self.assertTrue(any(line.startswith(name) for name in named), line)
        self.auth.write("{")
        self.assertFalse(self.auth.ask()[1]["isAllowed"])
        text = fetch(f"http://127.0.0.1:{self.auth.port}/metrics")[1]
        self.assertIn("dstack_auth_policy_valid 0", text if isinstance(text, str) else text.decode())

    def test_standalone_with_a_ledger_and_wrong_words(self):
        auth = Standalone(self, open_policy(), "--ledger", str(self.auth.prefix.path / "ledger"))
        self.assertTrue(auth.ask()[1]["isAllowed"])
        record = json.loads((self.auth.prefix.path / "ledger/decisions.ndjson").read_text().splitlines()[-1])
        self.assertEqual((record["kind"], record["allowed"]), ("app", True))
        for words, wanted in ((["--standalone"], "--policy"), (["--standalone", "--policy", "/p"], "--listen"),
                              (["--standalone", "--policy", "/p", "--listen", "8001"], "ADDRESS:PORT"), (["--standalone", "--polcy", "/p"], "--polcy")):
            done = subprocess.run([program("auth"), *words], capture_output=True, text=True, timeout=30)
            self.assertEqual(done.returncode, 64, words)
            self.assertIn(wanted, done.stderr)


class PolicyTest(unittest.TestCase):
    def test_an_entry_ends_by_itself(self):
        entry = {"value": COMPOSE, "expires": at(4), "reason": "a try"}
        auth = Standalone(self, open_policy(apps={APP: {"composeHashes": [entry], "allowAnyDevice": True}}))
        self.assertTrue(auth.ask()[1]["isAllowed"])
        denied = wait_for(lambda: (lambda answer: answer if not answer["isAllowed"] else None)(auth.ask()[1]), "the end of the entry", 30)
        self.assertRegex(denied["reason"], r"^compose hash not allowed: its entry expired at 20..-.*Z \(rule compose_hash: ")
        auth.write(open_policy(tcbGrace={"status": "OutOfDate", "until": at(3600)}))
        self.assertTrue(auth.ask(boot(tcbStatus="OutOfDate"))[1]["isAllowed"])
        auth.write(open_policy(tcbGrace={"status": "OutOfDate", "until": at(-1)}))
        self.assertRegex(auth.ask(boot(tcbStatus="OutOfDate"))[1]["reason"], "^TCB status is not allowed: its entry expired at ")

    def test_a_thousand_swaps_under_load_and_no_mixed_decision(self):
        """Two policies, each of which allows what the other denies: two boots, each allowed by one of them. Whatever the
        moment, a policy allows an app together with the gateway id that it names."""
        first = open_policy(gatewayAppId="first", apps={APP: {"composeHashes": [COMPOSE], "allowAnyDevice": True}})
        second = open_policy(gatewayAppId="second", apps={APP: {"composeHashes": ["9" * 64], "allowAnyDevice": True}})
        auth = Standalone(self, first)
        over = threading.Event()
        seen, wrong = set(), []

        def load():
            client = http.client.HTTPConnection("127.0.0.1", auth.port, timeout=30)
            while not over.is_set():
                for name, compose in (("first", COMPOSE), ("second", "9" * 64)):
                    client.request("POST", "/bootAuth/app", json.dumps(boot(composeHash=compose)))
                    answer = json.loads(client.getresponse().read())
                    seen.add((name, answer["gatewayAppId"], answer["isAllowed"]))
                    if answer["isAllowed"] != (answer["gatewayAppId"] == name):
                        wrong.append(answer)
            client.close()

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1000):
                auth.write(first if number % 2 else second)
                if number % 50 == 0:  # the very next request sees it
                    self.assertEqual(auth.ask()[1]["gatewayAppId"], "first" if number % 2 else "second")
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        self.assertEqual(wrong, [])
        self.assertEqual(len(seen), 4, seen)

    def test_a_document_of_upstream_is_checked(self):
        prefix = Prefix()
        self.addCleanup(prefix.close)
        path = prefix.path / "upstream.json"

        def check(document, *words):
            path.write_text(document if isinstance(document, str) else json.dumps(document, indent=1))
            return subprocess.run([program("dstackup"), "policy", "check", path, *words], capture_output=True, text=True, timeout=60)

        done = check({"osImages": [], "gatewayAppId": "", "kms": {"mrAggregated": ["a" * 64], "devices": []},
                      "apps": {APP: {"composeHashes": [COMPOSE], "devices": []}, "2" * 40: {"composeHashes": [COMPOSE], "allowAnyDevice": True}}}, "--json")
        self.assertEqual(done.returncode, 7, done)
        data = json.loads(done.stdout)["data"]
        open_places = [(finding["place"], finding["add"]) for finding in data["findings"] if finding["denies"]]
        self.assertEqual(open_places, [("kms", '"allowAnyDevice": true'), ("apps." + APP, '"allowAnyDevice": true'), ("", '"osImages": {"any": true}')])
        lines = path.read_text().splitlines()
        self.assertIn('"kms"', lines[[f["line"] for f in data["findings"] if f["place"] == "kms"][0] - 1])
        text = check(path.read_text())
        self.assertEqual(text.returncode, 7)
        self.assertIn('3 places rely on "empty means any"', text.stdout)
        fixed = open_policy(allowedTcbStatuses=["UpToDate"], allowedAdvisoryIds=["A"])
        self.assertEqual(check(fixed).returncode, 0)
        self.assertEqual(json.loads(check(fixed, "--json").stdout)["data"]["findings"], [])
        late = open_policy(osImages=[{"value": IMAGE, "expires": at(-60)}])
        self.assertIn("expired at", check(late).stdout)
        wrong = check({"osImage": []})
        self.assertEqual((wrong.returncode, wrong.stdout), (2, ""))
        self.assertIn("osImage: unknown key", wrong.stderr)
        self.assertEqual(subprocess.run([program("dstackup"), "policy", "check", prefix.path / "none"], capture_output=True, timeout=60).returncode, 3)


class VerbsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.mesh = Mesh()
        cls.mesh.up()
        cls.policy = cls.mesh.path / "etc/dstack/auth-allowlist.json"

    @classmethod
    def tearDownClass(cls):
        cls.mesh.close()

    def hashes(self, app=APP):
        return json.loads(self.policy.read_text())["apps"].get(app, {}).get("composeHashes")

    def test_allow_for_a_while_for_good_and_take_it_back(self):
        dry = self.mesh.dstack("allow", COMPOSE, "--app", APP, "--dry-run").stdout
        self.assertEqual((dry, self.hashes()), (f"would allow compose hash {COMPOSE} of app {APP}\n", None))
        data = self.mesh.dstack_json("allow", COMPOSE, "--app", APP, "--for", "2h", "--reason", "a try")["data"]
        self.assertTrue(data["changed"])
        self.assertEqual(self.hashes(), [{"value": COMPOSE, "expires": data["expires"], "reason": "a try"}])
        self.assertIn("already allowed", self.mesh.dstack("allow", COMPOSE, "--app", APP, "--for", "1h").stdout)
        self.assertTrue(self.mesh.dstack("allow", COMPOSE, "--app", APP).stdout.startswith("allowed compose hash " + COMPOSE))
        self.assertEqual(self.hashes(), [COMPOSE])
        self.assertIn("already allowed", self.mesh.dstack("allow", "0x" + COMPOSE.upper(), "--app", "0x" + APP).stdout)
        self.assertTrue(self.mesh.dstack("revoke", COMPOSE, "--app", APP).stdout.startswith("revoked "))
        self.assertIsNone(self.hashes())
        again = self.mesh.dstack("revoke", "--app", APP)
        self.assertEqual((again.returncode, again.stdout.startswith("already not allowed")), (0, True))
        changes = [event["data"]["change"] for event in self.mesh.events("--type", "auth.policy_changed") if event["data"].get("app_id") == APP]
        self.assertEqual(changes, ["allow_app", "allow_app", "revoke_app"])

    def test_an_image_and_mistakes(self):
        self.assertIn("allowed OS image", self.mesh.dstack("allow", "--image", "7" * 64).stdout)
        self.assertIn("7" * 64, json.loads(self.policy.read_text())["osImages"])
        self.assertIn("revoked OS image", self.mesh.dstack("revoke", "--image", "7" * 64).stdout)
        self.assertNotIn("7" * 64, json.loads(self.policy.read_text())["osImages"])
        for words, code in ((("allow", "abc", "--app", APP), 2), (("allow", COMPOSE), 2), (("allow", "--app", APP), 2), (("allow", COMPOSE, "--app", "nobody"), 3),
                            (("allow", COMPOSE, "--image", COMPOSE), 2), (("allow", COMPOSE, "--app", APP, "--for", "x"), 2),
                            (("allow", COMPOSE, "--app", APP, "--until", "2020-01-01T00:00:00Z"), 2),
                            (("allow", COMPOSE, "--app", APP, "--until", at(60), "--for", "1h"), 2)):
            self.assertEqual(self.mesh.dstack(*words, check=False).returncode, code, words)


if __name__ == "__main__":
    unittest.main()
