"""python -m launch.tpu VERB JOB.toml: training on Cloud TPUs, from a checkout of mathqwen, through gcloud.

  plan      what it takes, before anything is created: memory, days, chip-hours, price
  up        the whole way: asks for the slice, installs, trains, comes back after preemptions, deletes, sums up
  create, setup, start, follow, stop, delete      its single steps
  status    of the slice and of every host
  logs      those of every host, whole
  summary   steps, tokens, chip-hours, time lost and cost so far
  recipe    the same job for GKE (XPK), Compute Engine or SkyPilot

Project and account are gcloud's own (`gcloud config set project`, `gcloud auth login`); nothing here asks for them,
and what gcloud says is written down without them.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shlex
import sys

from launch.tpu import commands, estimate, job, ledger, recipes
from launch.tpu.babysit import STATUS, Babysitter, Limit
from launch.tpu.cloud import Cloud, Later, redact, say
from mathqwen.errors import UserError


class Parser(argparse.ArgumentParser):
  """Errors in one line."""

  def error(self, message):
    raise UserError(f'{message} (see {self.prog} --help)')


def main(argv=None) -> int:
  parser = Parser(
    prog='python -m launch.tpu', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('verb', choices=('plan', *ACTIONS, 'recipe'), metavar='VERB')
  parser.add_argument('job', metavar='JOB.toml', help='launch/tpu/example.toml is one to copy')
  parser.add_argument('--to', choices=recipes.RECIPES, help='of recipe')
  parser.add_argument('--dry-run', action='store_true', help='print the command lines, run none')
  parser.add_argument('--yes', action='store_true', help='create without asking')
  parser.add_argument('--no-plan', action='store_true', help='do not compile first; training keeps its own settings')
  parser.add_argument('--logs', default='launches', metavar='DIR', help='ledger and logs go to DIR/NAME (%(default)s)')
  parser.add_argument('--pace', type=float, default=30, metavar='SECONDS', help='between questions (%(default)s)')
  try:
    args = parser.parse_args(argv)
    if (args.verb == 'recipe') != (args.to is not None):
      raise UserError(f'recipe --to {"|".join(recipes.RECIPES)}: one of them, and with no other verb')
    if not args.pace > 0:
      raise UserError(f'--pace {args.pace}: it must be above 0')
    status = run(args, job.read(args.job))
    sys.stdout.flush()
    return status
  except BrokenPipeError:
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 - the reader left; nothing more may be written at exit
    return 0
  except (UserError, Later, Limit) as error:
    say(f'launch: {" ".join(str(error).split())}')
    return 2
  except KeyboardInterrupt:
    say('launch: interrupted; the run and its slice go on: `up` takes them up, `stop` and `delete` end them')
    return 130


def run(args, what: job.Job) -> int:
  folder = pathlib.Path(args.logs) / what.name
  if args.verb == 'recipe':
    print(recipes.RECIPES[args.to](what), end='')
    return 0
  if args.verb != 'plan':
    what.check_api()
  if args.dry_run:
    if args.verb not in commands.VERBS:
      raise UserError(f'{args.verb} runs nothing on the cloud; leave out --dry-run')
    for line in commands.lines(what, args.verb):
      print(shlex.join(line))
    return 0
  settings = {}
  if args.verb == 'plan' or (args.verb in ('up', 'create', 'start') and not args.no_plan):
    expected = estimate.estimate(what, folder)
    settings = expected.settings
    say(expected.text(what))
  if args.verb == 'plan':
    return 0
  sitter = Babysitter(Cloud(what), ledger.Ledger(folder), settings, args.pace)
  _check_place(sitter)
  if args.verb in ('status', 'stop', 'logs', 'delete', 'summary'):
    return ACTIONS[args.verb](sitter)
  with sitter.alone():
    if args.verb in ('up', 'create'):
      _agree(args.yes, sitter)
    return ACTIONS[args.verb](sitter)


def _check_place(sitter: Babysitter):
  """UserError where the file was edited over a slice that was asked for: it would stay, cost, and nobody watch it."""
  what, asked = sitter.job, sitter.book.here
  for name in ('slice', 'zone', 'queue'):
    if asked and asked[name] != getattr(what, name):
      raise UserError(
        f'{what.name} was asked for with {name} = {asked[name]!r}, and may be there: `delete` it with that in the '
        f'file, then change it to {getattr(what, name)!r}'
      )


def _agree(yes: bool, sitter: Babysitter):
  """UserError where the job is done, or where nobody wants to pay for it."""
  what, book = sitter.job, sitter.book
  if book.finished:
    if book.here:
      sitter.delete()
    raise UserError(f'{what.name} is done (see summary): give the next job another name, or remove {book.folder}')
  there = sitter.cloud.state() != 'none'
  if there and not book.here:
    raise UserError(
      f'{what.name} is there already, and was not asked for from {book.folder}: another job of that name? Give this '
      'one another, or --logs the folder of the launcher that asked'
    )
  if there or yes:
    return
  if not sys.stdin.isatty():
    raise UserError('nobody is there to say yes; --yes creates without asking')
  if input(f'create {what.slice} in {what.zone}, {what.provisioning}? [y/N] ').strip().lower() not in ('y', 'yes'):
    raise UserError('nothing was created')


def create(sitter) -> int:
  sitter.book.add('up')
  return 0 if sitter.have_slice() else 1


def setup(sitter) -> int:
  return 0 if sitter.set_up() else 1


def start(sitter) -> int:
  if sitter.cloud.state() != 'ready':
    raise UserError(f'{sitter.job.slice} is not ready: `create` and `setup` come first')
  return 0 if sitter.start() else 1


def follow(sitter) -> int:
  if not sitter.book.count('started'):
    raise UserError(f'{sitter.job.name} was not started yet')
  return STATUS[sitter.follow()]


def status(sitter) -> int:
  state = sitter.cloud.state()
  print(f'{sitter.job.slice}: {state}')
  if state == 'ready' and sitter.book.count('started'):
    print(sitter.cloud.on_all('status', sitter.book.count('started')), end='')
  return 0


def stop(sitter) -> int:
  sitter.book.add('stop')
  told = not sitter.book.under_way or sitter.on_all('stop')
  try:
    with sitter.alone():
      watched = ''
  except UserError:
    watched = 'the launcher that watches deletes the slice then'
  if told:
    say(f'the run, where there is one, saves and ends; {watched or "nobody watches: `delete` the slice then"}')
  return 0 if told else 1


def logs(sitter) -> int:
  number = sitter.book.count('started')
  for node in sitter.job.nodes:
    folder = sitter.book.folder / f'whole-{number}' / node
    folder.mkdir(parents=True, exist_ok=True)
    sitter.cloud.run(commands.ssh(sitter.job, node, commands.worker(sitter.job, 'log', number), str(folder)))
    for file in folder.iterdir():
      file.write_text(redact(file.read_text(errors='replace')))
    print(folder)
  return 0


def delete(sitter) -> int:
  sitter.book.add('stop')  # or the launcher that watches would ask for it again
  sitter.delete()
  return 0


def summary(sitter) -> int:
  found = sitter.summary()
  say(found.text())
  print(json.dumps(dataclasses.asdict(found)))
  return 0


ACTIONS = {
  'up': Babysitter.run,
  'create': create,
  'setup': setup,
  'start': start,
  'follow': follow,
  'status': status,
  'stop': stop,
  'logs': logs,
  'delete': delete,
  'summary': summary,
}

if __name__ == '__main__':
  sys.exit(main())
