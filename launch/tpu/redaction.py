"""What is removed from text before it is shown or stored: keys, tokens and passwords, and ids of projects.

A key is known by its form, or by what stands before it. A project's id is removed where it stands as one, and anywhere
else only when no text of ours uses it as a word: a project may be called `training`.
"""

import functools
import re

from launch.tpu.job import ROOT

# Keys that are known by their form.
FORMS = re.compile(
  r"""
  -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
  | ^\s*(?=\S*[a-z])(?=\S*[A-Z])(?=\S*[0-9/+])[A-Za-z0-9+/]{64}\s*$    # a line of such a block
  | ya29\.[\w.-]+ | AIza[\w-]{30,} | \b1//0[\w-]{20,} | GOCSPX-[\w-]{10,}          # Google
  | \bhf_[A-Za-z0-9]{16,}                                                          # Hugging Face
  | \bsk-(?=[\w-]*\d)[\w-]{10,}                                                    # OpenAI, Anthropic
  | \bgh[pousr]_[A-Za-z0-9]{10,} | \bgithub_pat_\w{20,}                            # GitHub
  | \bgl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|oas|imt)-[\w.-]{10,}                    # GitLab
  | \bwandb_v\d+_\w{10,} | \bwandb_(?=\w*\d)[A-Za-z0-9]{20,}                       # Weights & Biases
  | \b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b                                        # AWS
  | \bxox[a-z]-[\w-]{10,} | \bxapp-[\w-]{10,} | hooks\.slack\.com/services/[\w/]+  # Slack
  | \bpypi-[\w-]{30,} | \bnpm_[A-Za-z0-9]{30,}
  | \beyJ[\w-]{10,}\.eyJ[\w-]{5,}\.[\w-]*                                          # JSON Web Token
  | (?<=://)[^/\s@:]+:[^/\s@]+(?=@)                                                # user and password in an address
  """,
  re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_GAP = r'["\']?\s*(?:[=:]|\bis\b)\s*["\']?'
# Keys that are known by what stands before them, which is kept.
AFTER = [
  # Weights & Biases' older keys have the form of a commit.
  re.compile(
    r'(?P<kept>(?:wandb|weights\W{1,3}biases|api.?key)(?:(?!commit|revision|sha)[^\n]){0,60}?)\b[0-9a-f]{40}\b',
    re.IGNORECASE,
  ),
  re.compile(r'(?P<kept>secret.?access.?key[^\n]{0,10}?)(?<![\w/+])[A-Za-z0-9/+]{40}(?![\w/+])', re.IGNORECASE),
  re.compile(r'(?P<kept>\b(?:bearer|basic)\s+)(?=\S*[\d=])[\w.~+/-]{16,}=*', re.IGNORECASE),
  re.compile(r'(?P<kept>\b(?:x-api-key|private-token|x-goog-api-key)\s*:\s*)\S{8,}', re.IGNORECASE),
  # NAME_TOKEN=value; not the number of a token, nor a variable or a placeholder.
  re.compile(
    r'(?P<kept>\b[A-Z0-9_]+_(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)\b["\']?=["\']?)'
    r'(?![$<{.\[(]|\d+\b)[^\s"\'`$<{]{6,}'
  ),
  re.compile(
    r'(?P<kept>\b(?:[a-z0-9]+[_-])*(?:api|access|secret|private|auth|client|hf|github|wandb)[_-]?(?:key|token|secret)'
    rf'{_GAP}|\b(?:password|passwd){_GAP})(?=[^\s"\']*\d)[\w./+=~-]{{8,}}',
    re.IGNORECASE,
  ),
  re.compile(r'(?P<kept>[?&](?:[\w-]*(?:token|signature|secret|key)|sig)=)[^&\s"\']{8,}', re.IGNORECASE),
]

_ID = r'(?:[a-z0-9.-]+:)?(?:[a-z][a-z0-9-]{0,28}[a-z0-9]|\d{6,})'
# Where any project's id, or number, stands as one.
AS_PROJECT = re.compile(
  rf'(?<=\bprojects/){_ID}(?![\w-])'
  rf'|(?<=@){_ID}(?=\.iam\.gserviceaccount\.com)|\b{_ID}(?=@(?:appspot|cloudservices)\.gserviceaccount\.com)'
  rf'|\b\d{{6,}}(?=(?:-compute)?@[\w.-]*gserviceaccount\.com)'
  rf'|(?<=--project[= ])[^\s"\']+|(?<=-project=){_ID}|(?<=PROJECT=){_ID}|(?<=[?&]project=)[\w:.-]+'
  rf'|(?<=project_number:)\d+|(?<=project_id:){_ID}|(?<=\bproject )#?\d{{6,}}|(?<=\bproject number )\d+'
  rf'|(?<=\bproject [\["\'`(]){_ID}(?=[\]"\'`)])|(?<=\bproject: [\["\'`]){_ID}|(?<=\bproject=["\']){_ID}'
  rf'|(?<=pkg\.dev/){_ID}(?=/)|(?<=gcr\.io/){_ID}(?=/)',
  re.IGNORECASE,
)


def without_secrets(text: str) -> str:
  """`text` with SECRET for keys, tokens and passwords."""
  for pattern in AFTER:
    text = pattern.sub(r'\g<kept>SECRET', text)
  return FORMS.sub('SECRET', text)


def without_projects(text: str, project: str = '') -> str:
  """`text` with PROJECT for ids and numbers of projects. project: the id that is removed in more places."""
  text = AS_PROJECT.sub('PROJECT', text)
  if not project:
    return text
  named = re.escape(project)
  text = re.sub(rf'(\bproject(?:_id)?["\']?(?:[:=] ?| is |/| )["\']?){named}(?![\w-])', r'\1PROJECT', text)
  text = re.sub(rf'(?<![\w-]){named}(?=\.(?:appspot|firebaseio|web)\.|:[a-z]+-[a-z]+\d)', 'PROJECT', text)
  return re.sub(rf'(?<![\w-]){named}(?![\w-])', 'PROJECT', text) if _is_distinctive(project) else text


def _is_distinctive(project: str) -> bool:
  """Whether an id cannot be mistaken for a word."""
  return bool(re.search(r'[\d-]', project)) and project not in _words()


@functools.cache
def _words() -> frozenset[str]:
  """The words of our own texts."""
  texts = [*ROOT.glob('*.md'), *ROOT.glob('*/*.md'), *ROOT.glob('mathqwen/*/*.md')]
  return frozenset(word for path in texts for word in re.findall(r'[a-z][a-z0-9-]+', path.read_text().lower()))
