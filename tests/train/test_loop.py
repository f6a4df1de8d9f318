"""Checks before and between steps: rows, folders, token ids."""

import numpy as np
import pytest

from lorage_jax.config import MeshConfig
from lorage_jax.data.batches import Batch, host_rows
from lorage_jax.errors import ConfigError, DataError, OutputError
from lorage_jax.methods.training import train
from lorage_jax.sharding import make_mesh
from lorage_jax.train.loop import _check_ids, check_divides, check_run_folder


def test_rows_divide_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_divides(4, "4 rows", mesh, "rows")
    with pytest.raises(ConfigError, match=r"6 rows does not divide over 4 .*2 x fsdp 2.* of 4,"):
        check_divides(6, "6 rows", mesh, "rows")


def test_chunks_of_prompts_divide_too(experiment):
    config = experiment(data={"prompts_per_batch": 16, "prompt_chunks": 4})
    with pytest.raises(ConfigError, match="4 prompts does not divide over 8 devices"):
        train(config, progress=False)


def test_the_folder_of_a_run(tmp_path):
    out = tmp_path / "run"
    check_run_folder(out, "model", resume=False)
    (out / "checkpoints").mkdir(parents=True)
    with pytest.raises(OutputError, match="already holds a run"):
        check_run_folder(out, "model", resume=False)
    check_run_folder(out, "model", resume=True)
    (out / "config.json").write_text('{"data_contents": "x"}')
    check_run_folder(out, "model", resume=True)
    (out / "model").mkdir()
    (out / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="has no usable lorage"):
        check_run_folder(out, "model", resume=True)
    (out / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(OutputError, match="something else"):
        check_run_folder(out, "model", resume=True)
    with pytest.raises(OutputError, match="is a file"):
        check_run_folder(out / "config.json", "model", resume=False)


def test_ids_of_every_chunk_are_in_the_table():
    def chunks(*rows):
        return Batch(tuple(host_rows(tokens=np.array([ids]), mask=None) for ids in rows), ())

    sizes = {"prompts": ("cloud", 60)}
    _check_ids(chunks([3, 59], [0]), sizes)
    with pytest.raises(DataError, match=r"cloud's tokenizer gives id 60, .* 0 to 59"):
        _check_ids(chunks([3, 59], [60]), sizes)
