"""What a list of prompts would send, without sending anything: candidates, or the reason for a refusal.

python examples/check_prompts.py prompts.txt --policy default
"""

import argparse
from collections import Counter
from pathlib import Path

from obclip.edge import ObclipError, candidate_set, load_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="one prompt a line")
    parser.add_argument("--policy", default="default")
    args = parser.parse_args()
    policy, outcomes = load_policy(args.policy), Counter()
    for prompt in filter(None, args.file.read_text(encoding="utf8").splitlines()):
        try:
            found = candidate_set(prompt, policy)
        except ObclipError as error:
            outcomes["refused"] += 1
            print(f"refused  {prompt}: {error}")
            continue
        outcomes["hidden" if found.attributes else "public"] += 1
        print(f"N = {len(found.prompts):2}   {prompt}: {', '.join(found.attributes) or 'nothing is hidden'}")
    print(", ".join(f"{n} {name}" for name, n in outcomes.items()))


if __name__ == "__main__":
    main()
