"""dstack-kms-supervisor: readiness with proof, a pinned identity, restarts with a budget, adoption."""
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import unittest

from kms_support import SEED, Webhook, call, kms_config, tee_tool
from mesh import BUILD, Prefix, alive, bus_config, free_port, need, processes_of, program, wait_for


def setUpModule():
    for name in ("kms-local", "kms-supervisor", "bus"):
        need(program(name).exists(), f"dstack-{name} is not built")


class Case(unittest.TestCase):
    bus = True

    def setUp(self):
        self.prefix = Prefix()
        self.addCleanup(self.prefix.close)
        self.webhook = Webhook()
        self.addCleanup(self.webhook.close)
        (self.prefix.path / "tee-host.pub").write_text(tee_tool("host-key", SEED) + "\n")
        self.port = free_port()
        self.kms_toml = self.prefix.path / "etc/dstack/kms-local.toml"
        self.kms_toml.write_text(kms_config(self.prefix, self.port, self.webhook.url))
        self.pin = self.prefix.state("kms-supervisor") / "identity.json"
        if self.bus:
            self.prefix.start("bus", bus_config(self.prefix))

    def supervise(self, restart="backoff_initial_ms = 20\nbackoff_max_ms = 80\nbudget = 3\nhung_after_ms = 1500\n", **kms):
        settings = {"url": f"https://127.0.0.1:{self.port}", "program": str(program("kms-local")), "config": str(self.kms_toml),
                    "log": str(self.prefix.path / "var/log/dstack/kms-local.log"), "state_dir": str(self.prefix.state("kms-supervisor")),
                    "probe_interval_ms": 100, "probe_timeout_ms": 1000, **kms}
        text = "[kms]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        text += f'\n[restart]\n{restart}\n[bus]\ndirectory = "{self.prefix.bus}"\n'
        self.supervisor = self.prefix.start("kms-supervisor", text)
        return self.supervisor

    def events(self):
        """[(type, data)] of every kms.* event, oldest first."""
        path = next(self.prefix.state("bus").glob("*.db"))
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            table = "events"
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            rows = [dict(zip(columns, row)) for row in database.execute(f"SELECT * FROM {table} ORDER BY rowid")]
        found = []
        for row in rows:
            envelope = next((json.loads(value) for value in row.values() if isinstance(value, (str, bytes)) and b"specversion" in
                             (value if isinstance(value, bytes) else value.encode())), None)
            if envelope is not None and envelope["type"].startswith("kms."):
                found.append((envelope["type"], envelope["data"]))
        return found

    def wait_for_event(self, name, count=1, such_that=lambda data: True):
        """The data of the count-th such event. On a slow machine a probe may fail more often than the test makes it fail."""
        return wait_for(lambda: [data for kind, data in self.events() if kind == name and such_that(data)][count - 1:],
                        f"event {name} number {count}")[0]

    def kms_pid(self):
        return wait_for(lambda: next(iter(processes_of(f"dstack-kms-local --config {self.kms_toml}")), None), "a KMS process")


class Life(Case):
    def test_it_is_started_proved_and_pinned(self):
        self.supervise()
        ready = self.wait_for_event("kms.ready")
        self.assertEqual([kind for kind, _ in self.events() if kind != "kms.bootstrapped"], ["kms.starting", "kms.identity_pinned", "kms.ready"])
        self.assertEqual(ready["pid"], self.kms_pid())
        pinned = json.loads(self.pin.read_text())
        self.assertEqual(pinned, json.loads((self.prefix.state("kms-local") / "identity.json").read_text()))
        self.assertEqual((ready["ca_fingerprint"], ready["k256_pubkey"]), (pinned["ca_fingerprint"], pinned["k256_pubkey"]))
        answer = subprocess.run([str(BUILD / "tests/integration/bus_probe"), str(self.prefix.bus), "call", "kms.status", "{}"], capture_output=True,
                                text=True, timeout=20).stdout
        self.assertTrue(answer.startswith("ok "), answer)
        status = json.loads(answer[3:])
        self.assertEqual({key: status[key] for key in ready}, ready)
        self.assertTrue(status["observed_at"].endswith("Z"))

    def test_a_kms_that_dies_is_started_again(self):
        self.supervise()
        self.wait_for_event("kms.ready")
        first = self.kms_pid()
        os.kill(first, signal.SIGKILL)
        self.wait_for_event("kms.unready", such_that=lambda data: data["state"] == "backoff" and data["pid"] == 0)
        again = self.wait_for_event("kms.ready", such_that=lambda data: data["pid"] != first)
        self.assertEqual(again["restarts"], 1)
        self.assertEqual(call(self.port, "GetMeta")[0], 200)

    def test_a_supervisor_that_dies_leaves_the_kms_alone_and_the_next_adopts_it(self):
        self.supervise()
        self.wait_for_event("kms.ready")
        kms = self.kms_pid()
        for ending in (signal.SIGKILL, signal.SIGTERM):
            self.supervisor.kill(ending)
            self.assertTrue(alive(kms))
            self.supervise()
            self.assertIn("kms adopted", self.supervisor.text())
            self.assertEqual(self.kms_pid(), kms)
        self.assertEqual(self.wait_for_event("kms.ready", 3)["pid"], kms)
        self.assertEqual(len([kind for kind, _ in self.events() if kind == "kms.starting"]), 1)
        os.kill(kms, signal.SIGKILL)  # an adopted one is watched like any other
        self.wait_for_event("kms.ready", such_that=lambda data: data["pid"] != kms)

    def test_what_was_said_to_no_bus_is_published_by_the_next_process(self):
        bus = self.prefix.services["bus"]
        bus.stop()
        self.supervise()
        outbox = self.prefix.state("kms-supervisor") / "outbox.db"

        def kept():
            with sqlite3.connect(f"file:{outbox}?mode=ro", uri=True) as database:
                return [row[0] for row in database.execute("SELECT type FROM outbox ORDER BY number")]

        wait_for(lambda: "kms.ready" in kept(), "its events are kept")
        said = kept()
        self.supervisor.kill()
        bus.start()
        self.supervise()
        wait_for(lambda: len([kind for kind, _ in self.events() if kind != "kms.bootstrapped"]) > len(said), "they are published")
        self.assertEqual([kind for kind, _ in self.events() if kind != "kms.bootstrapped"][:len(said)], said)
        wait_for(lambda: any(kind == "kms.bootstrapped" for kind, _ in self.events()), "the KMS', too")

    def test_a_webhook_outage_is_unready_and_restarts_nothing(self):
        self.supervise()
        self.wait_for_event("kms.ready")
        kms = self.kms_pid()
        self.webhook.info = (503, b"down")
        unready = self.wait_for_event("kms.unready", such_that=lambda data: "returned 503" in data["reason"])
        self.assertEqual((unready["state"], unready["pid"]), ("unready", kms))
        self.webhook.info = (200, {"status": "ok", "kmsContractAddr": "", "gatewayAppId": "", "chainId": 0, "appImplementation": ""})
        self.assertEqual(self.wait_for_event("kms.ready", 2)["pid"], kms)

    def test_a_kms_that_hangs_is_replaced(self):
        self.supervise()
        self.wait_for_event("kms.ready")
        kms = self.kms_pid()
        os.kill(kms, signal.SIGSTOP)
        self.addCleanup(lambda: alive(kms) and os.kill(kms, signal.SIGKILL))
        self.wait_for_event("kms.ready", such_that=lambda data: data["pid"] != kms)
        self.assertFalse(alive(kms))


class FailsClosed(Case):
    def test_a_crash_loop_ends_with_the_reason(self):
        self.kms_toml.write_text("[kms]\nnonsense = 1\n")
        self.supervise()
        failed = self.wait_for_event("kms.failed")
        self.assertEqual((failed["state"], failed["restarts"]), ("failed", 3))
        self.assertTrue(failed["reason"].startswith("crash_loop: 3 restarts; last: "), failed)
        self.assertIn("config refused", failed["reason"])

    def test_a_program_that_is_not_there(self):
        self.supervise(program="/nonexistent/dstack-kms-local")
        self.assertIn("/nonexistent/dstack-kms-local", self.wait_for_event("kms.failed")["reason"])

    def test_lost_root_keys_are_not_replaced(self):
        self.supervise()
        self.wait_for_event("kms.ready")
        pinned = self.pin.read_text()
        self.supervisor.stop()
        os.kill(self.kms_pid(), signal.SIGKILL)
        wait_for(lambda: not processes_of(f"dstack-kms-local --config {self.kms_toml}"), "the KMS's end")
        shutil.rmtree(self.prefix.state("kms-local"))  # its own record too: only the pin remembers
        self.supervise()
        failed = self.wait_for_event("kms.failed")
        self.assertIn("was pinned, but there are no root keys", failed["reason"])
        self.assertFalse((self.prefix.state("kms-local") / "keys").exists())
        self.assertEqual(self.pin.read_text(), pinned)

    def test_another_identity_is_an_alarm(self):
        self.supervise()
        self.wait_for_event("kms.ready")
        self.supervisor.stop()
        kms = self.kms_pid()
        self.pin.write_text(json.dumps({"ca_fingerprint": "0" * 64, "k256_pubkey": "02" + "0" * 64}))
        self.supervise()
        changed = self.wait_for_event("kms.identity_changed")
        self.assertEqual(changed["ca_fingerprint"], "0" * 64)
        self.assertEqual(changed["got_ca_fingerprint"], json.loads((self.prefix.state("kms-local") / "identity.json").read_text())["ca_fingerprint"])
        self.assertTrue(self.wait_for_event("kms.failed")["reason"].startswith("identity_changed"))
        wait_for(lambda: not alive(kms), "the end of the KMS that is not the pinned one")
        self.assertFalse(processes_of(f"dstack-kms-local --config {self.kms_toml}"))

    def test_a_damaged_pin_starts_nothing(self):
        self.pin.write_text("{")
        self.supervise()
        self.assertTrue(self.wait_for_event("kms.failed")["reason"].startswith("pin_damaged"))
        self.assertFalse(processes_of(f"dstack-kms-local --config {self.kms_toml}"))


class External(Case):
    def test_an_external_kms_is_only_asked(self):
        self.supervise(mode="external")
        self.wait_for_event("kms.unready")
        kms = self.prefix.start("kms-local", None)
        ready = self.wait_for_event("kms.ready")
        self.assertEqual(ready["pid"], 0)
        kms.kill()
        self.wait_for_event("kms.unready", 2)
        shutil.rmtree(self.prefix.state("kms-local"))
        self.prefix.start("kms-local", None)
        self.wait_for_event("kms.identity_changed")
        self.assertEqual(self.wait_for_event("kms.failed")["state"], "failed")


if __name__ == "__main__":
    unittest.main()
