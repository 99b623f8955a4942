"""How much of real English the parser reads, and how well: `python -m runtime_tests.benchmarks.coverage`.

Prompts of each file: share transformed, with nothing to hide, refused (and why); closure over every candidate. Labelled
prompts: recall and precision of detection by attribute, refusals, and what was missed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from obclip.core.errors import ObclipError
from obclip.edge.machine import machine
from obclip.edge.oblivious import Policy, candidate_set, load_policy
from runtime_tests.labels import FOLDER, detect, labelled


def read_prompts(path: Path) -> list[str]:
    lines = [line for line in path.read_text("utf8").splitlines() if line.strip()]
    return [json.loads(line)["prompt"] for line in lines] if path.suffix == ".jsonl" else lines


def cover(prompts: list[str], policy: Policy) -> dict[str, Any]:
    """Counts and seconds per prompt; every candidate of every set is expanded again and must give the same set."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    candidates = unclosed = 0
    spent = 0.0
    for prompt in prompts:
        start = time.perf_counter()
        try:
            found = candidate_set(prompt, policy).prompts
        except ObclipError as error:
            counts["refused"] += 1
            reasons[re.sub(r"(['\"]).*?\1", "…", str(error)).split(";")[0]] += 1
            continue
        finally:
            spent += time.perf_counter() - start
        counts["transformed" if len(found) > 1 else "left alone"] += 1
        if len(found) > 1:
            candidates += len(found)
            unclosed += sum(candidate_set(p, policy).prompts != found for p in found)
    shares = {k: round(n / len(prompts), 4) for k, n in counts.items()}
    return {
        "prompts": len(prompts),
        "share": shares,
        "candidates": candidates,
        "not_closed": unclosed,
        "ms_per_prompt": round(1e3 * spent / len(prompts), 3),
        "refused_because": dict(reasons.most_common(8)),
    }


def score(name: str, policy: Policy) -> dict[str, Any]:
    rows = labelled(name)
    found = detect(rows, policy)
    nameless = [r for r in rows if not any(m["attribute"] == "name" for m in r["mentions"])]
    refused = [r for r in found.prompts_refused if r in nameless]
    return {
        "prompts": len(rows),
        "recall": {a: round(found.recall(a), 4) for a in found.labelled},
        "recall_of_sent": {a: round(found.recall_of_sent(a), 4) for a in found.labelled if found.found[a]},
        "precision": {a: round(found.precision(a), 4) for a in found.labelled if found.found[a]},
        "mentions": dict(found.labelled),
        "refused_without_a_name": round(len(refused) / len(nameless), 4),
        "missed": found.missed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=Path, nargs="*", default=[], help="prompts: .jsonl with `prompt`, or lines")
    parser.add_argument("--policy", default="default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    policy = load_policy(args.policy)
    result: dict[str, Any] = {"machine": machine(), "policy": policy.name}
    result["files"] = {path.stem: cover(read_prompts(path), policy) for path in args.captions}
    result["labelled"] = {p.stem: score(p.stem, policy) for p in sorted(FOLDER.glob("*.jsonl"), reverse=True)}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf8")
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
