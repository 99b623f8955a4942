"""A model's files from the hub: those that are loaded, and no others."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path

from obclip.core.errors import ModelMissingError, RunError
from obclip.core.weights import choose_weights, shards


def fetch(source: str, small: Sequence[str], parts: Mapping[str, str], revision: str | None = None) -> Path:
    """The folder of a repository's files, which has the name of the commit.

    small: patterns of files without weights. parts: folders of the repository, and what their weights are called.
    ModelMissingError if the hub has no such model, or cannot be reached and nothing is here from an earlier time, or a
    download broke off. RunError: the disk is full.
    """
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    gone = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, httpx.HTTPError)
    try:
        names = HfApi().list_repo_files(source, revision=revision)
    except gone as error:
        try:
            return Path(snapshot_download(source, revision=revision, local_files_only=True))
        except gone:
            raise ModelMissingError(
                f"{source} is neither a folder nor to be had from the hub ({type(error).__name__}); download it where "
                "there is a network, then pass its folder"
            ) from error
    try:
        wanted, indices = _wanted(names, small, parts)
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
        if named := [(Path(index).parent / name).as_posix() for index in indices for name in shards(folder / index)]:
            snapshot_download(source, revision=folder.name, allow_patterns=named)  # of the same commit
    except gone as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"the disk is full while {source} is downloaded; make room and start again") from error
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelMissingError(
            f"the download of {source} broke off ({said}); start again: what is here is not downloaded twice"
        ) from error
    return folder


def _wanted(names: list[str], small: Sequence[str], parts: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Patterns of what is downloaded first, and the indices among it, whose shards are next."""
    wanted, indices = list(small), []
    for part, stem in parts.items():
        prefix = f"{part}/" if part else ""
        wanted.append(f"{prefix}config.json")
        chosen = choose_weights((n.removeprefix(prefix) for n in names if n.startswith(prefix)), stem)
        if chosen is not None:
            wanted.append(prefix + chosen.name)
            indices += [prefix + chosen.name] if chosen.sharded else []
    return wanted, indices
