"""The text of a TPU program as its compiler writes it, cut to the parts that are read.

It is for eight chips. A loop of five iterations reads one layer [8, 64] of five from HBM, gathers
it (overlapping with a fusion, under one chain_id), reduces activations, and writes one row of a
stack in place. A loop of unknown length follows.
"""

MESH = "mesh['axis_0'=8,'axis_1'=1] {'axis_0'}"
PROGRAM = f"""HloModule jit_step, is_scheduled=true, num_partitions=8

%add.1 (x.1: bf16[], y.1: bf16[]) -> bf16[] {{
  %x.1 = bf16[]{{:T(256)}} parameter(0)
  %y.1 = bf16[]{{:T(256)}} parameter(1)
  ROOT %add.2 = bf16[]{{:T(256)}} add(%x.1, %y.1)
}}

%all-reduce-scatter.1 (input_0.1: bf16[16,64]) -> bf16[2,64] {{
  %input_0.1 = bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %all-reduce.1 = bf16[16,64]{{1,0:T(8,128)(2,1)}} all-reduce(%input_0.1), channel_id=1, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, use_global_device_ids=true, to_apply=%add.1
  %partition-id.1 = u32[] partition-id()
  %zero.1 = u32[] constant(0)
  ROOT %dynamic-slice.1 = bf16[2,64]{{1,0:T(8,128)(2,1)S(1)}} dynamic-slice(%all-reduce.1, %partition-id.1, %zero.1), dynamic_slice_sizes={{2,64}}
}}

%fused_layer (param_0.1: bf16[5,8,64], param_1.1: s32[]) -> bf16[8,64] {{
  %param_0.1 = bf16[5,8,64]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %param_1.1 = s32[]{{:T(128)S(6)}} parameter(1)
  %zero.2 = s32[]{{:T(128)S(6)}} constant(0)
  %dynamic-slice.2 = bf16[1,8,64]{{2,1,0:T(8,128)(2,1)}} dynamic-slice(%param_0.1, %param_1.1, %zero.2, %zero.2), dynamic_slice_sizes={{1,8,64}}
  ROOT %bitcast.1 = bf16[8,64]{{1,0:T(8,128)(2,1)S(1)}} bitcast(%dynamic-slice.2)
}}

%fused_start (param_0.2: bf16[8,64]) -> (bf16[8,64], bf16[64,64], u32[]) {{
  %param_0.2 = bf16[8,64]{{1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %all-gather.1 = bf16[64,64]{{1,0:T(8,128)(2,1)}} all-gather(%param_0.2), channel_id=3, replica_groups={MESH}, dimensions={{0}}, use_global_device_ids=true, frontend_attributes={{chain_id="0"}}
  ROOT %custom-call.1 = (bf16[8,64]{{1,0:T(8,128)(2,1)S(1)}}, bf16[64,64]{{1,0:T(8,128)(2,1)S(1)}}, /*index=2*/u32[]{{:S(2)}}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.1 (param_0.3: bf16[8,64], param_1.3: bf16[64,64], param_2.3: u32[]) -> bf16[64,64] {{
  %param_0.3 = bf16[8,64]{{1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %param_1.3 = bf16[64,64]{{1,0:T(8,128)(2,1)S(1)}} parameter(1)
  %param_2.3 = u32[]{{:S(2)}} parameter(2)
  %all-gather.2 = bf16[64,64]{{1,0:T(8,128)(2,1)S(1)}} all-gather(%param_0.3), channel_id=3, replica_groups={MESH}, dimensions={{0}}, use_global_device_ids=true, frontend_attributes={{chain_id="0"}}
  ROOT %custom-call.2 = bf16[64,64]{{1,0:T(8,128)(2,1)S(1)}} custom-call(%all-gather.2, %param_1.3, %param_2.3), custom_call_target="AsyncCollectiveDone"
}}

%fused_stack (param_0.4: f32[5,16], param_1.4: f32[16], param_2.4: s32[]) -> f32[5,16] {{
  %param_0.4 = f32[5,16]{{1,0:T(8,128)}} parameter(0)
  %param_1.4 = f32[16]{{0:T(128)S(1)}} parameter(1)
  %bitcast.2 = f32[1,16]{{1,0:T(8,128)}} bitcast(%param_1.4)
  %param_2.4 = s32[]{{:T(128)S(6)}} parameter(2)
  %zero.3 = s32[]{{:T(128)S(6)}} constant(0)
  ROOT %dynamic-update-slice.1 = f32[5,16]{{1,0:T(8,128)}} dynamic-update-slice(%param_0.4, %bitcast.2, %param_2.4, %zero.3)
}}

%body (arg.1: (s32[], bf16[5,8,64], f32[5,16], bf16[16,64])) -> (s32[], bf16[5,8,64], f32[5,16], bf16[16,64]) {{
  %arg.1 = (s32[]{{:T(128)S(6)}}, bf16[5,8,64]{{2,1,0:T(8,128)(2,1)}}, f32[5,16]{{1,0:T(8,128)}}, /*index=3*/bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}}) parameter(0)
  %i.1 = s32[]{{:T(128)S(6)}} get-tuple-element(%arg.1), index=0
  %weights.1 = bf16[5,8,64]{{2,1,0:T(8,128)(2,1)}} get-tuple-element(%arg.1), index=1
  %stack.1 = f32[5,16]{{1,0:T(8,128)}} get-tuple-element(%arg.1), index=2
  %x.2 = bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}} get-tuple-element(%arg.1), index=3
  %layer.1 = bf16[8,64]{{1,0:T(8,128)(2,1)S(1)}} fusion(%weights.1, %i.1), kind=kLoop, calls=%fused_layer
  %start.1 = (bf16[8,64]{{1,0:T(8,128)(2,1)S(1)}}, bf16[64,64]{{1,0:T(8,128)(2,1)S(1)}}, /*index=2*/u32[]{{:S(2)}}) fusion(%layer.1), kind=kLoop, calls=%fused_start
  %part.1 = bf16[8,64]{{1,0:T(8,128)(2,1)S(1)}} get-tuple-element(%start.1), index=0
  %part.2 = bf16[64,64]{{1,0:T(8,128)(2,1)S(1)}} get-tuple-element(%start.1), index=1
  %part.3 = u32[]{{:S(2)}} get-tuple-element(%start.1), index=2
  %whole.1 = bf16[64,64]{{1,0:T(8,128)(2,1)S(1)}} fusion(%part.1, %part.2, %part.3), kind=kLoop, calls=%async_collective_fusion.1
  %y.2 = bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}} convolution(%x.2, %whole.1), dim_labels=bf_io->bf
  %all-reduce.2 = (bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}}, f32[16]{{0:T(128)S(1)}}) all-reduce(%y.2, %norm.1), channel_id=5, replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true, to_apply=%add.1
  %norm.1 = f32[16]{{0:T(128)S(1)}} copy(%norm.2)
  %norm.2 = f32[16]{{0:T(128)S(1)}} broadcast(%i.1), dimensions={{}}
  %y.3 = bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}} get-tuple-element(%all-reduce.2), index=0
  %scattered.1 = bf16[2,64]{{1,0:T(8,128)(2,1)S(1)}} fusion(%y.3), kind=kCustom, calls=%all-reduce-scatter.1
  %stack.2 = f32[5,16]{{1,0:T(8,128)}} fusion(%stack.1, %norm.1, %i.1), kind=kLoop, calls=%fused_stack
  %one.1 = s32[]{{:T(128)S(6)}} constant(1)
  %i.2 = s32[]{{:T(128)S(6)}} add(%i.1, %one.1)
  ROOT %tuple.1 = (s32[]{{:T(128)S(6)}}, bf16[5,8,64]{{2,1,0:T(8,128)(2,1)}}, f32[5,16]{{1,0:T(8,128)}}, /*index=3*/bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}}) tuple(%i.2, %weights.1, %stack.2, %y.3)
}}

%condition (arg.2: (s32[], bf16[5,8,64], f32[5,16], bf16[16,64])) -> pred[] {{
  %five.1 = s32[]{{:T(128)S(6)}} constant(5)
  %arg.2 = (s32[]{{:T(128)S(6)}}, bf16[5,8,64]{{2,1,0:T(8,128)(2,1)}}, f32[5,16]{{1,0:T(8,128)}}, /*index=3*/bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}}) parameter(0)
  %i.3 = s32[]{{:T(128)S(6)}} get-tuple-element(%arg.2), index=0
  ROOT %lt.1 = pred[]{{:T(512)}} compare(%i.3, %five.1), direction=LT
}}

%until_body (arg.3: (s32[], f32[128])) -> (s32[], f32[128]) {{
  %arg.3 = (s32[]{{:T(128)S(6)}}, f32[128]{{0:T(128)}}) parameter(0)
  %i.4 = s32[]{{:T(128)S(6)}} get-tuple-element(%arg.3), index=0
  %z.1 = f32[128]{{0:T(128)}} get-tuple-element(%arg.3), index=1
  %permuted.1 = f32[128]{{0:T(128)}} collective-permute(%z.1), channel_id=9, source_target_pairs={{{{0,4}},{{4,0}}}}
  %one.2 = s32[]{{:T(128)S(6)}} constant(1)
  %i.5 = s32[]{{:T(128)S(6)}} add(%i.4, %one.2)
  ROOT %tuple.2 = (s32[]{{:T(128)S(6)}}, f32[128]{{0:T(128)}}) tuple(%i.5, %permuted.1)
}}

%until_condition (arg.4: (s32[], f32[128])) -> pred[] {{
  %arg.4 = (s32[]{{:T(128)S(6)}}, f32[128]{{0:T(128)}}) parameter(0)
  %i.6 = s32[]{{:T(128)S(6)}} get-tuple-element(%arg.4), index=0
  %limit.1 = s32[]{{:T(128)S(6)}} custom-call(%i.6), custom_call_target="Limit"
  ROOT %lt.2 = pred[]{{:T(512)}} compare(%i.6, %limit.1), direction=LT
}}

ENTRY %main (param.1: bf16[5,8,64], param.2: f32[5,16], param.3: bf16[16,64], param.4: f32[128]) -> f32[128] {{
  %param.1 = bf16[5,8,64]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %param.2 = f32[5,16]{{1,0:T(8,128)}} parameter(1)
  %param.3 = bf16[16,64]{{1,0:T(8,128)(2,1)}} parameter(2)
  %param.4 = f32[128]{{0:T(128)}} parameter(3)
  %zero.4 = s32[]{{:T(128)S(6)}} constant(0)
  %copy.1 = s32[]{{:T(128)S(6)}} copy(%zero.4)
  %copy-start.1 = (bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}}, bf16[16,64]{{1,0:T(8,128)(2,1)}}, u32[]{{:S(2)}}) copy-start(%param.3)
  %copy-done.1 = bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}} copy-done(%copy-start.1)
  %tuple.3 = (s32[]{{:T(128)S(6)}}, bf16[5,8,64]{{2,1,0:T(8,128)(2,1)}}, f32[5,16]{{1,0:T(8,128)}}, /*index=3*/bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}}) tuple(%copy.1, %param.1, %param.2, %copy-done.1)
  %while.1 = (s32[]{{:T(128)S(6)}}, bf16[5,8,64]{{2,1,0:T(8,128)(2,1)}}, f32[5,16]{{1,0:T(8,128)}}, /*index=3*/bf16[16,64]{{1,0:T(8,128)(2,1)S(1)}}) while(%tuple.3), condition=%condition, body=%body
  %tuple.4 = (s32[]{{:T(128)S(6)}}, f32[128]{{0:T(128)}}) tuple(%copy.1, %param.4)
  %while.2 = (s32[]{{:T(128)S(6)}}, f32[128]{{0:T(128)}}) while(%tuple.4), condition=%until_condition, body=%until_body
  ROOT %result.1 = f32[128]{{0:T(128)}} get-tuple-element(%while.2), index=1
}}
"""  # noqa: E501
