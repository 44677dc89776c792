"""Regret of the choosers on simulated arms, beside those of other libraries.

    python benchmarks/bandits.py --out runs/bandits --figures docs/results

Five arms of five kinds: normal payments, payments of 0 or 1, negative ones of another size, ones that drift, and ones that are
linear in a context. Each seed has arms of its own, the same for all choosers. *Regret* is the sum of the best arm's expected
payment less that of the arm that was chosen. *Slope* is that of the logarithm of the mean regret over the logarithm of the pulls,
from the first hundredth of the pulls on: 1 for random choices, less where regret grows ever more slowly. Its interval resamples
the seeds. Rivals are those of mabwiser, river and vowpalwabbit, where they are installed (the extra `bandits`). OUT/regret.json
holds all curves, and what is in it is not run again; OUT/table.md, the printed table and FIGURES/bandits-KIND.svg come of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tyro

from rldistill.files import replace_file
from rldistill.lessons.selecting import make_chooser
from rldistill.plots import Curve, growth_curves
from rldistill.progress import table
from rldistill.stats import figure, with_interval

Array = npt.NDArray[np.float64]
ARMS, COLUMNS = 5, 5
NIG = "thompson:posterior=normal-inverse-gamma"
PLAIN = ("epsilon-greedy", "vdbe", "ucb1", "bayes-ucb", "thompson", NIG, "exp3", "discounted-ucb", "sliding-ucb")
CHOOSERS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("gaussian", "bernoulli", "negative", "drifting"), (*PLAIN, "best-first", "uniform")),
    "linear": ("linucb", "ridge", "network", "maps", "iwc", "iwc:doubly-robust=true", "mamba", "ucb1", "uniform"),
}
EXPECTED: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("gaussian", "bernoulli", "negative"), PLAIN),
    "drifting": ("discounted-ucb", "sliding-ucb"),
    "linear": ("linucb", "ridge", "network", "maps", "iwc", "iwc:doubly-robust=true"),
}
"""Those whose regret must grow more slowly than the pulls: rules that do not forget are not for arms that drift."""


@dataclass(frozen=True)
class Options:
    """What is run."""

    out: Path
    figures: Path | None = None
    """A folder for pictures."""
    pulls: int = 10_000
    seeds: int = 20
    kinds: tuple[str, ...] = tuple(CHOOSERS)
    choosers: tuple[str, ...] = ()
    """Only these; all of each kind if none is named."""
    rivals: bool = True


class Player(Protocol):
    """A chooser of one arm at a time."""

    def choose(self, context: Array) -> int: ...

    def pay(self, arm: int, payment: float, context: Array) -> None: ...


@dataclass(frozen=True)
class Arms:
    """One problem: everything that is random in it but the choices."""

    expected: Callable[[int], Array]
    """From the number of a pull to the expected payments (M,)."""
    paid: Callable[[int, int], float]
    """From the number of a pull and an arm to the payment."""
    contexts: Array


def arms_of(kind: str, pulls: int, seed: int) -> Arms:
    """The problem of a seed."""
    generator = np.random.default_rng((seed, tuple(CHOOSERS).index(kind)))
    contexts, noise = generator.normal(size=(pulls, COLUMNS)), generator.normal(size=pulls)
    if kind == "bernoulli":
        chances, uniform = generator.uniform(0.1, 0.9, ARMS), generator.random(pulls)
        return Arms(lambda pull: chances, lambda pull, arm: float(uniform[pull] < chances[arm]), contexts)
    if kind == "linear":
        slopes, offsets = generator.normal(size=(ARMS, COLUMNS)) / np.sqrt(COLUMNS), 0.3 * generator.normal(size=ARMS)
        means = contexts @ slopes.T + offsets
        return Arms(lambda pull: means[pull], lambda pull, arm: float(means[pull, arm] + noise[pull]), contexts)
    if kind == "drifting":  # the best arm changes three times, ever more rarely, and all rise
        stages = np.searchsorted(pulls * np.array([0.04, 0.15, 0.5]), np.arange(pulls), side="right")
        means = generator.normal(size=(4, ARMS))[stages] + 3 * (1 - np.exp(-np.arange(pulls) / (pulls / 4)))[:, None]
        return Arms(lambda pull: means[pull], lambda pull, arm: float(means[pull, arm] + noise[pull]), contexts)
    origin, scale = {"gaussian": (0.0, 1.0), "negative": (-1000.0, 100.0)}[kind]
    fixed = origin + scale * generator.normal(size=ARMS)
    return Arms(lambda pull: fixed, lambda pull, arm: float(fixed[arm] + scale * noise[pull]), contexts)


class Ours:
    """A chooser of rldistill."""

    def __init__(self, spec: str, seed: int) -> None:
        self._chooser = make_chooser(spec, ARMS, np.random.default_rng(seed), COLUMNS)
        self._choice: Any = None

    def choose(self, context: Array) -> int:
        self._choice = self._chooser.choose(1, context[None])
        return int(self._choice.arms[0])

    def pay(self, arm: int, payment: float, context: Array) -> None:
        self._chooser.pay(self._choice, np.array([payment]), context[None])


class MABWiser:
    """Rules of mabwiser, each arm pulled once first."""

    def __init__(self, rule: Callable[[Any], Any], seed: int) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        self._mab = MAB(list(range(ARMS)), rule(LearningPolicy), seed=seed)
        self._begun: list[tuple[int, float, Array]] = []
        self._contextual = "Lin" in type(rule(LearningPolicy)).__name__

    def choose(self, context: Array) -> int:
        if len(self._begun) < ARMS:
            return len(self._begun)
        return int(self._mab.predict(context[None]) if self._contextual else self._mab.predict())

    def pay(self, arm: int, payment: float, context: Array) -> None:
        self._begun.append((arm, payment, context))
        if len(self._begun) >= ARMS:
            first = len(self._begun) == ARMS
            arms, payments, contexts = (np.array(part) for part in zip(*self._begun[0 if first else -1 :], strict=True))
            fit = self._mab.fit if first else self._mab.partial_fit
            fit(arms, payments, contexts) if self._contextual else fit(arms, payments)


class River:
    """Rules of river."""

    def __init__(self, rule: Callable[[Any, int], Any], seed: int, contextual: bool = False) -> None:
        from river import bandit

        self._rule, self._contextual = rule(bandit, seed), contextual
        self._arms = list(range(ARMS))

    def choose(self, context: Array) -> int:
        return int(self._rule.pull(self._arms, **self._named(context)))

    def pay(self, arm: int, payment: float, context: Array) -> None:
        if self._contextual:
            self._rule.update(arm, self._named(context)["context"], payment)
        else:
            self._rule.update(arm, payment)

    def _named(self, context: Array) -> dict[str, Any]:
        return {"context": dict(enumerate([1.0, *context.tolist()]))} if self._contextual else {}


class VowpalWabbit:
    """`--cb_explore`: epsilon-greedy on a reduction to classification."""

    def __init__(self, options: str, seed: int) -> None:
        from vowpalwabbit import Workspace

        self._work = Workspace(f"--cb_explore {ARMS} {options} --quiet --random_seed {seed}")
        self._generator, self._chance = np.random.default_rng(seed), 1.0

    def choose(self, context: Array) -> int:
        chances = np.array(self._work.predict(f"| {self._text(context)}"))
        arm = int(self._generator.choice(ARMS, p=chances / chances.sum()))
        self._chance = float(chances[arm])
        return arm

    def pay(self, arm: int, payment: float, context: Array) -> None:
        self._work.learn(f"{arm + 1}:{-payment}:{self._chance} | {self._text(context)}")

    def _text(self, context: Array) -> str:
        return " ".join(f"c{number}:{value:.6f}" for number, value in enumerate(context.tolist()))


RIVALS: Mapping[str, tuple[str, Sequence[str], str, Callable[[int], Player]]] = {
    "mabwiser UCB1": ("ucb1", ("gaussian", "bernoulli"), "mabwiser", lambda s: MABWiser(lambda p: p.UCB1(1.0), s)),
    "river UCB": ("ucb1", ("gaussian", "bernoulli"), "river", lambda s: River(lambda b, k: b.UCB(1, seed=k), s)),
    "mabwiser EpsilonGreedy": (
        "epsilon-greedy",
        ("gaussian", "bernoulli", "negative"),
        "mabwiser",
        lambda s: MABWiser(lambda p: p.EpsilonGreedy(0.05), s),
    ),
    "mabwiser ThompsonSampling": (
        "thompson",
        ("bernoulli",),
        "mabwiser",
        lambda s: MABWiser(lambda p: p.ThompsonSampling(), s),
    ),
    "river BayesUCB": ("bayes-ucb", ("bernoulli",), "river", lambda s: River(lambda b, k: b.BayesUCB(seed=k), s)),
    "river Exp3": ("exp3", ("bernoulli",), "river", lambda s: River(lambda b, k: b.Exp3(0.05, seed=k), s)),
    "mabwiser LinUCB": ("linucb", ("linear",), "mabwiser", lambda s: MABWiser(lambda p: p.LinUCB(1.0), s)),
    "river LinUCBDisjoint": (
        "linucb",
        ("linear",),
        "river",
        lambda s: River(lambda b, k: b.LinUCBDisjoint(seed=k), s, True),
    ),
    "mabwiser LinGreedy": ("ridge", ("linear",), "mabwiser", lambda s: MABWiser(lambda p: p.LinGreedy(0.05), s)),
    "vowpalwabbit ips": (
        "iwc",
        ("linear",),
        "vowpalwabbit",
        lambda s: VowpalWabbit("--cb_type ips --epsilon 0.05", s),
    ),
    "vowpalwabbit dr": (
        "iwc:doubly-robust=true",
        ("linear",),
        "vowpalwabbit",
        lambda s: VowpalWabbit("--cb_type dr --epsilon 0.05", s),
    ),
}
"""Name to ours of the same kind, the arms, the package, and how it is made."""


def checkpoints(pulls: int) -> npt.NDArray[np.int64]:
    """Numbers of pulls at which regret is kept."""
    return np.unique(np.geomspace(max(pulls // 100, 10), pulls, 25).astype(np.int64))


def regret(player: Player, arms: Arms, pulls: int) -> Array:
    """Cumulative expected regret at the checkpoints."""
    lost = np.zeros(pulls)
    for pull in range(pulls):
        context = arms.contexts[pull]
        arm, expected = player.choose(context), arms.expected(pull)
        lost[pull] = expected.max() - expected[arm]
        player.pay(arm, arms.paid(pull, arm), context)
    return np.asarray(lost.cumsum()[checkpoints(pulls) - 1])


def made(name: str, seed: int) -> Player:
    """A chooser by name, ours or a rival's."""
    return RIVALS[name][3](seed) if name in RIVALS else Ours(name, seed)


def slope(curves: Array, steps: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """The slope of the logarithm of the mean regret of seeds (S, T), and its 95 % interval over seeds."""
    logarithms = np.log(steps) - np.log(steps).mean()
    draws = np.random.default_rng(0).integers(len(curves), size=(2000, len(curves)))
    means = np.concatenate([curves.mean(axis=0)[None], curves[draws].mean(axis=1)])
    slopes = np.log(np.maximum(means, 1e-9 * curves.max())) @ logarithms / (logarithms @ logarithms)
    return float(slopes[0]), *(float(bound) for bound in np.quantile(slopes[1:], [0.025, 0.975]))


def ratio(ours: Array, theirs: Array) -> tuple[float, float, float]:
    """Our mean final regret over theirs of the same seeds, and its 95 % interval over seeds."""
    draws = np.random.default_rng(0).integers(len(ours), size=(2000, len(ours)))
    ratios = ours[draws, -1].mean(axis=1) / theirs[draws, -1].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(ours[:, -1].mean() / theirs[:, -1].mean()), float(low), float(high)


def cells(options: Options) -> list[tuple[str, str]]:
    """Kinds of arms with choosers."""
    names = [(kind, name) for kind in options.kinds for name in CHOOSERS[kind]]
    if options.rivals:
        names += [
            (kind, name)
            for name, (_, kinds, package, _) in RIVALS.items()
            for kind in kinds
            if kind in options.kinds and find_spec(package)
        ]
    return [(kind, name) for kind, name in names if not options.choosers or name in options.choosers]


def main(options: Options) -> None:
    """Runs what is missing, prints and draws."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "regret.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for kind, name in cells(options):
        key = f"{kind} | {name} | {options.pulls}"
        curves, began = results.setdefault(key, []), time.perf_counter()
        for seed in range(len(curves), options.seeds):
            curves.append(regret(made(name, seed), arms_of(kind, options.pulls, seed), options.pulls).round(4).tolist())
        if time.perf_counter() - began > 0.1:
            print(f"{key}: {time.perf_counter() - began:.0f} s", flush=True)
        replace_file(path, json.dumps(results).encode())
    rows = rows_of(results, options)
    table(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    (options.out / "table.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    if options.figures is not None:
        draw(results, options, options.figures)


def of(results: Mapping[str, Any], options: Options, kind: str, name: str) -> Array:
    return np.array(results.get(f"{kind} | {name} | {options.pulls}", ()))[: options.seeds]


def rows_of(results: Mapping[str, Any], options: Options) -> list[dict[str, str]]:
    """A row for each cell: the final regret, its slope, and ours beside the rivals'."""
    rows = []
    for kind, name in cells(options):
        curves = of(results, options, kind, name)
        if not len(curves):  # another process is at it
            continue
        final = curves[:, -1]
        error = 1.96 * final.std(ddof=1) / np.sqrt(len(final)) if len(final) > 1 else np.nan
        beside = "–"
        if name in RIVALS and len(ours := of(results, options, kind, RIVALS[name][0])) == len(curves):
            beside = f"{RIVALS[name][0]}: {with_interval(*ratio(ours, curves))}"
        rows.append(
            {
                "arms": kind,
                "chooser": name,
                "regret": f"{figure(final.mean())} ± {figure(error)}",
                "slope": with_interval(*slope(curves, checkpoints(options.pulls))),
                "ours / theirs": beside,
            }
        )
    return rows


def draw(results: Mapping[str, Any], options: Options, folder: Path) -> None:
    """A picture for each kind of arms: mean regret over pulls."""
    steps = checkpoints(options.pulls).tolist()
    for kind in options.kinds:
        curves = []
        for name in [name for each, name in cells(options) if each == kind and name not in RIVALS]:
            means = of(results, options, kind, name).mean(axis=0)
            curves.append(Curve(name, steps, means.tolist()))
        curves.sort(key=lambda curve: -curve.means[-1])
        (folder / f"bandits-{kind}.svg").write_bytes(growth_curves(curves, axis="pulls", measure="regret"))


if __name__ == "__main__":
    main(tyro.cli(Options))
