"""Training the audit model of `obclip.edge.audit` on captions of photographs.

`python -m obclip.export.audit_recipe --captions FILE.jsonl --out FOLDER`: a captions file has one JSON object a line,
its text under `prompt` or `caption`. The same captions give the same files, byte for byte.
"""
