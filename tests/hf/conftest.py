"""A disk that is really full, where mounting is permitted."""

import os
import subprocess

import pytest


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB, to be really full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
