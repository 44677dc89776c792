"""Absurd values in every JSON file that is read: a sample of all cases. `python tests/absurd.py` tries the whole product."""

import json
import random
from pathlib import Path

import pytest

from absurd import cases, outcome, targets


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_absurd_values_in_files_end_in_success_or_one_line(tmp_path: Path) -> None:
    found = targets(tmp_path, programs=False)
    assert len(found) >= 12
    faults, refused = [], 0
    rng = random.Random(20)
    for name, target in found.items():
        mine = cases({name: target})
        for case in rng.sample(mine, 6):
            text = outcome(case, target)
            refused += text == "refused"
            if text not in ("read", "refused"):
                faults.append((case, text))
        target.put(json.dumps(target.document))
    assert [f"{case}: {text[-600:]}" for case, text in faults] == []
    assert refused > 40
