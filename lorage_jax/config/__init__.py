"""Run and model configuration: frozen dataclasses, validated when built, saved as JSON.

`ModelConfig` describes a decoder, `GeneratorConfig` the trained parts, `DataConfig` the batches,
`ExperimentConfig` a run of `lorage train`, `PretrainConfig` a run of `lorage pretrain`.
"""

from lorage_jax.config.data import DataConfig, HeldOut, PromptForms, Source
from lorage_jax.config.generator import GeneratorConfig
from lorage_jax.config.model import PROJECTIONS, SIZES, ModelConfig, RopeScaling
from lorage_jax.config.pretrain import Corpus, PretrainConfig
from lorage_jax.config.training import ExperimentConfig, MeshConfig, OptimizerConfig

__all__ = [
    "PROJECTIONS",
    "SIZES",
    "Corpus",
    "DataConfig",
    "ExperimentConfig",
    "GeneratorConfig",
    "HeldOut",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "PromptForms",
    "RopeScaling",
    "Source",
]
