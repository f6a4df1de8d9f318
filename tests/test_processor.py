"""What is told of the processor."""

import pytest

from lorage_jax import processor

INTEL = "processor\t: 0\nmodel name\t: Xeon 8481C\nflags\t\t: fpu avx2 avx512_bf16 sse2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("text", "name"), [(INTEL, "Xeon 8481C (avx2, avx512_bf16)"), (ARM, "arm64 (asimd, bf16)")]
)
def test_name_and_telling_flags(tmp_path, monkeypatch, text, name):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "processor", lambda: "arm64")
    processor.CPUINFO.write_text(text)
    assert processor.name() == name


def test_elsewhere_it_is_what_python_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    monkeypatch.setattr(processor.platform, "machine", lambda: "arm64")
    assert processor.name() == "arm64" and processor.flags() == ""
