"""`watch`: the pictures, the files read back by other programs, and the window without a screen."""

from __future__ import annotations

import importlib.util
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageSequence

from rldistill.play.envs import Pixels, make_task
from rldistill.play.games import play
from rldistill.play.rollout import EpsilonGreedy
from rldistill.policies import SavedPolicy
from rldistill.students.networks import Architecture, build
from rldistill.types import Task, UserError
from rldistill.verbs.watch import WatchConfig, watch, watched_table
from rldistill.verbs.watch.drawing import BAR, EXPLORED, MARK, TAKEN, TRACK, Caption, Stage, View
from rldistill.verbs.watch.films import write_gif, write_mp4
from rldistill.verbs.watch.window import check_display, show

minatar = pytest.mark.skipif(importlib.util.find_spec("minatar") is None, reason="needs the extra minatar")
needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs the extra video")
needs_pygame = pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="needs the extra window")
SMALL = WatchConfig(max_steps=12, epsilon=0.3, scale=1.0)


def a_policy(env: str = "MinAtar/Breakout-v1", seed: int = 0) -> SavedPolicy:
    task = make_task(env)
    return SavedPolicy(build(Architecture("cnn:2:4", task.observation_shape, task.num_actions), seed).eval(), task)


# Pictures


def stage(task: Task, names: list[str], players: int = 1, scale: float = 10.0) -> Stage:
    captions = [Caption("one", "measure"), Caption("two", "measure")][:players]
    return Stage(task, names, captions, marks="one" if players == 2 else "", frame=(20, 30), scale=scale)


def view(task: Task, preferences: list[float], action: Any, **others: Any) -> View:
    frame = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    received = np.array(preferences, dtype=np.float32)
    given = dict(marks=None, best=np.asarray(action), random=False, status="score 3") | others
    return View(frame, received, action=np.asarray(action), **given)


def bars(picture: Pixels) -> list[dict[tuple[int, int, int], list[int]]]:
    """Of each track: where, across, each of its colours is in all of its height (letters are nowhere)."""
    colours = (TRACK, BAR, TAKEN, EXPLORED, MARK)
    lines = [np.isin(codes(line), [codes(np.array(colour)) for colour in colours]).sum() > 100 for line in picture]
    lines[:212] = [False] * 212  # the game
    by_colour, top = [], 0
    for y, within in enumerate([*lines, False]):
        if not within and y > top + 3:
            band = codes(picture[top:y])
            alike = band[0][(band == band[0]).all(axis=0)]
            columns = np.flatnonzero((band == band[0]).all(axis=0))
            by_colour.append({colour: columns[alike == codes(np.array(colour))].tolist() for colour in colours})
        top = top if within else y + 1
    return by_colour


def codes(pixels: Pixels | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.asarray(pixels.astype(np.int64) @ np.array([65536, 256, 1]))


CARTPOLE = make_task("CartPole-v1")


def test_bars_are_as_long_as_preferences_and_the_one_that_was_taken_has_its_colour() -> None:
    first, second = bars(stage(CARTPOLE, ["LEFT", "RIGHT"]).draw([view(CARTPOLE, [0.25, 0.75], 1)]))
    assert not first[TAKEN] + second[BAR] + first[EXPLORED] + second[EXPLORED]
    assert len(first[BAR]) / len(first[BAR] + first[TRACK]) == pytest.approx(0.25, abs=0.01)
    assert len(second[TAKEN]) / len(second[TAKEN] + second[TRACK]) == pytest.approx(0.75, abs=0.01)
    assert max(first[BAR]) < min(first[TRACK])
    explored = bars(stage(CARTPOLE, ["LEFT", "RIGHT"]).draw([view(CARTPOLE, [0.25, 0.75], 0, random=True)]))
    assert explored[0][EXPLORED] == first[BAR]
    assert explored[1][BAR] == second[TAKEN]


def test_the_game_is_shown_as_it_is_at_a_whole_multiple() -> None:
    pictured = view(CARTPOLE, [0.5, 0.5], 0)
    picture = stage(CARTPOLE, ["0", "1"]).draw([pictured])
    assert np.array_equal(picture[12:212, 12:312], pictured.frame.repeat(10, axis=0).repeat(10, axis=1))
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0


def test_the_second_player_is_marked_with_the_preferences_of_the_first() -> None:
    first = view(CARTPOLE, [0.9, 0.1], 0)
    second = view(CARTPOLE, [0.5, 0.5], 1, marks=np.array([0.9, 0.1], dtype=np.float32))
    picture = stage(CARTPOLE, ["0", "1"], players=2).draw([first, second])
    half = picture.shape[1] // 2
    left, right = bars(picture[:, :half]), bars(picture[:, half:])
    assert not left[0][MARK] + left[1][MARK]
    track = sorted(x for columns in right[1].values() for x in columns)
    for row, share in ((0, 0.9), (1, 0.1)):
        assert len(right[row][MARK]) == 2
        assert (right[row][MARK][0] - track[0]) / len(track) == pytest.approx(share, abs=0.01)


def test_continuous_actions_are_drawn_from_the_middle_of_their_range() -> None:
    task = Task("arm", 2, (3,), "float32", action_low=(-2.0, 0.0), action_high=(2.0, 10.0))
    best = np.array([1.0, 2.5], dtype=np.float32)
    first, second = bars(stage(task, ["0", "1"]).draw([view(task, [0.75, 0.25], best, best=best)]))
    low, high = min(first[TRACK]), max(first[TRACK])
    middle, quarter = (low + high) / 2, (high - low) / 4
    assert (min(first[BAR]), max(first[BAR])) == pytest.approx((middle, middle + quarter), abs=2)
    assert (min(second[BAR]), max(second[BAR])) == pytest.approx((middle - quarter, middle), abs=2)


def test_of_several_actions_each_choice_that_was_taken_has_its_colour() -> None:
    task = Task("levers", 5, (3,), "float32", action_sizes=(2, 3))
    names = ["0: 0", "0: 1", "1: 0", "1: 1", "1: 2"]
    picture = stage(task, names).draw([view(task, [0.5, 0.5, 0.3, 0.3, 0.4], np.array([1, 2]))])
    assert [bool(bar[TAKEN]) for bar in bars(picture)] == [False, True, False, False, True]


def test_very_many_actions_are_upright_bars_without_names() -> None:
    task = Task("many", 5000, (3,), "float32")
    shares = [0.0] * 5000
    shares[2500], shares[4999] = 1.0, 0.5
    picture = stage(task, [str(n) for n in range(5000)]).draw([view(task, shares, 4999)])
    bars = (picture == np.array(BAR)).all(axis=2)
    taken = (picture == np.array(TAKEN)).all(axis=2)
    # The name is of the same colour: below it.
    top = np.flatnonzero(bars[:, 12 + 150])
    assert len(top) == 60
    assert taken[top[0] :].sum(axis=0).argmax() == 12 + 299
    assert taken[top[0] :].sum() == pytest.approx(30, abs=1)


def test_pictures_beyond_what_players_take_are_refused_before_they_are_made() -> None:
    with pytest.raises(UserError, match="pictures of .* are too large: take a smaller --scale"):
        stage(CARTPOLE, ["0", "1"], scale=100_000.0)


# Files


def stills(number: int, *, colours: int = 60, size: tuple[int, int] = (30, 44)) -> list[Pixels]:
    """Pictures of which each differs from the one before in a rectangle, and some do not differ."""
    generator = np.random.default_rng(0)
    palette = generator.integers(256, size=(colours, 3), dtype=np.uint8)
    picture = palette[generator.integers(colours, size=size)]
    made = [picture]
    for at in range(1, number):
        picture = picture.copy()
        if at % 4:
            y, x = generator.integers(20), generator.integers(30)
            picture[y : y + 9, x : x + 11] = palette[generator.integers(colours, size=(9, 11))]
        made.append(picture)
    return made


def frames_of(data: bytes) -> tuple[list[Pixels], list[float]]:
    """Pictures and milliseconds of a GIF."""
    image = Image.open(io.BytesIO(data))
    pictures, times = [], []
    for frame in ImageSequence.Iterator(image):
        pictures.append(np.asarray(frame.convert("RGB")))
        times.append(float(frame.info["duration"]))
    return pictures, times


def test_a_gif_of_few_colours_loses_nothing_and_lasts_as_long_as_the_game() -> None:
    made, file = stills(31), io.BytesIO()
    write_gif(file, iter(made), 15.0)
    pictures, times = frames_of(file.getvalue())
    distinct = [made[0]] + [now for before, now in zip(made, made[1:], strict=False) if not np.array_equal(before, now)]
    assert len(distinct) == 31 - 7
    assert len(pictures) == len(distinct), "a picture that stays is written once"
    assert all(np.array_equal(read, drawn) for read, drawn in zip(pictures, distinct, strict=True))
    assert sum(times) == pytest.approx(1000 * 31 / 15, abs=10)
    assert min(times) in (60, 70)
    assert Image.open(io.BytesIO(file.getvalue())).info["loop"] == 0, "for ever"


def test_a_gif_faster_than_viewers_show_keeps_every_third_picture_and_its_time() -> None:
    made, file = stills(30, size=(40, 44)), io.BytesIO()
    write_gif(file, made, 125.0)
    pictures, times = frames_of(file.getvalue())
    assert all(np.array_equal(read, drawn) for read, drawn in zip(pictures, made[::3], strict=True))
    assert sum(times) == pytest.approx(1000 * 30 / 125, abs=10)
    assert min(times) >= 20


def test_a_gif_of_more_colours_than_it_can_hold_stays_close() -> None:
    ramp = np.arange(64, dtype=np.uint8) * 4
    first = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(90)), axis=2)
    made, file = [first, first[::-1], first[:, ::-1]], io.BytesIO()
    write_gif(file, made, 10.0)
    pictures, _ = frames_of(file.getvalue())
    assert len(pictures) == 3
    for read, drawn in zip(pictures, made, strict=True):
        assert np.abs(read.astype(int) - drawn).mean() < 8


@needs_av
def test_an_mp4_has_the_pictures_the_size_and_the_rate() -> None:
    import av

    flat = [np.full((48, 64, 3), (shade, 255 - shade, 60), dtype=np.uint8) for shade in range(0, 250, 10)]
    file = io.BytesIO()
    write_mp4(file, iter(flat), 12.5)
    file.seek(0)
    with av.open(file) as film:
        stream = film.streams.video[0]
        read = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        assert (stream.width, stream.height, stream.codec_context.name) == (64, 48, "h264")
        assert float(stream.average_rate or 0) == 12.5
        assert float(film.duration or 0) / 1e6 == pytest.approx(25 / 12.5, abs=0.01)
    assert len(read) == 25
    for pictured, drawn in zip(read, flat, strict=True):
        assert np.abs(pictured.astype(int) - drawn).mean() < 6


# The verb


@minatar
def test_a_gif_holds_each_step_and_a_second_of_the_end(tmp_path: Path) -> None:
    done = watch(a_policy(), SMALL, out=tmp_path / "a.gif")
    pictures, times = frames_of((tmp_path / "a.gif").read_bytes())
    steps = done[0].steps
    assert 1 < steps < 12, "the ball is soon lost"
    assert sum(times) == pytest.approx(1000 * (steps + 15) / 15, abs=10), "at 15 a second"
    assert pictures[0].shape[0] > 160, "the game of 160 by 160, and what is below it"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.gif"]


@minatar
@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = WatchConfig(max_steps=10, epsilon=0.5, scale=1.0, seed=seed)
        watch([a_policy(), a_policy(seed=1)], config, out=tmp_path / f"{name}.gif")
    a, b, c = ((tmp_path / f"{name}.gif").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@minatar
def test_two_policies_start_alike_and_the_one_that_is_over_waits(tmp_path: Path) -> None:
    config = WatchConfig(episodes=3, epsilon=0.5, scale=1.0, seed=7)
    players = [a_policy(seed=1), a_policy()]
    done = watch(players, config, out=tmp_path / "a.gif")
    pictures, times = frames_of((tmp_path / "a.gif").read_bytes())
    half = pictures[0].shape[1] // 2
    game = np.s_[12:172, 0:200]
    assert np.array_equal(pictures[0][:, 6:half][game], pictures[0][:, half:][game])
    for player, one in zip(players, done, strict=True):
        games = play(
            player.task,
            lambda generator, player=player: EpsilonGreedy(player, player.task, 0.5, generator),  # type: ignore[misc]  # a default holds the player
            3,
            7,
            num_envs=1,
        )
        assert one.returns == games.returns.tolist(), "the games of evaluate"
        assert one.unfinished is None
    steps = max(one.steps for one in done)
    assert sum(times) == pytest.approx(1000 * (steps + 15) / 15, abs=10)
    assert [row["score"] for row in watched_table(done)] == [
        ", ".join(str(int(score)) for score in one.returns) for one in done
    ]


@minatar
def test_a_game_that_is_cut_has_its_score_so_far(tmp_path: Path) -> None:
    received: list[str] = []

    class Recorder:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *words, **figures: received.append(words[0]) if name == "say" else None

    done = watch(a_policy(), WatchConfig(max_steps=3, scale=1.0), out=tmp_path / "a.gif", progress=Recorder())  # type: ignore[arg-type]  # says what it is told
    assert (done[0].returns, done[0].unfinished, done[0].steps) == ([], 0.0, 3)
    assert watched_table(done)[0]["score"] == "0 (unfinished)"
    assert received == []


@minatar
def test_speed_and_size_are_the_games_own_or_what_is_asked_for(tmp_path: Path) -> None:
    watch(a_policy(), WatchConfig(max_steps=5, fps=5, scale=0.5), out=tmp_path / "a.gif")
    pictures, times = frames_of((tmp_path / "a.gif").read_bytes())
    assert sum(times) == pytest.approx(1000 * 10 / 5, abs=10)
    watch(a_policy(), WatchConfig(max_steps=1), out=tmp_path / "b.gif")
    large = frames_of((tmp_path / "b.gif").read_bytes())[0][0]
    assert large.shape[0] - pictures[0].shape[0] == 320 - 80


@needs_av
@minatar
def test_the_mp4_and_the_gif_of_a_seed_show_the_same(tmp_path: Path) -> None:
    import av

    for name in ("a.gif", "a.mp4", "b.mp4"):
        (done,) = watch(a_policy(), SMALL, out=tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    pictures, _ = frames_of((tmp_path / "a.gif").read_bytes())
    with av.open(tmp_path / "a.mp4") as film:
        read = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(read) == done.steps + 15
    for one, other in ((read[0], pictures[0]), (read[-1], pictures[-1])):
        assert one.shape == other.shape
        # Half of the pixels share their colour with neighbours there, so edges smear.
        assert np.abs(one.astype(int) - other).mean() < 6


@pytest.mark.slow
def test_two_atari_games_with_as_many_actions_are_not_one_and_two_ids_of_one_are(tmp_path: Path) -> None:
    pong, other = a_policy("PongNoFrameskip-v4"), a_policy("QbertNoFrameskip-v4")
    assert pong.task.num_actions == other.task.num_actions
    with pytest.raises(UserError, match=r"plays PongNoFrameskip-v4 and .* QbertNoFrameskip-v4: name with --env"):
        watch([pong, other], SMALL, out=tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
    done = watch([pong, a_policy("ALE/Pong-v5")], WatchConfig(max_steps=2, scale=1.0), out=tmp_path / "a.gif")
    assert [one.steps for one in done] == [2, 2], "two ids of one game"
    picture = frames_of((tmp_path / "a.gif").read_bytes())[0][0]
    screen = picture[12:222, 32:192]
    assert {tuple(colour) for colour in screen[40:180, 20:60].reshape(-1, 3).tolist()} >= {(144, 72, 17)}, (
        "Pong's brown, where the policy sees grey"
    )


# What goes wrong


class Broken(gymnasium.Env[npt.NDArray[np.float32], int]):
    """Its renderer does what it is told at its third picture."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  # as Gymnasium declares it
    then: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.pictures = render_mode, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        return np.zeros(2, dtype=np.float32), 0.5, False, False, {}

    def render(self) -> npt.NDArray[np.uint8]:
        self.pictures += 1
        if self.pictures == 3:
            type(self).then()
        return np.random.default_rng(self.pictures).integers(256, size=(64, 64, 3), dtype=np.uint8)


@pytest.fixture
def broken() -> Iterator[SavedPolicy]:
    gymnasium.register("Broken-v0", lambda **options: Broken(**options))
    task = make_task("Broken-v0")
    yield SavedPolicy(build(Architecture("mlp:4", (2,), 2), 0).eval(), task)
    del gymnasium.registry["Broken-v0"]


ENDINGS = ["gif", pytest.param("mp4", marks=needs_av)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_ctrl_c_leaves_what_was_there(
    tmp_path: Path, broken: SavedPolicy, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(Broken, "then", staticmethod(lambda: signal.raise_signal(signal.SIGINT)))
    (tmp_path / f"old.{ending}").write_bytes(b"old")
    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            watch(broken, WatchConfig(max_steps=9), out=tmp_path / f"{name}.{ending}", force=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"old.{ending}"]
    assert (tmp_path / f"old.{ending}").read_bytes() == b"old"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, broken: SavedPolicy, ending: str, full_disk: Any
) -> None:
    with full_disk(20_000), pytest.raises(UserError, match=r"cannot write .*: File too large"):
        watch(broken, WatchConfig(max_steps=40), out=tmp_path / f"a.{ending}")
    assert not list(tmp_path.iterdir())


def test_an_environment_that_draws_nothing_is_refused(
    tmp_path: Path, broken: SavedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "render", lambda self: None)
    with pytest.raises(UserError, match="Broken-v0 cannot be drawn here: "):
        watch(broken, out=tmp_path / "a.gif")
    monkeypatch.setattr(Broken, "render", lambda self: np.zeros(8, dtype=np.uint8))
    with pytest.raises(UserError, match=r"cannot be drawn here: .*shape \(8,\)"):
        watch(broken, out=tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: SavedPolicy) -> None:
    for module in ("av", "pygame"):
        monkeypatch.setitem(sys.modules, module, None)  # as on a machine without it
    with pytest.raises(UserError, match=r"needs av: pip install 'rldistill\[video\]'"):
        watch(broken, out=tmp_path / "a.mp4")
    with pytest.raises(
        UserError, match=r"--out F.gif or --out F.mp4\) needs pygame: pip install 'rldistill\[window\]'"
    ):
        watch(broken)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (WatchConfig(episodes=0), "--episodes is at least 1, not 0"),
        (WatchConfig(max_steps=0), "--max-steps is at least 1, not 0"),
        (WatchConfig(epsilon=1.5), "--epsilon lies between 0 and 1"),
        (WatchConfig(seed=-1), "--seed is at least 0"),
        (WatchConfig(fps=0), "--fps lies between"),
        (WatchConfig(fps=float("nan")), "--fps lies between"),
        (WatchConfig(scale=0), "--scale is above 0"),
        (WatchConfig(temperature=0), "--temperature is a positive number"),
        (WatchConfig(temperature=float("inf")), "--temperature is a positive number"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, config: WatchConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        watch("nowhere", config, out=tmp_path / "a.gif")


def test_a_file_is_checked_before_a_policy_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"mine")
    (tmp_path / "b.gif").mkdir()
    for name, words in (("a.gif", "--force"), ("b.gif", "is a folder"), ("c/d.gif", "there is no folder"),
                        ("e.avi", "ends in .avi: watch writes .gif and .mp4"), ("f", "ends in nothing")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            watch("nowhere", out=tmp_path / name)
    assert (tmp_path / "a.gif").read_bytes() == b"mine"


# The window


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen that nobody sees."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def pressing(keys: dict[int, list[str]], positions: list[int], number: int = 20) -> Iterator[Pixels]:
    """Pictures; when one is asked for, keys are pressed that the window will find beside the picture."""
    import pygame

    for at in range(number):
        positions.append(at)
        for key in keys.get(at, []):
            code = getattr(pygame, f"K_{key}")
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=code))
        yield np.full((20, 30, 3), at, dtype=np.uint8)


@needs_pygame
@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("keys", "last"),
    [
        ({}, 19),
        ({3: ["q"]}, 3),
        ({3: ["ESCAPE"]}, 3),
        ({3: ["SPACE", "q"]}, 3),
        ({3: ["SPACE", "SPACE"], 5: ["q"]}, 5),
        ({3: ["SPACE", "RIGHT"], 4: ["RIGHT"], 5: ["q"]}, 5),
        ({3: ["RIGHT"], 4: ["SPACE"]}, 19),
        ({3: ["a"]}, 19),
    ],
)
def test_keys_pause_step_and_quit(keys: dict[int, list[str]], last: int) -> None:
    positions: list[int] = []
    show(pressing(keys, positions), 1000.0, size=(30, 20), title="pong")
    assert positions[-1] == last


@needs_pygame
@pytest.mark.usefixtures("nowhere")
def test_while_it_is_paused_no_picture_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import pygame

    positions: list[int] = []
    waits: list[int] = []

    def waited(seconds: float) -> None:
        waits.append(positions[-1])
        if len(waits) == 5:
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    monkeypatch.setattr(time, "sleep", waited)
    show(pressing({3: ["RIGHT"]}, positions), 1e9, size=(30, 20), title="pong")
    assert waits == [4] * 5, "one step, and then it waits"


@needs_pygame
@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("quits", "seconds"), [(None, 20.0), (2.0, 2.0)])
def test_a_picture_stays_its_time_and_keys_are_heard_meanwhile(
    monkeypatch: pytest.MonkeyPatch, quits: float | None, seconds: float
) -> None:
    import pygame

    slept: list[float] = []

    def sleep(length: float) -> None:
        slept.append(length)
        if quits is not None and sum(slept) >= quits:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q))

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    show(pressing({}, [], number=2), 0.1, size=(30, 20), title="pong")
    assert sum(slept) == pytest.approx(seconds, abs=0.1)
    assert max(slept) <= 0.1


@needs_pygame
@minatar
@pytest.mark.usefixtures("nowhere")
@pytest.mark.slow
def test_a_game_in_a_window_is_the_game_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pygame

    pictured: list[Pixels] = []
    flip = pygame.display.flip

    def kept() -> None:
        flip()
        pictured.append(pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2))

    monkeypatch.setattr(pygame.display, "flip", kept)
    config = WatchConfig(max_steps=6, epsilon=0.5, scale=1.0, fps=20)
    done = watch(a_policy(), config)
    assert done == watch(a_policy(), config, out=tmp_path / "a.gif")
    pictures, _ = frames_of((tmp_path / "a.gif").read_bytes())
    assert len(pictured) == 6 + 20
    assert np.array_equal(pictured[0], pictures[0])
    assert np.array_equal(pictured[-1], pictures[-1])
    assert not pygame.display.get_init(), "the window is closed"


@needs_pygame
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is a display")
def test_without_a_display_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="there is no display for a window: write a file instead, with --out F.gif"):
        watch("nowhere")
    monkeypatch.setenv("SDL_VIDEODRIVER", "none-such")
    with pytest.raises(UserError, match="there is no display for a window .*none-such.*: write a file instead"):
        check_display()
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setenv("DISPLAY", ":nobody-there")
    with pytest.raises(UserError, match="there is no display for a window"):
        check_display()
    assert capfd.readouterr().out == ""
