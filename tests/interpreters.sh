#!/bin/sh
# Print "VERSION PATH" for each supported Python on this machine, newest version first.
#
# Candidates are the commands on PATH and the interpreters under pyenv's versions. A candidate counts if it runs, is of
# the version that it is looked up for and has venv and ensurepip: a pyenv shim of an inactive version does not run, and
# Debian's python3 has no ensurepip without python3-venv. Override the versions with SUPPORTED="3.12 3.11".

check='import sys, venv, ensurepip; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])'
versions=${PYENV_ROOT:-$HOME/.pyenv}/versions

for version in ${SUPPORTED:-3.13 3.12 3.11}; do
    for python in "python$version" python3 "$versions/$version".*/bin/python; do
        path=$(command -v "$python") && "$path" -c "$check" "$version" 2>/dev/null || continue
        echo "$version $path"
        break
    done
done
