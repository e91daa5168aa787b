"""What the kernel shows against what is leased: foreign processes, VMMs, network namespaces; and `dstack leases` that explains it."""
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from lease_hosts_test import config, everything, wishes
from mesh import program, wait_for
from peers import Peers

LISTEN = """
import socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
if len(sys.argv) > 3: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(sys.argv[3]))
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen()
print(s.getsockname()[1], flush=True)
sys.stdin.read()
"""


class Foreign:
    """A process that listens, or only is called like one that would matter."""

    def __init__(self, address=None, port=0, *more, extra=(), before=(), code=LISTEN):
        arguments = [] if address is None else [address, str(port), *more]
        self.process = subprocess.Popen([*before, sys.executable, "-c", code, *arguments, *extra], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.port = int(line) if line.strip() else 0
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


WAIT = "import sys; print(0, flush=True); sys.stdin.read()"


PORTS = itertools.count(12000 + 50 * (os.getpid() % 100), 3)


def far_port():
    """One that outgoing connections do not take, and that no other test here was given."""
    for port in PORTS:
        try:
            for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
                with socket.socket(family) as probe:
                    probe.bind((address, port))
            return port
        except OSError:
            continue


class Deployer:
    """Says which apps there are, and nothing else."""

    def __init__(self, prefix, *apps):
        facts = {"app_id": "a", "compose_hash": "b", "vm_id": "c", "image": "i", "state": "stopped", "evidence": "e", "observed_at": "o", "created_at": "t"}
        reply = {"apps": [{"name": name, **facts} for name in apps]}
        self.process = subprocess.Popen([str(prefix.probes / "deployer"), str(prefix.bus), "answer", "deployer", "app.list", json.dumps(reply)],
                                        stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if line != "ready\n":
            raise AssertionError(line)

    def close(self):
        self.process.kill()
        self.process.wait(20)
        self.process.stdout.close()


class WatchTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prefix = Peers("allocator")
        cls.allocator = cls.prefix.start("allocator", config(cls.prefix, cls.prefix.lease_database, watch_ms=50, leak_check_ms=50))
        cls.deployer = Deployer(cls.prefix)

    @classmethod
    def tearDownClass(cls):
        cls.deployer.close()
        cls.prefix.close()

    def reserve(self, owner, wanted, key="k", **more):
        return self.prefix.call("lease.reserve", {"owner": owner, "key": key, "wishes": wanted, **more})

    def told(self, name, owner):
        return [data for kind, data in self.prefix.events("lease.") if kind == name and data["owner"] == owner]

    def dstack(self, *arguments, code=0):
        done = subprocess.run([str(program("dstack")), *arguments, "--prefix", str(self.prefix.path)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def test_foreign_listeners_are_seen_at_every_address(self):
        for address, more in (("0.0.0.0", ()), ("127.0.0.1", ()), ("::", ("0",)), ("::1", ())):
            with self.subTest(address), Foreign(address, far_port(), *more) as foreign:
                for wanted in ("127.0.0.1", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1"):
                    overlaps = address == "::" or wanted == "::" or (":" in address) == (wanted == "::1")
                    code, message = self.reserve(f"at-{address}-{wanted}", [{"kind": "port", "value": foreign.port, "address": wanted}])
                    self.assertEqual(code, "already_exists" if overlaps else "ok", f"{wanted} beside {address}: {message}")
                    if overlaps:
                        self.assertIn(f"pid {foreign.pid}", message)
                    self.prefix.ok("lease.release", {"owner": f"at-{address}-{wanted}"})
        with Foreign("::", far_port(), "1") as own:
            self.assertEqual(self.reserve("v4", [{"kind": "port", "value": own.port}])[0], "ok")
            self.assertEqual(self.reserve("v6", [{"kind": "port", "value": own.port, "address": "::1"}])[0], "already_exists")

    @unittest.skipUnless(os.geteuid() == 0 and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0, "needs network namespaces")
    def test_a_listener_in_another_network_namespace_is_no_conflict(self):
        port = far_port()
        with Foreign("0.0.0.0", port, before=("unshare", "-n")):
            self.assertEqual(self.reserve("here", [{"kind": "port", "value": port}])[0], "ok")
            self.prefix.ok("lease.bind", {"owner": "here"})
            with Foreign("127.0.0.1", port):
                wait_for(lambda: self.told("lease.conflict", "here"), "and one in ours is")
            self.assertEqual(len(self.told("lease.conflict", "here")), 1)

    def test_a_port_that_is_taken_from_us_is_told_with_the_process(self):
        port = far_port()
        self.assertEqual(self.reserve("robbed", [{"kind": "port", "value": port, "purpose": "80/tcp of the guest"}])[0], "ok")
        self.prefix.ok("lease.bind", {"owner": "robbed"})
        with Foreign("0.0.0.0", port) as foreign:
            conflict = wait_for(lambda: self.told("lease.conflict", "robbed"), "lease.conflict")[0]
            self.assertEqual((conflict["pid"], conflict["value"]), (foreign.pid, port))
            self.assertIn("socket", conflict["command"])
            self.assertIn(f"pid {foreign.pid}", conflict["reason"])
            text = self.dstack("leases", "explain", f"tcp:{port}").stdout
            self.assertRegex(text, f"^tcp 0.0.0.0:{port}, tcp \\[::\\]:{port}: taken\n")
            self.assertIn(f"tcp 127.0.0.1:{port} is leased to robbed (80/tcp of the guest), bound since", text)
            self.assertRegex(text, f"tcp 0.0.0.0:{port}: python3.*, pid {foreign.pid}.* listens")
            rows = [line for line in self.dstack("leases", "--all").stdout.splitlines() if f":{port} " in line]
            self.assertRegex(rows[0], f"robbed +bound .*python3.* {foreign.pid}")
        self.assertEqual(len(self.told("lease.conflict", "robbed")), 1, "told once while it is the same process")
        with Foreign("127.0.0.1", port) as another:
            wait_for(lambda: [one["pid"] for one in self.told("lease.conflict", "robbed")][1:] == [another.pid], "another process is another conflict")

    def test_drift_and_no_conflict_of_the_owners_own_vm(self):
        first, second = far_port(), far_port()
        code, reply = self.reserve("drifted", [{"kind": "cid", "value": 1888}, {"kind": "port", "value": first}, {"kind": "port", "value": second}])
        self.assertEqual(code, "ok", reply)
        self.prefix.ok("lease.bind", {"owner": "drifted"})
        arguments = ("qemu", "guest-cid=1888", f"hostfwd=tcp:127.0.0.1:{first}-:80,hostfwd=tcp:127.0.0.1:{second}-:81")
        with Foreign("127.0.0.1", first, extra=arguments, code=LISTEN.replace("len(sys.argv) > 3", "False")) as vm:
            drift = wait_for(lambda: self.told("lease.drift", "drifted"), "lease.drift, after the time that a VM has to start", 40)
            self.assertEqual([(one["value"], one["pid"]) for one in drift], [(second, vm.pid)])
            # a lease of a VM that lives is not given back by hand
            lease = next(one["id"] for one in reply["leases"] if one["value"] == second)
            done = self.dstack("leases", "release", lease, code=7)
            self.assertIn(f"the owner drifted lives: python3", done.stderr)
            self.assertIn(str(vm.pid), done.stderr)
        self.assertEqual(self.told("lease.conflict", "drifted"), [])
        self.assertEqual(self.dstack("leases", "release", lease).stdout, f"released {lease}\n")
        self.assertEqual(self.dstack("leases", "release", lease, code=3).returncode, 3)

    def test_vmms_keep_what_they_take_for_themselves(self):
        folder = Path(tempfile.mkdtemp(prefix="dst-vmm-", dir="/tmp"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        (folder / "vmm.toml").write_text("[cvm]\ncid_start = 1000\ncid_pool_size = 500\n[host_api]\naddress = \"vsock:2\"\nport = 10007\n")
        sleeper = shutil.which("sleep")
        process = subprocess.Popen(["dstack-vmm", "600"], executable=sleeper, cwd=folder)
        try:
            wait_for(lambda: b"dstack-vmm" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "it is called dstack-vmm")
            code, message = self.reserve("pool", [{"kind": "cid", "value": 1234}])
            self.assertEqual(code, "already_exists")
            self.assertRegex(message, f"^cid 1234 is taken: cid pool of dstack-vmm \\(vmm.toml\\), .*, pid {process.pid}")
            code, reply = self.reserve("free", [{"kind": "cid"}])
            self.assertEqual(code, "ok", reply)
            self.assertGreaterEqual(reply["leases"][0]["value"], 1500)
            self.assertEqual(self.reserve("host-api", [{"kind": "vsock_port", "value": 10007}])[0], "already_exists")
            self.assertIn("cid pool of dstack-vmm", self.dstack("leases", "explain", "cid:1003").stdout)
        finally:
            process.kill()
            process.wait(20)
        self.assertEqual(self.reserve("pool", [{"kind": "cid", "value": 1234}])[0], "ok")

    def test_privileged_ports_need_the_flag(self):
        code, message = self.reserve("low", [{"kind": "port", "value": 1}])
        self.assertEqual((code, message), ("failed_precondition", "tcp 127.0.0.1:1 is a privileged port"))
        self.assertEqual(self.reserve("low", [{"kind": "port", "value": 1, "privileged": True}])[0], "ok")

    def test_a_free_port_is_explained(self):
        port = far_port()
        document = json.loads(self.dstack("leases", "explain", str(port), "--json").stdout)
        self.assertEqual((document["schema"], document["data"]["free"], document["data"]["leases"]), ("dstack.lease_explanation/v1", True, []))
        self.assertEqual(self.dstack("leases", "explain", "nonsense", code=2).stdout, "")
        everything_there = json.loads(self.dstack("leases", "--all", "--json").stdout)["data"]
        self.assertTrue(any(use["kind"] == "port" for use in everything_there["uses"]) or not everything_there["uses"])


class LeakTest(unittest.TestCase):
    def test_a_lease_whose_app_is_gone_is_told_and_given_back(self):
        with Peers("allocator") as prefix:
            prefix.start("allocator", config(prefix, prefix.lease_database, watch_ms=50, leak_check_ms=50))
            for owner in ("gone", "kept"):
                prefix.ok("lease.reserve", {"owner": owner, "key": "k", "wishes": wishes(None)})
                prefix.ok("lease.bind", {"owner": owner})
            deployer = Deployer(prefix, "kept")
            try:
                leaked = wait_for(lambda: [data for _, data in prefix.events("lease.leaked")], "lease.leaked")
                self.assertEqual([one["owner"] for one in leaked], ["gone"])
                leases = {one["owner"]: one["id"] for one in everything(prefix)}
                code, message = prefix.call("lease.release", {"id": leases["kept"]}, who="operator")
                self.assertEqual((code, message), ("failed_precondition", "the app kept is still there, and keeps its leases also while it is stopped"))
                self.assertEqual(prefix.ok("lease.release", {"id": leases["gone"]}, who="operator"), {"released": 1})
            finally:
                deployer.close()


if __name__ == "__main__":
    unittest.main()
