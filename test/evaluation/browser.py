# SPDX-License-Identifier: Apache-2.0
"""Drive a headless Chromium through its debugging pipe, without a driver or a library."""

import json
import os
from pathlib import Path
import select
import shutil
import signal
import subprocess
import time

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


def find_browser():
    """Return the path of an installed Chromium, or None."""
    return next(filter(None, (shutil.which(name) for name in NAMES)), None)


class Browser:
    """A page in a headless Chromium; collects console messages and failed requests."""

    def __init__(self, executable, profile):
        self.problems = []
        self._number = 0
        self._buffer = b''
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = [
            executable,
            '--headless=new',
            '--no-sandbox',
            '--disable-gpu',
            '--disable-dev-shm-usage',
            '--no-first-run',
            '--mute-audio',
            f'--user-data-dir={profile}',
            '--window-size=1360,900',
            '--autoplay-policy=no-user-gesture-required',
            '--remote-debugging-pipe',
            'about:blank',
        ]
        # The browser talks on the file descriptors 3 and 4; the shell puts the pipes there.
        self._process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{to_browser} 4>&{from_browser}', 'bash', *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)[
            'sessionId'
        ]
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def call(self, method, **parameters):
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == self._number:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]}')
                return answer['result']

    def open(self, path):
        """Load a file and wait until it is complete."""
        self.call('Page.navigate', url=Path(path).resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.evaluate('document.readyState') != 'complete':
            assert time.monotonic() < deadline, 'the page did not load'
            time.sleep(0.1)

    def evaluate(self, expression):
        """Return the value of a JavaScript expression; promises are awaited."""
        result = self.call(
            'Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True
        )
        if 'exceptionDetails' in result:
            raise RuntimeError(str(result['exceptionDetails']))
        return result['result'].get('value')

    def screenshot(self):
        """Return a PNG of the visible part, base64."""
        return self.call('Page.captureScreenshot', format='png')['data']

    def close(self):
        """End the browser and all its processes."""
        try:
            self._session = None
            self.call('Browser.close')
            self._process.wait(10)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        for descriptor in (self._read, self._write):
            os.close(descriptor)

    def _receive(self):
        while b'\0' not in self._buffer:
            if not select.select([self._read], [], [], 60)[0]:
                raise RuntimeError('the browser does not answer')
            data = os.read(self._read, 2**16)
            if not data:
                raise RuntimeError('the browser ended')
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b'\0')
        message = json.loads(line)
        method, parameters = message.get('method'), message.get('params', {})
        if method == 'Runtime.exceptionThrown':
            self.problems.append(str(parameters))
        elif method == 'Runtime.consoleAPICalled' and parameters['type'] in ('error', 'warning'):
            self.problems.append(str(parameters['args']))
        elif method == 'Log.entryAdded' and parameters['entry']['level'] in ('error', 'warning'):
            self.problems.append(str(parameters['entry']))
        elif method == 'Network.loadingFailed' and not parameters.get('canceled'):
            self.problems.append(str(parameters))
        return message


PLAY = """
Promise.all([...document.querySelectorAll('video')].map(async video => {
  await video.play();
  const start = Date.now();
  while (video.currentTime < 0.2 && Date.now() - start < 20000)
    await new Promise(done => setTimeout(done, 50));
  return {time: video.currentTime, width: video.videoWidth, error: video.error?.message ?? null};
}))
"""
"""Plays every video of a page; gives how far each got and its width in pixels."""
