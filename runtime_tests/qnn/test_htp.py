"""The embedded pair on a phone's accelerator: compiled for Qualcomm's HTP, run in its emulator, no node on the CPU.

`make qnn` runs these, in an environment with onnxruntime-qnn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from obclip.core.pairs import load_pair
from obclip.edge.bundle import Bundle
from obclip.edge.complete import Guidance, first_latents
from obclip.export.targets.qnn import qnn_graph, quantise_w8a16
from obclip.export.targets.rewrite import fix_shapes, unique_names

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has an environment of its own: `make qnn` runs these")

from runtime_tests.qnn.htp import cpu_session, htp_session

DIMS = {"batch_size": 1, "height": 16, "width": 16, "latent_height": 16, "latent_width": 16}
PROMPTS = ("noto style emoji of a woman health worker with medium skin tone", "fluent style emoji of an old man", "")
Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Trajectory:
    """A completion in float32 from pure noise: the inputs of every pass, and the last latents."""

    bundle: Bundle
    unet: tuple[Feed, ...]
    latents: NDArray[np.float32]
    decoder: tuple[Feed, ...]


@pytest.fixture(scope="session")
def drawn() -> Trajectory:
    bundle, pair = Bundle.open("emoji"), load_pair("emoji")
    schedule = bundle.schedule(pair.solver, pair.steps)
    feeds: list[Feed] = []
    decoder: list[Feed] = []
    for seed, prompt in enumerate(PROMPTS):
        guide = Guidance(bundle.encode(prompt), bundle.encode(""), pair.guidance)
        x, x0 = first_latents(schedule, seed, bundle.latent_shape), None
        for i in range(schedule.steps):
            branches = [feed(x, schedule.timesteps[i], text) for text in (guide.text, guide.negative)]
            feeds += branches
            x, x0 = schedule.step(i, x, guided(bundle.session("unet").run, branches, guide.scale), x0, None)
        decoder.append({"latent_sample": (x / np.float32(bundle.manifest.latent_scale))[None]})
    return Trajectory(bundle, tuple(feeds), x, tuple(decoder))


def feed(x: NDArray[np.float32], timestep: float, text: Feed) -> Feed:
    return {"sample": x[None], "timestep": np.asarray(timestep, np.float32), **text}


def guided(run: Any, branches: list[Feed], scale: float) -> NDArray[np.float32]:
    text, negative = (run(**one)["out_sample"][0] for one in branches)
    return np.asarray(negative + np.float32(scale) * (text - negative), np.float32)


@pytest.fixture(scope="session")
def w8a16(drawn: Trajectory, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("w8a16"), {}
    for part, feeds in (("unet", drawn.unet[::5]), ("vae_decoder", drawn.decoder)):
        graph = qnn_graph(onnx.load(drawn.bundle.folder / part / "model.onnx"), DIMS)
        onnx.save(graph, folder / f"{part}.onnx")
        made[part] = folder / f"{part}_w8a16.onnx"
        quantise_w8a16(folder / f"{part}.onnx", made[part], feeds)
    return made


def output(session: ort.InferenceSession, inputs: Feed) -> NDArray[np.float32]:
    return session.run(None, inputs)[0]


def error(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(("part", "to_cpu", "to_float"), [("unet", 0.02, 0.12), ("vae_decoder", 0.01, 0.03)])
def test_htp_agrees_with_the_same_graph_on_the_cpu(drawn, w8a16, part: str, to_cpu: float, to_float: float):
    on_htp, on_cpu = htp_session(w8a16[part]), cpu_session(w8a16[part])
    in_float = cpu_session(drawn.bundle.folder / part / "model.onnx")
    feeds = drawn.unet[1::15] if part == "unet" else drawn.decoder
    for inputs in feeds:
        found = output(on_htp, inputs)
        assert error(found, output(on_cpu, inputs)) < to_cpu
        assert error(found, output(in_float, inputs)) < to_float


def test_a_whole_completion_on_htp(drawn, w8a16):
    """Fifteen guided steps from step 10 and the decoder: the picture is that of float32 on the CPU."""
    bundle, pair = drawn.bundle, load_pair("emoji")
    schedule = bundle.schedule(pair.solver, pair.steps)
    guide = Guidance(bundle.encode(PROMPTS[0]), bundle.encode(""), pair.guidance)
    start = drawn.unet[2 * pair.handoff]["sample"][0]
    unet, decoder = htp_session(w8a16["unet"]), htp_session(w8a16["vae_decoder"])

    def on_htp(**inputs: NDArray[Any]) -> Feed:
        return {"out_sample": output(unet, inputs)}

    finished = []
    for run in (bundle.session("unet").run, on_htp):
        x, x0 = start, None
        for i in range(pair.handoff, schedule.steps):
            branches = [feed(x, schedule.timesteps[i], text) for text in (guide.text, guide.negative)]
            x, x0 = schedule.step(i, x, guided(run, branches, guide.scale), x0, None)
        finished.append(x)
    wanted = bundle.decode(finished[0]).astype(float)
    sample = output(decoder, {"latent_sample": (finished[1] / np.float32(bundle.manifest.latent_scale))[None]})[0]
    found = ((np.clip(sample, -1, 1) + 1) * 127.5).transpose(1, 2, 0)
    psnr_db = 10 * np.log10(255**2 / np.mean((found - wanted) ** 2))
    print(f"completion on HTP against float32 on the CPU: {psnr_db:.1f} dB")
    assert psnr_db > 28


def test_a_compiled_graph_is_kept_and_gives_the_same(drawn, w8a16, tmp_path: Path):
    context = tmp_path / "unet_ctx.onnx"
    compiled = output(htp_session(w8a16["unet"], context), drawn.unet[4])
    assert {n.op_type for n in onnx.load(context).graph.node} >= {"EPContext"}
    binaries = list(tmp_path.glob("*.bin"))
    assert len(binaries) == 1
    assert binaries[0].stat().st_size > 500_000
    np.testing.assert_array_equal(output(htp_session(context), drawn.unet[4]), compiled)


def test_the_fault_that_flat_norms_goes_around_is_still_there(drawn, tmp_path: Path):
    """When this fails, HTP has been mended: `flat_norms` may go from `qnn_graph`."""
    graph = unique_names(fix_shapes(onnx.load(drawn.bundle.folder / "unet" / "model.onnx"), DIMS))
    onnx.save(graph, tmp_path / "graph.onnx")
    quantise_w8a16(tmp_path / "graph.onnx", tmp_path / "w8a16.onnx", drawn.unet[::5])
    inputs = drawn.unet[1]
    wanted = output(cpu_session(tmp_path / "w8a16.onnx"), inputs)
    assert error(output(htp_session(tmp_path / "w8a16.onnx"), inputs), wanted) > 0.2
