"""The cloud of the nano pair: llama, 7 layers, 2.1 M parameters, a tokenizer of its own.

    lorage pretrain experiments/nano_cloud.py

It learns what the edge learns, see `nano_edge.py`.
"""

from edge import corpora

from lorage_jax.config import OptimizerConfig, PretrainConfig
from lorage_jax.models.presets import plain_decoder


def config() -> PretrainConfig:
    return PretrainConfig(
        model=plain_decoder(
            "llama",
            vocab_size=1792,
            width=160,
            layers=7,
            heads=5,
            kv_heads=5,
            ffn_width=320,
            max_positions=1024,
            tied_head=True,
            bos_id=0,
        ),
        out="runs/nano_cloud",
        corpora=corpora(),
        steps=5000,
        optimizer=OptimizerConfig(2e-3, "muon", betas=(0.9, 0.95), warmup_steps=100),
        remat="none",
        seed=1,
        save_every=250,
        log_every=50,
    )
