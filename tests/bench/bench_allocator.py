"""The allocator: reservations over the bus, a look at a crowded host, ten thousand leases."""
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_bus import bar, cpu_seconds, drive, resident
from mesh import BUILD, TOP, program
from peers import Peers

ROUNDS = 3
DRIVER = BUILD / "bench-leases"
NEVER = 3_600_000


def build_driver():
    source = TOP / "tests/bench/drive_leases.cpp"
    if not DRIVER.exists() or DRIVER.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["c++", "-std=c++20", "-O2", f"-I{TOP}", "-o", str(DRIVER), str(source), "-lzmq"], check=True)


class Allocator:
    """A broker and an allocator; the driver is the deployer there."""

    def __init__(self, watch_ms=NEVER, leases=0):
        self.prefix = Peers("allocator")
        self.config = (f'[allocator]\nstate_dir = "{self.prefix.state("allocator")}"\nleases = "{self.prefix.lease_database}"\ncid_last = 10000000\n'
                       f'watch_ms = {watch_ms}\nleak_check_ms = {NEVER}\n\n[quota]\nleases_per_host = 10000000\n\n[bus]\ndirectory = "{self.prefix.bus}"\n')
        self.service = self.prefix.service("allocator", self.config)
        self.service.start()
        if leases:
            self.service.stop()
            self.fill(leases)
            self.service.start()

    def fill(self, count):
        """As if they had been granted one by one."""
        with sqlite3.connect(self.prefix.lease_database) as db:
            db.executemany("INSERT INTO batches VALUES(1, ?, 'k', '')", ((f"old-{i}",) for i in range(count)))
            db.executemany("INSERT INTO leases(install, owner, batch, kind, protocol, address, value, purpose, state, since_ms, expires_ms, caller)"
                           " VALUES(1, ?, 'k', ?, ?, ?, ?, '80/tcp of the guest', 'bound', ?, 0, 'deployer')",
                           ((f"old-{i}", "cid", "", "", 1000 + i, int(time.time() * 1000)) if i % 2 else
                            (f"old-{i}", "port", "tcp", f"127.250.{i // 500 // 250}.{1 + i // 500 % 250}", 18000 + i % 500, int(time.time() * 1000)) for i in range(count)))
            db.execute("INSERT OR REPLACE INTO cursors VALUES('cid', ?)", (1000 + count,))
        db.close()

    def reserve(self, run, **options):
        return drive(self.prefix.probes / "operator-driver", "reserve", bus=self.prefix.bus, run=run, **options)

    def __enter__(self):
        shutil.copy2(DRIVER, self.prefix.probes / "operator-driver")
        return self

    def __exit__(self, *_):
        self.prefix.close()


def bench_reserve(quick, say):
    count = 2_000 if quick else 20_000
    one, rate = [], []
    for i in range(ROUNDS):
        with Allocator() as allocator:
            allocator.reserve("warm", count=200, kind="port")
            one.append(allocator.reserve("one", count=500, kind="port"))
            cids = allocator.reserve("cid", count=500, kind="cid")
            many = allocator.reserve("many", count=count, clients=64, kind="port")
            rate.append(many)
            say(f"  one at a time p50 {one[-1]['p50_us']:.0f} p99 {one[-1]['p99_us']:.0f} us (cids {cids['p50_us']:.0f} us); 64 clients"
                f" {many['per_second']:.0f}/s, p50 {many['p50_us']:.0f} p99 {many['p99_us']:.0f} us")
    return [bar("reserve_p50", statistics.median(run["p50_us"] for run in one) / 1000, "ms", 1.5),
            bar("reserve_64_clients", statistics.median(run["per_second"] for run in rate), "/s", 5000, least=True)]


def bench_growth(quick, say):
    count = 2_000 if quick else 10_000
    cost = {}
    for leases in (1_000, 100_000):
        runs = []
        with Allocator(leases=leases) as allocator:
            allocator.reserve("warm", count=500, clients=64)
            for i in range(ROUNDS):
                before = cpu_seconds(allocator.service.pid)
                allocator.reserve(f"r{i}", count=count, clients=64, kind="port" if i % 2 else "cid")
                runs.append((cpu_seconds(allocator.service.pid) - before) / count * 1e6)
        cost[leases] = statistics.median(runs)
        say(f"  {leases} leases: {cost[leases]:.0f} us of the processor for one reservation")
    return [bar("reserve_cost_100000_to_1000", cost[100_000] / cost[1_000], "times", 1.2)]


def bench_list(quick, say):
    times, sizes = [], []
    with Allocator(leases=10_000) as allocator:
        for _ in range(3 if quick else 9):
            began = time.monotonic()
            done = subprocess.run([str(program("dstack")), "leases", "--prefix", str(allocator.prefix.path)], capture_output=True, text=True, check=True)
            times.append((time.monotonic() - began) * 1000)
            if len(done.stdout.splitlines()) != 10_001:
                raise AssertionError(f"{len(done.stdout.splitlines())} lines")
        sizes = resident(allocator.service.pid)
        say(f"  Rss {sizes[0]:.1f} Pss {sizes[1]:.1f} MB after {len(times)} lists")
    return [bar("list_10000", statistics.median(times), "ms", 60), bar("resident_10000", sizes[0], "MB", 12)]


LISTENERS = """
import socket, sys
held = []
for i in range(int(sys.argv[1])):
    s = socket.socket(); s.bind(("127.0.0.9", 0)); s.listen(); held.append(s)
print(0, flush=True)
sys.stdin.read()
"""


class Crowd:
    """2,000 listening sockets and 500 processes."""

    def __enter__(self):
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        self.jobs = [subprocess.Popen([sys.executable, "-c", LISTENERS, "100"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(20)]
        for job in self.jobs:
            job.stdout.readline()
        there = sum(entry.name.isdigit() for entry in Path("/proc").iterdir())
        self.sleepers = [subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL) for _ in range(max(0, 500 - there))]
        return self

    def __exit__(self, *_):
        for job in self.jobs:
            job.stdin.close()
            job.wait(20)
        for sleeper in self.sleepers:
            sleeper.kill()
            sleeper.wait(20)


def bench_look(quick, say):
    first, later = [], []
    with Crowd():
        for _ in range(ROUNDS if quick else 5):
            with Allocator() as allocator:
                looks = []
                for _ in range(5):
                    uses, after = 0, 0
                    while True:
                        page = allocator.prefix.ok("lease.host", {"after": after}, who="operator")
                        looks += [page["look_us"]] if after == 0 else []
                        uses += len(page["uses"])
                        after = page["next"]
                        if not after:
                            break
                if uses < 2000:
                    raise AssertionError(f"{uses} uses seen")
                first.append(looks[0] / 1000)
                later += [look / 1000 for look in looks[1:]]
        say(f"  first look {statistics.median(first):.1f} ms (worst {max(first):.1f}), later ones {statistics.median(later):.1f} ms")
    return [bar("first_look_2000_sockets", statistics.median(first), "ms", 8), bar("look_2000_sockets", statistics.median(later), "ms", 8)]


def bench_watch(quick, say):
    seconds = 20 if quick else 60
    with Allocator(watch_ms=5000, leases=1000) as allocator:
        time.sleep(2)
        before, began = cpu_seconds(allocator.service.pid), time.monotonic()
        time.sleep(seconds)
        used = (cpu_seconds(allocator.service.pid) - before) / (time.monotonic() - began) * 100
    say(f"  the whole process, watch and sweep: {used:.3f} % of a core over {seconds} s")
    return [bar("watch_1000_leases", used, "%", 0.2)]


PARTS = {"reserve": bench_reserve, "growth": bench_growth, "list": bench_list, "look": bench_look, "watch": bench_watch}


def run(quick, say, part=None):
    build_driver()
    bars = []
    for name in [part] if part else PARTS:
        say(f"allocator: {name}")
        bars += PARTS[name](quick, say)
    return bars
