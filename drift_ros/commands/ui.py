# SPDX-License-Identifier: Apache-2.0
"""``drift_ros ui``: a page to mark, correct and watch the objects of a running tracker node."""

from __future__ import annotations

import click


@click.command()
@click.option(
    '--node',
    default='tracker',
    show_default=True,
    help='Name of the tracker node, with its namespace.',
)
@click.option(
    '--host',
    default='127.0.0.1',
    show_default=True,
    help='Address to serve at. 0.0.0.0: every network this machine is in, with a token.',
)
@click.option(
    '--port',
    type=click.IntRange(0, 65535),
    default=8686,
    show_default=True,
    help='0: any that is free.',
)
@click.option('--token', default='', help='What pages have to know; made up where it is needed.')
def ui(node: str, host: str, port: int, token: str) -> None:
    """
    Mark, correct and watch objects in a browser.

    Prints the address to open; ends at Ctrl-C. docs/ui.md tells the rest.
    """
    from drift_ros.nodes.web.node import main

    values = {'tracker': node, 'host': host, 'port': port, 'token': token}
    arguments = ['drift_ros ui', '--ros-args']
    for name, value in values.items():
        if value != '':
            # quoted: texts stay texts, whatever they look like
            text = "'" + value.replace("'", "''") + "'" if isinstance(value, str) else value
            arguments += ['-p', f'{name}:={text}']
    main(arguments)
