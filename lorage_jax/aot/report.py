"""Figures of compiled programs, and the tables that show them."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import jax

from lorage_jax.aot.hlo import parse
from lorage_jax.aot.programs import Program, Setting, train_program
from lorage_jax.aot.roofline import roofline
from lorage_jax.aot.topology import Topology
from lorage_jax.aot.traffic import Collective, Traffic, sent_bytes, traffic, turn_traffic
from lorage_jax.chips import GIB
from lorage_jax.errors import bullets

SHOWN = 6  # collectives shown per program
# Without this option, a program that does not fit is an error that has no other figures.
OPTIONS = {"xla_tpu_no_crash_on_oom": "true"}


def compile_program(program: Program, topology: Topology) -> dict[str, Any]:
    """Compiles a program and returns its figures per chip, in GiB, FLOPs and bytes.

    FLOPs and bytes moved are those of one run, or, for a program with `turns`, of one turn.

    If it does not fit, `fits` is False and `missing_gib` is above 0. If the compiler gives up,
    `refused` is its reason, and unknown figures are None.
    """
    began = time.perf_counter()
    flops = 2 * program.macs / topology.chips
    try:
        compiled = _compiled(program)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return refused(str(error), topology.chip.usable_gib) | {
            "argument_gib": argument_bytes(program) / GIB,
            "flops_per_chip": flops,
            "compile_seconds": time.perf_counter() - began,
        }
    sizes = compiled.memory_analysis()
    count = turn_traffic if program.turns else traffic
    moved = count(parse(compiled.as_text()), topology.chips // topology.slices)
    peak = sizes.peak_memory_in_bytes / GIB
    return {
        "argument_gib": sizes.argument_size_in_bytes / GIB,
        "temp_gib": sizes.temp_size_in_bytes / GIB,
        "output_gib": sizes.output_size_in_bytes / GIB,
        "shared_gib": sizes.alias_size_in_bytes / GIB,  # of outputs, in the buffers of arguments
        "code_gib": sizes.generated_code_size_in_bytes / GIB,
        "peak_gib": peak,
        "fits": peak <= topology.chip.usable_gib,
        "missing_gib": max(0.0, peak - topology.chip.usable_gib),
        "flops_per_chip": flops,
        **_moved(moved),
        "compile_seconds": time.perf_counter() - began,
    }


def _compiled(program: Program) -> Any:
    """Compiles a program even if it does not fit, unless it is far too large."""
    lowered = program.traced.lower()
    try:
        return lowered.compile(compiler_options=OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "Invalid TPU program" not in str(error):
            raise
    return lowered.compile()  # raises with the memory that it would take


def settled(setting: Setting, topology: Topology) -> Setting:
    """The setting with `remat` none or full; auto becomes none if the step then fits a chip."""
    if setting.config.remat != "auto":
        return setting
    none, full = (
        dataclasses.replace(setting, config=dataclasses.replace(setting.config, remat=remat))
        for remat in ("none", "full")
    )
    return none if compile_program(train_program(none), topology)["fits"] else full


def _moved(moved: Traffic) -> dict[str, Any]:
    sent = sorted(moved.collectives.items(), key=lambda item: -item[0].bytes * item[1])
    return {
        "hbm_bytes_per_chip": moved.hbm,
        "collectives": sent_bytes(moved.collectives),
        "dcn_bytes_per_chip": sum(one.bytes * n for one, n in sent if one.dcn),
        "collective_list": [_collective(one, count) for one, count in sent],
        "loops_counted_once": moved.unknown,
    }


def _collective(one: Collective, times: int) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "shape": one.shape,
        "chips": one.group,
        "times": times,
        "bytes": one.bytes * times,
        "over_dcn": one.dcn,
    }


def refused(message: str, usable_gib: float) -> dict[str, Any]:
    """The figures of a program that the compiler refused for lack of memory."""
    units = {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}
    named = re.findall(r"([\d.]+)([KMGT])\b", message)
    sizes = [float(size) * units[unit] for size, unit in named]
    sizes += [int(size) / GIB for size in re.findall(r"size=(\d+)", message)]
    needed = max(sizes, default=None)
    return {
        "refused": message.splitlines()[0][:400],
        "temp_gib": None,
        "peak_gib": needed,
        "fits": False,
        "missing_gib": None if needed is None else max(0.0, needed - usable_gib),
        "hbm_bytes_per_chip": None,
        "collectives": {},
        "dcn_bytes_per_chip": None,
        "collective_list": [],
    }


def argument_bytes(program: Program) -> int:
    """Bytes of one chip's shards of all arguments."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(program.arguments)
    )


def step_roofline(train_step: dict[str, Any], topology: Topology, macs: int) -> dict[str, Any]:
    """The roofline of a train step, from its figures per chip and the model's MACs on all chips."""
    return program_roofline(train_step, topology, 2 * macs / topology.chips)


def program_roofline(
    figures: dict[str, Any], topology: Topology, model_flops: float | None = None
) -> dict[str, Any]:
    """The roofline of a program, from its figures per chip.

    `model_flops` are those without recomputed activations; by default, all. If the program was
    refused, only the arithmetic is known; the rest is None.
    """
    flops = figures["flops_per_chip"]
    if "refused" in figures:
        names = ("hbm_s", "ici_s", "dcn_s", "step_s", "bound_by", "predicted_mfu")
        return {"compute_s": flops / topology.chip.flops} | dict.fromkeys(names)
    dcn = figures["dcn_bytes_per_chip"]
    return roofline(
        topology.chip,
        flops=flops,
        hbm=figures["hbm_bytes_per_chip"],
        ici=sum(figures["collectives"].values()) - dcn,
        dcn=dcn,
        model_flops=flops if model_flops is None else model_flops,
    )


def about_lines(result: dict[str, Any]) -> list[str]:
    """The chips and the models of a result."""
    chip = result["chip"]
    usable = chip["usable_gib"]
    return [
        f"{result['topology']}: {result['chips']} chips. A chip: {chip['hbm_gib']:g} GiB of HBM "
        f"({usable:g} for a program), {chip['flops'] / 1e12:g} TFLOP/s in bfloat16,",
        f"HBM {chip['hbm'] / 1e9:g} GB/s, interconnect {chip['ici'] / 1e9:g} GB/s, data-centre "
        f"network {chip['dcn'] / 1e9:g} GB/s. Cloud {result['cloud']}, {result['cloud_layers']} "
        f"layers; edge {result['edge']}, {result['edge_layers']} layers.",
    ]


def page(result: dict[str, Any]) -> str:
    """The result of `lorage compile` as text."""
    usable = result["chip"]["usable_gib"]
    lines = [
        *about_lines(result),
        f"Mesh of the step, data x fsdp x tensor: {' x '.join(map(str, result['mesh'].values()))}. "
        + _batch(result),
        "",
        f"{'per chip':12}{'arguments':>11}{'temporary':>11}{'peak GiB':>11}{'GFLOP':>12}"
        f"{'HBM GB':>10}{'sent GB':>10}{'compiled':>10}",
    ]
    for name, one in result["programs"].items():
        sent = sum(one["collectives"].values())
        lines.append(
            f"{name:12}{number(one['argument_gib']):>11}{number(one['temp_gib']):>11}"
            f"{number(one['peak_gib']):>11}{one['flops_per_chip'] / 1e9:>12,.1f}"
            f"{number(one['hbm_bytes_per_chip'], 1e9):>10}{number(sent, 1e9):>10}"
            f"{one['compile_seconds']:>8.0f} s"
        )
    for name, one in result["programs"].items():
        lines += ["", f"{name}: {_verdict(one, usable)}", *_collective_lines(one)]
        if count := one.get("loops_counted_once"):
            lines.append(
                f"  {count} loops of unknown length are counted once: HBM and sent bytes above"
                + (", and the roofline below," if name.endswith("_step") else "")
                + " are too low"
            )
    lines += ["", *_roofline_lines(result["roofline"], "train step")]
    if "typical_roofline" in result:
        lines += ["", *_roofline_lines(result["typical_roofline"], "typical step")]
    return "\n".join(lines)


def _batch(result: dict[str, Any]) -> str:
    """The inputs of the train step."""
    prompts, queries, rows = result["prompts"], result["rows"], result["packed_rows"]
    lengths = [result["prompt_tokens"], result["query_tokens"]]
    if rows is not None:
        lengths = [prompts // rows * lengths[0], queries // rows * lengths[1]]
    where = "rows of their own" if rows is None else f"{rows} rows"
    typical = f" (typical_step: {result['row_tokens']})" if "row_tokens" in result else ""
    return (
        f"A step's batch: {prompts} prompts and {queries} queries in {where}, of at most "
        f"{lengths[0]} and {lengths[1]} slots{typical}."
    )


def number(value: float | None, unit: float = 1.0) -> str:
    """A figure in `unit`, or ? if it is not known."""
    return "?" if value is None else f"{value / unit:.3f}"


def _verdict(one: dict[str, Any], usable: float) -> str:
    if one["fits"]:
        return f"fits, with {usable - one['peak_gib']:.2f} GiB to spare"
    if one["missing_gib"] is None:
        return f"DOES NOT FIT into {usable:g} GiB ({one['refused']})"
    given_up = f" (the compiler gave up: {one['refused']})" if "refused" in one else ""
    return f"DOES NOT FIT into {usable:g} GiB, {one['missing_gib']:.2f} GiB are missing{given_up}"


def _collective_lines(one: dict[str, Any]) -> list[str]:
    if "refused" in one:
        return []
    if not one["collective_list"]:
        return ["  no collectives"]
    lines = [f"  {kind:20}{size / 1e6:>12,.2f} MB" for kind, size in one["collectives"].items()]
    single = [
        f"{each['bytes'] / 1e6:>10,.2f} MB  {each['kind']} of {each['chips']} chips, "
        f"{each['times']} x {each['shape'][:60]}"
        + (", over the data-centre network" if each["over_dcn"] else "")
        for each in one["collective_list"]
    ]
    return [*lines, bullets(single, SHOWN)]


def _roofline_lines(roof: dict[str, Any], what: str) -> list[str]:
    if roof["step_s"] is None:
        return [f"No roofline: the {what} was refused. Compute alone {roof['compute_s']:.4g} s."]
    return [
        f"A {what} takes at least {roof['step_s']:.4g} s, bound by {roof['bound_by']}: compute "
        f"{roof['compute_s']:.4g} s, HBM {roof['hbm_s']:.4g} s, interconnect {roof['ici_s']:.4g} "
        f"s, data-centre network {roof['dcn_s']:.4g} s.",
        f"Predicted MFU, at most: {100 * roof['predicted_mfu']:.1f} %.",
    ]
