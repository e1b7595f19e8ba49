"""What Schemathesis is told about this VMM, in its own process."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Keep to the folder that the VMM runs in: a path that is made up must lead nowhere else."""
    case.body = without_slashes(case.body)


def without_slashes(value: object) -> Any:  # noqa: ANN401  whatever the body was
    if isinstance(value, str):
        return value.replace("/", "_")
    if isinstance(value, list):
        return [without_slashes(each) for each in value]
    if isinstance(value, dict):
        return {key: without_slashes(each) for key, each in value.items()}
    return value


@schemathesis.check
def failure_is_the_hosts(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """Check that a 500 names the call of the host that failed: never this program's own fault."""
    if response.status_code != 500:
        return
    texts = response.json()
    assert texts[0] == "Error from API", texts
    assert any(" failed: " in text for text in texts), texts
