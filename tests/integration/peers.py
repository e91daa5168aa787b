"""A broker with probes that speak on the bus as an operator or as the deployer, for tests of one service alone."""
import json
import shutil
import subprocess

from mesh import BUILD, Prefix, program

PROBE = BUILD / "tests/integration/bus_probe"


class Peers(Prefix):
    """A broker, and probes that it takes for an operator and the deployer by the path they are run from."""

    def __init__(self, *services):
        super().__init__()
        self.probes = self.path / "probes"
        self.probes.mkdir()
        for name in ("operator", "deployer"):
            shutil.copy(PROBE, self.probes / name)
        rules = f'deployer = "exe:{self.probes / "deployer"}"\n' + "".join(f'{name} = "exe:{program(name)}"\n' for name in services)
        self.start("bus", f'[bus]\ndirectory = "{self.bus}"\njournal = "{self.state("bus")}/journal.db"\n\n[identity.services]\n{rules}')

    def run(self, who, *arguments):
        done = subprocess.run([str(self.probes / who), str(self.bus), *arguments], capture_output=True, text=True, timeout=30)
        return done.stdout.strip()

    def call(self, command, body, who="deployer", key=""):
        """("ok", decoded reply) or (error code, message)."""
        line = self.run(who, "call", command, json.dumps(body), *([key] if key else []))
        kind, _, rest = line.partition(" ")
        if kind == "ok":
            return "ok", json.loads(rest)
        code, _, message = rest.partition(" ")
        return code, message

    def ok(self, command, body, **options):
        answer = self.call(command, body, **options)
        if answer[0] != "ok":
            raise AssertionError(f"{command}: {answer}")
        return answer[1]

    def events(self, prefix):
        """(type, data) of every durable event so far."""
        probe = subprocess.Popen([str(self.probes / "operator"), str(self.bus), "subscribe", "0", prefix], stdout=subprocess.PIPE, text=True)
        found = []
        try:
            for line in probe.stdout:
                if line.startswith("caught_up"):
                    return found
                kind, _, rest = line.partition(" ")
                if kind == "event":
                    _, name, _, data = rest.split(" ", 3)
                    found.append((name, json.loads(data)))
            raise AssertionError("the subscription ended")
        finally:
            probe.kill()
            probe.wait(10)
            probe.stdout.close()
