"""The attacks' main rows as a Markdown table: `python -m runtime_tests.benchmarks.attacks.markdown FILE.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

# attack, target, metric (as they begin), what it means in a line
MAIN = (
    ("closure", "naive word swap", "guess where a set is not closed", "which member makes this very set"),
    ("closure", "ours", "sets that are not closed", "the same"),
    ("context", "ours: COCO, one gender", "top-1", "naive Bayes over the other words, captions as prior"),
    ("context", "ours: 10 leaking templates", "top-1 on what", "portraits with telling words (“five o'clock shadow”)"),
    ("context", "ours: 10 neutral templates", "top-1", "balanced control"),
    ("presence", "ours", "attributes mentioned, from the set", "which attributes a prompt mentions"),
    ("presence", "ours, padded", "attributes mentioned, from N", "the same, from sizes alone, padded"),
    ("repeats", "ours, no prior", "guess of one gender after M=20", "20 prompts with one hidden value"),
    ("repeats", "ours, prior from COCO", "guess of one gender after M=20", "the same, with captions as prior"),
    ("repeats", "random subset", "guess after M=3", "sending 6 random candidates of 30 instead of all"),
    ("order", "ours", "sets whose requests differ in bytes", "requests of every member, one seed"),
    ("timing", "ours, N=2", "cloud sees: handshake to request", "KS p-value by true index, real sockets"),
    ("timing", "ours, N=10", "cloud sees: answer to close", "the same"),
    ("retries", "lazy client", "bits about the index, one latent nan", "a client that checks only its own latent"),
    ("retries", "ours", "bits about the index, one latent nan", "one latent spoilt"),
    ("sockets", "ours", "socket calls after extraction", "sockets opened after extraction"),
    (
        "marking",
        "ours, no defence",
        "mark named, k=10, strength 0.02",
        "a cloud that marks latents, picture as JPEG 90",
    ),
    ("marking", "ours, noise 0.1", "mark named, k=10, strength 0.02", "the same, the device adds a little noise"),
    ("marking", "ours, no defence", "mark named, k=10, strength 0.2", "a stronger mark"),
    (
        "linkage",
        "ours, device's model known",
        "candidate named by pixels, k=10, JPEG",
        "a published picture, N latents kept",
    ),
    ("inversion", "hybrid-sd", "tokens of hidden attributes", "embeddings sent instead of candidates"),
    ("degraded", "ours", "bits an answer, half times four", "half the latents spoilt but finite; the user asks again"),
    ("degraded", "ours, latents compared", "bits an answer, half times four", "the same, latents compared first"),
    ("decoys", "decoys that change", "name guessed after 2 prompts", "marks with fresh alternatives each time"),
    ("detection", "ours", "sent in the clear, letters swapped", "an attribute word misspelt"),
    ("detection", "ours", "sent in the clear, letter dropped", "the same"),
    ("detection", "ours", "sent in the clear, paraphrase", "an attribute in other words"),
)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def find(rows: list[dict[str, Any]], attack: str, target: str, metric: str) -> dict[str, Any]:
    found = [
        r for r in rows if r["attack"] == attack and r["target"].startswith(target) and r["metric"].startswith(metric)
    ]
    exact = [r for r in found if r["target"] == target]
    return (exact or found)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    rows = json.loads(parser.parse_args().file.read_text("utf8"))["rows"]
    print("| attack | against | what is measured | value | without information | n | covered |")
    print("|---|---|---|---|---|---|---|")
    for attack, target, metric, meaning in MAIN:
        r = find(rows, attack, target, metric)
        print(
            f"| {meaning} | {r['target']} | {r['metric']} | {number(r['value'])} | {number(r['chance'])} | {r['n']} "
            f"| {r['covered']} |"
        )


if __name__ == "__main__":
    main()
