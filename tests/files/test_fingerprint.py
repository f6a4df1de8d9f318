import json
import os

import ml_dtypes
import numpy as np
import pytest

from lorage_jax.errors import WeightsError
from lorage_jax.files import fingerprint as module
from lorage_jax.files.fingerprint import fingerprint, fingerprint_arrays
from lorage_jax.files.safetensors import INDEX, SINGLE, save

ARRAYS = {
    "b": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a": np.arange(8).astype(ml_dtypes.bfloat16),
    "scalar": np.float32(1.5),
    "empty": np.zeros((0, 2), np.float32),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save(tmp_path / SINGLE, ARRAYS)
    return tmp_path


def test_the_scheme_does_not_change(folder):
    """Existing cards hold this value: another scheme would invalidate them."""
    expected = "sha256:262442a0b1b384921c626607a60759f3457b2f3e8875ec57e0e255fe98fcc8b4"
    assert fingerprint(folder) == fingerprint_arrays(ARRAYS) == expected


def test_files_order_and_metadata_do_not_matter(folder):
    whole = fingerprint(folder)
    (folder / SINGLE).unlink()
    weight_map = {}
    for number, name in enumerate(ARRAYS):
        save(folder / f"{number}.safetensors", {name: ARRAYS[name]}, {"k": str(number)})
        weight_map[name] = f"{number}.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert fingerprint(folder) == whole
    assert fingerprint_arrays(dict(reversed(ARRAYS.items()))) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"b": np.nextafter(ARRAYS["b"], 99)},
        {"b": ARRAYS["b"].reshape(4, 3)},
        {"b": ARRAYS["b"].T},
        {"b": ARRAYS["b"].view(np.int32)},
        {"b": ARRAYS["b"].astype(np.float64)},
        {"a": ARRAYS["a"][::-1]},
        {"more": np.zeros(1)},
        {"empty": np.zeros((2, 0), np.float32)},
    ],
)
def test_every_change_of_the_weights_matters(change):
    assert fingerprint_arrays(ARRAYS | change) != fingerprint_arrays(ARRAYS)


def test_names_matter():
    renamed = {"c" if name == "b" else name: array for name, array in ARRAYS.items()}
    swapped = ARRAYS | {"x": np.ones(2), "y": np.zeros(2)}
    assert fingerprint_arrays(renamed) != fingerprint_arrays(ARRAYS)
    assert fingerprint_arrays(swapped) != fingerprint_arrays(
        ARRAYS | {"y": np.ones(2), "x": np.zeros(2)}
    )


def test_memory_layout_does_not_matter():
    import jax.numpy as jnp

    strided = ARRAYS | {"b": np.asfortranarray(ARRAYS["b"]), "a": jnp.asarray(ARRAYS["a"])}
    assert fingerprint_arrays(strided) == fingerprint_arrays(ARRAYS)


def test_hashed_once_and_again_after_a_change(folder, monkeypatch):
    calls = []
    combine = module._combine
    monkeypatch.setattr(module, "_combine", lambda tensors: calls.append(1) or combine(tensors))
    first = fingerprint(folder)
    assert fingerprint(str(folder)) == first and len(calls) == 1
    save(folder / SINGLE, ARRAYS | {"b": -ARRAYS["b"]})
    assert fingerprint(folder) != first and len(calls) == 2
    os.utime(folder / SINGLE, ns=(1, 1))
    fingerprint(folder)
    assert len(calls) == 3


def test_errors(tmp_path):
    with pytest.raises(WeightsError, match="not a folder"):
        fingerprint(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="w: dtype complex128"):
        fingerprint_arrays({"w": np.ones(2, complex)})
