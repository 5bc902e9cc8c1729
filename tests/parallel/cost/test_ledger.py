"""The ledger against written-out HLO, and against programs whose collectives are known."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.cost.ledger import ROOT, Frames, frequency, ledger, replica_groups
from parallel.mesh import data_mesh, device_mesh

MESH = {"slice": 2, "data": 4}


@pytest.fixture(autouse=True)
def lines_in_the_cache_key():
    """Else a program that was compiled before the lines moved tells the old ones."""
    option = "jax_compilation_cache_include_metadata_in_key"
    jax.config.update(option, True)
    yield
    jax.config.update(option, False)


HLO = """HloModule jit_step, is_scheduled=true
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %rs = bf16[2,4]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%add
  ROOT %t = (s32[], f32[8,4]) tuple(%i, %y)
}
%often (p: f32[4]) -> f32[4] {
  ROOT %often.1 = u8[100]{0} all-gather(%p), dimensions={0}
}
%rarely (p: f32[4]) -> f32[4] {
  ROOT %rarely.1 = u8[40]{0} all-gather(%p), metadata={op_name="f/once_in_10_steps/cond"}
}
%early (p: f32[4]) -> f32[4] {
  ROOT %early.1 = s8[99]{0} all-gather(%p), metadata={op_name="f/warmup/cond/gather"}
}
ENTRY %main (p0: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%init), condition=%c, body=%body, """ + (
    """backend_config={"known_trip_count":{"n":"3"}}
  %ar = (f32[10]{0}, /*index=1*/f32[2,5]{1,0}) all-reduce(%a, %b), to_apply=%add
  %ags = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%c), dimensions={0}
  %f = f32[2]{0} fusion(%q), kind=kLoop, calls=%add
  %d = f32[2]{0} dot(%q, %r)
  %agd = f32[8,4]{1,0} all-gather-done(%ags)
  %s = f32[4]{0} conditional(%i, %a, %b), branch_computations={%often, %rarely, %early}
  ROOT %cp = f32[6]{0} collective-permute(%d), source_target_pairs={{0,1},{1,0},{2,2}}
}
"""
)


def test_loops_tuples_branches_and_asynchronous_starts():
    entries = {(e.kind, e.dtypes): e for e in ledger(HLO, data_mesh(4))}

    def figures(kind, dtype):
        entry = entries[kind, (dtype,)]
        return entry.count, entry.elements, entry.sent_bytes

    assert figures("reduce-scatter", "bf16") == (3, 3 * 32, 3 * 32 * 2 * 3 / 4)
    assert figures("all-reduce", "f32") == (1, 20, 2 * 20 * 4 * 3 / 4)
    assert figures("all-gather", "f32") == (1, 32, 32 * 4 * 3 / 4)
    assert figures("collective-permute", "f32") == (1, 6, 24 * 2 / 4)
    assert figures("all-gather", "u8") == pytest.approx((1.1, 104, 104 * 3 / 4))
    assert figures("all-gather", "s8") == (0, 0, 0)
    assert entries["all-gather", ("f32",)].overlap == 2
    assert entries["all-reduce", ("f32",)].overlap is None


ADD = """%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%wrapped (p: f32[8]) -> f32[2] {
  ROOT %rs = f32[2]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}
"""


def entries(*instructions: str, head: str = ""):
    body = "\n  ".join(instructions)
    text = f"HloModule m, is_scheduled=true\n\n{head}{ADD}ENTRY %main () -> f32[] {{\n  "
    return ledger(text + body + "\n}\n", data_mesh(4))


FUSION = "%f = f32[2]{0} fusion(%q), kind=kLoop, calls=%add"


@pytest.mark.parametrize("wrapped", ["async", "reduce-scatter"])
def test_both_notations_of_an_asynchronous_scatter(wrapped):
    calls = ", calls=%wrapped" if wrapped == "async" else ""
    (entry,) = entries(
        f"%s = ((f32[8]{{0}}), f32[2]{{0}}, u32[]) {wrapped}-start(%x){calls}",
        FUSION,
        f"%d = f32[2]{{0}} {wrapped}-done(%s)",
    )
    assert (entry.kind, entry.sent_bytes, entry.overlap) == ("reduce-scatter", 24, 1)


def test_a_tpu_scatters_where_a_fusion_reduces_and_takes_parts():
    head = """%all-reduce-scatter.1 (p: f32[8]) -> f32[2] {
  %ar = f32[8]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[2]{0} dynamic-slice(%ar, %start), dynamic_slice_sizes={2}
}
"""
    fusion = "%f = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"
    (entry,) = entries(fusion, head=head)
    assert (entry.kind, entry.elements) == ("reduce-scatter", 8)
    assert entry.sent_bytes == 32 * 3 / 4


def test_a_tpus_chain_of_fusions_is_one_collective():
    """As libtpu 0.0.42 prints it; the fusion in the middle multiplies meanwhile."""
    head = "".join(
        f"%{name} (p: bf16[2]) -> bf16[8] {{\n  %g.{name} = bf16[8] all-gather(%p), "
        f'frontend_attributes={{chain_id="{number}"}}\n}}\n'
        for name, number in [("a", 0), ("b", 0), ("c", 0), ("d", 1), ("e", 1)]
    )
    found = entries(
        "%async-collective-start = bf16[8] fusion(%x), kind=kCustom, calls=%a",
        "%fusion.1 = bf16[8] fusion(%y), kind=kOutput, calls=%b",
        FUSION,
        "%async-collective-done = bf16[8] fusion(%z), kind=kCustom, calls=%c",
        "%async-collective-start.1 = bf16[8] fusion(%x), kind=kCustom, calls=%d",
        "%async-collective-done.1 = bf16[8] fusion(%z), kind=kCustom, calls=%e",
        head=head,
    )
    assert {(e.overlap, e.count, e.sent_bytes) for e in found} == {(2, 1, 12), (0, 1, 12)}


def test_a_loop_without_a_known_count_runs_up_to_the_constant_of_its_condition():
    head = """%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ar = f32[8]{0} all-reduce(%x), to_apply=%add
}
%condition (p: (s32[], f32[8])) -> pred[] {
  %seven = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%i, %seven), direction=LT
}
"""
    loop = "%w = (s32[], f32[8]) while(%init), condition=%condition, body=%body"
    assert [entry.count for entry in entries(loop, head=head)] == [7]


def test_each_start_finds_its_own_done():
    found = entries(
        "%s = f32[8] all-reduce-start(%x)",
        "%s.1 = f32[16] all-reduce-start(%y)",
        "%d.1 = f32[16] all-reduce-done(%s.1)",
        FUSION,
        "%d = f32[8] all-reduce-done(%s)",
    )
    assert {entry.elements: entry.overlap for entry in found} == {16: 0, 8: 1}


def test_a_permute_of_two_arrays_sends_no_contexts():
    two = "(f32[8]{0}, s32[4]{0:T(256)S(1)})"
    (entry,) = entries(
        f"%s = ({two}, {two}, u32[], u32[]{{:S(2)}}) collective-permute-start(%x, %y), "
        "source_target_pairs={{0,1},{1,0}}",
        f"%d = {two} collective-permute-done(%s)",
    )
    assert (entry.elements, entry.dtypes) == (12, ("f32", "s32"))
    assert entry.sent_bytes == 4 * 12 * 2 / 4


@pytest.mark.parametrize(
    "dtype, num_bytes",
    [("pred", 1), ("s4", 0.5), ("f8e4m3fn", 1), ("bf16", 2), ("f64", 8), ("c64", 8)],
)
def test_bytes_of_every_element_type(dtype, num_bytes):
    (entry,) = entries(f"%g = {dtype}[8]{{0}} all-gather(%x)")
    assert entry.dtypes == (dtype,) and entry.sent_bytes == 8 * num_bytes * 3 / 4


@pytest.mark.parametrize(
    "scope, count",
    [
        ("warmup/cond", 0), ("jvp(warmup)/psum", 0), ("transpose(jvp(warmup))/psum", 0),
        ("jit(warmup)/psum", 1), ("warmup_cosine/psum", 1),
        ("transpose(jvp(once_in_4_steps))/psum", 0.25),
    ],
)  # fmt: skip
def test_scopes_are_found_inside_transformations(scope, count):
    name = f'metadata={{op_name="jit(f)/{scope}"}}'
    (entry,) = entries(f"%a = f32[8] all-reduce(%x), {name}")
    assert entry.count == count


def test_a_source_is_not_in_the_environment():
    head = f"""FileNames
1 "{ROOT}/.venv/lib/python3.11/site-packages/optax/base.py"
2 "{ROOT}/parallel/exchange/transforms.py"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=1 line=9 end_line=9 column=1 end_column=2}}

StackFrames
1 {{file_location_id=2 parent_frame_id=1}}
2 {{file_location_id=1 parent_frame_id=2}}

"""
    (entry,) = entries(
        '%a = f32[8] all-reduce(%x), metadata={op_name="f" stack_frame_id=2}', head=head
    )
    assert entry.source == "parallel/exchange/transforms.py:9"


@pytest.mark.parametrize(
    "text, groups",
    [
        ("{{0,1,2,3},{4,5,6,7}}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['slice'=2,'data'=4] {'data'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['slice'=2,'data'=4] {'slice'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_every_notation_of_groups(text, groups):
    found = replica_groups(
        f"all-reduce(%x), replica_groups={text}, id=1", device_mesh(MESH)
    )
    assert found.tolist() == groups


def compiled(function, num: int):
    mesh = device_mesh(MESH)
    spread = jax.shard_map(
        function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
    )
    return jax.jit(spread).lower(jax.ShapeDtypeStruct((num,), "float32")).compile(), mesh


def test_axes_bytes_and_source_of_what_is_compiled():
    def step(x):
        x += jax.lax.psum(x, "data")  # here

        def body(x, _):
            return jax.lax.ppermute(x, "slice", [(0, 1), (1, 0)]) * 2, None

        x, _ = jax.lax.scan(body, x, None, 3)
        with jax.named_scope("once_in_5_steps"):
            return jax.lax.cond(
                x[0] > 0, lambda x: jax.lax.psum(x, ("slice", "data")), lambda x: x, x
            )

    program, mesh = compiled(step, 100)
    found = {entry.axes: entry for entry in ledger(program.as_text(), mesh)}
    assert found.keys() == {("data",), ("slice",), ("slice", "data")}
    assert found["data",].sent_bytes == 2 * 400 * 3 / 4
    assert found["slice",].count == 3 and found["slice",].sent_bytes == 3 * 400
    assert found["slice", "data"].sent_bytes == pytest.approx(2 * 400 * 7 / 8 / 5)
    lines, first = inspect.getsourcelines(test_axes_bytes_and_source_of_what_is_compiled)
    here = first + next(i for i, line in enumerate(lines) if "# here" in line)
    assert found["data",].source == f"tests/parallel/cost/test_ledger.py:{here}"


def test_an_all_reduce_of_the_compilers_own():
    mesh = data_mesh(4)
    x = jax.device_put(np.ones((4, 1000), np.float32), NamedSharding(mesh, P("data")))
    summed = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, P()))
    (entry,) = ledger(summed.lower(x).compile().as_text(), mesh)
    assert (entry.kind, entry.axes) == ("all-reduce", ("data",))
    assert entry.sent_bytes == 2 * 4000 * 3 / 4


def test_an_integer_all_to_all():
    def step(x):
        digits = (x.reshape(4, -1) * 10).astype(jnp.int8)
        return jax.lax.all_to_all(digits, "data", 0, 0).astype(jnp.float32).sum(0)

    program, mesh = compiled(step, 400)
    (entry,) = ledger(program.as_text(), mesh)
    assert (entry.kind, entry.dtypes, entry.sent_bytes) == ("all-to-all", ("s8",), 300)


@pytest.mark.parametrize(
    "name, share",
    [
        ("jit(f)/psum", 1),
        ("jit(f)/once_in_4_steps/cond/psum", 1 / 4),
        ("jit(f)/warmup/cond/psum", 0),
        ("jit(f)/(once_in_4_steps/psum:psum)", 1),
        ("jit(f)/(warmup/psum:once_in_4_steps/psum)", 1 / 4),
        ("jit(f)/once_in_4_steps/(psum:add/psum)", 1 / 4),
    ],
)
def test_scopes_of_what_is_merged_too(name, share):
    assert frequency(f'%x = f32[] all-reduce(%y), metadata={{op_name="{name}"}}') == share


def test_the_source_is_the_innermost_frame_of_this_repository():
    tables = f"""HloModule f

FileNames
1 "{ROOT}/lm/task.py"
2 "/site-packages/flax/core.py"

FunctionNames
1 "f"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}}
2 {{file_name_id=1 function_name_id=1 line=5 end_line=6 column=1 end_column=2}}
3 {{file_name_id=2 function_name_id=1 line=9 end_line=9 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=3 parent_frame_id=3}}
4 {{file_location_id=3 parent_frame_id=1}}

"""
    found = [Frames(tables).source(f"x stack_frame_id={i}") for i in range(6)]
    assert found == ["", "lm/task.py:3", "lm/task.py:5", "lm/task.py:5", "", ""]


def test_a_line_of_a_library_is_told_by_who_called_it():
    library = {"jax": jax}
    text = "def total(x):\n    return jax.lax.psum(x, 'slice')"
    exec(compile(text, "/elsewhere/library.py", "exec"), library)

    def step(x):
        return library["total"](x)  # here

    program, mesh = compiled(step, 100)
    (entry,) = ledger(program.as_text(), mesh)
    lines, first = inspect.getsourcelines(test_a_line_of_a_library_is_told_by_who_called_it)
    here = first + next(i for i, line in enumerate(lines) if "# here" in line)
    assert entry.source == f"tests/parallel/cost/test_ledger.py:{here}"
