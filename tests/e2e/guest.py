"""A mesh whose prefix has the guest image and the busybox image."""
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))
from mesh import BUILD, TOP, Mesh, need

HELLO = TOP / "docs/examples/hello/docker-compose.yaml"


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
    def __init__(self):
        files = guest_files()
        super().__init__(up=False)
        for name in ("images", "oci"):
            shutil.copytree(files / name, self.path / "var/lib/dstack" / name, symlinks=True)
        self.up()
