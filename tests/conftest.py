"""Setup of all tests: eight CPU devices, run-time shape checks, tiny models made once."""

import gc
import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import program_cache

program_cache.keep()
# As variables, so that the processes that tests start have them, too. Tests compile much and run
# little: half the time of a cold run is XLA's optimisations.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ |= {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "OMP_NUM_THREADS": "1",  # torch's; two processes run at once, and its models here are tiny
}
# Tracing makes many small objects that live on; looking for cycles among them took a tenth.
gc.set_threshold(50_000, 20, 20)

import jax  # noqa: E402  reads the variables

jax.config.update("jax_num_cpu_devices", int(os.environ.get("LORAGE_TEST_DEVICES", "8")))

from tests import shape_checks  # noqa: E402

shape_checks.install()

from lorage_jax import libtpu  # noqa: E402  after the hook

libtpu.keep_quiet()  # its warnings would mix with the messages that tests read


SHARED = Path(__file__).parents[2] / "shared"

# Each compiled program holds memory maps, of which a process may have 65,530 on Linux; beyond that,
# XLA crashes. A worker that runs a thousand tests would get there.
MAPS = Path("/proc/self/maps")
MOST_MAPS = 45_000


FINISHED = itertools.count(1)


@pytest.fixture(autouse=True)
def few_maps():
    """After every eighth test, forgets all compiled programs if they hold too many maps."""
    yield
    if next(FINISHED) % 8 == 0 and MAPS.exists():
        with MAPS.open("rb") as maps:
            count = sum(1 for _ in maps)
        if count > MOST_MAPS:
            jax.clear_caches()


# `pytest -m fast`: folders and files whose tests take two minutes together on two cores. They
# compile little; nothing is trained and no other process is started, but for a few short ones.
FAST = (
    *("data", "files", "formats/test_models.py", "formats/test_results.py", "hf", "report"),
    *("test_distributed.py", "test_docs.py", "test_libtpu.py", "test_ops.py", "test_provenance.py"),
    *("test_rooms.py", "test_checks.py", "test_sharding.py", "generator/test_card.py"),
    *("train/test_flops.py", "evaluate/test_gpt4tools.py", "evaluate/test_paired.py"),
    *("evaluate/test_results.py", "infer/test_text.py", "aot/test_hlo.py"),
    *("aot/test_roofline.py", "aot/test_topology.py", "aot/test_traffic.py"),
    *("world/test_prompts.py", "world/test_tool_lists.py", "world/test_tool_sets.py"),
    *("world/test_words.py", "world/test_everyday.py", "compare/test_task_samples.py"),
    "test_bundled.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Makes room among the kept programs, once for all workers."""
    if not hasattr(config, "workerinput"):
        program_cache.prune()


def _is_fast(path: Path) -> bool:
    root = Path(__file__).parent
    return any(path == place or place in path.parents for place in (root / name for name in FAST))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files none of whose tests are asked for; importing them takes a while."""
    if collection_path.is_dir() or collection_path.name == "conftest.py":
        return None
    asked = {"fast": True, "not fast and not slow": False}.get(config.option.markexpr)
    return None if asked is None or asked == _is_fast(collection_path) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests in FAST; an entry that is neither a folder nor a file is an error."""
    root = Path(__file__).parent
    if missing := [name for name in FAST if not (root / name).exists()]:
        raise pytest.UsageError(f"tests/conftest.py, FAST: there is no {', '.join(missing)}.")
    here = {path: _is_fast(path) for path in {item.path for item in items}}
    for item in items:
        if here[item.path] and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and tokenizers beside the checkout; skips the test without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the data folder ../shared is not here")
    return SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(variant) -> (folder, torch model) of `tests.tiny.VARIANTS`, made on first use.

    The folders are shared: tests only read them.
    """
    from tests.tiny import VARIANTS, make_tiny

    root, made = tmp_path_factory.mktemp("tiny"), {}

    def get(variant: str) -> tuple[Path, object]:
        if variant not in made:
            family, fields = VARIANTS[variant]
            made[variant] = root / variant, make_tiny(family, root / variant, **fields)
        return made[variant]

    return get


@pytest.fixture(scope="session")
def cloud_dir(tmp_path_factory) -> Path:
    """A tiny cloud model: 2 layers of width 32."""
    from tests.tiny import make_tiny

    folder = tmp_path_factory.mktemp("cloud") / "cloud"
    make_tiny("llama", folder, seed=5, num_hidden_layers=2, hidden_size=32)
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """(cloud folder, edge folder): a llama and a qwen2 of different width and depth."""
    from tests.tiny import make_tiny

    root = tmp_path_factory.mktemp("pair")
    make_tiny("llama", root / "cloud", seed=1, num_hidden_layers=2, hidden_size=32)
    make_tiny("qwen2", root / "edge", seed=2)
    return root / "cloud", root / "edge"


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    """80 records under 40 system prompts, two per prompt."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [
        {"system": f"Say {i // 2} twice.", "user": f"go {i}", "target": f"{i // 2} {i // 2}"}
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB, which tests fill up."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
