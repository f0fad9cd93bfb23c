"""The collectives of a compiled program: kind, size, group and number, read from its HLO text."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

from trinityx_jax.plan.hlo import visits

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(rf"%?([\w.-]+) = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_IOTA = re.compile(r"replica_groups=\[(?:\d+,)*(\d+)\]<=")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_PARTITIONS = re.compile(r"\bnum_partitions=(\d+)")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """`places` of the program execute a collective `trips` times each.

    Every execution gives every device `bytes` of result in arrays of `shapes`, written as HLO does:
    bf16[4096,2752]; `group` devices take part together. `trips` multiplies the loops around it
    (layers); `endless` says that one of them, counted as one trip, has no length in the text (the
    tokens of a decoding loop).
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    group: int
    places: int
    trips: int = 1
    endless: bool = False

    @property
    def count(self) -> int:
        """Executions."""
        return self.places * self.trips

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device must send at least, for all executions, in a ring's algorithm."""
        g = self.group
        share = {
            "all-gather": (g - 1) / g,
            "all-reduce": 2 * (g - 1) / g,
            "reduce-scatter": g - 1,  # its operand is g times the result
            "all-to-all": (g - 1) / g,
            "collective-permute": 1,
        }[self.kind]
        return share * self.bytes * self.count


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled program, equal ones added up, the largest total first.

    An asynchronous collective that a TPU fuses with other work stands in the text up to three times
    (start, work, done) with one channel: it counts once. Both branches of a condition count.
    """
    partitions = int(match[1]) if (match := _PARTITIONS.search(text)) else 1
    seen: set[tuple[int, str]] = set()
    counts: collections.Counter[Collective] = collections.Counter()
    for visit in visits(text):
        for line in visit.lines:
            if not (match := _INSTRUCTION.search(line)):
                continue
            name, result, kind, start = match.groups()
            channel = _CHANNEL.search(line)
            key = (visit.home, channel[1] if channel else name)
            if key in seen:
                continue
            seen.add(key)
            shapes = _shapes(result, second=start is not None and kind != "all-reduce")
            one = Collective(
                kind,
                tuple(f"{dtype}[{dims}]" for dtype, dims in shapes),
                sum(_bytes(dtype, dims) for dtype, dims in shapes),
                _group(line, partitions),
                1,
                visit.times,
                visit.endless,
            )
            counts[one] += 1
    found = [dataclasses.replace(one, places=n) for one, n in counts.items()]
    return sorted(found, key=lambda c: (-c.bytes * c.count, c))


def _shapes(result: str, *, second: bool) -> list[tuple[str, str]]:
    """(dtype, dimensions) of a result; a start's tuple holds the operand first, `second` skips it.

    An all-gather of n arrays at once starts with n operands and then n results.
    """
    found = _SHAPE.findall(result)
    if not second:
        return found
    scalars = [shape for shape in found if shape[0] == "u32" and not shape[1]]
    arrays = [shape for shape in found if shape not in scalars]
    return arrays[len(arrays) // 2 :]


def _bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.ceil(math.prod(int(d) for d in dims.split(",") if d) * bits / 8)


def _group(line: str, partitions: int) -> int:
    """How many devices take part together."""
    if match := _IOTA.search(line):
        return int(match[1])
    if match := _MESH.search(line):
        sizes = dict(pair.strip("'\"").replace("'", "").split("=") for pair in match[1].split(","))
        group = 1
        for axis in filter(None, match[2].split(",")):
            name, _, part = axis.strip().partition(":")  # 'x':(2)4 is a part of an axis
            size = part.partition(")")[2] if part else sizes[name.strip("'\"")]
            group *= int(size)
        return group
    if match := _LISTED.search(line):
        return len(match[1].split(","))
    return partitions
