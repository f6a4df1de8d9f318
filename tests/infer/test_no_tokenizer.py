"""A model without tokenizer files takes and gives token ids; text is one clear error."""

import shutil

import numpy as np
import pytest

import lorage_jax as lg
from lorage_jax.commands.eval import run as evaluate
from lorage_jax.commands.options import Eval
from lorage_jax.infer.score import score
from tests.commands.world import lorage
from tests.tiny import make_generator, make_tiny

MISSING = r"bare has no tokenizer files, so it takes token ids only"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    make_tiny("llama", root / "full", num_hidden_layers=2, hidden_size=32)
    shutil.copytree(root / "full", root / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    return root / "bare"


@pytest.fixture(scope="module")
def models(folder):
    return lg.load_model(folder), lg.load_model(folder.parent / "full")


def test_ids_work(models):
    bare, full = models
    rows = [[5, 6, 7], [9, 8]]
    found = lg.generate(bare, rows, max_new_tokens=6)
    assert [type(one) for one in found] == [list, list]
    said = lg.generate(full, rows, max_new_tokens=6)
    assert [full.tokenizer.decode(one) for one in found] == said
    assert lg.generate(bare, rows[0], max_new_tokens=6) == found[0]
    assert score(bare, [(rows[0], [4])]) == score(full, [(rows[0], [4])])
    np.testing.assert_array_equal(lg.forward(bare, rows[:1]), lg.forward(full, rows[:1]))


@pytest.mark.parametrize(
    "use",
    [
        lambda model: lg.generate(model, "hi", max_new_tokens=1),
        lambda model: lg.generate(model, ["hi", "you"], max_new_tokens=1),
        lambda model: lg.generate(model, [{"role": "user", "content": "hi"}], max_new_tokens=1),
        lambda model: lg.generate(model, [5], max_new_tokens=1, stop="x"),
        lambda model: lg.generate(model, [5], max_new_tokens=1, stream=print),
        lambda model: lg.chat(model, "hi"),
        lambda model: lg.chat(model, [{"role": "user", "content": "hi"}]),
    ],
)
def test_text_does_not(models, use):
    with pytest.raises(lg.LorageError, match=MISSING):
        use(models[0])


def test_evaluations_say_so(folder, models):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: eval)")
    from lorage_jax.evaluate.harness import LorageLM

    with pytest.raises(lg.LorageError, match=MISSING):
        evaluate(Eval(tasks="gpt4tools", model=folder))
    with pytest.raises(lg.LorageError, match=MISSING):
        LorageLM(models[0])
    assert LorageLM(models[0], tokenizer=str(folder.parent / "full")).tokenizer is not None


def test_a_cloud_without_one_reads_no_prompt(folder, pair):
    made = make_generator(folder, pair[1])
    with pytest.raises(lg.LorageError, match=MISSING):
        lg.specialize(made, "Say it twice.")


def test_nor_is_it_specialised_for_text(folder, pair, tmp_path):
    made, edge = make_generator(pair[0], folder), lg.load_model(folder)
    card = lg.specialize(made, "Say it twice.")
    with pytest.raises(lg.LorageError, match=MISSING):
        made.speaking(edge)
    with pytest.raises(lg.LorageError, match=MISSING):
        lg.chat(edge, "hi", gates=card)
    special = lg.merge(edge, made.pool, card)  # ids are enough for its logits
    assert special.template is None
    lg.export_adapter(made.pool, card, edge, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "chat_template.jinja").exists()
    assert lg.load_adapter(tmp_path / "adapter", edge).template is None


@pytest.mark.parametrize("more", [(), ("--system", "prompt.txt"), ("--raw",)])
def test_the_command_line_says_so(folder, tmp_path, capfd, more):
    (tmp_path / "prompt.txt").write_text("Be brief.")
    more = [tmp_path / one if one.endswith("txt") else one for one in more]
    assert lorage("generate", "--model", folder, "--input", "hi", *more) == 1
    error = capfd.readouterr().err
    assert f"lorage: {folder} has no tokenizer files" in error and "Traceback" not in error
