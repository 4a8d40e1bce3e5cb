"""What a build of a dataset or a configuration still lacks: models, teacher, annotations, room; and the forecast of
`vsr1_core.home.capacity`. `vsr1 doctor` shows it after `pipelines.doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.doctor import Finding, free_bytes
from pipelines.settings import Settings, read_endpoint
from vsr1_core.datasets import sources
from vsr1_core.datasets.benchmarks import wrong_row_count
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.home import capacity
from vsr1_core.home.capacity import GIB, Estimate, Forecast
from vsr1_core.home.execution import choose_device
from vsr1_core.recipes import Configuration, EndpointRecipe
from vsr1_core.rows.files import read_jsonl
from vsr1_core.stages.execution import Execution

if TYPE_CHECKING:
    from vsr1_core.home.trial import Tried


def examine_build(settings: Settings, config: Configuration, entry: DatasetEntry | None) -> Iterator[Finding]:
    """Check what a build of `entry` (None: of any dataset) with `config` still lacks."""
    if not config.models.is_tiny:
        for role, name in (("policy", config.models.policy), ("embedder", config.models.embedder)):
            if name:
                yield _model(role, name)
        yield _gpu(settings, config)
    if isinstance(config.teacher, EndpointRecipe):
        yield _teacher(config.teacher)
    if entry is not None and entry.kind != "toy":
        yield from _annotations(entry, config)
        yield _videos(entry, config)


def forecast(settings: Settings, config: Configuration, entry: DatasetEntry) -> list[Estimate]:
    """Forecast the build of `entry` on the GPU of this machine, or on the default GPU if there is none. Empty for tiny
    models, and if the annotations do not exist yet. Raises ValueError if the size of a model is unknown."""
    if config.models.is_tiny:
        return []
    from vsr1_core.models.registry import model_size

    try:
        corpus = capacity.read_corpus(entry, config)
    except FileNotFoundError:
        return []
    sizes = {name: model_size(name) for name in (config.models.policy, config.models.embedder) if name}
    policy, embedder = sizes.get(config.models.policy), sizes[config.models.embedder]
    unknown = ", ".join(name for name, size in sizes.items() if size is None)
    if unknown or embedder is None:
        raise ValueError(f"there is no forecast, because the size of these models is not known: {unknown}")
    execution = Execution(
        workers=settings.workers,
        cache_bytes=int(settings.cache_gb * GIB),
        micro_batch_size=settings.micro_batch_size,
        save_steps=settings.save_steps,
    )
    device = forecast_device(config)[1]
    return list(capacity.forecast(Forecast(config, corpus, policy, embedder, execution, device)))


def forecast_device(config: Configuration) -> tuple[str, capacity.Device]:
    """What a build is forecast on, in words and as a device: the GPU of this machine, its processor where there is no
    GPU and no policy has to run, and otherwise the GPU that is assumed."""
    import torch

    if torch.cuda.is_available():
        here = torch.cuda.get_device_name(0)
        name = next((name for name in capacity.GPUS if name in here), capacity.DEFAULT_GPU)
        memory = float(torch.cuda.get_device_properties(0).total_memory)
        return f"one {name}", replace(capacity.GPUS[name], memory=memory)
    if not config.models.policy:
        return "this processor", processor_here()
    return f"one {capacity.DEFAULT_GPU}", capacity.GPUS[capacity.DEFAULT_GPU]


def processor_here() -> capacity.Device:
    """The processor of this machine, with the memory that is free now."""
    import torch

    from vsr1_core.models.memory import free_bytes
    from vsr1_core.models.weights import multiplies_bf16

    return capacity.processor(torch.get_num_threads(), free_bytes(torch.device("cpu")), multiplies_bf16())


def examine_trial(settings: Settings, config: Configuration) -> Iterator[Tried]:
    """Try the configured models on the device of these settings. They have to be on this machine already.

    Raises:
        ValueError: The configuration trains its own models, or a model is not on this machine.
    """
    from vsr1_core.home.trial import try_models
    from vsr1_core.models.weights import inference_dtype

    models = config.models
    if models.is_tiny:
        raise ValueError(f"{config.name} trains its own small models; --try is for configurations of published ones")
    embedder = _folder_here(models.embedder)
    policy = _folder_here(models.policy) if models.policy else None
    place = choose_device(settings.device)
    device = processor_here() if place == "cpu" else forecast_device(config)[1]
    dtype = inference_dtype(settings.precision, place, lambda: embedder)
    yield from try_models(config, embedder, policy, device, place, dtype)


def _folder_here(name: str) -> Path:
    from vsr1_core.models.registry import cached_folder

    folder = cached_folder(name)
    if folder is None or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{name} is not on this machine; to download it: hf download {name}; how to make folders of the same size "
            "with random weights says docs/reproduce.md, On a GPU"
        )
    return folder


def room(settings: Settings, estimates: Sequence[Estimate]) -> Iterator[Finding]:
    """Check whether the disk and the GPU have room for what is forecast."""
    import torch

    free, needed = free_bytes(settings.home), sum(e.disk for e in estimates)
    found = f"{needed / GIB:,.0f} GiB forecast, {free / GIB:,.0f} GiB free"
    advice = "set VSR1_HOME to a larger disk, or lower VSR1_CACHE_GB" if free < needed else ""
    yield Finding("disk for the build", "problem" if advice else "ok", found, advice)
    if torch.cuda.is_available():
        has = torch.cuda.get_device_properties(0).total_memory
        largest = max(estimates, key=lambda e: e.gpu)
        found = f"{largest.gpu / GIB:,.0f} GiB forecast for {largest.stage}, the GPU has {has / GIB:,.0f} GiB"
        advice = "lower VSR1_MICRO_BATCH, or use a smaller model" if has < largest.gpu else ""
        yield Finding("GPU memory", "problem" if advice else "ok", found, advice)


def _model(role: str, name: str) -> Finding:
    from vsr1_core.models.registry import cached_folder

    folder = cached_folder(name)
    if folder is not None and any(folder.glob("*.safetensors")):
        return _model_folder(role, name, folder)
    if Path(name).is_dir():
        return Finding(role, "problem", f"{name} has no .safetensors file", "name the folder of a checkpoint")
    advice = f"the first build downloads it; to download it now: hf download {name}"
    return Finding(role, "note", f"{name} is not on this machine", advice)


def _model_folder(role: str, name: str, folder: Path) -> Finding:
    """What a model folder holds: the family, the parameters and the type of its weights, and what it lacks."""
    from vsr1_core.models.registry import family_of
    from vsr1_core.models.soft_query import own_soft_query
    from vsr1_core.models.weights import stored_dtype

    try:
        family = family_of(folder)
        size = family.model_size(folder)
        soft = own_soft_query(folder)
    except (ValueError, OSError) as error:
        return Finding(role, "problem", str(error), f"set models.{role} to the folder of a supported model")
    bytes_here = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    kind = f"a policy with {soft.num_soft_tokens} soft tokens" if soft else "a published model"
    found = (
        f"{folder}: {family.name}, {kind}, {(size.text + size.vision) / 1e9:.2f} billion parameters, {size.num_layers} "
        f"layers, {str(stored_dtype(folder)).removeprefix('torch.')}, {bytes_here / GIB:.2f} GiB"
    )
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.json")):
        return Finding(role, "problem", f"{found}, without a tokenizer", "copy the tokenizer's files into the folder")
    if role == "embedder" and soft:
        return Finding(role, "problem", found, "a policy cannot embed: name the embedder that it was trained with")
    return Finding(role, "ok", found)


def _gpu(settings: Settings, config: Configuration) -> Finding:
    import torch

    number = torch.cuda.device_count()
    if choose_device(settings.device) == "cpu" and not config.models.policy:
        return Finding("GPU", "ok", f"none; {config.name} needs none")
    if choose_device(settings.device) == "cpu":
        advice = f"{config.name} needs a GPU; on a CPU use the configuration laptop, which only ranks, or tiny"
        return Finding("GPU", "problem", "none", advice)
    if settings.processes > number:
        advice = f"VSR1_PROCESSES={settings.processes} needs {settings.processes} GPUs; lower it to at most {number}"
        return Finding("GPU", "problem", f"{number}", advice)
    found = f"{number} x {torch.cuda.get_device_name(0)}; trainings use {max(1, settings.processes)}"
    return Finding("GPU", "ok", found)


def _teacher(recipe: EndpointRecipe) -> Finding:
    endpoint = read_endpoint()
    if endpoint is None:
        advice = f"serve {recipe.model} behind an OpenAI-compatible API and set VSR1_TEACHER_URL"
        return Finding("teacher", "problem", "no endpoint", f"{advice}; imported SFT rows need no teacher")
    import httpx2

    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    try:
        answer = httpx2.get(f"{endpoint.url.rstrip('/')}/models", headers=headers, timeout=5)
    except httpx2.HTTPError as error:
        said = str(error) or type(error).__name__
        return Finding("teacher", "problem", f"{endpoint.url}: {said}", "start the server, or correct VSR1_TEACHER_URL")
    if answer.status_code in (401, 403):
        return Finding("teacher", "problem", f"{endpoint.url} refuses the key", "set VSR1_TEACHER_API_KEY")
    return Finding("teacher", "ok", f"{endpoint.url} answers")


def _annotations(entry: DatasetEntry, config: Configuration) -> Iterator[Finding]:
    advice = f"vsr1 dataset show {entry.name} says where to get them; the forecast needs them too"
    try:
        files = sources.annotation_files(entry, config)
    except FileNotFoundError as error:
        yield Finding("annotations", "problem", str(error), advice)
        return
    for file in files.values():
        if file.error is not None:
            yield Finding(file.file_id, "problem", f"not in {file.path.parent}", advice)
            continue
        count = sum(1 for _ in read_jsonl(file.path))
        problem = wrong_row_count(file.file_id, count)
        yield Finding(file.file_id, "problem" if problem else "ok", problem or f"{count:,} rows")


def _videos(entry: DatasetEntry, config: Configuration) -> Finding:
    try:
        files = sources.video_files(entry)
    except FileNotFoundError as error:
        return Finding("videos", "problem", str(error), f"run: vsr1 dataset add {entry.name} --videos DIR")
    try:
        annotated = sources.corpus_splits(entry, config)
    except FileNotFoundError:
        found = f"{len(files):,} files in {entry.videos}; without annotations it is not known which are missing"
        return Finding("videos", "note" if files else "problem", found, f"see: vsr1 dataset show {entry.name}")
    missing = [video_id for video_id in annotated if video_id not in files]
    found = f"{len(files):,} files in {entry.videos}, {len(missing):,} of {len(annotated):,} annotated videos missing"
    if not files or missing:
        return Finding("videos", "problem", found, f"vsr1 dataset check {entry.name} lists them")
    return Finding("videos", "ok", found)
