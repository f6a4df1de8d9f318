import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from lorage_jax.errors import ConfigError, OutputError, WeightsError
from lorage_jax.files import safetensors as files
from lorage_jax.files.outputs import new_folder
from lorage_jax.files.safetensors import INDEX, SINGLE, Checkpoint, rewrite, save

BF16 = np.dtype(ml_dtypes.bfloat16)


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy()


@pytest.fixture
def tensors():
    """All bfloat16 values (with NaNs), odd sizes, a scalar, an empty tensor, integers."""
    generator = torch.Generator().manual_seed(0)
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return {
        "every": every.reshape(256, 256),
        "small": torch.randn(3, 5, 7, generator=generator).to(torch.bfloat16),
        "half": torch.randn(5, 3, generator=generator).to(torch.float16),
        "wide": torch.randn(4, 6, generator=generator),
        "ids": torch.tensor([1, -2, 3]),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture
def folder(tmp_path, tensors):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    safetensors.torch.save_file(tensors, path / SINGLE, {"format": "pt"})
    return path


def shard(folder, tensors) -> None:
    """Two files and an index instead of one file."""
    (folder / SINGLE).unlink()
    weight_map = {}
    for number, names in enumerate([list(tensors)[:3], list(tensors)[3:]], 1):
        file = f"model-{number:05}-of-00002.safetensors"
        safetensors.torch.save_file({n: tensors[n] for n in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def raw_file(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def problems(folder) -> str:
    with pytest.raises(WeightsError) as caught:
        Checkpoint.open(folder)
    return str(caught.value)


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_what_torch_wrote(folder, tensors, sharded):
    if sharded:
        shard(folder, tensors)
    checkpoint = Checkpoint.open(folder)
    assert sorted(checkpoint.names()) == sorted(tensors)
    assert len(checkpoint.files()) == 1 + sharded
    assert checkpoint.dtype("every") == "BF16" and "nothing" not in checkpoint
    for name, tensor in tensors.items():
        array = checkpoint.read(name)
        assert checkpoint.shape(name) == array.shape == tuple(tensor.shape)
        if tensor.dtype == torch.bfloat16:
            assert array.dtype == BF16
            np.testing.assert_array_equal(array.view(np.int16), bits(tensor))
        else:
            assert array.dtype == tensor.numpy().dtype
            np.testing.assert_array_equal(array, tensor.numpy())


@pytest.mark.parametrize(
    "index",
    [
        (slice(1, 3),),
        (slice(None), slice(1, 4), slice(None, None, 2)),
        (..., slice(-2, None)),
        (2, slice(0, 0)),
        (slice(0, 3, 1), slice(4, 5, 1), slice(6, 7, 1)),
        (),
        ...,
    ],
)
def test_reads_parts(folder, tensors, index):
    part = Checkpoint.open(folder).read("small", index)
    np.testing.assert_array_equal(part.view(np.int16), bits(tensors["small"])[index])
    assert not part.flags.writeable


def test_reading_a_part_touches_only_its_bytes(tmp_path):
    """A sparse file of 4 TB, which cannot be read as a whole."""
    rows = 1 << 30
    header = json.dumps({"big": entry("F32", (rows, 1024), (0, rows * 4096))}).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + rows * 4096)
        except OSError:
            pytest.skip("no sparse files of this size here")
    part = Checkpoint.open_file(tmp_path / "big.safetensors").read("big", (slice(-2, None),))
    assert part.shape == (2, 1024) and not part.any()


def test_no_torch_is_imported(folder):
    code = (
        "import sys; from lorage_jax.files.safetensors import Checkpoint; from pathlib import Path;"
        f"Checkpoint.open({str(folder)!r}).read('every'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("cut", [0, 5, 8, 9, 300, -100_000, -1])
def test_truncated_files(folder, cut):
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:cut])
    message = problems(folder)
    assert f"{SINGLE}: truncated" in message and "1 problem)" in message


def test_a_tail_after_the_tensors(folder):
    with (folder / SINGLE).open("ab") as file:
        file.write(b"xyz")
    assert "3 bytes after the last tensor" in problems(folder)


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{nope", b"", "not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b"[1]", b"", "not a JSON object"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"w": 3}, b"", "w: corrupt: expected dtype"),
        ({"w": {"dtype": "F32", "shape": [1]}}, b"", "w: corrupt: expected dtype"),
        ({"w": entry(offsets=(0, 4, 8))}, b"1234", "w: corrupt: expected dtype"),
        ({"w": entry("F8_E4M3", (4,))}, b"1234", "w: unsupported dtype F8_E4M3"),
        ({"w": entry(["F32"])}, b"1234", "w: unsupported dtype"),
        ({"w": entry(shape=(-1, -1))}, b"1234", "w: corrupt: shape"),
        ({"w": entry(shape=(True,))}, b"1234", "w: corrupt: shape"),
        ({"w": entry(offsets=(-4, 0))}, b"1234", "w: corrupt: shape"),
        ({"w": entry(shape=(2,))}, b"1234", "w: corrupt: F32 .2. is 8 bytes, data_offsets hold 4"),
        ({"w": entry(), "v": entry(offsets=(2, 6))}, b"123456", "v overlaps .* by 2 bytes"),
        ({"w": entry(), "v": entry()}, b"1234", "overlaps"),
        ({"w": entry(), "v": entry(offsets=(6, 10))}, b"1" * 10, "v: 2 bytes before it"),
        ({"w": entry(offsets=(4, 8))}, b"12345678", "w: 4 bytes before it"),
        (
            b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"1",
            "duplicate tensor.*: w",
        ),
    ],
)
def test_corrupt_headers(tmp_path, header, data, words):
    path = tmp_path / "x.safetensors"
    raw_file(path, header, data)
    with pytest.raises(WeightsError, match=words):
        Checkpoint.open_file(path)


def test_a_header_length_that_cannot_be(tmp_path):
    path = tmp_path / "x.safetensors"
    raw_file(path, {}, length=1 << 60)
    with pytest.raises(WeightsError, match="header claims 1152921504606846976 bytes"):
        Checkpoint.open_file(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        Checkpoint.open_file(path)


def test_what_safetensors_refuses_is_refused(tmp_path):
    """A byte of the header is flipped: never accepted if the library refuses it."""
    path = tmp_path / "x.safetensors"
    save(path, {"a": np.ones((2, 3), BF16), "b": np.arange(5)}, {"k": "v"})
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    ours = 0
    for at in range(end):
        for flip in (1, 16):
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            try:
                with safetensors.safe_open(path, "numpy") as file:
                    read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except Exception:
                with pytest.raises(WeightsError):
                    Checkpoint.open_file(path)
                ours += 1
            else:
                checkpoint = Checkpoint.open_file(path)
                for name, array in read.items():
                    assert checkpoint.read(name).tobytes() == array.tobytes()
    assert ours > 100


def test_all_problems_are_told_at_once(folder, tensors):
    shard(folder, tensors)
    (folder / "config.json").unlink()
    first, second = (f"model-{n:05}-of-00002.safetensors" for n in (1, 2))
    (folder / first).write_bytes((folder / first).read_bytes()[:-1])
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {"ghost": second, "lost": "gone.safetensors", "out": "../up.safetensors"}
    (folder / INDEX).write_text(json.dumps(index))
    message = problems(folder)
    assert "(5 problems)" in message
    for words in (
        "config.json is missing",
        f"{first}: truncated",
        f"ghost is in the index but not in {second}",
        "gone.safetensors: file is missing",
        "'../up.safetensors'",
    ):
        assert words in message


def test_a_tensor_in_the_wrong_or_in_two_shards(folder, tensors):
    shard(folder, tensors)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["every"] = index["weight_map"]["empty"]
    (folder / INDEX).write_text(json.dumps(index))
    assert "every is in the index but not in model-00002" in problems(folder)
    safetensors.torch.save_file(tensors, folder / "model-00002-of-00002.safetensors")
    assert "every is a duplicate tensor: in model-00001" in problems(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_corrupt_index(folder, content):
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(content)
    assert f"{INDEX} is corrupt" in problems(folder)


def test_folders_without_usable_weights(tmp_path, folder):
    with pytest.raises(WeightsError, match="not a folder"):
        Checkpoint.open(tmp_path / "nowhere")
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    assert "cannot be used without the index" in problems(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert f"no {SINGLE} and no {INDEX}" in problems(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin is a pickle, which is never opened" in problems(folder)
    (folder / SINGLE).symlink_to(folder / "blob")
    assert f"{SINGLE}: file is missing" in problems(folder)
    (folder / SINGLE).unlink()
    (folder / SINGLE).mkdir()
    assert f"{SINGLE}: cannot be read" in problems(folder)


def test_rewrite_without_change_is_the_same_file(tmp_path, folder):
    rewrite(folder / SINGLE, tmp_path / "new", {}, None)
    assert (tmp_path / "new").read_bytes() == (folder / SINGLE).read_bytes()


def test_rewrite_replaces_and_copies_bit_for_bit(tmp_path, folder, tensors, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1000)  # many chunks, the last one short
    wide = np.asfortranarray(np.linspace(-3, 3, 24, dtype=np.float64).reshape(4, 6))
    small = np.linspace(-2, 2, 105, dtype=np.float32).reshape(7, 5, 3).T
    replace = {"wide": lambda: wide, "small": lambda: small, "scalar": lambda: np.float32(7)}
    rewrite(folder / SINGLE, tmp_path / "new", replace, None)
    new = safetensors.torch.load_file(tmp_path / "new")
    np.testing.assert_array_equal(new["wide"], wide.astype(np.float32))
    expected = torch.from_numpy(np.ascontiguousarray(small)).to(torch.bfloat16)
    np.testing.assert_array_equal(bits(new["small"]), bits(expected))
    assert new["scalar"] == 7 and new["scalar"].shape == ()
    np.testing.assert_array_equal(bits(new["every"]), bits(tensors["every"]))
    for name in ("half", "ids", "mask", "empty"):
        np.testing.assert_array_equal(new[name], tensors[name])
    length = 8 + int.from_bytes((folder / SINGLE).read_bytes()[:8], "little")
    assert (tmp_path / "new").read_bytes()[:length] == (folder / SINGLE).read_bytes()[:length]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rewrite_casts_every_float_tensor(tmp_path, folder, tensors, dtype, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1000)
    rewrite(folder / SINGLE, tmp_path / "new", {"wide": lambda: np.ones((4, 6))}, dtype)
    new = safetensors.torch.load_file(tmp_path / "new")
    kind = getattr(torch, dtype)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            np.testing.assert_array_equal(new[name], tensor)
            continue
        assert new[name].dtype == kind and new[name].shape == tensor.shape
        expected = torch.ones(4, 6) if name == "wide" else tensor
        assert torch.equal(new[name].nan_to_num(), expected.to(kind).nan_to_num())
    with safetensors.safe_open(tmp_path / "new", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert list(Checkpoint.open_file(tmp_path / "new").tensors) == list(
        Checkpoint.open_file(folder / SINGLE).tensors
    )


def test_rewrite_errors_leave_nothing(tmp_path, folder):
    target = tmp_path / "new"
    for replace, dtype, error, words in [
        ({"nope": lambda: 0}, None, WeightsError, "holds no tensor nope"),
        ({"wide": lambda: np.ones((6, 4))}, None, WeightsError, r"expected shape \(4, 6\)"),
        ({"half": lambda: np.full((5, 3), 7e4)}, None, WeightsError, "half: a value does not fit"),
        ({}, "float16", WeightsError, "every: a value does not fit float16"),
        ({}, "int8", ConfigError, "expected one of float32"),
    ]:
        with pytest.raises(error, match=words):
            rewrite(folder / SINGLE, target, replace, dtype)
        assert not target.exists()
    target.write_text("mine")
    with pytest.raises(FileExistsError):
        rewrite(folder / SINGLE, target, {}, None)
    assert target.read_text() == "mine"


def test_rewrite_needs_memory_for_one_tensor_only(tmp_path):
    """Copied tensors are not held: 200 MB pass through a process limited to 1 + 100 MB."""
    tensor = 50 << 20
    arrays = {f"t{i}": np.full(tensor // 4, i, np.float32) for i in range(4)}
    save(tmp_path / "old", arrays)
    code = f"""
import resource, numpy as np
from lorage_jax.files.safetensors import rewrite
rewrite({str(tmp_path / "old")!r}, {str(tmp_path / "none")!r}, {{}}, "bfloat16")
data = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1])
limit = (data() << 10) + (100 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
new = lambda: np.full({tensor // 4}, 9, np.float32)
rewrite({str(tmp_path / "old")!r}, {str(tmp_path / "new")!r}, {{"t1": new, "t3": new}}, "bfloat16")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Checkpoint.open_file(tmp_path / "new").read("t3", (slice(-1, None),)) == 9


def test_save_round_trip(tmp_path):
    import jax.numpy as jnp

    arrays = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "strided": np.arange(20)[::3],
        "bf16": np.arange(7).astype(BF16),
        "scalar": np.float32(3),
        "jax": jnp.ones((2, 2), jnp.bfloat16),
        "empty": np.zeros((0, 3), np.float32),
    }
    save(tmp_path / "x", arrays, {"a": "b"})
    checkpoint = Checkpoint.open_file(tmp_path / "x")
    assert checkpoint.metadata == {"a": "b"}
    assert (tmp_path / "x").stat().st_mode & 0o077, "readable for others, as the umask says"
    loaded = safetensors.torch.load_file(tmp_path / "x")
    for name, array in arrays.items():
        array = np.asarray(array)
        np.testing.assert_array_equal(checkpoint.read(name), array)
        assert checkpoint.shape(name) == array.shape == tuple(loaded[name].shape)
        np.testing.assert_array_equal(loaded[name].float(), array.astype(np.float32))


def test_save_errors(tmp_path):
    with pytest.raises(WeightsError, match="w: dtype complex"):
        save(tmp_path / "x", {"w": np.ones(2, complex)})
    with pytest.raises(OutputError, match="Cannot write"):
        save(tmp_path / "no" / "x", {"w": np.ones(2)})
    assert not list(tmp_path.iterdir())


def test_save_and_rewrite_on_a_full_disk(tmp_path, tiny_disk):
    array = np.ones(100_000, np.float32)
    save(tmp_path / "source", {"w": array})
    for write in (
        lambda folder: save(folder / "x", {"w": array}),
        lambda folder: rewrite(tmp_path / "source", folder / "x", {}, None),
    ):
        with (
            pytest.raises(OutputError, match="No space left"),
            new_folder(tiny_disk / "out", overwrite=False) as folder,
        ):
            write(folder)
        assert not list(tiny_disk.iterdir())
