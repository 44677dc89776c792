"""Absurd values in every JSON file that is read: a sample of all cases. `python tests/absurd.py` tries the whole product."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from absurd import _policy, cases, outcome, targets
from rldistill import EvaluateConfig, UserError, evaluate, export, load_teacher
from rldistill.runs.scores import read_scores
from rldistill.verbs.export import ExportConfig


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.slow
def test_absurd_values_in_files_end_in_success_or_one_line(tmp_path: Path) -> None:
    all_targets = targets(tmp_path, programs=False)
    assert len(all_targets) >= 12
    faults, refused = [], 0
    rng = random.Random(20)
    for name, target in all_targets.items():
        mine = cases({name: target})
        for case in rng.sample(mine, 6):
            text = outcome(case, target)
            refused += text == "refused"
            if text not in ("read", "refused"):
                faults.append((case, text))
        target.put(json.dumps(target.document))
    assert [f"{case}: {text[-600:]}" for case, text in faults] == []
    assert refused > 40


@pytest.mark.slow
def test_a_backend_that_matplotlib_does_not_know_is_no_matter() -> None:
    code = "from rldistill import plots; print(len(plots.learning_curve([plots.Curve('a', [0, 1], [1, 2])])))"
    for backend in ("nonsense", "agg"):
        environment = {**os.environ, "MPLBACKEND": backend}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 1000


def test_a_clock_before_1980_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    policy = _policy(tmp_path / "policy")
    began = time.gmtime(0)
    monkeypatch.setattr(time, "localtime", lambda *_: began)
    with pytest.raises(UserError, match="clock"):
        export(policy, tmp_path / "p.zip", "sb3", ExportConfig(episodes=0, states=20, calibration=20))
    assert not (tmp_path / "p.zip").exists()
    export(policy, tmp_path / "p.c", "c", ExportConfig(episodes=0, states=20, calibration=20))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_tensor_of_many_dimensions_is_no_weight(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"net.{ending}"
    if ending == "pth":
        torch.save({"policy.0.weight": torch.zeros([1] * 60)}, path)
    else:
        entry = {"w": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}}
        header = json.dumps(entry).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="dimensions|damaged"):
        load_teacher(path, env="CartPole-v1")


def test_paths_that_are_no_utf_8_work_and_are_printed(tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff\xe9"))
    _policy(place)
    scores = evaluate([place], EvaluateConfig(episodes=1), json=place / "s.json")
    assert read_scores(place / "s.json")[0].policy == scores[0].policy == str(place)
    with pytest.raises(UserError) as refused:
        load_teacher(place / "nothing")
    assert str(refused.value).endswith(r"p\xff\xe9/nothing")
    str(refused.value).encode()


def test_a_message_of_any_length_keeps_its_beginning_and_its_end() -> None:
    text = str(UserError(f"cannot read {'x' * 10**6}\n\x00\ud800: take another"))
    assert text.startswith("cannot read xxx")
    assert text.endswith("?: take another") or text.endswith("take another")
    assert len(text) < 6000
    assert text.isprintable()
