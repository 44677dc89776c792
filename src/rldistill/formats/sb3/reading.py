"""Stable-Baselines3 policies, from mid-2020 to today, without Stable-Baselines3 and without running anything of them.

A zip holds `data` (JSON; what JSON cannot say is a pickle in base64, with readable copies of its first level beside it),
`policy.pth` (a state dict) and optimizers. The readable copies and the tensors are enough. Where a copy is abbreviated
(`[-1. -1. ... 1.]`), the pickle is read as data, see `pickles`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rldistill.formats.beside import Shape, find_beside, statistics_above
from rldistill.formats.chain import ACTIVATIONS as SPELLED
from rldistill.formats.chain import NO_MEMORY, Activation, check_spec, parse_architecture, spell
from rldistill.formats.foreign import BoxSpace, ForeignPolicy, Statistics, acted
from rldistill.formats.sb3.extractors import own_features
from rldistill.formats.sb3.files import Sb3File, open_sb3
from rldistill.formats.sb3.networks import (
    ACTIVATIONS,
    DEFAULT_ACTIVATION,
    Acting,
    Family,
    Settings,
    build_acting,
    family_of,
    sizes_of,
)
from rldistill.formats.sb3.spaces import MOST_ACTIONS, action_space, entry_of, integer, observation_space, text_of
from rldistill.formats.sb3.training import LastObservations, Training, last_observations, own_folders, read_training
from rldistill.formats.statistics import read_statistics
from rldistill.types import UserError, printable

_RECURRENT = "sb3_contrib.common.recurrent.policies"
_MASKABLE = "sb3_contrib.common.maskable.policies"
_FAMILIES: dict[str, Family] = {
    "stable_baselines3.dqn.policies": "dqn",
    "sb3_contrib.qrdqn.policies": "qrdqn",
    "stable_baselines3.common.policies": "actor-critic",
    "stable_baselines3.ppo.policies": "actor-critic",
    "stable_baselines3.a2c.policies": "actor-critic",
    "sb3_contrib.trpo.policies": "actor-critic",
    _MASKABLE: "actor-critic",
    "stable_baselines3.sac.policies": "sac",
    "sb3_contrib.tqc.policies": "sac",
    "stable_baselines3.td3.policies": "td3",
}
_REFUSED = {
    "sb3_contrib.crossq.policies": "CrossQ, whose batch renormalization is not known here",
    "sb3_contrib.ars.policies": "ARS, whose policy is not known here",
}
# Whole, module and all: a class of its author's own may end in the same name, and computes something else.
_EXTRACTORS = re.compile(
    r"<class 'stable_baselines3\.common\.torch_layers\.(NatureCNN|FlattenExtractor|CombinedExtractor)'>"
)


def read_sb3(
    path: Path,
    *,
    architecture: str | None = None,
    normalization: Path | None = None,
    folders: Sequence[Path] | None = (),
    trust_pickle: bool = False,
) -> ForeignPolicy:
    """Reads a Stable-Baselines3 zip: DQN, QR-DQN, PPO, MaskablePPO, A2C, TRPO, SAC, TD3, DDPG or TQC; MLP or Nature CNN.

    Args:
        path: the zip file.
        architecture: such as `mlp:64,64:relu`; needed where the policy's class or its activation is its author's own.
        normalization: the file of `VecNormalize.save`; where it is None, any pickle of one is looked for in the zip's folder
            and in `<env>/` and `<name>/` there, as the zoo lays it out.
        folders: searched for statistics as well; None searches nowhere.
        trust_pickle: unpickle the statistics as Python does. The zip's own pickles are never run.

    Raises:
        UserError: a file is missing, damaged, hostile or of a kind that is not supported; tensors do not fit the spaces,
            or some are left over; the activation is not known, or another is named; the statistics do not fit the observations.
    """
    source = str(path)
    file = open_sb3(path)
    module, name = _policy_class(file.data)
    family = _family(file, module, source)
    observations, actions = observation_space(file.data, source), action_space(file.data, source)
    settings = _settings(file.data, family, source)
    extractor = _own_extractor(file.data)

    def acting_with(activation: str | None) -> Acting:
        chosen = settings._replace(activation=activation)
        features_of = own_features if extractor else None
        return build_acting(family, file.tensors, observations, actions, chosen, source=source, features_of=features_of)

    activation = settings.activation or DEFAULT_ACTIVATION[family]
    author = _authors_own(file, module, name, extractor, activation)
    acting, contradicted = _activated(acting_with, architecture, author, activation, source)
    algorithm, notes = _algorithm(family, file.data, module)
    if author is not None:
        notes.append(f"{author}; its tensors were looked at, and what --teacher-network says of it")
    training = read_training(path, algorithm)
    notes += _unapplied(training)
    normalized = _Normalized(None, False)
    if normalization is not None or folders is not None:
        last = last_observations(file.data, observations, on_policy=family == "actor-critic")
        searched = [*own_folders(path, training.env), *(folders or ())]
        normalized = _normalization(path, normalization, observations, training, last, searched, trust_pickle)
    return ForeignPolicy(
        network=acting.network,
        scores=acting.scores,
        algorithm=algorithm,
        format=file.format,
        observation_space=observations,
        action_space=actions,
        squashed=acting.squashed,
        masked=module == _MASKABLE,
        normalization=normalized.statistics,
        normalization_expected=normalized.expected,
        env=training.env,
        provenance=_provenance(file, name, training, [*notes, *normalized.notes]),
        mismatches=normalized.mismatches,
        used=acted(normalization=normalization, teacher_network=None if contradicted else architecture),
        decided={"teacher_network": contradicted} if contradicted else {},
    )


def _family(file: Sb3File, module: str, source: str) -> Family:
    """The layout of a file's tensors. Raises UserError where it is of a kind that is not supported."""
    if module in _REFUSED:
        raise UserError(f"{source} is a policy of {_REFUSED[module]}; export it to ONNX or TorchScript")
    if module == _RECURRENT or any(name.startswith("lstm_") for name in file.tensors):
        raise UserError(f"{source} is a recurrent policy, as RecurrentPPO's, {NO_MEMORY}")
    family = family_of(file.tensors)
    if family is None:
        names = ", ".join(printable(key, 60) for key in list(file.tensors)[:3])
        raise UserError(f"{source} holds a network that is not known here (tensors {names or 'none'})")
    if _FAMILIES.get(module, family) != family:
        raise UserError(f"{source}: its data tells of {module}, but its policy.pth holds a {family} network")
    return family


def _authors_own(file: Sb3File, module: str, name: str, extractor: str, activation: str) -> str | None:
    """A clause that says why nothing names the activation; None where the file does.

    Args:
        file: the policy.
        module: of its class.
        name: of its class.
        extractor: of `_own_extractor`.
        activation: as the file's data name it.
    """
    if not file.keeps_class:
        return (
            "it was written by policy.save, which does not keep the policy's class as model.save does (its data name "
            f"{activation})"
        )
    if module not in _FAMILIES:
        named = printable(".".join(filter(None, (module, name))) or "that it does not name", 80)
        return f"its policy class {named} is its author's own"
    if extractor:
        return f"it has a features extractor of its author's own ({printable(extractor)})"
    return None if activation in ACTIVATIONS else f"its activation {printable(activation, 80)} is its author's own"


def _unapplied(training: Training) -> list[str]:
    """Notes on what the environment had in training and has not here."""
    notes = []
    if training.wrapper is not None and "AtariWrapper" not in training.wrapper:
        notes.append(f"it was trained in an environment wrapped by {training.wrapper}, which is not applied here")
    if training.arguments is not None:
        notes.append(f"its environment was made with {training.arguments}, here it is made without")
    return notes


def _policy_class(data: Mapping[str, Any]) -> tuple[str, str]:
    """Module and name of the policy's class; empty where the file does not say."""
    entry = entry_of(data, "policy_class")
    module = entry.get("__module__")
    # The name stands in the texts of its methods, such as "<function SACPolicy.__init__ at 0x7f>".
    match = re.match(r"<function (\w{1,80})\.__init__ at", text_of(entry, "__init__"))
    return module if isinstance(module, str) else "", match[1] if match else ""


def _algorithm(family: Family, data: Mapping[str, Any], module: str) -> tuple[str, list[str]]:
    """The algorithm by what only it keeps in `data`, and remarks where several would fit."""
    if family == "dqn":
        return "DQN", []
    if family == "qrdqn":
        return "QR-DQN", []
    if family == "actor-critic":
        if module == _MASKABLE:
            return "MaskablePPO", []
        if "clip_range" in data:
            return "PPO", []
        if "cg_max_steps" in data or "line_search_max_iter" in data:
            return "TRPO", []
        if "gae_lambda" in data and "vf_coef" in data:
            return "A2C", []
        return "PPO, A2C or TRPO", ["nothing in the file tells PPO, A2C and TRPO apart; they act alike"]
    if family == "sac":
        tqc = module.startswith("sb3_contrib.tqc") or "top_quantiles_to_drop_per_net" in data
        return ("TQC" if tqc else "SAC"), []
    if "policy_delay" not in data:
        return "TD3 or DDPG", ["nothing in the file tells TD3 and DDPG apart; they act alike"]
    plain = data.get("policy_delay") == 1 and data.get("target_noise_clip") in (0, 0.0)
    return ("DDPG" if plain else "TD3"), []


def _own_extractor(data: Mapping[str, Any]) -> str:
    """The class of a features extractor that is not SB3's; empty where it is."""
    extractor = text_of(entry_of(data, "policy_kwargs"), "features_extractor_class")
    return "" if _EXTRACTORS.fullmatch(extractor) else extractor


def _settings(data: Mapping[str, Any], family: Family, source: str) -> Settings:
    kwargs = entry_of(data, "policy_kwargs")
    activation = None
    if kwargs.get("activation_fn") is not None:
        match = re.fullmatch(r"<class 'torch\.nn\.modules\.\w+\.(\w+)'>", text_of(kwargs, "activation_fn"))
        activation = match[1] if match else text_of(kwargs, "activation_fn") or "without a name"
    clip_mean = _real(kwargs.get("clip_mean", 2.0))
    if clip_mean is None:
        raise UserError(f"{source} is damaged: its clip_mean is no number")
    quantiles = None
    if family == "qrdqn":
        quantiles = integer(data.get("n_quantiles", kwargs.get("n_quantiles")))
    return Settings(
        activation=activation,
        scale_images=not _is(kwargs.get("normalize_images"), False),
        clip_mean=clip_mean if clip_mean > 0 else math.inf,  # 0 and less: SB3 puts no limit there
        use_expln=_is(kwargs.get("use_expln"), True),
        squash_output=_is(kwargs.get("squash_output"), True),
        sde_net_is_empty=kwargs.get("sde_net_arch") in ([], "[]"),
        quantiles=quantiles if quantiles is not None and 1 <= quantiles <= MOST_ACTIONS else None,
    )


def _activated(
    acting_with: Callable[[str | None], Acting], architecture: str | None, author: str | None, own: str, source: str
) -> tuple[Acting, str]:
    """The acting part with the activation that the file or its user says.

    Args:
        acting_with: makes it with an activation of `ACTIVATIONS`; None is SB3's default.
        architecture: as a user names it.
        author: a clause that says why the activation is not known; None where it is.
        own: the activation, where it is known.
        source: the file, for messages.

    Returns:
        It, and what the file says itself where the user's word contradicts it, else an empty text.

    Raises:
        UserError: the activation is not known, or the user's word does not fit the tensors.
    """
    acting = acting_with(None)
    sizes = sizes_of(acting)
    names: dict[str, Activation] = {kind.__name__: name for name, kind in SPELLED.items()}
    if architecture is None:
        if author is None:
            return acting_with(own), ""
        if not any(sizes):
            return acting, ""
        raise UserError(
            f"{source}: {author}, so nothing says which activation stands between its layers: name the "
            f"network, --teacher-network {spell(*sizes, 'tanh')} or {spell(*sizes)} for ReLU, or export it to ONNX or TorchScript"
        )
    spec = parse_architecture(architecture)
    if author is None:
        agrees = (spec.channels, spec.hidden) == sizes and names.get(own) == spec.activation and not spec.squashed
        return acting_with(own), "" if agrees else f"it says itself that its network is {spell(*sizes)} with {own}"
    check_spec(spec, sizes, source)
    if spec.squashed:
        raise UserError(f"{source} says itself what follows its last layer: leave the second activation out")
    return acting_with(SPELLED[spec.activation].__name__), ""


def _is(value: Any, wanted: bool) -> bool:
    """Whether a value, which may be written as text, is this one."""
    return value is wanted or value == str(wanted)


def _real(value: Any) -> float | None:
    """A finite number, which may be written as text; None for anything else."""
    try:
        real = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return real if math.isfinite(real) else None


class _Normalized(NamedTuple):
    """Whether and how observations were normalized in training."""

    statistics: Statistics | None
    expected: bool
    """Whether anything says that they were."""
    notes: tuple[str, ...] = ()
    mismatches: tuple[str, ...] = ()


def _normalization(
    path: Path,
    given: Path | None,
    observations: BoxSpace,
    training: Training,
    last: LastObservations,
    folders: Sequence[Path],
    trust_pickle: bool,
) -> _Normalized:
    """Statistics where there are some, and whether observations were normalized as far as anybody can tell."""
    wanted = Shape(observations.shape, observations.keys)
    if given is not None:
        statistics = read_statistics(given, trust_pickle=trust_pickle)
        arranged = statistics.arranged(*wanted)
        if arranged is None:
            raise UserError(f"{given} {statistics.misfit(*wanted)}; name the one of this teacher")
        return _Normalized(arranged, True)
    beside = find_beside(
        path, wanted, folders=folders, normalized=last.normalized, refutes=last.refute, trust_pickle=trust_pickle
    )
    if beside.statistics is not None:
        return _Normalized(beside.statistics, True, beside.notes)
    mismatches: tuple[str, ...] = ()
    if False not in (last.normalized, training.normalized):
        mismatches = tuple(statistics_above(path, wanted, refutes=last.refute))
    if beside.normalized is False:
        return _Normalized(None, False, beside.notes, mismatches)
    notes = list(beside.notes)
    if last.normalized is None and training.normalized is None:
        notes.append(
            "the file does not tell whether its observations were normalized (VecNormalize), and no statistics lie beside it; "
            "if they were, name them with --normalization"
        )
    return _Normalized(None, training.normalized is True or last.normalized is True, tuple(notes), mismatches)


def _provenance(file: Sb3File, policy: str, training: Training, notes: list[str]) -> dict[str, Any]:
    """Facts about the policy's making, as plain JSON data."""
    data = file.data
    facts = {
        "stable_baselines3": file.version,
        "policy_class": policy or None,
        "control_steps": integer(data.get("num_timesteps")),
        "seed": integer(data.get("seed")),
        "gamma": _real(data.get("gamma")),
        "num_envs": integer(data.get("n_envs")),
        "frame_stack": training.frame_stack,
        "env_wrapper": training.wrapper,
        "system": file.system or None,
        "notes": notes or None,
    }
    return {name: value for name, value in facts.items() if value is not None}
