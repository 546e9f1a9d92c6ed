"""Which settings may differ when a run is continued: each setting's declaration says so (`Setting.on_resume`)."""

from mathqwen.config import SETTINGS, Experiment
from mathqwen.settings import FREE, Conditional, to_flat


def refusal(before: Experiment, now: Experiment, step: int) -> str:
  """Why a run of `before`, whose newest checkpoint is of `step`, cannot continue as `now`; '' when it can."""
  old, new = to_flat(before), to_flat(now)
  fixed, conditional = [], {}
  for name, declaration in SETTINGS.items():
    if old[name] == new[name] or declaration.on_resume == FREE:
      continue
    change = f'{name} {old[name]!r} -> {new[name]!r}'
    if not isinstance(declaration.on_resume, Conditional):
      fixed.append(change)
    elif reason := declaration.on_resume.refusal(before, now, step):
      conditional[change] = reason

  if fixed:
    changes = [*fixed, *conditional]
    more = f' and {len(changes) - 5} more' if len(changes) > 5 else ''
    listed = ', '.join(changes[:5]) + more
    return f'holds a run of another config ({listed}): use another --workdir, or the same settings'
  for change, reason in conditional.items():
    return f'cannot continue with {change}: {reason}'
  return ''
