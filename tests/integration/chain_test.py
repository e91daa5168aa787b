"""dstack-auth with a contract as its source of verdicts: against endpoints that misbehave in every way, and against a real
development chain with a compiled contract."""
import json
import os
import ssl
import subprocess
import sys
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chain"))
import abi
import fake_rpc
from auth_test import boot
from dev_chain import DevChain, NotHere
from fake_rpc import FakeRpc
from mesh import Prefix, Service, free_port, http, need, wait_for

CONTRACT = "c0" * 20


class ChainAuth:
    """One dstack-auth that asks a chain."""

    def __init__(self, prefix, urls, contract=CONTRACT, environment=None, start=True, **options):
        self.prefix, self.port = prefix, free_port()
        self.ledger = prefix.state("auth") / "decisions.ndjson"
        options = {"deadline_ms": 3000, "hedge_ms": 300, "chain_id": 31337, "probe_interval_s": 0, **options}
        if urls is not None:
            options["rpc_urls"] = [getattr(url, "url", url) for url in urls]
        values = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
        self.config = (f'[auth]\nport = {self.port}\nledger_dir = "{self.ledger.parent}"\nrequest_timeout_ms = 15000\n'
                       f'[backend]\ntype = "chain"\ncontract = "0x{contract}"\n{values}')
        if "auth" in prefix.services and prefix.services["auth"].process and prefix.services["auth"].process.poll() is None:
            prefix.services["auth"].kill()
        self.service = Service(prefix, "auth", self.config, environment)
        prefix.services["auth"] = self.service
        if start:
            self.service.start()

    def ask(self, body=None, kind="app"):
        status, answer = http(f"http://127.0.0.1:{self.port}/bootAuth/{kind}", json.dumps(body or boot()).encode(),
                              {"Content-Type": "application/json", "User-Agent": "dstack-kms/0.5.4"}, timeout=30)
        return status, json.loads(answer)

    def verdict(self, body=None, kind="app"):
        status, answer = self.ask(body, kind)
        assert status == 200 and set(answer) == {"isAllowed", "gatewayAppId", "reason"}, (status, answer)
        assert answer["reason"].isascii() and len(answer["reason"]) <= 512, answer
        return answer

    def denied(self, body=None, kind="app"):
        """The reason of a denial."""
        answer = self.verdict(body, kind)
        assert answer["isAllowed"] is False and answer["reason"], answer
        return answer["reason"]

    def info(self):
        """GET / as the KMS does it; the point of it is that it always comes."""
        status, body = http(f"http://127.0.0.1:{self.port}/", timeout=30)
        return status, json.loads(body)

    def health(self):
        status, body = http(f"http://127.0.0.1:{self.port}/health", timeout=30)
        return status, json.loads(body)

    def records(self):
        return [json.loads(line) for line in self.ledger.read_text().splitlines()]


class FakeCase(unittest.TestCase):
    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)

    def fakes(self, count):
        out = [FakeRpc() for _ in range(count)]
        for fake in out:
            self.addCleanup(fake.close)
        return out

    def auth(self, urls, **options):
        return ChainAuth(self.prefix, urls, **options)

    def probed(self, *fakes):
        """Each endpoint has been asked once, at the start."""
        for fake in fakes:
            wait_for(lambda: len(fake.requests) >= 1, "the probe of an endpoint")


class GoodEndpointTest(FakeCase):
    def test_one_batch_for_one_decision_at_the_finalised_block(self):
        fake, = self.fakes(1)
        auth = self.auth([fake])
        self.assertEqual(auth.verdict(), {"isAllowed": True, "gatewayAppId": "gw", "reason": ""})
        self.assertEqual(auth.verdict(kind="kms"), {"isAllowed": True, "gatewayAppId": "gw", "reason": ""})
        app, kms = fake.questions()
        self.assertEqual([call["method"] for call in app], ["eth_chainId", "eth_getBlockByNumber", "eth_call", "eth_call"])
        self.assertEqual(app[1]["params"], ["finalized", False])
        expected = fake_rpc.IS_APP_ALLOWED + abi.boot_tuple(boot()).hex()
        self.assertEqual(app[2]["params"], [{"to": "0x" + CONTRACT, "data": "0x" + expected, "gas": "0x989680"}, "finalized"])
        self.assertEqual(app[3]["params"][1], "finalized")
        self.assertEqual(kms[2]["params"][0]["data"], "0x" + fake_rpc.IS_KMS_ALLOWED + abi.boot_tuple(boot()).hex())
        path, headers, _ = fake.requests[-1]
        self.assertEqual((path, headers["Host"], headers["Content-Type"]), ("/key-SECRET?token=SECRET", fake.label, "application/json"))
        fake.allowed, fake.reason = False, "App not registered"
        self.assertTrue(auth.denied().startswith("App not registered (rule contract: isAppAllowed of 0x"))
        status, answer = auth.ask(boot(composeHash="d" * 62))
        self.assertEqual((status, answer["isAllowed"]), (400, False))
        self.assertIn("deviceId", auth.denied(boot(deviceId="e" * 128)))  # SEV-SNP does not fit
        self.assertEqual(len(fake.questions()), 3)
        records = auth.records()
        self.assertEqual([record["allowed"] for record in records], [True, True, False, False, False])
        self.assertEqual(records[0]["policy"], f"{fake.finalized:064x}")  # the block that was judged by

    def test_confirmations_pin_every_call_to_one_block(self):
        fake, = self.fakes(1)
        auth = self.auth([fake], confirmations=12)
        self.probed(fake)
        for _ in range(3):
            self.assertTrue(auth.verdict()["isAllowed"])
        asked = fake.questions()
        self.assertEqual(len(asked), 3)
        for calls in asked:
            self.assertEqual([call["method"] for call in calls],
                             ["eth_chainId", "eth_getBlockByNumber", "eth_call", "eth_call", "eth_blockNumber"])
            self.assertEqual({calls[1]["params"][0], calls[2]["params"][1], calls[3]["params"][1]}, {hex(1000 - 12)})
        fake.head = 500  # a chain that was rolled back: the remembered block is gone
        self.assertTrue(auth.verdict()["isAllowed"])
        self.assertEqual(fake.questions()[-1][2]["params"][1], hex(500 - 12))
        fake.head = 5
        self.assertIn("rpc_stale (the newest block is 5", auth.denied())

    def test_info_for_the_kms(self):
        fake, = self.fakes(1)
        auth = self.auth([fake])
        status, info = auth.info()
        self.assertEqual(status, 200)
        self.assertLess(info.pop("ageSeconds"), 60)
        self.assertEqual(info, {"status": "ok", "kmsContractAddr": "0x" + CONTRACT, "gatewayAppId": "gw", "chainId": 31337,
                                "ethRpcUrl": f"http://{fake.label}", "appImplementation": "0x" + "77" * 20,
                                "appAuthImplementation": "0x" + "77" * 20, "blockNumber": 990})
        self.assertEqual(auth.health()[0], 200)
        metrics = http(f"http://127.0.0.1:{auth.port}/metrics")
        if metrics[0] == 200:
            self.assertIn(f'dstack_auth_chain_endpoint_usable{{endpoint="{fake.label}"}} 1', metrics[1].decode())

    def test_values_for_get_are_renewed_without_being_asked_for(self):
        fake, = self.fakes(1)
        auth = self.auth([fake], probe_interval_s=1, deadline_ms=1000)
        fake.gateway = "renewed"
        wait_for(lambda: len(fake.requests) >= 3, "two more probes")
        fake.mode = fake_rpc.hang
        wait_for(lambda: "stale" in auth.info()[1], "a cached answer")
        status, info = auth.info()
        self.assertEqual((status, info["gatewayAppId"]), (200, "renewed"))

    def test_an_old_block_is_no_answer(self):
        fake, = self.fakes(1)
        auth = self.auth([fake], max_block_age_s=600)
        self.assertTrue(auth.verdict()["isAllowed"])
        fake.block_age = 4000
        self.assertIn("rpc_stale (block 990 is 40", auth.denied())

    def test_a_name_with_several_addresses(self):
        fake, = self.fakes(1)  # listens on 127.0.0.1 only: ::1, where localhost has it, refuses
        auth = self.auth([f"http://localhost:{fake.port}/"])
        self.assertTrue(auth.verdict()["isAllowed"])
        self.assertEqual(fake.requests[-1][1]["Host"], f"localhost:{fake.port}")


class BadEndpointTest(FakeCase):
    def test_a_rate_limit_is_honoured_and_the_next_endpoint_asked(self):
        first, second = self.fakes(2)
        first.mode = fake_rpc.status(429, Retry_After="240")
        auth = self.auth([first, second])
        self.probed(first, second)
        for _ in range(20):
            self.assertTrue(auth.verdict()["isAllowed"])
        self.assertEqual(len(first.requests), 1)  # the probe: not asked again before its time
        second.mode = fake_rpc.status(429, Retry_After="240")
        reason = auth.denied()
        self.assertIn(f"{first.label}: rpc_rate_limited (HTTP 429), not asked again for ", reason)
        asked = len(second.requests)
        for _ in range(20):  # a storm of questions is no storm of requests
            self.assertIn(f"{second.label}: rpc_rate_limited", auth.denied())
        self.assertEqual((len(first.requests), len(second.requests)), (1, asked))
        self.assertEqual(auth.health()[0], 503)
        wait_for(lambda: "stale" in auth.info()[1], "GET / from memory")  # the values of the probe are new for some seconds
        status, info = auth.info()
        self.assertEqual((status, info["status"], info["gatewayAppId"]), (200, "ok", "gw"))
        self.assertIn("rpc_rate_limited", info["cause"])
        self.assertEqual((len(first.requests), len(second.requests)), (1, asked))

    def test_rate_limits_that_hide_in_a_200(self):
        fake, = self.fakes(1)
        for body in ('{"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"limit exceeded"}}',
                     '[' + ",".join(f'{{"jsonrpc":"2.0","id":{i},"error":{{"code":429,"message":"compute units"}}}}' for i in range(1, 5)) + ']'):
            with self.subTest(body):
                fake.mode = fake_rpc.raw(body.encode())
                auth = self.auth([fake])
                self.assertIn("rpc_rate_limited", auth.denied())
                auth.service.stop()

    def test_get_is_answered_when_every_endpoint_hangs(self):
        """The best-known outage of this field: a public endpoint that limits its rate, and a GetMeta that never ends."""
        fakes = self.fakes(3)
        for fake in fakes:
            fake.mode = fake_rpc.hang
        auth = self.auth(fakes, deadline_ms=800, hedge_ms=100)
        status, info = auth.info()
        self.assertEqual((status, info["status"]), (500, "error"))
        self.assertIn("rpc_timeout (", info["message"])
        self.assertIn("rpc_timeout (", auth.denied())
        with ThreadPoolExecutor(24) as pool:  # each of many at once is answered
            answers = list(pool.map(lambda i: auth.info()[0] if i % 2 else auth.denied(), range(24)))
        self.assertEqual(answers[1::2], [500] * 12)
        self.assertEqual(auth.health()[0], 503)
        for fake in fakes:
            fake.mode = None
        wait_for(lambda: auth.verdict()["isAllowed"], "a decision after the outage")
        wait_for(lambda: auth.info()[0] == 200, "GET / after the outage")
        for fake in fakes:
            fake.mode = fake_rpc.hang
        wait_for(lambda: "stale" in auth.info()[1], "a cached answer")
        status, info = auth.info()
        self.assertEqual((status, info["status"], info["gatewayAppId"], info["stale"]), (200, "ok", "gw", True))
        self.assertIn("rpc_timeout", info["cause"])
        self.assertGreaterEqual(info["ageSeconds"], 0)
        self.assertFalse(auth.verdict()["isAllowed"])  # a decision is never a cached one

    def test_a_hanging_endpoint_is_hedged(self):
        first, second = self.fakes(2)
        auth = self.auth([first, second], deadline_ms=10000, hedge_ms=100)
        self.probed(first, second)
        first.mode = fake_rpc.hang
        self.assertTrue(auth.verdict()["isAllowed"])
        self.assertEqual(len(second.questions()), 1)
        self.assertTrue(auth.verdict()["isAllowed"])  # now the second is the one to ask first
        self.assertEqual(len(second.questions()), 2)

    def test_each_bad_answer_is_a_denial_that_names_its_cause(self):
        fake, other = self.fakes(2)
        long_text = "0x" + abi.ruling(False, "x" * 100000).hex()
        rows = [
            ("500", fake_rpc.status(500), "rpc_server_error (HTTP 500)"),
            ("503", fake_rpc.status(503, Retry_After="1"), "rpc_server_error (HTTP 503)"),
            ("403", fake_rpc.status(403), "rpc_refused (HTTP 403)"),
            ("redirect", fake_rpc.status(307, Location=f"http://127.0.0.1:{other.port}/"), "rpc_redirected (HTTP 307"),
            ("hangs up", fake_rpc.hang_up, "rpc_unreachable (connection_"),
            ("drips", fake_rpc.drip, "rpc_timeout ("),
            ("floods", fake_rpc.flood, "rpc_too_large"),
            ("many fields", fake_rpc.many_fields, "rpc_"),
            ("empty", fake_rpc.raw(b""), "rpc_malformed"),
            ("html", fake_rpc.raw(b"<html>\xff</html>"), "rpc_malformed (no valid JSON"),
            ("deep", fake_rpc.raw(b"[" * 200000), "rpc_malformed (no valid JSON"),
            ("null", fake_rpc.raw(b"null"), "rpc_malformed"),
            ("too few", fake_rpc.changed(lambda r: r[:-1]), "rpc_malformed (3 replies to 4 calls)"),
            ("twice", fake_rpc.changed(lambda r: [r[0], r[1], r[2], r[2]]), "rpc_malformed (two replies to one call)"),
            ("other ids", fake_rpc.changed(lambda r: [{**one, "id": one["id"] + 1} for one in r]), "rpc_malformed (id: not one of ours)"),
            ("no boolean", fake_rpc.changed(lambda r: r[2].update(result="0x" + "02".rjust(64, "0") + "40".rjust(64, "0") + "0" * 64)),
             "rpc_malformed (not what the contract's interface says"),
            ("short", fake_rpc.changed(lambda r: r[2].update(result=long_text[:2000])), "rpc_malformed (not what the contract's interface says"),
            ("no contract", fake_rpc.changed(lambda r: r[2].update(result="0x")), "rpc_no_contract"),
            ("error", fake_rpc.changed(lambda r: r[2].pop("result") and r[2].update(error={"code": -32603, "message": 'a"\n\u00e9\x1b'})),
             "rpc_error (-32603 a???"),
            ("no block", fake_rpc.changed(lambda r: r[1].update(result=None)), "rpc_stale (no block is finalized)"),
            ("odd gateway", fake_rpc.changed(lambda r: r[3].update(result="0x" + abi.arguments("g\u00e9").hex())), "rpc_malformed (gatewayAppId"),
        ]
        for name, mode, expected in rows:
            with self.subTest(name):
                fake.mode = mode
                auth = self.auth([fake], deadline_ms=1000)
                reason = auth.denied()
                self.assertIn("no rpc endpoint answered: " + fake.label + ": ", reason)
                if "not asked again" not in reason:  # the probe may have seen it before
                    self.assertIn(expected, reason)
                status, info = auth.info()
                if name not in ("no boolean", "short"):  # these words may be an address
                    self.assertEqual((status, info["status"]), (500, "error"))
                fake.mode = None
                wait_for(lambda: auth.verdict()["isAllowed"], f"a decision after {name}")
                self.assertNotIn("SECRET", auth.service.text())
        self.assertEqual(other.requests, [])  # nobody followed the redirect
        fake.mode = fake_rpc.changed(lambda r: r[2].update(result=long_text))
        auth = self.auth([fake])
        self.assertTrue(auth.denied().startswith("x" * 100))

    def test_the_next_endpoint_answers_when_one_fails(self):
        first, second = self.fakes(2)
        gone = free_port()
        for mode in (fake_rpc.status(500), fake_rpc.hang_up, fake_rpc.raw(b"{"), fake_rpc.flood, fake_rpc.drip):
            first.mode = mode
            auth = self.auth([f"http://127.0.0.1:{gone}/", first, second], deadline_ms=10000)
            self.assertEqual(auth.verdict()["isAllowed"], True, mode)
            auth.service.stop()

    def test_the_wrong_chain_is_a_denial(self):
        first, second = self.fakes(2)
        first.chain_id = 1
        auth = self.auth([first])
        reason = auth.denied()
        self.assertIn(f"{first.label}: rpc_wrong_chain (is on chain 1, not on 31337)", reason)
        wait_for(lambda: "rpc endpoint is on the wrong chain" in auth.service.text(), "the log line")
        self.assertEqual(auth.health()[0], 503)
        auth.service.stop()
        auth = self.auth([second, first], quorum=2)
        self.assertIn("rpc_wrong_chain", auth.denied())

    def test_a_quorum_that_disagrees_is_a_denial(self):
        first, second, third = self.fakes(3)
        auth = self.auth([first, second, third], quorum=2, deadline_ms=10000, hedge_ms=5000)
        self.probed(first, second, third)
        self.assertTrue(auth.verdict()["isAllowed"])
        self.assertEqual([len(fake.questions()) for fake in (first, second, third)], [1, 1, 0])
        second.allowed, second.reason = False, "App not registered"
        reason = auth.denied()
        self.assertTrue(reason.startswith("rpc endpoints disagree: "), reason)
        for part in (f"{first.label} says allowed, gateway gw at block 990", f"{second.label} says denied, App not registered at block 990"):
            self.assertIn(part, reason)
        second.allowed, second.gateway = True, "another"
        self.assertTrue(auth.denied().startswith("rpc endpoints disagree: "))
        second.gateway = "gw"
        second.mode = fake_rpc.status(500)
        self.assertTrue(auth.verdict()["isAllowed"])  # the third takes its place
        self.assertEqual(len(third.questions()), 1)
        third.mode = fake_rpc.status(500)
        self.assertIn("1 of the 2 rpc endpoints of the quorum answered", auth.denied())

    def test_more_questions_than_can_wait(self):
        fake, = self.fakes(1)
        fake.mode = fake_rpc.hang
        auth = self.auth([fake], deadline_ms=5000)
        with ThreadPoolExecutor(100) as pool:
            reasons = list(pool.map(lambda _: auth.denied(), range(100)))
        self.assertTrue(all("rpc_timeout" in reason or reason.startswith("busy: ") for reason in reasons), set(reasons))
        self.assertTrue(any(reason.startswith("busy: ") for reason in reasons))
        fake.mode = None
        wait_for(lambda: auth.verdict()["isAllowed"], "a decision after the storm")

    def test_stopping_while_questions_wait(self):
        fake, = self.fakes(1)
        fake.mode = fake_rpc.hang
        auth = self.auth([fake], deadline_ms=14000)
        ended = []

        def ask():
            try:
                ended.append(auth.ask())
            except OSError as error:
                ended.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: fake.questions(), "the question")
        self.assertEqual(auth.service.stop(), 0)
        asking.join(30)
        self.assertEqual(len(ended), 1)


class NameServerTest(FakeCase):
    def test_a_name_server_that_hangs_stops_nothing_else(self):
        library = self.prefix.path / "slow_names.so"
        source = Path(fake_rpc.__file__).parent / "slow_names.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
        hanging = self.prefix.path / "hanging"
        hanging.touch()
        self.addCleanup(hanging.unlink, missing_ok=True)
        fake, = self.fakes(1)
        urls = [f"http://{name}.test:{fake.port}/SECRET" for name in "abcdef"]
        auth = self.auth(urls, deadline_ms=1000, hedge_ms=100, allow_plain_http=True,
                         environment={"LD_PRELOAD": str(library), "SLOW_NAMES": str(hanging)})
        status, info = auth.info()
        self.assertEqual((status, info["status"]), (500, "error"))
        self.assertIn("rpc_", info["message"])
        for _ in range(3):
            self.assertIn("a.test", auth.denied())
        self.assertEqual(len(auth.records()), 3)  # the ledger has the threads that it needs
        self.assertEqual(fake.requests, [])
        hanging.unlink()
        wait_for(lambda: auth.verdict()["isAllowed"], "a decision when names can be found again", 60)
        self.assertTrue(fake.requests[-1][1]["Host"].endswith(f".test:{fake.port}"))
        hanging.touch()
        self.assertTrue(auth.verdict()["isAllowed"])  # what was found is remembered
        hanging.unlink()


class SecretTest(FakeCase):
    def test_nothing_of_a_url_but_its_host_is_told(self):
        good, bad = self.fakes(2)
        bad.mode = fake_rpc.status(500)
        urls = [f"http://user:SECRET@127.0.0.1:{bad.port}/SECRET?k=SECRET", good.url, f"http://127.0.0.1:{free_port()}/SECRET"]
        auth = self.auth(urls, quorum=3)
        said = auth.denied() + json.dumps(auth.info()) + json.dumps(auth.health())
        said += http(f"http://127.0.0.1:{auth.port}/metrics")[1].decode()
        self.assertIn("rpc_server_error", said)
        self.assertEqual(bad.requests[0][1]["Authorization"], "Basic dXNlcjpTRUNSRVQ=")
        self.assertEqual(auth.service.stop(), 0)
        said += auth.service.text() + auth.ledger.read_text()
        self.assertIn("rpc endpoint failed", said)
        self.assertNotIn("SECRET", said)

    def test_urls_in_a_file_and_as_a_credential(self):
        fake, = self.fakes(1)
        file = self.prefix.path / "etc/rpc-urls"
        file.write_text(f"# the only one\n\n  {fake.url}\n")
        file.chmod(0o640)
        auth = self.auth(None, rpc_urls_file=str(file))
        self.assertTrue(auth.verdict()["isAllowed"])
        auth.service.stop()
        auth = self.auth(None, rpc_urls_file="rpc-urls", environment={"CREDENTIALS_DIRECTORY": str(file.parent)})
        self.assertTrue(auth.verdict()["isAllowed"])
        auth.service.stop()
        rows = [
            (lambda: file.chmod(0o644), str(file), "others can read or write it"),
            (lambda: file.chmod(0o600), "rpc-urls", "no credential 'rpc-urls' was given"),
            (lambda: file.write_text("# none\n"), str(file), "no rpc url"),
            (lambda: file.write_text("http://rpc.example/SECRET\n"), str(file), "rpc url 1: http:// to another host"),
            (file.unlink, str(file), "no such file"),
        ]
        environment = {key: value for key, value in os.environ.items() if key != "CREDENTIALS_DIRECTORY"}
        for change, name, complaint in rows:
            with self.subTest(complaint):
                change()
                auth = self.auth(None, rpc_urls_file=name, start=False)
                done = subprocess.run([str(auth_program()), "--config", str(auth.service.config)], capture_output=True, text=True, timeout=60,
                                      env=environment)
                self.assertEqual(done.returncode, 70, done)
                self.assertIn(complaint, done.stderr + done.stdout)
                self.assertNotIn("SECRET", done.stderr + done.stdout)


def auth_program():
    from mesh import program
    return program("auth")


class TlsTest(FakeCase):
    def certificate(self, name):
        """(certificate, key) of a root that signs itself, for this host."""
        need(subprocess.run(["which", "openssl"], capture_output=True).returncode == 0, "there is no openssl")
        cert, key = self.prefix.path / f"{name}.pem", self.prefix.path / f"{name}.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x",
                        "-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
        return cert, key

    def test_the_certificate_must_be_the_hosts(self):
        cert, key = self.certificate("DNS:localhost")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        fake = FakeRpc(context=context)
        self.addCleanup(fake.close)
        url = f"https://localhost:{fake.port}/SECRET"
        auth = self.auth([url], ca_file=str(cert))
        self.assertTrue(auth.verdict()["isAllowed"])
        auth.service.stop()
        auth = self.auth([url], environment={"SSL_CERT_FILE": str(cert)})  # the system's roots
        self.assertTrue(auth.verdict()["isAllowed"])
        auth.service.stop()
        asked = len(fake.requests)
        for options in ({"ca_file": str(self.certificate("DNS:other.example")[0])}, {}):
            auth = self.auth([url], **options)
            self.assertIn("rpc_tls (tls_certificate", auth.denied())
            auth.service.stop()
        auth = self.auth([f"https://127.0.0.1:{fake.port}/SECRET"], ca_file=str(cert))  # a name that the certificate has not
        self.assertIn("rpc_tls (tls_certificate", auth.denied())
        self.assertNotIn("SECRET", auth.service.text())
        self.assertEqual(len(fake.requests), asked)


class DevChainTest(unittest.TestCase):
    """A compiled contract on a real chain; no network but for the first installation of its tools."""

    @classmethod
    def setUpClass(cls):
        try:
            cls.chain = DevChain(free_port())
        except NotHere as reason:
            raise unittest.SkipTest(f"no development chain: {reason}") from None
        cls.addClassCleanup(cls.chain.close)

    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.kms = self.chain.deploy("TestKms")
        self.app = self.chain.deploy("TestApp")
        self.chain.change("TestKms", self.kms, "setGateway", "gateway-of-the-chain")
        self.chain.change("TestKms", self.kms, "setImplementation", bytes.fromhex(self.app[2:]))
        self.body = boot(appId=self.app[2:].lower())
        self.chain.finalize()

    def auth(self, **options):
        return ChainAuth(self.prefix, [self.chain.url], contract=self.kms[2:], deadline_ms=10000, **options)

    def allow(self):
        self.chain.change("TestKms", self.kms, "setApp", bytes.fromhex(self.app[2:]), True)
        self.chain.change("TestKms", self.kms, "setImage", bytes.fromhex(self.body["osImageHash"]), True)
        self.chain.change("TestKms", self.kms, "setMeasurement", bytes.fromhex(self.body["mrAggregated"]), True)
        self.chain.change("TestApp", self.app, "setHash", bytes.fromhex(self.body["composeHash"]), True)

    def test_the_contract_decides(self):
        auth = self.auth()
        self.assertIn("App not registered", auth.denied(self.body))
        self.assertIn("OS image is not allowed", auth.denied(self.body, "kms"))
        self.allow()
        self.chain.finalize()
        expected = {"isAllowed": True, "gatewayAppId": "gateway-of-the-chain", "reason": ""}
        self.assertEqual(auth.verdict(self.body), expected)
        self.assertEqual(auth.verdict(self.body, "kms"), expected)
        self.assertIn("Compose hash not allowed", auth.denied({**self.body, "composeHash": "9" * 64}))
        self.assertIn("Aggregated MR not allowed", auth.denied({**self.body, "mrAggregated": "9" * 64}, "kms"))
        self.assertEqual(auth.info()[1]["appImplementation"], self.app.lower())
        self.assertEqual(auth.records()[2]["rules"][0][0], "contract")

    def test_what_is_not_final_does_not_count(self):
        auth = self.auth()
        self.allow()
        self.chain.finalize()
        self.assertTrue(auth.verdict(self.body)["isAllowed"])
        self.chain.change("TestKms", self.kms, "setApp", bytes.fromhex(self.app[2:]), False)
        self.assertTrue(auth.verdict(self.body)["isAllowed"])  # taken back in a block that may still go away
        self.chain.finalize()
        self.assertIn("App not registered", auth.denied(self.body))

    def test_confirmations_are_counted(self):
        auth = self.auth(confirmations=3)
        self.allow()
        self.chain.rpc("anvil_mine", "0x2")  # two on top: one too few
        self.assertFalse(auth.verdict(self.body)["isAllowed"])
        self.chain.rpc("anvil_mine", "0x1")
        wait_for(lambda: auth.verdict(self.body)["isAllowed"], "the third confirmation (the newest block is remembered for 10 s)", 40)

    def test_every_field_arrives_as_it_was_sent(self):
        self.allow()
        self.chain.finalize()
        auth = self.auth()
        rows = [{}, {"advisoryIds": ["INTEL-SA-1", "", "x" * 64]}, {"tcbStatus": ""}, {"tcbStatus": "s" * 33, "advisoryIds": ["a"]},
                {"instanceId": ""}, {"mrSystem": ""}, {"instanceId": "01" * 20, "deviceId": "02" * 32, "mrSystem": "03" * 32}]
        for changes in rows:
            with self.subTest(changes):
                body = {**self.body, **changes}
                fingerprint = self.chain.call("TestKms", self.kms, "fingerprint", abi.boot_tuple(body))
                self.chain.change("TestKms", self.kms, "expect", fingerprint)
                self.chain.finalize()
                self.assertTrue(auth.verdict(body)["isAllowed"])
                self.assertTrue(auth.verdict(body, "kms")["isAllowed"])
                self.assertIn("not the expected boot", auth.denied({**body, "deviceId": "0" * 63 + "1"}))

    def test_app_contracts_that_do_not_behave(self):
        self.allow()
        moods = [(1, "the contract denied it without a reason"), (2, "n???"), (3, "the contract reverted: closed on sundays"),
                 (4, "rpc_|the contract reverted"), (5, "rpc_|the contract reverted"), (6, "the contract reverted: panic 1")]
        auth = self.auth()
        good = {**self.body, "appId": self.chain.deploy("TestApp")[2:].lower()}
        self.chain.change("TestKms", self.kms, "setApp", bytes.fromhex(good["appId"]), True)
        self.chain.change("TestApp", "0x" + good["appId"], "setHash", bytes.fromhex(good["composeHash"]), True)
        for mood, expected in moods:
            with self.subTest(mood):
                self.chain.change("TestApp", self.app, "setMood", mood)
                self.chain.finalize()
                reason = auth.denied(self.body)
                self.assertTrue(any(part in reason for part in expected.split("|")), reason)
                self.assertTrue(auth.verdict(good)["isAllowed"])  # the other apps of this endpoint do not suffer
        self.assertEqual(auth.health()[0], 200)

    def test_a_chain_without_the_contract(self):
        self.kms = "0x" + "12" * 20
        auth = self.auth()
        self.assertIn("rpc_no_contract (there is no KMS contract at 0x" + "12" * 20, auth.denied(self.body))
        auth.service.stop()
        auth = self.auth(chain_id=1)
        self.assertIn("rpc_wrong_chain (is on chain 31337, not on 1)", auth.denied(self.body))


if __name__ == "__main__":
    unittest.main()
