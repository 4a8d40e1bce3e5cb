"""What building a dataset with published models takes: disk, GPU memory, hours. A forecast, made before anything runs.

Bytes are worked out from shapes. Speeds are not: all constants that are not shapes stand in `ASSUMED` and `GPUS`, each
with where it comes from, and nothing in them was measured on a GPU by this project.
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
    value: float
    source: str


ASSUMED: Mapping[str, Constant] = {
    "decode_s": Constant(0.05, "processor seconds per second of 480p video; measured on 18 real clips: 0.007 to 0.13"),
    "utilisation": Constant(0.35, "share of a GPU's peak that reading and training reach; assumed, not measured"),
    "step_s": Constant(0.03, "seconds a decoding step of one batch; assumed, not measured"),
    "teacher_tokens_per_s": Constant(1000, "of the teacher's server over all requests; assumed, not measured"),
    "teacher_tokens": Constant(1200, "a reply of a thinking teacher; assumed"),
    "answer_tokens": Constant(150, "an answer with its reasoning; assumed"),
    "prompt_tokens": Constant(130, "a prompt without its video; assumed"),
    "mark_tokens": Constant(9, "`<12.5 seconds>` and the two vision marks of a pair of frames; counted"),
}


@dataclass(frozen=True)
class Gpu:
    """Peak bf16 operations per second without sparsity; from the makers' data sheets."""

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
    """seconds and frames of each video by split; queries by split."""

    durations_s: Mapping[str, Sequence[float]]
    frames: Mapping[str, Sequence[int]]
    num_queries: Mapping[str, int]

    @property
    def all_frames(self) -> list[int]:
        return [n for frames in self.frames.values() for n in frames]


def read_corpus(entry: DatasetEntry, config: Configuration) -> Corpus:
    """From the annotations; a video counts in each split that names it. FileNotFoundError where there are none."""
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
    """What one stage takes. hours: of one GPU, or of all workers where `on` is the CPU; `how` says from what."""

    stage: str
    disk: float = 0
    gpu: float = 0
    hours: float = 0
    how: str = ""


@dataclass(frozen=True)
class Forecast:
    """The numbers that the estimates share."""

    config: Configuration
    corpus: Corpus
    policy: ModelSize
    embedder: ModelSize
    execution: Execution
    gpu: Gpu

    @property
    def tokens_a_pair(self) -> float:
        """Tokens of a pair of frames at most: a token is `size_multiple` pixels square."""
        recipe = self.config.frames
        return recipe.max_pixels // recipe.size_multiple**2 + ASSUMED["mark_tokens"].value

    def tokens(self, frames: float) -> float:
        """A prompt about a video of so many frames."""
        return frames / 2 * self.tokens_a_pair + ASSUMED["prompt_tokens"].value

    def hours(self, operations: float) -> float:
        return operations / (self.gpu.flops * ASSUMED["utilisation"].value) / 3600

    def mean_tokens(self, split: str) -> float:
        frames = self.corpus.frames.get(split) or self.corpus.all_frames
        return self.tokens(sum(frames) / len(frames))

    @property
    def longest(self) -> float:
        """Tokens of a prompt about the longest video, with its answer: what memory has to hold."""
        return self.tokens(max(self.corpus.all_frames)) + ASSUMED["answer_tokens"].value

    @property
    def frozen_bytes(self) -> float:
        """Vision tower and embedder, bf16."""
        return 2 * (self.policy.vision + self.embedder.text + self.embedder.vision)

    @property
    def learning_bytes(self) -> float:
        """fp32 weights, gradients and AdamW's two moments of the text model."""
        return 16 * self.policy.text

    def activation_bytes(self, rows: int, checkpointing: bool) -> float:
        """Of a backward pass over `rows` prompts about the longest video: fp32 between layers, bf16 within them."""
        inner = 2 * (6 * self.policy.intermediate_size + 10 * self.policy.hidden_size)
        between = 4 * self.policy.hidden_size * self.policy.num_layers
        a_token = between + inner * (1 if checkpointing else self.policy.num_layers)
        logits = 12 * self.policy.vocab_size * ASSUMED["answer_tokens"].value
        return rows * (self.longest * a_token + logits)

    def cache_bytes(self, rows: int) -> float:
        """Keys and values, bf16."""
        return rows * self.longest * 2 * self.policy.cache_size


def forecast(base: Forecast) -> Iterator[Estimate]:
    """Every stage that takes notable room or time, in the order they run."""
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
    patches = sum(corpus.all_frames) / 2 * (base.tokens_a_pair * 4)
    memory = 2 * (model.text + model.vision) + base.execution.batch_size * base.longest * 2 * model.hidden_size * 8
    hours = base.hours(2 * model.text * tokens + 2 * model.vision * patches)
    return Estimate("embeddings and index", 2 * rows * 4 * model.hidden_size, memory, hours, "a pass over each video")


def _features(base: Forecast) -> Estimate:
    tokens = sum(base.corpus.all_frames) / 2 * base.tokens_a_pair
    needed = sum(tokens * m.num_levels * m.hidden_size * 2 for m in (base.policy, base.embedder))
    how = f"{needed / GIB:,.0f} GiB would keep all; at most VSR1_CACHE_GB are kept"
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
    """Weights and AdamW's moments, to go on from after a stop; the state before goes once the new one is whole."""
    state = _checkpoint_bytes(base) + 8 * base.policy.text
    return Estimate("training state", 2 * state, how="two at a time, while a training runs; none is left after it")


def _grpo(base: Forecast, asset: str, recipe: GRPORecipe) -> Estimate:
    """A turn's video is read once a query in the first turn, once an episode after that; all turns are replayed by the
    policy with gradients, and by the reference without."""
    size = base.policy
    steps = recipe.steps or base.corpus.num_queries.get("train", 0) // recipe.queries_per_step
    episodes = recipe.queries_per_step * recipe.group_size
    replayed = episodes * recipe.num_turns
    read = recipe.queries_per_step + episodes * (recipe.num_turns - 1)
    passes = 8 if recipe.gradient_checkpointing else 6
    operations = base.mean_tokens("train") * size.text * (replayed * (passes + 2 * bool(recipe.beta)) + 2 * read)
    decoding = recipe.num_turns * ASSUMED["answer_tokens"].value * ASSUMED["step_s"].value
    micro = min(base.execution.micro_batch_size, episodes) * recipe.num_turns
    memory = base.learning_bytes + base.frozen_bytes + (4 * size.text if recipe.beta else 0)
    memory += max(base.cache_bytes(episodes), base.activation_bytes(micro, recipe.gradient_checkpointing))
    hours = steps * (base.hours(operations) + decoding / 3600)
    how = f"{steps:,} steps of {episodes} episodes of {recipe.num_turns} turns, {micro} turns a backward pass"
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
    how = f"{queries:,} queries, {len(searched)} methods with {turns} turns in all at most, {rows} at a time"
    return Estimate("predictions", 0, memory, reading + decoding, how)
