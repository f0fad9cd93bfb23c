"""Collectives read from HLO text: small programs written by hand, with their counts known."""

from __future__ import annotations

import pytest

from trinityx_jax.plan.collectives import Collective, collectives

# A TPU's text: a loop of 5 trips without known_trip_count; in it an all-reduce of two arrays, and
# an all-gather that is fused with other work and stands there as start, work and done.
LOOP = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

%start (p.1: bf16[1,512,256]) -> (bf16[1,512,256], bf16[1,512,512]) {
  %all-gather.1 = bf16[1,512,512]{2,1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, \
replica_groups=[2,2]<=[2,2]T(1,0), dimensions={2}
  ROOT %custom-call.1 = (bf16[1,512,256]{2,1,0}, bf16[1,512,512]{2,1,0}) custom-call(%all-gather.1)
}

%work (p.2: bf16[1,512,256]) -> bf16[1,512,512] {
  ROOT %all-gather.2 = bf16[1,512,512]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%p.2), channel_id=7, \
replica_groups=[2,2]<=[2,2]T(1,0), dimensions={2}
}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = (bf16[1,512,256]{2,1,0}, bf16[1,512,512]{2,1,0}) fusion(%state), calls=%start
  %fusion.2 = bf16[1,512,512]{2,1,0} fusion(%fusion.1), kind=kCustom, calls=%work
  %all-reduce.1 = (f32[8]{0:T(128)}, /*index=1*/bf16[4,6]{1,0}) all-reduce(%a, %b), \
channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %tuple.1 = (s32[], f32[8]) tuple(%i, %c)
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  ROOT %reduce-scatter.1 = f32[2]{0} reduce-scatter(%r), channel_id=9, \
replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, dimensions={0}, to_apply=%add
}
"""


def test_a_loop_multiplies_and_the_pieces_of_one_collective_count_once():
    assert collectives(LOOP) == [
        Collective("all-gather", ("bf16[1,512,512]",), 1 * 512 * 512 * 2, 2, 1, 5),
        Collective("all-reduce", ("f32[8]", "bf16[4,6]"), 8 * 4 + 24 * 2, 4, 1, 5),
        Collective("reduce-scatter", ("f32[2]",), 8, 2, 1, 1),
    ]


def test_loops_inside_loops_and_two_places():
    twice = LOOP.replace(
        "  ROOT %reduce-scatter.1", "  %while.2 = () while(%t), condition=%condition, body=%outer\n"
        "  ROOT %reduce-scatter.1"
    ).replace(
        "ENTRY",
        "%outer (s: ()) -> () {\n"
        "  ROOT %while.3 = () while(%s), condition=%condition, body=%body\n}\n\nENTRY",
    )  # fmt: skip
    reduces = [c for c in collectives(twice) if c.kind == "all-reduce"]
    assert sorted((c.places, c.trips) for c in reduces) == [(1, 5), (1, 25)]


@pytest.mark.parametrize(
    ("line", "trips", "endless"),
    [
        ('while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":'
         '{"n":"3"},"known_init_step":{"init":"0","step":"1"}}', 3, False),
        ("while(%t), condition=%until_done, body=%body", 1, True),
    ],
    ids=["known trip count", "a condition that is not a counter's"],
)  # fmt: skip
def test_how_often_a_loop_runs(line, trips, endless):
    until_done = (
        "%until_done (s: (s32[], pred[])) -> pred[] {\n"
        "  %limit.2 = s32[] constant(9)\n"
        "  %lt.2 = pred[] compare(%i, %limit.2), direction=LT\n"
        "  ROOT %both = pred[] and(%lt.2, %done)\n}\n\nENTRY"
    )
    text = LOOP.replace("while(%t), condition=%condition, body=%body", line)
    found = collectives(text.replace("ENTRY", until_done))
    assert {(c.trips, c.endless) for c in found if c.kind != "reduce-scatter"} == {(trips, endless)}


@pytest.mark.parametrize(("stride", "trips"), [(1, 5), (2, 3), (5, 1)])
def test_a_loop_that_the_compiler_unrolled_counts_by_more_than_one(stride, trips):
    text = LOOP.replace(
        "  ROOT %tuple.1 = (s32[], f32[8]) tuple(%i, %c)",
        f'  %stride = s32[]{{:T(128)}} constant({stride}), metadata={{op_name="f(x)"}}\n'
        "  %next = s32[]{:T(128)} add(%i, %stride), control-predecessors={%c}\n"
        "  ROOT %tuple.1 = (s32[], /*index=1*/f32[8]{0:T(8)}) tuple(%next, /*index=1*/%c)",
    )
    assert "%stride" in text
    assert {c.trips for c in collectives(text) if c.kind != "reduce-scatter"} == {trips}


def test_a_kernel_of_many_lines_is_one_instruction():
    """Its attributes may have braces at the start of lines."""
    kernel = (
        "%kernel = f32[8] custom-call(%p), frontend_attributes={tiles={\n 8\n}}, metadata={}\n"
        "  ROOT %all-reduce.9 = f32[8] all-reduce(%p), replica_groups={{0,1}}, to_apply=%add"
    )
    text = f"HloModule m\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n  {kernel}\n}}\n"
    assert [c.bytes for c in collectives(text)] == [32]


@pytest.mark.parametrize(
    ("instruction", "want"),
    [
        ("f32[4]{0} all-reduce(%p), replica_groups=[4,16]<=[64], to_apply=%add", (16, 16)),
        ("f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%add", (4, 16)),
        ("f32[4]{0} all-reduce-start(%p), channel_id=1, replica_groups={{0,2},{1,3}}", (2, 16)),
        ("f32[4]{0} all-gather(%p), replica_groups=mesh['a'=2,'b'=8] {'a','b':(1)4}", (8, 16)),
        ("(bf16[2]{0}, bf16[8]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}", (4, 16)),
        ("((s8[2], s8[3]), (s8[4], s8[6])) all-gather-start(%p, %q), replica_groups={{0,1}}",
         (2, 10)),
        ("(u32[6]{0}, u32[6]{0}, u32[], u32[]) collective-permute-start(%p), "
         "source_target_pairs={{0,1},{1,0}}", (4, 24)),
        ("(s4[3]{0}, pred[5]{0}) all-to-all(%p, %q), replica_groups={{0,1}}", (2, 7)),
    ],
)  # fmt: skip
def test_groups_and_sizes(instruction, want):
    text = (
        "HloModule m, num_partitions=4\n\nENTRY %main (p: f32[4]) -> f32[4] {\n"
        f"  ROOT %it = {instruction}\n}}\n"
    )
    assert [(c.group, c.bytes) for c in collectives(text)] == [want]


def test_what_a_ring_sends():
    """Four devices with 25 bytes each to gather, or 100 to reduce."""
    sent = {kind: Collective(kind, (), size, 4, 1, 2).wire_bytes for kind, size in {
        "all-gather": 100, "all-reduce": 100, "reduce-scatter": 25, "all-to-all": 100,
        "collective-permute": 100,
    }.items()}  # fmt: skip
    assert sent == {
        "all-gather": 2 * 75, "all-reduce": 2 * 150, "reduce-scatter": 2 * 75,
        "all-to-all": 2 * 75, "collective-permute": 2 * 100,
    }  # fmt: skip


def test_a_program_without_collectives():
    assert collectives("HloModule m\n\nENTRY %main (p: f32[4]) -> f32[4] {\n  ROOT %p\n}\n") == []
