"""The computations of a compiled program's HLO text, and how often each of them runs.

Only what the collectives need: instructions stay lines of text.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")
_WHILE = re.compile(r"[ )]while\(")
_OWN_LOOP_OR_BRANCH = re.compile(r"[ )](while|conditional|call)\(")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COMPARE = re.compile(r" compare\(.*direction=(\w+)")
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_COUNTER = re.compile(r" get-tuple-element\(.*\), index=(\d+)")
_STATE = re.compile(r"ROOT .* tuple\((.*?)\)")
_ADD = re.compile(r" add\(%?[\w.-]+, %?([\w.-]+)\)")


@dataclasses.dataclass(frozen=True)
class Visit:
    """One computation at one place of the program.

    `home` is the same for all pieces of one loop body, branch or the entry: a fusion belongs to
    whoever calls it. `times` counts the trips of the loops around it; `endless` says that one of
    them, counted as one trip, has no number of trips in the text.
    """

    lines: tuple[str, ...]
    home: int
    times: int
    endless: bool


def visits(text: str) -> Iterator[Visit]:
    """Every computation of the program, once for each place that calls it, the entry first."""
    computations, entry = _computations(text)
    waiting = [(entry, 0, 1, False)]
    homes = 0
    while waiting:
        name, home, times, endless = waiting.pop()
        yield Visit(computations[name], home, times, endless)
        for line in computations[name]:
            called = [
                name.strip(" %")
                for _, names in _CALLED.findall(line)
                for name in names.strip("{}").split(",")
            ]
            if not called:
                continue
            trips = _trips(line, computations) if _WHILE.search(line) else 1
            for other in called:
                if other not in computations:
                    continue
                if _OWN_LOOP_OR_BRANCH.search(line):
                    homes += 1
                    inner = homes
                else:
                    inner = home
                waiting.append((other, inner, times * (trips or 1), endless or trips is None))


def _computations(text: str) -> tuple[dict[str, tuple[str, ...]], str]:
    """Instructions of each computation by name, and the entry's name."""
    found: dict[str, tuple[str, ...]] = {}
    entry, name, lines = "", None, []
    for line in text.splitlines():
        header = _HEADER.match(line) if name is None else None
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif name is not None and line == "}":
            found[name], name = tuple(lines), None
        elif name is not None:
            lines.append(line)
    return found, entry


def _trips(line: str, computations: dict[str, tuple[str, ...]]) -> int | None:
    """How often a while loop runs; None where the text does not say.

    TPU programs carry no known_trip_count, but a `lax.scan` counts from 0 and stops by a condition
    that is nothing but `counter < constant`. It counts by 1, or by more where the compiler put
    several trips into one.
    """
    if known := _KNOWN_TRIPS.search(line):
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.-]+)", line)
    lines, waiting = [], [condition[1]] if condition else []
    while waiting:
        body = computations.get(waiting.pop(), ())
        lines += body
        waiting += [
            names.strip("%") for piece in body for key, names in _CALLED.findall(piece) if key
        ]
    compares = [match[1] for piece in lines if (match := _COMPARE.search(piece))]
    limits = [int(match[1]) for piece in lines if (match := _CONSTANT.search(piece))]
    logic = any(re.search(r"[ )](and|or|not)\(", piece) for piece in lines)
    if compares != ["LT"] or len(limits) != 1 or logic:
        return None
    body = re.search(r"\bbody=%?([\w.-]+)", line)
    return math.ceil(limits[0] / _stride(lines, computations[body[1]] if body else ()))


def _stride(condition: Sequence[str], body: Sequence[str]) -> int:
    """By how much a loop's body adds to the counter that its condition compares."""
    counters = [match[1] for line in condition if (match := _COUNTER.search(line))]
    states = [match[1] for line in body if (match := _STATE.search(line))]
    if not counters or not states:
        return 1
    parts = re.sub(r"/\*.*?\*/", "", states[-1]).split(",")
    named = {line.split(" = ")[0].strip(" %"): line for line in body if " = " in line}
    added = _ADD.search(named.get(parts[int(counters[0])].strip(" %"), ""))
    constant = added and _CONSTANT.search(named.get(added[1], ""))
    return int(constant[1]) if constant else 1
