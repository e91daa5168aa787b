"""dstack-vmm-local with real QEMU guests: a tiny guest of our own making, the kernel is Debian's cloud kernel."""
import contextlib
import gzip
import hashlib
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import unittest
import urllib.request
from pathlib import Path

from mesh import Prefix, alive, bus_config, free_port, http, need, program, prpc, start_time, wait_for

COMPOSE = json.dumps({"manifest_version": 2, "name": "tiny", "runner": "docker-compose", "docker_compose_file": "services: {}"})
TICK = b"guest tick\n"


def find_kernel(folder):
    """A bzImage: of a built guest image, or out of the kernel package that the image build has downloaded."""
    if os.environ.get("DSTACK_TEST_KERNEL"):
        return Path(os.environ["DSTACK_TEST_KERNEL"])
    for pattern in ("build/guest-image/*/bzImage", "build/guest-image/bzImage"):
        for path in program("dstack").parents[2].parent.glob(pattern):
            return path
    for path in Path("/var/lib/dstack-dev/var/lib/dstack/images").glob("*/bzImage"):
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dstack-guest-image"
    for package in cache.glob("linux-image-*.deb"):
        shown = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder), "--wildcards", "./boot/vmlinuz-*"], input=shown, check=True)
        return next(Path(folder).glob("boot/vmlinuz-*"))
    return None


def ticking_init():
    """A static ELF program that writes a line per second for ever: all the user space that these tests need."""
    base, head = 0x400000, 64 + 56
    code = lambda text, delay: (b"\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\xbe" + struct.pack("<Q", text) + b"\xba" + struct.pack("<I", len(TICK)) + b"\x0f\x05"
                                + b"\xb8\x23\0\0\0\x48\xbf" + struct.pack("<Q", delay) + b"\x31\xf6\x0f\x05")
    size = len(code(0, 0)) + 2
    text = base + head + size
    body = code(text, text + len(TICK))
    body += b"\xeb" + struct.pack("<b", -(len(body) + 2)) + TICK + struct.pack("<QQ", 1, 0)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return elf + struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, head + len(body), head + len(body), 4096) + body


def cpio(files):
    """An initramfs in the `newc` format."""
    out = b""
    for inode, (name, mode, data) in enumerate(files + [("TRAILER!!!", 0, b"")], 1):
        raw = name.encode() + b"\0"
        out += (b"070701" + b"".join(b"%08x" % n for n in (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)) + raw)
        out += bytes(-len(out) % 4) + data + bytes(-len(data) % 4)
    return gzip.compress(out, mtime=0)


def make_image(images, name, kernel, initrd, cmdline="console=ttyS0 quiet panic=-1 no_timer_check"):
    folder = images / name
    folder.mkdir(parents=True)
    (folder / "bzImage").write_bytes(Path(kernel).read_bytes())
    (folder / "initramfs.cpio.gz").write_bytes(initrd)
    (folder / "metadata.json").write_text(json.dumps({"kernel": "bzImage", "initrd": "initramfs.cpio.gz", "cmdline": cmdline, "version": "0.6.0", "shared_ro": True}))
    seal(folder)
    return folder


def seal(folder):
    sums = "".join(f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in ("bzImage", "initramfs.cpio.gz", "metadata.json"))
    (folder / "sha256sum.txt").write_text(sums)
    (folder / "digest.txt").write_text(hashlib.sha256(sums.encode()).hexdigest() + "\n")


class VmmLocal(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        need(program("vmm-local").exists(), "dstack-vmm-local is not built")
        need(any(os.access(f"{folder}/qemu-system-x86_64", os.X_OK) for folder in os.environ["PATH"].split(":")), "qemu-system-x86_64 is not installed")
        cls.prefix = Prefix()
        cls.addClassCleanup(cls.prefix.close)
        kernel = find_kernel(cls.prefix.path)
        need(kernel, "no kernel: build the guest image first, or name a bzImage in DSTACK_TEST_KERNEL")
        cls.images = cls.prefix.path / "var/lib/dstack/images"
        make_image(cls.images, "tiny-0.6.0", kernel, cpio([("init", 0o100755, ticking_init())]))
        make_image(cls.images, "panic-0.6.0", kernel, cpio([("nothing", 0o100644, b"")]))
        make_image(cls.images, "damaged-0.6.0", kernel, cpio([]))
        (cls.images / "damaged-0.6.0/initramfs.cpio.gz").write_bytes(b"other")
        cls.bus = cls.prefix.start("bus", bus_config(cls.prefix))
        cls.port = free_port()
        cls.vmm = cls.prefix.start("vmm-local", cls.config())

    @classmethod
    def config(cls, port=None):
        state = cls.prefix.state("vmm-local")
        return (f'[vmm]\nport = {port or cls.port}\nstate_dir = "{state}"\nimage_dir = "{cls.images}"\nstore_image = ""\n'
                f'[qemu]\naccel = "tcg"\n[cvm]\nshutdown_timeout_ms = 1000\n[auto_restart]\nenabled = false\n[bus]\ndirectory = "{cls.prefix.bus}"\n')

    @property
    def vms(self):
        return self.prefix.state("vmm-local") / "vms"

    def call(self, method, **arguments):
        status, answer = prpc(self.port, method, arguments)
        self.assertEqual(status, 200, answer)
        return answer

    def refused(self, method, **arguments):
        status, answer = prpc(self.port, method, arguments)
        self.assertEqual(status, 400, answer)
        return answer["error"]

    def create(self, **changes):
        request = {"name": "tiny", "image": "tiny-0.6.0", "compose_file": COMPOSE, "vcpu": 1, "memory": 192, **changes}
        vm = self.call("CreateVm", **request)["id"]
        self.addCleanup(self.remove, vm)
        return vm

    def remove(self, vm):
        if self.info(vm):
            self.call("RemoveVm", id=vm)
            wait_for(lambda: self.info(vm) is None, f"VM {vm} gone")

    def info(self, vm):
        return self.call("GetInfo", id=vm)["info"]

    def pid(self, vm):
        return int((self.vms / vm / "qemu.pid").read_text().split()[0])

    def serial(self, vm):
        return (self.vms / vm / "serial.log").read_bytes()

    def ticks(self, vm, more_than=0):
        return wait_for(lambda: self.serial(vm).count(b"guest tick") > more_than and self.serial(vm).count(b"guest tick"), "the guest ticks", 150)

    def journal(self, vm):
        """What is durable in the broker: [(type, data)], oldest first."""
        with contextlib.closing(sqlite3.connect(f"file:{self.prefix.state('bus')}/journal.db?mode=ro", uri=True)) as journal:
            rows = journal.execute("SELECT type, envelope FROM events WHERE subject = ? ORDER BY sequence", (vm,)).fetchall()
        return [(kind, json.loads(envelope)["data"]) for kind, envelope in rows]

    def events(self, vm):
        return [kind for kind, _ in self.journal(vm)]

    def host_api(self, vm):
        config = json.loads((self.vms / vm / "shared/.sys-config.json").read_text())
        return config["host_api_url"].replace("10.0.2.2", "127.0.0.1")

    def notify(self, vm, event, payload):
        return http(self.host_api(vm) + "/Notify?json", json.dumps({"event": event, "payload": payload}).encode())

    def test_a_guest_outlives_its_vmm_and_is_adopted(self):
        vm = self.create()
        self.assertEqual(self.info(vm)["status"], "running")
        before = self.ticks(vm)
        self.assertEqual(self.notify(vm, "boot.progress", "starting containers"), (200, b"null"))
        pid, began, url = self.pid(vm), start_time(self.pid(vm)), self.host_api(vm)
        self.vmm.kill()
        self.ticks(vm, before)  # it runs on with nobody there
        self.assertEqual(start_time(pid), began)
        self.vmm.start()
        info = self.info(vm)
        self.assertEqual((info["status"], info["boot_progress"]), ("running", "starting containers"))
        self.assertEqual((self.pid(vm), start_time(pid)), (pid, began))
        wait_for(lambda: http(url + "/Info?json")[0] == 200, "the same host API address answers")
        self.assertEqual(self.notify(vm, "boot.progress", "done")[0], 200)
        self.assertEqual(self.info(vm)["boot_progress"], "done")
        self.call("StopVm", id=vm)
        self.assertFalse(alive(pid))
        self.assertEqual(self.info(vm)["status"], "stopped")
        wait_for(lambda: "vm.stopped" in self.events(vm), "the story is told")
        self.assertEqual(self.events(vm), ["vm.created", "vm.started", "vm.boot_progress", "vm.adopted", "vm.boot_progress", "vm.ready",
                                           "vm.stopping", "vm.stopped"])
        self.call("StartVm", id=vm)
        self.assertNotEqual(self.pid(vm), pid)
        self.assertEqual(self.info(vm)["status"], "running")

    def test_what_a_request_causes_carries_its_trace(self):
        trace = "0af7651916cd43dd8448eb211c80319c"
        header = {"Content-Type": "application/json", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        request = {"name": "tiny", "image": "tiny-0.6.0", "compose_file": COMPOSE, "vcpu": 1, "memory": 192}
        status, answer = http(f"http://127.0.0.1:{self.port}/prpc/CreateVm?json", json.dumps(request).encode(), header, timeout=60)
        self.assertEqual(status, 200, answer)
        vm = json.loads(answer)["id"]
        self.addCleanup(self.remove, vm)
        self.assertEqual(self.notify(vm, "boot.progress", "done")[0], 200)
        self.assertEqual(self.notify(vm, "boot.error", "later, of its own")[0], 200)
        wait_for(lambda: "vm.boot_error" in self.events(vm), "the story is told")
        with contextlib.closing(sqlite3.connect(f"file:{self.prefix.state('bus')}/journal.db?mode=ro", uri=True)) as journal:
            rows = journal.execute("SELECT type, envelope FROM events WHERE subject = ? ORDER BY sequence", (vm,)).fetchall()
        traced = {kind: json.loads(envelope).get("traceparent", "")[3:35] for kind, envelope in rows}
        self.assertEqual(traced, {"vm.created": trace, "vm.started": trace, "vm.boot_progress": trace, "vm.ready": trace, "vm.boot_error": ""})

    def test_a_guest_that_died_with_nobody_there_has_exited(self):
        vm = self.create()
        pid = self.pid(vm)
        self.vmm.kill()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), "qemu ends")
        self.vmm.start()
        wait_for(lambda: self.info(vm)["status"] == "exited", "the exit is noticed")
        wait_for(lambda: "vm.exited" in self.events(vm), "and said")
        self.assertNotIn("vm.adopted", self.events(vm))

    def test_a_panic_is_an_exit_with_its_reason_and_last_lines(self):
        vm = self.create(image="panic-0.6.0")
        wait_for(lambda: self.info(vm)["status"] == "exited", "the guest panics", 150)
        wait_for(lambda: "vm.exited" in self.events(vm), "and the exit is said")
        data = dict(self.journal(vm))["vm.exited"]
        self.assertTrue(data["reason"].startswith("kernel panic: "), data)
        self.assertFalse(data["will_restart"])
        self.assertTrue(any("Kernel panic - not syncing" in line for line in data["last_lines"]), data)

    def test_remove_leaves_nothing(self):
        vm = self.create()
        pid = self.pid(vm)
        self.assertIsNone(self.call("RemoveVm", id=vm))
        self.assertIsNone(self.call("RemoveVm", id=vm) if self.info(vm) else None)
        wait_for(lambda: self.info(vm) is None, "VM gone")
        self.assertFalse(alive(pid))
        self.assertFalse((self.vms / vm).exists())
        self.assertEqual([p.name for p in self.vms.iterdir() if p.name.startswith(".")], [])
        self.assertEqual(self.refused("RemoveVm", id=vm), "Failed to remove VM: VM not found")

    def test_what_a_crash_left_half_made_is_gone_and_what_it_left_half_removed_too(self):
        vm = self.create()
        pid = self.pid(vm)
        self.vmm.kill()
        (self.vms / ".new-half/shared").mkdir(parents=True)
        (self.vms / ".gone-half").mkdir()
        (self.vms / vm / ".removing").write_text("")
        self.vmm.start()
        wait_for(lambda: self.info(vm) is None, "the removal goes on")
        self.assertFalse(alive(pid))
        self.assertEqual(list(self.vms.iterdir()), [])

    def test_the_guest_reads_what_it_needs_from_the_share(self):
        vm = self.create(app_id="00" * 20, user_config="hello")
        share = self.vms / vm / "shared"
        self.assertEqual((share / "app-compose.json").read_text(), COMPOSE)
        config = json.loads((share / ".sys-config.json").read_text())
        self.assertTrue(config["host_api_url"].startswith("http://10.0.2.2:"))
        self.assertEqual(json.loads(config["vm_config"])["os_image_hash"], (self.images / "tiny-0.6.0/digest.txt").read_text().strip())
        simulator = json.loads((share / ".tee-simulator.json").read_text())
        statement = json.loads(simulator["statement"])
        instance = json.loads((share / ".instance_info").read_text())
        self.assertEqual(statement["compose_hash"], hashlib.sha256(COMPOSE.encode()).hexdigest())
        self.assertEqual((statement["vm_id"], statement["instance_id"]), (vm, instance["instance_id"]))
        expected = hashlib.sha256(bytes.fromhex(instance["instance_id_seed"] + "00" * 20)).hexdigest()[:40]
        self.assertEqual(instance["instance_id"], expected)
        state = self.prefix.state("vmm-local")
        self.assertEqual((state / "tee-host.seed").stat().st_mode & 0o777, 0o600)
        self.assertEqual(len((state / "tee-host.pub").read_text().strip()), 64)
        image = (self.vms / vm / "shared.img").read_bytes()
        self.assertIn(COMPOSE.encode(), image)
        self.assertIn(b"DSTACKSHR", image)

    def test_the_host_api_takes_only_what_this_guest_says(self):
        vm, other = self.create(), self.create(name="other")
        url = self.host_api(vm)
        secret = url.rsplit("/", 2)[1]
        self.assertEqual(http(url.replace(secret, "0" * 32) + "/Notify?json", b"{}")[0], 404)
        self.assertEqual(http(url.replace(f"/{secret}", "") + "/Notify?json", b"{}")[0], 404)
        crossed = url.replace(secret, self.host_api(other).rsplit("/", 2)[1])
        self.assertEqual(http(crossed + "/Notify?json", b"{}")[0], 404)
        self.assertEqual(http(url + "/Notify?json", b"x" * 5000)[0], 400)
        self.assertEqual(http(url + "/Notify?json", b"no json")[0], 400)
        self.assertEqual(self.notify(vm, "what.ever", "x")[0], 200)
        wait_for(lambda: self.events(vm).count("vm.notify_refused") == 3, "each refusal is an event")
        self.assertEqual(self.notify(vm, "boot.error", "no keys for you")[0], 200)
        self.assertEqual(self.info(vm)["boot_error"], "no keys for you")
        wait_for(lambda: "vm.boot_error" in self.events(vm), "the boot error is an event")
        info = json.loads(http(url + "/Info?json")[1])
        self.assertEqual(info["name"], "dstack VMM")

    def test_a_guest_that_ignores_the_power_down_is_said_so(self):
        vm = self.create()
        self.assertIsNone(self.call("ShutdownVm", id=vm))
        wait_for(lambda: "did not power off" in self.info(vm)["shutdown_progress"], "the deadline is reported")
        self.assertEqual(self.info(vm)["status"], "running")
        self.assertEqual(self.refused("ShutdownVm", id="nobody"), "vm not found")

    def test_bad_requests_leave_nothing(self):
        good = {"name": "x", "image": "tiny-0.6.0", "compose_file": COMPOSE, "vcpu": 1, "memory": 192}
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            for change, text in [({"name": "a/b"}, "Invalid name: a/b"),
                                 ({"image": "nothing"}, "Failed to load VM: Failed to load image: no image 'nothing'"),
                                 ({"image": "../x"}, "Failed to load VM: Invalid image name"),
                                 ({"image": "damaged-0.6.0"}, "does not have the checksum"),
                                 ({"compose_file": "services:"}, "invalid app compose JSON"),
                                 ({"compose_file": "{}"}, "Failed to load VM: Invalid compose file: missing field"),
                                 ({"ports": [{"protocol": "tcp", "host_port": 70000, "vm_port": 80}]}, "Invalid host port"),
                                 ({"ports": [{"protocol": "tcp", "host_port": port, "vm_port": 80}]}, f"host port tcp 127.0.0.1:{port} is already in use"),
                                 ({"vcpu": -1}, "invalid value for `vcpu`")]:
                with self.subTest(change):
                    self.assertIn(text, self.refused("CreateVm", **{**good, **change}))
        self.assertEqual(list(self.vms.iterdir()), [])
        self.assertEqual(self.call("Status")["total"], 0)
        self.assertEqual(self.refused("Nothing"), "Service not found: Nothing")
        self.assertIn("binary", json.loads(http(f"http://127.0.0.1:{self.port}/prpc/Status", b"\x08\x01", {"Content-Type": "application/octet-stream"})[1])["error"])

    def test_host_ports_of_stopped_vms_stay_taken(self):
        port = free_port()
        ports = [{"protocol": "tcp", "host_port": port, "vm_port": 80}]
        vm = self.create(ports=ports, stopped=True)
        self.assertEqual(self.info(vm)["status"], "stopped")
        error = self.refused("CreateVm", name="y", image="tiny-0.6.0", compose_file=COMPOSE, ports=ports)
        self.assertEqual(error, f"host port mapping conflicts with VM {vm}: tcp 127.0.0.1:{port}")

    def test_a_callers_id_makes_create_idempotent(self):
        chosen = {"vm_id": "my-vm", "stopped": True}
        self.assertEqual(self.create(**chosen), "my-vm")
        self.assertEqual(self.create(**chosen), "my-vm")
        self.assertIn("another definition", self.refused("CreateVm", name="other", image="tiny-0.6.0", compose_file=COMPOSE, **chosen))

    def test_reading(self):
        vm = self.create(name="reader", stopped=True)
        base = f"http://127.0.0.1:{self.port}/prpc"
        for url in (f"{base}/Teepod.GetInfo?id={vm}", f"{base}/Vmm.GetInfo?id={vm}", f"{base}/GetInfo?id={vm}"):
            self.assertEqual(json.loads(http(url)[1])["info"]["name"], "reader")
        status = self.call("Status", keyword="reader")
        self.assertEqual(status["vms"][0]["configuration"]["compose_file"], COMPOSE)
        self.assertIsNone(self.call("Status", ids=[vm], brief=True)["vms"][0]["configuration"])
        self.assertEqual(self.call("Status", keyword="nobody")["total"], 0)
        self.assertEqual({image["name"] for image in self.call("ListImages")["images"]}, {"tiny-0.6.0", "panic-0.6.0", "damaged-0.6.0"})
        self.assertEqual(self.call("GetComposeHash", name="n", compose_file=COMPOSE)["hash"], hashlib.sha256(COMPOSE.encode()).hexdigest())
        self.assertIn("version", self.call("Version"))
        self.assertEqual(self.call("GetMeta")["networking"]["supported_modes"], ["user"])
        self.assertEqual(self.call("ReloadVms"), {"loaded": 0, "updated": 0, "removed": 0})
        self.assertEqual(self.call("GetInfo", id="nobody"), {"found": False, "info": None})

    def test_logs(self):
        vm = self.create()
        self.ticks(vm)
        base = f"http://127.0.0.1:{self.port}/logs"
        status, body = http(f"{base}?id={vm}&lines=2")
        self.assertEqual(status, 200)
        self.assertIn(body.count(b"\n"), (1, 2))  # the guest may be in the middle of a line
        self.assertEqual(http(f"{base}?id={vm}&ch=stdout"), (200, b""))
        self.assertEqual(http(f"{base}?id={vm}&ch=x")[0], 400)
        self.assertEqual(http(base)[0], 422)
        self.assertEqual(http(f"{base}?id=nobody"), (404, b"VM not found"))
        with urllib.request.urlopen(f"{base}?id={vm}&lines=0&follow=true", timeout=30) as stream:
            self.assertIn(b"guest tick", stream.readline())

    def test_a_full_disk_is_one_clear_error(self):
        need(os.geteuid() == 0, "mounting a small file system needs root")
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(self.vms)], capture_output=True)
        need(mounted.returncode == 0, "mounting is not permitted here")
        try:
            big = json.dumps({**json.loads(COMPOSE), "pad": "x" * 1_000_000})
            error = self.refused("CreateVm", name="x", image="tiny-0.6.0", compose_file=big, vcpu=1, memory=192)
            self.assertTrue(error.startswith("No space left on device: the VM was not created"), error)
            self.assertEqual(list(self.vms.iterdir()), [])
        finally:
            subprocess.run(["umount", str(self.vms)], check=True)

    def test_two_vmms_do_not_share_a_state_directory(self):
        config = self.prefix.path / "etc/dstack/second.toml"
        config.write_text(self.config(free_port()))
        second = subprocess.run([str(program("vmm-local")), "--config", str(config)], capture_output=True, text=True, timeout=30)
        self.assertEqual(second.returncode, 70)
        self.assertIn("another dstack-vmm-local uses", second.stderr)


if __name__ == "__main__":
    unittest.main()
