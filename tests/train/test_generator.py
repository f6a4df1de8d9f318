"""A whole run: it learns, it resumes bit for bit, devices and micro-batches change nothing.

Runs of `experiment()` without changes share a compiled step, which is most of their time.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.config import MeshConfig, Source
from lorage_jax.errors import ConfigError, DataError, OutputError, TrainingError
from lorage_jax.files.safetensors import read_tensors
from lorage_jax.methods.training import train
from lorage_jax.train.watch import Watch, read_logs
from tests.tiny import make_generator, make_tiny


def tensors(result):
    return read_tensors(result.folder / "generator.safetensors")


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_it_learns_and_leaves_a_generator(experiment):
    result = train(
        experiment(steps=16, generator={"dropout": 0.0}, optimizer={"learning_rate": 1e-2}),
        progress=False,
    )
    losses = [loss for _, loss in result.losses]
    assert [step for step, _ in result.losses] == list(range(1, 17))
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])
    loaded = lg.load_generator(result.folder)
    assert loaded.fingerprint == result.fingerprint
    card = lg.specialize(loaded, "Say 3 twice.")
    np.testing.assert_allclose(card.gates.sum(-1), 1.0, atol=1e-6)
    for name, value in tensors(result).items():
        assert np.isfinite(value).all(), name
        if name.endswith(("pool.gate.b", "adapters.q.b", "norm.mean")):
            assert np.abs(value).max() > 0, f"{name} was not trained"


@pytest.mark.parametrize(
    ("method", "packed"), [(None, None), pytest.param("lora", 8, marks=pytest.mark.slow)]
)
def test_all_answers_of_a_chat_are_learnt_on_request(experiment, tmp_path, method, packed):
    """Two exchanges per chat: with `all`, both answers are targets, each byte and each eos."""
    path, roles = tmp_path / "chats.jsonl", ("system", "user", "assistant", "user", "assistant")
    chats = [(f"Say {n}.", "a", "b" * (n % 3 + 1), "c", "d") for n in range(8)]
    for texts in chats:
        turns = [{"role": r, "content": c} for r, c in zip(roles, texts, strict=True)]
        with path.open("a") as file:
            file.write(json.dumps({"messages": turns}) + "\n")
    found = {}
    for turns in ("last", "all"):
        data = {"assistant_turns": turns, "sources": (Source(str(path)),), "packed_rows": packed}
        out = tmp_path / turns
        config = experiment(method=method, data=data, out=str(out), steps=3, log_every=1)
        found[turns] = train(config, progress=False).losses
        targets = read_logs(out / "logs")["train/target_tokens"]
        answers = [text for chat in chats for text in chat[2 if turns == "all" else 4 :: 2]]
        assert [count for _, count in targets] == [sum(len(f" {a}") + 1 for a in answers)] * 3
    assert found["all"] != found["last"]


def test_frozen_weights_are_not_in_the_state(experiment):
    result = train(experiment(), progress=False)
    parts = {name.split(".")[0] + "." + name.split(".")[1] for name in tensors(result)}
    assert parts == {
        "trained.meta",
        "trained.adapters",
        "trained.router",
        "trained.pool",
        "statistics.norm",
    }


def interrupt_at(monkeypatch, step):
    record = Watch.record

    def stop(self, number, metrics, batch):
        record(self, number, metrics, batch)
        if number == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "record", stop)


@pytest.mark.slow  # so does the run that SIGTERM stops, in test_preemption.py
@pytest.mark.parametrize("routing", ["topk", "gumbel"])
def test_resume_is_bit_exact(experiment, monkeypatch, tmp_path, routing):
    """6 steps = 4 steps + kill + 2 steps, with dropout, noise and data shuffled every 5 steps."""
    settings = {"save_every": 2, "generator": {"routing": routing}}
    whole = train(experiment(out=str(tmp_path / "whole"), **settings), progress=False)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(experiment(**settings), progress=False)
    assert not (Path(experiment().out) / "generator").exists()
    second = train(experiment(**settings), resume=True, progress=False)
    assert second.first_step == 4
    assert second.losses == whole.losses[4:]
    assert_same(tensors(whole), tensors(second))


STEP = {
    "mesh": MeshConfig(data=2, tensor=4),
    "generator": {"dropout": 0.0, "router_scope": "per_layer"},
    "data": {"min_bucket": 8},
    "steps": 4,
}
SAME = {  # name: what else the run has
    "mesh": {"mesh": MeshConfig(8, 1, 1)},
    "packed": {"data": {"packed_rows": 2, "min_bucket": 8}},
}
SAME_SLOW = {
    "chunks": {"data": {"prompt_chunks": 4, "min_bucket": 8}},
    "three axes": {"mesh": MeshConfig(2, 2, 2)},
    "fsdp": {"mesh": MeshConfig(1, 4, 2)},
    "four rows": {"data": {"packed_rows": 4, "min_bucket": 8}},
}


@pytest.fixture(scope="module")
def step(experiment_in, tmp_path_factory):
    """The run of STEP, with which runs of the same batches compare."""
    return train(experiment_in(tmp_path_factory.mktemp("step"), **STEP), progress=False)


@pytest.mark.parametrize(
    "changes",
    [
        *(pytest.param(changes, id=name) for name, changes in SAME.items()),
        *(pytest.param(x, id=name, marks=pytest.mark.slow) for name, x in SAME_SLOW.items()),
    ],
)
def test_it_is_the_same_step(experiment, step, changes):
    """On other devices' shares; with prompts sorted and padded in parts; with packed rows.

    Packed prompts do not see each other, nor do queries, which get their prompts' gates.
    """
    assert_same_run(train(experiment(**STEP | changes), progress=False), step)


@pytest.mark.slow
def test_packed_products_are_the_same_step(experiment, tmp_path):
    generator = {**STEP["generator"], "combine": "products"}
    plain = experiment(**STEP | {"generator": generator, "out": str(tmp_path / "plain")})
    packed = experiment(**STEP | {"generator": generator} | SAME_SLOW["four rows"])
    assert_same_run(*(train(config, progress=False) for config in (packed, plain)))


def assert_same_run(found, wanted):
    plain = [loss for _, loss in wanted.losses]
    assert len(set(plain)) == 4  # something is learnt, so the gradients are right, too
    np.testing.assert_allclose([loss for _, loss in found.losses], plain, rtol=2e-5)
    before = tensors(wanted)
    # BatchNorm removes what this bias adds, so its gradient is only rounding.
    moved = ("trained.router.f2.bias", "statistics.norm.mean")
    for name, value in tensors(found).items():
        if name not in moved:
            np.testing.assert_allclose(value, before[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize("chunks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_accumulation_is_the_same_step(experiment, tmp_path, chunks):
    """Without BatchNorm and CV, which see a whole micro-batch, halves add up."""
    plain = {"batch_norm": False, "cv_weight": 0.0, "dropout": 0.0}
    found = []
    for accumulate in (1, 2):
        config = experiment(
            out=str(tmp_path / str(accumulate)),
            mesh=MeshConfig(data=4 // chunks, tensor=2 * chunks),
            generator=plain,
            optimizer={"accumulate": accumulate},
            data={"prompt_chunks": chunks if accumulate == 2 else 1, "min_bucket": 8},
            steps=4,
        )
        found.append(train(config, progress=False))
    np.testing.assert_allclose(*[[loss for _, loss in f.losses] for f in found], rtol=1e-5)
    first, second = map(tensors, found)
    # Adam divides by a gradient's size: for tiny gradients, rounding changes 3 % of a step.
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "switches",
    [
        {
            "router_scope": "per_layer",
            "pool_scope": "shared",
            "combine": "products",
            "hidden_layer": 0,
        },
        pytest.param(
            {"cloud_rank": 0, "batch_norm": False, "top_k": 1, "dropout": 0.0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_switch_trains_and_loads(experiment, switches):
    result = train(experiment(steps=6, generator=switches), progress=False)
    assert np.isfinite([loss for _, loss in result.losses]).all()
    loaded = lg.load_generator(result.folder)
    card = lg.specialize(loaded, "Say 3 twice.")
    np.testing.assert_allclose(card.gates.sum(-1), 1.0, atol=1e-6)
    edge = lg.load_model(experiment().edge)
    tokens = [[5, 6, 7, 8]]
    unmerged = lg.forward(edge, tokens, gates=card, pool=loaded.pool)
    np.testing.assert_allclose(
        lg.forward(lg.merge(edge, loaded.pool, card), tokens), unmerged, atol=2e-4
    )
    assert np.abs(unmerged - lg.forward(edge, tokens)).max() > 1e-4


@pytest.mark.slow
def test_remat_changes_nothing_and_bfloat16_little(experiment, tmp_path):
    losses = {}
    for remat, dtype in (("none", "float32"), ("full", "float32"), ("full", "bfloat16")):
        config = experiment(
            out=str(tmp_path / remat / dtype),
            steps=4,
            remat=remat,
            dtype=dtype,
            generator={"dropout": 0.0},
        )
        losses[remat, dtype] = [loss for _, loss in train(config, progress=False).losses]
    plain = losses["none", "float32"]
    np.testing.assert_allclose(losses["full", "float32"], plain, rtol=1e-5)
    np.testing.assert_allclose(losses["full", "bfloat16"], plain, rtol=0.05)


def test_first_loss_is_the_base_models(experiment):
    """A fresh pool changes nothing: step 1 has the loss that torch computes on its batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from lorage_jax.data.pipeline import make_dataset

    config = experiment()
    loss = train(config, progress=False).losses[0][1]
    cloud, edge = lg.load_model(config.cloud), lg.load_model(config.edge)
    batch = next(iter(make_dataset(config.data, cloud.tokenizer, edge.tokenizer, config.seed)))
    model = AutoModelForCausalLM.from_pretrained(config.edge).eval()
    tokens = torch.tensor(batch.queries[0].tokens, dtype=torch.long)
    labels = tokens.masked_fill(~torch.tensor(batch.queries[0].loss_mask), -100)
    with torch.no_grad():
        expected = model(
            tokens, attention_mask=torch.tensor(batch.queries[0].mask).long(), labels=labels
        ).loss
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(experiment):
    config = experiment(
        steps=12, save_every=1, optimizer={"learning_rate": 1e25, "warmup_steps": 3}
    )
    with pytest.raises(TrainingError) as caught:
        train(config, progress=False)
    message = str(caught.value)
    assert "step " in message and "train.jsonl:" in message and "kept" in message
    from lorage_jax.train.checkpoint import Checkpoints

    with Checkpoints(Path(config.out) / "checkpoints", 3) as checkpoints:
        kept = checkpoints.latest()
    assert f"step {kept} is kept" in message
    assert not (Path(config.out) / "generator").exists()


def test_a_checkpoint_of_another_config_is_refused(experiment):
    train(experiment(), progress=False)
    with pytest.raises(TrainingError, match=r"generator\.alpha"):
        train(experiment(generator={"alpha": 8.0}), resume=True, progress=False)


def test_a_checkpoint_of_other_data_is_refused(experiment, data_file, tmp_path):
    copy = tmp_path / "copy.jsonl"
    shutil.copy(data_file, copy)
    moved = {"sources": (Source(str(copy)),)}
    train(experiment(), progress=False)
    train(experiment(data=moved), resume=True, progress=False)  # moved, but unchanged
    copy.write_text(copy.read_text("utf-8").replace("go", "come"), "utf-8")
    with pytest.raises(TrainingError, match="data_contents"):
        train(experiment(data=moved), resume=True, progress=False)


def test_token_ids_outside_the_vocabulary_stop_the_run(experiment, pair, tmp_path):
    cloud = tmp_path / "cloud"
    make_tiny("llama", cloud, num_hidden_layers=2, hidden_size=32, vocab_size=60)
    with pytest.raises(DataError, match=r"cloud.*0 to 59"):
        train(experiment(cloud=str(cloud), steps=3), progress=False)
    generator = make_generator(cloud, pair[1])
    with pytest.raises(DataError, match="0 to 59"):
        lg.specialize(generator, "zebra")


def test_a_folder_with_a_run_is_refused(experiment):
    train(experiment(), progress=False)
    with pytest.raises(OutputError, match="--resume"):
        train(experiment(), progress=False)


def test_batch_must_divide_over_devices(experiment):
    assert jax.device_count() == 8
    with pytest.raises(ConfigError, match="6 prompts does not divide over 8 devices"):
        train(experiment(data={"prompts_per_batch": 6}), progress=False)
    with pytest.raises(ConfigError, match=r"4 packed rows does not divide.*Make packed_rows a"):
        train(experiment(data={"packed_rows": 4}), progress=False)
    with pytest.raises(ConfigError, match="packed_rows and accumulate = 2 cannot be combined"):
        experiment(data={"packed_rows": 4}, optimizer={"accumulate": 2})


def test_mesh_must_fit_the_devices(experiment):
    with pytest.raises(ConfigError, match="8 devices"):
        train(experiment(mesh=MeshConfig(data=3)), progress=False)


def test_lengths_must_fit_the_models(experiment):
    with pytest.raises(ConfigError, match="max_prompt_tokens"):
        train(experiment(data={"max_prompt_tokens": 254}), progress=False)
    with pytest.raises(ConfigError, match="max_query_tokens"):
        train(experiment(data={"max_query_tokens": 257}), progress=False)


@pytest.mark.slow
def test_curves_are_written(experiment):
    result = train(experiment(steps=4, log_every=2), progress=False)
    found = read_logs(result.folder.parent / "logs")
    for name in ("loss", "cv", "grad_norm", "learning_rate", "tokens_per_second"):
        assert [step for step, _ in found[f"train/{name}"]] == [2, 4], name
    losses = [loss for _, loss in result.losses]
    means = [np.mean(losses[:2]), np.mean(losses[2:])]
    assert [loss for _, loss in found["train/loss"]] == pytest.approx(means, rel=1e-6)
    assert found["train/learning_rate"][-1][1] < found["train/learning_rate"][0][1]
    usage = [values[-1][1] for name, values in found.items() if name.startswith("usage/layer00")]
    assert len(usage) == 8 and sum(usage) == pytest.approx(4.0)
