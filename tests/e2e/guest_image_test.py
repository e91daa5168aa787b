"""The guest image is reproducible: the same inputs give the same bytes, whoever builds it, where and when."""
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from guest import IMAGE, guest_files
from mesh import BUILD, TOP


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Reproducible(unittest.TestCase):
    def test_another_place_time_zone_umask_and_file_times(self):
        first = guest_files() / "images" / IMAGE
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as work:
            work = Path(work)
            shutil.copytree(TOP / "deploy/guest-image", work / "recipe")
            shutil.copy(BUILD / "services/guest-agent/dstack-guest-agent", work / "agent")
            for path in [*work.rglob("*"), work]:
                os.utime(path, (86400, 86400))
            os.chmod(work / "recipe/init.c", 0o600)
            (work / "tmp").mkdir()
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dstack-guest-image"
            done = subprocess.run(["bash", "-c", 'umask 077; exec "$@"', "build", work / "recipe/build", work / "out/some other name", "--agent", work / "agent", "--cache", cache],
                                  cwd="/", capture_output=True, text=True, timeout=300,
                                  env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": str(work), "TMPDIR": str(work / "tmp"), "TZ": "Pacific/Kiritimati", "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "1"})
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertNotIn("already", done.stderr, "it was built, not kept")
            ours, theirs = contents(first), contents(work / "out/some other name")
            self.assertEqual(sorted(ours), sorted(theirs))
            for name in sorted(ours):
                self.assertTrue(ours[name] == theirs[name], f"{name} differs")

    def test_other_inputs_have_another_digest(self):
        first = guest_files() / "images" / IMAGE
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            shutil.copytree(TOP / "deploy/guest-image", work / "recipe")
            source = work / "recipe/init.c"
            text = source.read_text()
            self.assertIn('"dstack-init: "', text)
            source.write_text(text.replace('"dstack-init: "', '"other-init: "'))
            done = subprocess.run([work / "recipe/build", work / "out", "--agent", BUILD / "services/guest-agent/dstack-guest-agent"], capture_output=True, text=True, timeout=300)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertNotEqual((first / "digest.txt").read_text(), (work / "out/digest.txt").read_text())


if __name__ == "__main__":
    unittest.main()
