"""`train(config)`: trains the method that an experiment names."""

from __future__ import annotations

from typing import TypeGuard

from lorage_jax.config import ExperimentConfig
from lorage_jax.errors import ConfigError
from lorage_jax.methods.method import METHODS, Method, get_method
from lorage_jax.train.experiment import Trainable, train_method
from lorage_jax.train.loop import TrainResult

DEFAULT = "lora_gen"


def train(
    config: ExperimentConfig,
    *,
    resume: bool = False,
    progress: bool = True,
    profile: tuple[int, int] | None = None,
    checkpoints: str | None = None,
) -> TrainResult:
    """Trains `config.method`, by default a generator, and writes it into the run's folder.

    Args:
        config: the run; its folder is `config.out`.
        resume: go on from the latest checkpoint, if there is one.
        progress: show a progress bar.
        profile: first and last step to trace.
        checkpoints: folder or gs://... that all hosts share, instead of `<out>/checkpoints`.

    Raises:
        TrainingError: a loss that is not finite (naming step and records), or a checkpoint of
            another config.
        ConfigError: a method without training, a batch that does not fit the devices, models that
            do not fit the config, or an `init` of another kind.
    """
    return train_method(
        get_trainable(config.method or DEFAULT),
        config,
        resume=resume,
        progress=progress,
        profile=profile,
        checkpoints=checkpoints,
    )


def get_trainable(name: str) -> type[Trainable]:
    """The method registered as `name`. ConfigError if it has nothing to train."""
    method = get_method(name)
    if _trains(method):
        return method
    able = sorted(name for name, method in METHODS.items() if _trains(method))
    raise ConfigError(f"the method {name} has nothing to train; expected {', '.join(able)}.")


def _trains(method: type[Method]) -> TypeGuard[type[Trainable]]:
    return Trainable in method.__mro__
