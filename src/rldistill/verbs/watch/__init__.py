"""The verb `watch`: a policy at play, or two side by side, in a window or as a GIF or MP4."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from rldistill.arguments import checked_arguments
from rldistill.machine import usual_torch
from rldistill.play.envs import with_longest_game
from rldistill.policies import MultiTaskPolicy, NamedPolicy
from rldistill.progress import Progress, Silent
from rldistill.teachers import TeacherOptions, load_all
from rldistill.types import Teacher, UserError, check_boolean
from rldistill.verbs.scoring import tables_by_task, task_together
from rldistill.verbs.watch.playing import (
    WatchConfig,
    Watched,
    check_settings,
    film_file,
    play_drawn,
    watched_table,
)
from rldistill.verbs.watch.window import check_display

__all__ = ["WatchConfig", "Watched", "watch", "watched_table"]


Watchable: TypeAlias = str | os.PathLike[str] | Teacher | MultiTaskPolicy


@usual_torch()
@checked_arguments
def watch(
    policies: Watchable | Sequence[Watchable],
    config: WatchConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    options: TeacherOptions | None = None,
    progress: Progress | None = None,
) -> list[Watched]:
    """Plays in a window, or into a file: the pictures of the game, and under them what the policy thinks of its actions.

    Args:
        policies: whatever `load_teacher` takes, a loaded policy, or anything that is a `Teacher`; or two of them, which are shown
            side by side and start from the same seed. White marks in the bars of the second are the first one's preferences in
            its place. Of a policy of several tasks all are played, one after the other, or that of `config.task`.
        config: see `WatchConfig`.
        out: a file that ends in `.gif` or `.mp4`; None opens a window (space pauses, right arrow is a step, q quits).
        force: replace a file that exists.
        options: what files of another tool do not say.
        progress: notified of each step.

    Returns:
        What each policy did.

    Raises:
        UserError: a wrong configuration, policies that cannot be loaded or that play different games, an environment
            that cannot be drawn, a missing package (the message names the extra), no display, a file that exists or cannot be
            written. Nothing is written then.
    """
    check_boolean("force", force)
    config, progress = config or WatchConfig(), progress or Silent()
    check_settings(config)
    target = film_file(Path(out), force=force) if out is not None else None
    if target is None:
        check_display()
    given = [policies] if isinstance(policies, str | os.PathLike) or not isinstance(policies, Sequence) else policies
    if not 1 <= len(given) <= 2:
        raise UserError(f"watch shows one policy, or two side by side, not {len(given)}")
    table = load_all(given, env=config.env, env_kwargs=config.env_kwargs, options=options, progress=progress)
    programme = [
        (group, with_longest_game(task_together(group, config.env, config.env_kwargs), config.max_episode_steps))
        for group in _groups(table, config.task)
    ]
    return play_drawn(programme, config, target, force=force, progress=progress)


def _groups(table: Sequence[NamedPolicy], task: str | None) -> list[list[NamedPolicy]]:
    """The policies of each task that is played; of a student of several tasks those that were asked for."""
    if not any(one.whole is not None for one in table):
        if task is not None:
            raise UserError("--task is one of several tasks, and no policy here plays several: leave it out")
        return [list(table)]
    groups = {group[-1].name.rpartition("#")[2]: group for group in tables_by_task(table)}
    if task is None:
        return list(groups.values())
    if task not in groups:
        raise UserError(f"there is no head for {task!r}: the tasks are {', '.join(groups)}")
    return [groups[task]]
