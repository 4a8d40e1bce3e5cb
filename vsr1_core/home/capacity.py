"""A forecast of what building a dataset with published models needs: disk, GPU memory, hours. Nothing has to run first.

Bytes are computed from shapes by `models.memory`, whose factors are measured on a CPU. Speeds are assumed. All
constants that are not shapes are in `ASSUMED`, `GPUS` and `memory.FACTORS`, each with its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vsr1_core.datasets import sources
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.datasets.verified import Moment
from vsr1_core.media.sampling import num_frames
from vsr1_core.models.memory import (
    BF16,
    CPU_MOST,
    CPU_SHARE,
    FP32,
    GIB,
    GPU_SHARE,
    MAX_LOGITS,
    Factor,
    Learning,
    Passes,
)
from vsr1_core.models.sizes import ModelSize
from vsr1_core.recipes import Configuration, EndpointRecipe, GRPORecipe, SFTRecipe
from vsr1_core.segments import windows_of
from vsr1_core.stages import methods
from vsr1_core.stages.execution import Execution

ASSUMED: Mapping[str, Factor] = {
    "decode_s": Factor(0.05, "processor seconds per second of 480p video; measured on 18 real clips: 0.007 to 0.13"),
    "jpeg_share": Factor(
        0.061, "bytes of a frame as JPEG of quality 90, per byte of its array; measured on 18 real clips: 0.03 to 0.15"
    ),
    "utilisation": Factor(0.24, "share of a GPU's peak that reading reaches; measured on one H100 with the 2B model"),
    "training_utilisation": Factor(0.05, "the same for a step of training; measured on one H100 with the 2B model"),
    "cpu_bf16_flops": Factor(
        2.2e11, "bf16 operations per second and core of reading on a CPU; derived from seconds per video"
    ),
    "cpu_fp32_flops": Factor(7e10, "the same in fp32, or where the processor has no bf16; from its share of the peak"),
    "cpu_bytes_per_s": Factor(8e9, "bytes of weights per second that a decoding step reads on a CPU; assumed"),
    "step_s": Factor(0.0145, "seconds per decoding step of 64 rows; measured on one H200 with the 2B model"),
    "teacher_tokens_per_s": Factor(1000, "tokens per second that the teacher's server writes; assumed, not measured"),
    "teacher_tokens": Factor(1200, "tokens per reply of a thinking teacher; assumed"),
    "answer_tokens": Factor(150, "tokens per answer with its reasoning; assumed"),
    "prompt_tokens": Factor(130, "tokens per prompt without its video; assumed"),
    "mark_tokens": Factor(9, "tokens of `<12.5 seconds>` and the two vision marks, per pair of frames; counted"),
}
FEATURE_BYTES = 2 << 30
"""Features that a store keeps in memory, at most (`FeatureStore.max_bytes`)."""
QUERY_TOKENS = 64
"""Tokens of a query in its template, with soft tokens; generous."""


@dataclass(frozen=True)
class Device:
    """What models run on. flops: bf16 operations per second, without sparsity. memory: bytes. is_cpu: of a processor,
    whose operations are measured ones; those of a GPU are the peak of the maker's data sheet."""

    flops: float
    memory: float
    is_cpu: bool = False

    def seconds(self, operations: float, is_training: bool = False) -> float:
        """Seconds that so many operations of reading, or of a step of training, take."""
        name = "training_utilisation" if is_training else "utilisation"
        share = 1.0 if self.is_cpu else ASSUMED[name].value
        return operations / (self.flops * share)

    def step_seconds(self, size: ModelSize, num_rows: int = 1) -> float:
        """Seconds of one decoding step of so many rows. On a CPU, the weights are read once, and each row computes with
        them."""
        if not self.is_cpu:
            return ASSUMED["step_s"].value
        return max(BF16 * size.text / ASSUMED["cpu_bytes_per_s"].value, self.seconds(2 * size.text * num_rows))


GPUS: Mapping[str, Device] = {
    "H200": Device(989e12, 141e9),
    "H100": Device(989e12, 80e9),
    "A100": Device(312e12, 80e9),
    "L40S": Device(362e12, 48e9),
    "4090": Device(165e12, 24e9),
}
DEFAULT_GPU = "A100"


def processor(num_cores: int, memory: float, has_bf16: bool) -> Device:
    """The CPU of a machine with so many cores and bytes of memory."""
    speed = ASSUMED["cpu_bf16_flops" if has_bf16 else "cpu_fp32_flops"].value
    return Device(num_cores * speed, memory, is_cpu=True)


@dataclass(frozen=True)
class Corpus:
    """The size of a corpus, by split: seconds and frames of each segment, and the number of queries."""

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
            videos = durations.setdefault(moment.split, {})
            at_least_s = moment.duration_s or moment.end_s  # annotations without lengths: the last moment's end
            videos[moment.video_id] = max(videos.get(moment.video_id, 0.0), at_least_s)
    if not queries:
        raise FileNotFoundError(f"{entry.name} has no annotations yet, so there is nothing to forecast from")
    seconds = {
        split: [s for v in videos.values() for s in _segments_s(v, config)] for split, videos in durations.items()
    }
    frames = {split: [num_frames(s, config.frames) for s in each] for split, each in seconds.items()}
    return Corpus(seconds, frames, queries)


def _segments_s(duration_s: float, config: Configuration) -> list[float]:
    """The length of each segment of a video in seconds."""
    windows = windows_of(duration_s, config.segments.window_s, config.segments.overlap)
    return [end_s - start_s for start_s, end_s in windows] or [duration_s]


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
    """The facts and intermediate numbers that all estimates share. policy: None where videos are only ranked."""

    config: Configuration
    corpus: Corpus
    policy: ModelSize | None
    embedder: ModelSize
    execution: Execution
    device: Device

    @property
    def writer(self) -> ModelSize:
        """The policy, for stages that have one."""
        assert self.policy is not None
        return self.policy

    @property
    def patches_per_pair(self) -> float:
        """Most patches per pair of frames: four of them are one token, which covers a square of `size_multiple`."""
        recipe = self.config.frames
        return self.embedder.patches_per_token * (recipe.max_pixels // recipe.size_multiple**2)

    @property
    def tokens_per_pair(self) -> float:
        """Most tokens per pair of frames, with its time mark."""
        return self.patches_per_pair / self.embedder.patches_per_token + ASSUMED["mark_tokens"].value

    def tokens(self, frames: float) -> float:
        """Tokens of a prompt about a video of `frames` frames."""
        return frames / 2 * self.tokens_per_pair + ASSUMED["prompt_tokens"].value

    def hours(self, operations: float, is_training: bool = False) -> float:
        """Hours that so many operations take on the device."""
        return self.device.seconds(operations, is_training) / 3600

    def mean_tokens(self, split: str) -> float:
        """Tokens of a prompt about a video of average length in the split."""
        frames = self.corpus.frames.get(split) or self.corpus.all_frames
        return self.tokens(sum(frames) / len(frames))

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt about the longest video."""
        return round(self.tokens(max(self.corpus.all_frames)))

    @property
    def most_patches(self) -> int:
        """Patches of the longest video."""
        return round(max(self.corpus.all_frames) / 2 * self.patches_per_pair)

    @property
    def frozen_bytes(self) -> float:
        """Bytes of the vision tower and the embedder, in bf16."""
        return BF16 * (self.writer.vision + self.embedder.text + self.embedder.vision)

    def pass_bytes(self, weights: float, of_rows: Callable[[int], float], most_rows: int) -> float:
        """What the passes of loaded models take: those of `most_rows` rows of the longest video, but no more than the
        budget that the weights leave, and at least one row. of_rows: bytes of a pass over so many rows."""
        return max(of_rows(1), min(of_rows(most_rows), self.budget(weights)))

    def budget(self, weights: float) -> float:
        """Bytes that a pass may take beside weights of so many bytes (`models.batches.Budget`)."""
        free = self.device.memory - weights
        return min(CPU_SHARE * free, CPU_MOST) if self.device.is_cpu else GPU_SHARE * free

    def learning(self, recipe: SFTRecipe | GRPORecipe) -> Learning:
        """What a training takes. Stage 2 has adapters where its recipe has a rank."""
        rank = int(getattr(recipe, "lora_rank", 0))
        return Learning(self.writer, rank, recipe.gradient_checkpointing, self.device.is_cpu)


def forecast(base: Forecast) -> Iterator[Estimate]:
    """The estimate of every stage that needs notable space or time, in the order in which the stages run."""
    yield _frames(base)
    yield _models(base)
    yield _embeddings(base)
    if base.policy is None:
        return
    yield _features(base)
    if isinstance(base.config.teacher, EndpointRecipe):
        yield _traces(base)
    made = [trained for trained in methods.TRAINED.values() if methods.is_made(base.config, trained)]
    recipes = {trained.name: trained.recipe(base.config) for trained in made}
    for name, recipe in recipes.items():
        yield _sft(base, name, recipe) if isinstance(recipe, SFTRecipe) else _grpo(base, name, recipe)
    if base.execution.save_steps:
        yield _training_state([base.learning(recipe) for recipe in recipes.values()])
    yield _predictions(base)


def _frames(base: Forecast) -> Estimate:
    recipe, corpus = base.config.frames, base.corpus
    seconds = sum(sum(each) for each in corpus.durations_s.values())
    hours = seconds * ASSUMED["decode_s"].value / base.execution.workers / 3600
    is_jpeg = recipe.store == "jpeg"
    per_frame = 3 * recipe.max_pixels * (ASSUMED["jpeg_share"].value if is_jpeg else 1)
    size = f"about {per_frame:,.0f} bytes per frame as JPEG" if is_jpeg else f"at most {per_frame:,} bytes per frame"
    how = f"{len(corpus.all_frames):,} videos, {size}; {base.execution.workers} workers"
    return Estimate("frame_tensors", sum(corpus.all_frames) * per_frame, hours=hours, how=how)


def _models(base: Forecast) -> Estimate:
    models = [model for model in (base.policy, base.embedder) if model is not None]
    weights = sum(BF16 * (model.text + model.vision) for model in models)
    return Estimate("base_models", weights, how="downloaded weights, 2 bytes per parameter")


def _embeddings(base: Forecast) -> Estimate:
    corpus, model = base.corpus, base.embedder
    rows = len(corpus.all_frames) + sum(corpus.num_queries.values())
    tokens = sum(base.tokens(frames) for frames in corpus.all_frames)
    patches = sum(corpus.all_frames) / 2 * base.patches_per_pair
    # On a CPU weights in bf16 are read from their file when they are needed, and take no memory of their own.
    weights = BF16 * (model.text + model.vision) * (not base.device.is_cpu)
    passes, lengths = Passes(model), [base.longest_prompt]
    most = base.budget(weights)
    of_rows = lambda n: passes.video_embedding([base.most_patches] * n, lengths * n, most)  # noqa: E731
    memory = weights + base.pass_bytes(weights, of_rows, min(base.execution.batch_size, len(corpus.all_frames)))
    hours = base.hours(2 * model.text * tokens + 2 * model.vision * patches)
    return Estimate("embeddings and index", 2 * rows * 4 * model.hidden_size, memory, hours, "one pass over each video")


def _features(base: Forecast) -> Estimate:
    tokens = sum(base.corpus.all_frames) / 2 * base.tokens_per_pair
    needed = sum(Passes(model).features(tokens) for model in (base.writer, base.embedder))
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
    rows, learning = recipe.steps * recipe.batch_size or _pool_rows(base), base.learning(recipe)
    num_answer = round(ASSUMED["answer_tokens"].value)
    lengths = [base.longest_prompt + num_answer] * recipe.batch_size
    latents = learning.continued(lengths) + Passes(base.embedder).text([QUERY_TOKENS] * recipe.batch_size)
    memory = base.frozen_bytes + learning.peak(lengths, num_answer, FEATURE_BYTES + latents)
    passes = 8 if recipe.gradient_checkpointing else 6
    hours = base.hours(rows * base.mean_tokens("train") * passes * base.writer.text, is_training=True)
    how = f"{rows:,} rows, {passes} operations per parameter and token"
    return Estimate(asset, _checkpoint_bytes(learning), memory, hours, how)


def _checkpoint_bytes(learning: Learning) -> float:
    """A policy on disk: its text model in fp32, or in bf16 where adapters were merged into it."""
    return (BF16 if learning.lora_rank else FP32) * learning.size.text + BF16 * learning.size.vision


def _training_state(trainings: Sequence[Learning]) -> Estimate:
    """Weights and AdamW moments of the largest training, from which it resumes when it was stopped. The old state is
    deleted once the new one is complete, so there are two for a moment."""
    weights = [_checkpoint_bytes(t) + FP32 * t.num_adapters for t in trainings]
    moments = [2 * FP32 * (t.num_adapters or t.size.text) for t in trainings]
    state = max(map(sum, zip(weights, moments, strict=True)), default=0)
    return Estimate("training state", 2 * state, how="two at a time while a training runs; none is left after it")


def _grpo(base: Forecast, asset: str, recipe: GRPORecipe) -> Estimate:
    """The estimate of stage 2.

    The prompt of a turn is read once per query in the first turn, and in later turns once per episode, as each may be
    about another video. The policy reads these prompts once more with gradients, and the reference without. In a
    backward pass, the answers to a prompt share it.
    """
    size, learning = base.writer, base.learning(recipe)
    steps = recipe.steps or base.corpus.num_queries.get("train", 0) // recipe.queries_per_step
    episodes = recipe.queries_per_step * recipe.group_size
    read = recipe.queries_per_step + episodes * (recipe.num_turns - 1)
    passes = 8 if recipe.gradient_checkpointing else 6
    per_pass = base.mean_tokens("train") * size.text
    replaying = base.hours(per_pass * read * (passes + 2 * bool(recipe.beta)), is_training=True)
    decoding = recipe.num_turns * ASSUMED["answer_tokens"].value * base.device.step_seconds(size, episodes)
    micro = min(base.execution.micro_batch_size or recipe.group_size, episodes)
    prompts, turns = -(-micro // recipe.group_size) + micro * (recipe.num_turns - 1), micro * recipe.num_turns
    written = turns * recipe.max_new_tokens
    lengths = [base.longest_prompt + -(-written // prompts)] * prompts
    num_logits = -(-min(written, MAX_LOGITS // size.vocab_size) // prompts)
    reference = FP32 * size.text if recipe.beta and not learning.lora_rank else 0
    held = base.frozen_bytes + reference + learning.held + FEATURE_BYTES
    of_rows = lambda n: Passes(size).decoding([base.longest_prompt] * n, recipe.max_new_tokens)  # noqa: E731
    replay = learning.peak(lengths, num_logits, FEATURE_BYTES + learning.continued(lengths, by_answers=True))
    memory = max(base.frozen_bytes + reference + replay, held + base.pass_bytes(held, of_rows, episodes))
    hours = steps * (replaying + base.hours(2 * per_pass * read) + decoding / 3600)
    how = f"{steps:,} steps of {episodes} episodes of {recipe.num_turns} turns, {turns} turns per backward pass"
    return Estimate(asset, _checkpoint_bytes(learning), memory, hours, how)


def _predictions(base: Forecast) -> Estimate:
    recipe, size = base.config.evaluation, base.writer
    searched = [methods.ALL[name] for name in methods.methods_of(base.config)]
    turns = sum(methods.num_turns_of(method, recipe) for method in searched)
    queries = sum(base.corpus.num_queries.get(split, 0) for split in recipe.splits)
    prompts = queries * turns
    weights = BF16 * size.text + base.frozen_bytes + FEATURE_BYTES
    of_rows = lambda n: Passes(size).decoding([base.longest_prompt] * n, recipe.max_new_tokens)  # noqa: E731
    passes = base.pass_bytes(weights, of_rows, 2 * base.execution.batch_size)
    rows = max(1, min(2 * base.execution.batch_size, int(passes / of_rows(1))))
    reading = base.hours(prompts * base.mean_tokens(recipe.splits[0]) * 2 * size.text)
    decoding = prompts / rows * ASSUMED["answer_tokens"].value * base.device.step_seconds(size, rows) / 3600
    how = f"{queries:,} queries, {len(searched)} methods, at most {turns} turns in all, {rows} at a time"
    return Estimate("predictions", 0, weights + passes, reading + decoding, how)
