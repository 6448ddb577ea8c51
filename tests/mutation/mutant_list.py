"""The mutants of mutants.py: one wrong formula or boundary each, as the exact text to replace."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


REFERENCE = "seqcls_fast/reference.py"
OPS = "seqcls_fast/ops.py"
INPUTS = "seqcls_fast/_inputs.py"
AUTOGRAD = "seqcls_fast/_autograd.py"
SPEC = "seqcls_fast/_spec.py"
EXPORTED = "seqcls_fast/_exported.py"
TORCH_LAYER = "seqcls_fast/_torch_layer.py"
SHAPES = "seqcls_fast/_shapes.py"
FLOPS = "seqcls_fast/_flops.py"
CONVERSION = "seqcls_fast/conversion.py"
LAYER_CLASSES = "seqcls_fast/_layer_classes.py"
OTHER_LIBRARIES = "seqcls_fast/_other_libraries.py"
EXPORT = "seqcls_fast/export.py"
BASES = "seqcls_fast/_recurrent.py"
AFTER_IMPORT = "seqcls_fast/_after_import.py"
CHECKS = "seqcls_fast/_checks.py"
STAND_INS = "seqcls_fast/_stand_ins.py"
FROZEN = "seqcls_fast/_frozen.py"
NESTED = "seqcls_fast/_nested.py"
OPTIONS = "seqcls_fast/_options.py"

PYTHON = [
    Mutant("gru gates r and z swapped", REFERENCE, "(r, z, n), (r_h, z_h, n_h)", "(z, r, n), (z_h, r_h, n_h)"),
    Mutant("gru without reset", REFERENCE, "torch.sigmoid(r + r_h) * n_h", "n_h"),
    Mutant("gru blends the other way", REFERENCE, "n + z * (h - n), c", "h + z * (n - h), c"),
    Mutant("lstm gates g and o swapped", REFERENCE, "i, f, g, o = (from_x", "i, f, o, g = (from_x"),
    Mutant("lstm output without tanh", REFERENCE, "return o * torch.tanh(c if", "return o * (c if"),
    Mutant("b_hh dropped", REFERENCE, "linear(operand, w_hh, b_h)", "linear(operand, w_hh)"),
    Mutant("state not masked", REFERENCE, "h if masks.state is None else h * masks.state", "h"),
    Mutant("masks not scaled", REFERENCE, "candidate.to(dtype) / (1 - rates.candidate_dropout)", "candidate.to(dtype)"),
    Mutant("candidate not masked", REFERENCE, "return v if self.mask is None else v * self.mask", "return v"),
    Mutant("one mask for h and c", REFERENCE, "kept(_noise.ZONEOUT_C", "kept(_noise.ZONEOUT_H"),
    Mutant("zoneout mixes the other way", REFERENCE, "(1 - rate) * new + rate * old", "rate * new + (1 - rate) * old"),
    Mutant("zoneout from before the reset", REFERENCE, "before = h, c\n", "before = old_h, old_c\n"),
    Mutant("norm without its gain", REFERENCE, "for part in parts], -1) * gain", "for part in parts], -1)"),
    Mutant("norm over all gates of a gru", REFERENCE, "[2 * hidden, hidden] if cell ==", "[3 * hidden] if cell =="),
    Mutant("c read without its norm", REFERENCE, "options.read_c(c)), c", "c), c"),
    Mutant("o sees the previous c", REFERENCE, "options.see_c(2, o, c))", "options.see_c(2, o, h))"),
    Mutant("reset at the wrong side", REFERENCE, "cut = t + 1 if reverse else t ", "cut = t "),
    Mutant("reset of h alone", REFERENCE, "h), torch.where(anew, start[1], c)", "h), c"),
    Mutant("resets beyond the row", REFERENCE, "anew = anew & valid[cut]", "pass"),
    Mutant(
        "reset state of the first direction",
        REFERENCE,
        "s is None else s[d].to(compute) for s, n in zip((h_reset",
        "s is None else s[0].to(compute) for s, n in zip((h_reset",
    ),
    Mutant("r meets the undropped h", REFERENCE, "linear(r * operand, w_n, b_n)", "linear(r * h, w_n, b_n)"),
    Mutant(
        "one mask for every row", "seqcls_fast/_noise.py", "device=device), row, step)", "device=device), step, step)"
    ),
    Mutant("one mask for both directions", "seqcls_fast/_noise.py", "masked * 2 + direction", "masked * 2"),
    Mutant("half of the seed", "seqcls_fast/_noise.py", "(seed >> 32) & _WORD", "seed & _WORD"),
    Mutant(
        "keras: gates of a gru as ours",
        "seqcls_fast/_other_weights.py",
        "Z_R_N, I_F_G_O, I_G_F_O = (1, 0, 2)",
        "Z_R_N, I_F_G_O, I_G_F_O = (0, 1, 2)",
    ),
    Mutant("haste: gates of an lstm as ours", "seqcls_fast/_other_weights.py", "(0, 2, 1, 3)", "(0, 1, 2, 3)"),
    Mutant(
        "keras: reset_after not seen",
        "seqcls_fast/_from_keras.py",
        "weights[2].dim() == 2 if each == 3",
        "True if each",
    ),
    Mutant(
        "keras: dropout of the state lost",
        "seqcls_fast/_from_keras.py",
        'settings.get("recurrent_dropout", 0.0)',
        "0.0",
    ),
    Mutant(
        "haste: gains not reordered", "seqcls_fast/_from_haste.py", 'reordered(given["gamma"], order)', 'given["gamma"]'
    ),
    Mutant(
        "padding multiplied away",
        REFERENCE,
        "torch.where(valid if x.dim() == 3 else valid.squeeze(2), x, 0)",
        "x * (valid if x.dim() == 3 else valid.squeeze(2))",
    ),
    Mutant("reverse direction runs forward", REFERENCE, "[:: -1 if reverse else 1]", "[::1]"),
    Mutant("c goes on after the end", REFERENCE, "torch.where(valid[t], c, old_c)", "c"),
    Mutant("h not rounded between steps", REFERENCE, "h = h.to(storage).to(from_x.dtype)", "h = h.to(from_x.dtype)"),
    Mutant("output beyond the length kept", REFERENCE, "output = torch.where(valid, output, 0)", "pass"),
    Mutant("length T + 1 accepted", INPUTS, "high > T", "high > T + 1"),
    Mutant("length -1 accepted", INPUTS, "low < 0 or high > T", "low < -1 or high > T"),
    Mutant("last step of a row lost", REFERENCE, ".unsqueeze(1) < lengths)", ".unsqueeze(1) < lengths - 1)"),
    Mutant("packed states not in caller's order", BASES, "state.index_select(1, restore)", "state"),
    Mutant("packed hx not sorted", BASES, "state.index_select(1, order)", "state"),
    Mutant("dropout in eval", BASES, "if self.dropout and self.training", "if self.dropout"),
    Mutant("inner layers without output", BASES, "batch_first, want_output or k < last", "batch_first, want_output"),
    Mutant("first layer's h0 for every layer", BASES, "h0, c0 = h0s[k], c0s[k]", "h0, c0 = h0s[0], c0s[k]"),
    Mutant("options: packed weights where some are dropped", BASES, "layer, packed = dropped, None", "layer = dropped"),
    Mutant("options: gains of zero", OPTIONS, "nn.init.ones_(parameter)", "nn.init.zeros_(parameter)"),
    Mutant("options: a parametrized state is zeros", OPTIONS, "[getattr(module,", "[module._parameters.get("),
    Mutant("options: weights dropped in evaluation", OPTIONS, " or not module.training:", ":"),
    Mutant("resets: a PackedSequence of another order", OPTIONS, "_check_same_order(resets, input)", "pass"),
    Mutant("nested: output in packed order", NESTED, "packed.index_select(0, self.back)", "packed"),
    Mutant(
        "nested: states of empty rows lost",
        BASES,
        "start.index_select(1, rows.empty)",
        "torch.zeros_like(start).index_select(1, rows.empty)",
    ),
    Mutant("nested: cu_seqlens that end early", NESTED, "if first or last != count:", "if first:"),
    Mutant("nested: resets of other rows", BASES, "rows.packed(as_resets(", "(as_resets("),
    Mutant("other flat weights accepted", CHECKS, "if weight is not parameter and parameter is not None", "if False"),
    Mutant(
        "cells without units in a kernel", BASES, 'impl="auto" if weights[0].numel() else "reference"', 'impl="auto"'
    ),
    Mutant("frozen: version not seen", FROZEN, "weight._version != version", "False"),
    Mutant("frozen: address not seen", FROZEN, "weight.data_ptr() != address", "False"),
    Mutant("frozen: another weight not seen", FROZEN, "if weight is not seen:", "if False:"),
    Mutant("frozen: addresses used again", FROZEN, "[w.untyped_storage() for w in", "[None for w in"),
    Mutant("frozen: gradients lost", FROZEN, " or needs_graph((*inputs, *weights))", ""),
    Mutant("frozen: packed for another set", FROZEN, "self.impl != ops.compiled_impl()", "False"),
    Mutant("frozen: float32 under autocast", FROZEN, ' or autocasts("cpu")', ""),
    Mutant("frozen: a copy is frozen", FROZEN, 'state.pop("_frozen_weights", None)', "pass"),
    Mutant("frozen: a block outlives the others", FROZEN, "blocks[k][1] = before", "pass"),
    Mutant("frozen: parametrized weights", FROZEN, "if name not in module._parameters:", "if False:"),
    Mutant("frozen: a table as features", FROZEN, "bool(tables) and k == 0", "False"),
    Mutant("frozen: reverted layers stay frozen", CONVERSION, 'module.__dict__.pop("_frozen_weights", None)', "pass"),
    Mutant("fx: hooks run twice", STAND_INS, "module._forward_pre_hooks or module._forward_hooks", "False"),
    Mutant("fx: lengths not recorded", STAND_INS, "path, args, options)", "path, args, {})"),
    Mutant("complex numbers in a kernel", OPS, "not is_complex and ", ""),
    Mutant("operators missing after torch", AFTER_IMPORT, "sys.meta_path.insert(0, _Finder(name, run))", "pass"),
    Mutant("use_impl not undone", OPS, "_set_default(before)", "pass"),
    Mutant("impl not checked", OPS, 'if name != "auto" and name not in _IMPLS and not', "if not name and not"),
    Mutant("lengths not checked", OPS, "check_lengths(shown,", "(lambda *_, **__: None)(shown,"),
    Mutant("compiled vmap through the op", OPS, " and not (transformed and compiling)", ""),
    Mutant("forward mode through the op", OPS, "forward_ad._current_level < 0 and", "True and"),
    Mutant("change of the output not seen", AUTOGRAD, "torch.compiler.is_compiling() or ctx.watch._version", "False"),
    Mutant("output not kept from Dynamo", AUTOGRAD, "kept = output.clone()", "kept = output"),
    Mutant(
        "backward without tangents",
        AUTOGRAD,
        "forward_ad._current_level >= 0 or grads_batched(grads)",
        "grads_batched(grads)",
    ),
    Mutant("backward without a graph", AUTOGRAD, "if torch.is_grad_enabled() or torch._C", "if torch._C"),
    Mutant("no fallback but the reference", OPS, 'plain_layer and spec.impl != "reference"', "False"),
    Mutant("ids where they unroll time", "seqcls_fast/classifier.py", " or not ops.takes_ids(ids)", ""),
    Mutant(
        "torch: change of the output not seen", TORCH_LAYER, "ctx.watch is not None and ctx.watch._version", "False"
    ),
    Mutant("torch: backward without a graph", TORCH_LAYER, "transformed or graph or", "transformed or"),
    Mutant("torch: nothing recomputed", TORCH_LAYER, "set_grad_enabled(not spec.recompute)", "set_grad_enabled(True)"),
    Mutant("torch: lengths beyond T", TORCH_LAYER, ".clamp(0, x.size(time))", ""),
    Mutant("torch: packed states not in order", TORCH_LAYER, "state.index_select(1, order)", "state[:, :count]"),
    Mutant(
        "torch: states of empty rows lost", TORCH_LAYER, "state.index_copy(1,", "torch.zeros_like(state).index_copy(1,"
    ),
    Mutant(
        "torch: states sorted",
        TORCH_LAYER,
        "index_copy(1, order, padded)",
        "index_copy(1, order.sort()[0], padded)",
    ),
    Mutant("torch: a step of two", TORCH_LAYER, "spec.directions == 1 and batch_sizes", "batch_sizes"),
    Mutant("torch: freed memory", TORCH_LAYER, "if needed > t.untyped_storage().nbytes()", "if False"),
    Mutant("torch: sizes unchecked", TORCH_LAYER, "if t.shape != shape", "if False"),
    Mutant("torch: batch_sizes that grow", TORCH_LAYER, " or (batch_sizes[1:] > batch_sizes[:-1]).any()", ""),
    Mutant("torch: ids", TORCH_LAYER, "holds_ids(x) or x.is_meta", "x.is_meta"),
    Mutant(
        "torch: transforms",
        TORCH_LAYER,
        "_are_functorch_transforms_active() or forward_ad._current_level >= 0:",
        "_is_tracing():",
    ),
    Mutant(
        "torch: autocast inside",
        TORCH_LAYER,
        "autocast_off(x.device.type)",
        "torch.no_grad() if False else autocast_off('meta')",
    ),
    Mutant(
        "ensemble folded",
        SPEC,
        "tensors[BATCH_SIZES] is None and tensors[SEED] is None and all(dim is None for dim in dims[SHARED:])",
        "True",
    ),
    Mutant("nested samples", AUTOGRAD, "samples=max(n, 1) * max(spec.samples, 1)", "samples=max(n, 1)"),
    Mutant(
        "nothing saved below vmap",
        AUTOGRAD,
        "want_saved=spec.want_saved or needs_graph(tensors)",
        "want_saved=spec.want_saved",
    ),
    Mutant(
        "exported c_n without gradient",
        EXPORTED,
        "d_c_n = grads[1] if CELLS[spec.cell].has_c else None",
        "d_c_n = None",
    ),
    Mutant("exported without autocast", EXPORTED, '("AutocastCPU", "AutocastCUDA")', '("AutocastCUDA",)'),
    Mutant("batch lost under vmap", SPEC, "x.size(at if dim is None or dim > at else at + 1)", "x.size(at)"),
    Mutant("batched gradients unseen", AUTOGRAD, "_current_level >= 0 or grads_batched(grads)", "_current_level >= 0"),
    Mutant(
        "second derivative of grads lost", AUTOGRAD, "(*of_grads, False, False, *of_own)", "(*[False] * 5, *of_own)"
    ),
    Mutant(
        "one dtype for every autocast",
        INPUTS,
        "dtype = torch.get_autocast_dtype(x.device.type)",
        "dtype = torch.bfloat16",
    ),
    Mutant(
        "states not narrowed",
        OPS,
        "x, h0, c0, h_reset, c_reset, *weights = autocast(x, h0, c0, h_reset, c_reset, *weights)",
        "x, *weights = autocast(x, *weights)",
    ),
    Mutant("samples missing in the shape", SHAPES, "(samples,) if samples else ()", "()"),
    Mutant("batch of packed rows fixed", SHAPES, "batch = torch.library.get_ctx().new_dynamic_size()", "batch = 3"),
    Mutant("not marked as converted", CONVERSION, "module.__dict__[_MARK] = True", "pass"),
    Mutant("who asks by isinstance forgotten", CONVERSION, "not (keep or asker)", "not keep"),
    Mutant("opacus not told", CONVERSION, "tell_opacus(new_class)", "pass"),
    Mutant("joint class pickled by its name", LAYER_CLASSES, "if theirs else reduced", "if not theirs else reduced"),
    Mutant("every subclass swapped", LAYER_CLASSES, 'not {"super", "forward"} <= used', "False"),
    Mutant("hooks of opacus not seen", OTHER_LIBRARIES, '"autograd_grad_sample_hooks" in vars(parent)', "False"),
    Mutant("everything reverted", CONVERSION, " if _MARK in module.__dict__]", "]"),
    Mutant(
        "cells of another kind",
        LAYER_CLASSES,
        "getattr(nn, name): getattr(ours, name) for",
        "getattr(nn, name): getattr(ours, name.replace('GRUCell', 'RNNCell')) for",
    ),
    Mutant("parametrization lost", CONVERSION, 'if key not in ("__dict__", "__weakref__")}', 'if key == "__module__"}'),
    Mutant("replaced forward kept", CONVERSION, 'if "forward" in module.__dict__ else None', "if False else None"),
    Mutant("wrapped by DDP accepted", CONVERSION, '"DistributedDataParallel", ', ""),
    Mutant(
        "torch's flat weights stale",
        CONVERSION,
        "module._flat_weights, module._flat_weight_refs = weights, [weakref.ref(weight) for weight in weights]",
        "pass",
    ),
    Mutant("adapter not seen", CONVERSION, 'if adapter or key == "base_layer":', "if adapter:"),
    Mutant("onnx gru gates", EXPORT, '"gru": [1, 0, 2]', '"gru": [0, 1, 2]'),
    Mutant("onnx gru resets before", EXPORT, 'linear_before_reset=int(cell == "gru")', "linear_before_reset=0"),
    Mutant("onnx gru resets after", EXPORT, 'linear_before_reset=int(cell == "gru")', "linear_before_reset=1"),
    Mutant("onnx peepholes in our order", EXPORT, "_PEEPHOLES = [0, 2, 1]", "_PEEPHOLES = [0, 1, 2]"),
    Mutant("onnx without zoneout", EXPORT, "options is not None and any(options.zoneout)", "False"),
    Mutant(
        "onnx biases swapped",
        EXPORT,
        "op.Concat(stacked(b_ih), stacked(b_hh), axis=1)",
        "op.Concat(stacked(b_hh), stacked(b_ih), axis=1)",
    ),
    Mutant("onnx row of length 0", EXPORT, "end if start is None else op.Where(empty, start, end)", "end"),
    Mutant(
        "onnx directions apart",
        EXPORT,
        "perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3]",
        "perm=[2, 0, 1, 3] if batch_first else [0, 1, 2, 3]",
    ),
    Mutant(
        "training flag not restored",
        EXPORT,
        "            module.training = training\n",
        "            module.training = True\n",
    ),
    Mutant("file written in place", EXPORT, "program.save(written)", "program.save(path)"),
    Mutant(
        "reference: ids without b_ih",
        "seqcls_fast/reference.py",
        "columns if b_ih is None else columns + b_ih",
        "columns",
    ),
    Mutant("shapes: output contiguous", SHAPES, "output.transpose(0, 1) if batch_first and", "output if False and"),
    Mutant("flops: gradient of an absent h0", FLOPS, "rows if h0 is None else 0", "0"),
    Mutant("flops: rows without steps", FLOPS, "int(lengths.count_nonzero())", "B"),
    Mutant("flops: a product for ids", FLOPS, "() if holds_ids(x) else w_ih", "w_ih"),
    Mutant(
        "torch's layer: ragged output contiguous",
        TORCH_LAYER,
        "return output.transpose(0, 1) if spec.batch_first else output, *finals",
        "return output.transpose(0, 1).contiguous() if spec.batch_first else output, *finals",
    ),
    Mutant(
        "shapes: d_w_ih of ids by row",
        "seqcls_fast/_shapes.py",
        "output.new_empty((*each, *w.shape[::-1])).transpose(-1, -2)",
        "output.new_empty((*each, *w.shape))",
    ),
]

CELLS = "csrc/core/cells.h"
FORWARD = "csrc/cpu/kernels/forward.h"
BACKWARD = "csrc/cpu/kernels/backward.h"
FORWARD_TILES = "csrc/cpu/kernels/forward_tiles.h"
BACKWARD_TILES = "csrc/cpu/kernels/backward_tiles.h"
ROW_FORWARD = "csrc/cpu/kernels/row_forward.h"
ROW_BACKWARD = "csrc/cpu/kernels/row_backward.h"
ROW_PARTS = "csrc/cpu/kernels/row_parts.h"
WEIGHTS = "csrc/cpu/kernels/weight_grad.h"
GRAD_TILES = "csrc/cpu/kernels/grad_tiles.h"
PACK = "csrc/cpu/kernels/pack.h"
VECTORS = "csrc/cpu/kernels/vec.h"
INPUTS = "csrc/cpu/kernels/input_grad.h"
RUN = "csrc/cpu/host/run.cpp"
SCHEDULE = "csrc/cpu/host/schedule.h"
PACKED = "csrc/cpu/host/packed_weights.h"
HEAD = "csrc/cpu/kernels/head.h"
TILE = "csrc/cpu/kernels/tile.h"
UNPACKED = "csrc/cpu/kernels/unpacked.h"
BINDINGS = "csrc/bindings/layer_calls.h"
HEAD_BINDINGS = "csrc/bindings/head.cpp"
ARGUMENTS = "csrc/bindings/arguments.h"
OF_OPTIONS = "csrc/bindings/options.h"
TENSORS = "csrc/bindings/tensors.h"
OF_FROZEN = "csrc/bindings/packed.h"
NODE = "csrc/eager/layer_node.cpp"
CALLS = "csrc/eager/module_calls.cpp"

COMPILED = [
    Mutant("padding pooled", HEAD, "const int64_t n = call_.length(b);", "const int64_t n = call_.T;"),
    Mutant("NaN lost by max", HEAD, "select(x == x, larger, x)", "larger"),
    Mutant("no temperature", HEAD, "row[k] /= temperature", "row[k] /= A(1)"),
    Mutant("numbers beyond the last in a sum of e^x", HEAD, "sums += F::read(x + i, left);", "sums += load(x + i);"),
    Mutant("a product without its bias", TILE, "start ? start + column : nullptr", "nullptr"),
    Mutant("lengths of the poolings not given on", HEAD_BINDINGS, "call.lengths = rows.lengths.data();", ""),
    Mutant("x of a product without its memory", HEAD_BINDINGS, 'check_memory("x", x);', ""),
    Mutant("samples overwrite one another", WEIGHTS, "return task_.sample * (", "return 0 * ("),
    Mutant(
        "numbers of the last square twice", UNPACKED, "if (i < first || i >= end) continue;", "if (i >= end) continue;"
    ),
    Mutant("a chain begins with the sums before it", UNPACKED, "if (k == 0) {", "if (true) {"),
    Mutant("the last columns left out", UNPACKED, "if (columns % F::kLanes) tiles(", "if (false) tiles("),
    Mutant(
        "gates of a step by their slots", BACKWARD, "terms[g] = {a_, s.segment[g],", "terms[g] = {a_, g * layer_.H,"
    ),
    Mutant("squares half turned", VECTORS, "portable_interleave(a, b, kF / 2)", "portable_interleave(a, b, 0)"),
    Mutant("samples of packed rows", BINDINGS, "if (samples && given.batch_sizes) fail(", "if (false) fail("),
    Mutant("h0's gradient where c0's belongs", BINDINGS, "d_c0 = c0 ? &add(c_state)", "d_c0 = c0 ? d_h0"),
    Mutant(
        "a weight left out of the hash",
        PACKED,
        "for (auto* m : {&layer.w_ih[d], &layer.w_hh[d],",
        "for (auto* m : {&layer.w_ih[d],",
    ),
    Mutant(
        "packed weights kept under another hash",
        PACKED,
        "packed_cache().add(fingerprint(kernels, own.layer), packed, bytes)",
        "packed_cache().add(fingerprint(kernels, layer), packed, bytes)",
    ),
    Mutant("eager: modes not seen", NODE, "(keys.included_.raw_repr() & ~usual.raw_repr()) == 0 && ", ""),
    Mutant("eager: autocast not seen", NODE, "keys.excluded_.has(c10::DispatchKey::AutocastCPU) &&", ""),
    Mutant("eager: modes of functions not seen", NODE, "!at::impl::torch_function_mode_enabled()", "true"),
    Mutant("eager: dual numbers not seen", NODE, " && !t._fw_grad(0).defined()", ""),
    Mutant("eager: a changed output not noticed", NODE, "version_->current_version() != 0", "false"),
    Mutant("eager: second derivatives lost", NODE, "bool plain = !at::GradMode::is_enabled() && ", "bool plain = "),
    Mutant("eager: c0's gradient lost", NODE, "take(kC0, tensors[kC0].defined());", ""),
    Mutant("eager: values kept after a backward", NODE, "saved.reset_data();", "(void)saved;"),
    Mutant(
        "eager: a parameter's class not asked", CALLS, "if (!THPVariable_CheckExact(object))", "if (object == Py_None)"
    ),
    Mutant("eager: dropout of evaluation", CALLS, "count > 1 && module.flag(names().training)", "count > 1"),
    Mutant(
        "eager: a frozen weight's version not asked",
        CALLS,
        "static_cast<int64_t>(t._version())",
        "PyLong_AsLongLong(version)",
    ),
    Mutant("packed for another layer", OF_FROZEN, "std::memcmp(&header, &wanted, sizeof header) != 0", "false"),
    Mutant("packed weights cut off", OF_FROZEN, "if (given != bytes) fail(", "if (false) fail("),
    Mutant(
        "packed weights out of line",
        OF_FROZEN,
        "if (reinterpret_cast<uintptr_t>",
        "if (0 * reinterpret_cast<uintptr_t>",
    ),
    Mutant("ids read where they are", RUN, "    layer.ids = ids_.data();\n    layer.x = place;\n", ""),
    Mutant("a storage of one element less taken", TENSORS, "last >= storage / element", "last > storage / element"),
    Mutant("sizes without a bound", TENSORS, "if (size > kMostElements / count)", "if (size < 0)"),
    Mutant(
        "the last step cut off",
        BINDINGS,
        "call.layer.T = std::max<int64_t>(1, *",
        "call.layer.T = std::max<int64_t>(1, -1 + *",
    ),
    Mutant("the hash knows no shape", PACKED, "parts[0] = {shape, sizeof shape};", "parts[0] = {shape, 0};"),
    Mutant("every sample the first", RUN, "rows.data() + sample * count, count", "rows.data(), count"),
    Mutant("only the first sample sorted", SCHEDULE, "layer.lengths && s < samples", "layer.lengths && s < 1"),
    Mutant(
        "gru gates r and z swapped (C++)",
        CELLS,
        "r = sigmoid(a[0]), z = sigmoid(a[1])",
        "r = sigmoid(a[1]), z = sigmoid(a[0])",
    ),
    Mutant("gru reset before the product", CELLS, "return gate == 2 ? 3 : gate;", "return gate;"),
    Mutant(
        "gru backward reads the wrong slot", CELLS, "d[2] * saved[3] * fma(-r, r, r)", "d[2] * saved[2] * fma(-r, r, r)"
    ),
    Mutant("gru backward drops the carry", CELLS, "carry = dh * z;", "carry = V{};"),
    Mutant(
        "lstm gates i and f swapped",
        CELLS,
        "options.see_c(0, a[0], c)), f = sigmoid(options.see_c(1, a[1], c))",
        "options.see_c(0, a[1], c)), f = sigmoid(options.see_c(1, a[0], c))",
    ),
    Mutant(
        "lstm backward without slope of tanh(c)",
        CELLS,
        "fma(dh * o, fma(-tanh_c, tanh_c, V{} + 1), d_c)",
        "fma(dh, o, d_c)",
    ),
    Mutant(
        "lstm carry without forget gate", CELLS, "options.add_seen(0, d[0], dc * f)", "options.add_seen(0, d[0], dc)"
    ),
    Mutant("most of b_hh dropped (C++)", PACK, "unit, n, line + Cell", "unit, 1, line + Cell"),
    Mutant(
        "reverse starts at the padded end",
        FORWARD,
        "layer_.length(rows_[i]) - 1 - step : step",
        "layer_.T - 1 - step : step",
    ),
    Mutant("row goes on for one step", FORWARD, "<= step) --active", "< step) --active"),
    Mutant("last state one step late", FORWARD, "== step + 1) finish_row(i)", "== step + 2) finish_row(i)"),
    Mutant("length 0 without a state", FORWARD, "if (layer_.length(b) == 0) finish_row(i);", ""),
    Mutant(
        "one step of padding not cleared",
        FORWARD,
        "t = layer_.length(b); t < layer_.T",
        "t = layer_.length(b) + 1; t < layer_.T",
    ),
    Mutant(
        "tail mask one lane short",
        FORWARD_TILES,
        "n = static_cast<int>(s.H - unit);",
        "n = static_cast<int>(s.H - unit - 1);",
    ),
    Mutant(
        "projection of the first chunk only",
        FORWARD,
        "else if (in_chunk == 0)",
        "else if (step == 0)",
    ),
    Mutant("h not rounded between steps (C++)", FORWARD, "if (dtype_of<E>() != layer_.dtype) {", "if (false) {"),
    Mutant("relu drops NaN", VECTORS, "select(x < 0, FloatVec{}, x)", "select(x > 0, x, FloatVec{})"),
    Mutant("c_prev of the wrong step", BACKWARD, "row_of(saved, t_prev, b) + c_slot", "row_of(saved, t, b) + c_slot"),
    Mutant(
        "product of a neighbour for fresh rows",
        BACKWARD_TILES,
        "if (s.fresh && s.fresh[row]) d_h =",
        "if (false) d_h =",
    ),
    Mutant("d_h_n at every step", BACKWARD, "joins && d_h_n_.rows.data", "d_h_n_.rows.data"),
    Mutant("d_h0 without the carry", BACKWARD, "row[u] += carry[u];", "row[u] += 0;"),
    Mutant(
        "d_x with one direction",
        INPUTS,
        "for (int d = 0; d < layer_.directions; ++d) {\n      const E* rows[kRows];",
        "for (int d = 0; d < 1; ++d) {\n      const E* rows[kRows];",
    ),
    Mutant("reverse weight gradient from the next h", WEIGHTS, "before = d_ ? t + 1 : t - 1", "before = t - 1"),
    Mutant(
        "weight gradient without its last chunk",
        WEIGHTS,
        "if (now_->count || one_chunk_) add_chunk();",
        "if (one_chunk_) add_chunk();",
    ),
    Mutant(
        "weight gradient of its last chunk alone",
        WEIGHTS,
        "if (now_->count) add_chunk();\n    Chunk*",
        "Chunk*",
    ),
    Mutant("rows in the order of the batch", SCHEDULE, "return layer.lengths[a] > layer.lengths[b];", "return false;"),
    Mutant(
        "stale packed weights",
        PACKED,
        "return m.rows * m.columns * size_of(dtype);",
        "return m.rows * size_of(dtype);",
    ),
    Mutant("lengths beyond T accepted (C++)", ARGUMENTS, "low < 0 || high > T", "low < 0"),
    Mutant(
        "h0 of the first direction for both",
        ARGUMENTS,
        "(rank > 2 ? d * strides[0]",
        "(rank > 2 ? 0 * strides[0]",
    ),
    Mutant("batch-first output contiguous", ARGUMENTS, "device, batch_first && !packed());", "device);"),
    Mutant("a rate of 1 accepted (C++)", OF_OPTIONS, "rate >= 0 && rate < 1", "rate >= 0 && rate <= 1"),
    Mutant(
        "resets of any shape",
        OF_OPTIONS,
        'check_tensor("resets", *resets, call.device, ScalarType::Bool, shape);',
        'check_memory("resets", *resets);',
    ),
    Mutant("ids unchecked", RUN, "if (id < 0 || id >= layer.I)", "if (id < 0)"),
    Mutant("columns of samples in one place", RUN, "b / each * layer.I + layer.id(t, b)", "layer.id(t, b)"),
    Mutant("column without the bias", FORWARD, "bias ? load(bias + at) : typename F::V{};", "typename F::V{};"),
    Mutant("c not reset (C++)", FORWARD, "c_[i * padded_ + u] = reset_c_[u];", "c_[i * padded_ + u] += 0;"),
    Mutant("h not reset (C++)", FORWARD, "h_prev_[i] = reset_h_;", ""),
    Mutant("gradient flows back over a reset (C++)", BACKWARD, "fresh_[i] = joins || cut;", "fresh_[i] = joins;"),
    Mutant("d_h_reset without a step (C++)", BACKWARD, "reset_sum(call_.d_h_reset, i)[u] += row[u];", ";"),
    Mutant(
        "candidate not masked (C++)",
        CELLS,
        "V candidate(V v) const { return v * mask; }",
        "V candidate(V v) const { return v; }",
    ),
    Mutant(
        "norm without its gain (C++)",
        ROW_FORWARD,
        "load(further_[0] + at), load(bias + g * kL)",
        "V{} + 1, load(bias + g * kL)",
    ),
    Mutant("zoneout keeps nothing (C++)", ROW_PARTS, "select(load(mask) > 0, fresh, old)", "fresh"),
    Mutant(
        "zoneout's carry lost (C++)",
        ROW_BACKWARD,
        "carry[u] = keep ? (keep[u] > 0 ? 0 : d) : d * rate;",
        "carry[u] = 0;",
    ),
    Mutant("state not masked (C++)", ROW_FORWARD, "noise_.masks_state() ? masked_state(i) : h_prev_[i]", "h_prev_[i]"),
    Mutant("mean of a norm's gradient kept (C++)", ROW_PARTS, "(load(d + i * kL) - mean -", "(load(d + i * kL) -"),
    Mutant("masks end with the units (C++)", ROW_FORWARD, "                padded_);", "                layer_.H);"),
    Mutant("column of the first step", FORWARD, "column = column_of(i, step);", "column = column_of(i, 0);"),
    Mutant(
        "a run's last rows",
        GRAD_TILES,
        "run_ends = (k + 1) % kRun == 0 || k + 1 == count",
        "run_ends = (k + 1) % kRun == 0",
    ),
]

AMX = "csrc/cpu/kernels/amx.h"

# Of AMX, with its instructions emulated: tests/amx.
TILED = [
    Mutant("tiles: values beyond a row", AMX, "k + j < K ? row[k + j] : Bits16(0)", "row[k + j]"),
    Mutant("tiles: the first rows again", AMX, "_tile_loadd(5, a + apart, 64);", "_tile_loadd(5, a, 64);"),
    Mutant(
        "tiles: the first column again",
        AMX,
        "_tile_loadd(7, columns[1] + at, line);",
        "_tile_loadd(7, columns[0] + at, line);",
    ),
    Mutant("tiles: the first rows in the last sum", AMX, "_tile_dpbf16ps(3, 5, 7);", "_tile_dpbf16ps(3, 4, 7);"),
    Mutant("tiles: one step of k", AMX, "step < steps; ++step", "step < 1; ++step"),
    Mutant("tiles: sums start anew", AMX, "  if (first) {\n    _tile_zero(0);", "  if (true) {\n    _tile_zero(0);"),
    Mutant("tiles: the last sums lost", AMX, "if (kRows && kColumns) _tile_stored(3,", "if (false) _tile_stored(3,"),
    Mutant("tiles left configured", AMX, "~TileScope() { _tile_release(); }", "~TileScope() {}"),
    Mutant("tiles: sixteen rows of more", AMX, "count > kTileRows ? 2 : 1", "1"),
    Mutant("tiles: a product without its start", AMX, "start ? sum + load(start + at) : sum", "sum"),
    Mutant(
        "tiles of a layer with options", "csrc/cpu/kernels/amx.cpp", "kBFloat16 && !layer.row_wise &&", "kBFloat16 &&"
    ),
    Mutant(
        "tiles: state's gates in the input's slots",
        FORWARD_TILES,
        "add(HiddenSlotOfGate<Cell>{}, s.staged_h,",
        "add(SlotOfGate{}, s.staged_h,",
    ),
    Mutant(
        "tiles: start of the first row",
        FORWARD_TILES,
        "const float* const start = s.start[row + m]",
        "const float* const start = s.start[row]",
    ),
    Mutant("tiles: the last gate of the backward alone", BACKWARD_TILES, "i == 0);", "true);"),
    Mutant(
        "tiles: one gate for all",
        BACKWARD_TILES,
        "stage(s.a, s.rows, s.segment[i], s.K,",
        "stage(s.a, s.rows, s.segment[0], s.K,",
    ),
    Mutant(
        "tiles: sums of a step without product", BACKWARD_TILES, "i < 2 * kTileRows * stride && !s.segments;", "false;"
    ),
    Mutant(
        "tiles: d_x of the last direction", INPUTS, "blocks, sums, stride, d == 0);", "blocks, sums, stride, true);"
    ),
    Mutant("tiles: every other row of a chunk", GRAD_TILES, "row(k + 2 * i + 1)", "nullptr"),
    Mutant("tiles: rows of an earlier chunk", WEIGHTS, "if (k >= K) {", "if (false) {"),
    Mutant("parts of a panel from the first", PACK, "(part * K + k) * s.k_stride", "k * s.k_stride"),
]

STEPS = "csrc/cuda/kernels/steps.cuh"
RECURRENCE = "csrc/cuda/kernels/recurrence.cuh"
CLUSTER = "csrc/cuda/kernels/cluster.cuh"
GRID = "csrc/cuda/kernels/grid.cuh"
PREPARE = "csrc/cuda/kernels/prepare.cuh"
PRODUCTS = "csrc/cuda/host/products.cu"
LAUNCH = "csrc/cuda/host/launch.cu"
STEPWISE = "csrc/cuda/kernels/stepwise.cuh"
OPTIONS = "csrc/cuda/kernels/options.cuh"
MASKS = "csrc/cuda/kernels/masks.cuh"
NORM = "csrc/cuda/kernels/stepwise_norm.cuh"
NORM_ROWS = "csrc/cuda/kernels/norm_rows.cuh"
NORM_STEPS = "csrc/cuda/kernels/steps_norm.cuh"
RESET_STEPS = "csrc/cuda/kernels/steps_reset.cuh"
TOTALS = "csrc/cuda/kernels/row_totals.cuh"
RESET_BEFORE = "csrc/cuda/kernels/stepwise_reset.cuh"
IDS = "csrc/cuda/kernels/ids.cuh"

CUDA = [
    Mutant(
        "CUDA: gru's sums in the input's slots",
        STEPS,
        "slots[Cell::hidden_slot(g)] = S::kStartsFromInput",
        "slots[g] = S::kStartsFromInput",
    ),
    Mutant(
        "CUDA: gru gives on the input's slots", STEPS, "is_live ? d[Cell::hidden_slot(g)] : 0", "is_live ? d[g] : 0"
    ),
    Mutant("CUDA: rows that ended give on", STEPS, "is_live ? d[Cell::hidden_slot(g)] : 0", "d[Cell::hidden_slot(g)]"),
    Mutant("CUDA: gradients flow over a reset", STEPS, "next[cell][g] = 0;", "next[cell][g] *= 1;"),
    Mutant("CUDA: a carry flows over a reset", STEPS, "carry.v[cell] = 0;", ""),
    Mutant(
        "CUDA: c before a reset",
        STEPS,
        "if (Cell::kHasC) c_before[cell] = state_at",
        "if (false) c_before[cell] = state_at",
    ),
    Mutant("CUDA: reverse resets a step late", STEPS, "reverse ? now.t_row : now.t_row_before, now", "now.t_row, now"),
    Mutant(
        "CUDA: a reset of c alone", STEPS, "h.v[cell] = state_at<Math>(io.h_reset, now.b[column], unit + 8 * half);", ""
    ),
    Mutant("CUDA: zoneout keeps no gradient", STEPS, "come.kept_h = of_h.of_old(come.dh);", ""),
    Mutant("CUDA: h that zoneout left in slopes", STEPS, "S::kOptions && fresh_h ? io.saved : io.output", "io.output"),
    Mutant(
        "CUDA: c that zoneout left in slopes",
        STEPS,
        "if (options.changes(Masked::kZoneoutC))",
        "if (false)",
    ),
    Mutant("CUDA: d_h0 of dropped states", RECURRENCE, "masks.of_state(sums[cell][0], cell)", "sums[cell][0]"),
    Mutant("CUDA: another state is dropped each step", OPTIONS, "masked == Masked::kState ? of_row : of_row", "of_row"),
    Mutant("CUDA: zoneout over a reset", OPTIONS, "* H + unit] += d;", "* H + unit] += 0;"),
    Mutant(
        "CUDA: peepholes of the first block",
        OPTIONS,
        "4 * (at.unit(0) - at.block * a.block_groups * kGroupUnits)",
        "4 * at.unit(0)",
    ),
    Mutant("CUDA: peepholes of one tile", OPTIONS, "d_seen.load(tile, gate);", "d_seen.load(0, gate);"),
    Mutant("CUDA: a step beyond the length", STEPS, "return t < length[column];", "return t <= length[column];"),
    Mutant("CUDA: before a reverse step", STEPS, "reverse ? before < now.length[column] : before >= 0", "before >= 0"),
    Mutant("CUDA: d_h0 without the carry", STEPS, "(pending + (Cell::kCarriesH ? carry : 0))", "(pending)"),
    Mutant("CUDA: one k-tile less", RECURRENCE, "k < S::kKTiles; k += 2", "k < S::kKTiles - 2; k += 2"),
    Mutant("CUDA: d_h0 without the first step", RECURRENCE, "turns = steps + (kForward ? 0 : 1);", "turns = steps;"),
    Mutant("CUDA: parts of sums in one place", RECURRENCE, "S::kProducts == 2 ? 0 : i & 1, products", "0, products"),
    Mutant(
        "CUDA: parts of sums not awaited", RECURRENCE, "group_sync(at.group_in_block, 32 * S::kSplits)", "warp_sync()"
    ),
    Mutant("CUDA: states of the first launch for all", RECURRENCE, "return a.first ? Step", "return true ? Step"),
    Mutant(
        "CUDA: no barrier before the second step",
        "csrc/cuda/kernels/onchip.cuh",
        "step > 0) cta_sync()",
        "step > 1) cta_sync()",
    ),
    Mutant("CUDA: slice sent before it is whole", CLUSTER, "int tile) const {\n    warp_sync();", "int tile) const {"),
    Mutant("CUDA: waits for the wrong phase", CLUSTER, "(step - 1) / 2 & 1", "step / 2 & 1"),
    Mutant("CUDA: expects one block's bytes", CLUSTER, "bytes(a.groups *", "bytes(a.block_groups *"),
    Mutant("CUDA: any tag will do", GRID, "(found[j] >> 32) != tag", "(found[j] >> 32) == 0"),
    Mutant(
        "CUDA: slice written while it is sent",
        GRID,
        "    warp_sync();\n  }\n  SF_DEVICE void end",
        "  }\n  SF_DEVICE void end",
    ),
    Mutant(
        "CUDA: without low times high", "csrc/cuda/kernels/precision.cuh", "mma_tf32(d, a[1], b[0][0], b[0][1]);", ""
    ),
    Mutant(
        "CUDA: high and low weights swapped",
        "csrc/cuda/kernels/pack.cuh",
        "(i / 32 * kPlanes + plane)",
        "(i / 32 * kPlanes + kPlanes - 1 - plane)",
    ),
    Mutant(
        "CUDA: b_hh in the input's slots",
        PREPARE,
        "b_hh.data && Cell::hidden_slot(gate) == slot",
        "b_hh.data && gate == slot",
    ),
    Mutant("CUDA: equal lengths, one rank", PREPARE, "theirs > mine || (theirs == mine && other < b)", "theirs > mine"),
    Mutant(
        "CUDA: sum without its parts' last rows",
        PREPARE,
        "? (part + 1) * each : a.rows",
        "? (part + 1) * each - 1 : a.rows",
    ),
    Mutant("CUDA: packed rows a step late", PREPARE, "if (t_row[middle] <= i)", "if (t_row[middle] < i)"),
    Mutant(
        "CUDA: projection of the first chunk",
        PRODUCTS,
        "p.a = static_cast<const char*>(x.data) + first_row(l, begin) * x.stride * size;",
        "p.a = x.data;",
    ),
    Mutant("CUDA: reverse in the order of chunks", PRODUCTS, "cut = d ? count - 1 - i : i;", "cut = i;"),
    Mutant("CUDA: d_x of the last direction", PRODUCTS, "p.accumulate = d > 0;", "p.accumulate = false;"),
    Mutant("CUDA: d_x by time", PRODUCTS, "p.c_batch = l.T * l.I;", "p.c_batch = l.B * l.I;"),
    Mutant(
        "CUDA: d_w_hh of the input's slots", PRODUCTS, "product(info.hidden_slot[first] * l.H,", "product(first * l.H,"
    ),
    Mutant("CUDA: samples overlap", PRODUCTS, "p.c_batch = c_rows * n;", "p.c_batch = n;"),
    Mutant("CUDA: carried states not swapped", LAUNCH, "std::swap(carried[0], carried[1]);", ""),
    Mutant("CUDA: tags of the last launch", LAUNCH, "if (args.words) stream.zero(args.words, word_bytes);", ""),
    Mutant(
        "CUDA: output beyond the length", LAUNCH, "if (f.output[0].data && l.lengths && !l.packed_rows)", "if (false)"
    ),
    Mutant(
        "CUDA: d_gates beyond the length",
        LAUNCH,
        "if (l.lengths && !l.packed_rows) stream.zero(b",
        "if (false) stream.zero(b",
    ),
    Mutant("CUDA: stepwise forgets what waits", STEPWISE, "  pending = d;\n", "  pending = 0;\n"),
    Mutant("CUDA: stepwise gives on over resets", STEPWISE, "flows = p.live && !p.anew(a);", "flows = p.live;"),
    Mutant("CUDA: stepwise reads on over resets", STEPWISE, "if (p.next_anew(a)) stored", "if (false) stored"),
    Mutant("CUDA: reset states without their carry", STEPWISE, "add_carry(io.reset_h, p.at, carry);", ""),
    Mutant(
        "CUDA: h before a reset in products", PREPARE, "stored_or_zero<Math>(a.h_reset", "stored_or_zero<Math>(a.h0"
    ),
    Mutant(
        "CUDA: no state is dropped",
        STEPWISE,
        "static_cast<Storage*>(io.h)[p.at] = masked_state<Math>(a.noise, p.d, p.b, p.unit, stored);",
        "static_cast<Storage*>(io.h)[p.at] = stored;",
    ),
    Mutant(
        "CUDA: gradients of dropped states",
        STEPWISE,
        "d += static_cast<const Compute*>(io.products)[p.at] * state_mask<Compute>(a.noise, p.d, p.b, p.unit);",
        "d += static_cast<const Compute*>(io.products)[p.at];",
    ),
    Mutant("CUDA: zoneout keeps the other share", MASKS, ">= mask.threshold ?", "< mask.threshold ?"),
    Mutant("CUDA: c zoned out, its gradient not", STEPWISE, "share.of_new(carry);", "carry;"),
    Mutant("CUDA: o does not see c", STEPWISE, "add_sum(a, p, 2, d[3] * saved[4]);", ""),
    Mutant("CUDA: a norm without its gain", NORM, "+= v * row.gain(1, g, p.unit);", "+= v;"),
    Mutant("CUDA: a norm of x without its gain", NORM_ROWS, "= v * row.gain(0, g, p.unit);", "= v;"),
    Mutant(
        "gates of a norm: r with z is r alone",
        "csrc/core/cells.h",
        "first_gate(int block) { return kGates == 3 ? 2 * block",
        "first_gate(int block) { return kGates == 3 ? 1 * block",
    ),
    Mutant("CUDA: gradients of a norm keep their mean", "csrc/cuda/kernels/norm.cuh", "(d - mean_d - v", "(d - v"),
    Mutant("CUDA: a step's norm without its gain", NORM_STEPS, "fma(v, gain.v[g], slots", "fma(v, 1.0f, slots"),
    Mutant("CUDA: what tanh reads of c without its bias", NORM_STEPS, "gain.v[0], gain.v[1]));", "gain.v[0], 0.0f));"),
    Mutant(
        "CUDA: the last slice of a row is left out",
        TOTALS,
        "if (slice < a.norm.slices) second",
        "if (slice + 1 < a.norm.slices) second",
    ),
    Mutant("CUDA: slices have one mean", TOTALS, "* apart * apart :", "* 0.0f :"),
    Mutant("CUDA: totals that are not awaited", TOTALS, "    cta_sync();\n", ""),
    Mutant(
        "CUDA: parts of two meetings in one place",
        GRID,
        "return words + (meeting & 1) * count",
        "return words + 0 * count",
    ),
    Mutant(
        "CUDA: parts that are not awaited",
        "csrc/cuda/kernels/onchip.cuh",
        "void wait() const { cta_sync(); }",
        "void wait() const {}",
    ),
    Mutant("CUDA: parts read before all are fetched", GRID, "++meeting;\n      cta_sync();", "++meeting;"),
    Mutant("CUDA: warps without a row left keep totals", TOTALS, "at.lane == 0 && has_row", "at.lane == 0"),
    Mutant(
        "CUDA: the second product is not awaited",
        "csrc/cuda/kernels/onchip.cuh",
        "(tile == 0 || S::kProducts == 2)",
        "tile == 0",
    ),
    Mutant("CUDA: n without its second product", RESET_STEPS, "slots[cell][2] + sums[cell][2]", "slots[cell][2]"),
    Mutant(
        "CUDA: a step's r without its gradient",
        RESET_STEPS,
        "next[cell][0] = is_live ? d[cell][0] : 0;",
        "next[cell][0] = 0;",
    ),
    Mutant("CUDA: r without its gradient", RESET_BEFORE, "Math::narrow(d_r[0])", "Math::narrow(0)"),
    Mutant("CUDA: ids beyond the length", IDS, "return !lengths || p.t < lengths[p.b];", "return true;"),
    Mutant("CUDA: any id has a column", IDS, "if (id >= 0 && id < columns) return", "if (id >= 0) return"),
    Mutant("CUDA: columns of samples in one place", IDS, "p.b / (a.ids.B / a.samples) * a.ids.columns + id;", "id;"),
    Mutant("CUDA: gates of a column side by side", IDS, "to[i / H * a.gate_width", "to[i / H * H"),
    Mutant("CUDA: a run that goes on is done", IDS, "else if (a.goes_on(i))", "else if (false)"),
    Mutant("CUDA: a long run's second head", IDS, "next < segments && a.keys", "next < segment + 2 && a.keys"),
    Mutant("CUDA: a run in the middle of its own", IDS, "key >= a.columns || began_before ||", "key >= a.columns ||"),
]

CLASSIFIER = "seqcls_fast/classifier.py"
TOOLKIT = "seqcls_fast/toolkit/"
FILES = "seqcls_fast/_files.py"
TOOLKIT_MUTANTS = [
    Mutant(
        "a word's second vector", TOOLKIT + "data/vectors.py", "            if word in exact:", "            if False:"
    ),
    Mutant(
        "a cut-off file of vectors",
        TOOLKIT + "data/vectors.py",
        "promised is not None and count != promised",
        "promised is not None and count > promised",
    ),
    Mutant(
        "the unknown token of a file is learnt",
        TOOLKIT + "data/tokenizer_file.py",
        "return [chunk] if chunk in self._own else []",
        "return [chunk]",
    ),
    Mutant(
        "partial_fit from fresh weights",
        TOOLKIT + "fit.py",
        "    model.load_state_dict({name: each for name",
        "    str({name: each for name",
    ),
    Mutant(
        "a refit from fresh weights", TOOLKIT + "fit.py", "options.seed, device, start)", "options.seed, device, None)"
    ),
    Mutant(
        "trials share one wide part",
        TOOLKIT + "training/wide.py",
        "copy.deepcopy(fitted.scores)",
        "fitted.scores",
    ),
    Mutant("mean over the padding too", REFERENCE, "output.sum(1) / lengths.clamp(min=1)[:, None]", "output.mean(1)"),
    Mutant("highest of the padding too", REFERENCE, "masked_fill(beyond[:, :, None], -torch.inf)", "clone()"),
    Mutant(
        "attention to the padding",
        REFERENCE,
        "scores = scores.masked_fill(beyond,",
        "scores = scores.masked_fill(~beyond,",
    ),
    Mutant(
        "one end of two", CLASSIFIER, "h_n[-2:].transpose(0, 1).flatten(1) if self.bidirectional", "h_n[-1] if False"
    ),
    Mutant(
        "first padding ends a row",
        CLASSIFIER,
        "torch.where(x == self.padding_idx, 0, steps).amax(1)",
        "(x != self.padding_idx).sum(1)",
    ),
    Mutant(
        "padding's embedding is trained",
        CLASSIFIER,
        "if self.padding_idx is not None and torch.is_grad_enabled()",
        "if False",
    ),
    Mutant(
        "table outlives its weights",
        CLASSIFIER,
        "    def _apply(self, *args: Any, **kwargs: Any) -> SequenceClassifier:\n        self.forget_tables()\n",
        "    def _apply(self, *args: Any, **kwargs: Any) -> SequenceClassifier:\n",
    ),
    Mutant("table with gradients", CLASSIFIER, "if not needs_graph(self.parameters()):", "if True:"),
    Mutant("table in 16 bits", CLASSIFIER, "weight.dtype.itemsize == 2 or autocasts", "autocasts"),
    Mutant(
        "precision for recall",
        TOOLKIT + "evaluation/metrics.py",
        "return ratio(hits, predicted), ratio(hits, support), ratio",
        "return ratio(hits, support), ratio(hits, predicted), ratio",
    ),
    Mutant(
        "confusion transposed", TOOLKIT + "evaluation/evaluate.py", "true_ids * K + pred_ids", "pred_ids * K + true_ids"
    ),
    Mutant("ROC without ties", TOOLKIT + "evaluation/metrics.py", "(true[1:] + true[:-1]) / 2", "true[1:]"),
    Mutant(
        "bins begin one late",
        TOOLKIT + "evaluation/metrics.py",
        "np.ceil(top * BINS).astype(np.int64) - 1",
        "np.floor(top * BINS).astype(np.int64)",
    ),
    Mutant(
        "interval of one side",
        TOOLKIT + "evaluation/intervals.py",
        "tail = (1 - confidence) / 2",
        "tail = 1 - confidence",
    ),
    Mutant("all threads for little work", TOOLKIT + "training/threads.py", "work >= LITTLE", "work >= 0"),
    Mutant(
        "one thread ever after",
        TOOLKIT + "training/threads.py",
        "    finally:\n        torch.set_num_threads(threads)",
        "    finally:\n        pass",
    ),
    Mutant(
        "Wilson of one side",
        TOOLKIT + "evaluation/intervals.py",
        "inv_cdf((1 + confidence) / 2)",
        "inv_cdf(confidence)",
    ),
    Mutant(
        "a perfect class is certain",
        TOOLKIT + "evaluation/intervals.py",
        "min(by_sum[0], drawn[name][0])",
        "drawn[name][0]",
    ),
    Mutant(
        "low recall unsaid",
        TOOLKIT + "evaluation/findings.py",
        "recall[k] < accuracy - FAR",
        "recall[k] < accuracy - 0.9",
    ),
    Mutant(
        "near-duplicates by case alone",
        TOOLKIT + "data/leakage.py",
        'unicodedata.normalize("NFKC", item).casefold()',
        "item.casefold()",
    ),
    Mutant(
        "rows of the picture by column",
        TOOLKIT + "evaluation/plots.py",
        "counts.sum(1, keepdims=True)",
        "counts.sum(0, keepdims=True)",
    ),
    Mutant("rare words first", TOOLKIT + "data/text.py", "[(-n, token) for", "[(n, token) for"),
    Mutant("a token too many", TOOLKIT + "data/text.py", "row = row[:end]", "row = row[: end and end + _ID]"),
    Mutant(
        "saved text unchecked",
        TOOLKIT + "data/errors.py",
        'changed = content.pop("sha256", None) != digest(content)',
        'changed = content.pop("sha256", None) is None',
    ),
    Mutant(
        "missing values the other way",
        TOOLKIT + "data/series.py",
        "np.concatenate([values, missing], 1)",
        "np.concatenate([values, ~missing], 1)",
    ),
    Mutant(
        "a step too many",
        TOOLKIT + "data/series.py",
        "_step_of(lengths) < self.max_length",
        "_step_of(lengths) <= self.max_length",
    ),
    Mutant("a field too many", TOOLKIT + "data/formats.py", "if len(row) != count:", "if len(row) < count:"),
    Mutant("infinite weights", TOOLKIT + "data/records.py", "if not 0 <= weight < math.inf:", "if not 0 <= weight:"),
    Mutant("last weights for the best", TOOLKIT + "training/loop.py", "self.model.load_state_dict(self.best)", "pass"),
    Mutant(
        "patience a longer",
        TOOLKIT + "training/loop.py",
        'record["epoch"] - best_epoch >= self.options.patience',
        'record["epoch"] - best_epoch > self.options.patience',
    ),
    Mutant(
        "sample weights unused",
        TOOLKIT + "training/loop.py",
        "loss = (losses * examples.weights[rows].to(self.device)).sum()",
        "pass",
    ),
    Mutant(
        "predictions in the order of lengths",
        TOOLKIT + "training/logits.py",
        "return torch.empty_like(found).index_copy_(0, torch.cat(order), found)",
        "return found",
    ),
    Mutant(
        "rate not halved",
        TOOLKIT + "training/loop.py",
        "options.warmup) / 2**self.restores",
        "options.warmup)",
    ),
    Mutant(
        "a wide part in another order",
        TOOLKIT + "data/ragged.py",
        "wide = Bags(*(part.take(rows) for part in wide))",
        "wide = Bags(*(part.take(range(len(rows))) for part in wide))",
    ),
    Mutant(
        "other ranks' rows unused", TOOLKIT + "training/table.py", "torch.cat(rows, 1), torch.cat(values)", "*pieces[0]"
    ),
    Mutant("words never dropped", TOOLKIT + "training/loop.py", "dropped & (x != PADDING)", "dropped & (x == UNKNOWN)"),
    Mutant("rarity forgotten", TOOLKIT + "fit.py", "    inputs.prepare_model(model, prepared.encoder)\n", ""),
    Mutant("held-out data lost", TOOLKIT + "fit.py", '{"holdout": None, "patience": None}', '{"patience": None}'),
    Mutant(
        "weights of ids with no size", "seqcls_fast/_wide.py", "weights = weights / sizes.clamp_min(", "weights / ("
    ),
    Mutant("seed unused", TOOLKIT + "training/loop.py", "        _seed(seed, device)\n", ""),
    Mutant(
        "balanced the other way",
        TOOLKIT + "data/labels.py",
        "return 1 / counts.clamp(min=1)",
        "return counts.clamp(min=1)",
    ),
    Mutant("weights file unchecked", TOOLKIT + "store.py", '!= self.config["sha256"]', "is None"),
    Mutant("old model gone first", FILES, "            os.rename(old, target)\n            raise", "            raise"),
    Mutant("names not exchanged", FILES, "_EXCHANGE) == 0", "_EXCHANGE) == 1"),
    Mutant("old model not found", FILES, "return left[-1]", "return target"),
    Mutant("unfinished files stay", FILES, "                    _remove(left)\n", "                    pass\n"),
    Mutant("named before it is on the disk", FILES, "    sync_folder(fresh)\n", ""),
    Mutant("lock of a removed file", FILES, "if _is_at(handle, lock):  # or", "if True:  # or"),
    Mutant("lock kept by a worker", FILES, "for handle in list(_held):", "for handle in []:"),
    Mutant("shapes unchecked", TOOLKIT + "store.py", "if _DTYPES.get(got) != dtype or (", "if False and ("),
    Mutant(
        "checkpoint without its successors", TOOLKIT + "training/checkpoint.py", "self._written = _number(path)", "pass"
    ),
    Mutant(
        "optimizer's state of any shape",
        TOOLKIT + "training/resume.py",
        "if tensor.shape != like.shape or",
        "if False and",
    ),
    Mutant("validation on what is trained", TOOLKIT + "data/labels.py", "    mask[out] = False\n", ""),
    Mutant("padding kept", TOOLKIT + "data/ragged.py", "padded[beyond] = 0", "pass"),
]

SCALE_MUTANTS = [
    Mutant(
        "mean over own rows", TOOLKIT + "training/loop.py", "(loss / batch.count)", "(loss / max(1, len(batch.rows)))"
    ),
    Mutant("dropout goes on", TOOLKIT + "training/loop.py", "_seed(seed_of(*key), self.device)", "pass"),
    Mutant(
        "best weights not carried",
        TOOLKIT + "training/loop.py",
        '"best": self.best,\n            "history"',
        '"best": None,\n            "history"',
    ),
    Mutant("sums begin anew", TOOLKIT + "training/loop.py", '_Sums(**state["sums"])', "_Sums()"),
    Mutant(
        "no way back carried",
        TOOLKIT + "training/loop.py",
        '"first_loss", "restore_point", "next_restore_point")',
        '"first_loss")',
    ),
    Mutant(
        "a rank's own validation",
        TOOLKIT + "training/loop.py",
        "self.ranks.sum_([tensor.to(self.device) for tensor in (confusion.double(), loss)])",
        "[confusion.double(), loss]",
    ),
    Mutant(
        "pieces as large as before",
        TOOLKIT + "training/loop.py",
        "math.ceil(len(batch.rows) / self.micro_batches)))",
        "len(batch.rows)))",
    ),
    Mutant("damage unseen", TOOLKIT + "training/checkpoint.py", '!= path.stem.split("-")[2]', '== ""'),
    Mutant("none to go back to", TOOLKIT + "training/checkpoint.py", "_KEPT = 2", "_KEPT = 1"),
    Mutant("whatever it costs", TOOLKIT + "training/checkpoint.py", "_COST * self._took", "0.0"),
    Mutant("oldest for newest", TOOLKIT + "training/checkpoint.py", "in reversed(there)", "in there"),
    Mutant("shares overlap", TOOLKIT + "ranks.py", "rows[self.rank :: self.world]", "rows[self.rank :]"),
    Mutant("a restart is not noticed", TOOLKIT + "ranks.py", '["TORCHELASTIC_RESTART_COUNT"] != "0"', '["HOME"] == ""'),
    Mutant("gradients unsummed", TOOLKIT + "ranks.py", "        dist.all_reduce(flat)\n", ""),
    Mutant(
        "epochs alike",
        TOOLKIT + "data/datasets.py",
        'generator_of(seed, "batches", epoch)',
        'generator_of(seed, "batches", 0)',
    ),
    Mutant("start unheeded", TOOLKIT + "data/datasets.py", "epoch))[start:]", "epoch))"),
    Mutant("weights of a stream unread", TOOLKIT + "data/datasets.py", "weights = weights * batch.weights", "pass"),
    Mutant("another training resumed", TOOLKIT + "fit.py", '_check_same(saved["about"], about)', "pass"),
    Mutant(
        "sharper for flatter",
        TOOLKIT + "evaluation/calibration.py",
        "math.exp(-(low + high) / 2)",
        "math.exp((low + high) / 2)",
    ),
    Mutant(
        "precision not quite",
        TOOLKIT + "evaluation/calibration.py",
        "np.where(precisions >= wanted,",
        "np.where(precisions > wanted,",
    ),
    Mutant(
        "recall not quite",
        TOOLKIT + "evaluation/calibration.py",
        "np.where(recalls >= wanted,",
        "np.where(recalls > wanted,",
    ),
    Mutant(
        "the threshold itself left out",
        TOOLKIT + "evaluation/decision.py",
        "[:, column] >= threshold.value",
        "[:, column] > threshold.value",
    ),
    Mutant("the label once more", TOOLKIT + "evaluation/decision.py", "    others[:, column] = -1\n", ""),
    Mutant(
        "calibrated before and after",
        TOOLKIT + "fitted.py",
        "_softmax(logits, 1.0)",
        "_softmax(logits, self.temperature)",
    ),
    Mutant(
        "threshold not saved",
        TOOLKIT + "fitted.py",
        '"threshold": None if self.threshold is None else self.threshold.to_json(),',
        '"threshold": None,',
    ),
    Mutant("trials alike", "seqcls_fast/cli/search.py", "{chosen['seed']} {number} {name}", "{chosen['seed']} {name}"),
    Mutant("what is given is searched", "seqcls_fast/cli/search.py", " and name not in fixed]", "]"),
    Mutant("stopped in the first epoch", "seqcls_fast/cli/search.py", "3 * epoch < self.epochs or ", ""),
    Mutant(
        "the last for the best",
        "seqcls_fast/cli/search.py",
        "    return best[1], asked.with",
        "    return estimator, asked.with",
    ),
    Mutant(
        "other data reproduced",
        "seqcls_fast/cli/reproduce.py",
        "train.sha256(now)) != expected",
        "expected) != expected",
    ),
    Mutant("no upper end", "seqcls_fast/cli/reproduce.py", "interval[0] <= new <= interval[1]", "interval[0] <= new"),
    Mutant(
        "weights alike whatever they are",
        "seqcls_fast/cli/reproduce.py",
        "all(old[name].equal(new[name]) for name in old)",
        "True",
    ),
    Mutant("names of columns classified", TOOLKIT + "data/columns.py", "columns = _columns(data)", "columns = None"),
    Mutant("keys of a dict classified", TOOLKIT + "data/columns.py", "if isinstance(data, Mapping):", "if False:"),
    Mutant(
        "a text read as a file",
        TOOLKIT + "inputs.py",
        "        if not isinstance(X, os.PathLike):",
        "        if not isinstance(X, os.PathLike | str):",
    ),
    Mutant(
        "a formula in CSV",
        "seqcls_fast/cli/predict.py",
        '    return _FORMULA.sub(r"\\1\'", str(text))',
        "    return str(text)",
    ),
    Mutant(
        "escape sequences shown",
        TOOLKIT + "_terminal.py",
        "return sign if sign.isprintable() and",
        "return sign if sign.isascii() or",
    ),
    Mutant(
        "messages of any length", TOOLKIT + "_terminal.py", "if len(text) <= limit:", "if len(text) <= 100 * limit:"
    ),
    Mutant("HTML on the card", TOOLKIT + "card.py", "return _code(printable(label))", "return printable(label)"),
    Mutant("no upper end on the card", TOOLKIT + "card.py", "{interval[1]:.4f}", "{interval[0]:.4f}"),
    Mutant(
        "blocks in one order",
        TOOLKIT + "data/pools.py",
        'generator_of("blocks", self.seed, epoch)',
        'generator_of("blocks", self.seed)',
    ),
    Mutant(
        "shares of a pool overlap",
        TOOLKIT + "data/pools.py",
        "[Ranks(self.rank, self.world).share(rows) for",
        "[rows for",
    ),
    Mutant(
        "a rank's rows for all",
        TOOLKIT + "data/pools.py",
        "[len(rows) for rows in batches]",
        "[len(rows) for rows in mine]",
    ),
    Mutant("every pool from its middle", TOOLKIT + "data/stream.py", "            skip = 0\n", ""),
    Mutant(
        "one split for all blocks",
        TOOLKIT + "data/survey.py",
        'generator_of("split", seed, depth, block)',
        'generator_of("split", seed, 0, block)',
    ),
    Mutant("a line too far", TOOLKIT + "data/formats.py", "block.offset, block.line - 1)", "block.offset, block.line)"),
    Mutant(
        "a changed file read",
        TOOLKIT + "data/readers.py",
        "if self.stamps.get(file) != _stamp(opened):",
        "if self.stamps.get(file) is None:",
    ),
    Mutant(
        "characters for bytes",
        TOOLKIT + "data/formats.py",
        "            self.offset += len(line)\n",
        "            self.offset += len(text)\n",
    ),
    Mutant("means of pieces alike", TOOLKIT + "data/series.py", "np.hypot(within, apart)", "within"),
    Mutant("unpacks without end", TOOLKIT + "data/parquet.py", "if unpacked > most:", "if unpacked > most * 100:"),
    Mutant("rows of another index", TOOLKIT + "data/parquet.py", "if rows != group.rows:", "if rows > 10**9:"),
    Mutant("the best weights of NaN", TOOLKIT + "training/resume.py", "tensor.isfinite().all()", "tensor.numel()"),
    Mutant("no fair sample", TOOLKIT + "data/leakage.py", "))[:_KEPT]", "))[-_KEPT:]"),
    Mutant(
        "rare chunks for frequent ones",
        TOOLKIT + "data/text.py",
        "chunks.most_common(_DISTINCT // 2)",
        "chunks.most_common()[_DISTINCT // 2 :]",
    ),
]

QUALITY_MUTANTS = [
    Mutant("trials fit a machine each", TOOLKIT + "fit.py", "fitted=shared.machine)", "fitted=None)"),
    Mutant(
        "a refit with shares of its own", TOOLKIT + "fit.py", "options.seed, ranks, mixing)", "options.seed, ranks)"
    ),
    Mutant(
        "n-grams in the training of the network",
        TOOLKIT + "fit.py",
        "prepared.narrow() if machine",
        "prepared.narrow() if False and machine",
    ),
    Mutant(
        "a machine without costs",
        TOOLKIT + "training/svm.py",
        "rows.weights * np.float32(_COST)",
        "0 * rows.weights + np.float32(_COST)",
    ),
    Mutant("the bias of the machine lost", TOOLKIT + "training/svm.py", "model.head.bias.add_(", "str("),
    Mutant(
        "a share that chance has chosen",
        TOOLKIT + "training/svm.py",
        "found[near.index(True)]",
        "found[-1 - near[::-1].index(True)]",
    ),
    Mutant(
        "duals without a bound",
        "csrc/linear/linear_svm.cpp",
        "std::max(0.0f, own[k] - slope / curvature)",
        "own[k] - slope / curvature",
    ),
    Mutant(
        "a bias that is not regularised alike",
        "csrc/linear/linear_svm.cpp",
        "add_scaled(kBias * kBias,",
        "add_scaled(kBias,",
    ),
    Mutant("rows that are not left out", TOOLKIT + "training/ridge.py", "wanted - missed\n", "wanted - missed * 0\n"),
    Mutant(
        "few rows choose the share", TOOLKIT + "training/wide.py", "if len(targets) < _ENOUGH:", "if not len(targets):"
    ),
    Mutant(
        "changes across series",
        TOOLKIT + "data/channels.py",
        "    found[(lengths.cumsum() - lengths)[lengths > 0]] = 0\n",
        "",
    ),
    Mutant("ids for classes", TOOLKIT + "training/prepare.py", "found > rows / 2", "found > rows"),
    Mutant("X and y swapped unsaid", TOOLKIT + "training/prepare.py", "0 < texts < found", "found < texts < 0"),
    Mutant("the least sure errors", TOOLKIT + "evaluation/mistakes.py", "np.argsort(-sure,", "np.argsort(sure,"),
    Mutant("another row's id", "seqcls_fast/cli/predict.py", "number if kind", "number + 1 if kind"),
    Mutant(
        "n-grams across words",
        TOOLKIT + "data/ngrams.py",
        "fine = spaces[starts + n - 1] == spaces[starts + 1]",
        "fine = starts >= 0",
    ),
    Mutant(
        "pairs of words of two texts",
        TOOLKIT + "data/ngrams.py",
        "near = owners[1:] == owners[:-1]",
        "near = owners[1:] >= 0",
    ),
    Mutant("characters among words", "csrc/text/hashed_ngrams.cpp", "kind < 2 ? 0 : half", "kind < 1 ? 0 : half"),
    Mutant("all n-grams alike", TOOLKIT + "baseline.py", "x.data *= scale[x.indices]", "x.data *= 1"),
    Mutant(
        "another order of rows",
        TOOLKIT + "data/datasets.py",
        "order = self.examples.order(ranks)",
        "order = torch.arange(len(self))[ranks.rank :: ranks.world]",
    ),
    Mutant("a lost network unsaid", TOOLKIT + "evaluation/beside.py", "if low > 0:", "if low > -1:"),
    Mutant(
        "gains for losses",
        TOOLKIT + "evaluation/intervals.py",
        "(right & ~other, other & ~right)",
        "(other & ~right, right & ~other)",
    ),
    Mutant("one column kept", TOOLKIT + "inputs.py", "return X[:, 0] if is_column else X", "return X"),
]

SUPERVISOR = "benchmarks/gpu/supervisor.py"

GPU_RUN = [
    Mutant(
        "what a part that hangs had found is lost",
        SUPERVISOR,
        'entry = entry | {"failed": f"hung: {why}"}',
        'entry = {"failed": f"hung: {why}"}',
    ),
    Mutant("a kind that hangs goes on", SUPERVISOR, "if self.lost[kind] >= MOST_LOST:", "if False:"),
    Mutant("a run that ends late", SUPERVISOR, "worker.hear(min(seconds, left))", "worker.hear(seconds)"),
]

QUESTION = "benchmarks/questions/quality.py"
BENCHMARKS = [
    Mutant("a read of the weights is a rival", "benchmarks/rows.py", '("ours", FLOOR)', '("ours",)'),
    Mutant(
        "the frozen row has our samples without freezing",
        "benchmarks/rows.py",
        'sides={"ours": frozen,',
        'sides={"ours": plain,',
    ),
    Mutant("nothing is frozen", "benchmarks/harness.py", "entered.enter_context(engine.around())", "pass"),
    Mutant("a state that is not compared", "benchmarks/layer_cases.py", '{"c_n": state[1]} if', "{} if"),
    Mutant("a state that is not passed", "benchmarks/layer_cases.py", "self.state or self.single", "False"),
    Mutant(
        "a decoder that is not converted", "benchmarks/questions/policies.py", "sf.convert(model)", "sf.revert(model)"
    ),
    Mutant("a reset that is not compared", "benchmarks/questions/resets.py", "partial(ours, resets=resets)", "ours"),
    Mutant("a split that keeps the state", "benchmarks/questions/resets.py", "keep[first].mul", "torch.ones(()).mul"),
    Mutant("masks that a loop does not read", "benchmarks/option_loops.py", "h * masks.state", "h"),
    Mutant("a missed goal is reached", "benchmarks/goals.py", "ratio >= goal", "ratio < goal"),
    Mutant(
        "rows that straddle are used",
        "benchmarks/quality_tasks.py",
        "seen.setdefault((what, value), part) != part",
        "False",
    ),
    Mutant("an engine may change the rows", QUESTION, "task.fingerprint() != before", "False"),
    Mutant("a loss of quality is none", "benchmarks/quality_report.py", "if found[peer] < 0", "if found[peer] > 0"),
    Mutant(
        "peers of other rows count", "benchmarks/quality_report.py", "score.digest == digests.get(score.set)", "True"
    ),
]

RUNTIME = [
    Mutant("a mean without the chain at hand", "csrc/runtime/pooling.h", "value += from.part[i]", "value += 0"),
    Mutant(
        "resets of the first piece alone",
        "csrc/runtime/stream.cpp",
        "call.resets + i * call.steps + begin",
        "call.resets + i * call.steps",
    ),
    Mutant(
        "a chunk after a step reads older states",
        "csrc/runtime/stream.cpp",
        "x = forwards_[k].layer.h0[0].data =",
        "x =",
    ),
    Mutant("a chunk runs as one step", "csrc/runtime/stream.cpp", "if (step_layer_ && steps == 1", "if (step_layer_"),
    Mutant("a step leaves out its input", "csrc/cpu/kernels/one_step.h", "s.K_x = layer.I;", "s.K_x = 0;"),
    Mutant("ids are not checked", "csrc/runtime/stream_checks.cpp", "id < 0 || id >= d.vocabulary", "id < 0"),
    Mutant("infinite weights", "csrc/runtime/tensor_file.cpp", "(bits & exponent) != exponent", "true"),
    Mutant(
        "weights are read by every tensor", "csrc/runtime/tensor_file.cpp", "if (range.begin != next)", "if (false)"
    ),
    Mutant(
        "no rows are all rows",
        "csrc/runtime/python.cpp",
        "if (!call.count) Py_RETURN_NONE;",
        "if (false) Py_RETURN_NONE;",
    ),
    Mutant("scores of convolutions without their factor", "csrc/runtime/convolution_scores.cpp", "*weight_ * ", ""),
    Mutant(
        "sums of a series in one block",
        "csrc/runtime/whole_series.cpp",
        "kSums = 8, kBlock = 128;",
        "kSums = 8, kBlock = 4096;",
    ),
    Mutant(
        "no word joins without a ligature",
        "csrc/runtime/words.cpp",
        "code == kNonJoiner || code == kJoiner",
        "code == kJoiner",
    ),
    Mutant("a state of any model", "csrc/runtime/state.cpp", "header.model != model_->file->checksum()", "false"),
    Mutant(
        "tokens that begin alike",
        "csrc/runtime/texts.h",
        "start < other.start : text < other.text",
        "start < other.start : false",
    ),
    Mutant(
        "lengths that another thread changes",
        "csrc/runtime/classify.cpp",
        ", call.lengths = lengths.data();",
        ";",
    ),
    Mutant(
        "steps beyond the longest",
        "seqcls_fast/runtime.py",
        "if most is None or len(series) <= most:",
        "if True:",
    ),
    Mutant(
        "text among numbers",
        "seqcls_fast/_runtime_arguments.py",
        "value is not None and not isinstance(value, Real)",
        "False",
    ),
    Mutant(
        "rows from the end",
        "seqcls_fast/runtime.py",
        'not 0 <= (row := whole(row, "row")) < self.rows',
        'not -1 <= (row := whole(row, "row")) < self.rows',
    ),
    Mutant(
        "weights of another folder",
        "seqcls_fast/_runtime_folder.py",
        'hashlib.sha256(content).hexdigest() != saved["sha256"]',
        "False",
    ),
    Mutant(
        "resets of any shape",
        "seqcls_fast/runtime.py",
        "given.shape != expected:\n                raise",
        "given.size != np.prod(expected):\n                raise",
    ),
    Mutant(
        "the checksum is not compared",
        "csrc/runtime/tensor_file.cpp",
        "digits, data + kCrcAt, kCrcSize",
        "digits, digits, 0",
    ),
]

BUILD = [
    Mutant("lists of one line alone", "csrc/compile.py", r'.replace("\\\n", " ")', ""),
    Mutant("any command made it", "csrc/compile.py", "said.read_text() == how and ", ""),
    Mutant("fstat of a later glibc", "csrc/older_glibc.cpp", "SF_HIDDEN int fstat(", "SF_HIDDEN int sf_fstat("),
    Mutant("kernels per Python", "setup.py", 'parts.append((self.shared / f"k', 'parts.append((self.of_python / f"k'),
    Mutant("a failed pair has passed", "tools/matrix.py", 'or not before["passed"]', ""),
    Mutant("a wheel of any version", "tools/wheels.py", "seqcls_fast-{VERSION}-", "seqcls_fast-*-"),
    Mutant("an earlier wheel counts", "tools/wheels.py", "(out / name).unlink(missing_ok=True)", "pass"),
]

MUTANTS = (
    BUILD
    + PYTHON
    + COMPILED
    + TILED
    + CUDA
    + TOOLKIT_MUTANTS
    + SCALE_MUTANTS
    + QUALITY_MUTANTS
    + GPU_RUN
    + BENCHMARKS
    + RUNTIME
)
