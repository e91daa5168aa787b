"""dstack-auth beside nginx, which answers the same POST with a constant: the cost of a decision, its record and its fsync."""
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench_bus import bar
from mesh import TOP, free_port, program, wait_for

ROUNDS = 3
APP, COMPOSE, IMAGE = "1" * 40, "d" * 64, "b" * 64
BOOT = {"teeVariant": "dstack-tdx", "mrAggregated": "a" * 64, "osImageHash": IMAGE, "mrSystem": "c" * 64, "appId": APP, "composeHash": COMPOSE,
        "instanceId": "2" * 40, "deviceId": "e" * 64, "keyProviderInfo": "", "tcbStatus": "UpToDate", "advisoryIds": []}
ANSWER = '{"isAllowed":true,"gatewayAppId":"gw","reason":""}'


def cores():
    two = sorted(os.sched_getaffinity(0))[:2]
    if len(two) < 2:
        raise AssertionError("the server and the load generator need a core each")
    return two


def policy(apps, gateway="gw"):
    listed = {f"{number:040x}": {"composeHashes": [f"{number:064x}"], "devices": [], "allowAnyDevice": True} for number in range(2, apps + 1)}
    return {"osImages": [IMAGE], "gatewayAppId": gateway, "apps": {**listed, APP: {"composeHashes": [COMPOSE], "devices": [], "allowAnyDevice": True}}}


class Server:
    """A server on the first core."""

    def __init__(self, command, port, ready, **options):
        self.port = port
        self.process = subprocess.Popen(["taskset", "-c", str(cores()[0]), *map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, **options)
        wait_for(lambda: self.process.poll() is None and ready(), f"{command[0]} on port {port}", 60, 0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)

    def resident_mb(self):
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text()).group(1)) / 1024


def ask(port):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(client):
        client.request("POST", "/bootAuth/app", json.dumps(BOOT), {"Content-Type": "application/json"})
        return json.loads(client.getresponse().read())


def allowed(port):
    try:
        return ask(port)["isAllowed"]
    except (OSError, http.client.HTTPException):
        return False


def auth(folder, apps, flush):
    """dstack-auth with its ledger; `flush` as in its configuration."""
    port = free_port()
    name = f"{apps}-{flush}"
    (folder / f"{name}.json").write_text(json.dumps(policy(apps), indent=2))
    shutil.rmtree(folder / f"ledger-{name}", ignore_errors=True)
    (folder / f"{name}.toml").write_text(f'[auth]\nport = {port}\npolicy_file = "{folder}/{name}.json"\nledger_dir = "{folder}/ledger-{name}"\n'
                                         f'ledger_flush = "{flush}"\n')
    server = Server([program("auth"), "--config", folder / f"{name}.toml"], port, lambda: allowed(port))
    server.policy = folder / f"{name}.json"
    return server


def nginx(folder):
    port = free_port()
    temp = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(f"""worker_processes 1; daemon off; master_process off; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000000; {temp}
  server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json; return 200 '{ANSWER}'; }} }} }}
""")
    return Server([shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"), "-c", folder / "nginx.conf"], port, lambda: allowed(port))


def auth_simple(folder):
    """Upstream's webhook, where the environment names a checkout of it and its runtime is here; else None."""
    checkout = os.environ.get("AUTH_SIMPLE_DIR")
    if not checkout or not shutil.which("bun"):
        return None
    port = free_port()
    (folder / "simple.json").write_text(json.dumps(policy(3)))
    return Server(["bun", "run", "index.ts"], port, lambda: allowed(port), cwd=checkout,
                  env={**os.environ, "PORT": str(port), "AUTH_CONFIG_PATH": str(folder / "simple.json")})


def load(folder, server, connections, seconds, close=False):
    """(requests per second, p99 in ms) of the load generator on the second core; every answer must be a 200."""
    script = folder / f"post{'-close' if close else ''}.lua"
    script.write_text(f"""wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["User-Agent"] = "dstack-kms/0.5.4"
{'wrk.headers["Connection"] = "close"' if close else ''}
wrk.body = '{json.dumps(BOOT)}'
""")
    done = subprocess.run(["taskset", "-c", str(cores()[1]), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script),
                           f"http://127.0.0.1:{server.port}/bootAuth/app"], capture_output=True, text=True, check=True)
    if "Non-2xx" in done.stdout:
        raise AssertionError(f"answers that are no 200:\n{done.stdout}")
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", done.stdout).groups()
    return float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout).group(1)), float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def median_of(results, part=0):
    return statistics.median(result[part] for result in results)


def bench_rates(quick, say, folder):
    seconds = 2 if quick else 5
    flushed, peers, closes, peer_closes, fsynced = [], [], [], [], []
    with auth(folder, 3, "10ms") as ours, nginx(folder) as peer:
        load(folder, ours, 32, 1), load(folder, peer, 32, 1)
        for _ in range(ROUNDS):
            flushed.append(load(folder, ours, 32, seconds))
            peers.append(load(folder, peer, 32, seconds))
            closes.append(load(folder, ours, 32, seconds, close=True))
            peer_closes.append(load(folder, peer, 32, seconds, close=True))
    with auth(folder, 3, "each") as ours:
        load(folder, ours, 64, 1)
        for _ in range(ROUNDS):
            fsynced.append(load(folder, ours, 64, seconds))
    simple = auth_simple(folder)
    if simple is None:
        say("auth: without auth-simple (AUTH_SIMPLE_DIR names no checkout, or bun is not here)")
    else:
        with simple:
            load(folder, simple, 32, 1)
            rate = median_of([load(folder, simple, 32, seconds) for _ in range(ROUNDS)])
            say(f"auth: auth-simple answers {rate:,.0f}/s, {rate / median_of(peers):.2f} times nginx")
    say(f"auth: p99 with 32 connections {median_of(flushed, 1):.2f} ms, nginx {median_of(peers, 1):.2f} ms")
    return [bar("keep_alive_32", median_of(flushed), "/s", 0.6, median_of(peers), least=True),
            bar("fsync_64", median_of(fsynced), "/s", 60_000, least=True),
            bar("fsync_64_p99", median_of(fsynced, 1), "ms", 4),
            bar("new_connection_32", median_of(closes), "/s", 0.85, median_of(peer_closes), least=True)]


def bench_large(quick, say, folder):
    """A hundred thousand apps beside three."""
    seconds = 2 if quick else 5
    few, many, reloads, resident = [], [], [], []
    with auth(folder, 3, "10ms") as small, auth(folder, 100_000, "10ms") as large:
        load(folder, small, 32, 1), load(folder, large, 32, 1)
        for _ in range(ROUNDS):
            few.append(load(folder, small, 32, seconds))
            many.append(load(folder, large, 32, seconds))
        for number in range(5):
            new = large.policy.with_suffix(".new")
            new.write_text(json.dumps(policy(100_000, f"gw{number}"), indent=2))
            new.rename(large.policy)
            began = time.monotonic()
            gateway = ask(large.port)["gatewayAppId"]
            reloads.append(1000 * (time.monotonic() - began))
            if gateway != f"gw{number}":
                raise AssertionError(f"answered from the old policy: {gateway}")
            allowed(large.port)
            resident.append(large.resident_mb())
    return [bar("apps_100000", median_of(many), "/s", 0.95, median_of(few), least=True),
            bar("apps_100000_resident", max(resident), "MB", 80),
            bar("apps_100000_reload", statistics.median(reloads), "ms", 300)]


def bench_start(quick, say, folder):
    """From exec to a connection that is taken, and what is resident then."""
    port = free_port()
    (folder / "start.json").write_text(json.dumps(policy(3)))
    (folder / "start.toml").write_text(f'[auth]\nport = {port}\npolicy_file = "{folder}/start.json"\nledger_dir = "{folder}/ledger-start"\n')
    times, resident = [], []
    sink = os.open("/dev/null", os.O_RDWR)
    for _ in range(5 if quick else 15):
        began = time.monotonic()
        pid = os.posix_spawn(program("auth"), [str(program("auth")), "--config", str(folder / "start.toml")], os.environ,
                             file_actions=[(os.POSIX_SPAWN_DUP2, sink, fd) for fd in (0, 1, 2)])
        try:
            while time.monotonic() - began < 30:
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.0002)
            times.append(1000 * (time.monotonic() - began))
            wait_for(lambda: allowed(port), "an answer", 30)
            resident.append(int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024)
        finally:
            os.kill(pid, 15)
            os.waitpid(pid, 0)
    os.close(sink)
    return [bar("listening", statistics.median(times), "ms", 15), bar("resident", statistics.median(resident), "MB", 8)]


PARTS = {"rates": bench_rates, "large": bench_large, "start": bench_start}


def run(quick, say, part=None):
    subprocess.run([TOP / "deploy/install-packages", "bench"], check=True)
    bars = []
    for name in [part] if part else PARTS:
        say(f"auth: {name}")
        folder = Path(tempfile.mkdtemp(prefix="dst-auth-"))
        try:
            bars += PARTS[name](quick, say, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return bars
