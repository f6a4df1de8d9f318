"""`lorage specialize`: deploy a system prompt as card, adapter and merged checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lorage_jax.commands.options import Specialize
from lorage_jax.data.records import read_text
from lorage_jax.distributed import alone
from lorage_jax.errors import ConfigError
from lorage_jax.files.manifest import write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.generator.deploy import OUTPUTS, DeployReport, Outputs, deploy, loss_in_words
from lorage_jax.generator.store import (
    check_identity,
    load_generator,
    read_values,
    recorded_path,
)

FORMAT = "lorage-special/1"


def run(options: Specialize) -> dict[str, Any]:
    """Writes the folder `--out`, prints the report and returns it."""
    alone("lorage specialize")
    outputs = _outputs(options)
    check_target(options.out, options.overwrite)
    text = read_text(options.prompt)
    values = read_values(options.generator)
    folder = options.edge or recorded_path(values, "edge", options.generator)
    check_identity(folder, values, "edge")  # before anything large is loaded
    generator = load_generator(options.generator, options.cloud)
    with new_folder(options.out, overwrite=options.overwrite) as temporary:
        report = deploy(generator, text, temporary, folder, outputs)
        write_manifest(temporary, {"format": FORMAT, "report": report.to_json()})
    print(describe(report, options.out))
    if outputs.merges and (words := loss_in_words(report.merge, report.dtype)) is not None:
        print(f"lorage: {words}", file=sys.stderr)
    return report.to_json()


def describe(report: DeployReport, out: Path) -> str:
    """The report as text for the terminal."""
    parity = report.parity
    pairs = ", ".join(f"{k} {v:.1e}" for k, v in parity.items() if k != "max_abs_logit_diff")
    return (
        f"Specialised: {', '.join(report.saved)} in {out}\n"
        f"Parity: largest logit difference {parity['max_abs_logit_diff']:.1e} ({pairs}), "
        f"weights {report.dtype}\n"
        f"Merge: largest rounding error {report.merge.largest_rounding:.1e}, "
        f"{report.merge.share_unmoved:.1%} of FFN weights did not move, rounding "
        f"{report.merge.rounding}; KL lost by the cast {report.merge.kl_lost:.1e} of the prompt's "
        f"{report.merge.kl_effect:.1e} nats per token\n"
        f"Prompt tokens saved per request: {report.prompt_tokens_saved} "
        f"(read once by the cloud: {report.cloud_tokens}); card {report.card_bytes} bytes"
    )


def _outputs(options: Specialize) -> Outputs:
    save = tuple(part.strip() for part in options.save.split(",") if part.strip())
    if not save or set(save) - set(OUTPUTS):
        raise ConfigError(
            f"--save is {options.save!r}; expected any of {', '.join(OUTPUTS)}, "
            "separated by commas."
        )
    return Outputs(
        save,
        options.dtype,
        rounding=options.rounding,
        seed=options.seed,
        strict=options.strict,
        base_name=options.base_name,
        gguf_type=options.gguf_type,
    )
