"""Type checks of configurations, and their JSON form."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from lorage_jax.errors import ConfigError, bullets, listed
from lorage_jax.fields import check_types, from_dict, to_dict


@dataclass(frozen=True)
class Inner:
    count: int = 1

    def __post_init__(self):
        check_types(self)


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"] = "a"
    other: Literal["x"] | None = None
    rate: float = 1.0
    pair: tuple[int, int] = (1, 2)
    table: dict[str, float] | None = None
    inner: Inner | None = None
    anything: Any = None

    def __post_init__(self):
        check_types(self)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "c"}, "kind is 'c'; expected one of a, b."),
        ({"kind": None}, "kind is None; expected one of a, b."),
        ({"other": "y"}, "other is 'y'; expected one of x, or None."),
        ({"rate": True}, "rate is True; expected float."),
        ({"rate": "1"}, "rate is '1'; expected float."),
        ({"pair": (1, 2, 3)}, "pair is (1, 2, 3); expected tuple[int, int]."),
        ({"table": [1]}, "table is [1]; expected dict[str, float], or None."),
        ({"inner": 3}, "inner is 3; expected Inner, or None."),
    ],
)
def test_a_wrong_field_is_named_with_what_it_takes(values, says):
    with pytest.raises(ConfigError) as error:
        Outer(**values)
    assert str(error.value) == says


def test_json_and_back():
    config = Outer("b", "x", 2, (3, 4), {"k": 1.0}, Inner(7), "any")
    assert from_dict(Outer, to_dict(config)) == config
    with pytest.raises(ConfigError, match="Outer has no field colour"):
        from_dict(Outer, {"colour": 1})
    with pytest.raises(ConfigError, match="count is 'x'; expected int"):
        from_dict(Outer, {"inner": {"count": "x"}})


def test_long_lists_end_in_their_rest():
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert bullets(["a", "b"], 2) == "  - a\n  - b"
    assert bullets(["a", "b", "c"], 2) == "  - a\n  - b\n  - ... and 1 more"
