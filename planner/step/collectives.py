"""Seconds and bytes of collectives over a group of ranks, on links of two levels.

    links = Links(8, 450e9, 50e9, 3e-6, 1e-5)
    all_reduce(links, links.group(1024), 1e9).seconds

Two algorithms are known, and a library is taken to choose the faster one.
- ring: every message goes to the next rank, N - 1 times. A node of a group has as many links to
  other nodes as it has ranks, and uses all of them.
- hierarchical: a ring in each node, and halving and doubling between the nodes, whose number of
  messages is a logarithm. All bytes cross first one kind of link, then the other.

Bytes are those of the ring convention of `engines/_traffic.py`, whatever the algorithm is.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from planner.cluster.clusters import Cluster


class Cost(NamedTuple):
    """What a collective takes."""

    seconds: float
    sent_bytes: float  # by one rank, the mean over the ranks


FREE = Cost(0.0, 0.0)  # of one rank alone


class Group(NamedTuple):
    """Ranks that exchange something."""

    size: int
    per_node: int  # of them

    @property
    def nodes(self) -> int:
        return -(-self.size // self.per_node)

    @property
    def others(self) -> float:
        """The share of the ranks that are others."""
        return (self.size - 1) / self.size


@dataclass(frozen=True)
class Links:
    """What connects ranks: each has one link in its node, and one to other nodes."""

    ranks_per_node: int
    node_bytes_per_s: float  # in one direction
    net_bytes_per_s: float
    node_latency_s: float = 0.0  # of a message
    net_latency_s: float = 0.0

    def group(self, size: int, stride: int = 1) -> Group:
        """`size` ranks, of which neighbours stand `stride` apart."""
        return Group(size, min(size, max(1, self.ranks_per_node // stride)))


def links_of(cluster: Cluster) -> Links:
    """The links of a cluster."""
    return Links(
        cluster.ranks_per_node,
        cluster.node_bytes_per_s,
        cluster.net_bytes_per_s,
        cluster.node_latency_s,
        cluster.net_latency_s,
    )


def _flow(links: Links, group: Group) -> float:
    """Bytes a second through each rank, where all links of a node are in use."""
    if group.nodes == 1:
        return links.node_bytes_per_s
    return min(links.node_bytes_per_s, group.per_node * links.net_bytes_per_s)


def _ring(links: Links, group: Group, total_bytes: float) -> float:
    """Seconds to scatter or to gather so many bytes."""
    latency = links.node_latency_s
    if group.nodes > 1:
        latency = max(latency, links.net_latency_s)
    return total_bytes * group.others / _flow(links, group) + (group.size - 1) * latency


def _hierarchical(links: Links, group: Group, total_bytes: float) -> float:
    """Seconds to scatter or to gather so many bytes."""
    inside, nodes = group.per_node, group.nodes
    across = total_bytes / inside * (nodes - 1) / nodes / links.net_bytes_per_s
    within = total_bytes * (inside - 1) / inside / links.node_bytes_per_s
    messages = math.ceil(math.log2(nodes))
    return across + within + (inside - 1) * links.node_latency_s + messages * links.net_latency_s


def reduce_scatter(links: Links, group: Group, total_bytes: float) -> Cost:
    """total_bytes: of all that is scattered."""
    if group.size == 1 or not total_bytes:
        return FREE
    seconds = min(_ring(links, group, total_bytes), _hierarchical(links, group, total_bytes))
    return Cost(seconds, total_bytes * group.others)


all_gather = reduce_scatter  # the same messages, the other way; total_bytes: all that is gathered


def all_reduce(links: Links, group: Group, total_bytes: float) -> Cost:
    """A reduce-scatter and an all-gather. total_bytes: what one rank has."""
    half = reduce_scatter(links, group, total_bytes)
    return Cost(2 * half.seconds, 2 * half.sent_bytes)


def rooted(links: Links, group: Group, total_bytes: float, messages: int = 1) -> Cost:
    """A reduction to one rank or a broadcast from one rank, in a chain whose parts flow.

    messages: how many such collectives share the bytes.
    """
    if group.size == 1 or not total_bytes:
        return FREE
    hops = (group.per_node - 1) * links.node_latency_s
    hops += math.ceil(math.log2(group.nodes)) * links.net_latency_s
    seconds = total_bytes / _flow(links, group) + messages * hops
    return Cost(seconds, total_bytes * group.others)


def all_to_all(links: Links, group: Group, mean_bytes: float, most_bytes: float) -> Cost:
    """Each rank has something for each. mean_bytes: what a rank sends, its own share included;
    most_bytes: the most that one rank sends or gets, likewise. Ranks send to one after the other.
    """
    if group.size == 1 or not most_bytes:
        return FREE
    inside, nodes = group.per_node, group.nodes
    near = most_bytes * (inside - 1) / group.size / links.node_bytes_per_s
    far = most_bytes * (group.size - inside) / group.size / links.net_bytes_per_s
    latency = (inside - 1) * links.node_latency_s + (nodes - 1) * links.net_latency_s
    return Cost(max(near, far) + latency, mean_bytes * group.others)
