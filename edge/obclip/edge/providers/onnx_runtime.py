"""ONNX Runtime's execution providers: those it was built with, and those that come as plugins of their own."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from obclip.core.cores import session_threads
from obclip.core.errors import BundleError, RunError
from obclip.core.files import remove_folder
from obclip.edge.providers.base import Opening

_SUFFIX = "ExecutionProvider"
_SILENT = 3  # errors only: warnings about constant folding are of no use to a user
_CACHED, _CACHED_DATA = "model.onnx", "model.onnx_data"
_AGAIN_S = 7 * 86_400.0  # from when a graph could not be kept; the disk may have been full


@dataclass(frozen=True)
class Plugin:
    """A provider that a package of its own registers (onnxruntime.register_execution_provider_library)."""

    package: str
    provider: str
    options: dict[str, str] = field(default_factory=dict)

    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def devices(self) -> list[Any]:
        """Registers the library, once a process. BundleError if it finds no device to run on."""
        known = [d for d in ort.get_ep_devices() if d.ep_name == self.provider]
        if not known:
            library = importlib.import_module(self.package).get_library_path()
            ort.register_execution_provider_library(self.provider, library)
            known = [d for d in ort.get_ep_devices() if d.ep_name == self.provider]
        if not known:
            raise BundleError(f"{self.package} finds no device here; choose another provider")
        return known[:1]


PLUGINS = {
    "qnn": Plugin("onnxruntime_qnn", "QNN" + _SUFFIX, {"backend_type": "htp", "offload_graph_io_quantization": "0"}),
    "webgpu": Plugin("onnxruntime_ep_webgpu", "WebGpu" + _SUFFIX),
}


def built_in() -> dict[str, str]:
    """Short name -> ONNX Runtime's, without those that reach over the network."""
    names = [str(name) for name in ort.get_available_providers()]
    return {n.removesuffix(_SUFFIX).lower(): n for n in names if not n.startswith("Azure")}


class OnnxRuntimeProvider:
    def __init__(self, name: str, target: str, full_name: str, plugin: Plugin | None = None) -> None:
        self.name, self.target, self.full_name, self._plugin = name, target, full_name, plugin
        self.once = name

    def arithmetics(self) -> tuple[str, ...]:
        return ("fp32",)

    def open(self, path: Path, opening: Opening) -> OnnxRuntimeSession:
        unkept: Path | None = None
        if self.name == "cpu" and opening.cache is not None and not _given_up(opening.cache):
            try:
                return OnnxRuntimeSession(_open_kept(path, opening, opening.cache, [self.full_name]), self.full_name)
            except Exception:  # a graph that cannot be kept, or of which a part is gone: open it without
                unkept = None if remove_folder(opening.cache) else opening.cache  # what was there is made again
        settings = _settings(opening)
        providers: list[Any] | None = [self.full_name]
        if self._plugin is not None:
            settings.add_provider_for_devices(self._plugin.devices(), self._plugin.options)
            providers = None
        if opening.strict and self.name != "cpu":
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(str(path), settings, providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            if opening.strict and "fallback" in str(error):
                raise BundleError(
                    f"{self.name} does not take all of {path.name}, and --strict forbids the CPU to run the rest: "
                    f"export variants for {self.target}, or leave --strict out"
                ) from error
            raise BundleError(f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: {error}") from error
        if unkept is not None:
            with contextlib.suppress(OSError):
                _note(unkept).touch()
        return OnnxRuntimeSession(session, self.full_name)


class OnnxRuntimeSession:
    def __init__(self, session: Any, full_name: str) -> None:
        self._session, self._full_name = session, full_name
        self.input_names = [v.name for v in session.get_inputs()]
        self.output_names = [v.name for v in session.get_outputs()]

    def run(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        try:
            outputs = self._session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise RunError(f"{self._full_name} failed on this model ({error}); try another provider") from error
        return dict(zip(self.output_names, (np.asarray(o) for o in outputs), strict=True))

    def nodes_per_provider(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for subgraph in self._session.get_provider_graph_assignment_info():
            counts[subgraph.ep_name] += len(subgraph.get_nodes())
        return dict(counts)


def _settings(opening: Opening) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = _SILENT
    settings.intra_op_num_threads = session_threads()
    if opening.threads is not None:
        settings.intra_op_num_threads = opening.threads
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not opening.spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not opening.arena:
        settings.enable_cpu_mem_arena = settings.enable_mem_pattern = False
    if opening.lean:
        # Weights stay mapped from their file, which the system may drop and read again
        settings.enable_cpu_mem_arena = settings.enable_mem_pattern = False
        settings.add_session_config_entry("session.disable_prepacking", "1")
    return settings


def _note(cache: Path) -> Path:
    """A file whose date is when the graph could last not be kept."""
    return cache.with_name(f"{cache.name}.not-kept")


def _given_up(cache: Path) -> bool:
    """Whether the graph could not be kept lately: trying costs as much as opening it."""
    try:
        return time.time() - _note(cache).stat().st_mtime < _AGAIN_S
    except OSError:
        return False


def _open_kept(path: Path, opening: Opening, cache: Path, providers: list[str]) -> Any:
    """The optimised graph in `cache`, which is made if it is not there: the next start need not optimise again."""
    settings = _settings(opening)
    if (cache / _CACHED).is_file():
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(str(cache / _CACHED), settings, providers=providers)
    remove_folder(cache)  # what may be left of one, whose place would be taken
    cache.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache.parent, prefix=f".{cache.name}."))
    try:
        settings.optimized_model_filepath = str(folder / _CACHED)
        for key, value in (("file_name", _CACHED_DATA), ("min_size_in_bytes", "1024")):
            settings.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
        session = ort.InferenceSession(str(path), settings, providers=providers)
        with contextlib.suppress(OSError):  # another process was first; the session stands
            os.replace(folder, cache)
            _note(cache).unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return session
