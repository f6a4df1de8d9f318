"""`lorage specialize`: deploy a system prompt as card, adapter and merged checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorage_jax.commands.options import Specialize
from lorage_jax.data.records import read_text
from lorage_jax.errors import ConfigError
from lorage_jax.files.manifest import write_manifest
from lorage_jax.files.outputs import check_target, new_folder
from lorage_jax.generator.deploy import OUTPUTS, DeployReport, deploy
from lorage_jax.generator.store import (
    check_identity,
    load_generator,
    read_values,
    recorded_path,
)

FORMAT = "lorage-special/1"


def run(options: Specialize) -> dict[str, Any]:
    """Writes the folder `--out`, prints the report and returns it."""
    save = _outputs(options.save)
    check_target(options.out, options.overwrite)
    text = read_text(options.prompt)
    values = read_values(options.generator)
    folder = options.edge or recorded_path(values, "edge", options.generator)
    check_identity(folder, values, "edge")  # before anything large is loaded
    generator = load_generator(options.generator, options.cloud)
    with new_folder(options.out, overwrite=options.overwrite) as temporary:
        report = deploy(
            generator,
            text,
            temporary,
            folder,
            save=save,
            dtype=options.dtype,
            base_name=options.base_name,
        )
        write_manifest(temporary, {"format": FORMAT, "report": report.to_json()})
    print(describe(report, options.out))
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
        f"{report.merge.share_unmoved:.1%} of FFN weights did not move\n"
        f"Prompt tokens saved per request: {report.prompt_tokens_saved} "
        f"(read once by the cloud: {report.cloud_tokens}); card {report.card_bytes} bytes"
    )


def _outputs(save: str) -> tuple[str, ...]:
    wanted = tuple(part.strip() for part in save.split(",") if part.strip())
    if not wanted or set(wanted) - set(OUTPUTS):
        raise ConfigError(
            f"--save is {save!r}; expected any of {', '.join(OUTPUTS)}, separated by commas."
        )
    return wanted
