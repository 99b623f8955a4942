"""A random sample of candidate prompts to be read by a person: `python -m runtime_tests.benchmarks.grammar_sample`.

Prints JSON lines {prompt, candidate}: captions of photographs and labelled prompts, one random candidate of each.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious import candidate_set, load_policy
from runtime_tests.labels import labelled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=Path, help="JSON lines with a prompt each")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    rng, policy = random.Random(args.seed), load_policy("default")
    captions = (
        [json.loads(line)["prompt"] for line in args.captions.read_text("utf8").splitlines()] if args.captions else []
    )
    ours = [row["prompt"] for row in labelled("prompts") if row["source"] == "written"]
    sources = [captions or ours, ours]
    written = 0
    while written < args.count:
        prompt = rng.choice(sources[written % 4 == 0])
        try:
            found = candidate_set(prompt, policy)
        except PrivacyError:
            continue
        if len(found.prompts) > 1:
            others = [p for i, p in enumerate(found.prompts) if i != found.index]
            print(json.dumps({"prompt": prompt, "candidate": rng.choice(others)}))
            written += 1


if __name__ == "__main__":
    main()
