"""tools/release_check.py finds a wrong version, and a wheel with too little or too much in it."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_agree(release, monkeypatch, tmp_path):
    version = release.declared_version()
    for name in ("setup.cfg", "CHANGELOG.md", "CITATION.cff"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    (tmp_path / "CITATION.cff").write_text("version: 0.0.1\n", "utf-8")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=rf"{version}, CITATION.cff 0\.0\.1"):
        release.declared_version()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda names: names, None),
        (lambda names: names - {"lorage_jax/py.typed"}, "lacks lorage_jax/py.typed"),
        (lambda names: names | {"tests/test_ops.py"}, "also holds tests"),
        (lambda names: names | {"lorage_jax/test_ops.py"}, "holds tests"),
    ],
)
def test_contents_of_the_wheel(release, tmp_path, change, says):
    wheel = tmp_path / "lorage_jax-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in sorted(change({*release.NEEDED, "lorage_jax-1.dist-info/METADATA"})):
            archive.writestr(name, "")
    if says is None:
        release.inspect(wheel)
    else:
        with pytest.raises(SystemExit, match=says):
            release.inspect(wheel)
