"""`lorage compare`: several methods, trained and asked alike, in one table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lorage_jax import distributed
from lorage_jax.commands.experiment import load_experiment
from lorage_jax.commands.experiment_options import Compare
from lorage_jax.commands.places import TABLE, check_place, write_result
from lorage_jax.config import CompareConfig
from lorage_jax.errors import ConfigError

if TYPE_CHECKING:
    from lorage_jax.compare.parts import Part


def run(options: Compare) -> dict[str, Any] | None:
    """Trains and measures what is not there yet, prints the table and returns its figures.

    Several processes train together, as by `lorage train`, and share the questions; only the main
    one measures times, prints, writes and returns.
    """
    distributed.initialise(options.coordinator, options.num_processes, options.process_id)
    with distributed.only_main_prints():
        result = _compared(options)
    return result if distributed.is_main() else None


def _compared(options: Compare) -> dict[str, Any]:
    from lorage_jax.compare import measure
    from lorage_jax.compare.facts import bigger_clouds
    from lorage_jax.report.comparison import to_markdown

    with distributed.together():
        config, parts = _checked(options)
    distributed.check_same(
        {"the comparison": (parts, config.questions), "--limit": options.limit},
        "Start all processes with the same options and experiment.",
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        found.setdefault(part.row, []).append(measure.measured(config, part, options.limit))
    result = measure.combined(config, found, bigger_clouds(config, parts))
    if options.costs:
        for name, one in measure.costs(config, parts, options.limit).items():
            result["methods"][name] |= one
    if not distributed.is_main():
        return result
    text = to_markdown(result)
    print(text)
    if options.table is not None:
        write_result(options.table, text, TABLE)
    return result


def _checked(options: Compare) -> tuple[CompareConfig, list[Part]]:
    """The comparison and its parts, checked before the long work."""
    from lorage_jax.compare.parts import all_parts, check_untrained

    config = load_experiment(options.experiment, CompareConfig)
    if options.out is not None:
        base = dataclasses.replace(config.base, out=str(options.out))
        config = dataclasses.replace(config, base=base, figures="")
    for name in ("seeds", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected 1 or more.")
    if options.table is not None:
        check_place(options.table, TABLE, options)
    names = [name.strip() for name in (options.methods or "").split(",") if name.strip()]
    parts = all_parts(config, names or list(config.methods), options.seeds)
    check_untrained(config, parts)
    return config, parts
