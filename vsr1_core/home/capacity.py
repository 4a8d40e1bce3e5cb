"""A forecast of what building a dataset with published models needs: disk, GPU memory, hours. Nothing has to run first.

Bytes are computed from shapes. Speeds are assumed: all constants that are not shapes are in `ASSUMED` and `GPUS`, each
with its source, and this project has measured none of them on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vsr1_core.datasets import sources
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import Moment
from vsr1_core.media.sampling import num_frames
from vsr1_core.models.sizes import ModelSize
from vsr1_core.recipes import Configuration, EndpointRecipe, GRPORecipe, SFTRecipe
from vsr1_core.stages import methods
from vsr1_core.stages.base import Execution

GIB = 2**30


@dataclass(frozen=True)
class Constant:
    """A number that a forecast assumes, and where it comes from."""

    value: float
    source: str


ASSUMED: Mapping[str, Constant] = {
    "decode_s": Constant(0.05, "processor seconds per second of 480p video; measured on 18 real clips: 0.007 to 0.13"),
    "utilisation": Constant(0.35, "share of a GPU's peak that reading and training reach; assumed, not measured"),
    "step_s": Constant(0.03, "seconds per decoding step of one batch; assumed, not measured"),
    "teacher_tokens_per_s": Constant(1000, "tokens per second that the teacher's server writes; assumed, not measured"),
    "teacher_tokens": Constant(1200, "tokens per reply of a thinking teacher; assumed"),
    "answer_tokens": Constant(150, "tokens per answer with its reasoning; assumed"),
    "prompt_tokens": Constant(130, "tokens per prompt without its video; assumed"),
    "mark_tokens": Constant(9, "tokens of `<12.5 seconds>` and the two vision marks, per pair of frames; counted"),
}


@dataclass(frozen=True)
class Gpu:
    """Peak bf16 operations per second of a GPU without sparsity, from the maker's data sheet."""

    flops: float


GPUS: Mapping[str, Gpu] = {
    "H200": Gpu(989e12),
    "H100": Gpu(989e12),
    "A100": Gpu(312e12),
    "L40S": Gpu(362e12),
    "4090": Gpu(165e12),
}
DEFAULT_GPU = "A100"


@dataclass(frozen=True)
class Corpus:
    """The size of a corpus, by split: seconds of each video, frames of each video, and the number of queries."""

    durations_s: Mapping[str, Sequence[float]]
    frames: Mapping[str, Sequence[int]]
    num_queries: Mapping[str, int]

    @property
    def all_frames(self) -> list[int]:
        return [n for frames in self.frames.values() for n in frames]


def read_corpus(entry: DatasetEntry, config: Configuration) -> Corpus:
    """The size of a dataset's corpus, from its annotations. A video counts in each split that names it.

    Raises:
        FileNotFoundError: The dataset has no annotations yet.
    """
    durations: dict[str, dict[str, float]] = {}
    queries: dict[str, int] = {}
    for moment in sources.moments(entry, config).values():
        if isinstance(moment, Moment):
            queries[moment.split] = queries.get(moment.split, 0) + 1
            durations.setdefault(moment.split, {})[moment.video_id] = moment.duration_s or moment.end_s
    if not queries:
        raise FileNotFoundError(f"{entry.name} has no annotations yet, so there is nothing to forecast from")
    seconds = {split: list(videos.values()) for split, videos in durations.items()}
    frames = {split: [num_frames(s, config.frames) for s in each] for split, each in seconds.items()}
    return Corpus(seconds, frames, queries)


@dataclass(frozen=True)
class Estimate:
    """What one stage needs. disk, gpu: bytes on disk and of GPU memory. hours: of one GPU, or of all CPU workers. how:
    what the numbers were computed from."""

    stage: str
    disk: float = 0
    gpu: float = 0
    hours: float = 0
    how: str = ""


@dataclass(frozen=True)
class Forecast:
    """The facts and intermediate numbers that all estimates share."""

    config: Configuration
    corpus: Corpus
    policy: ModelSize
    embedder: ModelSize
    execution: Execution
    gpu: Gpu

    @property
    def tokens_per_pair(self) -> float:
        """Most tokens per pair of frames: one token covers `size_multiple` x `size_multiple` pixels."""
        recipe = self.config.frames
        return recipe.max_pixels // recipe.size_multiple**2 + ASSUMED["mark_tokens"].value

    def tokens(self, frames: float) -> float:
        """Tokens of a prompt about a video of `frames` frames."""
        return frames / 2 * self.tokens_per_pair + ASSUMED["prompt_tokens"].value

    def hours(self, operations: float) -> float:
        """Hours that so many operations take on the GPU."""
        return operations / (self.gpu.flops * ASSUMED["utilisation"].value) / 3600

    def mean_tokens(self, split: str) -> float:
        """Tokens of a prompt about a video of average length in the split."""
        frames = self.corpus.frames.get(split) or self.corpus.all_frames
        return self.tokens(sum(frames) / len(frames))

    @property
    def longest(self) -> float:
        """Tokens of a prompt about the longest video and its answer, which GPU memory has to hold."""
        return self.tokens(max(self.corpus.all_frames)) + ASSUMED["answer_tokens"].value

    @property
    def frozen_bytes(self) -> float:
        """Bytes of the vision tower and the embedder, in bf16."""
        return 2 * (self.policy.vision + self.embedder.text + self.embedder.vision)

    @property
    def learning_bytes(self) -> float:
        """Bytes of the text model's weights, gradients and two AdamW moments, all fp32."""
        return 16 * self.policy.text

    def activation_bytes(self, rows: int, checkpointing: bool) -> float:
        """Bytes of activations of a backward pass over `rows` prompts about the longest video: fp32 between layers and
        bf16 within them."""
        inner = 2 * (6 * self.policy.intermediate_size + 10 * self.policy.hidden_size)
        between = 4 * self.policy.hidden_size * self.policy.num_layers
        per_token = between + inner * (1 if checkpointing else self.policy.num_layers)
        logits = 12 * self.policy.vocab_size * ASSUMED["answer_tokens"].value
        return rows * (self.longest * per_token + logits)

    def cache_bytes(self, rows: int) -> float:
        """Bytes of the keys and values of `rows` prompts about the longest video, in bf16."""
        return rows * self.longest * 2 * self.policy.cache_size


def forecast(base: Forecast) -> Iterator[Estimate]:
    """The estimate of every stage that needs notable space or time, in the order in which the stages run."""
    yield _frames(base)
    yield _models(base)
    yield _embeddings(base)
    yield _features(base)
    if isinstance(base.config.teacher, EndpointRecipe):
        yield _traces(base)
    for trained in methods.TRAINED.values():
        if methods.is_made(base.config, trained):
            recipe = trained.recipe(base.config)
            if isinstance(recipe, SFTRecipe):
                yield _sft(base, trained.name, recipe)
            else:
                yield _grpo(base, trained.name, recipe)
    if base.execution.save_steps:
        yield _training_state(base)
    yield _predictions(base)


def _frames(base: Forecast) -> Estimate:
    recipe, corpus = base.config.frames, base.corpus
    seconds = sum(sum(each) for each in corpus.durations_s.values())
    hours = seconds * ASSUMED["decode_s"].value / base.execution.workers / 3600
    pixels = 3 * recipe.max_pixels
    how = f"{len(corpus.all_frames):,} videos, at most {pixels:,} bytes per frame; {base.execution.workers} workers"
    return Estimate("frame_tensors", sum(corpus.all_frames) * pixels, hours=hours, how=how)


def _models(base: Forecast) -> Estimate:
    policy, embedder = (2 * (m.text + m.vision) for m in (base.policy, base.embedder))
    return Estimate("base_models", policy + embedder, how="downloaded weights, 2 bytes per parameter")


def _embeddings(base: Forecast) -> Estimate:
    corpus, model = base.corpus, base.embedder
    rows = len(corpus.all_frames) + sum(corpus.num_queries.values())
    tokens = sum(base.tokens(frames) for frames in corpus.all_frames)
    patches = sum(corpus.all_frames) / 2 * (base.tokens_per_pair * 4)
    memory = 2 * (model.text + model.vision) + base.execution.batch_size * base.longest * 2 * model.hidden_size * 8
    hours = base.hours(2 * model.text * tokens + 2 * model.vision * patches)
    return Estimate("embeddings and index", 2 * rows * 4 * model.hidden_size, memory, hours, "one pass over each video")


def _features(base: Forecast) -> Estimate:
    tokens = sum(base.corpus.all_frames) / 2 * base.tokens_per_pair
    needed = sum(tokens * m.num_levels * m.hidden_size * 2 for m in (base.policy, base.embedder))
    how = f"all of them take {needed / GIB:,.0f} GiB; at most VSR1_CACHE_GB are kept"
    return Estimate("vision features, kept", min(needed, base.execution.cache_bytes), how=how)


def _pool_rows(base: Forecast) -> int:
    pool = base.config.pool
    return min(pool.num_matched + pool.num_not_matched, base.corpus.num_queries.get("train", 0))


def _traces(base: Forecast) -> Estimate:
    rows = _pool_rows(base)
    seconds = rows * ASSUMED["teacher_tokens"].value / ASSUMED["teacher_tokens_per_s"].value
    return Estimate("reasoning_traces", hours=seconds / 3600, how=f"{rows:,} requests, on the teacher's own GPU")


def _sft(base: Forecast, asset: str, recipe: SFTRecipe) -> Estimate:
    rows = recipe.steps * recipe.batch_size or _pool_rows(base)
    memory = base.learning_bytes + base.frozen_bytes + base.cache_bytes(recipe.batch_size)
    memory += base.activation_bytes(recipe.batch_size, recipe.gradient_checkpointing)
    passes = 8 if recipe.gradient_checkpointing else 6
    hours = base.hours(rows * base.mean_tokens("train") * passes * base.policy.text)
    how = f"{rows:,} rows, {passes} operations per parameter and token"
    return Estimate(asset, _checkpoint_bytes(base), memory, hours, how)


def _checkpoint_bytes(base: Forecast) -> float:
    return 4 * base.policy.text + 2 * base.policy.vision


def _training_state(base: Forecast) -> Estimate:
    """Weights and AdamW moments, from which a stopped training resumes. The old state is deleted once the new one is
    complete, so there are two for a moment."""
    state = _checkpoint_bytes(base) + 8 * base.policy.text
    return Estimate("training state", 2 * state, how="two at a time while a training runs; none is left after it")


def _grpo(base: Forecast, asset: str, recipe: GRPORecipe) -> Estimate:
    """The estimate of stage 2.

    The video of a turn is read once per query in the first turn and once per episode in later turns. The policy replays
    all turns with gradients, and the reference replays them without.
    """
    size = base.policy
    steps = recipe.steps or base.corpus.num_queries.get("train", 0) // recipe.queries_per_step
    episodes = recipe.queries_per_step * recipe.group_size
    replayed = episodes * recipe.num_turns
    read = recipe.queries_per_step + episodes * (recipe.num_turns - 1)
    passes = 8 if recipe.gradient_checkpointing else 6
    operations = base.mean_tokens("train") * size.text * (replayed * (passes + 2 * bool(recipe.beta)) + 2 * read)
    decoding = recipe.num_turns * ASSUMED["answer_tokens"].value * ASSUMED["step_s"].value
    micro = min(base.execution.micro_batch_size or recipe.group_size, episodes) * recipe.num_turns
    memory = base.learning_bytes + base.frozen_bytes + (4 * size.text if recipe.beta else 0)
    memory += max(base.cache_bytes(episodes), base.activation_bytes(micro, recipe.gradient_checkpointing))
    hours = steps * (base.hours(operations) + decoding / 3600)
    how = f"{steps:,} steps of {episodes} episodes of {recipe.num_turns} turns, {micro} turns per backward pass"
    return Estimate(asset, _checkpoint_bytes(base), memory, hours, how)


def _predictions(base: Forecast) -> Estimate:
    recipe, size = base.config.evaluation, base.policy
    searched = [methods.ALL[name] for name in methods.methods_of(base.config)]
    turns = sum(methods.num_turns_of(method, recipe) for method in searched)
    queries = sum(base.corpus.num_queries.get(split, 0) for split in recipe.splits)
    prompts = queries * turns
    rows = base.execution.batch_size
    reading = base.hours(prompts * base.mean_tokens(recipe.splits[0]) * 2 * size.text)
    decoding = prompts / rows * ASSUMED["answer_tokens"].value * ASSUMED["step_s"].value / 3600
    memory = 2 * size.text + base.frozen_bytes + base.cache_bytes(rows)
    how = f"{queries:,} queries, {len(searched)} methods, at most {turns} turns in all, {rows} at a time"
    return Estimate("predictions", 0, memory, reading + decoding, how)
