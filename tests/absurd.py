"""Every JSON file that is read, with each of its values in turn replaced by absurd ones.

    python tests/absurd.py

tries all of them, and says what ended in anything but success or one line.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rldistill.types import UserError


class Raw(NamedTuple):
    """A text that stands in the file as it is."""

    text: str


DEEP = Raw("[" * 2000 + "]" * 2000)
ABSURD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**53, 2**63 - 1, 2**63, 10**25, Raw("1" + "0" * 400), Raw("1e999"), Raw("-0"),
    Raw("-0.0"), Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), 0.5, 1e308, -1e308, 1e-320, "", "a", "../../etc/passwd", "\0",
    "a\nb", "x" * 5000,
    Raw('"\\ud800"'), Raw('"\\udcff"'), "none", "nan", "9" * 30, [], {}, [[]], [None], [0], [1, 2], [-1], ["a"], [[0, 0]], [1e308],
    [0] * 1000, {"a": 1}, {"": {}}, [{}], [[[[1]]]], DEEP, Raw('{"a":' * 1500 + "1" + "}" * 1500),
]  # fmt: skip


def places_in(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value; of a long list the first three."""
    if at:
        yield at
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places_in(value, (*at, key))
    elif isinstance(document, list):
        for number, value in enumerate(document[:3]):
            yield from places_in(value, (*at, number))


def text_of(document: Any, place: tuple[Any, ...], value: Any) -> str:
    """The document as text, with a value in this place."""
    changed = copy.deepcopy(document)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = "@absurd@" if isinstance(value, Raw) else value
    text = json.dumps(changed)
    return text.replace('"@absurd@"', value.text) if isinstance(value, Raw) else text


class Target(NamedTuple):
    """A JSON text in a file, and what reads it."""

    document: Any
    put: Callable[[str], None]
    """Writes another text in its place."""
    read: Callable[[], Any]
    """What a user would do with the file."""


def _signed(folder: Path) -> Callable[[str], None]:
    from rldistill.policies import card_checksum

    def put(text: str) -> None:
        try:
            card = json.loads(text)
            card["card_sha256"] = card_checksum(card)
            text = json.dumps(card)
        except (ValueError, RecursionError, TypeError):
            pass
        (folder / "policy.json").write_text(text)

    return put


def _in_zip(path: Path, member: str) -> tuple[Any, Callable[[str], None]]:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith(member))

    def put(text: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for key, data in members.items():
                archive.writestr(key, text.encode(errors="surrogatepass") if key == name else data)

    return json.loads(members[name]), put


def _policy(folder: Path, seed: int = 0) -> Path:
    from rldistill.play.envs import make_task
    from rldistill.policies import save_policy
    from rldistill.students.networks import Architecture, build

    score = {"mean": 9.5, "ci_low": 1.0, "ci_high": 10.0, "episodes": 3, "epsilon": 0.05}
    provenance = {"command": "rldistill train", "score": score,
                  "temperature": 1.0, "teacher": "none", "configuration": {"steps": 3, "seed": 0}, "algorithm": "dqn",
                  "control_steps": 5, "updates": 3, "seconds": 1.5}  # fmt: skip
    network = build(Architecture("mlp:4", (4,), 2), seed)
    save_policy(folder, network, make_task("CartPole-v1"), provenance)
    return folder


def _use(path: Path) -> None:
    """Loads a policy, asks it and says what it is."""
    from rldistill import inspect, load_teacher
    from rldistill.play.envs import Environments
    from rldistill.types import as_tensor

    teacher = load_teacher(path)
    teacher(as_tensor(Environments(teacher.task, 1, 0).observations))
    json.dumps(inspect(path))


def targets(folder: Path, *, programs: bool = True) -> dict[str, Target]:
    """A valid file of every kind, small, and what reads it.

    Args:
        folder: where they are made.
        programs: whether exports to ONNX and TorchScript are among them, which take seconds to make.
    """
    from foreign_files import balancing_zip
    from recorded import TEACHER, VECTOR, played
    from rldistill import DistillConfig, EvaluateConfig, ReportConfig, evaluate, export, load_policy, report
    from rldistill.datasets import convert, create_dataset, head, head_table, info, info_lines, merge, open_dataset
    from rldistill.runs.scores import read_scores, remarks, score_table
    from rldistill.runs.writing import Run
    from rldistill.teachers import card_of, note_in
    from rldistill.teachers.detect import kind_of
    from rldistill.verbs.distill.dataset import fitting_dataset
    from rldistill.verbs.distill.teaching import teaching_of
    from rldistill.verbs.export import ExportConfig
    from rldistill.verbs.push import PushConfig, push

    all_targets: dict[str, Target] = {}

    def plain(path: Path) -> tuple[Any, Callable[[str], None]]:
        return json.loads(path.read_text()), lambda text: path.write_text(text) and None

    # --- policy folder
    policy = _policy(folder / "policy")
    all_targets["policy.json"] = Target(plain(policy / "policy.json")[0], _signed(policy), lambda: _use(policy))
    # --- run folder
    run = folder / "run"
    config = {"verb": "distill", "teacher": "none", "task": load_policy(policy).task.as_dict(), "env": None, "seed": 0,
              "teacher_options": {"teacher_network": None, "trust_pickle": False, "normalization": None}, "targets": "raw",
              "student": "mlp:4", "loss": "kl", "dataset": None, "steps": 400, "evaluate_episodes": 2}  # fmt: skip
    run.mkdir()
    shutil.copytree(policy, run / "policy")
    metrics = [
        {"event": "fit", "temperature": 1.0, "spread": 2.0, "shift": [0.0], "scale": [1.0]},
        {"event": "teacher", "mean": 9.5, "ci_low": 9.0, "ci_high": 10.0, "episodes": 3, "epsilon": 0.05},
        {"event": "train", "control_steps": 3, "updates": 2, "loss": 0.5, "agreement": 0.5, "learning_rate": 0.1, "seconds": 1.0,
         "returns": [3.0, 4.0]},
        {"event": "evaluation", "control_steps": 5, "updates": 4, "mean": 9.0, "ci_low": 8.0, "ci_high": 10.0, "iqm": 9.0,
         "returns": [9.0, 9.0], "episodes": 2, "epsilon": 0.05, "seconds": 2.0, "teacher_steps": 1, "student_steps": 2},
    ]  # fmt: skip
    (run / "config.json").write_text(json.dumps(config))
    lines = "\n".join(map(json.dumps, metrics)) + "\n"
    (run / "metrics.jsonl").write_text(lines)
    evaluate([run], EvaluateConfig(episodes=2, num_envs=2), json=run / "scores.json")

    def page() -> None:
        report(run, folder / "page.html", config=ReportConfig(episodes=0, seconds=0, teacher="none"))

    def resumed() -> None:
        with Run(run, config, resume=True):
            pass

    def configured() -> None:
        page()
        resumed()

    def pushed() -> None:
        shutil.rmtree(folder / "hub", ignore_errors=True)
        given = PushConfig(scores=run / "scores.json", teacher="none", seconds=0)
        push(run, "me/mine", given, out=folder / "hub", dry_run=True)

    all_targets["config.json"] = Target(*plain(run / "config.json"), configured)
    all_targets["config.json of push"] = Target(*plain(run / "config.json"), pushed)

    def put_metrics(text: str) -> None:
        # A line each; what is no list is one.
        parts = [json.dumps(item) for item in metrics]
        try:
            parts = [json.dumps(item) for item in json.loads(text)]
        except (ValueError, TypeError, RecursionError):
            parts.insert(2, text.removeprefix("[").removesuffix("]"))
        (run / "metrics.jsonl").write_text("\n".join(parts))

    all_targets["metrics.jsonl"] = Target(metrics, put_metrics, page)
    all_targets["metrics.jsonl of push"] = Target(metrics, put_metrics, pushed)

    def scored() -> None:
        scores = read_scores(run / "scores.json")
        json.dumps([score_table(scores), remarks(scores), [score.as_dict() for score in scores]], allow_nan=False)

    def scored_page() -> None:
        scored()
        page()

    all_targets["scores.json"] = Target(*plain(run / "scores.json"), scored_page)
    all_targets["scores.json of push"] = Target(*plain(run / "scores.json"), pushed)
    # --- dataset
    data = folder / "data"
    dataset = played(create_dataset(data, VECTOR, "q_values", TEACHER), 12, num_envs=2, shard_steps=12)[0]

    def looked_at() -> None:
        opened = open_dataset(data)
        json.dumps(info_lines(info(data)))
        json.dumps(info(data, verify=False).as_dict())
        head_table(head(data, rows=2))
        opened.intact()
        teaching = teaching_of(Plain(), "plain", VECTOR, DistillConfig())
        fitting_dataset(str(data), teaching, card_of(teaching.teacher, None), augment=False)

    def merged() -> None:
        for out in ("merged", "parquet"):
            shutil.rmtree(folder / out, ignore_errors=True)
        merge([data, other], folder / "merged", mixed_teachers=True)
        convert(data, folder / "parquet", "parquet")

    class Plain:
        task, score_kind = VECTOR, "q_values"

    other = folder / "other"
    played(create_dataset(other, VECTOR, "q_values", TEACHER), 8, num_envs=1, shard_steps=12, seed=3)
    del dataset
    all_targets["dataset.json"] = Target(*plain(data / "dataset.json"), looked_at)
    all_targets["dataset.json of merge"] = Target(*plain(data / "dataset.json"), merged)
    # --- Parquet
    import pyarrow.parquet as pq

    convert(other, folder / "table", "parquet")
    (file,) = (folder / "table").glob("*.parquet")
    rows = pq.read_table(file)

    def put_rows(text: str) -> None:
        pq.write_table(rows.replace_schema_metadata({b"rldistill": text.encode(errors="surrogatepass")}), file)

    def from_rows() -> None:
        shutil.rmtree(folder / "back", ignore_errors=True)
        convert(folder / "table", folder / "back", "rldistill")
        open_dataset(folder / "back")

    all_targets["Parquet"] = Target(json.loads(rows.schema.metadata[b"rldistill"]), put_rows, from_rows)
    # --- Stable-Baselines3
    zipped = balancing_zip(folder / "ppo-CartPole-v1.zip")
    all_targets["data of SB3"] = Target(*_in_zip(zipped, "data"), lambda: _use(zipped))
    # --- exports
    quick = ExportConfig(episodes=0, states=20, calibration=20)
    export(policy, folder / "p.zip", "sb3", quick)
    exported = folder / "p.zip"
    all_targets["sb3 export"] = Target(*_in_zip(exported, "rldistill.json"), lambda: _use(exported))
    if programs:
        import onnx

        script = folder / "p.pt"
        export(policy, script, "torchscript", quick)
        read_script = partial(note_in, "torchscript", script)
        all_targets["TorchScript export"] = Target(*_in_zip(script, "rldistill.json"), read_script)
        export(policy, folder / "p.onnx", "onnx", quick)
        model = onnx.load(folder / "p.onnx")
        (entry,) = (item for item in model.metadata_props if item.key == "rldistill")

        def put_entry(text: str) -> None:
            entry.value = text.encode(errors="replace").decode()
            (folder / "p.onnx").write_bytes(model.SerializeToString())

        all_targets["ONNX export"] = Target(
            json.loads(entry.value), put_entry, lambda: note_in("onnx", folder / "p.onnx")
        )
    try:
        export(policy, folder / "p.c", "c", quick)
        source = (folder / "p.c").read_text()
        first, second, rest = source.split("\n", 2)

        def put_c(text: str) -> None:
            (folder / "p.c").write_text(f"{first}\n/* {text} */\n{rest}", errors="replace")

        all_targets["C export"] = Target(
            json.loads(second[3:-3]), put_c, lambda: note_in(kind_of(folder / "p.c"), folder / "p.c")
        )
    except UserError:
        pass
    # --- safetensors
    import safetensors.numpy

    from rldistill import TeacherOptions, load_teacher
    from test_teachers import MLP

    tensors = folder / "net.safetensors"
    tensors.write_bytes(safetensors.numpy.save({name: value.numpy() for name, value in MLP.items()}, {"format": "pt"}))
    packed = tensors.read_bytes()
    length = int.from_bytes(packed[:8], "little")

    def put_header(text: str) -> None:
        header = text.encode(errors="surrogatepass")
        tensors.write_bytes(len(header).to_bytes(8, "little") + header + packed[8 + length :])

    said_of = TeacherOptions(teacher_network="mlp:8,5", teacher_scores="q_values")
    all_targets["safetensors"] = Target(
        json.loads(packed[8 : 8 + length]), put_header,
        lambda: load_teacher(tensors, env="CartPole-v1", options=said_of),
    )  # fmt: skip
    # --- the card of a model of the hub
    model_folder = folder / "model"
    balancing_zip(model_folder / "ppo-CartPole-v1.zip")

    def put_card(text: str) -> None:
        try:
            card = json.loads(text)
            block = "\n".join(f"{key}: {value}" for key, value in card.items())
        except (ValueError, RecursionError):
            block = text
        (model_folder / "README.md").write_text(f"---\n{block}\n---\n", errors="surrogatepass")

    card = {
        "library_name": "stable-baselines3",
        "tags": "\n- CartPole-v1",
        "model-index": "\n- name: PPO\n  dataset:\n    name: CartPole-v1",
    }
    all_targets["card of the hub"] = Target(card, put_card, lambda: _use(model_folder))
    # --- Minari
    try:
        convert(other, folder / "minari" / "vector-v0", "minari")
        metadata = folder / "minari" / "vector-v0" / "data" / "metadata.json"

        def from_minari() -> None:
            shutil.rmtree(folder / "read", ignore_errors=True)
            convert(folder / "minari" / "vector-v0", folder / "read", "rldistill")

        all_targets["metadata of Minari"] = Target(*plain(metadata), from_minari)
    except UserError:
        pass
    assert DistillConfig
    return all_targets


class Case(NamedTuple):
    """One value in one place of one file."""

    target: str
    place: tuple[Any, ...]
    value: Any


def cases(all_targets: Mapping[str, Target]) -> list[Case]:
    """All of them."""
    return [
        Case(name, place, value)
        for name, target in all_targets.items()
        for place in places_in(target.document)
        for value in ABSURD
    ]


def outcome(case: Case, target: Target) -> str:
    """`read` or `refused`; a traceback where it is neither."""
    target.put(text_of(target.document, case.place, case.value))
    try:
        target.read()
    except UserError as error:
        text = str(error)
        if len(text.splitlines()) != 1 or len(text) > 7000:
            return f"a refusal that is no line: {text[:500]!r}"
        text.encode()
        return "refused"
    except Exception:
        return traceback.format_exc()
    return "read"


def main() -> int:
    """Tries all cases and says what is at fault."""
    torch.set_num_threads(1)
    logged, faults = Counter[str](), Counter[str]()

    def late(*_: Any) -> None:
        raise RuntimeError("it takes more than ten seconds of the processor")

    signal.signal(signal.SIGPROF, late)
    only = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        all_targets = targets(Path(place))
        every = [case for case in cases(all_targets) if not only or case.target in only]
        random.Random(0).shuffle(every)
        share = float(os.environ.get("SHARE", "1"))
        for case in every[: int(len(every) * share)]:
            signal.setitimer(signal.ITIMER_PROF, 10)
            text = outcome(case, all_targets[case.target])
            signal.setitimer(signal.ITIMER_PROF, 0)
            logged[text if text in ("read", "refused") else "fault"] += 1
            if text not in ("read", "refused"):
                lines = text.strip().splitlines()
                ours = [line.strip() for line in lines if "/rldistill/" in line]
                key = f"{case.target}: {lines[-1][:160]} [{ours[-1][-90:] if ours else ''}]"
                faults[key] += 1
                if faults[key] == 1:
                    print(f"FAULT {key}\n   {case.place} = {str(case.value)[:60]!r}", flush=True)
            if sum(logged.values()) % 500 == 0:
                print(f"{sum(logged.values())} cases", flush=True)
            all_targets[case.target].put(json.dumps(all_targets[case.target].document))
    print(f"{sum(logged.values())} cases: {dict(logged)}; {len(faults)} kinds of faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
