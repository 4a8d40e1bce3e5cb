"""Names on the model hub, downloads, and the upload of folders. The other modules of this package write these folders.

`models.checkpoints.fetch_model` downloads: weights as safetensors, into the cache of the hub client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vsr1_core.models.published import hub_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""ORG/NAME, the name of a repository on the hub."""
QUERY_EMBEDDER = "query_embedder"
"""Subfolder of the authors' checkpoints that holds the embedder that the policy was trained with."""
_WEIGHTS = ".safetensors"
ORGANISATION = "VideoSearchR1"
RELEASED_DATASETS: Mapping[str, str] = {
    "charades": "charades",
    "charades-sta": "charades",
    "charades-fig": "charades",
    "didemo": "didemo",
    "didemo-fig": "didemo",
    "activitynet": "activitynet",
    "activitynet-captions": "activitynet",
    "activitynet-fig": "activitynet",
}
"""Spelling of a dataset in an alias, in lower case and with hyphens -> its name in the authors' repositories."""
RELEASED_STAGES: Mapping[str, tuple[str, str]] = {
    "stage1": ("stage1", "sft"),
    "stage2": ("stage2", "grpo"),
    "sft": ("stage1", "sft"),
    "grpo": ("stage2", "grpo"),
}
"""Ending of an alias -> endings of names that the authors have used for the checkpoint."""


def hub_ids(name: str) -> list[str]:
    """The hub ids that `name` may mean: `name` itself where it is a hub id, both spellings in use where it is an alias.

    An alias is a dataset and a stage, such as `charades-sft`; capitals, and `_` in place of `-`, do not matter.

    Raises:
        ValueError: `name` is neither; the message lists the aliases.
    """
    if HUB_ID.fullmatch(name.partition("@")[0]):
        return [name]
    dataset, _, stage = re.sub(r"[_\s]", "-", name.lower()).rpartition("-")
    if dataset in RELEASED_DATASETS and stage in RELEASED_STAGES:
        return [f"{ORGANISATION}/{RELEASED_DATASETS[dataset]}-{ending}" for ending in RELEASED_STAGES[stage]]
    datasets = dict.fromkeys(RELEASED_DATASETS.values())
    aliases = [f"{dataset}-{stage}" for dataset in datasets for stage in ("sft", "grpo")]
    raise ValueError(
        f"{name!r} is neither ORG/NAME on the hub, nor a folder, nor one of {', '.join(aliases)} (or -stage1, -stage2)"
    )


def pull(name: str, fetch: Callable[[str], Path] | None = None) -> tuple[str, Path]:
    """Get a checkpoint by a folder, a hub id, or an alias. Returns (its source, its local folder).

    fetch: hub id or folder -> local folder; by default `models.checkpoints.fetch_model`, which leaves the weights of a
    `query_embedder/` where they are.

    Raises:
        OSError: It cannot be fetched; the message says what was tried.
        ValueError: `name` is neither a folder, a hub id nor an alias.
    """
    if fetch is None:
        from vsr1_core.models.checkpoints import fetch_model

        fetch = fetch_model
    if Path(name).is_dir():
        return str(Path(name).absolute()), fetch(name)
    problems = []
    for hub_id in hub_ids(name):
        try:
            return hub_id, fetch(hub_id)
        except OSError as error:
            problems.append(str(error))
    raise OSError("; ".join(problems))


def query_embedder_checksums(hub_id: str, api: HfApi | None = None) -> set[str]:
    """SHA-256 of each weight file of the checkpoint's `query_embedder/`, as the hub lists them; nothing is downloaded.

    Raises:
        OSError: The hub cannot be reached.
    """
    if api is None:
        from huggingface_hub import HfApi as Api

        api = Api()
    try:
        name, revision = hub_name(hub_id)
        listed = api.model_info(name, revision=revision, files_metadata=True).siblings or []
    except Exception as error:  # errors of the hub client, of httpx and of the OS have one meaning here
        raise OSError(f"the files of {hub_id} could not be listed ({type(error).__name__})") from error
    weights = [f for f in listed if f.rfilename.startswith(f"{QUERY_EMBEDDER}/") and f.rfilename.endswith(_WEIGHTS)]
    return {file.lfs.sha256 for file in weights if file.lfs is not None}


def fetch_query_embedder(hub_id: str) -> Path:
    """Download the whole `query_embedder/` of a checkpoint, and return its folder.

    Raises:
        OSError: The hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    name, revision = hub_name(hub_id)
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=[f"{QUERY_EMBEDDER}/*"])
        return Path(found) / QUERY_EMBEDDER
    except Exception as error:  # errors of the hub client, of httpx and of the OS have one meaning here
        raise OSError(f"the query_embedder/ of {hub_id} could not be downloaded ({type(error).__name__})") from error


def push(
    folder: Path, repo_id: str, repo_type: str = "model", *, public: bool = False, api: HfApi | None = None
) -> str:
    """Upload the whole `folder` as one commit, to a repository that is created where it is missing. Returns its URL.

    The hub client finds the token (HF_TOKEN or `hf auth login`). A new repository is private unless `public`.

    Raises:
        ValueError: `repo_id` is not of the form ORG/NAME.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is not a name on the hub; give ORG/NAME")
    if api is None:
        from huggingface_hub import HfApi as Api

        api = Api()
    address = api.create_repo(repo_id, repo_type=repo_type, private=not public, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id, repo_type=repo_type, folder_path=folder, commit_message=f"Upload {repo_id.split('/')[1]}"
    )
    return str(address)
