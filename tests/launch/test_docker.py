"""The container, without a Docker daemon: the steps of the Dockerfile are carried out in a folder."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
DOCKERFILE = ROOT / 'launch/docker/Dockerfile'


def test_the_copied_files_are_enough(tmp_path):
  instructions = [line.split(maxsplit=1) for line in DOCKERFILE.read_text().splitlines() if re.match('[A-Z]+ ', line)]
  names = [name for name, _ in instructions]
  assert names[0] == 'FROM' and set(names) <= {'FROM', 'ARG', 'WORKDIR', 'COPY', 'RUN', 'ENV', 'CMD'}
  allowed = {line[1:] for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')}
  context = tmp_path / 'context'
  context.mkdir()
  for name, words in instructions:
    if name == 'COPY':
      *sources, target = shlex.split(words)
      assert set(sources) <= allowed  # what .dockerignore lets through
      for source in sources:
        if (ROOT / source).is_dir():
          shutil.copytree(ROOT / source, context / target)
        else:
          shutil.copy(ROOT / source, context / target)
  (run,) = [words for name, words in instructions if name == 'RUN']
  (extras,) = [words.partition('=')[2] for name, words in instructions if name == 'ARG']
  install = shlex.split(run.replace('${EXTRAS}', extras))
  assert install == ['pip', 'install', '--no-cache-dir', '.[tpu,hf,gcs]']
  # Only the package: its dependencies are installed already.
  line = [sys.executable, '-m', *install[:-1], '--no-deps', '--no-build-isolation', '--quiet', '--target', 'site', '.']
  subprocess.run(line, cwd=context, check=True, capture_output=True)
  code = 'import mathqwen; from mathqwen import cli, config_files; print(mathqwen.__file__, config_files.names())'
  env = {'PYTHONPATH': str(context / 'site'), 'PATH': '/usr/bin:/bin'}
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.stdout.startswith(str(context / 'site/mathqwen')) and 'math_qwen_7b' in done.stdout, done.stderr
  assert (context / 'site/mathqwen/assets').is_dir()
