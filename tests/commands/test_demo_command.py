"""`mathqwen demo`: every stage, with a few steps and a few problems, in a directory whose name needs quotes."""

import json
import shlex

from mathqwen import cli
from mathqwen.commands import demo


def test_every_stage(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(demo, 'TRAIN_EXAMPLES', 2_000)
  monkeypatch.setattr(demo, 'TEST_PER_GROUP', 1)
  workdir = tmp_path / "it's here"
  assert cli.main(['demo', '--workdir', str(workdir), '--steps', '2', '--json']) == 0
  printed = capsys.readouterr().out
  *lines, last = printed.splitlines()
  result = json.loads(last)
  assert set(result) == {'seconds', 'before', 'after', 'hf', 'train'}
  assert result['train']['step'] == 2
  n = result['after']['benchmarks']['arithmetic']['n']
  assert f'{workdir}/hf: {n} of {n} answers are the same text' in lines
  assert [line[:2] for line in lines if line[1:3] == '. '] == [f'{i}.' for i in range(1, 7)]
  # Its last line can be pasted into a shell.
  command = shlex.split(next(line for line in lines if 'Ask it yourself: ' in line).partition('yourself: ')[2])
  assert command[1:] == ['generate', str(workdir / 'run'), '37+45=']
  assert cli.main([*command[1:], '--max-new-tokens', '2']) == 0


def test_one_step_is_not_enough(tmp_path, capsys):
  assert cli.main(['demo', '--workdir', str(tmp_path / 'demo'), '--steps', '1']) == 2
  assert '--steps 1: the demo needs at least 2 steps' in capsys.readouterr().err
  assert not (tmp_path / 'demo').exists()
