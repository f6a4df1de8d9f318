"""An edge whose file mixes dtypes, bfloat16 matrices and float32 norms, is specialised as it is."""

import shutil

import torch
from safetensors.torch import load_file, save_file

from lorage_jax.generator.deploy import deploy
from lorage_jax.hf.load import stored_dtypes
from tests.tiny import make_generator


def test_its_tensors_keep_their_dtypes_and_values(pair, tmp_path):
    cloud, edge = pair
    mixed, out = tmp_path / "edge", tmp_path / "out"
    shutil.copytree(edge, mixed)
    file = mixed / "model.safetensors"
    stored = {
        name: tensor if tensor.ndim == 1 else tensor.to(torch.bfloat16)
        for name, tensor in load_file(file).items()
    }
    save_file(stored, file, {"format": "pt"})
    assert stored_dtypes(edge) == ("float32", "float32")
    assert stored_dtypes(mixed) == ("bfloat16", "float32")
    out.mkdir()
    report = deploy(make_generator(cloud, mixed), "Say 3 twice.", out, mixed)
    assert report.dtype == "bfloat16"
    assert report.parity["unmerged_vs_adapter"] < 1e-3
    merged = load_file(out / "merged" / "model.safetensors")
    assert {name: x.dtype for name, x in merged.items()} == {n: x.dtype for n, x in stored.items()}
    changed = [name for name, x in merged.items() if not torch.equal(x, stored[name])]
    assert changed and all("mlp" in name for name in changed)
