"""The bus beside its peers: NATS with JetStream, dbus-daemon, a bare append to a file."""
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from mesh import BUILD, TOP, Prefix, free_port, program, wait_for

DRIVERS = BUILD / "bench"
PATIENCE = 600
BATCH = os.environ.get("DSTACK_BENCH_BATCH", "on")


def build_drivers(say):
    """The drivers have a build folder of their own, so that the ordinary build needs neither them nor their packages."""
    subprocess.run([TOP / "deploy/install-packages", "bench"], check=True)
    environment = {**os.environ, "CCACHE_BASEDIR": str(TOP), "CCACHE_NOHASHDIR": "1"}
    if shutil.which("ccache") and "CXX" not in environment:
        environment.update(CC="ccache gcc", CXX="ccache g++")
    if not (DRIVERS / "build.ninja").exists():
        say("bus: configuring the drivers")
        subprocess.run(["meson", "setup", str(DRIVERS), str(TOP), "-Dbench=true"], check=True, stdout=subprocess.DEVNULL, env=environment)
    done = subprocess.run(["ninja", "-C", str(DRIVERS), "bench-drivers"], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise AssertionError(f"the drivers do not build:\n{done.stdout[-4000:]}")


def drive(path, verb, **options):
    """Runs a driver to its end; the object that it prints."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([str(path), verb, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        raise AssertionError(f"{Path(path).name} {verb} {' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout)


class Bus:
    """A real broker in a prefix of its own. A driver is the service after which its executable is named there."""

    def __init__(self, journal=None):
        self.prefix = Prefix()
        self.names = ["allocator", "deployer", "logs"]
        for name in [*self.names, "operator"]:
            shutil.copy2(DRIVERS / "tests/bench/drive_bus", self.prefix.path / name)
        rules = "".join(f'{name} = "exe:{self.prefix.path / name}"\n' for name in self.names)
        self.broker = self.prefix.start("bus", f'[bus]\ndirectory = "{self.prefix.bus}"\njournal = "{journal or self.prefix.state("bus")}/journal.db"\n'
                                        f'max_events = 100000000\n\n[identity.services]\n{rules}')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.broker.stop()
        self.prefix.close()

    def drive(self, verb, name="allocator", **options):
        return drive(self.prefix.path / name, verb, bus=self.prefix.bus, service="" if name == "operator" else name, **options)


class Nats:
    """nats-server with JetStream on file."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="dst-nats-", dir="/tmp"))
        port = free_port()
        self.url = f"nats://127.0.0.1:{port}"
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(self.folder)], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        wait_for(lambda: b"Server is ready" in (self.folder / "log").read_bytes(), "nats-server", 10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def drive(self, verb, **options):
        return drive(DRIVERS / "tests/bench/drive_nats", verb, url=self.url, **options)


def middle(runs, name):
    return statistics.median(run[name] for run in runs)


def bar(name, value, unit, limit, peer=None, least=False, absolute=False):
    """A limit of a bar with a peer is one of the ratio, otherwise (and with `absolute`) of the value; `least`: at least."""
    ratio = None if peer is None else value / peer
    judged = value if ratio is None or absolute else ratio
    return {"name": name, "value": round(value, 4), "unit": unit, "limit": limit, "peer": None if peer is None else round(peer, 4),
            "ratio": None if ratio is None else round(ratio, 3), "holds": judged >= limit if least else judged <= limit}


def bench_publish(quick, say):
    count, rounds = (100_000, 3) if quick else (1_000_000, 3)
    ours, theirs = [], []
    for _ in range(rounds):
        with Nats() as nats:
            theirs.append(nats.drive("publish", warmup=20_000, count=count))
        with Bus() as bus:
            ours.append(bus.drive("publish", warmup=20_000, count=count, batch=BATCH))
            single = bus.drive("publish", count=min(count, 100_000), batch="off")
        say(f"  {ours[-1]['per_second']:.0f}/s p50 {ours[-1]['p50_us']:.0f} p99 {ours[-1]['p99_us']:.0f} us; one event per message {single['per_second']:.0f}/s"
            f" p99 {single['p99_us']:.0f} us; JetStream {theirs[-1]['per_second']:.0f}/s")
    rate, peer = middle(ours, "per_second"), middle(theirs, "per_second")
    return [bar("publish_256", rate, "/s", 120_000, peer, least=True, absolute=True),
            bar("publish_256_to_jetstream", rate, "/s", 0.4, peer, least=True),
            bar("publish_256_p99", middle(ours, "p99_us") / 1000, "ms", 10)]


def run(quick, say):
    build_drivers(say)
    bars = []
    for title, bench in (("publish, acknowledged", bench_publish),):
        say(f"bus: {title}")
        bars += bench(quick, say)
    return bars
