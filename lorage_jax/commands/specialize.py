"""`lorage specialize`: deploy a system prompt as card, adapter and merged checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from lorage_jax import distributed
from lorage_jax.commands.options import Specialize
from lorage_jax.config import MeshConfig
from lorage_jax.data.records import read_text
from lorage_jax.errors import ConfigError
from lorage_jax.fields import home_path
from lorage_jax.files.dtypes import DTYPES
from lorage_jax.files.manifest import write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.generator.deploy import (
    OUTPUTS,
    USUAL,
    DeployReport,
    Outputs,
    Reading,
    deploy,
    loss_in_words,
    read_prompt,
)
from lorage_jax.generator.generator import Generator
from lorage_jax.generator.store import (
    edge_path,
    generator_path,
    load_generator,
    read_values,
    recorded_path,
)
from lorage_jax.hf.source import read_model_config
from lorage_jax.models.presets import parameter_count
from lorage_jax.sharding import Layout, inference_mesh, local_memory, make_mesh

if TYPE_CHECKING:
    from lorage_jax.commands.tuning import Learning

FORMAT = "lorage-special/1"


def run(options: Specialize) -> dict[str, Any] | None:
    """Writes the folder `--out`, prints the report and returns it.

    With several processes, each holds and runs its part of a shared cloud; the main one does the
    rest and alone returns the report.
    """
    distributed.initialise(options.coordinator, options.num_processes, options.process_id)
    with distributed.together():
        outputs = _outputs(options)
        if distributed.is_main():
            read = (options.generator, options.edge, options.cloud, options.prompt, options.samples)
            check_target(options.out, options.overwrite, *read)
        text = read_text(options.prompt)
        learning = _learning(options, text)
        options = dataclasses.replace(options, generator=generator_path(options.generator))
        values = read_values(options.generator)
        layout = cloud_layout(options, values)
    same = {
        "the prompt": text,
        "--samples": learning,
        "the generator": values["fingerprint"],
        "--tensor": options.tensor,
    }
    distributed.check_same(same, "Start all processes with the same options and files.")
    if layout is None:
        return distributed.on_main(lambda: _deployed(options, text, values, outputs, learning))
    with distributed.together():
        generator = load_generator(options.generator, options.cloud, layout=layout)
    reading = read_prompt(generator, text)
    return distributed.on_main(
        lambda: _deployed(options, text, values, outputs, learning, generator, reading)
    )


def cloud_layout(options: Specialize, values: dict[str, Any]) -> Layout | None:
    """The layout of the cloud's weights over all processes' devices; None if one device holds them.

    Raises ConfigError for a `--tensor` that does not divide the devices.
    """
    count = jax.device_count()
    if options.tensor is not None and (options.tensor < 1 or count % options.tensor):
        raise ConfigError(
            f"--tensor is {options.tensor}; expected a number that divides the {count} devices."
        )
    if options.tensor is not None:
        mesh = make_mesh(MeshConfig(data=-1, tensor=options.tensor))
    else:
        limit = local_memory(jax.local_devices())
        if limit is None:  # of a CPU
            return None
        source = options.cloud or recorded_path(values, "cloud", options.generator)
        shape = read_model_config(home_path(source))
        size = parameter_count(shape) * DTYPES[values["dtype"]].dtype.itemsize
        mesh = inference_mesh(size, limit)
    return Layout(mesh) if mesh.shape["tensor"] > 1 else None


def _deployed(
    options: Specialize,
    text: str,
    values: dict[str, Any],
    outputs: Outputs,
    learning: Learning | None,
    generator: Generator | None = None,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Writes the results of the prompt `text` and returns the report."""
    folder = edge_path(values, options.generator, options.edge)  # before anything large is loaded
    generator = generator or load_generator(options.generator, options.cloud)
    if learning is not None:
        from lorage_jax.commands.tuning import learnt

        reading = learnt(generator, text, folder, learning, reading)
    with new_folder(options.out, overwrite=options.overwrite) as temporary:
        report = deploy(generator, text, temporary, folder, outputs, reading)
        write_manifest(temporary, {"format": FORMAT, "report": report.to_json()})
    print(describe(report, options.out))
    words = loss_in_words(report.merge, report.dtype, outputs.gguf_type)
    if outputs.merges and words is not None:
        print(f"lorage: {words}", file=sys.stderr)
    return report.to_json()


def _learning(options: Specialize, prompt: str) -> Learning | None:
    """The prompt's samples to learn from, if there are any. Raises ConfigError and DataError."""
    if options.samples is not None:
        from lorage_jax.commands.tuning import read_learning  # imports what trains

        return read_learning(options, options.samples, prompt)
    if options.tuning_steps is not None or options.tuning_rate is not None:
        raise ConfigError(
            "--tuning-steps and --tuning-rate go with --samples FILE. Add it, or leave them out."
        )
    return None


def describe(report: DeployReport, out: Path) -> str:
    """The report as text for the terminal."""
    parity, merge, saved = report.parity, report.merge, set(report.saved)
    pairs = ", ".join(f"{k} {v:.1e}" for k, v in parity.items() if k != "max_abs_logit_diff")
    lines = [
        f"Specialised: {', '.join(report.saved)} in {out}",
        f"Parity: largest logit difference {parity['max_abs_logit_diff']:.1e} ({pairs}), "
        f"weights {report.dtype}",
    ]
    gguf = ""
    if merge.kl_lost_gguf is not None:
        gguf = f"; {merge.kl_lost_gguf:.1e} lost in the GGUF file"
    if saved & {"merged", "gguf"}:
        lines.append(
            f"Merge: largest rounding error {merge.largest_rounding:.1e}, "
            f"{merge.share_unmoved:.1%} of FFN weights did not move, rounding {merge.rounding}; "
            f"KL lost by the cast {merge.kl_lost:.1e} of the prompt's {merge.kl_effect:.1e} nats "
            f"per token{gguf}"
        )
    card = f"; card {report.card_bytes} bytes" if "card" in saved else ""
    lines.append(
        f"Prompt tokens saved per request: {report.prompt_tokens_saved} "
        f"(read once by the cloud: {report.cloud_tokens}){card}"
    )
    return "\n".join(lines)


def _save(options: Specialize) -> tuple[str, ...]:
    """The outputs to write. Raises ConfigError for an unknown one, or one that cannot be."""
    if options.save is None:
        return USUAL if options.samples is None else tuple(x for x in USUAL if x != "card")
    save = tuple(part.strip() for part in options.save.split(",") if part.strip())
    if not save or set(save) - set(OUTPUTS):
        raise ConfigError(
            f"--save is {options.save!r}; expected any of {', '.join(OUTPUTS)}, "
            "separated by commas."
        )
    if options.samples is not None and "card" in save:
        raise ConfigError(
            "a card holds gates over the generator's experts, and training on --samples leaves "
            "these. Leave card out of --save; adapter and merged hold the result."
        )
    return save


def _outputs(options: Specialize) -> Outputs:
    save = _save(options)
    merged = ("merged", "gguf")
    for flag, given, outputs in (
        ("--base-name", options.base_name is not None, ("adapter",)),
        ("--gguf-type", options.gguf_type is not None, ("gguf",)),
        ("--dtype", options.dtype is not None, merged),
        ("--rounding", options.rounding != Outputs.rounding, merged),
        ("--seed", options.seed is not None, merged),
        ("--strict", options.strict, merged),
    ):
        if given and not set(outputs) & set(save):
            raise ConfigError(
                f"{flag} goes with the output {' or '.join(outputs)}, but --save is "
                f"{','.join(save)}. Add {outputs[0]} to it, or leave {flag} out."
            )
    _check_rounding(options)
    return Outputs(
        save,
        options.dtype,
        rounding=options.rounding,
        seed=Outputs.seed if options.seed is None else options.seed,
        strict=options.strict,
        base_name=options.base_name,
        gguf_type=options.gguf_type or Outputs.gguf_type,
    )


def _check_rounding(options: Specialize) -> None:
    """Raises ConfigError for options of stochastic rounding where there is none."""
    stochastic = options.rounding == "stochastic"
    if options.dtype == "float32" and stochastic:
        raise ConfigError(
            "--rounding stochastic: float32 is never rounded. Leave it out, or choose another "
            "--dtype."
        )
    if options.seed is None or stochastic:
        return
    for flag, idle, why in (
        ("--rounding", options.rounding == "nearest", "is nearest"),
        ("--dtype", options.dtype == "float32", "is float32, and float32 is never rounded"),
    ):
        if idle:
            raise ConfigError(
                f"--seed is of stochastic rounding, but {flag} {why}. Leave --seed out."
            )
