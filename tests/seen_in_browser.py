"""A real browser: a script beside the page's own plays the reader and hands back what it saw."""

import base64
import json
import os
import re
import shutil
import subprocess

import pytest

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
NARROWEST = 500  # pixels: windows of Chromium are not narrower, so a narrower page stands in a frame

DRIVER = """<script>
LISTENER
(async () => {
  const seen = [], $ = (query) => document.querySelector(query), all = (query) => [...document.querySelectorAll(query)];
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: name, bubbles: true}));
  const choose = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event('change')); };
  const ids = () => all('#items .id').map((node) => node.textContent);
  for (let i = 0; i < 300 && !document.documentElement.dataset.ready; i++) await pause(10);
  try { STEPS } catch (error) { seen.push(`${error}`); }
  top.postMessage(JSON.stringify(seen), '*');
})();
</script>"""
LISTENER = """
addEventListener('message', (event) => {
  const result = document.createElement('pre');
  result.id = 'seen';
  result.textContent = btoa(unescape(encodeURIComponent(event.data)));
  document.body.append(result);
});
"""


@pytest.fixture(scope='session')
def browser():
  path = os.environ.get('MATHQWEN_BROWSER') or next(filter(None, map(shutil.which, BROWSERS)), None)
  if path is None:
    pytest.skip(f'no browser: set MATHQWEN_BROWSER, or install one of {", ".join(BROWSERS)} (apt-get install chromium)')
  return path


@pytest.fixture
def see(browser, tmp_path):
  """see(page, 'seen.push(...)', fragment, width, dark) -> what was pushed, in a window of `width` pixels"""

  def run(text, steps, fragment='', width=1200, dark=False):
    # The page's own policy allows no script of ours, so the copy that is driven has none: only escaping protects it.
    text, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', text)
    assert found == 1
    is_framed = width < NARROWEST
    driver = DRIVER.replace('STEPS', steps).replace('LISTENER', '' if is_framed else LISTENER)
    page = tmp_path / 'driven.html'
    page.write_text(text.replace('</html>', driver + '</html>'))
    address = f'{page.as_uri()}{fragment}'
    if is_framed:
      frame = tmp_path / 'frame.html'
      frame.write_text(
        f'<body><script>{LISTENER}</script><iframe width={width} height=900 style="border: 0" src="{address}"></iframe>'
      )
      address = frame.as_uri()

    flags = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path / "profile"}']
    flags += ['--virtual-time-budget=20000', f'--window-size={max(width, NARROWEST)},900', '--dump-dom']
    flags += [f'--blink-settings=preferredColorScheme={0 if dark else 1}']
    done = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">([^<]*)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(base64.b64decode(found.group(1)))

  return run
