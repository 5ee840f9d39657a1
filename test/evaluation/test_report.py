# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser, and the commands that write it."""

import html
import re
import subprocess
import sys
from urllib.parse import unquote

from click.testing import CliRunner
import numpy as np
import pytest

from drift_ros.commands.evaluate import evaluate

from . import browser


@pytest.fixture
def report(davis, tmp_path):
    """Run an evaluation with a report through the command line; return its folder."""
    folder = tmp_path / 'out'
    outcome = CliRunner().invoke(
        evaluate, ['davis', str(davis), '-e', 'first-mask', '-e', 'flow', '--out', str(folder)]
    )
    assert outcome.exit_code == 0, outcome.output
    assert 'J&F' in outcome.output
    return folder


def test_report_in_a_browser(report, tmp_path):
    """No console message, every number there, pictures loaded, videos play."""
    executable = browser.find_browser()
    if executable is None:
        pytest.skip(f'no browser found ({", ".join(browser.NAMES)}); apt-get install chromium')
    page = browser.Browser(executable, tmp_path / 'profile')
    try:
        page.open(report / 'report.html')
        assert page.evaluate("document.querySelectorAll('#summary tbody tr').length") == 2
        cells = page.evaluate(
            "[...document.querySelectorAll('#sequences tbody td')]"
            '.map(cell => cell.innerText.trim())'
        )
        assert len(cells) == 6 and cells[0] == 'one' and all(' / ' in cells[i] for i in (1, 2))
        assert page.evaluate("document.querySelectorAll('section svg').length") == 2
        assert (
            page.evaluate(
                "[...document.images].forEach(image => image.loading = 'eager') ?? "
                'Promise.all([...document.images].map(image => image.decode()))'
                '.then(() => document.images.length)'
            )
            >= 5
        )
        videos = page.evaluate(browser.PLAY)
        assert len(videos) == 2
        for video in videos:
            assert video['error'] is None and video['width'] > 0 and video['time'] > 0.05
        assert 'first-mask' in page.evaluate(
            "document.getElementById('configuration').textContent"
        )
        assert page.problems == []
    finally:
        page.close()


def test_report_files(report):
    """Everything the page names exists; nothing is loaded from elsewhere."""
    text = (report / 'report.html').read_text()
    assert '<script' not in text
    assert_links_lead_somewhere(report)
    assert (report / 'scores.png').stat().st_size > 1000
    for words in ('one, two - drift_ros evaluation', 'Decay: how much', 'outlines', 'step, ms'):
        assert words in text
    assert 'latency, ms' not in text, 'nothing was live'


def assert_links_lead_somewhere(folder):
    """Follow every link of the page as a browser does."""
    text = (folder / 'report.html').read_text()
    for link in re.findall(r'(?:src|href)="([^"]*)"', text):
        if link.startswith('data:'):
            continue
        path, _, anchor = html.unescape(link).partition('#')
        if path:
            assert not anchor and '?' not in path, link
            assert (folder / unquote(path)).is_file(), link
        else:
            assert f'id="{anchor}"' in text, link


@pytest.mark.parametrize('name', ['take #2', 'a%20b', 'what?', '50 % "x" & <b>', 'größe'])
def test_names_that_links_must_encode(davis, tmp_path, name):
    (davis / 'JPEGImages' / 'one').rename(davis / 'JPEGImages' / name)
    (davis / 'Annotations' / 'one').rename(davis / 'Annotations' / name)
    folder = tmp_path / 'out'
    outcome = CliRunner().invoke(
        evaluate,
        [
            'davis',
            str(davis),
            '-e',
            'a#1=first-mask',
            '--sequences',
            name,
            '--out',
            str(folder),
        ],
    )
    assert outcome.exit_code == 0, outcome.output
    assert (
        html.escape(name, quote=False).replace('"', '&#34;')
        in (folder / 'report.html').read_text()
    )
    assert_links_lead_somewhere(folder)


@pytest.mark.parametrize('label', ['..', '.', '.x', '../x', '\0', 'a\nb', 'x' * 201, 'ü' * 101])
def test_a_label_that_is_no_name_of_a_folder(davis, tmp_path, label):
    """Results never leave the folder they are for."""
    out = tmp_path / 'out' / 'inner'
    outcome = CliRunner().invoke(
        evaluate, ['davis', str(davis), '-e', f'{label}=first-mask', '--out', str(out)]
    )
    assert outcome.exit_code == 1 and 'LABEL=first-mask' in outcome.output
    assert not (tmp_path / 'out').exists()


def test_what_is_live_and_what_is_not_stand_apart():
    """Milliseconds of a step and of a latency are never in one column or mean."""
    from drift_ros.evaluation import summaries, tables
    from drift_ros.evaluation.results import JobResult, NO_SCORE

    names = tuple('abc')
    rows = [
        JobResult('flow', 's', NO_SCORE, np.array([1.0, 3.0]), (4, 4), names),
        JobResult('flow@5Hz', 's', NO_SCORE, np.array([70.0, 90.0]), (4, 4), names, live={'x': 1}),
    ]
    found = summaries.engine_summary(rows)
    assert (found['flow']['ms_median'], found['flow']['latency_median']) == (2.0, None)
    assert (found['flow@5Hz']['ms_median'], found['flow@5Hz']['latency_median']) == (None, 80.0)
    titles, *_ = tables.cells(
        tables.SUMMARY, [{**row, 'engine': engine} for engine, row in found.items()]
    )
    assert {'step, ms: median', 'live: latency, ms: median'} <= set(titles)
    assert not {'J mean', 'F decay'} & set(titles), 'nothing of dashes alone'


def test_compare_command(report):
    """Two engines of one folder are put side by side."""
    outcome = CliRunner().invoke(
        evaluate, ['compare', str(report), '--engines', 'first-mask,flow']
    )
    assert outcome.exit_code == 0, outcome.output
    assert '95 % interval' in outcome.output and 'two 2' in outcome.output
    outcome = CliRunner().invoke(evaluate, ['compare', str(report)])
    assert outcome.exit_code == 1 and '--engines A,B' in outcome.output


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['-e', 'magic'], 'no engine'),
        (['--set', 'kernel.radius=-4', '-e', 'tracker'], 'lie in'),
        (['--sequences', 'x'], 'no sequence x'),
        (['-e', 'flow', '-e', 'flow'], 'LABEL=NAME'),
    ],
)
def test_mistakes_end_in_messages(davis, tmp_path, arguments, message):
    """Exit code 1 and one line; nothing is written."""
    outcome = CliRunner().invoke(
        evaluate, ['davis', str(davis), '--out', str(tmp_path / 'o'), *arguments]
    )
    assert outcome.exit_code == 1
    assert outcome.output.startswith('Error: ') and message in outcome.output
    assert not (tmp_path / 'o').exists()


def test_failed_jobs_are_reported(davis, tmp_path):
    """The rest is scored and written, the exit code is 1."""
    (davis / 'JPEGImages' / 'one' / '00004.jpg').write_bytes(b'')
    outcome = CliRunner().invoke(
        evaluate, ['davis', str(davis), '-e', 'first-mask', '--out', str(tmp_path / 'o')]
    )
    assert outcome.exit_code == 1
    assert 'failed:' in outcome.output and '00004.jpg' in outcome.output
    assert '00004.jpg' in (tmp_path / 'o' / 'report.html').read_text()


def test_help_needs_neither_ros_nor_torch():
    """The command's help, and that of its groups, load no heavy module."""
    code = '\n'.join(
        [
            'import sys',
            'from click.testing import CliRunner',
            'from drift_ros.commands.main import main',
            "for words in (['--help'], ['eval', '--help'], ['eval', 'davis', '--help'], "
            "['bag', '--help']):",
            '    outcome = CliRunner().invoke(main, words)',
            '    assert outcome.exit_code == 0, outcome.output',
            '    print(outcome.output)',
            "assert not {'torch', 'rclpy', 'diffusers'} & set(sys.modules), 'imported'",
        ]
    )
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    for word in ('demo', 'compare', '--workers', 'kernel.radius=', 'from-davis'):
        assert word in found.stdout
