"""README.md of generators and exports: a head that the Hub reads, and a text that is true."""

import pytest
from huggingface_hub import ModelCard

import lorage_jax as lg
from lorage_jax import nano
from lorage_jax.hf.hub_card import licence_of, write_hub_card

PROMPT = "Reverse the words."


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders of a generator, a merged model and an adapter, for a base with a licence."""
    import shutil

    home = tmp_path_factory.mktemp("cards")
    edge_dir = home / "edge"
    shutil.copytree(nano.EDGE, edge_dir)
    (edge_dir / "README.md").write_text("---\nlicense: apache-2.0\n---\n# The edge\n")
    generator, edge = lg.load_generator("nano"), lg.load_model(edge_dir)
    card = lg.specialize(generator, PROMPT)
    lg.save_generator(generator, home / "generator")
    lg.export_merged(lg.merge(edge, generator.pool, card), home / "merged")
    lg.export_adapter(generator.pool, card, edge, home / "adapter", base_name="org/edge")
    return home, card


def head(folder):
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_the_heads_are_those_of_the_hub(written):
    home, _ = written
    assert head(home / "generator")["library_name"] == "lorage_jax"
    assert "license" not in head(home / "generator")  # that of its data is not known
    merged, adapter = head(home / "merged"), head(home / "adapter")
    assert merged["library_name"] == "transformers" and adapter["library_name"] == "peft"
    assert merged["license"] == adapter["license"] == "apache-2.0"
    for one in (merged, adapter, head(home / "generator")):
        assert one["pipeline_tag"] == "text-generation" and "lora-gen" in one["tags"]


def test_the_texts_say_what_it_is_made_from(written):
    home, card = written
    for name in ("merged", "adapter"):
        text = (home / name / "README.md").read_text("utf-8")
        assert card.generator in text and card.about["prompt_sha256"] in text
        assert "# The edge" not in text and PROMPT not in text
    text = (home / "generator" / "README.md").read_text("utf-8")
    assert "8 of rank 16 per layer; 4 are kept" in text and "`edge`" in text
    assert str(nano.FOLDER) not in text  # nothing of this machine


def test_the_base_is_named_if_the_hub_knows_it(tmp_path):
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("# no head")
    out = tmp_path / "out"
    out.mkdir()
    parts = {"": "x"}
    write_hub_card(out, "T", parts, bases=[snapshot], library="peft", relation="adapter")
    found = head(out)
    assert found["base_model"] == ["org/tiny"] and found["base_model_relation"] == "adapter"
    assert "license" not in found and licence_of(snapshot) is None


def test_a_folder_with_its_card_is_replaced_and_loads(written, tmp_path):
    home, _ = written
    lg.save_generator(lg.load_generator(home / "generator", nano.CLOUD), tmp_path / "again")
    generator = lg.load_generator(tmp_path / "again", nano.CLOUD)
    lg.save_generator(generator, tmp_path / "again", overwrite=True)
    assert generator.fingerprint == lg.load_generator("nano").fingerprint
