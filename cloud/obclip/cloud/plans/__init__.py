"""Which policies a server runs: per pair and per class of request, from a file beside this one or of the operator's.

    [[class]]                 # the first class that a request fits is its own
    candidates = 2            # at most so many candidates (default: any number)
    handoff = 7               # at most so many steps in the cloud (default: any number)
    shared_unconditional = 0  # policies (obclip.cloud.policies); step counts are those of `steps` solver steps
    prefix = 3
    deep_cache = { depth = 2, every = 2 }

A class depends on what the observer sees anyway: the number of candidates, of steps, and the guidance scale.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from obclip.cloud.plan import Plan, Policy, build_plan
from obclip.cloud.policies import DeepCache, GuidanceFrom, Prefix, SharedUnconditional, Tree
from obclip.core.errors import InputError
from obclip.core.wire import Request

PLAIN = "plain"
_KEYS = ("shared_unconditional", "prefix", "tree", "guidance_from", "deep_cache")


@dataclass(frozen=True)
class RequestClass:
    """settings: policy name to its value in the file."""

    candidates: int
    handoff: int
    settings: dict[str, Any]

    def policies(self, request: Request, steps: int) -> list[Policy]:
        """For a request of another number of steps than `steps`, step numbers are scaled, rounded down."""

        def at(step: int) -> int:
            return step * request.steps // steps

        found: list[Policy] = []
        for name, value in self.settings.items():
            if name == "shared_unconditional":
                found.append(SharedUnconditional(at(value)))
            elif name == "prefix":
                found.append(Prefix(at(value)))
            elif name == "tree":
                found.append(Tree(tuple(at(v) for v in value)))
            elif name == "guidance_from":
                found.append(GuidanceFrom(at(value)))
            else:
                first = max(at(value.get("first", 1)), 1)
                found.append(DeepCache.every(value["every"], value["depth"], request.handoff, first))
        return found


@dataclass(frozen=True)
class Planner:
    """Requests to plans. name: of the file. steps: the solver steps that the file's numbers are meant for."""

    name: str
    steps: int
    classes: tuple[RequestClass, ...]
    max_rows: int = 64
    guidance_distilled: bool = False

    def policies(self, request: Request) -> list[Policy]:
        n, k = len(request.candidates), request.handoff
        fit = next((c for c in self.classes if n <= c.candidates and k <= c.handoff), None)
        return fit.policies(request, self.steps) if fit else []

    def __call__(self, request: Request) -> Plan:
        return build_plan(request, self.policies(request), self.max_rows, self.guidance_distilled)


def load_planner(
    source: str | Path, steps: int, depth: int, max_rows: int = 64, guidance_distilled: bool = False
) -> Planner:
    """The planner of a pair's name, a TOML file, or "plain" (nothing reused). steps: the pair's; depth: the UNet's.

    A pair without a file of its own is run plain. InputError for a file that cannot be read or means nothing.
    """
    if source == PLAIN:
        return Planner(PLAIN, steps, (), max_rows, guidance_distilled)
    path = Path(source)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the plan {path} cannot be read ({type(error).__name__})") from error
        name = path.stem
    else:
        found = resources.files(__name__) / f"{source}.toml"
        if not found.is_file():
            return Planner(PLAIN, steps, (), max_rows, guidance_distilled)
        name, text = str(source), found.read_text(encoding="utf8")
    return Planner(name, steps, _classes(name, text, depth), max_rows, guidance_distilled)


def _classes(name: str, text: str, depth: int) -> tuple[RequestClass, ...]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the plan {name} is no TOML: {error}") from error
    if set(tables) != {"class"} or not isinstance(tables["class"], list):
        raise InputError(f"the plan {name} has keys {sorted(tables)}; it must be a list of [[class]]")
    if not all(isinstance(table, dict) for table in tables["class"]):
        raise InputError(f"the plan {name}: class must be a list of tables, [[class]]")
    return tuple(_class(f"the plan {name}, class {i + 1}", table, depth) for i, table in enumerate(tables["class"]))


def _class(where: str, table: dict[str, Any], depth: int) -> RequestClass:
    values = dict(table)
    limits = [values.pop("candidates", 10**6), values.pop("handoff", 10**6)]
    if any(not _whole(limit, 1) for limit in limits):
        raise InputError(f"{where}: candidates and handoff must be whole numbers from 1")
    for key, value in values.items():
        if key not in _KEYS:
            raise InputError(f"{where}: {key} is no policy; known are {', '.join(_KEYS)}")
        if key == "deep_cache":
            known = isinstance(value, dict) and {"depth", "every"} <= set(value) <= {"depth", "every", "first"}
            if not known or not all(_whole(v, 1) for v in value.values()):
                raise InputError(f"{where}: deep_cache must be {{ depth, every, first }}, whole numbers from 1")
            if value["depth"] > depth:
                raise InputError(f"{where}: deep_cache has depth {value['depth']}; this UNet has {depth} up layers")
        elif key == "tree":
            if not isinstance(value, list) or not value or not all(map(_whole, value)) or value != sorted(value):
                raise InputError(f"{where}: tree must be a rising list of steps")
        elif not _whole(value):
            raise InputError(f"{where}: {key} is {value!r}; it must be a step, a whole number from 0")
    return RequestClass(limits[0], limits[1], values)


def _whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
