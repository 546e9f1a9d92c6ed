"""When a run saves, which checkpoints are kept, and what happens when a save fails; no weights are saved here."""

import types

import pytest

from mathqwen.config import TrainConfig
from mathqwen.errors import UserError
from mathqwen.hardware import hosts
from mathqwen.storage import checkpoint
from mathqwen.training import saving


class Folder:
  """`Checkpoints` whose saves end when the test says so: `error` is what they end with."""

  def __init__(self):
    self.written, self.pending, self.error, self.latest, self.reopened = [], None, None, 1, 0

  def path(self, step):
    return f'checkpoints/{step}'

  def is_writing(self):
    return self.pending is not None

  def wait(self):
    self.pending = None
    if self.error:
      raise checkpoint.SaveFailed(self.error, 'free some')

  def reopen(self):
    self.reopened += 1


@pytest.fixture
def saver(monkeypatch):
  """saver.due(step), .save(step) of a run with a checkpoint every 20 steps and a line every 4."""
  clock = types.SimpleNamespace(now=0.0)
  monkeypatch.setattr(saving.time, 'monotonic', lambda: clock.now)
  folder, lines = Folder(), []

  def make(**changes):
    train = TrainConfig(**{'log_every': 4, 'checkpoint_every': 20, 'checkpoint_minutes': 0, **changes})
    made = saving.Saver(folder, train, lines.append)

    def save(step, last=False):
      def start():
        folder.pending = step
        folder.written.append(step)

      made.save(step, start, last)

    due = lambda step, evaluating=False: made.due(step, evaluating)
    return types.SimpleNamespace(due=due, save=save, wait=made.wait, folder=folder, lines=lines, clock=clock)

  return make


def test_by_steps_and_by_the_clock(saver):
  run = saver(checkpoint_minutes=10, keep_best=1)
  assert [step for step in range(1, 41) if run.due(step)] == [20, 40]
  assert run.due(7, evaluating=True)
  run.clock.now = 600
  assert [step for step in range(1, 13) if run.due(step)] == [4, 8, 12]  # where a window of the metrics ends
  run.save(12)
  run.folder.pending = None
  assert [step for step in range(13, 20) if run.due(step)] == []
  run.clock.now = 1200
  assert run.due(16)


def test_never_by_the_clock(saver):
  run = saver()
  run.clock.now = 1e9
  assert not any(run.due(step) for step in range(1, 20))
  assert not run.due(19, evaluating=True)


@pytest.mark.parametrize('host_0, due', [(True, True), (False, False)])
def test_the_clock_of_host_0_decides(saver, monkeypatch, host_0, due):
  run = saver(checkpoint_minutes=10)
  run.clock.now = 0 if host_0 else 601
  monkeypatch.setattr(hosts, 'gather', lambda mine: [[host_0, False], mine])
  assert run.due(4) is due


def test_a_failed_save_is_tried_again(saver):
  """Once at the end of the next window, then where a checkpoint is due."""
  run = saver()
  run.save(20)
  run.folder.error = 'no space left'
  assert not run.due(24)  # still being written
  run.folder.pending = None
  assert run.due(28)
  assert run.lines == [
    'the checkpoint of step 20 was not written (no space left): the run goes on and will try again; checkpoints/1 is '
    'whole'
  ]
  run.save(28)
  run.folder.pending = None
  assert [step for step in range(29, 41) if run.due(step)] == [40] and run.folder.reopened == 2
  run.folder.error = None
  run.save(40)
  run.folder.pending = None
  assert not run.due(44) and not run.due(48) and len(run.lines) == 2


def test_a_save_that_fails_on_another_host(saver, monkeypatch):
  run = saver()
  monkeypatch.setattr(hosts, 'gather', lambda mine: [mine, ['no space left: free some', 'no space left']])
  run.save(20)
  assert len(run.lines) == 1 and run.folder.reopened == 1


@pytest.mark.parametrize('last, latest', [(True, 1), (False, None)])
def test_a_failed_save_ends_the_run(saver, last, latest):
  """At its end, and without an older checkpoint."""
  run = saver()
  run.folder.latest, run.folder.error = latest, 'no space left'
  with pytest.raises(UserError, match='no space left: free some and run the same command again'):
    run.save(20, last)
    run.wait(last)
  assert not run.lines


def kept(keep, steps, losses=()):
  """The steps that are kept of those that were saved one after the other."""
  policy, held, known = checkpoint._Preservation(keep, (found := {})), [], dict(losses)
  for step in steps:
    held.append(types.SimpleNamespace(step=step))
    if step in known:
      found[step] = known[step]
    held = [each for each, stays in zip(held, policy.should_preserve(held, context=None), strict=True) if stays]
  return [each.step for each in held]


def test_which_checkpoints_are_kept():
  steps, losses = range(10, 100, 10), {20: 1.0, 50: 0.5, 70: 0.7, 80: 2.0}
  assert kept(checkpoint.Keep(2), steps) == [80, 90]
  assert kept(checkpoint.Keep(1, every=40), steps) == [40, 80, 90]
  assert kept(checkpoint.Keep(1, best=2), steps, losses) == [50, 70, 90]
  assert kept(checkpoint.Keep(3, every=30, best=1), steps, losses) == [30, 50, 60, 70, 80, 90]


@pytest.mark.parametrize(
  'keep, settings, by_every',
  [
    (checkpoint.Keep(3), {}, 0),
    (checkpoint.Keep(1, every=1), {'steps': 5_000_000, 'checkpoint_every': 100_000}, 50),
    (checkpoint.Keep(1, every=30), {'steps': 1000, 'checkpoint_every': 20}, 16),  # 60, 120, ...
    (checkpoint.Keep(1, every=30, best=1), {'steps': 1000, 'checkpoint_every': 20, 'eval_every': 300}, 16 + 3),
    (checkpoint.Keep(1, every=30), {'steps': 1000, 'checkpoint_every': 500, 'checkpoint_minutes': 10}, 2),
  ],
)
def test_how_many_checkpoints_are_kept(keep, settings, by_every):
  train = TrainConfig(**{'steps': 100, 'checkpoint_minutes': 0, **settings})
  assert list(keep.at_most(train).values()) == [keep.newest, by_every, keep.best]
