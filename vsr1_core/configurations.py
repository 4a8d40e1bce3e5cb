"""The built-in configurations. They run the same code at several sizes; no other code depends on the name of one."""

from __future__ import annotations

import dataclasses

from vsr1_core.recipes import (
    TRAININGS,
    Configuration,
    EndpointRecipe,
    EvalRecipe,
    FrameRecipe,
    GRPORecipe,
    MethodOptions,
    ModelRecipe,
    PoolRecipe,
    RetrievalRecipe,
    SFTRecipe,
    TinyRecipe,
)
from vsr1_core.toy_recipe import ToyRecipe

TINY_FRAMES = FrameRecipe(fps=1.0, max_frames=12, max_pixels=64 * 64)

TINY_SFT = SFTRecipe(
    steps=300,
    batch_size=32,
    lr=2e-3,
    refine_lr=1e-3,
    schedule="cosine",
    warmup_ratio=0.25,
    optimizer="muon",
    retrieval_weight=0.1,  # Muon steps P, R and A as far as with 1.0, and the text keeps the layers that both share
    retrieval_warmup_ratio=0.5,
    all_negatives=True,
    first_latents="words",
    bf16=False,
)

TINY = Configuration(
    name="tiny",
    retrain="auto",
    toy=ToyRecipe(synonym_probability=0.4),
    frames=TINY_FRAMES,
    models=ModelRecipe(
        options=MethodOptions(system_prompt="Does the video show what the query describes?"),
        tiny=TinyRecipe(vision_pretraining_steps=200, contrastive_steps=160, contrastive_lr=1.5e-3),
    ),
    # Stage 2 adds random negatives: with hard ones only, the soft tokens erase the query.
    retrieval=RetrievalRecipe(num_hard_negatives=6),
    pool=PoolRecipe(num_not_matched=1600, fill_matched=True, random_share=0.5),
    sft=TINY_SFT,
    fine_tuned=dataclasses.replace(TINY_SFT, refine="none", steps=150),
    hard_refine=dataclasses.replace(TINY_SFT, refine="text"),
    grpo=GRPORecipe(
        steps=10,
        queries_per_step=8,
        group_size=4,
        num_turns=2,
        max_new_tokens=120,
        matched_share=0.5,
        lr=1e-5,
        refine_lr=3e-5,
        warmup_steps=2,
        retrieval_weight=1.0,
        bf16=False,
    ),
    evaluation=EvalRecipe(max_new_tokens=120),
)

EXPERIMENT = dataclasses.replace(
    TINY,
    name="experiment",
    toy=dataclasses.replace(TINY.toy, num_train=3000),
    models=dataclasses.replace(
        TINY.models, tiny=dataclasses.replace(TINY.models.tiny, vision_pretraining_steps=300, contrastive_steps=220)
    ),
    sft=dataclasses.replace(TINY.sft, steps=700, retrieval_weight=0.03),
    fine_tuned=dataclasses.replace(TINY.fine_tuned, steps=400),
    hard_refine=dataclasses.replace(TINY.hard_refine, steps=400),
    grpo=dataclasses.replace(TINY.grpo, steps=100, lr=3e-5),
    evaluation=dataclasses.replace(
        TINY.evaluation,
        methods=(
            *EvalRecipe.methods,
            "hard_refine",
            "videosearch_r1+exclude_rejected",
            "videosearch_r1+last_latents",
        ),
    ),
)
"""The configuration that `vsr1 experiment` trains with several seeds: `tiny` with twice as many train videos and more
steps; L_ret weighs less, and stage 2 learns faster. A policy learns to write answers in 400 steps; learning to search
takes longer. Stage 2 begins to move VCMR only with a hundred steps. It has all methods except the ablation that needs
its own stage 1 (`sqr_sft+drop_above_positive`); add that one if there is time."""

NANO = Configuration(
    name="nano",
    retrain="auto",
    toy=ToyRecipe(num_train=24, num_val=4, num_test=8),
    frames=TINY_FRAMES,
    models=ModelRecipe(
        tiny=TinyRecipe(
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            vision_hidden_size=32,
            vision_pretraining_steps=2,
            contrastive_steps=2,
            contrastive_batch=8,
        )
    ),
    pool=PoolRecipe(num_matched=8, num_not_matched=8, fill_matched=True),
    sft=SFTRecipe(steps=2, batch_size=4, lr=1e-3, refine_lr=1e-3),
    fine_tuned=SFTRecipe(steps=2, batch_size=4, lr=1e-3, refine="none"),
    hard_refine=SFTRecipe(steps=2, batch_size=4, lr=1e-3, refine="text"),
    grpo=GRPORecipe(steps=1, queries_per_step=2, group_size=2, num_turns=2, max_new_tokens=24),
    evaluation=EvalRecipe(
        methods=(*EvalRecipe.methods, "hard_refine", "videosearch_r1+exclude_rejected", "sqr_sft+last_latents"),
        num_turns=2,
        max_new_tokens=24,
        num_resamples=50,
    ),
)
"""A build takes a few seconds on a CPU: for tests that need the whole graph and no good models."""

QWEN3_VL_2B = Configuration(
    name="qwen3-vl-2b",
    models=ModelRecipe(policy="Qwen/Qwen3-VL-2B-Instruct", embedder="Qwen/Qwen3-VL-Embedding-2B"),
    teacher=EndpointRecipe(model="Qwen/Qwen3-VL-30B-A3B-Thinking"),
    sft=SFTRecipe(gradient_checkpointing=True),
    fine_tuned=SFTRecipe(refine="none", gradient_checkpointing=True),
    hard_refine=SFTRecipe(refine="text", gradient_checkpointing=True),
    grpo=GRPORecipe(steps=1500, gradient_checkpointing=True),
    evaluation=EvalRecipe(methods=(*EvalRecipe.methods, "hard_refine", "videosearch_r1+exclude_rejected")),
)
"""The authors' settings for both training stages, and all methods of the paper's comparison. Stage 2 is bounded: an
epoch (`grpo.steps=0`), as the authors train, is 6,203 steps on Charades-FIG."""

QWEN3_VL_4B, QWEN3_VL_8B = (
    dataclasses.replace(
        QWEN3_VL_2B,
        name=f"qwen3-vl-{size.lower()}",
        models=dataclasses.replace(QWEN3_VL_2B.models, policy=f"Qwen/Qwen3-VL-{size}-Instruct"),
    )
    for size in ("4B", "8B")
)
"""A larger policy with the same embedder."""

QWEN3_VL_2B_24GB = dataclasses.replace(
    QWEN3_VL_2B,
    name="qwen3-vl-2b-24gb",
    frames=FrameRecipe(max_frames=32, max_pixels=131_072),
    sft=dataclasses.replace(QWEN3_VL_2B.sft, lora_rank=32, lr=2e-4),
    fine_tuned=dataclasses.replace(QWEN3_VL_2B.fine_tuned, lora_rank=32, lr=2e-4),
    hard_refine=dataclasses.replace(QWEN3_VL_2B.hard_refine, lora_rank=32, lr=2e-4),
    grpo=dataclasses.replace(QWEN3_VL_2B.grpo, lora_rank=32, lr=1e-5, group_size=4, num_turns=2),
)
"""For a GPU of 24 GB: both stages train adapters (LoRA) beside a text model in bf16, on fewer and smaller frames. The
learning rates of the adapters are ten and twenty times those of all weights, which is usual, and not tuned here."""

LAPTOP = Configuration(
    name="laptop",
    frames=FrameRecipe(max_frames=16, max_pixels=65_536),
    models=ModelRecipe(policy="", embedder=QWEN3_VL_2B.models.embedder),
)
"""Search without a GPU: the published embedder ranks videos by 16 small frames of each, and no policy verifies them."""

_ALL = (TINY, EXPERIMENT, NANO, LAPTOP, QWEN3_VL_2B, QWEN3_VL_2B_24GB, QWEN3_VL_4B, QWEN3_VL_8B)
CONFIGURATIONS: dict[str, Configuration] = {config.name: config for config in _ALL}


def with_seed(config: Configuration, seed: int, noise: int = 0) -> Configuration:
    """Return `config` with `seed` for everything random in training: initial weights, the order of rows, negatives and
    sampled episodes. The seeds of the corpus, the pool and the bootstrap stay the same.

    `noise` draws the relative noise on the first weights of the base model and of stage 1 (`recipes.TinyRecipe.noise`);
    stage 2 gets none of its own, because it starts from the weights of stage 1."""
    replace, models = dataclasses.replace, config.models
    noises = {name: {"noise": noise} for name in TRAININGS if hasattr(getattr(config, name), "noise")}
    return replace(
        config,
        models=replace(
            models, options=replace(models.options, seed=seed), tiny=replace(models.tiny, seed=seed, noise=noise)
        ),
        **{name: replace(getattr(config, name), seed=seed, **noises.get(name, {})) for name in TRAININGS},
    )
