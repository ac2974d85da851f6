"""The upload of a finished run to the Hub."""

import os
import shlex

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from autolora_trainer.clean import usable_token
from autolora_trainer.hub_client import bounded_waits, reason, root_cause
from autolora_trainer.runs.record import RecordError, staged


class PushError(RuntimeError):
    """An upload failed. The run itself is finished and complete on disk."""


def check_repo_id(repo_id: str, argument: str = "hub_model_id") -> None:
    """Raise `ValueError` unless this can name a repository; to be asked before a run, not after it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"{argument} must be a repository's name, e.g. owner/mrpc-autolora, got {repo_id!r}."
        ) from None


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    endpoint: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload what a finished run wrote, by its own record (`runs.record`), of `PUSHED_FILES`; checkpoints, histories
    and whatever else lies there are not sent.

    Call it last: a failure then costs nothing but the upload.

    Args:
        repo_id: `name` or `owner/name`; the repository is created if need be.
        token: Default: the one of `hf auth login`.
        private: visibility of a new repository. Default: the owner's setting.
        commit_message, endpoint: Default: "Upload the adapter", and the Hub.
        revision: the branch to push to, which is created if need be. Default: main.
    Returns:
        The repository's address.
    Raises:
        ValueError: if `repo_id` is not the name of a repository.
        PushError: one line that names the repository, the reason and what to type next.
    """
    folder = os.fspath(folder)
    check_repo_id(repo_id)
    token = usable_token(token)
    try:
        with staged(folder) as written, bounded_waits(endpoint):
            api = HfApi(endpoint=endpoint, token=token)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not revision.startswith("refs/pr/"):
                api.create_branch(url.repo_id, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=url.repo_id,
                revision=revision,
                folder_path=written,
                commit_message=commit_message or "Upload the adapter",
            )
    except RecordError as error:
        raise PushError(f"Could not push to {repo_id}: {error}") from error
    # The client raises HTTP, JSON, OS and value errors, and none of them may look as if the run had failed.
    except Exception as error:
        branch = "" if revision is None else f", revision={revision!r}"
        again = f"from autolora_trainer.hub import push_to_hub; push_to_hub({folder!r}, {repo_id!r}{branch})"
        raise PushError(
            f"Could not push to {repo_id}: {reason(error, token)}. The run itself is finished, in {folder}. "
            f"{_remedy(error)}, then type: python -c {shlex.quote(again)}"
        ) from error
    return str(url)


def _remedy(error: Exception) -> str:
    error = root_cause(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "Unset HF_HUB_OFFLINE"
    if status in (401, 403):
        return "Log in with `hf auth login` and a token that may write to that repository"
    if status is None:
        return "Check the connection"
    return "Wait until the Hub answers again" if status >= 500 else "Check the repository's name and your rights to it"
