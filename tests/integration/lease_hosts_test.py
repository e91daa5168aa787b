"""Two installs on one host and one lease database; crashes between any two steps; a host where the database cannot be had."""
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from mesh import TOP, program, wait_for
from peers import Peers


def config(prefix, leases, **more):
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
    return (f'[allocator]\nstate_dir = "{prefix.state("allocator")}"\nleases = "{leases}"\nsweep_ms = 50\n{lines}\n'
            f'[bus]\ndirectory = "{prefix.bus}"\n')


def wishes(*values):
    return [{"kind": "cid"} if value is None else {"kind": "port", "value": value} for value in values]


def everything(prefix, **filters):
    leases, after = [], 0
    while True:
        page = prefix.ok("lease.list", {"after": after, **filters})
        leases += page["leases"]
        after = page.get("next", 0)
        if not after:
            return leases


class TwoInstallsTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="dst-host-", dir="/tmp"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.leases = self.folder / "leases.db"
        self.installs = [Peers("allocator") for _ in range(2)]
        for one in self.installs:
            self.addCleanup(one.close)

    def start_both(self):
        """At the same instant, on a database that is not there yet."""
        services = [one.service("allocator", config(one, self.leases)).launch() for one in self.installs]
        for service in services:
            service.notify.wait("READY=1", 20, service.process)
        return services

    def test_two_meshes_never_get_the_same(self):
        self.start_both()
        granted, failures = [], []

        def reserve(install, number):
            code, reply = install.call("lease.reserve", {"owner": f"vm-{number}", "key": "k", "wishes": wishes(None, 0, 0)})
            (granted if code == "ok" else failures).append(reply)

        for number in range(6):
            crowd = [threading.Thread(target=reserve, args=(install, number)) for install in self.installs]
            for one in crowd:
                one.start()
            for one in crowd:
                one.join()
        self.assertEqual(failures, [])
        values = [(lease["kind"], lease["value"]) for reply in granted for lease in reply["leases"]]
        self.assertEqual(len(values), 36)
        self.assertEqual(len(set(values)), 36)

        first, second = self.installs
        self.assertEqual(first.call("lease.reserve", {"owner": "web", "key": "k", "wishes": wishes(18777)})[0], "ok")
        code, message = second.call("lease.reserve", {"owner": "web", "key": "k", "wishes": wishes(18777)})
        self.assertEqual((code, message), ("already_exists", f"tcp 127.0.0.1:18777 is taken: leased to web of the install in {first.state('allocator')}"))
        self.assertEqual(len(everything(second)), 18)
        everyone = everything(second, all=True, limit=7)
        self.assertEqual(len(everyone), 37)
        self.assertEqual(sum(lease.get("install", "") == str(first.state("allocator")) for lease in everyone), 19)
        # one does not give back what is the other's
        theirs = next(lease["id"] for lease in everyone if lease["value"] == 18777)
        self.assertEqual(second.ok("lease.release", {"id": theirs}), {"released": 0})
        self.assertEqual(first.ok("lease.release", {"id": theirs}), {"released": 1})
        self.assertEqual(second.call("lease.reserve", {"owner": "web", "key": "k", "wishes": wishes(18777)})[0], "ok")

    def test_what_runs_out_is_told_on_the_bus_it_came_from(self):
        self.start_both()
        first, second = self.installs
        self.assertEqual(first.call("lease.reserve", {"owner": "short", "key": "k", "wishes": wishes(18778), "ttl_ms": 1000})[0], "ok")
        wait_for(lambda: second.call("lease.reserve", {"owner": "next", "key": "k", "wishes": wishes(18778)})[0] == "ok", "the port is free again")
        wait_for(lambda: ("lease.released", "short") in [(name, data["owner"]) for name, data in first.events("lease.")], "its own mesh is told")
        self.assertNotIn("short", [data["owner"] for _, data in second.events("lease.")])

    def test_an_install_that_is_gone_leaves_nothing_behind(self):
        self.start_both()
        first, second = self.installs
        self.assertEqual(first.call("lease.reserve", {"owner": "hello", "key": "k", "wishes": wishes(18779)})[0], "ok")
        first.ok("lease.bind", {"owner": "hello"})
        first.services["allocator"].kill()
        self.assertEqual(second.call("lease.reserve", {"owner": "next", "key": "k1", "wishes": wishes(18779)})[0], "already_exists")
        first.close()
        wait_for(lambda: second.call("lease.reserve", {"owner": "next", "key": "k2", "wishes": wishes(18779)})[0] == "ok", "its leases are given back")

    def test_sixty_four_ask_for_one_port(self):
        self.start_both()
        body = json.dumps({"owner": "OWNER", "key": "k", "wishes": wishes(18790)})
        jobs = []
        for i in range(64):
            install = self.installs[i % 2]
            jobs.append(subprocess.Popen([str(install.probes / "deployer"), str(install.bus), "call", "lease.reserve", body.replace("OWNER", f"crowd-{i}")],
                                         stdout=subprocess.PIPE, text=True))
        answers = [job.communicate(timeout=100)[0] for job in jobs]
        self.assertEqual(sum(answer.startswith("ok ") for answer in answers), 1, answers)
        self.assertEqual(sum(answer.startswith("error already_exists tcp 127.0.0.1:18790 is taken: leased to crowd-") for answer in answers), 63, answers)


class CrashTest(unittest.TestCase):
    def test_killed_before_each_write_and_sync(self):
        with Peers("allocator") as prefix:
            library, plan, leases = prefix.path / "kill_at.so", prefix.path / "plan", prefix.lease_database
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(TOP / "tests/integration/kill_at.c"), "-ldl"], check=True)
            plan.write_text("")
            environment = {"LD_PRELOAD": str(library), "KILL_PATH": "leases.db", "KILL_PLAN": str(plan)}
            allocator = prefix.start("allocator", config(prefix, leases).replace("sweep_ms = 50", "sweep_ms = 3600000"), environment)
            acknowledged, kills = {}, 0
            for step in range(1, 40):
                owner = f"vm-{step}"
                body = {"owner": owner, "key": "k", "wishes": wishes(None, 0)}
                plan.write_text(str(step))
                line = prefix.run("deployer", "call", "lease.reserve", json.dumps(body), "", "700")
                killed = allocator.process.poll() is not None
                plan.write_text("")
                if line.startswith("ok "):
                    acknowledged[owner] = json.loads(line[3:])["leases"]
                if killed:
                    kills += 1
                    self.assertEqual(allocator.wait(), -signal.SIGKILL)
                    allocator.start()
                # asked again under its key it is the same, or it is granted now: never twice
                again = prefix.ok("lease.reserve", body)["leases"]
                if owner in acknowledged:
                    self.assertEqual([one["id"] for one in again], [one["id"] for one in acknowledged[owner]])
                acknowledged[owner] = again
                if not killed:
                    break
            self.assertGreater(kills, 3, "the reservation has several steps, and each was cut off")
            self.assertFalse(killed, "in the end it had fewer steps than it was allowed")
            listed = everything(prefix)
            wanted = {(one["id"], one["value"], owner) for owner, leases in acknowledged.items() for one in leases}
            self.assertEqual({(one["id"], one["value"], one["owner"]) for one in listed}, wanted)
            self.assertEqual(len({(one["kind"], one["value"]) for one in listed}), len(listed))
            ids = sorted(one["id"] for one in listed)
            wait_for(lambda: sorted({data["id"] for _, data in prefix.events("lease.granted")}) == ids, "an event for each grant, and no other")


@unittest.skipUnless(os.geteuid() == 0, "needs root to become somebody else")
class OwnDatabaseTest(unittest.TestCase):
    def test_without_rights_the_leases_are_the_installs_own(self):
        nobody = pwd.getpwnam("nobody")
        with Peers("allocator") as prefix:
            state = prefix.state("allocator")
            os.chown(state, nobody.pw_uid, nobody.pw_gid)
            for folder in (prefix.path, prefix.path / "run", prefix.bus, prefix.path / "etc", prefix.path / "etc/dstack"):
                folder.chmod(0o755)
            text = config(prefix, "").replace('leases = ""\n', "")
            where = prefix.path / "etc/dstack/allocator.toml"
            where.write_text(text)
            log = prefix.path / "own.log"
            with log.open("wb") as output:
                process = subprocess.Popen([str(program("allocator")), "--config", str(where)], user=nobody.pw_uid, group=nobody.pw_gid,
                                           extra_groups=[], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            try:
                wait_for(lambda: "leases are not host-wide" in log.read_text(), "the warning")
                self.assertTrue((state / "leases.db").exists())
            finally:
                process.kill()
                process.wait(20)


if __name__ == "__main__":
    unittest.main()
