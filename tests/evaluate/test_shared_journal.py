"""The journal of several processes: each does its part, and all get everything."""

import jax
import pytest

from lorage_jax import distributed
from lorage_jax.errors import LorageError
from lorage_jax.evaluate import shared_journal
from lorage_jax.evaluate.shared_journal import SharedJournal
from lorage_jax.files.journal import Journal


def test_alone_it_is_a_journal(tmp_path):
    journal = SharedJournal.open(tmp_path / "j")
    with journal.exchanged():
        assert list(journal.part([1, 2, 3])) == [1, 2, 3]
        journal.add({"a": 1})
    assert journal.processes == 1 and journal.get("a") == 1
    assert len(SharedJournal.open(tmp_path / "j")) == 1
    journal.remove()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def second_of_three(monkeypatch):
    """This process is the second of three; the others' texts are in `said`."""
    said = ["{}", "{}"]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(shared_journal, "gather_texts", lambda text: [said[0], text, said[1]])
    monkeypatch.setattr(distributed, "gather_texts", lambda text: ["", text, ""])
    return said


def test_each_does_its_part_and_all_get_everything(tmp_path, second_of_three):
    path = tmp_path / "r.json.progress"
    Journal(path).add({"old": 0})
    Journal(tmp_path / "r.json.progress-2").add({"other": 2})
    (tmp_path / "r.json.progress-notes").write_text("the user's")
    journal = SharedJournal.open(path)
    assert (journal.get("old"), journal.get("other")) == (0, 2)
    second_of_three[:] = ['{"x": 1}', '{"z": 3}']
    with journal.exchanged():
        assert list(journal.part(iter(range(8)))) == [1, 4, 7]
        journal.add({"y": 2})
    assert [journal.get(key) for key in "xyz"] == [1, 2, 3]
    own = Journal.open(tmp_path / "r.json.progress-1")
    assert own.values == {"y": 2}
    journal.remove()
    assert [one.name for one in tmp_path.iterdir()] == ["r.json.progress-notes"]


def test_a_failure_is_one_of_all(second_of_three, monkeypatch):
    monkeypatch.setattr(distributed, "gather_texts", lambda text: ["", text, "no memory"])
    failed = pytest.raises(LorageError, match="process 2 of 3 stopped: no memory")
    with failed, SharedJournal().exchanged():
        pass
