"""Nothing may leave after extraction: a whole run in a process of its own, with every socket call counted.

CPython's audit events show sockets made, connected and looked up; `send` on an open one raises no event, so the class's
methods are wrapped too. The line is drawn when `generate` reports that all latents are here, before one is taken.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from obclip.core.pairs import load_pair
from obclip.edge import Bundle

from .loopback import loopback_cloud, random_answer
from .row import Row
from .settings import Settings

PROMPT = "noto style emoji of a woman cook with dark skin tone"
LIMIT_S = 300
_SCRIPT = """
import json, socket, sys
calls = {"before": 0, "after": 0}
phase = "before"
def count(event, args):
    if event.startswith("socket."):
        calls[phase] += 1
sys.addaudithook(count)
def counted(name):
    plain = getattr(socket.socket, name)
    def method(self, *args, **settings):
        calls[phase] += 1
        return plain(self, *args, **settings)
    return method
for name in ("send", "sendall", "sendto", "sendmsg", "sendfile", "connect", "connect_ex"):
    setattr(socket.socket, name, counted(name))
from obclip.edge import Bundle, Client, generate
url, prompt, handoff, out = sys.argv[1:]
def tell(name, done, of):
    global phase
    if name == "cloud" and done == of:
        phase = "after"
with Client(url) as client:
    result = generate(prompt, bundle=Bundle.open("emoji"), client=client, handoff=int(handoff), progress=tell)
    result.save(out)
print(json.dumps(calls))
"""


def run(settings: Settings) -> list[Row]:
    before, after, requests = count_calls(PROMPT, load_pair("emoji").handoff)
    note = f"{before} before extraction; {requests} requests in all; finishing, decoding and saving are after it"
    return [Row("sockets", "ours", "socket calls after extraction", float(after), 0.0, 1, "theorem", note)]


def count_calls(prompt: str, handoff: int) -> tuple[int, int, int]:
    """Socket calls before and after extraction of one run, and the requests that reached the cloud."""
    bundle, pair = Bundle.open("emoji"), load_pair("emoji")
    with loopback_cloud(bundle, random_answer(bundle, pair, 0)) as (url, log), TemporaryDirectory() as folder:
        words = [sys.executable, "-c", _SCRIPT, url, prompt, str(handoff), str(Path(folder) / "a.png")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode:
            raise RuntimeError(f"the run failed: {done.stderr}")
        calls = json.loads(done.stdout)
        return calls["before"], calls["after"], len(log.requests)
