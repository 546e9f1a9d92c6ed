"""python -m launch.tpu VERB JOB.toml: trains on Cloud TPUs through gcloud, from a checkout of mathqwen.

  plan      what the job needs, before anything is created: memory, days, chip-hours, price
  up        everything: requests the slice, installs, trains, continues after preemptions, deletes the slice, sums up
  create, setup, start, follow, stop, delete      the single steps of `up`
  status    of the slice and of every host
  logs      the complete logs of every host
  summary   steps, tokens, chip-hours, lost time and cost so far
  recipe    the same job for GKE (XPK, or a JobSet), Compute Engine or SkyPilot

Project and account are those of gcloud (`gcloud config set project`, `gcloud auth login`). They are removed from what
gcloud prints before it is shown or stored.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shlex
import sys
from typing import NoReturn

from launch.tpu import access, commands, estimate, facts, job, ledger, recipes, region
from launch.tpu.babysit import STATUS, Babysitter, Limit
from launch.tpu.bucket import Bucket
from launch.tpu.cloud import Cloud, Later, redact, say
from mathqwen.errors import UserError


class LauncherParser(argparse.ArgumentParser):
  """Reports errors in one line."""

  def error(self, message: str) -> NoReturn:
    """UserError: with `message`, and the --help that explains it."""
    raise UserError(f'{message} (see {self.prog} --help)')


def main(argv: list[str] | None = None) -> int:
  """Runs one verb. Returns the exit status: 0 done, 1 failed, 2 an error the user can fix, 75 `up` can continue."""
  parser = LauncherParser(
    prog='python -m launch.tpu', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('verb', choices=('plan', *ACTIONS, 'recipe'), metavar='VERB')
  parser.add_argument('job', metavar='JOB.toml', help='copy launch/tpu/example.toml')
  parser.add_argument('--to', choices=recipes.RECIPES, help='with recipe: the other launcher')
  parser.add_argument('--dry-run', action='store_true', help='print the command lines without running them')
  parser.add_argument('--yes', action='store_true', help='create without asking')
  parser.add_argument(
    '--no-plan', action='store_true', help='do not compile first; training uses the settings of its config'
  )
  parser.add_argument(
    '--logs', default='launches', metavar='DIR', help='where the ledger and logs go: DIR/NAME (%(default)s)'
  )
  parser.add_argument(
    '--pace', type=float, default=30, metavar='SECONDS', help='between questions to the cloud (%(default)s)'
  )
  try:
    args = parser.parse_args(argv)
    if (args.verb == 'recipe') != (args.to is not None):
      raise UserError(f'recipe needs --to {"|".join(recipes.RECIPES)}, and no other verb takes it')
    if not args.pace > 0:
      raise UserError(f'--pace {args.pace}: it must be above 0')
    status = run(args, job.read(args.job))
    sys.stdout.flush()
    return status
  except BrokenPipeError:
    # Whoever read our output has left, for example `head`: nothing more can be written, not even at exit.
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    return 0
  except (UserError, Later, Limit) as error:
    say(f'launch: {" ".join(str(error).split())}')
    return 2
  except KeyboardInterrupt:
    say('launch: interrupted; the run and its slice go on: `up` continues, `stop` and `delete` end them')
    return 130


def run(args: argparse.Namespace, what: job.TpuJob) -> int:
  """Runs the verb of `args` on a job. Returns the exit status."""
  folder = pathlib.Path(args.logs) / what.name
  if args.verb == 'recipe':
    print(recipes.RECIPES[args.to](what), end='')
    return 0
  if args.verb != 'plan':
    what.check_api()
  if args.dry_run:
    if args.verb not in commands.VERBS:
      raise UserError(f'{args.verb} runs nothing in the cloud; leave out --dry-run')
    for line in commands.lines(what, args.verb):
      print(shlex.join(line))
    return 0
  settings = {}
  if args.verb == 'plan' or (args.verb in ('up', 'create', 'start') and not args.no_plan):
    expected = estimate.estimate(what, folder)
    settings = expected.settings
    say(expected.text(what))
  sitter = Babysitter(Cloud(what), ledger.Ledger(folder), settings, args.pace)
  if args.verb in ('plan', 'up', 'create'):
    facts.check(what)
  if args.verb == 'plan':
    say(access.removal(sitter.cloud))
    return 0
  _check_place(sitter)
  if args.verb in ('status', 'stop', 'logs', 'delete', 'summary'):
    return ACTIONS[args.verb](sitter)
  with sitter.alone():
    if args.verb in ('up', 'create'):
      region.check(sitter.cloud)
      _confirm(args.yes, sitter)
      _upload(sitter)
    return ACTIONS[args.verb](sitter)


def _check_place(sitter: Babysitter):
  """UserError: when the job file was edited after a slice was requested, and would cost money unseen."""
  what, requested = sitter.job, sitter.book.here
  for name in ('slice', 'zone', 'queue'):
    if requested and requested[name] != getattr(what, name):
      raise UserError(
        f'{what.name} was requested with {name} = {requested[name]!r} and may be there: `delete` it with that in the '
        f'file, then change it to {getattr(what, name)!r}'
      )


def _confirm(yes: bool, sitter: Babysitter):
  """Asks the user, unless `yes`. UserError: when they refuse, the job is done, or its slice belongs to another one."""
  what, book = sitter.job, sitter.book
  sitter.catch_up()
  if sitter.outcome != 'again':
    return  # the job is over, and nothing will be created
  if book.finished:
    if book.here:
      sitter.delete()
    raise UserError(f'{what.name} is done (see summary): give the next job another name, or remove {book.folder}')
  is_there = sitter.cloud.state() != 'none'
  if is_there and not book.here:
    raise UserError(
      f'{what.name} exists already, and was not requested from {book.folder}: is it another job of that name? Give '
      'this one another name, or give --logs the folder of the launcher that requested it'
    )
  if is_there:
    return
  if not yes and not sys.stdin.isatty():
    raise UserError('standard input is not a terminal, so nobody can confirm; --yes creates without asking')
  say(access.removal(sitter.cloud))
  if yes:
    return
  if input(f'create {what.slice} in {what.zone}, {what.provisioning}? [y/N] ').strip().lower() not in ('y', 'yes'):
    raise UserError('nothing was created')


def _upload(sitter: Babysitter):
  """Copies the user's own files into the bucket. UserError: when that is not possible."""
  what = sitter.job
  bucket = Bucket(what.bucket, sitter.cloud.run)
  if what.files and not bucket.is_remote and not pathlib.Path(what.bucket).is_dir():
    raise UserError(f'{what.bucket} is not on this machine: copy {", ".join(what.files)} to the hosts, or use gs://')
  for address in facts.upload(what, bucket):
    say(f'uploaded {address}')


def create(sitter: Babysitter) -> int:
  """Requests the slice and waits for it. UserError: when the job ended while no launcher was watching."""
  if sitter.outcome != 'again':
    raise UserError(f'{sitter.job.name} has ended meanwhile: {sitter.outcome} (see summary)')
  sitter.book.add('up')
  return 0 if sitter.have_slice() else 1


def setup(sitter: Babysitter) -> int:
  """Installs on every host."""
  return 0 if sitter.set_up() else 1


def start(sitter: Babysitter) -> int:
  """Starts the run on every host. UserError: when the slice is not ready."""
  if sitter.cloud.state() != 'ready':
    raise UserError(f'{sitter.job.slice} is not ready: `create` and `setup` come first')
  return 0 if sitter.start() else 1


def follow(sitter: Babysitter) -> int:
  """Prints the output of the hosts until the run ends. UserError: when it was never started."""
  if not sitter.book.count('started'):
    raise UserError(f'{sitter.job.name} has not been started yet')
  return STATUS[sitter.follow()]


def status(sitter: Babysitter) -> int:
  """Prints the state of the slice, and of the run on every host."""
  state = sitter.cloud.state()
  print(f'{sitter.job.slice}: {state}')
  if state == 'ready' and sitter.book.count('started'):
    print(sitter.cloud.on_all('status', sitter.book.count('started')), end='')
  return 0


def stop(sitter: Babysitter) -> int:
  """Has the run save and end. Returns 1 when a host was not reached."""
  sitter.book.add('stop')
  all_reached = not sitter.book.under_way or sitter.on_all('stop')
  try:
    with sitter.alone():
      what_next = 'no launcher is watching: `delete` the slice afterwards'
  except UserError:
    what_next = 'the launcher that is watching will delete the slice'
  if all_reached:
    say(f'the run saves and ends, if there is one; {what_next}')
  return 0 if all_reached else 1


def logs(sitter: Babysitter) -> int:
  """Copies the complete log of every host of the newest start, without secrets, and prints where they are."""
  number = sitter.book.count('started')
  for node in sitter.job.nodes:
    folder = sitter.book.folder / f'whole-{number}' / node
    folder.mkdir(parents=True, exist_ok=True)
    sitter.cloud.run(commands.ssh(sitter.job, node, commands.worker(sitter.job, 'log', number), str(folder)))
    for file in folder.iterdir():
      file.write_text(redact(file.read_text(errors='replace')))
    print(folder)
  return 0


def delete(sitter: Babysitter) -> int:
  """Deletes the slice, or its request."""
  sitter.book.add('stop')  # or a launcher that is watching would request the slice again
  sitter.delete()
  return 0


def summary(sitter: Babysitter) -> int:
  """Prints what the job came to so far: for people on standard error, as JSON on standard output."""
  found = sitter.summary()
  say(found.text())
  print(json.dumps(dataclasses.asdict(found)))
  return 0


# {verb: what it does; returns the exit status}
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
