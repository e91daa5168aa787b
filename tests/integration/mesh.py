"""What the integration and end-to-end tests share: real programs in a prefix of their own that is always cleaned up.

    with Prefix() as prefix:
        bus = prefix.start("bus", bus_config(prefix))    # one service, ready when this returns
        ...
    with Mesh() as mesh:                                   # all of them, through dstackup dev up
        mesh.dstack("ls")
"""
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("DSTACK_BUILD", TOP / "build"))
FOLDERS = {"bus": "bus/broker", "dstack": "services/dstack", "dstackup": "services/dstackup"}


def program(name):
    """Path of a built program: "bus" is dstack-bus, "dstack" and "dstackup" are the command lines."""
    folder = BUILD / FOLDERS.get(name, f"services/{name}")
    return folder / (name if name in ("dstack", "dstackup") else f"dstack-{name}")


def wait_for(observe, what, deadline=20.0, interval=0.01):
    """Polls `observe()` until it gives something true, and gives that; AssertionError when the time is over."""
    end = time.monotonic() + deadline
    last = None
    while True:
        try:
            value = observe()
            if value:
                return value
        except (OSError, ValueError, KeyError, AssertionError, urllib.error.URLError) as error:
            last = error
        if time.monotonic() >= end:
            raise AssertionError(f"not within {deadline} s: {what}" + (f" (last: {last!r})" if last else ""))
        time.sleep(interval)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def http(url, body=None, headers=None, timeout=10):
    """(status, bytes). An error status is no exception."""
    request = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def prpc(port, method, arguments=None):
    """Calls a VMM-style API; (status, decoded JSON)."""
    status, body = http(f"http://127.0.0.1:{port}/prpc/{method}?json", json.dumps(arguments or {}).encode(), {"Content-Type": "application/json"})
    return status, json.loads(body or b"null")


def start_time(pid):
    """Clock ticks since boot at which the process began; with the pid that is its identity. None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def alive(pid):
    return start_time(pid) is not None


def processes_of(text):
    """{pid: command line} of the processes whose command line has `text` in it, but not this one's."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            cmdline = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in cmdline and alive(int(entry.name)):
            found[int(entry.name)] = cmdline
    return found


class Notify:
    """The supervisor's end of sd_notify(3)."""

    def __init__(self, path):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.lines = []

    def wait(self, line, deadline, process):
        end = time.monotonic() + deadline
        while line not in self.lines:
            self.socket.settimeout(0.05)
            try:
                self.lines += self.socket.recv(4096).decode(errors="replace").split("\n")
            except TimeoutError:
                if process.poll() is not None:
                    raise AssertionError(f"ended with {process.returncode} before {line}")
                if time.monotonic() > end:
                    raise AssertionError(f"no {line} within {deadline} s")

    def close(self):
        self.socket.close()
        Path(self.path).unlink(missing_ok=True)


class Service:
    """One real process with its configuration, log and readiness."""

    def __init__(self, prefix, name, config, environment=None):
        self.prefix, self.name = prefix, name
        self.config = prefix.path / "etc/dstack" / f"{name}.toml"
        self.log = prefix.path / "var/log/dstack" / f"{name}.log"
        self.environment = environment or {}
        self.process = None
        if config is not None:
            self.config.write_text(config)

    @property
    def pid(self):
        return self.process.pid

    def launch(self):
        """Starts the process and does not wait."""
        self.notify = Notify(self.prefix.path / f"run/{self.name}.notify")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(program(self.name)), "--config", str(self.config)], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env={**os.environ, "NOTIFY_SOCKET": self.notify.path, **self.environment})
        return self

    def start(self, deadline=20):
        self.launch()
        try:
            self.notify.wait("READY=1", deadline, self.process)
        except AssertionError as error:
            raise AssertionError(f"dstack-{self.name}: {error}; its log:\n{self.text()}") from None
        return self

    def text(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self, number=signal.SIGKILL):
        """Ends it and waits for the end; gives the exit code (negative: the signal)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def stop(self, deadline=15):
        return self.kill(signal.SIGTERM) if deadline else None

    def wait(self, deadline=15):
        code = self.process.wait(deadline)
        self.notify.close()
        return code


class Prefix:
    """A temporary prefix; leaving it ends what was started in it, by pid, and removes it (kept with DSTACK_KEEP=1)."""

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="dst-", dir="/tmp"))
        self.services = {}
        for folder in ("etc/dstack", "var/lib/dstack", "var/log/dstack", "run/dstack/bus"):
            (self.path / folder).mkdir(parents=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def bus(self):
        return self.path / "run/dstack/bus"

    def state(self, name):
        folder = self.path / "var/lib/dstack" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def lease_database(self):
        """The lease database: not the one that the installs of this machine share."""
        return Path(os.environ.get("DSTACK_LEASES") or f"{self.path}-host/leases.db")

    def service(self, name, config, environment=None):
        self.services[name] = Service(self, name, config, environment)
        return self.services[name]

    def start(self, name, config, environment=None):
        return self.service(name, config, environment).start()

    def close(self):
        for service in self.services.values():
            if service.process is not None and service.process.poll() is None:
                service.kill()
        # What the services themselves started and left (a guest outlives its VMM): by the prefix in its command line.
        for pid in processes_of(f"{self.path}/"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not os.environ.get("DSTACK_KEEP"):
            shutil.rmtree(self.path, ignore_errors=True)
            shutil.rmtree(f"{self.path}-host", ignore_errors=True)


def bus_config(prefix):
    """The broker's configuration; it knows its peers by their executables."""
    names = ["bus", "auth", "allocator", "logs", "deployer", "kms-supervisor", "vmm-local", "kms-local"]
    rules = "".join(f'{name} = "exe:{program(name)}"\n' for name in names)
    return f'[bus]\ndirectory = "{prefix.bus}"\njournal = "{prefix.state("bus")}/journal.db"\n\n[identity.services]\n{rules}'


class Mesh(Prefix):
    """All services, started by `dstackup dev up` on free ports."""

    def __init__(self, image=None, up=True):
        super().__init__()
        self.auth_port = self.vmm_port = self.kms_port = 0
        if image is not None:
            target = self.path / "var/lib/dstack/images"
            target.mkdir(parents=True)
            (target / Path(image).name).symlink_to(Path(image).resolve())
        if up:
            self.up()

    def dstackup(self, *arguments, check=True, deadline=90):
        done = subprocess.run([str(program("dstackup")), *arguments, "--prefix", str(self.path)], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=deadline, env={**os.environ, "DSTACK_LEASES": str(self.lease_database)})
        if check and done.returncode != 0:
            raise AssertionError(f"dstackup {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}")
        return done

    def up(self, *arguments):
        ports = () if self.vmm_port else ("--auth-port", "0", "--vmm-port", "0", "--kms-port", "0")
        data = json.loads(self.dstackup("dev", "up", "--json", *ports, *arguments).stdout)["data"]
        self.auth_port, self.vmm_port, self.kms_port = data["auth_port"], data["vmm_port"], data["kms_port"]
        return data

    def down(self, *arguments):
        return json.loads(self.dstackup("dev", "down", "--json", *arguments).stdout)["data"]

    def status(self):
        return json.loads(self.dstackup("dev", "status", "--json", check=False).stdout)["data"]

    def of(self, name):
        """The status of one service."""
        return next(service for service in self.status()["services"] if service["name"] == name)

    def dstack(self, *arguments, check=True, deadline=120, input=None):
        """Runs the client against this mesh."""
        done = subprocess.run([str(program("dstack")), *arguments, "--prefix", str(self.path)], input=input or "", capture_output=True, text=True,
                              timeout=deadline)
        if check and done.returncode != 0:
            raise AssertionError(f"dstack {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}")
        return done

    def dstack_json(self, *arguments, **options):
        return json.loads(self.dstack(*arguments, "--json", **options).stdout)

    def events(self, *filters):
        """Every durable event so far, oldest first, as decoded CloudEvents."""
        lines = self.dstack("events", "--from", "0", "--no-follow", "--json", *filters).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def logs(self, lines=15):
        """The end of every service's log, for the message of a failed test."""
        text = ""
        for path in sorted((self.path / "var/log/dstack").glob("*.log")):
            text += f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) + "\n"
        return text

    def close(self):
        subprocess.run([str(program("dstackup")), "dev", "down", "--quiet", "--prefix", str(self.path)], stdin=subprocess.DEVNULL,
                       capture_output=True, timeout=90)
        super().close()


def need(condition, reason):
    """Skips the test class or module when the machine does not have what it takes."""
    if not condition:
        raise unittest.SkipTest(reason)
