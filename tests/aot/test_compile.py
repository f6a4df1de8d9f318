"""`lorage compile` with the real TPU compiler, in processes of their own: no TPU, no weights."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from lorage_jax.aot.programs import NEW_TOKENS
from lorage_jax.aot.report import page, refused, step_roofline
from lorage_jax.aot.topology import parse_topology
from lorage_jax.hf.config import to_hf_config
from lorage_jax.hf.family import family_decoder
from lorage_jax.hf.presets import SHAPES
from tests.commands.world import REPOSITORY, lorage, subprocess_lorage

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler"
)

EXPERIMENT = """
from lorage_jax.config import *

def config():
    return ExperimentConfig(
        cloud="{root}/cloud", edge="{root}/edge", out="unused", steps=100,
        data=DataConfig((Source("synthetic", "synthetic"),), prompts_per_batch=16,
                        max_prompt_tokens=32, max_query_tokens=32),
        generator=GeneratorConfig(experts=2, top_k=1, rank=4, cloud_rank=4, dropout=0.0),
        mesh=MeshConfig(data=-1, fsdp=-1, tensor=-1))
"""


def experiment(root, **shape):
    """Models of 3 and 2 layers that consist of a config.json only."""
    shape = {"vocab_size": 256, "width": 128, "heads": 4, "kv_heads": 4, "ffn_width": 256} | shape
    for name, layers in (("cloud", 3), ("edge", 2)):
        config = family_decoder("llama", layers=layers, **shape)
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(to_hf_config(config, "bfloat16")))
    (root / "exp.py").write_text(EXPERIMENT.format(root=root))
    return root / "exp.py"


def compiled(root, *options, **shape):
    file = root / "out.json"
    done = subprocess_lorage("compile", experiment(root, **shape), "--json", file, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def check(result):
    """Checks the fields that scripts rely on."""
    assert set(result["programs"]) == {"train_step", "merge", "specialize", "decode"}
    for one in result["programs"].values():
        assert 0 < one["argument_gib"] < one["peak_gib"] < 1 and one["temp_gib"] >= 0
        assert one["flops_per_chip"] > 0 and one["hbm_bytes_per_chip"] > 0
        assert all(size > 0 for size in one["collectives"].values())
    assert result["programs"]["train_step"]["collectives"]
    assert result["programs"]["merge"]["collectives"] == {}
    assert {"compute_s", "hbm_s", "ici_s"} < result["roofline"].keys()
    assert 0 < result["roofline"]["predicted_mfu"] < 1
    assert result["fits"] is True


@needs_libtpu
@pytest.mark.slow
def test_batches_of_prompts_and_rows(tmp_path):
    """Instead of training; a token in every row, and a batch of prompts that is filled up."""
    asked = ["--batches", "1,16", "--programs", "decode,specialize", "--row-tokens", "32"]
    result, shown = compiled(tmp_path, "--topology", "v5e:2x4", "--layers", 1, *asked)
    assert "programs" not in result and result["fits"] is True
    found = {(one["program"], one["batch"]): one for one in result["batches"]}
    assert list(found) == [("decode", 1), ("decode", 16), ("specialize", 1), ("specialize", 16)]
    for one in found.values():
        assert one["rows"] == max(8, one["batch"]) and one["mesh"]["data"] == 8
        assert one["loops_counted_once"] == 0 and one["collectives"] == {}, "no weights move"
        assert one["hbm_bytes_per_chip"] > 0 and 0 < one["roofline"]["step_s"] < 1e-3
    assert "decode" in shown and "16" in shown


@needs_libtpu
@pytest.mark.slow
def test_decoding_reads_a_cache_once(tmp_path):
    """A token in each of 256 rows moves the weights and the cache, and no copy of either."""
    asked = ["--batches", "1,256", "--programs", "decode", "--row-tokens", "448"]
    shape = {"width": 1024, "heads": 16, "kv_heads": 4}
    result, _ = compiled(tmp_path, "--topology", "v5e:1x1", *asked, **shape)
    one, many = (found["hbm_bytes_per_chip"] for found in result["batches"])
    row = 2 * 2 * 4 * 64 * (448 + NEW_TOKENS) * 2  # k and v, layers, heads, head size, slots, bytes
    assert 0.9 < (many - one) / (255 * row) < 1.3


@needs_libtpu
@pytest.mark.slow
def test_one_layer_on_one_host(tmp_path):
    result, shown = compiled(tmp_path, "--topology", "v5e:2x4", "--layers", 1)
    check(result)
    assert (result["topology"], result["chips"], result["hbm_gib_per_chip"]) == ("v5e:2x4", 8, 16)
    assert (result["cloud_layers"], result["edge_layers"]) == (1, 1)
    assert result["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert result["programs"]["train_step"]["loops_counted_once"] == 0
    assert "train_step: fits" in shown and "no collectives" in shown
    assert "Predicted MFU" in shown and "819 GB/s" in shown


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "chips", "mesh"),
    [
        ("v5e:4x4", 16, [1, 16, 1]),
        ("v5e:16x16", 256, [1, 16, 16]),
        ("v6e:2x4", 8, [1, 8, 1]),
        ("v5p:2x2x1", 4, [1, 4, 1]),
        ("v4:2x2x2", 8, [1, 8, 1]),
        ("v5e:2x4*2", 16, [2, 8, 1]),
    ],
)
def test_other_topologies(tmp_path, topology, chips, mesh):
    result, _ = compiled(tmp_path, "--topology", topology, "--layers", 1)
    check(result)
    assert result["chips"] == chips and list(result["mesh"].values()) == mesh
    across = result["programs"]["train_step"]["dcn_bytes_per_chip"]
    assert (across > 0) == ("*" in topology)


@needs_libtpu
@pytest.mark.slow
def test_packed_rows(tmp_path):
    """The flash kernels know where a text ends; a typical step takes less than the longest one."""
    path, file = experiment(tmp_path), tmp_path / "out.json"
    text = path.read_text().replace("max_query", "packed_rows=8, max_query")
    path.write_text(text.replace("tokens=32", "tokens=512"))
    done = subprocess_lorage("compile", path, "--json", file, "--row-tokens", 256)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    typical = result["programs"].pop("typical_step")
    check(result)
    assert typical["flops_per_chip"] < 0.5 * result["programs"]["train_step"]["flops_per_chip"]
    assert result["typical_roofline"]["step_s"] < result["roofline"]["step_s"]
    assert "A typical step takes at least" in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_what_a_loop_sends_grows_with_its_turns(tmp_path):
    """All that the layers send is in loops: two depths differ by exactly what a layer sends."""
    sent = []
    for layers in (2, 3, 4):
        root = tmp_path / str(layers)
        root.mkdir()
        path = experiment(root)
        config = json.loads((root / "cloud" / "config.json").read_text())
        (root / "cloud" / "config.json").write_text(
            json.dumps(config | {"num_hidden_layers": layers})
        )
        done = subprocess_lorage("compile", path, "--json", root / "out.json")
        assert done.returncode == 0, done.stderr
        figures = json.loads((root / "out.json").read_text())["programs"]["train_step"]
        sent.append(sum(figures["collectives"].values()))
    assert sent[1] - sent[0] == sent[2] - sent[1] > 0


OUT_OF_MEMORY = """
import json, jax, jax.numpy as jnp
from lorage_jax.aot.topology import parse_topology, tpu_devices
topology = parse_topology("v5e:2x4")
mesh = jax.sharding.Mesh(tpu_devices(topology), ("x",))
from lorage_jax.aot.programs import Program
from lorage_jax.aot.report import compile_program
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
found = {}
for name, size in (("much", 46_000), ("more", 94_000)):
    x = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=whole)
    traced = jax.jit(lambda a, b: (a + b, a * b)).trace(x, x)
    found[name] = compile_program(Program(name, traced, (x, x), 1), topology)
print(json.dumps(found))
"""


@needs_libtpu
@pytest.mark.slow
def test_out_of_memory_is_a_verdict():
    """Too many arrays of 3.9 GiB, or arrays of 16.5 GiB, each too large by itself."""
    command = [sys.executable, "-c", OUT_OF_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    much, more = found["much"], found["more"]
    assert not much["fits"] and "refused" not in much
    assert much["argument_gib"] == pytest.approx(2 * 46_000**2 * 2 / 2**30, rel=0.01)
    assert much["missing_gib"] == pytest.approx(much["peak_gib"] - 15.75)
    assert not more["fits"] and "RESOURCE_EXHAUSTED" in more["refused"]
    assert more["argument_gib"] == pytest.approx(2 * 94_000**2 * 2 / 2**30)
    assert more["missing_gib"] > 0.5


@pytest.mark.parametrize(
    ("message", "peak"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (143.05G) exceeds available HBM (15.75G).",
            143.05,
        ),
        (
            "RESOURCE_EXHAUSTED: Allocation (size=51200000000) would exceed memory "
            "(size=17179869184) :: ...",
            51200000000 / 2**30,
        ),
        ("RESOURCE_EXHAUSTED: no figures", None),
    ],
)
def test_what_a_refusal_says(message, peak):
    one = refused(message, 15.75)
    assert one["peak_gib"] == peak and one["fits"] is False
    assert one["missing_gib"] == (None if peak is None else peak - 15.75)
    one |= {"argument_gib": 1.0, "flops_per_chip": 197e12, "compile_seconds": 1.0}
    topology = parse_topology("v5e:2x4")
    roof = step_roofline(one, topology, macs=1)
    assert roof["compute_s"] == 1 and roof["step_s"] is roof["predicted_mfu"] is None
    result = {
        "topology": topology.name,
        "chips": topology.chips,
        "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
        "chip": dataclasses.asdict(topology.chip),
        "programs": {"train_step": one},
        "roofline": roof,
        "prompts": 16,
        "rows": 32,
        "prompt_tokens": 100,
        "query_tokens": 40,
        "packed_rows": None,
    } | dict.fromkeys(("cloud", "cloud_layers", "edge", "edge_layers"), 1)
    shown = page(result)
    assert "train_step: DOES NOT FIT into 15.75 GiB" in shown and "Compute alone 1 s" in shown
    assert "16 prompts and 32 queries in rows of their own, of at most 100 and 40 slots." in shown
    packed = page(result | {"packed_rows": 4, "row_tokens": 330, "typical_roofline": roof})
    assert "in 4 rows, of at most 400 and 320 slots (typical_step: 330)." in packed
    assert (shown + packed).count("No roofline: the ") == 3
    assert "counted once" not in shown
    one["loops_counted_once"] = 2
    assert "2 loops of unknown length are counted once" in page(result)


BAD_INPUT = """
import sys
from pathlib import Path
from lorage_jax.cli import main
path = Path(sys.argv[1])
text = path.read_text()
for mesh, *options in (
    ("MeshConfig(-1, -1, -1)", "--topology", "v5e:3x4"),
    ("MeshConfig(-1, -1, -1)", "--layers", "0"),
    ("MeshConfig(data=3)", "--topology", "v5e:2x4"),
    ("MeshConfig(data=-1)", "--topology", "v5e:8x8"),
    ("MeshConfig(data=1, fsdp=-1)", "--topology", "v5e:2x4*2"),
):
    path.write_text(text.replace("MeshConfig(data=-1, fsdp=-1, tensor=-1)", mesh))
    print(main(["compile", str(path), *options]))
"""


@needs_libtpu
def test_bad_input(tmp_path):
    """Each gives one message and exit code 1."""
    command = [sys.executable, "-c", BAD_INPUT, str(experiment(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)
    assert done.stdout.split() == ["1"] * 5, done.stderr
    says = (
        "there is no topology 'v5e:3x4'",
        "layers is 0; expected 1 or more",
        "3 x 1 x 1 does not fit 8 devices",
        "16 prompts does not divide over 64 devices",
        "must be a multiple of 2",
    )
    for line, expected in zip(done.stderr.splitlines(), says, strict=True):
        assert line.startswith("lorage: ") and expected in line


def test_models_without_a_shape(tmp_path, capfd):
    path = experiment(tmp_path)
    path.write_text(path.read_text().replace(f"{tmp_path}/cloud", "somebody/else-7B"))
    assert lorage("compile", path) == 1
    error = capfd.readouterr().err
    assert "the cloud 'somebody/else-7B' is not a folder" in error
    assert "Meta-Llama-3-8B" in error and "config.json alone" in error


def test_another_method_is_refused(tmp_path, capfd):
    """Its programs would not be those that are compiled."""
    path = experiment(tmp_path)
    text = path.read_text().replace("ExperimentConfig(", 'ExperimentConfig(method="lora", ', 1)
    path.write_text(text)
    assert lorage("compile", path) == 1
    assert "method is 'lora'; lorage compile knows only" in capfd.readouterr().err


def test_known_names_have_their_shape():
    from lorage_jax.hf.presets import KNOWN, known_shape

    assert known_shape("meta-llama/Meta-Llama-3-8B") == SHAPES["llama3-8b"]
    assert known_shape("models/gemma-2-2b/") == SHAPES["gemma2-2b"]
    assert known_shape("Meta-Llama-3-8B-Instruct") is None
    assert set(KNOWN.values()) == set(SHAPES)
