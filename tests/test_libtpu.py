"""libtpu is told if there is no TPU, but not if there are chips or the user decides."""

import os

from lorage_jax import libtpu


def test_quiet_only_without_chips(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"TPU_WORKER_HOSTNAMES": "mine"})
    monkeypatch.setattr(libtpu, "installed", lambda: True)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # the driver's own, on machines without any chip
    (tmp_path / "vfio" / "0").touch()
    libtpu.keep_quiet(tmp_path)
    assert os.environ == {"TPU_WORKER_HOSTNAMES": "mine"}
    (tmp_path / "vfio" / "0").unlink()
    monkeypatch.setattr(libtpu, "installed", lambda: False)
    libtpu.keep_quiet(tmp_path)
    assert os.environ == {"TPU_WORKER_HOSTNAMES": "mine"}
    monkeypatch.setattr(libtpu, "installed", lambda: True)
    libtpu.keep_quiet(tmp_path)
    assert os.environ == libtpu.settings("v5litepod-1") | {"TPU_WORKER_HOSTNAMES": "mine"}
