"""Policies in C: compiled with all warnings as errors, run, and compared with PyTorch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from rldistill.formats.c.compiling import compiled, compiler
from rldistill.formats.c.numbers import CPolicy, c_policy
from rldistill.formats.c.reading import read_c
from rldistill.formats.c.rendering import render
from rldistill.play.actions import chosen, score_width
from rldistill.students.networks import Architecture
from rldistill.types import Observations, ScoreKind, Task, UserError
from test_lowering import made

NO_COMPILER = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-fsanitize=address,undefined")
PIXELS = Task("Pixels-v0", 3, (2, 36, 36))
WIDE = Task("Wide-v0", 3, (2, 36, 56))  # rows of 13, 5 and 3 outputs: 7 and 6 at once
NUMBERS = Task("Numbers-v0", 3, (6,), "float32")
LEVERS = Task("Levers-v0", 5, (6,), "float32", action_sizes=(2, 3))
RANGES = {"action_low": (-1.0, -2.0), "action_high": (1.0, float("inf"))}
JOINTS = Task("Joints-v0", 2, (6,), "float32", **RANGES)  # type: ignore[arg-type]  # two bounds

MAIN = """
#include <stdio.h>
#include "policy.h"
int main(void)
{{
    static {input} observation[{upper}_OBSERVATION_SIZE];
    static float scores[{upper}_SCORES];
    while (fread(observation, sizeof observation, 1, stdin) == 1) {{
        {prefix}_scores(observation, scores);
        fwrite(scores, sizeof scores, 1, stdout);
        {act}
        fwrite(action, sizeof action, 1, stdout);
    }}
    return 0;
}}
"""

CASES: dict[str, tuple[Task, str, ScoreKind, bool]] = {
    "bytes": (PIXELS, "none", "q_values", False),
    "normalized bytes": (PIXELS, "layer", "logits", False),
    "bytes in int8": (PIXELS, "none", "q_values", True),
    "many channels": (WIDE, "none", "q_values", False),
    "many channels in int8": (WIDE, "none", "q_values", True),
    "numbers in int8": (NUMBERS, "layer", "logits", True),
    "several actions": (LEVERS, "none", "logits", False),
    "means": (JOINTS, "none", "gaussian", False),
    "squashed means": (JOINTS, "none", "squashed_gaussian", False),
}


def rendered(
    task: Task, normalization: str, kind: ScoreKind, *, int8: bool, prefix: str = "net"
) -> tuple[CPolicy, torch.nn.Module]:
    shape = task.observation_shape
    name = {PIXELS: "cnn:4,6,5:7", WIDE: "cnn:32,24,5:7"}.get(task, "mlp:9,5")
    network = made(Architecture(name, shape, score_width(task, kind), normalization))  # type: ignore[arg-type]  # a word of a case
    network._score_kind = kind
    calibration = observations_of(task, 99, seed=1) if int8 else None
    facts = {"note": "a */ /* b"}
    return c_policy(network, task, prefix=prefix, header="policy.h", calibration=calibration, facts=facts), network


def observations_of(task: Task, number: int, seed: int) -> Observations:
    generator, size = np.random.default_rng(seed), (number, *task.observation_shape)
    if task.observation_dtype == "uint8":
        return generator.integers(256, size=size, dtype=np.uint8)
    return generator.normal(size=size).astype(np.float32)


@NO_COMPILER
@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_a_program_with_the_file_does_what_the_network_does(name: str, tmp_path: Path) -> None:
    task, normalization, kind, int8 = CASES[name]
    policy, network = rendered(task, normalization, kind, int8=int8)
    source, header = render(policy)
    discrete = not task.continuous and not task.action_sizes
    length, ctype = (task.num_actions, "float") if task.continuous else (len(task.action_sizes) or 1, "int32_t")
    act = (
        "int32_t action[1] = {net_act(observation)};"
        if discrete
        else f"{ctype} action[{length}]; net_act(observation, action);"
    )
    given = "uint8_t" if task.observation_dtype == "uint8" else "float"
    (tmp_path / "policy.c").write_text(source)
    (tmp_path / "policy.h").write_text(header)
    (tmp_path / "main.c").write_text(MAIN.format(input=given, upper="NET", prefix="net", act=act))
    cc = compiler()
    assert cc is not None
    built = subprocess.run(
        [*cc, *STRICT, "main.c", "policy.c", "-o", "main", "-lm"], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    observations = observations_of(task, 50, seed=0)
    output = subprocess.run([tmp_path / "main"], input=observations.tobytes(), capture_output=True, check=True).stdout
    width = score_width(task, kind)
    record = np.dtype([("scores", "<f4", (width,)), ("action", "<f4" if task.continuous else "<i4", (length,))])
    rows = np.frombuffer(output, record)
    scores = network(torch.from_numpy(observations))
    assert len(rows) == 50
    ours = torch.from_numpy(rows["scores"].copy())
    if int8:
        assert float((ours - scores).abs().max()) < 0.05 * float(scores.max() - scores.min())
        assert float((ours - scores).abs().max()) > 0  # it is rounded
    else:
        torch.testing.assert_close(ours, scores, atol=1e-4, rtol=1e-3)
    actions = chosen(ours, kind, task).reshape(50, -1)  # of its own scores, near ties being anybody's
    np.testing.assert_allclose(rows["action"], actions.numpy(), atol=1e-5)
    assert len(np.unique(rows["action"], axis=0)) > 1


@NO_COMPILER
@pytest.mark.parametrize("name", ["bytes", "several actions", "means"])
def test_a_cplusplus_program_links_with_the_file(name: str, tmp_path: Path) -> None:
    """Without `extern "C"` in the header a C++ compiler looks for functions of other names."""
    cplusplus, cc = shutil.which("g++") or shutil.which("clang++"), compiler()
    if cplusplus is None:
        pytest.skip("no C++ compiler")
    task, normalization, kind, _ = CASES[name]
    policy, network = rendered(task, normalization, kind, int8=False)
    source, header = render(policy)
    given = "uint8_t" if task.observation_dtype == "uint8" else "float"
    (tmp_path / "policy.c").write_text(source)
    (tmp_path / "policy.h").write_text(header)
    (tmp_path / "main.cpp").write_text(f"""
#include "policy.h"
#include <cstdio>
int main() {{
    static {given} observation[NET_OBSERVATION_SIZE] = {{1}};
    float scores[NET_SCORES];
    net_scores(observation, scores);
    std::printf("%.9g", static_cast<double>(scores[0]));
}}
""")
    assert cc is not None
    for command in (
        [*cc, "-std=c99", "-c", "policy.c"],
        [cplusplus, "-Wall", "-Werror", "main.cpp", "policy.o", "-lm", "-o", "main"],
    ):
        built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
    output = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    observation = np.zeros(task.observation_shape, task.observation_dtype)
    observation.reshape(-1)[0] = 1
    assert float(output) == pytest.approx(float(network(torch.from_numpy(observation[None]))[0, 0]), abs=1e-4)


@NO_COMPILER
def test_no_line_about_the_interface_leaves_its_comment(tmp_path: Path) -> None:
    """They are in the file, so they may be a stranger's, and the header is compiled with it."""
    policy, _ = rendered(*next(iter(CASES.values()))[:3], int8=False)
    lines = ["*/ #error here", "a *\\", "/ b", "*/*/ #error", "??/", "\n*/\n#error", "\u2028*/", "", "/*"]
    header = render(policy._replace(description={**policy.description, "interface": lines}))[1]
    comment = header[: header.index("#ifndef")]
    assert comment.count("*/") == 1
    assert comment.endswith("*/\n")
    assert "\\" not in comment
    (tmp_path / "policy.h").write_text(header)
    (tmp_path / "main.c").write_text('#include "policy.h"\nint main(void) { return 0; }\n')
    cc = compiler()
    assert cc is not None
    built = subprocess.run([*cc, "-std=c99", "-c", "main.c"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


def test_int8_net3_of_18_actions_takes_less_than_80_kilobytes() -> None:
    task = Task("Pixels-v0", 18, (4, 84, 84))
    network = made(Architecture("net3", (4, 84, 84), 18))
    calibration = observations_of(task, 8, seed=0)
    policy = c_policy(network, task, prefix="net", header="policy.h", calibration=calibration, facts={})
    assert 61_954 <= policy.weight_bytes < 64_000


def test_what_is_read_back_is_what_was_rendered() -> None:
    policy, _ = rendered(PIXELS, "layer", "q_values", int8=True)
    text, _ = render(policy)
    again = read_c(text, "p.c")
    assert (again.task, again.score_kind, again.description) == (PIXELS, "q_values", policy.description)
    for name, array in policy.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


@NO_COMPILER
def test_a_file_with_a_line_of_somebody_elses_is_never_compiled(tmp_path: Path) -> None:
    policy, network = rendered(NUMBERS, "none", "q_values", int8=False)
    text, _ = render(policy)
    witness = tmp_path / "witness"
    harm = (
        f'#include <stdlib.h>\n__attribute__((constructor)) static void harm(void) {{ system("touch {witness}"); }}\n'
    )
    for harmed in (
        text + harm,
        text.replace("#include <math.h>\n", f"#include <math.h>\n{harm}"),
        text.replace("a \\u002a/", "a */"),
        text.replace('"prefix": "net"', '"prefix": "net_act(void){} int x"'),
        text.replace('"policy.h"', '"/tmp/policy.h"'),
        text.replace("};\n", "};int harm;\n", 1),
        text.replace("float even[", "float  even["),
        text[:-40],
        text[: len(text) // 2],
        text.replace("mlp:9,5", "mlp:60000,60000"),
        text.replace('"observation_shape": [6]', '"observation_shape": [600000000]'),
    ):
        assert harmed != text
        with pytest.raises(UserError) as error:
            read_c(harmed, "p.c")
        assert len(str(error.value).splitlines()) == 1
        assert str(error.value).startswith("p.c ")
    assert not witness.exists()
    # Numbers are data: others make another policy.
    first = text.index("weights_1[")
    start = text.index("\n", first) + 1
    end = text.index(",", start)
    changed = read_c(text[:start] + "123.5f" + text[end:], "p.c")
    assert changed.arrays["weights_1"][0] == 123.5
    observations = torch.ones((2, 6))
    assert not torch.allclose(compiled(changed, "p.c")(observations), network(observations))
    torch.testing.assert_close(compiled(read_c(text, "p.c"), "p.c")(observations), network(observations))


@NO_COMPILER
def test_observations_of_another_shape_are_refused_before_c_reads_them() -> None:
    policy, _ = rendered(NUMBERS, "none", "q_values", int8=False)
    with pytest.raises(UserError, match=r"reads \(6,\), and is given \(5,\)"):
        compiled(policy, "p.c")(torch.zeros((2, 5)))


@pytest.mark.parametrize(
    ("prefix", "header"), [("1net", "policy.h"), ("a-b", "policy.h"), ("net", 'a"b.h'), ("net", "../p.h")]
)
def test_names_that_c_cannot_take_are_refused(prefix: str, header: str) -> None:
    network = made(Architecture("mlp:4", (6,), 3))
    with pytest.raises(UserError, match=r"no prefix of C names|cannot include"):
        c_policy(network, NUMBERS, prefix=prefix, header=header, facts={})


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    policy, _ = rendered(NUMBERS, "none", "q_values", int8=False)
    with pytest.raises(UserError, match=r"there is no compiler here .* \$CC"):
        compiled(policy, "p.c")
