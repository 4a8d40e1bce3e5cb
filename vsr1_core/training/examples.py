"""The rows of stage 1 as tensors: prompt, answer tokens with their parts, and the right and wrong videos of retrieval.

They are made once and kept, because an epoch of a tiny model is cheaper than tokenizing the rows again. No loss and no
trainer here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.protocols import PolicyModel
from vsr1_core.models.text_tokens import answer_ids
from vsr1_core.reasoning.conversation import REFINE_TOKEN, build_messages

REASONING, VERIFICATION, GROUNDING, REWRITING = 0, 1, 2, 3
PART_NAMES = ("reasoning", "verification", "grounding", "rewriting")
_PARTS = {
    VERIFICATION: re.compile(r"<answer>.*?</answer>", re.DOTALL),
    GROUNDING: re.compile(r"<start>.*?</end>", re.DOTALL),
    REWRITING: re.compile(r"<query>.*?</query>", re.DOTALL),
}


@dataclass(frozen=True)
class SFTExample:
    """One row of stage 1."""

    query_id: str
    query: str
    prompt: Prompt
    """Question and answer. It ends with <REFINE> (a mismatch that soft tokens refine) or with the stop token."""
    parts: Tensor
    """int [n]: the part of each answer token, an index into `PART_NAMES`; the answer is the last n tokens."""
    refines: bool
    """Whether the answer ends with <REFINE>."""
    shown_video_id: str
    gt_video_id: str
    """The right segment: the right video, or the window of it that the refined query is drawn to."""
    negative_ids: tuple[str, ...]


def answer_parts(answer: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The part of each token, by the place of its first character; `offsets` are (start, end) of tokens in `answer`."""
    spans = [(part, m.start(), m.end()) for part, form in _PARTS.items() for m in form.finditer(answer)]
    return [next((part for part, a, b in spans if a <= start < b), REASONING) for start, _ in offsets]


def build_examples(
    policy: PolicyModel, rows: Sequence[dict[str, Any]], layouts: Sequence[Any], batch_size: int = 256
) -> list[SFTExample]:
    """Make examples from `rows` of the table sft_examples; `layouts` are the layouts of their shown videos."""
    tokenizer = policy.tokenizer
    system = policy.model.soft_query.form.sft_prompt or policy.model.soft_query.system_prompt
    examples = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        conversations = [build_messages(r["query"], system) for r in some]
        prompts = policy.prompts(conversations, layouts[start : start + batch_size])
        for row, prompt in zip(some, prompts, strict=True):
            ids, offsets = answer_ids(tokenizer, row["answer"])
            parts = answer_parts(row["answer"], offsets)
            refines = row["answer"].endswith(REFINE_TOKEN)
            if not refines:
                ids, parts = [*ids, tokenizer.eos_token_id], [*parts, REASONING]
            examples.append(
                SFTExample(
                    query_id=row["query_id"],
                    query=row["query"],
                    prompt=extended(prompt, ids),
                    parts=torch.tensor(parts),
                    refines=refines,
                    shown_video_id=row["shown_video_id"],
                    gt_video_id=row["gt_video_id"],
                    negative_ids=tuple(row["negative_ids"]),
                )
            )
    return examples


def choose_negatives(
    nearest: Sequence[str], corpus_ids: Sequence[str], never: frozenset[str], wanted: int, rng: random.Random
) -> list[str]:
    """Choose the negatives of a query's retrieval loss.

    Args:
        nearest: Videos that are chosen first: the shown wrong video, then the hard negatives by their rank.
        corpus_ids: The videos from which the remaining negatives are drawn.
        never: Videos that must not be negatives: those that share the query's text, and its own video.
        wanted: How many ids to choose.
        rng: Draws from `corpus_ids`.

    Returns:
        `wanted` ids, or fewer if the corpus is too small.
    """
    chosen = [v for v in dict.fromkeys(nearest) if v not in never][:wanted]
    taken = {*chosen, *never}
    while len(chosen) < wanted and len(taken) < len(corpus_ids):
        video_id = rng.choice(corpus_ids)
        if video_id not in taken:
            taken.add(video_id)
            chosen.append(video_id)
    # `taken` may name videos that the corpus lacks, and is as large as the corpus before all of it is taken then.
    left = [video_id for video_id in corpus_ids if video_id not in taken] if len(chosen) < wanted else []
    return chosen + rng.sample(left, min(wanted - len(chosen), len(left)))
