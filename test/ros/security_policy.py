# SPDX-License-Identifier: Apache-2.0
"""Reads an SROS 2 policy: what a node may do, by full names."""

from xml.etree import ElementTree

RIGHTS = {
    'topics': ('subscribe', 'publish'),
    'services': ('reply', 'request'),
    'actions': ('execute', 'call'),
}


def read(path, namespace='/', node='tracker'):
    """
    Give the names a node's profile allows, by right: subscribe, publish, reply...

    Raises
    ------
    ValueError
        The file is not such a policy: the schema of sros2 0.2.0, as far as it is used.

    """
    root = ElementTree.parse(path).getroot()
    if root.tag != 'policy' or root.get('version') != '0.2.0':
        raise ValueError('no policy of version 0.2.0')
    allowed = {right: [] for rights in RIGHTS.values() for right in rights}
    for enclave in root.findall('enclaves/enclave'):
        if not (enclave.get('path') or '').startswith('/'):
            raise ValueError('an enclave without an absolute path')
        for profile in enclave.findall('profiles/profile'):
            if (profile.get('ns'), profile.get('node')) != (namespace, node):
                continue
            for group in profile:
                for right, value in group.attrib.items():
                    if right not in RIGHTS[group.tag] or value != 'ALLOW':
                        raise ValueError(f'{group.tag} has {right}={value}')
                    for item in group:
                        if item.tag != group.tag[:-1]:
                            raise ValueError(f'{item.tag} among {group.tag}')
                        allowed[right].append(_full(item.text, namespace, node))
    return allowed


def _full(name, namespace, node):
    base = namespace.rstrip('/')
    if name.startswith('~/'):
        return f'{base}/{node}/{name[2:]}'
    return name if name.startswith('/') else f'{base}/{name}'
