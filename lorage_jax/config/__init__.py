"""Run and model configuration: frozen dataclasses, validated when built, saved as JSON.

`ModelConfig` describes a decoder, `GeneratorConfig` the trained parts, `DataConfig` the batches,
`ExperimentConfig` a run of `lorage train`, `PretrainConfig` a run of `lorage pretrain`,
`CompareConfig` a comparison by `lorage compare`.
"""

from lorage_jax.config.compare import CompareConfig, TaskQuestions, WorldQuestions
from lorage_jax.config.data import DataConfig, HeldOut, PromptForms, Source
from lorage_jax.config.generator import GeneratorConfig
from lorage_jax.config.model import PROJECTIONS, SIZES, ModelConfig, RopeScaling
from lorage_jax.config.pretrain import Corpus, PretrainConfig
from lorage_jax.config.training import ExperimentConfig, MeshConfig, OptimizerConfig

__all__ = [
    "PROJECTIONS",
    "SIZES",
    "CompareConfig",
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
    "TaskQuestions",
    "WorldQuestions",
]
