"""Decoding and specialising at several batch sizes: figures of the programs, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lorage_jax.aot.programs import Program, Setting, decode_program, specialize_program
from lorage_jax.aot.report import about_lines, compile_program, number, program_roofline
from lorage_jax.aot.topology import Topology

PROGRAMS = ("decode", "decode_cards", "specialize")


def batch_figures(
    setting: Setting, topology: Topology, batches: Iterable[int], names: Iterable[str] = PROGRAMS
) -> Iterator[dict[str, Any]]:
    """Compiles the programs `names` at each batch size and yields their figures per chip.

    Beside those of `compile_program`: `program`, `batch` (rows asked for), `rows` (filled up to the
    batch devices), `mesh`, and `roofline`, for a token in every row or for the whole batch of
    prompts. `setting.row_tokens` is the length of queries and prompts.
    """
    for name in names:
        for batch in batches:
            program, rows, mesh = _program(setting, name, batch)
            figures = compile_program(program, topology)
            yield {
                "program": name,
                "batch": batch,
                "rows": rows,
                "mesh": mesh,
                **figures,
                "roofline": program_roofline(figures, topology),
            }


def _program(setting: Setting, name: str, batch: int) -> tuple[Program, int, dict[str, int]]:
    """The program, its rows, and the sizes of its mesh."""
    placed = setting.inference(setting.cloud if name == "specialize" else setting.edge)
    rows, mesh = placed.filled(batch), dict(placed.layout.mesh.shape)
    if name == "specialize":
        return specialize_program(setting, batch, setting.row_tokens), rows, mesh
    cards = name == "decode_cards"
    return decode_program(setting, batch, setting.row_tokens, cards=cards), rows, mesh


def batch_page(result: dict[str, Any]) -> str:
    """The result of `lorage compile --batches` as text."""
    lengths = [result["prompt_tokens"], result["query_tokens"]]
    if result["row_tokens"] is not None:
        lengths = [result["row_tokens"]] * 2
    lines = [
        *about_lines(result),
        f"Prompts of {lengths[0]} tokens and queries of {lengths[1]}, padded to buckets; times are "
        "those of a token in every row, and of a whole batch of prompts.",
        "",
        f"{'per chip':13}{'batch':>6}{'data x tensor':>15}{'peak GiB':>10}{'GFLOP':>11}"
        f"{'HBM GB':>9}{'sent GB':>9}{'at least':>12}  bound by",
    ]
    for one in result["batches"]:
        roof, mesh = one["roofline"], one["mesh"]
        sent = sum(one["collectives"].values())
        least = "?" if roof["step_s"] is None else f"{1e3 * roof['step_s']:,.2f} ms"
        lines.append(
            f"{one['program']:13}{one['batch']:>6}{mesh['data']:>8} x {mesh['tensor']:<4}"
            f"{number(one['peak_gib']):>10}{one['flops_per_chip'] / 1e9:>11,.1f}"
            f"{number(one['hbm_bytes_per_chip'], 1e9):>9}{number(sent, 1e9):>9}{least:>12}  "
            + (roof["bound_by"] or "?")
            + ("" if one["fits"] else "  DOES NOT FIT")
        )
    return "\n".join(lines)
