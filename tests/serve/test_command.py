"""`lorage serve` as a process: it listens, keeps its cards, and stops gracefully."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.serve.server import PROMPTS
from tests.serve.test_bad_requests import send

pytest.importorskip("starlette")


def start(folder, *more, generator="nano", warm=0):
    """The process, and its URL once it listens."""
    (folder / "port").unlink(missing_ok=True)
    words = ["--generator", generator, "--warm", str(warm), "--port", "0", "--port-file", "port"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lorage_jax.cli", "serve", *words, "--cards", "cards", *more],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + (120 if warm == 0 else 900)
    while not (folder / "port").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, f"http://127.0.0.1:{int((folder / 'port').read_text())}"


@pytest.mark.slow
def test_sigterm_lets_a_running_answer_finish_and_sigkill_loses_no_card(tmp_path):
    process, url = start(tmp_path)
    made = send(f"{url}/v1/cards", {"system": PROMPTS["bars"], "name": "bars"})
    assert made[0] == 201
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stderr.close()
    process, url = start(tmp_path, "--json", "result.json")
    assert send(f"{url}/v1/cards/bars")[1] == made[1]
    found = []
    body = {"model": "bars", "messages": [{"role": "user", "content": "city king frog star"}]}
    asked = threading.Thread(
        target=lambda: found.append(send(f"{url}/v1/chat/completions", body)), daemon=True
    )
    asked.start()
    while send(f"{url}/health")[1]["running"] == 0 and not found:  # compiling, or decoding
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    asked.join(60)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    status, answer = found[0]
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == "| STAR | CITY | KING | FROG |"
    assert "Traceback" not in errors and "Serving on http://127.0.0.1:" in errors
    assert json.loads((tmp_path / "result.json").read_text())["prompts"] == 1


def test_a_port_in_use_and_bad_options_are_one_message(tmp_path, capsys, monkeypatch):
    import socket

    from lorage_jax.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "notes").write_text("of mine\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, words in (
            (["--port", str(port)], "cannot listen"),
            (["--port", "0", "--host", "127.0.0..1"], "cannot listen on 127.0.0..1"),
            (["--port", "70000"], "0 (any free one) to 65535"),
            (["--port", "0", "--slots", "0"], "--slots is 0"),
            (["--port", "0", "--max-body", "0"], "--max-body is 0"),
            (["--port", "0", "--warm", "-1"], "--warm is -1; expected 0"),
            (["--port", "0", "--context", "100000000"], "--context is"),
            (["--port", "0", "--port-file", str(tmp_path)], "not a plain file"),
            (["--port", "0", "--port-file", "notes"], "exists and is not a file that lorage serve"),
            (["--port", "0", "--cards", "file"], "in the folder of --cards. Cannot write"),
            (["--port", "0", "--cards", "file/below"], "is a file or a dead link"),
        ):
            assert main(["serve", "--generator", "nano", "--warm", "0", *options]) == 1
            assert words in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == "of mine\n"


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [
        ("0.0.0.0", None, True),
        ("0.0.0.0", "secret", False),
        ("127.0.0.1", None, False),
        ("localhost", None, False),
    ],
)
def test_an_open_server_is_warned_of(tmp_path, monkeypatch, caplog, host, key, warned):
    from lorage_jax.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORAGE_API_KEY", raising=False)
    given = ["--host", host, "--port", "0", *(["--api-key", key] if key else [])]
    assert main(["serve", "--generator", str(tmp_path / "none"), *given]) == 1
    assert ("Without --api-key" in caplog.text) is warned


def test_a_folder_of_cards_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    """Without cards it is of no use; with some, they can be used, and a warning says the rest."""
    from lorage_jax.errors import OutputError
    from lorage_jax.serve.cards import check_folder

    check_folder(tmp_path / "new" / "cards")
    assert not (tmp_path / "new").exists()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and access(path, mode))
    with pytest.raises(OutputError, match=r"--cards\. Cannot write .*: Permission denied"):
        check_folder(tmp_path)
    (tmp_path / "bars.json").touch()
    check_folder(tmp_path)
    assert "can be used, but none can be added. Cannot write" in caplog.text


def test_the_missing_extra_is_named(monkeypatch, capsys):
    from lorage_jax.cli import main

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--generator", "nano", "--port", "0"]) == 1
    assert "lorage_jax[serve]" in capsys.readouterr().err
