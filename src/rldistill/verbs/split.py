"""The verb `split`: one head of a policy of several tasks as a policy folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

from rldistill.arguments import checked_arguments
from rldistill.files import free_path
from rldistill.holding import new_folder
from rldistill.machine import usual_torch
from rldistill.policies import MultiTaskPolicy, SavedPolicy, load_policy, name_of, save_policy
from rldistill.teachers import load_own, load_several
from rldistill.types import UserError


@usual_torch()
@checked_arguments
def split(policy: str | os.PathLike[str] | MultiTaskPolicy, task: str, out: str | os.PathLike[str]) -> SavedPolicy:
    """Writes the torso and one head as a policy folder, which every verb takes like any other.

    Args:
        policy: a policy or run folder, `hf://owner/name`, or a loaded policy.
        task: the head, by its name.
        out: folder to make.

    Returns:
        The policy in the folder. Its provenance is that of the whole policy, and `split_from` names the latter.

    Raises:
        UserError: the policy plays one task only or has no head for this one (the message names those there are), or `out`
            exists. Nothing is written then.
    """
    whole = load_several(policy)
    if whole is None:
        assert not isinstance(policy, MultiTaskPolicy)
        own = load_own(policy, verb="split")
        raise UserError(f"{os.fspath(policy)} plays one task, {own.task.env}: there is nothing to split")
    head = whole.view(task)
    free_path(Path(out))
    origin = {"policy": name_of(policy), "sha256": whole.sha256, "task": task}
    with new_folder(Path(out)) as folder:
        save_policy(folder, head.network, head.task, {**head.provenance, "split_from": origin})
    return load_policy(out)
