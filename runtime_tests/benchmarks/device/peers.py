"""One peer's completion from received latents, in a process and an environment of its own: no import of this project.

    PYTHON peers.py SPEC.json

SPEC: `system`, `bf16` (whether the processor computes in it), `checkpoint` (a diffusers folder), `tiny` (an
AutoencoderTiny folder, or null for the checkpoint's own decoder), `work` (a folder for what a peer prepares once),
`prompt`, `negative`, `guidance`, `steps`, `prepare` (only do that), and `jobs`: `k`, `latents` (npy, float32
[1, 4, h, w]), `out` (files' prefix). The last line printed is JSON.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def diffusers_pipeline(spec: dict[str, Any], dtype: Any, compiled: bool) -> Any:
    import torch
    from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(spec["checkpoint"], torch_dtype=dtype, safety_checker=None)
    if spec["tiny"]:
        pipe.vae = AutoencoderTiny.from_pretrained(spec["tiny"], torch_dtype=dtype)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    if dtype is torch.bfloat16:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    return pipe


def openvino_pipeline(spec: dict[str, Any], kind: str) -> Any:
    """optimum-intel's: bf16 by its hint, `int8` its weight-only export, `hybrid` its calibrated one."""
    from diffusers import DDIMScheduler
    from optimum.intel import OVStableDiffusionPipeline

    folder = Path(spec["work"]) / f"optimum-intel-{kind}{'-tiny' if spec['tiny'] else ''}"
    bf16 = spec["bf16"] and kind != "fp32"
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32", "PERFORMANCE_HINT": "LATENCY"}
    if spec["prepare"] and not (folder / "model_index.json").exists():
        source = with_tiny(spec) if spec["tiny"] else spec["checkpoint"]
        made = OVStableDiffusionPipeline.from_pretrained(
            source, export=True, compile=False, quantization_config=quantisation(spec, kind), safety_checker=None
        )
        made.save_pretrained(folder)
        return None
    if spec["prepare"]:
        return None
    pipe = OVStableDiffusionPipeline.from_pretrained(folder, compile=False, ov_config=hint, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.reshape(1, spec["height"], spec["width"], num_images_per_prompt=1)
    pipe.compile()
    return pipe


def quantisation(spec: dict[str, Any], kind: str) -> Any:
    from optimum.intel import OVWeightQuantizationConfig

    if kind == "int8":
        return OVWeightQuantizationConfig(bits=8)
    if kind == "hybrid":
        prompts = [spec["prompt"], spec["negative"] or "a drawing"]
        return OVWeightQuantizationConfig(bits=8, dataset=prompts, num_samples=8, quant_method="hybrid")
    return None


def with_tiny(spec: dict[str, Any]) -> Path:
    """A copy of the checkpoint by links, in which the tiny decoder is the decoder."""
    source, folder = Path(spec["checkpoint"]), Path(spec["work"]) / "checkpoint-tiny"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        to = folder / entry.name
        if not to.exists() and entry.name not in ("vae", "model_index.json"):
            to.symlink_to(entry.resolve())
    if not (folder / "vae").exists():
        (folder / "vae").symlink_to(Path(spec["tiny"]).resolve())
    index = json.loads((source / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def complete(pipe: Any, spec: dict[str, Any], job: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The pipeline's own loop, entered at step k: both branches of guidance in one batch."""
    import torch

    text, negative = text_states(pipe, spec)
    pipe.scheduler.set_timesteps(spec["steps"])
    x = torch.from_numpy(np.load(job["latents"])).to(dtype)
    usage, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with torch.inference_mode():
        for t in pipe.scheduler.timesteps[job["k"] :]:
            n, c = unet(pipe, torch.cat([x, x]), t, torch.cat([negative, text])).chunk(2)
            x = pipe.scheduler.step(n + spec["guidance"] * (c - n), t, x, return_dict=False)[0]
        middle = time.perf_counter()
        picture = pipe.vae.decode(x / pipe.vae.config.scaling_factor, return_dict=False)[0]
        image = pipe.image_processor.postprocess(picture.detach(), output_type="pil")[0]
        image.save(job["out"] + ".png")
    ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    np.save(job["out"] + ".npy", x.float().numpy()[0])
    return {
        "k": job["k"],
        "seconds": ended - started,
        "steps_s": middle - started,
        "decode_s": ended - middle,
        "cpu_s": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
    }


def unet(pipe: Any, x: Any, t: Any, states: Any) -> Any:
    return pipe.unet(sample=x, timestep=t, encoder_hidden_states=states, return_dict=False)[0]


def text_states(pipe: Any, spec: dict[str, Any]) -> tuple[Any, Any]:
    """Before the clock starts, as our device does it while the cloud works."""
    found = pipe.encode_prompt(spec["prompt"], "cpu", 1, True, negative_prompt=spec["negative"])
    return found[0], found[1]


def stable_diffusion_cpp(spec: dict[str, Any]) -> dict[str, Any]:
    """It cannot be entered at step k: two short runs give the time of a step, and the rest is texts and its decoder."""
    from stable_diffusion_cpp import StableDiffusion

    kind = spec["system"].rpartition(" ")[2]
    options = {"taesd_path": str(Path(spec["tiny"]) / "diffusion_pytorch_model.safetensors")} if spec["tiny"] else {}
    started = time.perf_counter()
    cores = len(os.sched_getaffinity(0))  # left to itself it takes one thread of two virtual cores
    model = StableDiffusion(model_path=spec["checkpoint"], wtype=kind, verbose=False, n_threads=cores, **options)
    load, taken = time.perf_counter() - started, {}
    for count in (1, 1, 3):  # the first is for what is allocated then
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        model.generate_image(
            prompt=spec["prompt"], negative_prompt=spec["negative"], cfg_scale=spec["guidance"], height=spec["height"],
            width=spec["width"], sample_steps=count, sample_method="euler", seed=1,
        )  # fmt: skip
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken[count] = np.array([seconds, cpu])
    step = (taken[3] - taken[1]) / 2
    rest, runs = taken[1] - step, []
    for job in spec["jobs"]:
        steps = step * (spec["steps"] - job["k"])
        seconds, cpu = steps + rest
        one = {"seconds": seconds, "steps_s": steps[0], "decode_s": rest[0], "cpu_s": cpu}
        runs.append({"k": job["k"]} | {name: float(value) for name, value in one.items()})
    return {"load_s": load, "runs": runs}


def run(spec: dict[str, Any]) -> dict[str, Any]:
    system = spec["system"]
    if system.startswith("stable-diffusion.cpp"):
        return stable_diffusion_cpp(spec)
    import torch

    torch.manual_seed(0)
    started = time.perf_counter()
    ours = system.startswith("diffusers")
    dtype = torch.bfloat16 if "bf16" in system and ours else torch.float32
    if ours:
        pipe = diffusers_pipeline(spec, dtype, "compiled" in system)
    else:
        pipe = openvino_pipeline(spec, system.removeprefix("optimum-intel "))
    if spec["prepare"]:
        return {}
    gc.collect()
    load = time.perf_counter() - started
    started = time.perf_counter()
    last = spec["jobs"][0] | {"k": spec["steps"] - 2, "out": spec["jobs"][0]["out"] + ".warm"}
    complete(pipe, spec, last, dtype)  # what is compiled, or allocated on first use
    first = time.perf_counter() - started
    runs = [complete(pipe, spec, job, dtype) for job in spec["jobs"]]
    return {"load_s": load, "warm_up_s": first, "runs": runs}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    result = run(asked)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # getrusage's has the parent's too
    assert peak is not None
    result["peak_bytes"] = int(peak[1]) * 1024
    print(json.dumps(result))
