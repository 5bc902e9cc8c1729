"""Plant faults in a copy of the tree, one at a time, and tell which test catches each.

Run by hand, before and after tests are changed, not by CI:

    python -m tests.mutations             all of them
    python -m tests.mutations residual    those whose title holds the word

A fault is a piece of one file, which stands there once, and what takes its place. Its tests
run up to the first failure. The exit code is 1 if a fault is not caught or not found.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 900  # for the tests of one fault


class Fault(NamedTuple):
    title: str
    file: str
    old: str
    new: str
    tests: str  # a file below tests/, and which of its tests, as pytest's -k takes it


FAULTS = [
    Fault(
        "a plan's activations are not split over a layer's devices",
        "parallel/cost/saved.py",
        "(tensor if x.split else 1)", "tensor",
        "parallel/cost/test_memory.py megatron",
    ),
    Fault(
        "a plan forgets the arrays of a norm", "parallel/cost/saved.py",
        "    found += norm_saved(block, itemsize, \"mlp\")\n", "",
        "parallel/cost/test_memory.py blocks",
    ),
    Fault(
        "a plan holds the optimizer's state whole", "parallel/cost/memory.py",
        "model, model.opt, layout.opt, mesh", "model, model.opt, replicate, mesh",
        "parallel/cost/test_memory.py state",
    ),
    Fault(
        "a plan proposes what does not fit", "parallel/cost/plan.py",
        "return self.memory_bytes <= self.limit", "return True",
        "experiments/planning/test_planned.py fit",
    ),
    Fault(
        "a ring's sends follow each other once", "parallel/cost/step_time.py",
        '"psum": 2 * (n - 1),', '"psum": n - 1,',
        "parallel/cost/test_plan.py alpha",
    ),
    Fault(
        "a run without memory starts again as it was",
        "experiments/planning/out_of_memory.py",
        "= 2 * config.parallel.accumulation", "= config.parallel.accumulation",
        "experiments/planning/test_out_of_memory.py doubles",
    ),
    Fault(
        "gradients are not summed over replicas", "parallel/collectives.py",
        "return unflatten(jax.lax.psum(flat, axes))", "return unflatten(flat)",
        "parallel/test_strategies.py shard_map and parameters",
    ),
    Fault(
        "sharded gradients are not summed over the other axis", "parallel/sharded.py",
        "    if parts and others:", "    if False:",
        "parallel/test_axes.py parameters",
    ),
    Fault(
        "the mean is taken twice", "parallel/program.py",
        "lambda x: x * inverse, sums)", "lambda x: x * inverse * inverse, sums)",
        "parallel/test_strategies.py parameters",
    ),
    Fault(
        "a weighted sum is divided by a count", "parallel/program.py",
        'return sums.get("weight", sums["tokens"])', 'return sums["tokens"]',
        "parallel/test_strategies.py laws_of_weights",
    ),
    Fault(
        "a masked span does not reach the token that it ends in", "lm/data/rows/weights.py",
        "(starts < end) & (ends > first)", "(starts >= first) & (ends <= end)",
        "lm/data/test_weights.py spans",
    ),
    Fault(
        "a row that is drawn often counts each time in full", "lm/data/rows/parts.py",
        "share * len(shards) / rate if", "share * len(shards) if",
        "lm/data/test_mixture.py weighted_draws",
    ),
    Fault(
        "the weights of sources make other rows", "lm/data/sources/mixture.py",
        "[[label, corpus.identity] for", "[[str(sources), corpus.identity] for",
        "lm/data/test_mixture.py fingerprint",
    ),
    Fault(
        "a source is drawn from where it has no text", "lm/data/rows/parts.py",
        "weights[name] if size else 0.0", "weights[name]",
        "lm/data/test_mixture.py rates",
    ),
    Fault(
        "the losses of two sources are told of each other",
        "experiments/run/evaluation.py",
        'np.searchsorted(ends, documents.numbers, side="right")',
        "np.searchsorted(ends, documents.numbers)",
        "lm/data/test_mixture.py loss_of_each_source",
    ),
    Fault(
        "the noise floor of a skew forgets a degree of freedom", "lm/data/rows/skew.py",
        "(num_kinds - 1) * (num_shards - 1)", "num_kinds * (num_shards - 1)",
        "lm/data/test_skew.py noise_floor",
    ),
    Fault(
        "an exact duplicate is also a near one", "experiments/inspection/repeats.py",
        "near.items() if place not in exact}", "near.items()}",
        "experiments/inspection/test_inspection.py copies",
    ),
    Fault(
        "rows without a target move the median", "lm/robust.py",
        "return jnp.sum(jnp.where(counts_B, values_B, 0.0))", "return jnp.sum(values_B)",
        "lm/test_robust.py estimates",
    ),
    Fault(
        "accumulation averages means of microbatches", "parallel/program.py",
        "return jax.tree.map(jnp.add, total, one(microbatch)), None",
        "grads, sums = one(microbatch)\n"
        '        share = 16.0 / jnp.maximum(sums["tokens"], 1.0)\n'
        "        grads = jax.tree.map(lambda g: g * share, grads)\n"
        "        return jax.tree.map(jnp.add, total, (grads, sums)), None",
        "parallel/test_strategies.py accumulation",
    ),
    Fault(
        "an overflow does not skip the step", "parallel/program.py",
        "params=keep(optax.apply_updates(params, updates), params)",
        "params=optax.apply_updates(params, updates)",
        "parallel/test_strategies.py overflow",
    ),
    Fault(
        "microbatches are runs of rows", "parallel/program.py",
        "return x.reshape(x.shape[0] // num, num, *x.shape[1:]).swapaxes(0, 1)",
        "return x.reshape(num, x.shape[0] // num, *x.shape[1:])",
        "parallel/test_replicas.py microbatches",
    ),
    Fault(
        "each replica clips before the sum", "parallel/replicas.py",
        "        sums = psum_in_one(sums, axes)",
        "        norm = optax.tree.norm(grads)\n"
        "        clip = jnp.minimum(1.0, 20.0 * scale / norm)\n"
        "        grads = jax.tree.map(lambda g: g * clip, grads)\n"
        "        sums = psum_in_one(sums, axes)",
        "parallel/test_strategies.py shard_map and parameters",
    ),
    Fault(
        "the noise scale divides by the units, not one less", "parallel/program.py",
        "weight * square) / (units - one)", "weight * square) / units",
        "parallel/test_noise.py jit",
    ),
    Fault(
        "fsdp keeps whole parameters for the backward pass", "parallel/regathering.py",
        "layer_specs(specs), again=True", "layer_specs(specs), again=False",
        "parallel/test_regathering.py saves and none",
    ),
    Fault(
        "fsdp gathers before it casts", "parallel/regathering.py",
        "over_shards(gather_in_one, mesh, specs, cast(shards))",
        "cast(over_shards(gather_in_one, mesh, specs, shards))",
        "parallel/test_regathering.py written and tied",
    ),
    Fault(
        "fsdp drops the model's rematerialisation", "lm/models/transformer/model.py",
        "one_layer(config, run)(x_BTD, params)", "run(x_BTD, params)",
        "parallel/test_strategies.py rematerialisation",
    ),
    Fault(
        "all devices update all matrices", "parallel/layout.py",
        "return P(axis) if split else P()", "return P()",
        "parallel/test_dealing.py bytes",
    ),
    Fault(
        "zero1 shards no optimizer state", "parallel/layout.py",
        "ZERO1 = Layout(replicate, replicate, shard_largest)",
        "ZERO1 = Layout(replicate, replicate, replicate)",
        "parallel/test_layout.py bytes and zero1",
    ),
    Fault(
        "a layer's norm is that of its last array", "lm/norms.py",
        "squares[name] = squares.get(name, 0.0) + total", "squares[name] = total",
        "parallel/test_norms.py jit",
    ),
    Fault(
        "dropout is keyed by the place on the device", "lm/task.py",
        'jax.random.fold_in(key, row))(batch["row"])',
        'jax.random.fold_in(key, row))(jax.numpy.arange(len(batch["row"])))',
        "parallel/test_strategies.py dropout and shard_map",
    ),
    Fault(
        "moves at a meeting count alike, whatever the tokens", "parallel/meetings.py",
        "(a - x) * mine", "(a - x) * tokens / 8",
        "parallel/test_local.py synchronous and local_sgd",
    ),
    Fault(
        "replicas meet a step late", "parallel/meetings.py",
        "in_turn = (step - self.turn(index)) % self.every == 0",
        "in_turn = (step - self.turn(index)) % self.every == 1 % self.every",
        "parallel/test_local.py by_hand and diloco",
    ),
    Fault(
        "a fragment arrives a step late", "parallel/meetings.py",
        "first = self.turn(index) + self.overlap",
        "first = self.turn(index) + self.overlap + 1",
        "parallel/test_local.py streaming_diloco_as",
    ),
    Fault(
        "a warm start does not reach all replicas", "parallel/meetings.py",
        "for place in range(1, jax.lax.axis_size(axes)):", "for place in (1,):",
        "parallel/test_local.py warm_start",
    ),
    Fault(
        "a skipped step counts at the meeting", "parallel/meetings.py",
        "tokens = jnp.where(finite, weight_of(sums), 0.0)", "tokens = weight_of(sums)",
        "parallel/test_local.py never_finite",
    ),
    Fault(
        "a codec mixes parts of an island's parameters with copies",
        "parallel/islands/outer.py",
        "grouped(self.split_alike, exchange) if parts else exchange", "exchange",
        "parallel/test_islands.py to_the_bit",
    ),
    Fault(
        "a late push is corrected the wrong way", "parallel/server/shard.py",
        "g * g * (now - then)", "g * g * (then - now)",
        "parallel/server/test_server.py by_hand",
    ),
    Fault(
        "a shard clips by its own norm", "parallel/server/shard.py",
        "rest = square - optax.tree.norm(grads, squared=True)", "rest = 0.0 * square",
        "parallel/server/test_server.py global_norm",
    ),
    Fault(
        "the number of a dead worker is forgotten", "parallel/server/desk.py",
        "desk.returned.union(desk.out[worker])", "desk.returned",
        "parallel/server/test_desk.py",
    ),
    Fault(
        "a worker may run a push too far ahead", "parallel/server/desk.py",
        "lag(desk, worker) > bound", "lag(desk, worker) > bound + 1",
        "parallel/server/test_desk.py random",
    ),
    Fault(
        "a worker forgets what a codec lost", "parallel/server/packing.py",
        "tree = jax.tree.map(lambda x, r: x + self.feedback * r, tree, residual)", "pass",
        "parallel/server/test_packing.py kept",
    ),
    Fault(
        "the buffer of delayed Nesterov is never emptied", "parallel/server/merging.py",
        "jnp.where(last, 0, b), buffer", "b, buffer",
        "parallel/server/test_merging.py nesterov_by_hand",
    ),
    Fault(
        "numbers of a merge are told of twice", "parallel/server/islands.py",
        "del self.merge.untold[: step - self.desk.applied]", "pass",
        "parallel/server/test_merging.py uneven",
    ),
    Fault(
        "an island's push is not weighed by its tokens", "parallel/server/merging.py",
        "count / total if total else 0.0", "1 / len(counts)",
        "parallel/server/test_merging.py synchronous_diloco",
    ),
    Fault(
        "pieces are added up as they come", "parallel/server/synchronous.py",
        "for piece in sorted(pushes)]", "for piece in pushes]",
        "parallel/server/test_pieces.py no_bit",
    ),
    Fault(
        "workers remember an update that is left out", "parallel/server/session.py",
        "counts = self.parts.merging is not None or finite(square, loss)",
        "counts = True",
        "parallel/server/test_pieces.py no_trace",
    ),
    Fault(
        "a push is not clipped", "parallel/server/worker.py",
        "if spread.most:", "if False:",
        "parallel/server/test_pieces.py clipped",
    ),
    Fault(
        "an audit does not see what would come again", "parallel/server/replay.py",
        "len(pushed) + len(pushed.keys() - expected)", "len(pushed)",
        "parallel/server/test_server.py audit_sees",
    ),
    Fault(
        "a pull always carries everything", "parallel/server/shard.py",
        "if not whole and self.seen[worker] == self.changed:", "if False:",
        "parallel/server/test_packing.py newer",
    ),
    Fault(
        "a share is clipped to the norm of the whole", "parallel/exchange/transforms.py",
        "limit = max_norm * weight / jax.lax.axis_size(axes) ** 0.5",
        "limit = max_norm * weight",
        "parallel/exchange/test_exchange.py clipped",
    ),
    Fault(
        "the residual of error feedback is not kept", "parallel/exchange/transforms.py",
        '"residual": lost if feedback else ()}',
        '"residual": comm["residual"]}',
        "parallel/exchange/test_codecs.py feedback",
    ),
    Fault(
        "a feedback does not decay", "parallel/exchange/transforms.py",
        "lambda x, r: x + feedback * r", "lambda x, r: x + r",
        "parallel/exchange/test_feedback.py decays",
    ),
    Fault(
        "the owner's rounding is lost", "parallel/exchange/quantise.py",
        "    residual_WBS = residual_WBS.at[own].add(lost_BS)\n", "",
        "parallel/exchange/test_codecs.py feedback",
    ),
    Fault(
        "rounding is to the nearest step", "parallel/exchange/quantise.py",
        "noise = 0.5 if nearest else uniform(key, x_RBS.shape)", "noise = 0.5",
        "parallel/exchange/test_codecs_numpy.py rounding",
    ),
    Fault(
        "top_k sends the same place twice", "parallel/exchange/sparse.py",
        "jnp.arange(1, k + 1))", "jnp.maximum(jnp.arange(1, k + 1), 2))",
        "parallel/exchange/test_codecs_numpy.py top_k",
    ),
    Fault(
        "PowerSGD starts anew in each step", "parallel/exchange/power_sgd.py",
        "return jnp.where(jnp.isfinite(size_Lr).all(), scaled_Lnr, old_Lnr)",
        "return old_Lnr + 0 * scaled_Lnr",
        "parallel/exchange/test_codecs_numpy.py power_sgd",
    ),
    Fault(
        "a delay is a step short", "parallel/exchange/transforms.py",
        'slot = comm["step"] % num_steps', 'slot = comm["step"] % max(num_steps - 1, 1)',
        "parallel/exchange/test_exchange.py delay",
    ),
    Fault(
        "the ring adds a chunk twice", "parallel/exchange/algorithms.py",
        "chunks_Nc[(index - step - 1) % degree]", "chunks_Nc[(index - step) % degree]",
        "parallel/exchange/test_algorithms.py ring",
    ),
    Fault(
        "devices beyond a power of two are left out", "parallel/exchange/algorithms.py",
        "x_n = x_n + send(x_n, axes, [(power + i, i) for i in rest])", "pass",
        "parallel/exchange/test_algorithms.py sum and tree",
    ),
    Fault(
        "an algorithm's bytes are half of what it sends", "parallel/exchange/algorithms.py",
        "return 2 * -(-num // degree) * (degree - 1)",
        "return -(-num // degree) * (degree - 1)",
        "parallel/exchange/test_algorithms.py ledger",
    ),
    Fault(
        "1f1b runs one forward too many ahead", "parallel/pipeline/schedules.py",
        "in_turns(forwards, backwards, num_stages - stage - 1)",
        "in_turns(forwards, backwards, num_stages - stage)",
        "parallel/pipeline/test_schedules.py",
    ),
    Fault(
        "a slot is taken before it is read", "parallel/pipeline/schedules.py",
        "if until <= arrives)", "if until <= arrives + 1)",
        "parallel/pipeline/test_schedules.py",
    ),
    Fault(
        "a stage draws the dropout of another layer", "parallel/pipeline/gradients.py",
        "start + jnp.arange(per_chunk)", "jnp.arange(per_chunk)",
        "parallel/pipeline/test_pipeline.py every_model",
    ),
    Fault(
        "moments go back to the wrong layers", "parallel/pipeline/stacking.py",
        "back = np.argsort(order)", "back = order",
        "parallel/pipeline/test_pipeline.py state_goes",
    ),
    Fault(
        "a tuple is sent to its neighbour's owner too", "parallel/counting/table.py",
        "there_DR = offset_R < sizes_D[:, None]", "there_DR = offset_R <= sizes_D[:, None]",
        "parallel/counting/test_counting.py numpys",
    ),
    Fault(
        "the ledger counts a loop once", "parallel/cost/ledger.py",
        'known_trip_count":', 'unknown_trip_count":',
        "parallel/cost/test_ledger.py",
    ),
    Fault(
        "documents in a row see each other", "lm/models/attention.py",
        "        mask = (mask & same_BTS)[:, None, None]",
        "        mask = (mask | same_BTS & mask)[:, None, None]",
        "lm/models/test_transformer.py packed",
    ),
    Fault(
        "a query sees the next key", "lm/models/attention.py",
        "mask = query_T1 >= key_S", "mask = query_T1 + 1 >= key_S",
        "lm/models/test_attention.py blockwise",
    ),
    Fault(
        "a window is one key wider", "lm/models/attention.py",
        "query_T1 - key_S < window", "query_T1 - key_S <= window",
        "lm/models/test_attention.py blockwise",
    ),
    Fault(
        "a cached window is one key wider", "lm/models/transformer/model.py",
        "- self.window + 1", "- self.window", "lm/models/test_transformer.py cache",
    ),
    Fault(
        "the end of a text keeps its row", "lm/models/hub/arrays.py",
        "    if dim is None or end_id == END_ID:", "    if dim != 7:",
        "lm/models/hub/test_hub.py goes_back",
    ),
    Fault(
        "queries, keys and values of GPT-2 are one", "lm/models/hub/arrays.py",
        "[tensor.part * shape[-1]]", "[0 * shape[-1]]",
        "lm/models/hub/test_hub.py goes_back",
    ),
    Fault(
        "splash lets documents see each other", "lm/models/attention.py",
        "kernel(*heads_first, segment_ids=ids)", "kernel(*heads_first)",
        "lm/models/test_attention.py splash",
    ),
    Fault(
        "query heads split over devices share other keys", "lm/models/attention.py",
        "jnp.repeat(x, repeats, axis=2)", "jnp.tile(x, (1, 1, repeats, 1))",
        "lm/models/test_attention.py heads",
    ),
    Fault(
        "positions do not restart", "lm/models/rotary.py",
        "return index_T - start_BT", "return index_T + 0 * start_BT",
        "lm/models/test_transformer.py packed or positions",
    ),
    Fault(
        "a cached position is read one too early", "lm/models/transformer/model.py",
        "jnp.arange(k_BSGK.shape[1]) <= positions_BT",
        "jnp.arange(k_BSGK.shape[1]) < positions_BT",
        "lm/models/test_transformer.py cache",
    ),
    Fault(
        "padding counts as a target", "lm/task.py",
        "== segments[:, :-1]) & (segments[:, 1:] > 0)", "== segments[:, :-1])",
        "lm/models/test_transformer.py loss_counts",
    ),
    Fault(
        "the state goes on into the next document", "lm/models/recurrent.py",
        "positions_in_segment(tokens_BT, segments_BT) == 0",
        "positions_in_segment(tokens_BT, segments_BT) < 0",
        "lm/models/test_recurrent.py packed",
    ),
    Fault(
        "the weights' gradient sees the state a step late", "lm/models/recurrence.py",
        "jnp.concatenate([start_BD[None], h_TBD[:-1]])", "h_TBD",
        "lm/models/test_recurrent.py autodiff",
    ),
    Fault(
        "a source's padding is read", "lm/models/seq2seq/transformer.py",
        "ends_BS = (source_BS == END_ID).astype(jnp.int32)",
        "ends_BS = (source_BS < END_ID).astype(jnp.int32)",
        "lm/models/test_seq2seq.py follows",
    ),
    Fault(
        "expected counts are forgotten too fast", "lm/baum_welch.py",
        "(state.count + 1.0) ** -forgetting", "(state.count + 2.0) ** -forgetting",
        "lm/models/test_hmm.py stepwise",
    ),
    Fault(
        "the highest order has the counts of a lower one", "lm/models/ngram/smoothing.py",
        "    if order == len(levels):", "    if order >= len(levels) - 1:",
        "lm/models/test_ngram.py textbooks",
    ),
    Fault(
        "the initialiser's variance is that of the wrong dim", "lm/models/layers.py",
        '"he": nnx.initializers.he_normal()', '"he": nnx.initializers.lecun_normal()',
        "lm/test_gradient_flow.py relu",
    ),
    Fault(
        "the schedule is a step late", "lm/optim.py",
        "optax.linear_schedule(peak / peak_at, peak, peak_at - 1)",
        "optax.linear_schedule(0.0, peak, peak_at - 1)",
        "lm/test_optim.py schedule or warm",
    ),
    Fault(
        "candidates are not compared exactly", "lm/data/cleaning/near_dedup.py",
        "                    if similarity >= threshold:",
        "                    if similarity:",
        "lm/data/cleaning/test_near_dedup.py clusters",
    ),
    Fault(
        "of a cluster the last document stays", "lm/data/cleaning/near_dedup.py",
        "                        parent[second] = first",
        "                        parent[first] = second",
        "lm/data/cleaning/test_near_dedup.py clusters",
    ),
    Fault(
        "a copy of a copy is another cluster", "lm/data/cleaning/near_dedup.py",
        "sorted((root(parent, a), root(parent, b)))", "sorted((a, b))",
        "lm/data/cleaning/test_near_dedup.py clusters",
    ),
    Fault(
        "Ray is sent the whole stream at once", "experiments/processes/ray_tasks.py",
        "            if len(pending) >= most:",
        "            if False:",
        "experiments/processes/test_ray_tasks.py",
    ),
    Fault(
        "k-means sees only the first part", "lm/data/rows/partition.py",
        "some = features_nF[start : start + CHUNK].astype(np.float64)",
        "some = features_nF[:CHUNK][: num - start].astype(np.float64)",
        "lm/data/test_partition.py in_parts",
    ),
    Fault(
        "a held-out copy of a training document stays", "lm/data/cleaning/run.py",
        'if copy and policy == "keep":', "if copy:",
        "lm/data/cleaning/test_leakage.py policy",
    ),
    Fault(
        "a training document that begins a held-out one is missed",
        "lm/data/cleaning/leakage.py",
        "beginnings[each.beginnings[-2]]", "beginnings[each.beginnings[-1]]",
        "lm/data/cleaning/test_leakage.py beginnings",
    ),
    Fault(
        "a killed preparation makes its first pass again", "lm/data/cleaning/run.py",
        "if not done.exists():", "if True:",
        "lm/data/cleaning/test_run.py killed",
    ),
    Fault(
        "a stage of training text learns from held-out text", "lm/data/cleaning/run.py",
        "if step.stage.held_out else num_train", "if True else num_train",
        "lm/data/cleaning/test_run.py held_out",
    ),
    Fault(
        "a line begins where a text was cut", "lm/data/sources/reading.py",
        "left = max(start - SEPARATOR, 0)", "left = start",
        "lm/data/test_files.py wherever_blocks",
    ),
    Fault(
        "the folder of a file does not count in the fingerprint",
        "lm/data/sources/files.py",
        "(digest, key, file.suffixes)", "(digest, file.suffixes)",
        "lm/data/test_files.py key_of_a_document",
    ),
    Fault(
        "what cores are done with comes as it is done", "lm/data/cleaning/cores.py",
        "            if len(pending) >= AHEAD * self.num:\n"
        "                yield pending.popleft().result()",
        "            if len(pending) >= AHEAD * self.num:\n"
        "                yield pending.pop().result()",
        "lm/data/cleaning/test_run.py cores",
    ),
    Fault(
        "each process reads the same rows", "lm/data/rows/order.py",
        "every[process * local : (process + 1) * local]", "every[:local]",
        "lm/data/test_prepare.py",
    ),
    Fault(
        "the position in the data is a step late", "lm/data/rows/order.py",
        "self.draws[shard](before + index)", "self.draws[shard](before + 1 + index)",
        "lm/data/test_prepare.py",
    ),
    Fault(
        "a growing batch forgets the rows of its earlier sizes", "lm/data/rows/growth.py",
        "rows * (min(end, step) - start)", "sizes[-1] * (min(end, step) - start)",
        "lm/data/test_growth.py",
    ),
    Fault(
        "the batches of a bucket are rounded down", "lm/data/rows/buckets.py",
        "-(-epoch * len(rows) // size)", "epoch * len(rows) // size",
        "lm/data/test_buckets.py",
    ),
    Fault(
        "a source may lose its end mark when it is cut", "lm/data/rows/buckets.py",
        "int(np.argmax(source == END_ID)) + 1 if", "int(np.argmax(source == END_ID)) if",
        "lm/data/test_buckets.py",
    ),
    Fault(
        "a text is put together without its last part", "lm/data/rows/spans.py",
        "runs = zip(taken[1:], kept[1:], strict=True)", "runs = zip(taken[1:], kept[1:-1])",
        "lm/data/test_spans.py",
    ),
    Fault(
        "given vectors keep their own size", "lm/task.py",
        "scaled = (vectors * size)", "scaled = (vectors * 1.0)",
        "lm/data/test_embeddings.py",
    ),
    Fault(
        "a long document loses a target at each cut", "lm/data/rows/packing.py",
        "range(0, len(tokens) - 1, row_len - 1)", "range(0, len(tokens) - 1, row_len)",
        "lm/data/test_prepare.py",
    ),
    Fault(
        "bigrams are counted across documents", "lm/data/bigram.py",
        "inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)",
        "inside = segments[:, 1:] > 0",
        "lm/data/test_prepare.py",
    ),
    Fault(
        "a checkpoint's moments are not restored", "experiments/run/checkpoint.py",
        'opt=parts.get("opt", like.opt)',
        'opt=jax.tree.map(jnp.zeros_like, parts.get("opt", like.opt))',
        "experiments/run/test_checkpoint.py every_strategy and fsdp",
    ),
    Fault(
        "a replica leaves out the last of its own microbatches", "parallel/program.py",
        "jax.lax.fori_loop(*turns, turn, zeros)",
        "jax.lax.fori_loop(turns[0], jnp.maximum(turns[0], turns[1] - 1), turn, zeros)",
        "parallel/test_uneven.py exact",
    ),
    Fault(
        "microbatches do not move", "parallel/uneven.py",
        "self.counts_W = self.counts_W, moved_counts(self.counts_W, self.seconds_W)",
        "self.counts_W = self.counts_W, self.counts_W",
        "parallel/test_uneven.py dealer",
    ),
    Fault(
        "a dead worker's pieces are forgotten", "parallel/balance/simulate.py",
        "pool = tuple(sorted(self.left - taken))",
        "pool = tuple(sorted(self.left - taken)) if not self.ran else ()",
        "parallel/balance/test_simulate.py",
    ),
    Fault(
        "sufferage takes the piece that suffers least", "parallel/balance/plans.py",
        "np.argmax(two[:, 1] - two[:, 0])", "np.argmin(two[:, 1] - two[:, 0])",
        "parallel/balance/test_policies.py papers",
    ),
    Fault(
        "work moves at any difference", "parallel/balance/online.py",
        "if ends_M[alive].max() <= (1 + START_MOVING) * mean:",
        "if ends_M[alive].max() <= mean:",
        "parallel/balance/test_policies.py far_out",
    ),
    Fault(
        "a slow step is a straggler at once", "parallel/balance/stragglers.py",
        "np.flatnonzero(self.above_W >= STEPS)", "np.flatnonzero(self.above_W)",
        "parallel/balance/test_stragglers.py",
    ),
    Fault(
        "a worker that tells nothing is forgotten", "parallel/balance/stragglers.py",
        "np.where(np.isfinite(seconds_W), after_W, before_W)", "after_W",
        "parallel/balance/test_stragglers.py",
    ),
    Fault(
        "halves are level, and quarters are not", "lm/data/rows/level.py",
        "[half[level(tokens_B[half])] for half in halves]", "list(halves)",
        "lm/data/test_level.py split",
    ),
    Fault(
        "the optimum does not know of a slow worker",
        "experiments/studies/balance/optimum.py",
        "rows.append((worker, 1.0, share, at * (1 - share)))", "pass",
        "experiments/studies/test_balance.py all_assignments",
    ),
    Fault(
        "a pruned weight takes its update", "lm/compress/prune.py",
        "return jnp.where(new[keys], u, -weights[keys])", "return u",
        "lm/compress/test_prune.py comes_back",
    ),
    Fault(
        "of equal weights all go, or none", "lm/compress/ranking.py",
        "name: (x < limit) | (e & (i < end))", "name: x < limit",
        "lm/compress/test_prune.py stable_sort",
    ),
    Fault(
        "the gradient stops at the rounding", "lm/compress/quantise.py",
        "lambda _, dy: (dy, jnp.zeros_like(dy))", "lambda _, dy: (0 * dy, 0 * dy)",
        "lm/compress/test_quantise.py gradient",
    ),
    Fault(
        "the base of lora is trained", "lm/compress/low_rank.py",
        'jax.lax.stop_gradient(x) if config.kind == "lora" else x', "x",
        "lm/compress/test_low_rank.py trains_nothing_else",
    ),
    Fault(
        "a teacher's gradient shrinks with its temperature", "lm/losses.py",
        "return heat_B11[..., 0] ** 2 * jnp.sum", "return jnp.sum",
        "lm/compress/test_distil.py paper",
    ),
    Fault(
        "copies are looked for along axes that split a leaf", "parallel/agreement.py",
        "if axis not in axes_of(spec))", "if True)",
        "parallel/test_agreement.py",
    ),
    Fault(
        "a damaged row is not seen", "lm/data/rows/checked.py",
        "if row_sum(row) != self.sums[number]:", "if False:",
        "lm/data/test_checked.py",
    ),
    Fault(
        "work counts that a later process has undone",
        "experiments/run/survival/goodput.py",
        'm["step"] <= min(later)', 'm["step"] <= later[0]',
        "experiments/run/survival/test_goodput.py",
    ),
    Fault(
        "a fault happens again after a restart", "experiments/run/survival/injection.py",
        "if n not in done}", "if True}",
        "experiments/run/survival/test_injection.py checkpoints",
    ),
    Fault(
        "a stopped process is not told from one that is behind",
        "experiments/run/survival/heart.py",
        "if beat.silent > quiet]", "if False]",
        "experiments/run/survival/test_heart.py",
    ),
    Fault(
        "a phase goes on to the end of the run", "experiments/run/phases/builder.py",
        "            phase.last,\n", "            0,\n",
        "experiments/run/phases/test_phases.py turns",
    ),
    Fault(
        "later phases are not checked", "experiments/run/check.py",
        "in phases_of(config)\n    ]", "in phases_of(config)[:1]\n    ]",
        "experiments/run/phases/test_phases.py refused",
    ),
    Fault(
        "a signal in the last step of a phase is forgotten", "experiments/run/loop.py",
        "over = stops or step", "over = step",
        "experiments/run/phases/test_phases.py changed",
    ),
    Fault(
        "a damaged frame is taken", "experiments/processes/channel/frames.py",
        "if google_crc32c.value(payload) != crc:", "if False:",
        "experiments/run/survival/test_copies.py",
    ),
    Fault(
        "a damaged push is taken", "experiments/asynchronous/sealed.py",
        "if found != given.crc:", "if False:",
        "experiments/asynchronous/test_sealed.py",
    ),
    Fault(
        "a run goes on from a copy that another process lacks",
        "experiments/run/survival/copies.py",
        "set.intersection(*map(set, table))", "set.union(*map(set, table))",
        "experiments/run/survival/test_copies.py",
    ),
    Fault(
        "a fault of a link stays for good", "experiments/processes/network/emulator.py",
        "if each is not over]", "if True]",
        "experiments/processes/test_network.py cut_in_one",
    ),
]  # fmt: skip


def copy_of_the_tree(folder: pathlib.Path) -> None:
    """Copy what git has or would take; compiled programs are shared with the tree."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (ROOT / ".pytest_cache").mkdir(exist_ok=True)
    (folder / ".pytest_cache").symlink_to(ROOT / ".pytest_cache")


def caught_by(fault: Fault, tree: pathlib.Path) -> str | None:
    """Plant a fault, run its tests and take it away; None if no test fails."""
    file = tree / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        return f"ERROR: the text stands {text.count(fault.old)} times in {fault.file}"
    file.write_text(text.replace(fault.old, fault.new))
    try:
        test, *words = fault.tests.split(" ", 1)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "--tb=line"]
        command += [f"tests/{test}", *(("-k", *words) if words else ())]
        done = subprocess.run(
            command, cwd=tree, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"ERROR: not done after {SECONDS} s"
    finally:
        file.write_text(text)
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED tests/(.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not failed:  # such as a fault that is no Python
        return "ERROR: " + " ".join((done.stdout + done.stderr).splitlines()[-3:])
    return failed[1]


def main(words: list[str]) -> int:
    chosen = [f for f in FAULTS if all(word in f.title for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_of_the_tree(pathlib.Path(folder))
        for fault in chosen:
            start = time.monotonic()
            found = caught_by(fault, pathlib.Path(folder))
            missed += found is None or found.startswith("ERROR")
            seconds = time.monotonic() - start
            print(f"{fault.title:60} {found or 'NOT CAUGHT'} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults are caught")
    return int(missed > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
