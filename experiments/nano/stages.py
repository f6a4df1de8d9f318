"""The stages of a training; the command line selects one by `FILE:STAGE`."""

from lorage_jax.errors import ConfigError


def stage_of(stages: tuple[str, ...], name: str) -> int:
    """Position of the stage `name`. Raises ConfigError for an unknown one."""
    if name not in stages:
        raise ConfigError(f"the stage is {name!r}; expected one of {', '.join(stages)}.")
    return stages.index(name)
