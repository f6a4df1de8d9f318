"""A step of one LoRA takes the tokens that peft's takes: the losses agree, step after step."""

import numpy as np
import pytest

from lorage_jax.bench import lora_step, peers


def test_the_same_step_on_both_sides(tiny, monkeypatch):
    folder, torch_model = tiny("llama")
    monkeypatch.setattr(lora_step, "matmul_rate", lambda dtype: 1e9)
    seen, make = [], peers.lora_stepper

    def watched(folder, config, dtype, tokens, targets, **settings):
        seen.append((tokens, targets, settings))
        return make(folder, config, dtype, tokens, targets, **settings)

    monkeypatch.setattr(peers, "lora_stepper", watched)
    result = lora_step.compare_lora_step(
        folder, rows=8, tokens=10, rank=2, remat="full", repeats=1, dtype="float32"
    )
    ((tokens, targets, settings),) = seen
    assert tokens.shape == (8, 10) and settings["checkpointing"] and settings["rank"] == 2
    np.testing.assert_array_equal(targets, np.broadcast_to(np.arange(10) >= 5, (8, 10)))
    assert result["lorage"]["loss"] == pytest.approx(result["transformers"]["loss"], abs=1e-4)
    assert result["lorage"]["loss"] == pytest.approx(_loss(torch_model, tokens, targets), abs=1e-4)
    assert result["lorage"]["tokens_per_second"] == pytest.approx(80 / result["lorage"]["seconds"])
    assert result["ratio"] == pytest.approx(
        result["transformers"]["seconds"] / result["lorage"]["seconds"]
    )


def _loss(model, tokens, targets):
    """Nats per target of the model as it is."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor(tokens, dtype=torch.long)).logits[:, :-1].log_softmax(-1)
    chosen = np.take_along_axis(logits.numpy(), tokens[:, 1:, None], axis=-1)[..., 0]
    return -chosen[targets[:, 1:]].mean()
