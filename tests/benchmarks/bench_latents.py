"""How much faster the cached loop is than the plain way, measured in one run: `make bench`.

    python -m tests.benchmarks.bench_latents                            # CPU, tiny model
    python -m tests.benchmarks.bench_latents --device cuda --size 2b    # Qwen3-VL-2B's true size, random weights, bf16

Four comparisons, each with its own baseline and in a process of its own, so that one's memory is not another's: soft
query tokens against N full passes a row; refinement after generation against N bare steps; vision features read from
disk against computed; a whole evaluation (tiny: of the toy test split) against the same search one query at a time,
nothing kept but generation's own key-value cache. The plain way is timed on a subset, per query.

Weights are random, so next to no text ends before its limit and every query refines in every turn: the same work on
both sides, and about as much as a trained policy's, which writes about 70 tokens a turn on the toy videos.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.corpora import Corpus, random_corpus, random_frames
from tests.benchmarks.measuring import Clock, interleaved, line, megabytes, milliseconds
from tests.benchmarks.sizes import config_2b, random_models
from tests.core import naive
from tests.core.tiny_models import query_text, tiny_tokenizer
from vsr1_core.configurations import TINY
from vsr1_core.models.decoding import decode
from vsr1_core.models.feature_store import FeatureStore, feature_key
from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl.batching import language_model_kwargs, left_padded
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import VideoLayout, VideoPatches, build_prompts
from vsr1_core.models.qwen3_vl.kv_cache import InPlaceCache
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.policy import Policy
from vsr1_core.models.qwen3_vl.tiny import tiny_config
from vsr1_core.models.qwen3_vl.tokenizer import end_tokens
from vsr1_core.models.qwen3_vl.vision import (
    VideoFeatures,
    encode_videos,
    vision_digest,
)
from vsr1_core.models.tensor_folder import TensorFolder
from vsr1_core.reasoning.conversation import REFINE_TOKEN, build_messages, parse_answer
from vsr1_core.search.episodes import EpisodeSettings, Searcher
from vsr1_core.search.index import VideoIndex, build_index
from vsr1_core.search.turns import EpisodeQuery

NUM_SOFT_TOKENS = 8
PARTS = ("latents", "refinement", "features", "evaluation")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"There is no CUDA device here, so nothing was measured. On a machine that has one, run:\n"
            f"  python -m tests.benchmarks.bench_latents --device cuda --size {options.size}",
            file=sys.stderr,
        )
        return 1
    if options.part:
        return run_part(options)
    given = sys.argv[1:] if arguments is None else arguments
    command = [sys.executable, "-m", "tests.benchmarks.bench_latents", *given]
    return max(subprocess.run([*command, "--part", part], check=False).returncode for part in PARTS)


def run_part(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    options.clock = options.clock or ("cpu" if options.device == "cpu" else "wall")
    bench = Bench.of(options)
    if options.part == PARTS[0]:
        print(bench.title())
        print(f"{'':46}{'plain':>12}{'ours':>12}{'ratio':>9}   {'wanted'}")
    print("\n".join(getattr(bench, options.part)()), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=["tiny", "2b"], default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on a CPU, bfloat16 on CUDA")
    parser.add_argument("--batch", type=int, default=16, help="rows of the latent comparisons")
    parser.add_argument("--plain-rows", type=int, default=2, help="how many of them the plain way makes latents for")
    parser.add_argument("--queries", type=int, default=32, help="queries of the evaluation")
    parser.add_argument("--plain-queries", type=int, default=2, help="how many of them the plain loop answers")
    parser.add_argument("--max-new-tokens", type=int, default=72, help="text tokens a turn in the evaluation")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many runs")
    parser.add_argument("--clock", choices=["wall", "cpu"], help="default: cpu on a CPU, for others may use it, too")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--part", choices=PARTS, help="only this one, in this process")
    return parser


@dataclass
class Bench:
    """A policy and an embedder with random weights, and how they are measured."""

    policy: LoadedPolicy
    embedder: Qwen3VLEmbedder
    options: argparse.Namespace
    device: str

    @classmethod
    def of(cls, options: argparse.Namespace) -> Bench:
        dtype = getattr(torch, options.dtype or ("bfloat16" if options.device == "cuda" else "float32"))
        if options.size == "2b":
            config, tokenizer = config_2b(tiny_tokenizer()), tiny_tokenizer()
        else:
            from tests.benchmarks import toy_corpus  # needs polars, which a GPU machine may not have

            tokenizer = toy_corpus.toy_tokenizer()
            config = tiny_config(TINY.models.tiny, tokenizer)
        return cls(*random_models(config, tokenizer, options.device, dtype), options, options.device)

    @property
    def model(self) -> Policy:
        return self.policy.model

    @property
    def clock(self) -> Clock:
        return Clock(self.device, self.options.clock)

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    @cached_property
    def refine_id(self) -> int:
        return int(self.policy.tokenizer.convert_tokens_to_ids(REFINE_TOKEN))

    @cached_property
    def ends(self) -> list[int]:
        return sorted(end_tokens(self.policy.tokenizer))

    @cached_property
    def corpus(self) -> Corpus:
        """What is searched; `--queries` of it are asked, spread over all."""
        if self.options.size == "tiny":
            from tests.benchmarks.toy_corpus import toy_test_split

            return toy_test_split(self.model.config)
        return random_corpus(self.model.config, self.options.queries, num_frames=16, side=448)

    def title(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        where = (
            torch.cuda.get_device_name()
            if self.device == "cuda"
            else f"CPU, {torch.get_num_threads()} threads, {self.options.clock} time"
        )
        return f"{parameters / 1e6:,.1f} M parameters, {self.model.dtype}, {where}, torch {torch.__version__}"

    def prompts(self, videos: Sequence[VideoPatches]) -> list[Prompt]:
        layouts = [VideoLayout(v.grid, v.marks_s) for v in videos]
        conversations = [build_messages(query_text(i)) for i in range(len(videos))]
        return build_prompts(self.policy.tokenizer, self.model.model, conversations, layouts)

    def decode(
        self, prompts: Sequence[Prompt], features: Sequence[VideoFeatures], max_new_tokens: int, soft_tokens: int
    ) -> list[Decoded]:
        settings = DecodeSettings(max_new_tokens, 0.0, soft_tokens)
        return decode(self.policy, prompts, features, settings, wants_refine=lambda _text: True)

    @torch.no_grad()
    def decode_with_videos(self, prompts: Sequence[Prompt], videos: Sequence[VideoPatches]) -> list[Decoded]:
        """Vision tower and prompts too, as for queries whose videos nobody has asked about yet."""
        return self.decode(prompts, encode_videos(self.model.model, videos), 0, NUM_SOFT_TOKENS)

    @torch.no_grad()
    def naive_latents(self, prompt: Prompt, text_ids: Sequence[int], video: VideoPatches) -> Tensor:
        ids = torch.cat([prompt.token_ids, torch.tensor([*text_ids, self.refine_id])]).to(self.device)
        patches = video.patches.to(self.device)
        return naive.latents(self.model, self.weights, ids, patches, video.grid, NUM_SOFT_TOKENS)

    def latents(self) -> list[str]:
        """z_1..z_N of a batch: vision tower, prompt and latents, against N full passes for each row."""
        videos = [random_frames(seed, 12, 384, 512, self.model.config) for seed in range(self.options.batch)]
        prompts = self.prompts(videos)
        few = min(self.options.plain_rows, len(videos))
        self.naive_latents(prompts[0], [], videos[0])  # warms up
        with torch.no_grad():
            features = encode_videos(self.model.model, videos)
        plain, ours, shared = interleaved(
            self.options.repeats,
            self.clock,
            lambda: [self.naive_latents(p, [], v) for p, v in zip(prompts[:few], videos, strict=False)],
            lambda: self.decode_with_videos(prompts, videos),
            lambda: self.decode(prompts, features, 0, NUM_SOFT_TOKENS),
        )
        plain_s, ours_s, shared_s = plain.median / few, ours.median / len(videos), shared.median / len(videos)
        after_s = self._refinement_seconds(prompts, videos)[0] / len(videos)
        expected, made = torch.stack(plain.result), torch.stack([row.latents for row in ours.result[:few]])
        difference = float((made - expected).abs().max() / expected.abs().max())
        memory = plain.peak_bytes, ours.peak_bytes
        return [
            f"{len(videos)} rows of {len(prompts[0].token_ids)} tokens; largest difference {difference:.1e} (relative)",
            self.latents_line("with prompt and video", plain_s, ours_s),
            self.latents_line("with prompt, video kept", plain_s, shared_s),
            self.latents_line("after generation", plain_s, after_s, "at least 10"),
            "  peak memory: {} for one row, {} for {}".format(*map(megabytes, memory), len(videos)),
        ]

    def latents_line(self, what: str, plain_s: float, ours_s: float, wanted: str = "") -> str:
        of, against = f"a row's latents {what}", f"{NUM_SOFT_TOKENS} full passes"
        return line(of, *milliseconds(plain_s, ours_s), plain_s / ours_s, wanted, against=against)

    def refinement(self) -> list[str]:
        """What refining costs after text, against N bare steps of the language model on the same cache."""
        videos = [random_frames(seed, 12, 384, 512, self.model.config) for seed in range(self.options.batch)]
        refined, steps = self._refinement_seconds(self.prompts(videos), videos)
        per_row, against = milliseconds(steps / len(videos), refined / len(videos)), f"{NUM_SOFT_TOKENS} bare steps"
        return [line("a row's refinement", *per_row, refined / steps, "at most 1.3", against=against)]

    @torch.no_grad()
    def _refinement_seconds(self, prompts: Sequence[Prompt], videos: Sequence[VideoPatches]) -> tuple[float, float]:
        """Median seconds of the whole batch: from the end of the text to the last latent, and N bare steps."""
        features = encode_videos(self.model.model, videos)
        batch = left_padded(self.model.model, prompts, features, self.policy.tokenizer.pad_token_id)
        refined, bare = [], []
        for _ in range(max(5, self.options.repeats)):
            refined.append(self._seconds_after_text(prompts, features))
            cache = InPlaceCache(self.model.config.text_config.num_hidden_layers, NUM_SOFT_TOKENS)
            self.model.model.language_model(**language_model_kwargs(batch), past_key_values=cache)
            bare.append(self._seconds_of_steps(batch.mask, batch.positions.amax(dim=(0, 2)), cache))
        return statistics.median(refined), statistics.median(bare)

    def _seconds_after_text(self, prompts: Sequence[Prompt], features: Sequence[VideoFeatures]) -> float:
        """The clock starts when the loop asks the first row whether it wants to refine: all texts end together."""
        started: list[float] = []

        def begin(_text: str) -> bool:
            if not started:
                started.append(self.clock())
            return True

        settings = DecodeSettings(4, 0.0, NUM_SOFT_TOKENS)
        decode(self.policy, prompts, features, settings, wants_refine=begin)
        return self.clock() - started[0]

    def _seconds_of_steps(self, mask: Tensor, positions: Tensor, cache: InPlaceCache) -> float:
        embeds = self.model.get_input_embeddings().weight[: len(mask), None]
        started = self.clock()
        for step in range(NUM_SOFT_TOKENS):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            at = (positions + 1 + step)[None, :, None].expand(3, -1, -1)
            self.model.model.language_model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=at, past_key_values=cache
            )
        return self.clock() - started

    def features(self) -> list[str]:
        """Vision features of the evaluation's videos, by the tower and from disk."""
        videos = self.corpus.videos
        ids = list(videos)[: 64 if self.options.size == "2b" else None]
        with tempfile.TemporaryDirectory() as folder:
            digest = vision_digest(self.model.model)
            key_of = lambda video_id: feature_key(digest, video_id, "bench")  # noqa: E731
            kept = lambda number: FeatureStore(  # noqa: E731
                self.policy.encoder, videos.__getitem__, disk=TensorFolder(Path(folder) / number), key_of=key_of
            )
            kept("0").get(ids)
            fresh = iter(range(1, self.options.repeats + 1))
            computed, written, read = interleaved(
                self.options.repeats,
                self.clock,
                lambda: FeatureStore(self.policy.encoder, videos.__getitem__).get(ids),
                lambda: kept(str(next(fresh))).get(ids),
                lambda: sum(float(f.tokens.sum()) for f in kept("0").get(ids)),  # the pages are read when touched
            )
        plain_s, both_s, ours_s = (m.median / len(ids) for m in (computed, written, read))
        shown = milliseconds(plain_s, ours_s)
        return [
            line("a video's features from disk", *shown, plain_s / ours_s, against="the vision tower"),
            f"  computing and writing them takes {both_s * 1e3:.2f} ms a video",
        ]

    def evaluation(self) -> list[str]:
        """Queries a second of a three-turn search."""
        videos, every = self.corpus.videos, self.corpus.queries
        queries = every[:: max(1, len(every) // self.options.queries)][: self.options.queries]
        with torch.no_grad():
            store = FeatureStore(self.embedder.encoder, videos.__getitem__, batch_size=16)
            vectors = torch.cat([self.embedder.embed_features(store.get([v])) for v in videos])
        index = build_index(list(videos), vectors.float().cpu().numpy())
        few = queries[:: max(1, len(queries) // self.options.plain_queries)][: self.options.plain_queries]
        plain, ours = interleaved(
            self.options.repeats,
            self.clock,
            lambda: [self._plain_search(q, index, videos) for q in few],
            lambda: self._search(queries, index),
        )
        rates = len(few) / plain.median, len(queries) / ours.median
        found = {episode.query.query_id: episode for episode in ours.result}
        same = sum(
            shown == [turn.video_id for turn in found[query.query_id].turns]
            for query, shown in zip(few, plain.result, strict=True)
        )
        memory = plain.peak_bytes, ours.peak_bytes
        turns = [turn for episode in ours.result for turn in episode.turns]
        text, soft = (sum(getattr(t.decoded, f"num_{kind}_tokens") for t in turns) for kind in ("text", "latent"))
        return [
            f"{self.corpus.name}: {len(queries)} queries over {len(videos)} videos, {len(turns)} turns, {text} text "
            f"and {soft} latent tokens ({(text + soft) / ours.median:,.0f} a second)",
            f"the plain loop answers {len(few)} of them; {same} show the same videos in the same order",
            line(
                f"evaluation of {len(queries)} queries",
                *(f"{rate:.2f} per s" for rate in rates),
                rates[1] / rates[0],
                "at least 5",
                against="the loop of plain calls",
            ),
            "  peak memory: {} for one query, {} for all".format(*map(megabytes, memory)),
        ]

    def _search(self, queries: Sequence[EpisodeQuery], index: VideoIndex) -> list[Any]:
        """Nothing is kept from an earlier run: the searcher and its stores are new."""
        settings = EpisodeSettings(decode=DecodeSettings(self.options.max_new_tokens, 0.0, NUM_SOFT_TOKENS))
        searcher = Searcher(
            policy=self.policy,
            embedder=self.embedder,
            index=index,
            features=FeatureStore(self.policy.encoder, self.corpus.videos.__getitem__),
            durations_s=self.corpus.durations_s,
            settings=settings,
        )
        return searcher.run(queries)

    @torch.no_grad()
    def _plain_search(self, query: EpisodeQuery, index: VideoIndex, videos: dict[str, VideoPatches]) -> list[str]:
        """One query at a time, the video read in every pass, N full passes a refinement: as docs/method.md says it."""
        body, tokenizer = self.embedder.model, self.policy.tokenizer
        latents: list[Tensor] = []
        shown: list[str] = []
        for _turn in range(3):
            soft = torch.cat(latents) if latents else None
            vector = naive.query_vector(body, tokenizer, self.weights, query.text, soft)
            ids, _ = index.search(vector[None].float().cpu().numpy(), 1)
            shown.append(ids[0][0])
            video = videos[shown[-1]]
            prompt = self._plain_prompt(query.text, video)
            patches = video.patches.to(self.device, self.model.dtype)
            written = naive.greedy_ids(
                self.model,
                prompt.token_ids.to(self.device),
                patches,
                video.grid,
                max_new_tokens=self.options.max_new_tokens,
                eos_token_id=self.ends,
                pad_token_id=tokenizer.pad_token_id,
            )
            text = [t for t in written if t not in self.ends]
            if parse_answer(tokenizer.decode(text), self.corpus.durations_s[shown[-1]]).decision == "matched":
                break
            latents.append(self.naive_latents(prompt, text, video))
        return shown

    def _plain_prompt(self, query: str, video: VideoPatches) -> Prompt:
        layout = VideoLayout(video.grid, video.marks_s)
        return build_prompts(self.policy.tokenizer, self.model.model, [build_messages(query)], [layout])[0]


if __name__ == "__main__":
    sys.exit(main())
