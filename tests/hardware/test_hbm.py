"""Bytes of HBM, counted by hand in programs as the TPU compiler writes them."""

import pytest

from mathqwen.hardware import hbm, hlo

# A loop of 4 over layers: takes a layer of a stack, multiplies, and writes one row of a cache in place.
PROGRAM = """HloModule step

%slice (p: bf16[4,16,128], i: s32[]) -> bf16[16,128] {
  %p = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %cast = f32[4,16,128]{2,1,0:T(8,128)} convert(%p)
  %one = f32[1,16,128]{2,1,0:T(8,128)} dynamic-slice(%cast, %i, %zero, %zero), dynamic_slice_sizes={1,16,128}
  %flat = f32[16,128]{1,0:T(8,128)} bitcast(%one)
  ROOT %back = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} convert(%flat)
}

%same (q: bf16[16,128]) -> bf16[16,128] {
  %q = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %b = bf16[16,128]{1,0:T(8,128)(2,1)} bitcast(%q)
}

%dot (a: bf16[16,128], h: bf16[16,128]) -> f32[16,16] {
  %a = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %h = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(1)
  %whole = bf16[16,128]{1,0:T(8,128)(2,1)} fusion(%h), kind=kLoop, calls=%same
  ROOT %d = f32[16,16]{1,0:T(8,128)S(1)} convolution(%a, %whole), dim_labels=bf_oi->bf
}

%write (c: f32[64,128], n: f32[1,128], at: s32[]) -> f32[64,128] {
  %c = f32[64,128]{1,0:T(8,128)} parameter(0)
  %n = f32[1,128]{1,0:T(1,128)S(1)} parameter(1)
  %at = s32[]{:T(128)} parameter(2)
  %z = s32[] constant(0)
  ROOT %u = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%c, %n, %at, %z)
}

%cond (t: (s32[], bf16[4,16,128], f32[64,128], bf16[16,128])) -> pred[] {
  %t = (s32[], bf16[4,16,128]{2,1,0}, f32[64,128]{1,0}, bf16[16,128]{1,0}) parameter(0)
  %k = s32[]{:T(128)} get-tuple-element(%t), index=0
  %four = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)S(6)} compare(%k, %four), direction=LT
}

%body (t.2: (s32[], bf16[4,16,128], f32[64,128], bf16[16,128])) -> (s32[], bf16[4,16,128], f32[64,128], bf16[16,128]) {
  %t.2 = (s32[], bf16[4,16,128]{2,1,0}, f32[64,128]{1,0}, bf16[16,128]{1,0}) parameter(0)
  %k.2 = s32[]{:T(128)S(6)} get-tuple-element(%t.2), index=0
  %w = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%t.2), index=1
  %cache = f32[64,128]{1,0:T(8,128)} get-tuple-element(%t.2), index=2
  %head = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%t.2), index=3
  %layer = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %k.2), kind=kLoop, calls=%slice
  %y = f32[16,16]{1,0:T(8,128)S(1)} fusion(%layer, %head), kind=kOutput, calls=%dot
  %row = f32[1,128]{1,0:T(1,128)S(1)} bitcast(%y)
  %cache.2 = f32[64,128]{1,0:T(8,128)} fusion(%cache, %row, %k.2), kind=kLoop, calls=%write
  %inc = s32[]{:T(128)S(6)} constant(1)
  %k.3 = s32[]{:T(128)S(6)} add(%k.2, %inc)
  ROOT %r = (s32[], bf16[4,16,128]{2,1,0}, f32[64,128]{1,0}, bf16[16,128]{1,0}) tuple(%k.3, %w, %cache.2, %head)
}

ENTRY %main (w.0: bf16[4,16,128], c.0: f32[64,128], h.0: bf16[16,128]) -> f32[64,128] {
  %w.0 = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %c.0 = f32[64,128]{1,0:T(8,128)} parameter(1)
  %h.0 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(2)
  %start = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%c.0)
  %c.1 = f32[64,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %c.2 = f32[64,128]{1,0:T(8,128)} copy(%c.1)
  %k.0 = s32[]{:T(128)} constant(0)
  %init = (s32[], bf16[4,16,128]{2,1,0}, f32[64,128]{1,0}, bf16[16,128]{1,0}) tuple(%k.0, %w.0, %c.2, %h.0)
  %loop = (s32[], bf16[4,16,128]{2,1,0}, f32[64,128]{1,0}, bf16[16,128]{1,0}) while(%init), condition=%cond, body=%body
  ROOT %out = f32[64,128]{1,0:T(8,128)} get-tuple-element(%loop), index=2
}
"""


def test_a_program_by_hand():
  """Each layer and the head once a turn, one row of the cache, and the copy of the cache before the loop."""
  by_name = hbm.by_instruction(PROGRAM)
  assert {name.split('/')[1]: size for name, size in by_name.items() if size > 4} == {
    'layer': 4 * 16 * 128 * 2,  # a slice of each, although it is cast before
    'y': 4 * 16 * 128 * 2,  # the head, through a fusion that only renames it; the layer is on the chip already
    'cache.2': 4 * 128 * 4,  # a row is written, the others stay
    'start': 64 * 128 * 4,  # read once: its second half is no second copy
    'c.2': 64 * 128 * 4,  # and written back
  }
  assert hbm.traffic(PROGRAM) == sum(by_name.values())


@pytest.mark.parametrize(
  'result, sizes, spaces',
  [
    ('bf16[8,100]{1,0:T(8,128)(2,1)}', [8 * 128 * 2], [0]),
    ('bf16[7,128]{0,1:T(8,128)(2,1)S(1)}', [128 * 128 * 2], [1]),  # the 7 come last in memory, and take 128
    ('f32[64,1]{1,0:T(8,128)}', [64 * 128 * 4], [0]),  # what scales of a cache in that layout would take
    ('(s8[4]{0:T(512)}, f32[2]{0:S(1)}, u32[]{:S(2)})', [512, 8, 4], [0, 1, 2]),
    ('f32[3,5]', [60], [0]),
  ],
)
def test_arrays_are_padded_to_tiles(result, sizes, spaces):
  found = hlo.arrays(result)
  assert ([array.bytes for array in found], [array.space for array in found]) == (sizes, spaces)
