"""The device graphs of a UNet on disk, each verified, with all weights in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from obclip.core.errors import InputError, VerificationError
from obclip.core.manifest import Variant
from obclip.export.components import random_tensor
from obclip.export.external import EXTERNAL_ABOVE_BYTES, SharedData
from obclip.export.graphs.attention import for_target
from obclip.export.graphs.unet import Layers, PassGraph, TextGraph, TimeGraph
from obclip.export.onnx_export import OPSET, forget_traces, quiet, store_weights_as_half
from obclip.export.sessions import cpu_session
from obclip.export.shapes import TIME_IDS
from obclip.export.verify import FLOORS_DB, psnr_db

TARGETS = ("cpu", "openvino", "any")  # any: attention as plain products, for providers' own rewrites
_STEPS = 3  # of the time graph's example
_TIMESTEPS = (999.0, 601.0, 0.0)


@dataclass(frozen=True)
class _Graph:
    """inputs: example tensors by name, in order. free: name -> axis -> its name."""

    role: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: list[str]
    free: dict[str, dict[int, str]]
    notes: dict[str, Any]

    def run(self) -> tuple[torch.Tensor, ...]:
        """In PyTorch, on the example."""
        if isinstance(self.module, _Positional):
            return self.module(*self.inputs.values())
        return self.module(**self.inputs)

    def shapes(self) -> list[tuple[int, ...]]:
        """Of what it gives, without computing it: maps of attention at full size take gigabytes."""
        with FakeTensorMode(allow_non_fake_inputs=True):
            return [tuple(output.shape) for output in self.run()]


class _Positional(nn.Module):
    """A pass whose named inputs come one by one, as graphs have them. Its shapes are fixed."""

    def __init__(self, graph: PassGraph, names: Sequence[str]) -> None:
        super().__init__()
        self.one_pass, self.names = graph, list(names)

    def forward(self, sample: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.one_pass(sample, dict(zip(self.names, rest, strict=True)))


def export_device_graphs(
    unet: UNet2DConditionModel,
    height: int,
    width: int,
    tokens: int,
    folder: Path,
    targets: Sequence[str] = ("cpu",),
    depth: int = 1,
    weights: str = "fp32",
    external_above_bytes: int = EXTERNAL_ABOVE_BYTES,
    verify: bool = True,
    merge: int = 1,
) -> tuple[Variant, ...]:
    """Write the graphs `any_fp32_time`, `any_fp32_text` and, for each target, `TARGET_fp32_full` and `_shallow`.

    height, width: of the latents, which passes are fixed to. folder: of the bundle's UNet; weights go to its
    `model.onnx_data` (shared with `model.onnx`, where that has one) or, below `external_above_bytes`, into each graph.
    depth: up layers that a shallow pass runs. weights: "fp32", or "fp16": stored so, computed in float32 (the floor is
    then 45 dB). verify: compare each graph with PyTorch. merge: of the tokens of the widest self-attentions, keys and
    values are of every `merge`-th row and column alone; 1 leaves them as they are. InputError: a UNet of another kind,
    size or depth, or sizes that `merge` does not divide; VerificationError: a graph is further from PyTorch than its
    floor.
    """
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    if height % multiple or width % multiple:
        raise InputError(f"latents are {height} x {width}; both must be multiples of {multiple} for device graphs")
    layers = Layers(unet, merge)
    if height % (multiple * merge) or width % (multiple * merge):
        raise InputError(
            f"latents are {height} x {width}; {merge} of their rows cannot be merged at the widest attention"
        )
    layers.part(depth)  # a depth that it does not have, before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    weights_bytes = sum(p.numel() * p.element_size() for p in unet.parameters())
    data = SharedData(folder / "model.onnx_data") if weights_bytes > external_above_bytes else None
    if data is not None and data.path.exists():
        data.adopt(folder / "model.onnx")
    with torch.no_grad():
        time, text = _time_graph(layers), _text_graph(layers, tokens)
        found = [_write(graph, "any", folder, data, weights, verify) for graph in (time, text)]
        given = _given(time, text)
        for target in targets:
            attend = for_target(target, TARGETS)
            sample = random_tensor((1, unet.config.in_channels, height, width), 3)
            for part, keep in ((None, (depth,)), (depth, ())):
                graph = _pass_graph(PassGraph(layers, attend, part, keep), sample, given, depth)
                found.append(_write(graph, target, folder, data, weights, verify))
                if part is None:
                    given["features"] = random_tensor(graph.shapes()[1], 7)
    return tuple(found)


def _time_graph(layers: Layers) -> _Graph:
    module, config = TimeGraph(layers), layers.unet.config
    inputs = {"timestep": torch.tensor(_TIMESTEPS[:_STEPS])}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
        inputs |= {
            "text_embeds": random_tensor((1, pooled), 4),
            "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]]),
        }
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = random_tensor((1, config.time_cond_proj_dim), 5)
    return _Graph("time", module, inputs, module.outputs, {"timestep": {0: "steps"}}, {})


def _text_graph(layers: Layers, tokens: int) -> _Graph:
    module = TextGraph(layers)
    inputs = {"encoder_hidden_states": random_tensor((1, tokens, layers.unet.config.cross_attention_dim), 6)}
    return _Graph("text", module, inputs, module.outputs, {}, {})


def _given(time: _Graph, text: _Graph) -> dict[str, torch.Tensor]:
    """What one step's pass takes: a row of the time graph's outputs, and the text graph's."""
    rows = [value[1:2] for value in time.run()]
    return dict(zip(time.outputs, rows, strict=True)) | dict(zip(text.outputs, text.run(), strict=True))


def _pass_graph(graph: PassGraph, sample: torch.Tensor, given: dict[str, torch.Tensor], depth: int) -> _Graph:
    names = [*graph.features, *graph.inputs]
    inputs = {"sample": sample} | {name: given[name] for name in names}
    role = "full" if graph.depth is None else "shallow"
    notes = {"merge": graph.layers.merge} if graph.layers.merge > 1 else {}
    return _Graph(role, _Positional(graph, names).eval(), inputs, graph.outputs, {}, {"depth": depth} | notes)


def _write(graph: _Graph, target: str, folder: Path, data: SharedData | None, weights: str, verify: bool) -> Variant:
    path = folder / f"{target}_fp32_{graph.role}.onnx"
    model = _trace(graph)
    if weights == "fp16":
        store_weights_as_half(model)
    if data is None:
        ir.save(model, path)
    else:
        data.save(model, path)
    inputs, outputs = ({str(v.name): _shape(v) for v in values} for values in (model.graph.inputs, model.graph.outputs))
    return Variant(
        "unet",
        graph.role,
        "fp32",
        target,
        f"{folder.name}/{path.name}",
        inputs,
        outputs,
        graph.notes | (_verify(graph, path, FLOORS_DB[weights]) if verify else {}),
    )


def _trace(graph: _Graph) -> ir.Model:
    axes = {name: {axis: torch.export.Dim.DYNAMIC for axis in graph.free.get(name, {})} for name in graph.inputs}
    by_place = isinstance(graph.module, _Positional)
    with quiet():
        program = torch.onnx.export(
            graph.module, tuple(graph.inputs.values()) if by_place else (), kwargs=None if by_place else graph.inputs,
            dynamo=True, opset_version=OPSET, input_names=list(graph.inputs), output_names=graph.outputs,
            dynamic_shapes=None if by_place else axes,
        )  # fmt: skip
    assert program is not None
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and value.shape is not None:
                value.shape[axis] = ir.SymbolicDim("steps")
    forget_traces(program.model)
    return program.model


def _shape(value: ir.Value) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in value.shape or ()]


def _verify(graph: _Graph, path: Path, floor_db: float) -> dict[str, Any]:
    """PSNR in dB of the worst output, against PyTorch on the example."""
    session = cpu_session(path)
    found: list[NDArray[Any]] = session.run(graph.outputs, {n: v.numpy() for n, v in graph.inputs.items()})
    wanted = [value.numpy() for value in graph.run()]
    psnr = min(psnr_db(w.astype(np.float64), f.astype(np.float64)) for w, f in zip(wanted, found, strict=True))
    if not psnr >= floor_db:
        raise VerificationError(
            f"{path.name}: {psnr:.1f} dB from PyTorch, wanted {floor_db:.0f} or more; nothing is kept"
        )
    return {"psnr_db": round(psnr, 2), "floor_db": floor_db}
