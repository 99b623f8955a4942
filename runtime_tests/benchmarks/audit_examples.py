"""The audit of ten prompts as a Markdown table: `python -m runtime_tests.benchmarks.audit_examples`."""

from __future__ import annotations

from obclip.edge.audit import AuditReport, audit

PROMPTS = (
    "a man walking down a street",
    "a portrait of a young woman, soft light",
    "a bride in a white wedding dress",
    "a man with a long beard",
    "a man doing a trick on a skateboard",
    "an old woman with grey hair and a walker",
    "a portrait of an asian woman in a red kimono",
    "a doctor talking to her patient",
    "a man with a beard and a woman in a long red dress",
    "a boy blowing out candles on a cake",
)


def row(prompt: str, report: AuditReport) -> str:
    words = [w for found in report.words.values() for w in found[:2]]
    said = ", ".join(f"{w.text} → {w.value} ({w.share:.0%})" for w in words) or "no word speaks"
    advice = report.suggestions[0] if report.suggestions else None
    drop = f"drop “{advice.drop}”: {advice.effective_n:.2f}" if advice else ""
    return (
        f"| {prompt} | {', '.join(report.hidden)} | {report.candidates} | {report.posterior.top1:.2f} "
        f"| {report.effective_n:.2f} | {said} | {drop} |"
    )


def main() -> None:
    print("| prompt | hidden | N | best guess | effective N | the words that speak | a rewording |")
    print("|---|---|---|---|---|---|---|")
    for prompt in PROMPTS:
        print(row(prompt, audit(prompt, "default")))


if __name__ == "__main__":
    main()
