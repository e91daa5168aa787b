"""The mesh under a real systemd: it starts, every part comes back alone, and who may do what is by user."""
import json
import re
import time
import unittest

from container import DAEMONS, Container, wait_for

SERVICES = [f"dstack-{name}.service" for name in DAEMONS]


class MeshUnderSystemd(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        started = time.monotonic()
        cls.machine = Container()
        cls.addClassCleanup(cls.machine.close)
        print(f"note: booted in {time.monotonic() - started:.1f} s")
        cls.prepare()

    @classmethod
    def prepare(cls):
        """What the installation of a package does."""
        run = cls.machine.run
        run("systemd-sysusers")
        run("systemd-tmpfiles", "--create")
        run("useradd", "-m", "-G", "dstack", "operator1")
        run("useradd", "-m", "stranger1")
        run("systemctl", "daemon-reload")
        run("systemctl", "enable", "dstack.target", "dstack-vmm-local.socket", "dstack-vmm-local.service", "dstack-kms-local.service")
        started = time.monotonic()
        run("systemctl", "start", "dstack.target", deadline=120)
        print(f"note: dstack.target started in {time.monotonic() - started:.2f} s")

    def setUp(self):
        self.machine.run("systemctl", "reset-failed", *SERVICES, check=False)  # each test has the whole budget of starts
        self.all_up()

    def run(self, result=None):
        """With the journal when something failed."""
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            print(f"the journal, after {self._testMethodName}:\n{self.machine.journal(80)}")

    def pids(self):
        return {name: int(self.machine.show(f"dstack-{name}.service", "MainPID")["MainPID"]) for name in DAEMONS}

    def states(self):
        return {name: self.machine.show(f"dstack-{name}.service", "ActiveState", "SubState") for name in DAEMONS}

    def on_the_bus(self):
        """The services that are up by the bus' account."""
        done = self.machine.run("dstack", "bus", "services", "--json", check=False)
        if done.returncode != 0:
            return None
        return {service["service"] for service in json.loads(done.stdout)["data"]["services"] if service["state"] == "up"}

    def all_up(self):
        states = {}

        def up():
            states.update(self.states())
            return all(state == {"ActiveState": "active", "SubState": "running"} for state in states.values())

        try:
            wait_for(up, "every daemon is active", 60, 0.1)
        except AssertionError:
            self.fail(f"not every daemon is active: {states}")
        wait_for(lambda: self.on_the_bus() == set(DAEMONS) - {"bus"}, "the bus has every service", 60, 0.1)

    def back(self, name, old):
        """The daemon runs again, with another pid, and is on the bus."""
        wait_for(lambda: self.machine.show(f"dstack-{name}.service", "SubState", "MainPID") not in ({}, None)
                 and self.machine.show(f"dstack-{name}.service", "SubState")["SubState"] == "running"
                 and self.pids()[name] not in (0, old), f"dstack-{name} is back", 60, 0.05)
        wait_for(lambda: self.on_the_bus() == set(DAEMONS) - {"bus"}, "all are on the bus", 60, 0.1)

    def test_1_ready_under_their_own_users(self):
        for name in DAEMONS:
            with self.subTest(daemon=name):
                facts = self.machine.show(f"dstack-{name}.service", "Type", "WatchdogUSec", "User", "MainPID", "NRestarts")
                self.assertEqual((facts["Type"], facts["WatchdogUSec"], facts["NRestarts"]), ("notify", "30s", "0"))
                owner = self.machine.run("stat", "-c", "%U", f"/proc/{facts['MainPID']}").stdout.strip()
                self.assertEqual(owner, f"dstack-{name}")
                state = self.machine.run("stat", "-c", "%U %a", f"/var/lib/dstack/{name}").stdout.split()
                self.assertEqual(state[0], f"dstack-{name}")
                self.assertEqual(int(state[1], 8) & 0o026, 0, "others neither read nor write the state")
        failed = self.machine.run("systemctl", "list-units", "--failed", "--no-legend", "dstack*").stdout
        self.assertEqual(failed, "")

    def test_2_operators_may_and_strangers_may_not(self):
        seen = self.machine.run("dstack", "events", "--from", "0", "--no-follow", "--json", user="operator1").stdout
        self.assertIn("service.up", seen)
        refused = self.machine.run("dstack", "events", "--from", "0", "--no-follow", "--timeout", "5s", user="stranger1", check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertNotIn("service.up", refused.stdout)
        self.assertIn("permission", (refused.stdout + refused.stderr).lower())
        self.assertIn("dstack", refused.stderr)
        # Nor may a service's user be another service, nor an operator read what only daemons may.
        for user, path in [("operator1", "/var/lib/dstack/kms-local/keys"), ("dstack-logs", "/var/lib/dstack/vmm-local/tee-host.seed"),
                           ("dstack-vmm-local", "/var/lib/dstack/kms-local/keys"), ("dstack-auth", "/run/dstack/vmm.sock")]:
            with self.subTest(user=user, path=path):
                self.assertEqual(self.machine.run("test", "-e", path).returncode, 0)
                self.assertNotEqual(self.machine.run("test", "-r", path, user=user, check=False).returncode, 0)

    def test_3_the_sockets_answer(self):
        health = self.machine.run("curl", "-sf", "http://127.0.0.1:8001/").stdout
        self.assertTrue(json.loads(health))
        self.machine.run("curl", "-sf", "--unix-socket", "/run/dstack/logs.sock", "http://logs/logs", user="operator1")
        self.machine.run("curl", "-sf", "--unix-socket", "/run/dstack/vmm.sock", "-d", "{}", "http://vmm/prpc/Version?json", user="dstack-deployer")
        self.assertNotEqual(self.machine.run("curl", "-sf", "--unix-socket", "/run/dstack/vmm.sock", "http://vmm/", user="operator1", check=False).returncode, 0)
        self.machine.run("dstack", "ls", user="operator1")

    def test_4_each_restarts_alone(self):
        times = []
        for name in DAEMONS:
            with self.subTest(daemon=name):
                before = self.pids()
                started = time.monotonic()
                self.machine.run("systemctl", "restart", f"dstack-{name}.service")
                times.append(f"{name} {(time.monotonic() - started) * 1000:.0f}")
                after = self.pids()
                self.assertNotEqual(after[name], before[name])
                self.assertEqual({k: v for k, v in after.items() if k != name}, {k: v for k, v in before.items() if k != name}, "the others were not touched")
                self.back(name, before[name])
        print(f"note: systemctl restart, in ms to ready: {', '.join(times)}")

    def test_5_a_killed_daemon_comes_back(self):
        for name in DAEMONS:
            with self.subTest(daemon=name):
                before = self.pids()
                self.machine.run("kill", "-9", before[name])
                self.back(name, before[name])
                after = self.pids()
                self.assertEqual({k: v for k, v in after.items() if k != name}, {k: v for k, v in before.items() if k != name}, "the others were not touched")

    def test_6_who_connects_during_a_restart_is_answered(self):
        """The sockets are systemd's: a client that tries nothing twice is served by the next process."""
        self.machine.run("systemctl", "stop", "dstack-auth.service", "dstack-logs.service")
        self.assertTrue(json.loads(self.machine.run("curl", "-sf", "--max-time", "30", "http://127.0.0.1:8001/").stdout))
        self.machine.run("curl", "-sf", "--max-time", "30", "--unix-socket", "/run/dstack/logs.sock", "http://logs/logs")

    def test_7_a_stuck_daemon_is_replaced(self):
        """A stopped process pings no more; one that pings lives much longer than its watchdog."""
        names = [name for name in DAEMONS if name != "bus"] + ["bus"]
        for name in names:
            self.machine.write(f"/run/systemd/system/dstack-{name}.service.d/watchdog.conf", "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
        try:
            self.machine.run("systemctl", "daemon-reload")
            self.machine.run("systemctl", "restart", *SERVICES)
            self.all_up()
            before = self.pids()
            alive = time.monotonic() + 5  # more than two watchdogs: long enough that a daemon without pings is gone
            wait_for(lambda: time.monotonic() > alive, "watchdogs have passed", 20, 0.1)
            self.assertEqual(self.pids(), before, "the pings keep them alive")
            self.machine.run("kill", "-STOP", *before.values())
            for name in names:
                with self.subTest(daemon=name):
                    wait_for(lambda: self.pids()[name] not in (0, before[name]), f"a stuck dstack-{name} was replaced", 60, 0.1)
        finally:
            for name in names:
                self.machine.run("rm", "-r", f"/run/systemd/system/dstack-{name}.service.d")
            self.machine.run("systemctl", "daemon-reload")
            self.machine.run("systemctl", "reset-failed", *SERVICES)
            self.machine.run("systemctl", "restart", *SERVICES)
        self.all_up()

    def test_8_a_refused_configuration_is_not_tried_again(self):
        good = self.machine.run("cat", "/etc/dstack/allocator.toml").stdout
        self.machine.write("/etc/dstack/allocator.toml", "[allocator]\nstate_dir = 7\n")
        try:
            self.assertNotEqual(self.machine.run("systemctl", "restart", "dstack-allocator.service", check=False).returncode, 0)
            wait_for(lambda: self.machine.show("dstack-allocator.service", "ActiveState")["ActiveState"] == "failed", "it has failed", 20)
            facts = self.machine.show("dstack-allocator.service", "ExecMainStatus", "NRestarts")
            self.assertEqual(facts["ExecMainStatus"], "78")
            self.assertIn("config refused", self.machine.run("journalctl", "--no-pager", "-u", "dstack-allocator").stdout)
        finally:
            self.machine.write("/etc/dstack/allocator.toml", good)
            self.machine.run("systemctl", "reset-failed", "dstack-allocator.service")
            self.machine.run("systemctl", "start", "dstack-allocator.service")

    def test_8b_lost_root_keys_are_not_made_anew(self):
        """Who the KMS is was pinned by another user, so an empty state directory does not make it another KMS."""
        self.machine.run("systemctl", "stop", "dstack-kms-local.service")
        self.machine.run("mv", "/var/lib/dstack/kms-local", "/var/lib/dstack/kms-local.aside")
        try:
            self.assertNotEqual(self.machine.run("systemctl", "start", "dstack-kms-local.service", check=False).returncode, 0)
            self.assertNotEqual(self.machine.run("test", "-e", "/var/lib/dstack/kms-local/keys", check=False).returncode, 0, "no new keys")
        finally:
            self.machine.run("systemctl", "stop", "dstack-kms-local.service")
            self.machine.run("rm", "-rf", "/var/lib/dstack/kms-local")
            self.machine.run("mv", "/var/lib/dstack/kms-local.aside", "/var/lib/dstack/kms-local")
            self.machine.run("systemctl", "reset-failed", "dstack-kms-local.service", check=False)
            self.machine.run("systemctl", "start", "dstack-kms-local.service")

    def test_8c_a_token_is_a_credential(self):
        """What lies in the credential store is there for the deployer, and for nobody else."""
        path = "/run/credentials/dstack-deployer.service/dstack-vmm-token"
        self.assertNotEqual(self.machine.run("test", "-e", path, check=False).returncode, 0)
        self.machine.write("/etc/credstore/dstack-vmm-token", "a token\n")
        try:
            self.machine.run("chmod", "0600", "/etc/credstore/dstack-vmm-token")
            self.machine.run("systemctl", "restart", "dstack-deployer.service")
            self.assertEqual(self.machine.run("cat", path, user="dstack-deployer").stdout, "a token\n")
            self.assertNotEqual(self.machine.run("cat", path, user="operator1", check=False).returncode, 0)
        finally:
            self.machine.run("rm", "/etc/credstore/dstack-vmm-token")
            self.machine.run("systemctl", "restart", "dstack-deployer.service")

    def test_8d_the_budget_of_starts_ends(self):
        """A daemon that always ends is given up, and the others go on."""
        before = self.pids()
        deadline = time.monotonic() + 60
        while self.machine.show("dstack-allocator.service", "ActiveState")["ActiveState"] != "failed" and time.monotonic() < deadline:
            pid = self.pids()["allocator"]
            if pid:
                self.machine.run("kill", "-9", pid, check=False)
        self.assertEqual(self.machine.show("dstack-allocator.service", "ActiveState")["ActiveState"], "failed")
        after = self.pids()
        self.assertEqual({k: v for k, v in after.items() if k != "allocator"}, {k: v for k, v in before.items() if k != "allocator"})
        self.machine.run("systemctl", "reset-failed", "dstack-allocator.service")
        self.machine.run("systemctl", "start", "dstack-allocator.service")

    def test_9_the_target_stops_all(self):
        self.machine.run("systemctl", "stop", "dstack.target", deadline=90)
        left = self.machine.run("systemctl", "list-units", "--state=active", "--no-legend", "--plain", "dstack*").stdout
        wait_for(lambda: self.machine.run("systemctl", "list-units", "--state=active,deactivating", "--no-legend", "--plain", "dstack-*").stdout == "", f"nothing is left: {left}", 60)
        failed = self.machine.run("systemctl", "list-units", "--failed", "--no-legend", "--plain", "dstack*").stdout
        self.assertEqual(re.findall(r"^\S+", failed, re.M), [])
        self.machine.run("systemctl", "start", "dstack.target", deadline=120)


if __name__ == "__main__":
    unittest.main()
