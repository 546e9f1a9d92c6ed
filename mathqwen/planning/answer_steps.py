"""What `generate` runs, compiled for a slice that is not here: a decoding step, and what takes a prompt to its slot.

Runs in the compiler's process: see `compiler`.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mathqwen.hardware import cost, hbm, sharding
from mathqwen.inference import generate, shapes
from mathqwen.inference.sampling import AnswerRequest
from mathqwen.model import frozen
from mathqwen.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Slots:
  """The shapes to compile."""

  rows: int  # answers decoded together
  positions: int  # of the cache
  width: int  # of the prompts that are prefilled together
  dtype: str  # of weights and activations
  cache_dtype: str
  weights: str | None = None  # 'int8': how matrices and tables are held; None: in `dtype`


def compile_here(cfg: ModelConfig, slots: Slots, devices: Sequence[jax.Device]) -> dict[str, Any]:
  """Bytes on each device, and what each program does: {'decode': {...}, 'call': ..., 'prefill': ..., 'insert': ...}.

  A program's entry: `hbm_bytes` read and written on a device, `flops` on all of them, `collectives` received by one.
  decode: of one token of each answer; call: what starting 32 of them adds.
  {'error', 'compile_seconds'} when XLA says that a program is too large. UserError: when no mesh splits the model.
  """
  started = time.monotonic()
  try:
    found = _compile(cfg, slots, devices)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    found = {'error': str(error).splitlines()[0]}
  return found | {'compile_seconds': time.monotonic() - started}


def _compile(cfg: ModelConfig, slots: Slots, devices: Sequence[jax.Device]) -> dict[str, Any]:
  mesh = sharding.make_mesh(sharding.fitting(cfg, len(devices)), devices)
  sharding.check(dict(mesh.shape), cfg)
  shards = sharding.batch_shards(dict(mesh.shape))
  rows = shapes.whole_shards(slots.rows, shards)
  execution = generate.Execution(rows, slots.dtype, slots.cache_dtype, mesh)
  program = generate.program_for(cfg, AnswerRequest(1, cfg.vocab_size, (0,)), execution, generate.ACCELERATOR)

  number = jax.ShapeDtypeStruct((), jnp.int32)
  placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  kind = slots.weights or slots.dtype
  shardings = sharding.params_shardings(mesh, cfg, frozen.logical_axes(cfg, kind, tables=True))
  params = jax.tree.map(placed, frozen.abstract(cfg, slots.dtype, kind, tables=True), shardings)
  empty = generate.empty_slots.trace(program, rows, slots.positions, slots.cache_dtype)
  state = _results(empty, empty.lower().compile())
  traced = {'decode': generate.decode.trace(params, state, number, program=program, steps=shapes.STEPS)}
  # Decoding first: it is what may not fit.
  compiled = {'decode': traced['decode'].lower().compile()}
  P = shapes.prefill_rows(slots.width, rows, shards)
  prompts = jax.ShapeDtypeStruct((P, slots.width), jnp.int32), jax.ShapeDtypeStruct((P,), jnp.int32)
  traced['prefill'] = generate.prefill.trace(params, *prompts, program=program)
  compiled['prefill'] = traced['prefill'].lower().compile()
  kept = _results(traced['prefill'], compiled['prefill'])
  start = {field.name: getattr(state, field.name).dtype for field in dataclasses.fields(state) if field.name != 'cache'}
  start = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in start.items()}
  traced['insert'] = generate.insert.trace(state, number, kept, number, number, start, program=program)
  compiled['insert'] = traced['insert'].lower().compile()
  found = {name: _measure(traced[name], compiled[name], (1,)) for name in traced}
  call = _measure(traced['decode'], compiled['decode'], (0,))
  found['decode'] = {name: value - call[name] for name, value in found['decode'].items()}
  return found | {
    'call': call,
    'rows': rows,
    'prefill_rows': P,
    'mesh': dict(mesh.shape),
    'memory': {name: _memory(one.memory_analysis()) for name, one in compiled.items()},
    'read_bytes': _read_once(cfg, params, state),
  }


def _results(traced, compiled) -> Any:
  """What a program results in, and where."""
  placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(placed, traced.out_info, compiled.output_shardings)


def _measure(traced, compiled, turns: tuple[int, ...]) -> dict[str, int]:
  """turns: of the loop over tokens, if there is one."""
  text = compiled.as_text()
  return {
    'hbm_bytes': int(hbm.traffic(text, turns)),
    'flops': cost.matmul_flops(traced.jaxpr, turns),
    'collectives': sum(cost.collective_bytes(text, turns).values()),
  }


def _memory(analysis) -> dict[str, int]:
  """In bytes, padded as on the device. outputs: those that are not updated arguments."""
  return {
    'arguments': analysis.argument_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'outputs': analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
  }


def _read_once(cfg: ModelConfig, params: dict, state: generate.Slots) -> int:
  """Bytes that a step has to read on all devices together: the weights and the cache, once.

  Without an embedding that is not the head as well: a step looks up a few of its rows.
  """
  read = {name: x for name, x in params.items() if name != 'embed' or cfg.tie_word_embeddings}
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((read, state.cache.k, state.cache.v)))
