"""Bytes over HBM and between chips, with loops counted as often as they run."""

from collections import Counter

from lorage_jax.aot.hlo import parse
from lorage_jax.aot.traffic import Collective, sent_bytes, traffic, turn_traffic
from tests.aot.recorded import PROGRAM

ROW = 16 * 64 * 2  # bytes of the activations
COLLECTIVES = Counter(
    {
        # 7 of 8 shards come from others; counted once, though it appears in two fusions
        Collective("all-gather", "bf16[64,64]", 8, 7 * 8 * 64 * 2, False): 5,
        # in groups of four, there and back
        Collective(
            "all-reduce", "(bf16[16,64], f32[16])", 4, round(2 * 3 / 4 * (ROW + 16 * 4)), False
        ): 5,
        Collective("reduce-scatter", "bf16[16,64]", 8, ROW * 7 // 8, False): 5,
        Collective("collective-permute", "f32[128]", 2, 512, False): 1,
    }
)


def test_collectives_run_as_often_as_their_loop():
    found = traffic(parse(PROGRAM), 8)
    assert found.collectives == COLLECTIVES
    assert found.unknown == 1
    assert sent_bytes(found.collectives)["all-gather"] == 5 * 7168


def test_which_of_them_leave_their_slice():
    found = traffic(parse(PROGRAM), 4)  # chips 0 to 3, and 4 to 7
    across = {one.kind for one in found.collectives if one.dcn}
    assert across == {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
    pairs = PROGRAM.replace("[2,4]<=[4,2]T(1,0)", "[2,4]<=[8]")
    found = traffic(parse(pairs), 4)
    assert not any(one.dcn for one in found.collectives if one.kind == "all-reduce")


def test_of_a_stack_only_the_layer_is_moved():
    """HBM: activations once; per iteration, a layer's weights and a row of the stack; sent data."""
    turn = 8 * 64 * 2 + 16 * 4
    assert traffic(parse(PROGRAM), 8).hbm == ROW + 5 * turn + 2 * 512


def test_a_fusion_inside_a_fusion_may_read_a_slice():
    """The weights of a layer, sliced by a fusion that the product's fusion holds."""
    inside = PROGRAM[PROGRAM.index("%fused_layer") : PROGRAM.index("%fused_start")]
    around = """HloModule jit_f, is_scheduled=true

INSIDE
%product (param_0.9: bf16[5,8,64], param_1.9: s32[]) -> bf16[8,64] {
  %param_0.9 = bf16[5,8,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.9 = s32[]{:T(128)S(6)} parameter(1)
  %layer.9 = bf16[8,64]{1,0:T(8,128)(2,1)} fusion(%param_0.9, %param_1.9), kind=kLoop, calls=%fused_layer
  ROOT %negate.9 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} negate(%layer.9)
}

ENTRY %main (stack.9: bf16[5,8,64], i.9: s32[]) -> bf16[8,64] {
  %stack.9 = bf16[5,8,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i.9 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %f.9 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} fusion(%stack.9, %i.9), kind=kOutput, calls=%product
}
"""  # noqa: E501
    assert traffic(parse(around.replace("INSIDE", inside)), 1).hbm == 8 * 64 * 2
    sliced = inside[inside.index("  %dynamic-slice.2") : inside.index("  ROOT")]
    whole = inside.replace(sliced, "").replace("bitcast(%dynamic-slice.2)", "bitcast(%param_0.1)")
    assert traffic(parse(around.replace("INSIDE", whole)), 1).hbm == 5 * 8 * 64 * 2


def test_one_turn_of_a_loop_of_unknown_length():
    """Decoding: what is moved for a token, without what is copied around the loop."""
    module = parse(PROGRAM)
    turn = turn_traffic(module, 8)
    assert turn.unknown == 0
    assert turn.collectives == Counter({one: n for one, n in COLLECTIVES.items() if n == 1})
    assert 0 < turn.hbm < traffic(module, 8).hbm


def test_the_largest_branch_of_a_conditional_counts():
    branches = """
%small (x.1: f32[64]) -> f32[64] {
  ROOT %x.1 = f32[64]{0:T(128)} parameter(0)
}

%large (x.2: f32[64]) -> f32[64] {
  %x.2 = f32[64]{0:T(128)} parameter(0)
  ROOT %y.2 = f32[64]{0:T(128)} negate(%x.2)
}

ENTRY %main (which.1: s32[], x.3: f32[64]) -> f32[64] {
  %which.1 = s32[]{:T(128)S(6)} parameter(0)
  %x.3 = f32[64]{0:T(128)} parameter(1)
  ROOT %z.1 = f32[64]{0:T(128)} conditional(%which.1, %x.3, %x.3), CALLED
}
"""
    for called in (
        "branch_computations={%small, %large}",
        "true_computation=%large, false_computation=%small",
    ):
        assert traffic(parse(branches.replace("CALLED", called)), 1).hbm == 2 * 256


def test_what_hosts_carry_between_slices():
    """As written by the compiler for two slices: an all-reduce within each, then a send."""
    program = """
ENTRY %main (x.1: f32[4,128]) -> f32[4,128] {
  %x.1 = f32[4,128]{1,0:T(4,128)} parameter(0)
  %after-all.1 = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="a.1_0"}
  %send.1 = (f32[4,128]{1,0:T(4,128)}, u32[], token[]) send(%x.1, %after-all.1), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="TARGET",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=2, is_host_transfer=true
  ROOT %y.1 = f32[4,128]{1,0:T(4,128)} negate(%x.1)
}
"""  # noqa: E501
    for target, slices in (("{1,2}x{0:7}", 2), ("{1:4}x{0:7}", 4)):
        found = traffic(parse(program.replace("TARGET", target)), 8).collectives
        sent = round(4 * 128 * 4 * 2 * (slices - 1) / slices)
        assert found == {Collective("all-reduce", "f32[4,128]", slices, sent, True): 1}
    there = program.replace("_xla_megascale_", "_other_")
    assert not traffic(parse(there), 8).collectives
