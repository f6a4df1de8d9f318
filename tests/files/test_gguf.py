"""GGUF files: the types, against the gguf package, and damaged headers."""

import struct

import gguf
import numpy as np
import pytest

from lorage_jax.errors import WeightsError
from lorage_jax.files import gguf as files
from lorage_jax.files.gguf import open_gguf_file

KINDS = [kind for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_of_the_package_is_dequantised_in_blocks(tmp_path, monkeypatch, kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(0)
    raw = draw.integers(0, 256, (40, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(files, "BLOCK", 4 * 2 * block * 7)  # seven rows
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, kind)
        found = open_gguf_file(tmp_path / "x.gguf")
        assert found.tensors["x"].shape == (40, 2 * block)
        np.testing.assert_array_equal(np.asarray(found.rows("x", 0, 40), np.float32), expected)
        part = np.asarray(found.rows("x", 5, 21), np.float32)
    np.testing.assert_array_equal(part, expected[5:21])


ALIGNMENT = struct.pack("<Q17s", 17, b"general.alignment")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (struct.pack("<Q1sI", 1, b"x", files.ARRAY), ""),  # ends before the type of a list
        (struct.pack("<Q1sI", 1, b"x", 99), ""),
        (ALIGNMENT + struct.pack("<II", 4, 0), "general.alignment is 0, not a number of 1 or more"),
        (ALIGNMENT + struct.pack("<Ii", 5, -32), "general.alignment is -32"),
        (ALIGNMENT + struct.pack("<I?", 7, True), "general.alignment is True"),
        (ALIGNMENT + struct.pack("<IQ2s", files.STRING, 2, b"32"), "general.alignment is '32'"),
    ],
    ids=["list", "type", "zero", "negative", "boolean", "text"],
)
def test_damaged_headers_are_one_clear_error(tmp_path, keys, says):
    (tmp_path / "x.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + keys)
    with pytest.raises(WeightsError, match=f"cut off or damaged.*{says}"):
        open_gguf_file(tmp_path / "x.gguf")


def one_tensor(path, kind: int, rest: bytes = bytes(4096)) -> None:
    """A file with one tensor of the type of this number."""
    info = struct.pack("<Q1sIQIQ", 1, b"x", 1, 256, kind, 0)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + info + rest)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        *((4, "type 4,"), (31, "type 31,"), (36, "type 36,"), (137, "type 137,")),
        (15, r"type 15 \(Q8_K\),"),  # the package knows it, and cannot dequantise it
        (26, r"type 26 \(I32\),"),
    ],
)
def test_types_that_nothing_here_dequantises_are_named(tmp_path, kind, says):
    one_tensor(tmp_path / "x.gguf", kind)
    with pytest.raises(WeightsError, match=f"x is in {says}.*another quantisation") as error:
        open_gguf_file(tmp_path / "x.gguf")
    assert "damaged" not in str(error.value)


def test_a_type_that_no_file_has_is_damage(tmp_path):
    one_tensor(tmp_path / "x.gguf", 1 << 30)
    with pytest.raises(WeightsError, match=r"damaged.*x has type 1073741824"):
        open_gguf_file(tmp_path / "x.gguf")
