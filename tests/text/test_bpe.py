import pytest

from mathqwen.text import bpe

BYTES = [bytes([i]) for i in range(256)]


def test_rank_file_round_trip():
  tokens = [*reversed(BYTES), b'ab', b'\xff\x00', b' ab']
  content = bpe.write_ranks(tokens)
  assert content.splitlines()[-3:] == [b'YWI= 256', b'/wA= 257', b'IGFi 258']
  assert bpe.read_ranks(content) == tokens
  assert bpe.read_ranks(content.replace(b'\n', b'\r\n')) == tokens


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda c: c[:-1], 'line 257: no end of line'),
    (lambda c: c[: len(c) // 2 - 3], r'line \d+: no end of line'),
    (lambda c: c.replace(b'YWI= 256', b'YWI 256'), 'line 257: not a base64 token'),
    (lambda c: c.replace(b'YWI= 256', b'YW?= 256'), 'line 257: not a base64 token'),
    (lambda c: c.replace(b'YWI= 256', b'YWI='), 'line 257: not a base64 token'),
    (lambda c: c.replace(b'YWI= 256', b'YWI= 2x'), 'line 257: not a base64 token'),
    (lambda c: c.replace(b'YWI= 256', b'YWI= 257'), 'line 257: rank 257, expected 256'),
    (lambda c: c.replace(b'YWI= 256', b'YQ== 256'), "line 257: the token b'a' is already on line 98"),
    (lambda c: c.replace(b'YWI= 256', b' 256'), 'line 257: the token is empty'),
    (
      lambda c: b''.join(c.splitlines(keepends=True)[:200]),
      '200 lines, and 56 of the 256 bytes have no rank, first 0xc8',
    ),
    (lambda c: b'', '0 lines, and 256 of the 256'),
    (lambda c: b'<html>not found</html>\n', 'line 1: not a base64 token'),
  ],
)
def test_damaged_rank_files_name_the_line(damage, message):
  with pytest.raises(ValueError, match=message):
    bpe.read_ranks(damage(bpe.write_ranks([*BYTES, b'ab'])))


def test_merges_are_what_lower_ranks_leave():
  # 'abc' is 'ab' + 'c' though 'bc' is a token too: 'ab' has the lower rank.
  vocab, merges = bpe.vocab_and_merges([*BYTES, b'ab', b'bc', b'abc', b' a', b' abc'])
  assert [vocab[token] for token in ('!', 'a', 'Ġ', 'Ċ', 'ÿ', 'Ġabc')] == [33, 97, 32, 10, 255, 260]
  assert merges == [['a', 'b'], ['b', 'c'], ['ab', 'c'], ['Ġ', 'a'], ['Ġ', 'abc']]
  assert bpe.vocab_and_merges([*BYTES, b'aa', b'aaa'])[1] == [['a', 'a'], ['aa', 'a']]  # the first of equal pairs
  with pytest.raises(ValueError, match=r"rank 256: the token b'abc'"):
    bpe.vocab_and_merges([*BYTES, b'abc'])


def test_special_tokens_of_the_families():
  ids = {family: bpe.specials(family, 151_643) for family in bpe.SPECIALS}
  for table in ids.values():
    assert [table[token] for token in bpe.CHATML_SPECIALS] == [151_643, 151_644, 151_645]
  assert {family: 151_643 + len(table) for family, table in ids.items()} == {
    'qwen2': 151_646,
    'qwen2.5': 151_665,
    'qwen3': 151_669,
    'qwen1': 151_851,
  }
  assert ids['qwen1']['<|extra_0|>'] == 151_646
  assert (ids['qwen2.5']['<|video_pad|>'], ids['qwen2.5']['<|file_sep|>']) == (151_656, 151_664)
  assert ids['qwen3']['</think>'] == 151_668
