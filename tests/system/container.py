"""A Debian root file system of this machine's release, booted with systemd as PID 1, with the built tree installed in it.

The root is made once by mmdebstrap from the machine's own package sources and kept below the build folder; each container
is an overlay over it, so nothing that a test does is left.
"""
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))
from mesh import BUILD, TOP, need, program, wait_for

DAEMONS = ["bus", "auth", "allocator", "kms-supervisor", "logs", "deployer", "vmm-local", "kms-local"]
SYSTEM = ["systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "procps", "passwd", "util-linux", "curl", "qemu-system-x86", "qemu-utils"]
ROOT_DEADLINE = 600


def sources():
    """The files with which this machine's apt knows its mirror."""
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list")), *sorted(folder.glob("sources.list.d/*.sources"))]
    return [file for file in files if file.is_file() and re.search(r"^\s*(deb\s|Types:)", file.read_text(), re.M)]


def codename():
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    return ""


def libraries():
    """The packages of the shared libraries that the programs link."""
    paths = set()
    for name in [*DAEMONS, "dstack", "dstackup"]:
        linked = subprocess.run(["ldd", program(name)], capture_output=True, text=True, check=True).stdout
        paths.update(os.path.realpath(path) for path in re.findall(r"=> (/\S+)", linked))
    # Files below /usr/lib are listed under the name that their package gave them, which may be /lib.
    asked = sorted(paths | {path.removeprefix("/usr") for path in paths})
    owners = subprocess.run(["dpkg-query", "-S", *asked], capture_output=True, text=True).stdout
    packages = set(re.findall(r"^([a-z0-9.+-]+)(?::\w+)?: /", owners, re.M))
    return sorted(packages)


def base():
    """The root file system, made when it is not there yet."""
    need(os.geteuid() == 0, "needs root")
    need(shutil.which("systemd-nspawn"), "systemd-container is not installed (deploy/install-packages test)")
    for group in ("systemd", "unified"):
        need(os.access(f"/sys/fs/cgroup/{group}", os.W_OK) or Path("/sys/fs/cgroup/cgroup.procs").exists(), "no control groups to write to")
    packages = SYSTEM + libraries()
    key = hashlib.sha256(" ".join([codename(), *packages]).encode()).hexdigest()[:12]
    folder = BUILD / "system-root"
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / key
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.is_dir():
            return root
        need(shutil.which("mmdebstrap"), "mmdebstrap is not installed (deploy/install-packages test)")
        need(sources() and codename(), "this machine has no apt sources to make a root file system from")
        for old in folder.glob("*/"):
            if not old.name.startswith("run-"):
                shutil.rmtree(old)
        fresh = folder / f"{key}.new"
        made = subprocess.run(["mmdebstrap", "--quiet", "--variant=apt", "--aptopt=Apt::Install-Recommends false", f"--include={','.join(packages)}", codename(), fresh, *sources()],
                              capture_output=True, text=True, timeout=ROOT_DEADLINE)
        if made.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            need(False, "no root file system could be made: " + (made.stderr.strip().splitlines() or ["mmdebstrap failed"])[-1])
        fresh.rename(root)
    return root


def sweep():
    """What a run that was killed has left: its mount and its files."""
    for left in (BUILD / "system-root").glob("run-*"):
        if not Path(f"/proc/{left.name.removeprefix('run-')}").exists():
            subprocess.run(["umount", left / "root"], capture_output=True)
            if not os.path.ismount(left / "root"):
                shutil.rmtree(left, ignore_errors=True)


class Container:
    """Booted when the constructor returns; `close` powers it off and removes what it wrote."""

    def __init__(self, binds=()):
        root = base()
        self.name = f"dstack-{os.getpid()}"
        self.work = BUILD / "system-root" / f"run-{os.getpid()}"
        sweep()
        self.work.mkdir()
        self.process = self.leader = None
        self.groups = []
        try:
            self._start(root, binds)
        except BaseException:
            self.close()
            raise

    def _start(self, root, binds):
        tree, upper, work, merged = (self.work / name for name in ("tree", "upper", "work", "root"))
        for folder in (tree, upper, work, merged):
            folder.mkdir()
        subprocess.run(["meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", tree], check=True, capture_output=True)
        mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={tree}:{root},upperdir={upper},workdir={work}", merged], capture_output=True, text=True)
        need(mounted.returncode == 0, f"no overlay file system here: {mounted.stderr.strip()}")
        command = ["systemd-nspawn", "-q", "--register=no", "--keep-unit", "-M", self.name, "-D", str(merged), "--private-network", "--link-journal=no",
                   "--capability=all", "--system-call-filter=bpf", "--console=pipe", *[f"--bind-ro={source}:{target}" for source, target in binds],
                   "-b", "systemd.show_status=0", "quiet"]
        # A control group of its own, so that the container's systemd is at the root of what it sees.
        join = ""
        for controller in ("systemd", "unified"):
            if Path(f"/sys/fs/cgroup/{controller}/cgroup.procs").exists():
                group = Path(f"/sys/fs/cgroup/{controller}/{self.name}")
                group.mkdir()
                self.groups.append(group)
                join += f"echo $$ > {group}/cgroup.procs; "
        self.log = open(self.work / "console", "wb")
        self.process = subprocess.Popen(["bash", "-c", join + 'exec setpriv --pdeathsig KILL "$@"', "bash", *command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}, start_new_session=True)
        self.leader = wait_for(self._find_leader, "the container has a first process", 30)
        wait_for(lambda: self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded"), "the container has booted", 60, 0.1)

    def _find_leader(self):
        if self.process.poll() is not None:
            raise RuntimeError("systemd-nspawn ended: " + (self.work / "console").read_text(errors="replace")[-2000:])
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return None

    def run(self, *command, check=True, deadline=60, user=None):
        """Runs a command in the container; CompletedProcess with text."""
        words = ["nsenter", "-t", str(self.leader), "-a", "--", "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        if user:
            words += ["runuser", "-u", user, "--"]
        done = subprocess.run([*words, *map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=deadline)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def write(self, path, text):
        done = subprocess.run(["nsenter", "-t", str(self.leader), "-a", "--", "sh", "-c", 'mkdir -p "$(dirname "$1")" && cat > "$1"', "sh", path], input=text, text=True, capture_output=True, timeout=30)
        if done.returncode != 0:
            raise AssertionError(f"write {path}: {done.stderr}")

    def show(self, unit, *names):
        """{property: value} of a unit."""
        out = self.run("systemctl", "show", unit, "-p", ",".join(names)).stdout
        return dict(line.partition("=")[::2] for line in out.splitlines())

    def journal(self, lines=40):
        """The newest lines of the daemons and of the manager about them: for messages of failures."""
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic", "-n", str(lines), "-u", "dstack*", check=False).stdout

    def close(self):
        if self.leader and self.process.poll() is None:
            self.run("systemctl", "--no-block", "poweroff", check=False)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.process:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            self.log.close()
        for group in self.groups:
            deadline = time.monotonic() + 10
            while group.exists() and time.monotonic() < deadline:
                subprocess.run(["find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"], capture_output=True)
                if group.exists():
                    time.sleep(0.05)
        subprocess.run(["umount", self.work / "root"], capture_output=True)
        if not os.path.ismount(self.work / "root"):
            shutil.rmtree(self.work, ignore_errors=True)
