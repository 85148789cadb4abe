"""What real programs ask for works in a sandbox as it is made by default: unpackers, installers, version control."""

from __future__ import annotations

import shutil
import textwrap

import pytest

from tests.require import require
from tests.service import Service

TREE = """
mkdir -p from/folder; echo text > from/file; chmod 640 from/file; touch -d @1000000000 from/file
ln from/file from/folder/hard; ln -s file from/soft
"""
WHEEL = """
import zipfile
with zipfile.ZipFile("it-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("it.py", "print(\\"installed\\")")
    wheel.writestr("it-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: it\\nVersion: 1\\n")
    wheel.writestr("it-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("it-1.dist-info/RECORD", "")
"""
PROGRAMS = {  # what each prints, and its script
    "cp": ("1000000000 640\n", f"{TREE} cp -a from to; cp -a /etc/passwd to; stat -c '%Y %a' to/file"),
    "tar": ("text\n", f"{TREE} tar --xattrs -cf t.tar from; mkdir to; tar --xattrs -xpf t.tar -C to; cat to/from/soft"),
    "install": ("755\n", "install -m 755 /usr/bin/true here; ./here; stat -c %a here"),
    "mv": ("text\n", f"{TREE} mv from /dev/shm/to; cat /dev/shm/to/folder/hard"),
    "git": (
        "first\n",
        """
        git init -q . && echo text > file && git add . && git -c user.name=a -c user.email=a@b commit -qm first
        git clone -q . copy && cd copy && git gc -q && git fsck --no-progress && git log --format=%s
        """,
    ),
    "npm": (
        "installed\n",
        """
        mkdir package && echo '{"name": "it", "version": "1.0.0", "bin": "it.js"}' > package/package.json
        printf '#!/usr/bin/env node\\nconsole.log("installed")\\n' > package/it.js
        tar -czf it.tgz package && mkdir app && cd app && echo '{}' > package.json
        npm install --offline --no-audit --no-fund --no-update-notifier --loglevel=error ../it.tgz > /dev/null
        node_modules/.bin/it
        """,
    ),
    "pip": (
        "installed\n",
        f"""
        python3 -c 'import pip' 2> /dev/null ||  # where it is not installed, Debian has it as a wheel
            export PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl)
        python3 -c '{WHEEL}'
        python3 -m pip install -q --no-index --disable-pip-version-check --target to ./it-1-py3-none-any.whl
        PYTHONPATH=to python3 -m it
        """,
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_works(name: str, service: Service, sandbox: str) -> None:
    require(name, name == "pip" or shutil.which(name) is not None, "not installed")
    printed, script = PROGRAMS[name]
    script = "set -e; cd $(mktemp -d)\n" + textwrap.dedent(script)
    done = service.run(sandbox, "bash", "-c", script, env={"HOME": "/tmp"})
    assert (done["exit"]["code"], done["stdout"], done["stderr"]) == (0, printed, ""), done
