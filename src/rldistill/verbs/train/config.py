"""How a teacher is trained: the configuration, its checks and its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from rldistill.configurations import changed, check_choices, flat, given
from rldistill.lessons.dqn import DQNSettings, updates_due
from rldistill.lessons.ppo import PPOSettings
from rldistill.lessons.pqn import PQNSettings
from rldistill.types import MOST_ENVIRONMENTS, MOST_SAMPLES, Task, UserError, as_flag, check_numbers, is_large_image


@dataclass(frozen=True)
class EnvironmentOptions:
    """What is played, and what of it is learnt from."""

    num_envs: int | None = None
    """Environments stepped together, of each task (dqn 16, vectors 8; pqn 64, small grids 128, vectors 16). With 1 no second one
    of a task is made."""
    max_episode_steps: int | None = None
    """Control steps after which a game is truncated, which bootstraps; by default 10,000 where the environment sets no limit
    (Atari's games end after 108,000 frames)."""
    sticky_actions: float | None = None
    """Probability of a repeated action; None leaves it to the environment id."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments name=value that a Gymnasium environment is made with; values are JSON's scalars or else text. They are kept with
    the policy."""
    clip_rewards: bool | None = None
    """Learn from the sign of the rewards alone, as Mnih et al. 2015; by default on Atari only. Scores stay raw."""
    lives_as_episodes: bool | None = None
    """Learn as if a lost life ended the game, as Mnih et al. 2015; by default on Atari only. Games are played whole, and their
    scores are of whole games."""
    only: str | None = None
    """Learn only from states in a region, an expression such as '0 < ball_y < 126' (Pong), 'ball.y < 5 and paddle.x >= 3'
    (MinAtar) or 'x0 < 0' (vectors); docs/regions.md has the names. Games are played everywhere. For one environment."""


@dataclass(frozen=True)
class Exploring:
    """Random actions while learning."""

    epsilon_end: float = 0.01
    """Probability of a random action after `epsilon_steps`; it falls linearly from 1."""
    epsilon_steps: int | None = None
    """By default a sixth of `steps`, at most 400,000 (pqn) or 250,000 (dqn; for vectors half of `steps`); dqn counts from the
    end of the warm-up."""
    epsilon_repeats: int = 1
    """How many control steps a random action lasts at most: how many is drawn with a probability of 1 / n^2 (Dabney et al. 2021).
    1 is the usual epsilon-greedy; where random play finds no reward (Freeway), 100."""


@dataclass(frozen=True)
class DQNOptions:
    """What only deep Q-networks with a replay have."""

    n_step: int = 3
    """dqn: rewards summed before the bootstrap."""
    double: bool = True
    """dqn: the learning network chooses the action that is bootstrapped from, which keeps values from growing too large (van
    Hasselt et al. 2015). False is the DQN of Mnih et al. 2015: a fifth less work an update."""
    replay: int = 400_000
    """dqn: control steps kept to learn from (7 kB each on Atari), of each task."""
    warmup: int | None = None
    """dqn: control steps of uniformly random play before the first update (Atari 20,000, at most a tenth of `steps`)."""
    replay_ratio: float | None = None
    """dqn: samples drawn for each control step (Atari 8, as the paper's 32 every 4)."""
    minibatch: int | None = None
    """dqn: samples an update (128)."""
    target_every: int | None = None
    """dqn: updates between two copies to the target network (Atari 500)."""


@dataclass(frozen=True)
class PQNOptions:
    """What only replay-free learning has."""

    steady: bool = False
    """pqn: take gradients for layers' inputs less their mean, as `distill --steady` does. For games whose rewards are rare, which
    otherwise teach a network one value for all states; values of some size it reaches late."""
    averaging: int = 1
    """pqn: the policy's weights are averages, exponential ones over about so many updates (a run of 1,000,000 steps on Atari has
    7,800). 1 keeps the last weights. For games where a single slip ends the game, 2,000; what is learnt stays the same."""


@dataclass(frozen=True)
class PPOOptions:
    """What only learning along the policy's gradient has."""

    rollout_length: int | None = None
    """ppo: control steps of each environment between two phases of learning (128; for continuous actions 256)."""
    epochs: int | None = None
    """ppo: passes over each rollout (4 for images and small grids, else 10)."""
    minibatches: int | None = None
    """ppo: gradient steps of each pass (images 4, else 16; for continuous actions 32)."""
    clip: float | None = None
    """ppo: how far the ratio of new and old probabilities counts, on both sides of 1 (images and small grids 0.1, else 0.2)."""
    entropy: float | None = None
    """ppo: weight of the entropy bonus (0.01; for continuous actions 0)."""
    gae_lambda: float = 0.95
    """ppo: lambda of the generalized advantage estimates."""
    normalize: bool | None = None
    """ppo: standardize the observations, and divide the rewards by the deviation of the discounted return. The standardization
    is part of the saved policy, which takes raw observations. By default for vectors."""


@dataclass(frozen=True)
class Output:
    """What is written, and how often; games for the final score."""

    snapshots: tuple[float, ...] = ()
    """Shares of the training after which the weights are kept as a policy folder in `snapshots/`, such as 0.25 0.5 0.75."""
    checkpoint_seconds: float = 60.0
    """Between two checkpoints. They change nothing in the result."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard events, to `tensorboard/` in the run folder."""
    final_episodes: int = 30
    """Games of each task played at the end, with epsilon 0.01, for the score in `policy.json`; 0 plays none, and there is no
    score."""
    record: str | None = None
    """A folder to make, for a dataset of the states that are visited while the policy learns. At the end the policy labels them."""
    record_steps: int = 540_000
    """The most control steps that `--record` keeps, in short stretches spread evenly over the training, at least one."""
    weights_dtype: Literal["float32", "float16"] = "float32"
    """How the final policy's numbers are kept: float16 is half the size. The score is that of the numbers kept."""


@dataclass(frozen=True)
class TrainConfig:
    """How a teacher is trained. None stands for the algorithm's own default.

    In Python `TrainConfig.of(algo="pqn", averaging=200)` takes the names of the flags.
    """

    steps: int = 2_000_000
    """Control steps of all environments together (on Atari one is four frames); of several tasks those of each."""
    algo: Literal["dqn", "pqn", "ppo"] = "dqn"
    """`dqn`: double DQN with replay and target network. `pqn`: replay-free Q(lambda), better teachers per hour on a CPU. `ppo`:
    proximal policy optimization, which learns continuous actions too; the policy gives logits or Gaussians."""
    seed: int = 0
    """Of weights, environments, exploration and minibatches."""
    network: str | None = None
    """`dqn`, `net1`, `net2`, `net3`, `cnn:32,64,64:512` or `mlp:64,64`; by default `dqn` for images, cnn:16:128 for small
    grids, mlp:128,128 for vectors. Of several tasks `multi3`, `multi10`, or any with units after a + that every task has for
    itself; by default multi3, cnn:16:128+32, mlp:128,128."""
    learning_rate: float | None = None
    """dqn: Adam, 1e-4; pqn: RAdam, 2.5e-4 falling linearly to a tenth; ppo: Adam, 2.5e-4 falling linearly to 0 (on Atari; larger
    for small observations)."""
    discount: float = 0.99
    """Gamma."""
    bfloat16: bool | None = None
    """Compute all layers but the last in bfloat16 (weights, scores, targets and the optimizer stay float32); by default for
    images where that is faster: on a GPU, or a processor that multiplies matrices of it (AMX)."""
    device: str = "auto"
    """Where the networks are: `cpu`, `cuda`, `cuda:1`, or `auto`, a GPU if PyTorch sees one. Games are played on the processor.
    A run may be resumed on another device."""
    environments: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    exploring: Exploring = field(default_factory=Exploring)
    dqn: DQNOptions = field(default_factory=DQNOptions)
    pqn: PQNOptions = field(default_factory=PQNOptions)
    ppo: PPOOptions = field(default_factory=PPOOptions)
    output: Output = field(default_factory=Output)

    @staticmethod
    def of(**settings: Any) -> TrainConfig:
        """A configuration by the names of the flags.

        Raises:
            UserError: no such setting.
        """
        return changed(TrainConfig(), **settings)


def check_config(config: TrainConfig) -> None:
    """Raises UserError where a setting is out of its range, whatever the environment."""
    check_choices(config)
    check_numbers(config, least={"steps": 1, "seed": 0}, positive=["learning_rate"], shares=["discount"])
    check_numbers(config.environments, least={"max_episode_steps": 1}, within={"num_envs": (1, MOST_ENVIRONMENTS)})
    check_numbers(
        config.exploring,
        least={"epsilon_steps": 0},
        shares=["epsilon_end"],
        within={"epsilon_repeats": (1, 1_000_000)},
    )
    check_numbers(
        config.dqn,
        least={"n_step": 1, "replay": 1, "warmup": 0, "target_every": 1},
        within={"minibatch": (1, MOST_SAMPLES), "replay_ratio": (0, 10_000)},
    )
    check_numbers(config.pqn, least={"averaging": 1})
    check_numbers(
        config.ppo,
        least={"entropy": 0},
        positive=["clip"],
        shares=["gae_lambda"],
        within={"rollout_length": (1, 1_000_000), "epochs": (1, 1_000), "minibatches": (1, 100_000)},
    )
    check_numbers(config.output, least={"final_episodes": 0, "checkpoint_seconds": 0, "record_steps": 1})
    if config.output.record is None and config.output.record_steps != Output.record_steps:
        raise UserError("--record-steps is for --record, the folder in which what is visited is kept")
    _check_algorithm(config)
    shares = config.output.snapshots
    if any(not 0 < share < 1 for share in shares):
        raise UserError(f"--snapshots are shares of the training between 0 and 1, not {shares}")
    if len({f"{share:g}" for share in shares}) < len(shares):
        raise UserError(f"--snapshots names a share twice: {shares}")


def _check_algorithm(config: TrainConfig) -> None:
    """Raises UserError where a setting is given that the algorithm does not have."""
    others: dict[str, DQNOptions | PQNOptions | PPOOptions | Exploring]
    others = {"dqn": config.dqn, "pqn": config.pqn, "ppo": config.ppo, "dqn or pqn": config.exploring}
    for algorithm, options in others.items():
        in_vain = given(options)
        if in_vain and config.algo not in algorithm.split():
            raise UserError(f"{as_flag(in_vain[0])} is for --algo {algorithm}; {config.algo} has none")
    if config.algo == "ppo" and config.environments.only is not None:
        raise UserError("--only is for --algo dqn or pqn; ppo learns from all states")


def resolve(config: TrainConfig, task: Task, *, alone: bool = True) -> dict[str, Any]:
    """The settings of a run on a task, as JSON data, with the defaults of the algorithm.

    What does not change the result is left out. What the machine decides (`bfloat16`) is left to it, so that another one can go on.

    Args:
        config: as the user gave it.
        task: what is learnt.
        alone: whether it is the only one.
    """
    kind = _kind(task)
    networks = {"vector": "mlp:128,128", "grid": "cnn:16:128", "image": "dqn"}
    networks_of_several = {"vector": "mlp:128,128", "grid": "cnn:16:128+32", "image": "multi3"}
    defaults: dict[str, Any] = {
        "network": (networks if alone else networks_of_several)[kind],
        "clip_rewards": task.frame_skip > 1,
        "lives_as_episodes": task.frame_skip > 1,
    }
    if config.algo == "pqn":
        defaults |= {
            "num_envs": {"vector": 16, "grid": 128, "image": 64}[kind],
            "learning_rate": {"vector": 1e-3, "grid": 5e-4, "image": 2.5e-4}[kind],
            "epsilon_steps": min(config.steps // 6, 400_000),
        }
    elif config.algo == "ppo":
        image, continuous = kind == "image", task.continuous
        defaults |= {
            "num_envs": 8 if image or continuous else 16,
            "learning_rate": {"vector": 3e-4 if continuous else 1e-3, "grid": 5e-4, "image": 2.5e-4}[kind],
            "epsilon_steps": 0,
            "rollout_length": 256 if continuous else 128,
            "epochs": 10 if kind == "vector" else 4,
            "minibatches": 4 if image else 32 if continuous else 16,
            "clip": 0.2 if kind == "vector" else 0.1,
            "entropy": 0.0 if continuous else 0.01,
            "normalize": kind == "vector",
        }
    else:
        defaults |= {
            "num_envs": 8 if kind == "vector" else 16,
            "learning_rate": {"vector": 1e-3, "grid": 2.5e-4, "image": 1e-4}[kind],
            "epsilon_steps": config.steps // 2 if kind == "vector" else min(config.steps // 6, 250_000),
            "warmup": min({"vector": 1_000, "grid": 5_000, "image": 20_000}[kind], config.steps // 10),
            "replay_ratio": {"vector": 16.0, "grid": 16.0, "image": 8.0}[kind],
            "minibatch": 128,
            "target_every": {"vector": 100, "grid": 125, "image": 500}[kind],
        }
    settings = flat(config)
    for name in ("checkpoint_seconds", "tensorboard", "device", "env_kwargs"):  # the last are in the task
        del settings[name]
    return settings | {name: default for name, default in defaults.items() if settings[name] is None}


def own_settings(settings: dict[str, Any], task: Task) -> DQNSettings | PQNSettings | PPOSettings:
    """The learner's own settings: those of the papers, apart from what `docs/train.md` lists.

    Raises:
        UserError: a replay that is too small, or a run that ends before the first update.
    """
    if settings["algo"] == "pqn":
        kinds = {
            "vector": PQNSettings(minibatch=64, epochs=4),
            "grid": PQNSettings(minibatch=128),
            "image": PQNSettings(),
        }
        return replace(kinds[_kind(task)], steady=settings["steady"], averaging=settings["averaging"])
    if settings["algo"] == "ppo":
        own = PPOSettings(**{field.name: settings[field.name] for field in fields(PPOOptions)})
        samples = settings["num_envs"] * own.rollout_length
        if samples < 2 * own.minibatches:
            raise UserError(
                f"--minibatches {own.minibatches} leave fewer than 2 of {samples} samples a rollout for each: take fewer, or a "
                "longer --rollout-length"
            )
        return own
    least = settings["num_envs"] * (settings["n_step"] + task.frame_stack)
    if settings["replay"] < least:
        raise UserError(
            f"--replay is at least {least} for {settings['num_envs']} environments and {settings['n_step']}-step returns, "
            f"not {settings['replay']}"
        )
    if settings["warmup"] >= settings["steps"]:
        raise UserError(
            f"--warmup {settings['warmup']} leaves none of --steps {settings['steps']} for learning: take fewer"
        )
    learning = DQNSettings(
        capacity=settings["replay"],
        n_step=settings["n_step"],
        double=settings["double"],
        warmup=settings["warmup"],
        replay_ratio=settings["replay_ratio"],
        minibatch=settings["minibatch"],
        target_every=settings["target_every"],
        slack=min(settings["replay"], DQNSettings.slack),
    )
    if not updates_due(settings["steps"], settings["num_envs"], task.frame_stack, learning):
        raise UserError(
            f"--steps {settings['steps']} end before the first update: take more, or a smaller --minibatch ({learning.minibatch}), "
            f"a larger --replay-ratio ({learning.replay_ratio:g}) or a shorter --warmup ({learning.warmup})"
        )
    return learning


def _kind(task: Task) -> Literal["vector", "grid", "image"]:
    """What defaults follow from."""
    if len(task.observation_shape) == 1:
        return "vector"
    return "image" if is_large_image(task.observation_shape) else "grid"
