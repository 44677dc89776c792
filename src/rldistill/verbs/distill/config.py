"""How a student is made: the configuration, its presets and its checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from rldistill.configurations import changed, check_choices, given
from rldistill.lessons.choosers import LessonScheduleName
from rldistill.lessons.exploration import Explore
from rldistill.lessons.payments import PaymentName
from rldistill.students.networks import Normalization
from rldistill.students.objectives import Matching
from rldistill.students.optim import Optimization
from rldistill.students.targets import auto_share
from rldistill.types import MOST_ENVIRONMENTS, MOST_SAMPLES, UserError, as_flag, check_numbers

Driver: TypeAlias = Literal["mixture", "teacher", "student"]
Preset: TypeAlias = Literal["none", "rusu2015"]


@dataclass(frozen=True)
class Driving:
    """Who plays, and how."""

    driver: Driver = "mixture"
    """Who plays: the teacher, the student, or both: the teacher's share of the environments falls from 1 to
    `teacher_share`."""
    teacher_share: float = 0.5
    """Mixture: the teacher's share of the environments once `share_steps` are played."""
    share_steps: int | None = None
    """Mixture: control steps over which the share falls (default: 5,000, at most half of `steps`)."""
    teacher_epsilon: float = 0.05
    """Probability of a random action where the teacher drives (the paper's 0.05)."""
    explore: Explore = "epsilon"
    """How the student explores where it drives: greedy, epsilon, boltzmann, or dropout. A greedy student repeats the first way to
    win that it finds, and visits no new states."""
    epsilon: float = 0.05
    """Of `--explore epsilon`: probability of a random action at first. It falls to 0 at the end of the run, so that the last states
    are those of the student without exploration."""
    num_envs: int = 8
    """Environments of a task that are stepped together; with 1 there is never a second one of it, in evaluations neither."""


@dataclass(frozen=True)
class Selecting:
    """Whom to learn from, where a task has several teachers."""

    select: str | None = None
    """How to choose among several teachers of one task: a chooser, with its options such as ucb1:c=1.4. Without context `uniform`,
    `epsilon-greedy`, `vdbe`, `ucb1`, `bayes-ucb`, `thompson`, `discounted-ucb`, `sliding-ucb`, `exp3`, `best-first`, `mean`,
    `agreement`; state by state `ridge`, `network`, `linucb`, `iwc`, `mamba`, `maps`, `oracle`."""
    select_every: str = "auto"
    """When a teacher is chosen anew: for each row that a teacher drives at each `control-step`, every so many control steps (a
    number), or each game (`episode`); or for all rows together each `block`, of a twentieth of the run or, as block:2000, of so
    many control steps. `auto`: episode; block where the student pays; control-step state by state, save for mamba and maps."""
    payment: PaymentName = "auto"
    """What a choice is paid: `teacher`, the chosen teacher's own return while it drives; `student`, the mean return of the
    student's games; `progress`, its change; `loss`, the fall of the loss. `auto`: teacher; student if it drives alone."""
    payment_steps: int = 100
    """State by state: control steps whose rewards count one by one, up to 10,000; the chooser's prediction stands for the rest."""
    payment_discount: float = 0.99
    """State by state: the discount of one control step."""
    context: tuple[str, ...] = ()
    """What a chooser reads of a state: `features` (the student's last hidden layer), `pixels` (the observation, large images made
    small), or names of what the environment gives beside the observation, and regions such as "ball_y < 126". Default: features."""

    @property
    def named(self) -> tuple[str, ...]:
        """The contexts that the environment gives beside its observations: they are known of visited states alone."""
        return tuple(dict.fromkeys(name for name in self.context if name not in ("features", "pixels")))


@dataclass(frozen=True)
class Following:
    """A learner that the student follows, in place of a teacher."""

    learner: str | None = None
    """In place of --teacher: an environment id, in which a learner trains beside the student; its best version so far is the
    teacher. Or the folder of a run of `train` with snapshots, finished or under way."""
    algo: Literal["dqn", "pqn", "ppo"] = "pqn"
    """How the learner of --learner learns, as in `train`."""
    learner_steps: int = 1_000_000
    """Control steps of the learner, the length of the run. The student's own `steps` are spread evenly over them."""
    learner_network: str | None = None
    """The learner's network; by default as in `train`."""
    learner_learning_rate: float | None = None
    """The learner's learning rate; by default as in `train`."""
    learner_num_envs: int | None = None
    """The learner's environments; by default as in `train`."""
    learner_averaging: int = 1
    """pqn: the learner's policy is an average over about so many updates, as with `train --averaging`."""
    teacher_snapshot: Literal["best", "ema"] = "best"
    """Which of the learner's weights teach: `best`, those of its best evaluation so far, or `ema`, their running mean over about a
    twentieth of the run."""
    keep_snapshots: bool = False
    """Keep each version that has taught as a policy folder, OUT/teachers/NUMBER."""


@dataclass(frozen=True)
class Batches:
    """What a minibatch is drawn from."""

    samples_per_step: float = 64.0
    """Samples drawn from the replay for each control step."""
    batch_size: int = 64
    """Samples a gradient update."""
    augment: float | None = None
    """Share of each batch that is made up of composites of two visited states, labelled by the teacher on the spot: they
    cost no control steps; 0 learns from visited states alone. By default a half for students of images from 30,000 parameters on
    (smaller ones have no room for more than what is visited), else 0."""
    replay: int = 540_000
    """Control steps kept (the paper's ten hours; 3.6 GiB on Atari), no more than `steps`."""
    replay_memory: str | None = None
    """The memory that all replays take together at most, such as 4GiB or 500MB: with it each keeps fewer control steps where
    `replay` does not fit."""
    warmup: int = 1_000
    """Control steps played before the first update; standardization and temperature are fitted to them."""


@dataclass(frozen=True)
class Playing:
    """The environment, where it is another one than the teacher's own."""

    env: str | None = None
    """Another environment id than the teacher's own, with the same actions and observations."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments name=value that a Gymnasium environment is made with; values are JSON's scalars or else text. They are kept with
    the policy; given here, they count instead."""
    max_episode_steps: int | None = None
    """Control steps after which a game is truncated; by default the teacher's own: 10,000 where the environment sets no limit."""


@dataclass(frozen=True)
class Evaluating:
    """Full games of the student during and after the run."""

    evaluate_every: int | None = None
    """Control steps (updates with --dataset, those of the learner with --learner) between two evaluations; default a fifth of the
    run, with --learner a fortieth; 0 only at the end."""
    evaluate_episodes: int = 10
    """Full games an evaluation; 0 plays none, and there is no score."""
    evaluate_epsilon: float = 0.01
    """Probability of a random action in evaluations."""


@dataclass(frozen=True)
class Keeping:
    """What is written, and how often."""

    checkpoint_seconds: float = 30.0
    """Between two checkpoints. They change nothing in the result."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard events, to `tensorboard/` in the run folder."""


@dataclass(frozen=True)
class DistillConfig:
    """How a student is made. None stands for a default that depends on the rest.

    In Python `DistillConfig.of(loss="nll", steps=50_000)` takes the names of the flags, and presets.
    """

    student: str = "auto"
    """`dqn`, `net1`, `net2`, `net3`, or any `cnn:8,8,8:16` (channels : hidden units) or `mlp:64,64`; of several tasks `multi3`,
    `multi10`, or any with units after a + that every task has for itself, `cnn:32,64,64:512+128`. `auto`: `net2` for images; for
    vectors the widest of mlp:64,64, mlp:32,32, mlp:24,24 and mlp:16,16 that has at most a tenth of the teacher's parameters, or
    2,000 if that is more. For several tasks: `multi3` for large images, cnn:16:128+32 for small ones, mlp:64,64+32 for vectors."""
    student_observation: tuple[str, ...] = ()
    """Parts of the observation (the names of a Dict) that the student reads, where the teacher reads them all: what robotics
    calls a privileged teacher. By default the student reads what the teacher reads."""
    steps: int = 20_000
    """Control steps played (by teacher and student together), of each task; on Atari one is four frames. With --learner only
    those of the student. Not for --dataset."""
    updates: int | None = None
    """Gradient updates, with --dataset (default 10,000)."""
    seed: int = 0
    """Of weights, environments, exploration and batches."""
    dropout: float = 0.0
    """Probability of a dropped unit in the student's last hidden layer; `--explore dropout` needs one (such as 0.1)."""
    student_normalization: Normalization = "none"
    """`layer`: each hidden layer of the student is normalized over its units before the ReLU, as in teachers of PQN."""
    dataset: str | None = None
    """A folder made by `rldistill record`: distil from it instead of playing."""
    schedule_lessons: LessonScheduleName = "uniform"
    """With several teachers, which task the next minibatches come from: each equally often (the paper), or `progress`: the further
    the student is behind its teacher on the normalized scale, the more often, as the run's own evaluations measure it."""
    matching: Matching = field(default_factory=Matching)
    driving: Driving = field(default_factory=Driving)
    selecting: Selecting = field(default_factory=Selecting)
    following: Following = field(default_factory=Following)
    batches: Batches = field(default_factory=Batches)
    optimization: Optimization = field(default_factory=Optimization)
    playing: Playing = field(default_factory=Playing)
    evaluating: Evaluating = field(default_factory=Evaluating)
    keeping: Keeping = field(default_factory=Keeping)

    @staticmethod
    def of(preset: Preset = "none", **settings: Any) -> DistillConfig:
        """A configuration by the names of the flags; what is given counts, whatever the preset says.

        Raises:
            UserError: no such preset or setting.
        """
        if preset not in PRESETS:
            raise UserError(f"unknown preset {preset!r}: take {', '.join(PRESETS)}")
        return changed(DistillConfig(), **{**PRESETS[preset], **settings})


# Rusu et al. 2015, arXiv 1511.06295, appendix A. The minibatch's size is not stated; 32 is that of Mnih et al. 2015.
PRESETS: dict[Preset, dict[str, Any]] = {
    "none": {},
    "rusu2015": dict(
        loss="kl",
        temperature="0.01",
        targets="raw",
        driver="teacher",
        teacher_epsilon=0.05,
        samples_per_step=32 * 10_000 / 54_000,
        batch_size=32,
        augment=0.0,
        replay=540_000,
        optimizer="rmsprop",
        learning_rate=5e-4,
        steady=False,
        weight_decay=0.0,
        schedule="constant",
        max_grad_norm=0.0,
        average=0.0,
        standardize=False,
        initialize="torch",
    ),
}


def checked(config: DistillConfig) -> DistillConfig:
    """The configuration with defaults resolved.

    Raises:
        UserError: a setting out of its range, or settings that do not go together.
    """
    check_choices(config)
    check_numbers(config, least={"steps": 1, "seed": 0, "updates": 1})
    _check_driving(config)
    _check_matching(config.matching)
    check_numbers(
        config.batches,
        least={"replay": 1, "warmup": 0},
        shares=["augment"],
        positive=["samples_per_step"],
        within={"batch_size": (1, MOST_SAMPLES)},
    )
    check_numbers(
        config.optimization,
        least={"max_grad_norm": 0, "weight_decay": 0},
        shares=["average"],
        positive=["learning_rate"],
    )
    check_numbers(config.selecting, within={"payment_steps": (1, 10_000)}, shares=["payment_discount"])
    check_numbers(config.playing, least={"max_episode_steps": 1})
    check_numbers(config.evaluating, least={"evaluate_every": 0, "evaluate_episodes": 0}, shares=["evaluate_epsilon"])
    check_numbers(config.keeping, least={"checkpoint_seconds": 0})
    check_following(config)
    if config.updates is not None and config.dataset is None:
        raise UserError("--updates is for --dataset; a student that learns from play takes --steps")
    if config.dataset is not None:
        return replace(config, updates=10_000 if config.updates is None else config.updates)
    return _with_time_to_learn(config)


def check_following(config: DistillConfig) -> None:
    """Raises UserError where settings do not go with a learner, or are given without one."""
    following = config.following
    if following.learner is None:
        in_vain = given(following)
        if in_vain:
            raise UserError(f"{as_flag(in_vain[0])} is for a student that follows a learner: add --learner ENV")
        return
    check_numbers(
        following,
        least={"learner_steps": 1, "learner_averaging": 1},
        positive=["learner_learning_rate"],
        within={"learner_num_envs": (1, MOST_ENVIRONMENTS)},
    )
    refused = {
        "--dataset": config.dataset is not None,
        "--select": config.selecting.select is not None,
        "--env": config.playing.env is not None,
        "--replay-memory": config.batches.replay_memory is not None,
        "--schedule-lessons progress": config.schedule_lessons != "uniform",
    }
    for flag, is_given in refused.items():
        if is_given:
            raise UserError(f"{flag} is for teachers that have learnt already, not for --learner: leave it out")
    if not config.evaluating.evaluate_episodes or config.evaluating.evaluate_every == 0:
        raise UserError(
            "--learner needs evaluations, which measure the learner: take --evaluate-episodes 1 or more and --evaluate-every 1 or "
            "more"
        )


def _check_driving(config: DistillConfig) -> None:
    check_numbers(
        config.driving,
        least={"share_steps": 0},
        shares=["teacher_share", "teacher_epsilon", "epsilon"],
        within={"num_envs": (1, MOST_ENVIRONMENTS)},
    )
    if config.driving.explore == "dropout" and config.dropout == 0:
        raise UserError("--explore dropout needs units to drop: add --dropout 0.1")


def _check_matching(matching: Matching) -> None:
    try:
        share = auto_share(matching.temperature)
        temperature = float(matching.temperature) if share is None else 1.0
    except ValueError:
        temperature = math.nan
    if not 0 < temperature < math.inf:
        raise UserError(
            "--temperature is a positive number, auto, or auto:SHARE with a share of the largest entropy between 0 and 1, not "
            f"{matching.temperature!r}"
        )


def _with_time_to_learn(config: DistillConfig) -> DistillConfig:
    """The configuration of a run that plays, with what depends on its length."""
    steps, num_envs = config.steps, config.driving.num_envs
    warmup = min(config.batches.warmup, steps // 2)
    if -(-max(warmup, 1) // num_envs) * num_envs >= steps:  # all rows are stepped together
        raise UserError(f"--steps {steps} leaves none for learning: take more, or fewer --num-envs")
    share_steps = config.driving.share_steps
    return changed(
        config,
        share_steps=min(5_000, steps // 2) if share_steps is None else share_steps,
        warmup=warmup,
        replay=min(config.batches.replay, steps),
    )
