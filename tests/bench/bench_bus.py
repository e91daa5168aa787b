"""The bus beside its peers: NATS with JetStream, dbus-daemon, a bare append to a file."""
import json
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from mesh import BUILD, TOP, Prefix, free_port, wait_for

DRIVERS = BUILD / "bench"
PATIENCE = 600
ROUNDS = 3


def build_drivers(say):
    """The drivers have a build folder of their own, so that the ordinary build needs neither them nor their packages."""
    subprocess.run([TOP / "deploy/install-packages", "bench"], check=True)
    environment = {**os.environ, "CCACHE_BASEDIR": str(TOP), "CCACHE_NOHASHDIR": "1"}
    if shutil.which("ccache") and "CXX" not in environment:
        environment.update(CC="ccache gcc", CXX="ccache g++")
    if not (DRIVERS / "build.ninja").exists():
        say("bus: configuring the drivers")
        subprocess.run(["meson", "setup", str(DRIVERS), str(TOP), "-Dbench=true", "-Doptimization=2"], check=True, stdout=subprocess.DEVNULL, env=environment)
    done = subprocess.run(["ninja", "-C", str(DRIVERS), "bench-drivers"], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise AssertionError(f"the drivers do not build:\n{done.stdout[-4000:]}")


def words(options):
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def drive(path, verb, **options):
    """Runs a driver to its end; the object that it prints."""
    return Driver(path, verb, ready=False, **options).result()


class Driver:
    """A driver that runs beside others; it is ready when this returns."""

    def __init__(self, path, verb, ready=True, **options):
        self.what = f"{Path(path).name} {verb} {' '.join(words(options))}"
        self.process = subprocess.Popen([str(path), verb, *words(options)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if ready and self.process.stdout.readline() != "ready\n":
            raise AssertionError(f"{self.what}: {self.process.communicate()[1]}")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        ended = self.process.poll()
        self.process.kill()
        told = self.process.communicate()[1]
        if kind is None and ended:
            raise AssertionError(f"{self.what}: ended before its time: {told}")

    def result(self):
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{self.what}: not done within {PATIENCE} s") from None
        if self.process.returncode != 0:
            raise AssertionError(f"{self.what}: {err}")
        return json.loads(out)


class Bus:
    """A real broker in a prefix of its own. A driver is the service after which its executable is named there."""

    def __init__(self):
        self.prefix = Prefix()
        self.names = ["allocator", "deployer", "logs"]
        for name in [*self.names, "operator"]:
            shutil.copy2(DRIVERS / "tests/bench/drive_bus", self.prefix.path / name)
        rules = "".join(f'{name} = "exe:{self.prefix.path / name}"\n' for name in self.names)
        self.journal = self.prefix.state("bus") / "journal.db"
        self.broker = self.prefix.start("bus", f'[bus]\ndirectory = "{self.prefix.bus}"\njournal = "{self.journal}"\nmax_events = 1000000000\n\n'
                                        f"[identity.services]\n{rules}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.broker.stop()
        self.prefix.close()

    def options(self, name):
        return {"bus": self.prefix.bus, "service": "" if name == "operator" else name}

    def drive(self, verb, name="allocator", **options):
        return drive(self.prefix.path / name, verb, **self.options(name), **options)

    def beside(self, verb, name="operator", **options):
        return Driver(self.prefix.path / name, verb, **self.options(name), **options)


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

    def beside(self, verb, **options):
        return Driver(DRIVERS / "tests/bench/drive_nats", verb, url=self.url, **options)


class Dbus:
    """dbus-daemon as a session bus of its own."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="dst-dbus-", dir="/tmp"))
        self.address = f"unix:path={self.folder}/socket"
        (self.folder / "config").write_text(
            '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">'
            f'<busconfig><type>session</type><listen>{self.address}</listen><auth>EXTERNAL</auth><policy context="default"><allow send_destination="*"/>'
            '<allow eavesdrop="false"/><allow own="*"/></policy></busconfig>')
        self.process = subprocess.Popen(["dbus-daemon", "--nofork", f"--config-file={self.folder}/config"], stdin=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        wait_for((self.folder / "socket").exists, "dbus-daemon", 10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def drive(self, verb, **options):
        return drive(DRIVERS / "tests/bench/drive_dbus", verb, address=self.address, **options)

    def beside(self, verb, **options):
        return Driver(DRIVERS / "tests/bench/drive_dbus", verb, address=self.address, **options)


def middle(runs, name):
    return statistics.median(run[name] for run in runs)


def cpu_seconds(pid):
    """What the process has used so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    """(Rss, Pss) in MB: as ps shows it, and with pages that others share counted in part."""
    sizes = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return tuple(int(sizes[name].split()[0]) * 1024 / 1e6 for name in ("Rss", "Pss"))


def resident_idle(pid):
    """The same, once it does not change any more: idle, not just started."""
    seen = []

    def settled():
        seen.append(resident(pid)[0])
        return len(seen) > 1 and seen[-1] == seen[-2]

    wait_for(settled, "the resident memory of an idle process stays the same", 20, 0.5)
    return resident(pid)


def bar(name, value, unit, limit, peer=None, least=False, absolute=False):
    """A limit of a bar with a peer is one of the ratio, otherwise (and with `absolute`) of the value; `least`: at least."""
    ratio = None if peer is None else value / peer
    judged = value if ratio is None or absolute else ratio
    return {"name": name, "value": round(value, 4), "unit": unit, "limit": limit, "peer": None if peer is None else round(peer, 4),
            "ratio": None if ratio is None else round(ratio, 3), "holds": judged >= limit if least else judged <= limit}


def bench_publish(quick, say):
    """Also what the broker has resident, before and after."""
    count = 100_000 if quick else 1_000_000
    ours, theirs, idle, loaded, peer_idle, peer_loaded = [], [], [], [], [], []
    for _ in range(ROUNDS):
        with Nats() as nats:
            peer_idle.append(resident_idle(nats.process.pid)[0])
            theirs.append(nats.drive("publish", warmup=20_000, count=count))
            peer_loaded.append(resident(nats.process.pid)[0])
        with Bus() as bus:
            idle.append(resident_idle(bus.broker.pid))
            ours.append(bus.drive("publish", warmup=20_000, count=count))
            loaded.append(resident(bus.broker.pid))
            single = bus.drive("publish", count=min(count, 100_000), batch="off")
        say(f"  {ours[-1]['per_second']:.0f}/s, p50 {ours[-1]['p50_us']:.0f} p99 {ours[-1]['p99_us']:.0f} max {ours[-1]['max_us']:.0f} us; one event per message"
            f" {single['per_second']:.0f}/s, p99 {single['p99_us']:.0f} us; JetStream {theirs[-1]['per_second']:.0f}/s")
        say(f"  resident: Rss {idle[-1][0]:.1f} Pss {idle[-1][1]:.1f} MB idle, {loaded[-1][0]:.1f} {loaded[-1][1]:.1f} MB after {count + 20_000} events;"
            f" nats-server Rss {peer_idle[-1]:.1f}, {peer_loaded[-1]:.1f} MB")
    rate, peer = middle(ours, "per_second"), middle(theirs, "per_second")
    return [bar("publish_256", rate, "/s", 120_000, peer, least=True, absolute=True),
            bar("publish_256_to_jetstream", rate, "/s", 0.4, peer, least=True),
            bar("publish_256_p99", middle(ours, "p99_us") / 1000, "ms", 10),
            bar("resident_idle", statistics.median(rss for rss, _ in idle), "MB", 12, statistics.median(peer_idle), absolute=True),
            bar("resident_after_a_million", statistics.median(rss for rss, _ in loaded), "MB", 40, statistics.median(peer_loaded), absolute=True)]


def bench_one(quick, say):
    """Bare append, bus and JetStream in turn, on the same disk."""
    count = 1_000 if quick else 5_000
    ours, theirs = [], []
    with Bus() as bus, Nats() as nats:
        nats.drive("publish", count=200, window=1)
        bus.drive("publish", count=200, window=1)
        for i in range(ROUNDS + 2):
            theirs.append(bus.drive("append", name="operator", file=bus.prefix.path / f"append{i}", count=count))
            ours.append(bus.drive("publish", count=count, window=1))
            jetstream = nats.drive("publish", count=count, window=1, stream="same")
            say(f"  p50 {ours[-1]['p50_us']:.0f} p99 {ours[-1]['p99_us']:.0f} us; append and fdatasync {theirs[-1]['p50_us']:.0f} {theirs[-1]['p99_us']:.0f};"
                f" JetStream (no fsync) {jetstream['p50_us']:.0f} {jetstream['p99_us']:.0f}")
    return [bar("publish_one_p50", middle(ours, "p50_us"), "us", 2, middle(theirs, "p50_us"))]


def live_round(bus, rate, seconds, subscribers=1):
    """Paced events to live subscribers; what the subscribers saw, and the broker's share of one core."""
    warmup, count = rate // 2, rate * seconds
    with bus.beside("subscribe", subscribers=subscribers, warmup=warmup, count=count) as watcher:
        used, began = cpu_seconds(bus.broker.pid), time.monotonic()
        bus.drive("publish", rate=rate, count=warmup + count)
        share = (cpu_seconds(bus.broker.pid) - used) / (time.monotonic() - began)
        return {**watcher.result(), "core": share * 100}


def live_round_nats(nats, rate, seconds, subscribers=1):
    warmup, count = rate // 2, rate * seconds
    with nats.beside("subscribe", asap="yes", subscribers=subscribers, warmup=warmup, count=count) as watcher:
        used, began = cpu_seconds(nats.process.pid), time.monotonic()
        nats.drive("publish_core", asap="yes", rate=rate, count=warmup + count)
        share = (cpu_seconds(nats.process.pid) - used) / (time.monotonic() - began)
        return {**watcher.result(), "core": share * 100}


def say_live(say, ours, theirs):
    for who, run in (("bus", ours), ("NATS, not durable", theirs)):
        say(f"  {who}: p50 {run['p50_us']:.0f} p99 {run['p99_us']:.0f} us, of the worst subscriber {run['worst_p99_us']:.0f} us, {run['missed']:.0f} missed,"
            f" server {run['core']:.0f} % of a core")


def bench_live(quick, say):
    seconds = 3 if quick else 10
    ours, theirs = [], []
    with Bus() as bus, Nats() as nats:
        for _ in range(ROUNDS):
            theirs.append(live_round_nats(nats, 10_000, seconds))
            ours.append(live_round(bus, 10_000, seconds))
            say_live(say, ours[-1], theirs[-1])
    return [bar("live_p50", middle(ours, "p50_us") / 1000, "ms", 1, middle(theirs, "p50_us") / 1000, absolute=True),
            bar("live_p99", middle(ours, "p99_us") / 1000, "ms", 6, middle(theirs, "p99_us") / 1000, absolute=True)]


def bench_fan_out(quick, say):
    seconds = 3 if quick else 10
    ours, theirs = [], []
    with Bus() as bus, Nats() as nats:
        for _ in range(ROUNDS):
            theirs.append(live_round_nats(nats, 1_000, seconds, 100))
            ours.append(live_round(bus, 1_000, seconds, 100))
            say_live(say, ours[-1], theirs[-1])
    return [bar("fan_out_100_worst_p99", middle(ours, "worst_p99_us") / 1000, "ms", 25, middle(theirs, "worst_p99_us") / 1000, absolute=True),
            bar("fan_out_100_missed", sum(run["missed"] for run in ours), "", 0),
            bar("fan_out_100_core", middle(ours, "core"), "%", 40, middle(theirs, "core"), absolute=True)]


def bench_replay(quick, say):
    count, seconds = 200_000, 3 if quick else 6
    ours, theirs, alone, during, peer_alone, peer_during = [], [], [], [], [], []
    with Bus() as bus, Nats() as nats:
        nats.drive("publish", count=count)
        bus.drive("publish", count=count)
        for _ in range(ROUNDS):
            theirs.append(nats.drive("replay", count=count, times=3))
            ours.append(bus.drive("replay", name="operator", count=count, times=3))
            say(f"  {ours[-1]['per_second']:.0f}/s; JetStream {theirs[-1]['per_second']:.0f}/s")
        for _ in range(ROUNDS):
            peer_alone.append(live_round_nats(nats, 10_000, seconds))
            with nats.beside("replay", count=count, seconds=seconds + 1):
                peer_during.append(live_round_nats(nats, 10_000, seconds))
            alone.append(live_round(bus, 10_000, seconds))
            with bus.beside("replay", count=count, seconds=seconds + 1):
                during.append(live_round(bus, 10_000, seconds))
            say(f"  live without and with a replay: p50 {alone[-1]['p50_us']:.0f} {during[-1]['p50_us']:.0f}, p99 {alone[-1]['p99_us']:.0f} {during[-1]['p99_us']:.0f} us,"
                f" {alone[-1]['per_second']:.0f} {during[-1]['per_second']:.0f}/s; NATS: p50 {peer_alone[-1]['p50_us']:.0f} {peer_during[-1]['p50_us']:.0f},"
                f" p99 {peer_alone[-1]['p99_us']:.0f} {peer_during[-1]['p99_us']:.0f} us")
    return [bar("replay", middle(ours, "per_second"), "/s", 0.6, middle(theirs, "per_second"), least=True),
            bar("live_rate_during_replay", middle(during, "per_second"), "/s", 0.8, middle(alone, "per_second"), least=True),
            bar("live_p50_during_replay", middle(during, "p50_us") / 1000, "ms", 1.2, middle(alone, "p50_us") / 1000)]


def bench_commands(quick, say):
    count = 20_000 if quick else 100_000
    ours, theirs, one, peer_one = [], [], [], []
    with Bus() as bus, Dbus() as dbus, bus.beside("serve", name="allocator"), dbus.beside("serve"):
        for _ in range(ROUNDS):
            theirs.append(dbus.drive("call", window=32, warmup=2_000, count=count))
            ours.append(bus.drive("call", name="deployer", window=32, warmup=2_000, count=count))
            peer_one.append(dbus.drive("call", window=1, warmup=200, count=count // 10))
            one.append(bus.drive("call", name="deployer", window=1, warmup=200, count=count // 10))
            say(f"  32 in flight {ours[-1]['per_second']:.0f}/s, p99 {ours[-1]['p99_us']:.0f} us; one at a time p50 {one[-1]['p50_us']:.0f} us;"
                f" dbus-daemon {theirs[-1]['per_second']:.0f}/s, {theirs[-1]['p99_us']:.0f} us; {peer_one[-1]['p50_us']:.0f} us")
    return [bar("commands_32", middle(ours, "per_second"), "/s", 2, middle(theirs, "per_second"), least=True),
            bar("command_one_p50", middle(one, "p50_us"), "us", 300, middle(peer_one, "p50_us"), absolute=True)]


def bench_isolation(quick, say):
    """What a well-behaved caller notices of others: a command at a time, alone and beside each of them."""
    count, seconds = 3_000, 4
    alone, beside = [], {"stopped_subscribers": [], "vanishing": [], "garbage": [], "flood": []}
    with Bus() as bus, bus.beside("serve", name="allocator"):
        def calls():
            return bus.drive("call", name="deployer", window=1, warmup=200, count=count)["p50_us"]

        for _ in range(ROUNDS):
            alone.append(calls())
            with bus.beside("subscribe", subscribers=20, count=1000) as stopped, bus.beside("publish", name="logs", type="log.gap", rate=1000, count=1000 * seconds, ready=False):
                stopped.process.send_signal(signal.SIGSTOP)
                beside["stopped_subscribers"].append(calls())
            with bus.beside("vanish", seconds=seconds):
                beside["vanishing"].append(calls())
            with bus.beside("garbage", seconds=seconds):
                beside["garbage"].append(calls())
            with bus.beside("publish", name="logs", type="log.gap", window=256, count=2_000_000, ready=False):
                beside["flood"].append(calls())
            say(f"  p50 {alone[-1]:.0f} us; " + ", ".join(f"beside {what} {runs[-1]:.0f}" for what, runs in beside.items()))
    return [bar(f"command_p50_beside_{what}", statistics.median(runs), "us", 1.2, statistics.median(alone)) for what, runs in beside.items()]


def fill(journal, events):
    """More events in a broker's journal (it is stopped): each like one that a driver published, with another id and sequence."""
    db = sqlite3.connect(journal, isolation_level=None)
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")
    names = [row[1] for row in db.execute("PRAGMA table_info(events)")]
    last, kind = db.execute("SELECT max(sequence), typeof(id) FROM events").fetchone()
    number = "printf('%08x-%04x-7%03x-8000-%012x', 26000000 + i / 65536, i % 65536, i % 4096, i)"
    values = {"sequence": f"{last} + i", "id": f"unhex(replace({number}, '-', ''))" if kind == "blob" else number}
    db.execute(f"INSERT INTO events({', '.join(names)}) SELECT {', '.join(values.get(name, 'e.' + name) for name in names)} FROM (WITH RECURSIVE c(i) AS"
               f" (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {events}) SELECT i FROM c), (SELECT * FROM events WHERE type = 'lease.granted' LIMIT 1) AS e ORDER BY i")
    db.execute("PRAGMA journal_mode=WAL")
    db.close()


def forget_pages(path):
    """The journal is read from the disk again."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bench_start(quick, say):
    events = 1_000_000 if quick else 10_000_000
    cold, warm, killed = [], [], []
    with Bus() as bus:
        bus.drive("publish", count=1000)
        bus.broker.stop()
        began = time.monotonic()
        fill(bus.journal, events)
        say(f"  {events} events written in {time.monotonic() - began:.0f} s, {bus.journal.stat().st_size / 1e9:.1f} GB")

        def start(times):
            at = time.monotonic()
            bus.broker.start()
            times.append((time.monotonic() - at) * 1000)
            bus.drive("publish", count=1)

        for _ in range(2 * ROUNDS - 1):
            forget_pages(bus.journal)
            start(cold)
            bus.broker.stop()
            start(warm)
            bus.broker.kill()
            start(killed)
            bus.broker.stop()
        bus.broker.start()
        sequence = int(bus.drive("publish", count=1)["last_sequence"])
        if sequence < events:
            raise AssertionError(f"the broker did not serve the {events} events: it is at {sequence}")
    say(f"  ms from exec to ready: {statistics.median(cold):.0f} with nothing of the journal in memory, {statistics.median(warm):.0f} with, "
        f"{statistics.median(killed):.0f} after SIGKILL")
    return [bar("start_with_10_million", max(statistics.median(times) for times in (cold, warm, killed)), "ms", 250)]


PARTS = {"publish": bench_publish, "one": bench_one, "live": bench_live, "fan_out": bench_fan_out, "replay": bench_replay, "commands": bench_commands,
         "isolation": bench_isolation, "start": bench_start}


def run(quick, say, part=None):
    build_drivers(say)
    bars = []
    for name in [part] if part else PARTS:
        say(f"bus: {name}")
        bars += PARTS[name](quick, say)
    return bars
