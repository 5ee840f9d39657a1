# SPDX-License-Identifier: Apache-2.0
"""What a node may do by an SROS 2 policy, and what it does in the graph, by full names."""

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


def used(observer, namespace='/', node='tracker'):
    """Give the names of a running node as another node sees them, by right as :func:`read`."""
    from rclpy.action import get_action_server_names_and_types_by_node

    def public(names):
        """Leave out an action's own topics and services, which the action's right covers."""
        return {name for name, _ in names if '/_action/' not in name}

    of = (node, namespace)
    return {
        'publish': public(observer.get_publisher_names_and_types_by_node(*of)),
        'subscribe': public(observer.get_subscriber_names_and_types_by_node(*of)),
        'reply': public(observer.get_service_names_and_types_by_node(*of)),
        'execute': public(get_action_server_names_and_types_by_node(observer, *of)),
        'request': public(observer.get_client_names_and_types_by_node(*of)),
        'call': set(),
    }


def with_parameters(found, cameras=('',)):
    """Add what a node has with other parameters only: another transport, depth, transforms..."""
    names = ('image', 'image/compressed', 'camera_info', 'depth', 'depth/compressedDepth')
    below = {f'/{camera}/{name}'.replace('//', '/') for camera in cameras for name in names}
    return {
        **found,
        'subscribe': found['subscribe'] | below | {'/clock'},
        'publish': found['publish'] | {'/tf'},
    }


def _full(name, namespace, node):
    base = namespace.rstrip('/')
    if name.startswith('~/'):
        return f'{base}/{node}/{name[2:]}'
    return name if name.startswith('/') else f'{base}/{name}'
