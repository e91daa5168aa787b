"""A mesh whose prefix has the guest image and the busybox image, and what the tests look at in it."""
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))
from mesh import BUILD, TOP, Mesh, need, processes_of

HELLO = TOP / "docs/examples/hello/docker-compose.yaml"
IMAGE = "dstack-dev-0.6.0"
SLOW = 300  # seconds: an emulated guest on a busy machine


def guest_files():
    """A folder like a prefix with images/ and oci/, made once per build tree."""
    need(shutil.which("qemu-system-x86_64"), "qemu-system-x86 is not installed")
    need(shutil.which("mksquashfs"), "squashfs-tools is not installed")
    folder = BUILD / "e2e-guest"
    done = subprocess.run([TOP / "deploy/guest-image-if-changed", folder], capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DSTACK_BUILD": str(BUILD), "HOME": str(Path.home())})
    if done.returncode != 0:
        raise AssertionError(f"the guest image was not built:\n{done.stdout}{done.stderr}")
    return folder / "var/lib/dstack"


class GuestMesh(Mesh):
    def __init__(self, variants=(), disk_mib=0):
        """`variants`: functions that add guest images to the folder they get. `disk_mib`: the prefix is a disk of this size."""
        files = guest_files()
        super().__init__(up=False)
        self.mounted = bool(disk_mib)
        if disk_mib:
            mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m,mode=755", "dstack-e2e", self.path], capture_output=True, text=True)
            if mounted.returncode != 0:
                self.mounted = False
                self.close()
                need(False, f"cannot mount a small file system: {mounted.stderr.strip()}")
            for folder in ("etc/dstack", "var/lib/dstack", "var/log/dstack", "run/dstack/bus"):
                (self.path / folder).mkdir(parents=True)
        for name in ("images", "oci"):
            shutil.copytree(files / name, self.path / "var/lib/dstack" / name, symlinks=True)
        for add in variants:
            add(self.path / "var/lib/dstack/images")
        self.up()

    def close(self):
        super().close()
        if self.mounted:
            subprocess.run(["umount", "-l", self.path], capture_output=True)
            shutil.rmtree(self.path, ignore_errors=True)  # what lay under the mount

    def guests(self):
        """The QEMU processes of this mesh' VMs; the VMM's probes are no guests."""
        return [pid for pid, cmdline in processes_of(f"{self.path}/var/lib/dstack/vmm-local/vms/").items() if "qemu-system" in cmdline]

    def apps(self):
        return self.dstack_json("ls")["data"]["apps"]

    def leases(self):
        return self.dstack_json("leases")["data"]["leases"]

    def allowed(self):
        """Compose hashes that the policy allows."""
        apps = json.loads((self.path / "etc/dstack/auth-allowlist.json").read_text())["apps"]
        return [compose_hash for app in apps.values() for compose_hash in app["composeHashes"]]

    def left(self):
        """What a deploy that failed should not have left."""
        vms = self.path / "var/lib/dstack/vmm-local/vms"
        return {"leases": self.leases(), "allowed": self.allowed(), "apps": self.apps(), "guests": self.guests(),
                "vms": [vm.name for vm in vms.iterdir()] if vms.exists() else []}


NOTHING = {"leases": [], "allowed": [], "apps": [], "guests": [], "vms": []}


def image_variant(name, cmdline=lambda text: text, rootfs=None):
    """Adds a copy of the guest image with another kernel command line or root file system (bytes to bytes), its checksums made anew."""

    def add(images):
        folder = images / name
        shutil.copytree(images / IMAGE, folder)
        metadata = json.loads((folder / "metadata.json").read_text())
        metadata["cmdline"] = cmdline(metadata["cmdline"])
        (folder / "metadata.json").write_text(json.dumps(metadata))
        files = ("bzImage", "initramfs.cpio.gz", "metadata.json")
        sums = "".join(f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in files)
        (folder / "sha256sum.txt").write_text(sums)
        (folder / "digest.txt").write_text(hashlib.sha256(sums.encode()).hexdigest() + "\n")
        if rootfs is not None:
            disk = folder / metadata["rootfs"]
            disk.write_bytes(rootfs(disk.read_bytes()))

    return add


def own_mounts():
    """From here on what this process mounts is seen by it and its children only, and gone with the last of them."""
    need(os.geteuid() == 0, "only root may mount a small file system")
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newns = 0x00020000
    if libc.unshare(clone_newns) != 0:
        need(False, f"no mount namespace of its own: {os.strerror(ctypes.get_errno())}")
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True)
    need(done.returncode == 0, f"no private mounts: {done.stderr.strip()}")


class Refusals:
    """For a TestCase with `mesh`: a deploy that must fail says so once, gives everything back, and is an event."""

    def refused(self, code, *arguments, name="app", compose=HELLO, port="auto:80", words=(), left=NOTHING, timeout="120s", recorded=True):
        """stderr of the failed deploy. `words` must be in its error."""
        done = self.mesh.dstack("deploy", "-n", name, "-c", str(compose), "--port", port, "--timeout", timeout, *arguments, check=False, deadline=SLOW)
        everything = done.stdout + done.stderr + self.mesh.logs()
        self.assertEqual(done.returncode, code, everything)
        self.assertEqual(done.stdout, "")
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, done.stderr)
        message = errors[0].removeprefix("error: ")
        self.assertEqual(message[0], message[0].lower())
        for word in words:
            self.assertIn(word, message)
        after = lines[lines.index(errors[0]) + 1:]
        self.assertLessEqual(len(after), 1, "the error is followed by its hint and nothing else\n" + done.stderr)
        self.assertTrue(code == 2 or after, "without a hint only when the error says what is wrong with what was given\n" + done.stderr)
        self.assertTrue(all(line.startswith("hint: ") for line in after), done.stderr)
        self.assertEqual(self.mesh.left(), left)
        if recorded:
            self.assert_recorded(name, message)
        return done.stderr

    def assert_recorded(self, name, message):
        failed = self.mesh.events("--type", "deploy.failed")[-1]
        self.assertEqual(failed["subject"], name)
        self.assertIn(failed["data"]["reason"], message)
