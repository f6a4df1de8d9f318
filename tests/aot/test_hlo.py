"""Reading a compiled program's text: shapes, loops, groups of chips."""

import pytest

from lorage_jax.aot.hlo import array_bytes, arrays, parse, replica_group, trip_count
from tests.aot.recorded import PROGRAM


def test_arrays_of_a_shape_and_the_memory_they_are_in():
    shape = (
        "(bf16[3,8]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[], pred[5]{0:T(512)}, u32[2]{0:S(2)})"
    )
    assert arrays(shape) == [(48, False), (4, True), (5, True), (8, False)]
    assert array_bytes(shape) == 65 and array_bytes(shape, hbm_only=True) == 9
    assert array_bytes("f8e4m3fn[4]{0}") == 4 and array_bytes("s4[6]{0}") == 3


def test_computations_and_instructions():
    module = parse(PROGRAM)
    assert (module.entry, module.chips) == ("main", 8) and len(module.computations) == 11
    body = module.computations["body"]
    assert body.result.opcode == "tuple"
    reduced = body.instructions["all-reduce.2"]
    assert reduced.operands == ("y.2", "norm.1") and reduced.called("to_apply") == "add.1"
    layer = module.computations["fused_layer"]
    assert [one.name for one in layer.users("param_0.1")] == ["dynamic-slice.2"]
    assert layer.parameter(1).name == "param_1.1" and layer.parameter(2) is None


def turns(text, loop="while.1"):
    module = parse(text)
    main = module.computations["main"]
    return trip_count(module, main, main.instructions[loop])


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        ("", "", 5),
        ("%zero.4 = s32[]{:T(128)S(6)} constant(0)", "%zero.4 = s32[]{:T(128)S(6)} constant(2)", 3),
        ("%one.1 = s32[]{:T(128)S(6)} constant(1)", "%one.1 = s32[]{:T(128)S(6)} constant(2)", 3),
        ("%five.1), direction=LT", "%five.1), direction=NE", None),
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}', 7),
    ],
)
def test_how_often_a_loop_runs(was, now, expected):
    assert turns(PROGRAM.replace(was, now)) == expected


def test_a_kernel_may_say_much():
    """Attributes of kernels span several lines, which may begin like the end of a computation."""
    kernel = """  %k.1 = f32[8]{0} custom-call(%y.1), frontend_attributes={about={
"blocks": "128"
}}, metadata={op_name="attention"}
"""
    text = PROGRAM.replace("  %one.1 =", kernel + "  %one.1 =")
    assert text != PROGRAM and turns(text) == 5


def test_a_computation_may_run_elsewhere():
    """Like those that the sparse cores of v6e run; the next one begins after it."""
    text = PROGRAM.replace("}\n\n", '}, execution_thread="sparsecore"\n\n', 1)
    assert text != PROGRAM and parse(text).computations.keys() == parse(PROGRAM).computations.keys()


def test_a_loop_that_asks_its_data():
    assert turns(PROGRAM, "while.2") is None


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("{}", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("{{0,2},{1,3}}", [0, 2]),
        ("[2,2]<=[4]", [0, 1]),
        ("[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
        ("mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("mesh['a'=2,'b'=4] {'a','b'}", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("mesh['a'=8] {'a':(1)2}", [0, 4]),
        ("mesh['a'=8] {'a':(2)4}", [0, 1, 2, 3]),
    ],
)
def test_the_chips_of_a_group(written, group):
    assert replica_group(f"channel_id=3, replica_groups={written}, dimensions={{0}}", 8) == group
