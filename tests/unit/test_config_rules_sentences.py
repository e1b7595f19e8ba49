"""Every sentence about a broken rule names the place in JSON, the flag, and what to do."""

from __future__ import annotations

import re

import pytest

from tests.unit import test_config_rules_devices as devices
from tests.unit import test_config_rules_machine as machine
from tests.unit.test_config_validation import config_of, problems

PATH_AND_FLAG = re.compile(r"[a-z_]+[\w.\[\]]* \(--[a-z-]+[ ,)]")
WITHOUT_A_FLAG = (
    "fs[0].iommu is true",
    "ivshmem.iommu is true",
    "generic_vhost_user[0].iommu is true",
    "user_devices[0].iommu is true",
)
"""The command line cannot say this, so there is nothing to name."""


@pytest.mark.parametrize("sections", [each[0] for each in (*machine.REFUSED, *devices.REFUSED)])
def test_sentence_names_path_flag_and_fix(sections: dict[str, object]) -> None:
    for problem in problems(config_of(**sections)):
        assert PATH_AND_FLAG.match(problem) or problem.startswith(WITHOUT_A_FLAG), problem
        assert re.search(r"; [a-zA-Z]", problem), problem
