"""From nothing to a page, and what the mesh costs."""
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from guest import HELLO, GuestMesh
from mesh import BUILD, TOP, alive, free_port, http, processes_of, program, wait_for

ROUNDS = 5


def bar(name, value, unit, limit, peer=None):
    """A limit of a bar with a peer is one of the ratio, otherwise of the value."""
    ratio = None if peer is None else value / peer
    return {"name": name, "value": round(value, 4), "unit": unit, "limit": limit, "peer": None if peer is None else round(peer, 4),
            "ratio": None if ratio is None else round(ratio, 3), "holds": (value if ratio is None else ratio) <= limit}


def page_answers(port):
    try:
        return http(f"http://127.0.0.1:{port}/", timeout=1)[0] == 200
    except OSError:
        return False


def seconds_to_page(port, began):
    wait_for(lambda: page_answers(port), f"the page on port {port}", 300, 0.005)
    return time.monotonic() - began


def guest_of(mesh):
    return wait_for(lambda: [p for p, c in processes_of(f"{mesh.path}/var/lib/dstack/vmm-local/vms/").items() if "qemu-system" in c], "the guest's QEMU", 60)[0]


def deploy_once(mesh, name, *more):
    """Seconds from `dstack deploy` to HTTP 200; the app stays."""
    port = free_port()
    began = time.monotonic()
    client = subprocess.Popen([program("dstack"), "deploy", "-n", name, "-c", HELLO, "--port", f"{port}:80", "--prefix", mesh.path, *more],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        seconds = seconds_to_page(port, began)
    except AssertionError:
        client.kill()
        raise AssertionError(f"{client.communicate()[0]}\n{mesh.logs()}") from None
    if client.wait(120) != 0:
        raise AssertionError(client.stdout.read())
    return seconds, port


class ByHand:
    """The same kernel, initramfs, disks and arguments, started without any of ours: taken from an app without keys
    (key_provider none), so that the guest boots to the same page alone."""

    def __init__(self, mesh):
        _, self.port = deploy_once(mesh, "peer", "--no-kms")
        pid = guest_of(mesh)
        self.command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        self.work = Path(os.readlink(f"/proc/{pid}/cwd"))
        self.copy = Path(tempfile.mkdtemp(prefix="dst-peer-"))
        for path in self.work.iterdir():
            if path.is_file() and path.name != "serial.log":
                shutil.copy2(path, self.copy / path.name)
        mesh.dstack("rm", "peer", "--yes")

    def boot(self):
        port = free_port()
        command = [word.replace(f":{self.port}-", f":{port}-").replace(str(self.work), str(self.copy)) for word in self.command]
        began = time.monotonic()
        qemu = subprocess.Popen(command, cwd=self.copy, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            return seconds_to_page(port, began)
        finally:
            qemu.kill()
            qemu.wait()

    def close(self):
        shutil.rmtree(self.copy, ignore_errors=True)


def bench_deploy(mesh, say):
    peer = ByHand(mesh)
    ours, theirs = [], []
    try:
        for i in range(ROUNDS):
            theirs.append(peer.boot())
            ours.append(deploy_once(mesh, f"bench{i}")[0])
            mesh.dstack("rm", f"bench{i}", "--yes")
            say(f"  deploy {ours[-1]:.2f} s, by hand {theirs[-1]:.2f} s")
    finally:
        peer.close()
    return bar("deploy_to_page", statistics.median(ours), "s", 1.3, statistics.median(theirs))


def proportional_bytes(pid):
    """What the process has resident; a page that n processes share is an n-th of it, so that the sum counts it once."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) * 1024


def bench_mesh(mesh, say):
    times = []
    for _ in range(ROUNDS):
        mesh.down()
        began = time.monotonic()
        mesh.up()
        times.append(time.monotonic() - began)
    wait_for(lambda: any(s["name"] == "kms-local" for s in mesh.status()["services"]), "the KMS runs", 20)
    services = mesh.status()["services"]
    resident = {s["name"]: proportional_bytes(s["pid"]) for s in services}
    say("  " + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in resident.items()) +
        f" MB; with the libraries that they share counted in each: {sum(s['rss_bytes'] for s in services) / 1e6:.0f} MB")
    lists = []
    for _ in range(4 * ROUNDS):
        began = time.monotonic()
        subprocess.run([program("dstack"), "ls", "--prefix", mesh.path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        lists.append(time.monotonic() - began)
    return [bar("mesh_ready", statistics.median(times) * 1000, "ms", 400),
            bar("mesh_resident", sum(resident.values()) / 1e6, "MB", 80),
            bar("dstack_ls", statistics.median(lists) * 1000, "ms", 25)]


def bench_up(prefix, environment):
    began = time.monotonic()
    done = subprocess.run([TOP / "deploy/up", "--prefix", prefix, "--auth-port", "0", "--vmm-port", "0", "--kms-port", "0"], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, env={**os.environ, **environment})
    seconds = time.monotonic() - began
    subprocess.run([program("dstackup"), "dev", "down", "--purge", "--yes", "--quiet", "--prefix", prefix], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        raise AssertionError(f"deploy/up: {done.stdout}{done.stderr}")
    return seconds


def run(quick, say):
    bars = []
    say("spine: the mesh")
    with GuestMesh() as mesh:
        bars += bench_mesh(mesh, say)
        say("spine: deploy against a boot by hand")
        bars.append(bench_deploy(mesh, say))
    say("spine: deploy/up with a finished build")
    with tempfile.TemporaryDirectory(prefix="dst-up-") as folder:
        prefix = f"{folder}/p"
        shutil.copytree(BUILD / "e2e-guest", prefix, symlinks=True)
        bars.append(bar("up_with_finished_build", bench_up(prefix, {"DSTACK_BUILD": str(BUILD)}), "s", 25))
        if not quick:
            say("spine: deploy/up with a build from nothing")
            bars.append(bar("up_with_build", bench_up(f"{folder}/q", {"DSTACK_BUILD": f"{folder}/build", "CCACHE_DISABLE": "1"}), "s", 360))
    return bars
