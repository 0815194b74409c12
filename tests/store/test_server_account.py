"""The account that the embedded server runs as, where root starts it: added once, whoever else starts one as well."""

from __future__ import annotations

import os
import pwd
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

AT_ONCE = 6
ADD = """
import sys
from devmesh.store.server_account import server_account
sys.stdin.read()
print(server_account(sys.argv[1]).pw_uid)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="accounts are added by root")
def test_starts_at_once_on_a_new_machine_agree_on_the_account() -> None:
    name = f"dmtest{secrets.token_hex(4)}"
    starters = [
        subprocess.Popen([sys.executable, "-c", ADD, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(AT_ONCE)
    ]
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:  # all have been begun by now, so that they ask at the same time
            said = list(pool.map(lambda starter: starter.communicate(timeout=60)[0].strip(), starters))
        assert said == [str(pwd.getpwnam(name).pw_uid)] * AT_ONCE
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)
