# SPDX-License-Identifier: Apache-2.0
"""
``drift_ros policy``: what a tracker node with these cameras may do, as an SROS 2 policy.

Made of the policy for one camera, ``config/sros2_policy.xml``, in which marks tell what each
camera has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import click

from drift_ros.ros.parameters import NodeConfig
from drift_ros.ros.processes import shared_file

_TEMPLATE = 'config/sros2_policy.xml'
_EACH, _NAMED = 'each-camera', 'named-camera'
_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!--
  SROS 2: what the tracker node{cameras} may do, and nothing else.
  Made by "drift_ros policy". Where topics are remapped, write the remapped names here.
-->
"""


def make_policy(template: str, cameras: Sequence[str] = ()) -> str:
    """
    Write the policy of a node with these cameras.

    Parameters
    ----------
    template : str
        The policy for one camera, with marks, as XML.
    cameras : sequence of str
        As :class:`NodeConfig` takes them; empty: one camera, which has no name.

    Returns
    -------
    str
        XML, with the same rights once for each camera, and no marks.

    Raises
    ------
    ValueError
        The template is no policy, or does not say what each camera has.

    """
    marks = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_pis=True))
    try:
        policy = ElementTree.fromstring(template, marks)
    except ElementTree.ParseError as error:
        raise ValueError(f'no XML: {error}') from error
    profile = policy.find('enclaves/enclave/profiles/profile')
    groups = [] if profile is None else list(profile)
    repeated = [group for group in groups if _EACH in _marks(group)]
    if profile is None or not repeated:
        raise ValueError(f'nothing in it is marked {_EACH}')
    profile[:] = [
        *(_of_camera(group, name) for name in cameras or ('',) for group in repeated),
        *(group for group in groups if group not in repeated),
    ]
    ElementTree.indent(policy)
    head = _HEAD.format(cameras=f' with the cameras {", ".join(cameras)}' if cameras else '')
    return f'{head}{ElementTree.tostring(policy, encoding="unicode")}\n'


def _marks(group: ElementTree.Element) -> Iterator[str]:
    """Give the texts of a group's processing instructions."""
    return (item.text or '' for item in group if item.tag is ElementTree.ProcessingInstruction)


def _of_camera(group: ElementTree.Element, camera: str) -> ElementTree.Element:
    """
    Write a marked group for one camera; one without a name has what is not marked.

    Raises
    ------
    ValueError
        A name is absolute: it would be no camera's own.

    """
    texts = [
        item.text or '' for item in group if item.tag is not ElementTree.ProcessingInstruction
    ]
    if camera:
        named = (mark.partition(' ') for mark in _marks(group))
        texts += [text for mark, _, text in named if mark == _NAMED]
    made = ElementTree.Element(group.tag, group.attrib)
    for text in texts:
        if text.startswith('/') and camera:
            raise ValueError(f'{text} is absolute, and can be no name of each camera')
        own = text.removeprefix('~/')
        below = f'{camera}/{own}' if camera else own
        name = ElementTree.SubElement(made, group.tag.removesuffix('s'))
        name.text = below if own == text else f'~/{below}'
    return made


def _checked(_: click.Context, option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse names as the node does."""
    try:
        return NodeConfig(cameras=names).cameras
    except ValueError as error:
        raise click.BadParameter(str(error), param=option) from error


@click.command()
@click.option(
    '--camera',
    'cameras',
    multiple=True,
    metavar='NAME',
    callback=_checked,
    help="A name of the node's parameter cameras; repeat it for each.  [default: one camera, "
    'which has no name]',
)
@click.option(
    '--out',
    type=click.Path(path_type=Path, dir_okay=False),
    help='Write the policy there instead of printing it.',
)
def policy(cameras: tuple[str, ...], out: Path | None) -> None:
    """
    Write the SROS 2 policy of a tracker node: what it may do, and nothing else.

    It speaks of the node /tracker and of topics that are not remapped; docs/nodes.md, "Secured",
    says how to use it.
    """
    template = shared_file(_TEMPLATE, working_folder=False)
    if template is None:
        raise click.ClickException(
            f'{_TEMPLATE} of this package is not here: source the workspace drift_ros is '
            'installed in'
        )
    try:
        text = make_policy(template.read_text(encoding='utf-8'), cameras)
    except (ValueError, OSError) as error:
        raise click.ClickException(f'{template}: {error}') from error
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding='utf-8')
    except OSError as error:
        raise click.ClickException(f'cannot write {out}: {error.strerror}') from error
    click.echo(f'policy: {out}')
