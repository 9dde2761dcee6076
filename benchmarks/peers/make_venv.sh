#!/bin/sh
# A venv of their own for the peers, on top of the project's: torch is not installed again.
#   sh benchmarks/peers/make_venv.sh PROJECT_PYTHON VENV
set -eu
project_python=$1
venv=$2
[ -x "$venv/bin/python" ] || "$project_python" -m venv "$venv"
project_site=$("$project_python" -c 'import site; print(site.getsitepackages()[0])')
peer_site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
echo "$project_site" > "$peer_site/project.pth"
# fastai 2.8 asks for an older torch; without its dependencies it takes the project's.
"$venv/bin/python" -m pip install --quiet --no-deps \
    "fastai==2.8.12" "fastcore>=2.2.22" fasttransform fastdownload "fastprogress<1.1" plum-dispatch beartype
"$venv/bin/python" -m pip install --quiet pandas cloudpickle
"$venv/bin/python" -c 'from fastai.vision.all import vision_learner'
