"""Several trainings of one configuration, which differ in their seed, as one result: means, intervals, and whether the
paper's claims hold. In plain numpy; no tables are read here and nothing is built.

Two sources of chance are kept apart. Another training: 95 % intervals of the mean over seeds, by Student's t. Other
queries: paired bootstrap over queries, every seed and method on the same draws, of what is averaged over the seeds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vsr1_core.evaluation import metrics as m
from vsr1_core.evaluation.curves import SOFT_TOKENS, TURNS, Point
from vsr1_core.evaluation.plots import in_method_order
from vsr1_core.rows.files import atomic_folder, write_json

T_POINTS = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Two-sided 95 % points of Student's t with 1, 2, 3, ... degrees of freedom; further ones are taken as 1.960."""
HEADLINES = {
    "first_recall_at_1": "VR R@1, first ranking",
    "recall_at_1": "VR R@1, last ranking",
    "recall_at_10": "VR R@10, last ranking",
    "vcmr_0.3": "VCMR R@1, IoU 0.3",
    "vcmr_0.5": "VCMR R@1, IoU 0.5",
    "vcmr_0.7": "VCMR R@1, IoU 0.7",
    "vcmr_best_0.5": "the same, best answer",
    "verification_accuracy": "VER, videos as shown",
    "balanced_verification_accuracy": "VER, balanced probe",
    "grounding_0.5": "grounding IoU 0.5, accepted right videos",
    "num_text_tokens": "text tokens a query",
    "num_latent_tokens": "latent tokens a query",
    "num_query_tokens": "of the text, new queries",
}
COUNTS = m.TOKEN_COUNTS
COMPARED = ("recall_at_1", "vcmr_0.5", "verification_accuracy")


@dataclass(frozen=True)
class Estimate:
    """A number averaged over the seeds. samples: (R,), the same number on resampled queries."""

    value: float
    samples: m.FloatArray

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.samples - other.samples)

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, self.samples + other.samples)

    def over(self, other: Estimate) -> Estimate:
        """The gain on `other`, relative."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return Estimate(_ratio(self.value, other.value) - 1, self.samples / other.samples - 1)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, over queries."""
        return m.interval(self.samples)


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


@dataclass
class Experiment:
    """runs: seed -> method -> its scores, all over the same queries; only methods that every run has are compared.

    Raises ValueError where runs have other queries or no method in common.
    """

    config: str
    runs: Mapping[int, Mapping[str, m.Scores]]
    num_resamples: int = 1000
    seed: int = 42
    _bootstrap: dict[tuple[int, str], dict[str, m.FloatArray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        queries = {scores.query_ids for run in self.runs.values() for scores in run.values()}
        if len(queries) != 1 or not self.methods:
            raise ValueError(
                f"the runs of {self.config} cannot be compared: they have {len(queries)} sets of queries and "
                f"{len(self.methods)} methods in common; build them with the same configuration and corpus"
            )

    @property
    def methods(self) -> list[str]:
        return in_method_order(list(set.intersection(*(set(run) for run in self.runs.values()))))

    @property
    def num_queries(self) -> int:
        return len(next(iter(next(iter(self.runs.values())).values())).query_ids)

    def values(self, method: str, metric: str) -> m.FloatArray:
        """One a seed, NaN where nothing is judged."""
        return np.array([m.values(run[method]).get(metric, np.nan) for run in self.runs.values()])

    def estimate(self, method: str, metric: str) -> Estimate:
        samples = [self._samples(seed, method)[metric] for seed in self.runs]
        return Estimate(float(self.values(method, metric).mean()), np.mean(samples, axis=0))

    def has(self, *methods: str) -> bool:
        return set(methods) <= set(self.methods)

    def _samples(self, seed: int, method: str) -> dict[str, m.FloatArray]:
        if (seed, method) not in self._bootstrap:
            scores = self.runs[seed][method]
            self._bootstrap[seed, method] = m.bootstrap(scores, self.num_resamples, self.seed)
        return self._bootstrap[seed, method]


def mean_interval(values: Sequence[float] | m.FloatArray) -> tuple[float, float, float]:
    """Mean of one number a seed and its 95 % interval by Student's t; NaN bounds for a single seed."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return float(array.mean()), float("nan"), float("nan")
    points = (*T_POINTS, 1.960)
    half = points[min(array.size - 2, len(points) - 1)] * array.std(ddof=1) / np.sqrt(array.size)
    return float(array.mean()), float(array.mean() - half), float(array.mean() + half)


_FLOATS = ("mean", "low", "high")
RESULT_SCHEMA: dict[str, Any] = {"method": pl.String, "metric": pl.String, **dict.fromkeys(_FLOATS, pl.Float64)}
DIFFERENCE_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("before", "after", "metric"), pl.String),
    **dict.fromkeys(("difference", "low", "high", "seeds_low", "seeds_high"), pl.Float64),
}


def results(experiment: Experiment) -> pl.DataFrame:
    """(method, metric, mean, low, high, values): every metric and curve point, over the seeds."""
    rows = []
    for method in experiment.methods:
        names = m.values(next(iter(experiment.runs.values()))[method])
        for metric in names:
            values = experiment.values(method, metric)
            rows.append((method, metric, *mean_interval(values), values.tolist()))
    schema = {**RESULT_SCHEMA, "values": pl.List(pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col(*_FLOATS).fill_nan(None))


def differences(experiment: Experiment) -> pl.DataFrame:
    """Each method against the one before it, and each with an option against the same without: low and high over
    queries (paired bootstrap), seeds_low and seeds_high over seeds."""
    rows = []
    for before, after in _pairs(experiment.methods):
        for metric in COMPARED:
            gain = experiment.estimate(after, metric) - experiment.estimate(before, metric)
            of_seeds = mean_interval(experiment.values(after, metric) - experiment.values(before, metric))[1:]
            rows.append((before, after, metric, gain.value, *gain.interval, *of_seeds))
    return pl.DataFrame(rows, schema=DIFFERENCE_SCHEMA, orient="row").fill_nan(None)


def _pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    basic = [name for name in methods if "+" not in name]
    options = [(name.partition("+")[0], name) for name in methods if "+" in name]
    return [*itertools.pairwise(basic), *(pair for pair in options if pair[0] in basic)]


# ---- claims ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What should hold, what was found (with its interval over queries), and whether it does; None where it cannot be
    judged. `unit` says how the numbers are shown: `share`, `gain` (relative) or `tokens`."""

    text: str
    value: float
    low: float
    high: float
    holds: bool | None
    unit: str = "share"


def claims(experiment: Experiment, num_soft_tokens: int) -> list[Claim]:
    """The paper's claims as far as the reported methods can show them, by the means over the seeds."""
    return [
        *_retrieval_claims(experiment),
        *_moment_claims(experiment),
        *_hard_refinement_claims(experiment),
        *_curve_claims(experiment, num_soft_tokens),
    ]


def _claim(text: str, found: Estimate, holds: bool, unit: str = "share") -> Claim:
    is_known = not np.isnan(found.value)
    return Claim(text, found.value, *found.interval, bool(holds) if is_known else None, unit)


def _retrieval_claims(e: Experiment) -> Iterator[Claim]:
    for method, name in (("sqr_sft", "stage 1"), ("videosearch_r1", "stage 2")):
        if e.has(method):
            gain = e.estimate(method, "recall_at_1").over(e.estimate(method, "first_recall_at_1"))
            text = f"SQR after {name} lifts R@1 over the first ranking by at least 60 %, interval above 0"
            yield _claim(text, gain, gain.value >= 0.6 and gain.interval[0] > 0, "gain")


def _moment_claims(e: Experiment) -> Iterator[Claim]:
    def vcmr(method: str) -> Estimate:
        return e.estimate(method, "vcmr_0.5")

    if e.has("fine_tuned", "zero_shot"):
        found = vcmr("fine_tuned") - vcmr("zero_shot")
        yield _claim("VCMR: fine-tuned above zero-shot", found, found.value > 0)
    if e.has("sqr_sft", "fine_tuned"):
        found = vcmr("sqr_sft") - vcmr("fine_tuned")
        yield _claim("VCMR: stage 1 above fine-tuned", found, found.value > 0)
    if e.has("videosearch_r1", "sqr_sft"):
        found = vcmr("videosearch_r1") - vcmr("sqr_sft")
        yield _claim("VCMR: stage 2 not below stage 1", found, found.value >= 0)
    if e.has("videosearch_r1", "fine_tuned"):
        found = vcmr("videosearch_r1").over(vcmr("fine_tuned"))
        yield _claim("VCMR: stage 2 above fine-tuned by at least 25 %", found, found.value >= 0.25, "gain")
    if e.has("videosearch_r1"):
        found = e.estimate("videosearch_r1", "verification_accuracy")
        yield _claim("Verification accuracy of stage 2 at least 85 %", found, found.value >= 0.85)
        found = e.estimate("videosearch_r1", "grounding_0.5")
        yield _claim("Grounding IoU 0.5 of stage 2, right video given, at least 70 %", found, found.value >= 0.7)


def _hard_refinement_claims(e: Experiment) -> Iterator[Claim]:
    if not e.has("sqr_sft", "hard_refine"):
        return
    found = e.estimate("sqr_sft", "recall_at_1") - e.estimate("hard_refine", "recall_at_1")
    yield _claim("R@1: soft refinement (stage 1) not below hard refinement", found, found.value >= 0)
    spent = [e.estimate(m, "num_text_tokens") + e.estimate(m, "num_latent_tokens") for m in ("hard_refine", "sqr_sft")]
    saved = spent[0] - spent[1]
    yield _claim(
        "Soft refinement generates fewer tokens a query than hard refinement", saved, saved.value > 0, "tokens"
    )


def _curve_claims(e: Experiment, num_soft_tokens: int) -> Iterator[Claim]:
    method = next((name for name in ("videosearch_r1", "sqr_sft") if e.has(name)), None)
    if method is None:
        return

    def at(curve: str, x: int, metric: str) -> Estimate:
        return e.estimate(method, Point(curve, x, metric).name)

    half = num_soft_tokens // 2
    recall = {x: at(SOFT_TOKENS, x, "recall_at_1") for x in (0, half, num_soft_tokens)}
    found = recall[num_soft_tokens] - recall[0]
    yield _claim(f"R@1 with {num_soft_tokens} soft tokens above R@1 with 0", found, found.value > 0)
    found = recall[num_soft_tokens] - recall[half]
    yield _claim(f"R@1 with {num_soft_tokens} soft tokens not below R@1 with {half}", found, found.value >= 0)
    names = m.values(next(iter(e.runs.values()))[method])
    turns = [t for t in (1, 2, 3) if Point(TURNS, t, "vcmr_0.5").name in names]
    vcmr = [at(TURNS, turn, "vcmr_0.5") for turn in turns]
    if len(vcmr) > 1:
        found = vcmr[1] - vcmr[0]
        yield _claim("VCMR rises from turn 1 to turn 2", found, found.value > 0)
    if len(vcmr) > 2:
        found = vcmr[2] - vcmr[1]
        yield _claim("VCMR is flat from turn 2 to turn 3 (0 in the interval)", found, found.interval[0] <= 0)


# ---- what is written ---------------------------------------------------------------------------------------------


def markdown(experiment: Experiment, found: Sequence[Claim]) -> str:
    """The tables as a README can hold them."""
    table = {(r["method"], r["metric"]): r for r in results(experiment).iter_rows(named=True)}
    seeds = ", ".join(str(seed) for seed in experiment.runs)
    lines = [
        f"Configuration `{experiment.config}`, seeds {seeds}, {experiment.num_queries:,} test queries. Mean over the "
        "seeds in % (tokens as they are) ± half of the 95 % interval over seeds (Student's t).",
        "",
        f"| | {' | '.join(experiment.methods)} |",
        f"|---|{'---|' * len(experiment.methods)}",
    ]
    for metric, label in HEADLINES.items():
        cells = (_cell(table.get((method, metric)), 1 if metric in COUNTS else 100) for method in experiment.methods)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "Claims, by the means; brackets are paired 95 % bootstrap intervals over queries.", ""]
    lines += ["| claim | found | holds |", "|---|---|---|"]
    lines += [f"| {c.text} | {_found(c)} | {_VERDICTS[c.holds]} |" for c in found]
    return "\n".join(lines) + "\n"


_VERDICTS = {True: "yes", False: "**no**", None: "not known"}


def _cell(row: Mapping[str, Any] | None, scale: float) -> str:
    if row is None or row["mean"] is None:
        return "-"
    half = "" if row["low"] is None else f" ± {scale * (row['high'] - row['mean']):.1f}"
    return f"{scale * row['mean']:.1f}{half}"


def _found(claim: Claim) -> str:
    if claim.holds is None:
        return "-"
    scale, sign = (1.0, "") if claim.unit == "tokens" else (100.0, " %" if claim.unit == "gain" else "")
    value, low, high = (scale * number for number in (claim.value, claim.low, claim.high))
    return f"{value:.1f}{sign} [{low:.1f}, {high:.1f}]"


def write_experiment(experiment: Experiment, found: Sequence[Claim], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write results.md, results.parquet, differences.parquet and results.json (with `facts`) as one folder."""
    tables = {"results": results(experiment), "differences": differences(experiment)}
    with atomic_folder(folder) as temporary:
        for name, frame in tables.items():
            frame.write_parquet(temporary / f"{name}.parquet")
        (temporary / "results.md").write_text(markdown(experiment, found), encoding="utf-8")
        record = {"config": experiment.config, "seeds": list(experiment.runs), "num_queries": experiment.num_queries}
        record |= {name: json.loads(frame.write_json()) for name, frame in tables.items()}
        write_json(temporary / "results.json", {**record, "claims": [_json_claim(c) for c in found], **facts})
    return folder / "results.md"


def _json_claim(claim: Claim) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(claim).items()}
