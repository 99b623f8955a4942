"""The quality report draws what a user's run draws, and finds in a set of rows what it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from obclip.cloud.model import load_model
from obclip.core.pairs import load_pair
from obclip.edge import Bundle, Client, generate
from obclip.edge.demo import device_picture
from obclip.export.recipe.data import Drawings
from runtime_tests.benchmarks.pair_quality import Setting, Sides, choose, pictures

PAIR = load_pair("emoji")
CAPTIONS = ("noto style emoji of a woman with dark skin tone", "blob style emoji of a man")


def test_batched_pictures_are_those_of_a_users_run(large_folder: Path, bundle_folder: Path, cloud_url: str):
    bundle = Bundle.open(bundle_folder)
    sides = Sides(PAIR, load_model(PAIR, "cpu", "float32", large_folder), bundle)
    rows = [{"caption": caption} for caption in CAPTIONS]
    setting = Setting(PAIR.solver, PAIR.handoff_history, PAIR.guidance)
    drawn = pictures(sides, setting, rows, ["server", "hybrid-10", "device"])
    for i, row in enumerate(rows):
        with Client(cloud_url) as client:
            hybrid = generate(row["caption"], bundle=bundle, client=client, seed=1000 + i)
            server = generate(row["caption"], bundle=bundle, client=client, seed=1000 + i, handoff=PAIR.steps)
        users = {"hybrid-10": hybrid.image, "server": server.image, "device": device_picture(hybrid.job, bundle)}
        for method, image in users.items():
            assert np.abs(drawn[method][i].astype(int) - image.astype(int)).max() <= 2
    other = pictures(sides, replace(setting, history=not setting.history), rows, ["hybrid-10"])["hybrid-10"]
    assert (other != drawn["hybrid-10"]).any()


def test_every_rare_portrait_is_chosen_and_no_caption_twice():
    def row(i: int, age: str = "adult", activity: str = "portrait") -> dict[str, object]:
        return {"caption": f"caption {i // 2}", "age": age, "activity": activity, "split": "test_iid", "id": i}

    rows = [row(i) for i in range(20)] + [row(40, "older"), row(42, "child"), row(44, "child", "angel")]
    chosen = choose(Drawings(np.zeros((len(rows), 1, 1, 3), np.uint8), rows), "test_iid", 4, seed=0)
    captions = [r["caption"] for r in chosen]
    assert len(captions) == len(set(captions)) == 6
    assert {r["age"] for r in chosen[:2]} == {"older", "child"}
