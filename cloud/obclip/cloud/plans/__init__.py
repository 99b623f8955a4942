"""Which policies a server runs: per pair and per class of request, from a file beside this one or of the operator's.

    [[class]]                 # the first class that a request fits is its own
    candidates = 2            # at most so many candidates (default: any number)
    handoff = 7               # at most so many steps in the cloud (default: any number)
    shared_unconditional = 0  # policies (obclip.cloud.policies); step counts are those of `steps` solver steps
    prefix = 3
    deep_cache = { depth = 2, every = 2 }
    published_cache = { attention_from = 4, skip_from = 6, refresh = 5 }  # the ObCLIP paper's, and its reuse of the
    published_reuse = 4                                                   # pivot's attention maps before that step

A class depends on what the observer sees anyway: the number of candidates, of steps, and the guidance scale.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from obclip.cloud.plan import Plan, Policy, build_plan
from obclip.cloud.policies import (
    DeepCache,
    GuidanceFrom,
    Prefix,
    PublishedCache,
    PublishedReuse,
    SharedUnconditional,
    Tree,
)
from obclip.core.errors import InputError
from obclip.core.files import read_text
from obclip.core.wire import Request

PLAIN = "plain"
_KEYS = ("shared_unconditional", "prefix", "tree", "guidance_from", "deep_cache", "published_cache", "published_reuse")
_TABLES = {  # key -> (wanted, optional)
    "deep_cache": (("depth", "every"), ("first",)),
    "published_cache": (("attention_from", "skip_from"), ("refresh",)),
}


@dataclass(frozen=True)
class RequestClass:
    """settings: policy name to its value in the file. depth: the UNet's up layers."""

    candidates: int
    handoff: int
    settings: dict[str, Any]
    depth: int

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
            elif name == "deep_cache":
                first = max(at(value.get("first", 1)), 1)
                found.append(DeepCache.every(value["every"], value["depth"], request.handoff, first))
            elif name == "published_cache":
                attention, skips = at(value["attention_from"]), at(value["skip_from"])
                found.append(PublishedCache(attention, skips, self.depth, value.get("refresh", 5)))
            else:
                found.append(PublishedReuse(at(value)))
        return found


@dataclass(frozen=True)
class Planner:
    """Requests to plans. name: of the file. steps: the solver steps that the file's numbers are meant for.

    InputError for passes of one row where attention maps are shared: there is no room beside the pivot.
    """

    name: str
    steps: int
    classes: tuple[RequestClass, ...]
    max_rows: int = 64
    guidance_distilled: bool = False

    def __post_init__(self) -> None:
        if self.max_rows < 2 and any(c.settings.get("published_reuse") for c in self.classes):
            raise InputError(
                f"max_rows is {self.max_rows}, and the plan {self.name} shares attention maps between rows "
                "(published_reuse): raise max_rows to 2 or more, or choose another plan"
            )

    def policies(self, request: Request) -> list[Policy]:
        n, k = len(request.candidates), request.handoff
        fit = next((c for c in self.classes if n <= c.candidates and k <= c.handoff), None)
        return fit.policies(request, self.steps) if fit else []

    def __call__(self, request: Request) -> Plan:
        return build_plan(request, self.policies(request), self.max_rows, self.guidance_distilled)


def shipped_plans() -> tuple[str, ...]:
    """Names of the plans that come with this package: those of pairs."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def default_plan(pair: str) -> str:
    """The plan of a pair's own, or "plain" for one that has none."""
    return pair if pair in shipped_plans() else PLAIN


def read_plan(source: str | Path) -> tuple[str, str]:
    """A plan's name and its TOML; "plain" has none. InputError for what is no plan's name, or a file not there."""
    name, path = str(source), Path(source)
    if name == PLAIN:
        return PLAIN, ""
    if path.suffix == ".toml":
        return path.stem, read_text(path)
    if name not in shipped_plans():
        known = ", ".join((PLAIN, *shipped_plans()))
        raise InputError(f"no plan called {name!r}; there are {known}, or pass the path of a .toml file")
    return name, (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf8")


def load_planner(
    source: str | Path, steps: int, depth: int, max_rows: int = 64, guidance_distilled: bool = False
) -> Planner:
    """The planner of a shipped plan, a TOML file, or "plain" (nothing reused). steps: the pair's; depth: the UNet's.

    InputError for what is no plan, cannot be read or means nothing.
    """
    name, text = read_plan(source)
    classes = () if source == PLAIN else _classes(name, text, depth)
    return Planner(name, steps, classes, max_rows, guidance_distilled)


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
        if key in _TABLES:
            wanted, more = _TABLES[key]
            known = isinstance(value, dict) and set(wanted) <= set(value) <= {*wanted, *more}
            if not known or not all(_whole(v, 1) for v in value.values()):
                raise InputError(f"{where}: {key} must be {{ {', '.join((*wanted, *more))} }}, whole numbers from 1")
            if value.get("depth", 0) > depth:
                raise InputError(f"{where}: deep_cache has depth {value['depth']}; this UNet has {depth} up layers")
        elif key == "tree":
            if not isinstance(value, list) or not value or not all(map(_whole, value)) or value != sorted(value):
                raise InputError(f"{where}: tree must be a rising list of steps")
        elif not _whole(value):
            raise InputError(f"{where}: {key} is {value!r}; it must be a step, a whole number from 0")
    return RequestClass(limits[0], limits[1], values, depth)


def _whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
