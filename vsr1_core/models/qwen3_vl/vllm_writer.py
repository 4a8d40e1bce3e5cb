"""Writes text on a GPU with vLLM (the extra `vllm`); implements `protocols.TextWriter`. It makes no latents: the
decoding loop makes them in a pass over prompt and text.

vLLM gets the prompt as token ids with one placeholder for the video. In place of pixels it gets the vision features
that this project keeps anyway, with their time marks, so the tower runs once for both. vLLM returns the prompt as it
expanded it, which must equal the prompt of this project token by token. Log-probabilities are at temperature 1.

Tested with the CPU build of vLLM 0.30 and models of random weights with heads of 32, in float32: greedy texts equal
those of the loop token by token, log-probabilities and odds of the decision agree to 1e-5, also after videos of 6,272
and 9,408 tokens and with Qwen's own tokenizer, and equal seeds give equal samples
(`test_vllm_writes_what_the_loop_writes`). In bfloat16, 17 of 20 texts were equal, and log-probabilities agreed to 0.05.
A GPU and published weights have not been tested, so the speed, and the memory beside the policy's, are not known. vLLM
warns that its multi-modal warmup failed: the warmup uses pixels, and vLLM gets none here.

In stage 2 the engine runs in the process that trains (`learns`), beside the policy on the same GPU, and gets the
weights that have changed after every step; what it has cached for prompts is dropped then.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vsr1_core.models.answer_tokens import DecisionTokens, decision_tokens, written_text
from vsr1_core.models.prompts import Prompt
from vsr1_core.models.protocols import Decoded, DecodeSettings
from vsr1_core.models.qwen3_vl.inputs import VIDEO_PAD, mark_text
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.policy import Policy
from vsr1_core.models.qwen3_vl.tokenizer import end_tokens
from vsr1_core.models.qwen3_vl.vision import VideoFeatures
from vsr1_core.models.soft_query import is_soft_query
from vsr1_core.rows.files import atomic_folder, read_json, write_json

INSTALL = (
    "the text writer `vllm` needs vLLM, which is not installed. On a Linux machine with an NVIDIA GPU, run: "
    "pip install -e '.[vllm]' (without constraints.txt, because vLLM excludes some of its versions)"
)
_PIXELS = {"shortest_edge": 4096, "longest_edge": 25_165_824}
"""Pixels of a whole video, as published with Qwen3-VL. No pixels are processed here, but vLLM computes the size of its
buffers from these numbers."""

_running: list[Any] = []
"""The engine of the last writer. Its processes and its memory outlive the writer, and the next writer needs the
memory."""


@dataclass(frozen=True)
class VLLMWriter:
    """Writes text with `llm`, a vllm.LLM from `open_writer`; `sampling_params` is the class vllm.SamplingParams.

    A `generator` draws a seed for each row; the samples differ from those of the in-process loop.
    """

    llm: Any
    sampling_params: Callable[..., Any]
    tokenizer: PreTrainedTokenizerBase

    def write(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[VideoFeatures | None],
        settings: DecodeSettings,
        generator: torch.Generator | None = None,
    ) -> list[Decoded]:
        """See `protocols.TextWriter`. Raises RuntimeError if vLLM expands a prompt differently than this project."""
        decision = decision_tokens(self.tokenizer)
        requests = [request(*row, self.tokenizer) for row in zip(prompts, features, strict=True)]
        kwargs = [sampling(settings, self.tokenizer, decision, seed) for seed in _seeds(len(prompts), generator)]
        outputs = self.llm.generate(requests, [self.sampling_params(**k) for k in kwargs], use_tqdm=False)
        return [_decoded(*row, self.tokenizer, decision) for row in zip(outputs, prompts, strict=True)]

    def take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `protocols.TextWriter`. The engine must have been opened with `learns`, so that it runs in this process:
        no weight is copied on its way. Soft query modules are left out, as in the export."""
        known = ((name, tensor) for name, tensor in weights if not is_soft_query(name))
        # Not the model's `load_weights`: the backend of CPUs keeps matrices only in a form of its own, which vLLM makes
        # anew in a reload. That empties the worker's cache of read videos, so the scheduler's has to be emptied too.
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": known})
        self.llm.apply_model(_process_head)
        self.llm.llm_engine.reset_encoder_cache()
        self.llm.reset_prefix_cache()

    def close(self) -> None:
        """See `protocols.TextWriter`."""
        _stop_running()


def _process_head(model: Any) -> None:
    """Derive anew what vLLM derives from the weights of the output layer. A reload leaves this layer out where its
    matrix is that of the input embeddings, and the backend of CPUs multiplies with a copy of its own."""
    head = model.get_language_model().lm_head
    head.quant_method.process_weights_after_loading(head)


def open_writer(
    policy: LoadedPolicy,
    folder: Path,
    max_model_len: int = 16_384,
    gpu_memory_utilization: float = 0.5,
    learns: bool = False,
) -> VLLMWriter:
    """Start vLLM with the weights of `policy`. An earlier writer of this process is stopped.

    Args:
        policy: The policy whose text is written.
        folder: Where the weights are exported to for vLLM, unless the folder has them already.
        max_model_len: Tokens of the longest prompt with its text (64 frames of 200,704 pixels are 6,700 tokens).
        gpu_memory_utilization: The share of GPU memory for vLLM; policy and embedder need the rest. With the CPU build
            of vLLM it is a share of main memory, unless VLLM_CPU_KVCACHE_SPACE sets the GiB of its cache.
        learns: The policy is trained while it writes (`VLLMWriter.take_weights`). On a GPU, vLLM then computes in
            bfloat16, although the weights that learn are float32.

    Raises:
        ModuleNotFoundError: vLLM is not installed; the message says how to install it.
    """
    try:
        from vllm import LLM, SamplingParams
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ModuleNotFoundError(INSTALL, name="vllm") from error
    if not (folder / "config.json").exists():
        export_for_vllm(policy, folder)
    _stop_running()
    is_cpu = policy.model.device.type == "cpu"
    dtype = torch.bfloat16 if learns and not is_cpu else policy.model.dtype
    with _in_this_process() if learns else contextlib.nullcontext():
        llm = LLM(
            model=str(folder),
            trust_remote_code=False,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=min(max_model_len, policy.model.config.text_config.max_position_embeddings),
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=is_cpu,  # on a CPU, compiling takes a minute or more
            enable_mm_embeds=True,
            limit_mm_per_prompt={"image": 0, "video": 1},
            skip_mm_profiling=True,  # the tower is loaded, but gets no pixels
            generation_config="vllm",
            logprobs_mode="raw_logprobs",
        )
    _running.append(llm.llm_engine.engine_core)
    return VLLMWriter(llm, SamplingParams, policy.tokenizer)


def _stop_running() -> None:
    while _running:
        _running.pop().shutdown()


@contextlib.contextmanager
def _in_this_process() -> Iterator[None]:
    """vLLM starts its engine in a process of its own unless its environment variable says otherwise."""
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def request(prompt: Prompt, feature: VideoFeatures | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A prompt in the format of vLLM: its video as one placeholder, and the features of the video.

    Main features and deepstack levels are side by side, [n, H * (1 + levels)], as the tower of vLLM returns them.
    """
    if feature is None:
        return {"prompt_token_ids": prompt.token_ids.tolist()}
    values = torch.cat([feature.tokens, *feature.deepstack], dim=-1).cpu()
    video = {
        "video_embeds": values,
        "video_grid_thw": torch.tensor([feature.layout.grid]),
        "timestamps": [list(feature.layout.marks_s)],
    }
    return {"prompt_token_ids": _folded(prompt, feature, tokenizer), "multi_modal_data": {"video": video}}


def _folded(prompt: Prompt, feature: VideoFeatures, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of the prompt, in which the whole video, from its first time mark to the end of the last frame, is
    one placeholder."""
    ids, places = prompt.token_ids.tolist(), prompt.video_mask.nonzero()[:, 0].tolist()
    first_mark = tokenizer(mark_text(feature.layout.marks_s[0]), add_special_tokens=False)["input_ids"]
    start, end = places[0] - 1 - len(first_mark), places[-1] + 2
    return [*ids[:start], tokenizer.convert_tokens_to_ids(VIDEO_PAD), *ids[end:]]


def sampling(
    settings: DecodeSettings, tokenizer: PreTrainedTokenizerBase, decision: DecisionTokens, seed: int | None
) -> dict[str, Any]:
    """Arguments of vllm.SamplingParams for one row. The text ends where the loop would end it, and vLLM returns the
    log-probabilities of the two decisions."""
    return {
        "temperature": settings.temperature,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": sorted(end_tokens(tokenizer)),
        "ignore_eos": True,  # the list above is complete
        "logprob_token_ids": [decision.matched, decision.not_matched],
        "detokenize": False,
        "seed": seed,
    }


def _seeds(count: int, generator: torch.Generator | None) -> list[int] | list[None]:
    if generator is None:
        return [None] * count
    return torch.randint(2**31, (count,), generator=generator, device=generator.device).tolist()


def _decoded(output: Any, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, decision: DecisionTokens) -> Decoded:
    """A vllm.RequestOutput as a row without latents."""
    if list(output.prompt_token_ids) != prompt.token_ids.tolist():
        raise RuntimeError(
            f"vLLM read a prompt of {len(output.prompt_token_ids)} tokens instead of {len(prompt.token_ids)}, because "
            "it expands videos differently than this project does; use vLLM 0.30, or the text writer `in-process`"
        )
    written = output.outputs[0]
    ids = list(written.token_ids)
    row = Decoded(ids, [at[token].logprob for token, at in zip(ids, written.logprobs, strict=True)])
    row.text = written_text(tokenizer, ids, end_tokens(tokenizer))
    deciding = decision.place(ids[:-1])
    if ids and deciding is not None:
        yes, no = (written.logprobs[deciding][token].logprob for token in (decision.matched, decision.not_matched))
        row.matched_probability = 1 / (1 + math.exp(no - yes))
    return row


def export_for_vllm(policy: LoadedPolicy, folder: Path) -> None:
    """Write a folder that vLLM loads, in the format of the published Qwen3-VL. vLLM refuses tensors that it does not
    know, so the soft query modules are left out; it needs the settings of a processor, so they are written."""
    with atomic_folder(folder) as temporary:
        known = {k: v for k, v in policy.model.state_dict().items() if not is_soft_query(k)}
        policy.model.save_pretrained(temporary, state_dict=known)
        policy.tokenizer.save_pretrained(temporary)
        config = read_json(temporary / "config.json")
        config.pop("soft_query")
        write_json(temporary / "config.json", {**config, "architectures": ["Qwen3VLForConditionalGeneration"]})
        for name, settings in _processors(policy.model).items():
            write_json(temporary / name, settings)


def _processors(policy: Policy) -> Mapping[str, dict[str, Any]]:
    vision = policy.config.vision_config
    shared = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": _PIXELS,
    }
    return {
        "preprocessor_config.json": {**shared, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {**shared, "video_processor_type": "Qwen3VLVideoProcessor"},
    }
