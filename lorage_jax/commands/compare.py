"""`lorage compare`: several methods, trained and asked alike, in one table."""

from __future__ import annotations

import dataclasses
from typing import Any

from lorage_jax.commands.experiment import load_experiment
from lorage_jax.commands.options import Compare
from lorage_jax.config import CompareConfig
from lorage_jax.distributed import alone
from lorage_jax.errors import ConfigError
from lorage_jax.files.outputs import check_file, write_file


def run(options: Compare) -> dict[str, Any]:
    """Trains and measures what is not there yet, prints the table and returns its figures."""
    from lorage_jax.report.comparison import to_markdown
    from lorage_jax.world import compare

    alone("lorage compare")
    config = load_experiment(options.experiment, CompareConfig)
    if options.out is not None:
        config = dataclasses.replace(
            config, base=dataclasses.replace(config.base, out=str(options.out))
        )
    for name in ("seeds", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected 1 or more.")
    if options.table is not None:
        check_file(options.table, overwrite=True)  # before the long work
    names = [name.strip() for name in (options.methods or "").split(",") if name.strip()]
    parts = compare.parts(config, names or list(config.methods), options.seeds)
    compare.check_untrained(config, parts)  # before the long work
    found: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        found.setdefault(part.row, []).append(compare.measured(config, part, options.limit))
    result = compare.combined(config, found)
    print("Measuring the costs of all methods, in turn ...")
    for name, costs in compare.costs(config, parts, options.limit).items():
        result["methods"][name] |= costs
    text = to_markdown(result)
    print(text)
    if options.table is not None:
        write_file(options.table, text, overwrite=True)
    return result
