"""dstack-allocator as a real process: leases over the bus, the kernel's sockets, crashes, events."""
import json
import os
import signal
import socket
import subprocess
import unittest

from mesh import wait_for
from peers import Peers


def allocator_config(prefix, sweep_ms=50):
    return f'[allocator]\nstate_dir = "{prefix.state("allocator")}"\nleases = "{prefix.lease_database}"\nsweep_ms = {sweep_ms}\n\n[bus]\ndirectory = "{prefix.bus}"\n'


def port(value=0, **more):
    return {"kind": "port", "value": value, **more}


class AllocatorTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prefix = Peers("allocator")
        cls.allocator = cls.prefix.start("allocator", allocator_config(cls.prefix))

    @classmethod
    def tearDownClass(cls):
        cls.prefix.close()

    def reserve(self, owner, wishes, key="k", **more):
        return self.prefix.call("lease.reserve", {"owner": owner, "key": key, "wishes": wishes, **more})

    def test_a_batch_is_granted_bound_and_released(self):
        code, reply = self.reserve("hello", [{"kind": "cid"}, port(purpose="80/tcp of the guest")])
        self.assertEqual(code, "ok", reply)
        cid, web = reply["leases"]
        self.assertIn(cid["value"], range(1000, 2000))
        self.assertIn(web["value"], range(18000, 20000))
        self.assertEqual((web["address"], web["protocol"], web["state"]), ("127.0.0.1", "tcp", "reserved"))
        again = self.reserve("hello", [{"kind": "cid"}, port(purpose="80/tcp of the guest")])[1]
        self.assertEqual([{**one, "expires": ""} for one in again["leases"]], [{**one, "expires": ""} for one in reply["leases"]])
        self.prefix.ok("lease.bind", {"owner": "hello"})
        listed = self.prefix.ok("lease.list", {"owner": "hello"}, who="operator")["leases"]
        self.assertEqual([lease["state"] for lease in listed], ["bound", "bound"])
        self.assertEqual(self.prefix.ok("lease.release", {"owner": "hello", "reason": "removed"}), {"released": 2})
        self.assertEqual(self.prefix.ok("lease.release", {"owner": "hello"}), {"released": 0})

        def told():
            events = [(name, data["id"]) for name, data in self.prefix.events("lease.") if data["owner"] == "hello"]
            wanted = [("lease.granted", cid["id"]), ("lease.granted", web["id"]), ("lease.released", cid["id"]), ("lease.released", web["id"])]
            return events == wanted

        wait_for(told, "the four events, once and in order")

    def test_a_port_that_a_process_holds_is_refused_by_name(self):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen(1)
            number = other.getsockname()[1]
            code, message = self.reserve("taken", [{"kind": "cid"}, port(number)])
            self.assertEqual(code, "already_exists")
            self.assertIn(f"tcp 127.0.0.1:{number} is taken", message)
            self.assertIn(f"pid {os.getpid()}", message)
            self.assertEqual(self.reserve("taken-wide", [port(number, address="0.0.0.0")])[0], "already_exists")
        self.assertEqual(self.prefix.ok("lease.list", {"owner": "taken"})["leases"], [])
        wait_for(lambda: any(name == "lease.refused" and data["owner"] == "taken" and data["wanted"] == f"tcp 127.0.0.1:{number}"
                             for name, data in self.prefix.events("lease.refused")), "lease.refused")
        # the same key may be tried again when the port is free
        self.assertEqual(self.reserve("taken", [{"kind": "cid"}, port(number)])[0], "ok")

    def test_a_leased_port_is_refused_with_its_owner(self):
        self.assertEqual(self.reserve("first", [port(18500)])[0], "ok")
        code, message = self.reserve("second", [port(18500, address="0.0.0.0")])
        self.assertEqual((code, message), ("already_exists", "tcp 0.0.0.0:18500 is taken: leased to first"))
        self.assertEqual(self.reserve("second", [port(18500, protocol="udp")], key="other")[0], "ok")

    def test_a_cid_of_a_foreign_qemu_is_refused(self):
        foreign = subprocess.Popen(["python3", "-c", "input()", "-device", "vhost-vsock-pci,guest-cid=1777"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            code, message = self.reserve("cid", [{"kind": "cid", "value": 1777}])
            self.assertEqual(code, "already_exists")
            self.assertRegex(message, f"^cid 1777 is taken: python3.*, pid {foreign.pid}$")
        finally:
            foreign.stdin.close()
            foreign.wait(10)
        self.assertEqual(self.reserve("cid", [{"kind": "cid", "value": 1777}])[0], "ok")

    def test_bad_requests(self):
        rows = [
            ([], "wishes: must be 1 to 64"),
            ([{"kind": "gpu"}], "wishes[0].kind: must be cid, port or vsock_port"),
            ([port(70000)], "wishes[0].value: must be a port in 1..65535"),
            ([port(80, address="example.org")], "wishes[0].address: must be an IPv4 or IPv6 address"),
        ]
        for wishes, message in rows:
            with self.subTest(message):
                self.assertEqual(self.reserve("bad", wishes), ("invalid_argument", message))
        self.assertEqual(self.reserve("bad", [port(18100, address="192.0.2.1")])[0], "failed_precondition")
        self.assertEqual(self.prefix.call("lease.bind", {"owner": "nobody"})[0], "not_found")
        self.assertEqual(self.prefix.call("lease.release", {})[0], "invalid_argument")

    def test_a_reservation_runs_out(self):
        self.assertEqual(self.reserve("short", [port(18600)], ttl_ms=1000)[0], "ok")
        wait_for(lambda: not self.prefix.ok("lease.list", {"owner": "short"})["leases"], "the reservation is over")
        wait_for(lambda: any(name == "lease.released" and data["owner"] == "short" and data["reason"] == "expired"
                             for name, data in self.prefix.events("lease.released")), "lease.released")

    def test_many_at_once_get_different_ones(self):
        jobs = [subprocess.Popen([str(self.prefix.probes / "deployer"), str(self.prefix.bus), "call", "lease.reserve",
                                  json.dumps({"owner": f"crowd-{i}", "key": "k", "wishes": [{"kind": "cid"}, port(), port()]})],
                                 stdout=subprocess.PIPE, text=True) for i in range(8)]
        values = []
        for job in jobs:
            out, _ = job.communicate(timeout=60)
            self.assertTrue(out.startswith("ok "), out)
            values += [(lease["kind"], lease["value"]) for lease in json.loads(out[3:])["leases"]]
        self.assertEqual(len(values), 24)
        self.assertEqual(len(set(values)), 24)


class CrashTest(unittest.TestCase):
    def test_acknowledged_leases_outlive_kill_9(self):
        with Peers("allocator") as prefix:
            allocator = prefix.start("allocator", allocator_config(prefix))
            granted = {}
            for i in range(6):
                reply = prefix.ok("lease.reserve", {"owner": f"vm-{i}", "key": "k", "wishes": [{"kind": "cid"}, port()]})
                granted[f"vm-{i}"] = reply["leases"]
                if i % 2 == 0:
                    prefix.ok("lease.bind", {"owner": f"vm-{i}"})
                allocator.kill(signal.SIGKILL)
                allocator.start()
            listed = prefix.ok("lease.list", {})["leases"]
            self.assertEqual([(one["id"], one["value"]) for one in listed], [(one["id"], one["value"]) for leases in granted.values() for one in leases])
            self.assertEqual([one["state"] for one in listed], ["bound", "bound", "reserved", "reserved"] * 3)
            # the same key gives the same leases, also after the crash
            again = prefix.ok("lease.reserve", {"owner": "vm-1", "key": "k", "wishes": [{"kind": "cid"}, port()]})
            self.assertEqual([one["id"] for one in again["leases"]], [one["id"] for one in granted["vm-1"]])
            # every grant became one event, although the process died right after its answer
            ids = sorted(one["id"] for leases in granted.values() for one in leases)
            wait_for(lambda: sorted(data["id"] for _, data in prefix.events("lease.granted")) == ids, "one event per grant")

    def test_a_mistyped_configuration_is_refused_with_its_place(self):
        with Peers("allocator") as prefix:
            service = prefix.service("allocator", "[allocator]\nstate_dri = \"/x\"\n").launch()
            self.assertEqual(service.wait(), 78)
            self.assertIn("line 2, column 1: allocator.state_dri: unknown key", service.text())


if __name__ == "__main__":
    unittest.main()
