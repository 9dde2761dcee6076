"""No verb opens a connection outwards, nor asks for an address, unless it is told to fetch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timm
from safetensors.torch import save_file

from finetune.cli import VERBS

WriteCheckpoint = Callable[..., Path]
# Python's own audit events, so that it counts whichever library connects. Weights may be fetched as
# far as the environment goes: a hub that is switched off would hide who asks it.
LISTENING = """
import json, sys
from pathlib import Path

tried = []

def listen(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            tried.append([event, repr(address)])
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if arguments[0] not in (None, "", "127.0.0.1", "::1", "localhost"):
            tried.append([event, repr(arguments[0])])

sys.addaudithook(listen)
from finetune.cli import main

found = {}
for call in json.loads(sys.argv[1]):
    tried.clear()
    code = main(call)
    found[" ".join(call)] = [code, *tried]
Path("tried.json").write_text(json.dumps(found))
"""


def test_no_verb_connects_outwards(
    colour_folder: Path, write_probe: WriteCheckpoint, tmp_path: Path
) -> None:
    root, ckpt, other = map(str, (colour_folder, write_probe("a"), write_probe("b", noise=0.3)))
    save_file(timm.create_model("test_resnet").state_dict(), "weights.safetensors")
    data = ["--data.root", root]
    image = str(colour_folder / "red" / "00.png")
    fit = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
    fit += ["--model.strategy=head", "--trainer.accelerator=cpu", "--data.num_workers=0"]
    calls = [
        ["fit", *data, *fit, "--name=a"],
        ["fit", *data, *fit, "--name=b"],
        ["validate", "--ckpt_path=runs/a-1", *data, "--allow-reuse"],
        ["test", "--ckpt_path=runs/a-1", *data],
        ["test", "--ckpt_path=runs/b-1", *data],
        ["predict", ckpt, image],
        ["choose", root, "--backbones=test_resnet=weights.safetensors"],
        ["models", "resnet18*"],
        ["check", root],
        ["split", root, "--output=split.csv"],
        ["inspect", ckpt],
        ["average", ckpt, other, *data, "--method=uniform", "--output=average.ckpt"],
        ["ensemble", ckpt, other, *data, "--output=ensemble.ckpt"],
        ["calibrate", ckpt, *data, "--output=calibrated.ckpt"],
        ["export", ckpt, "--format=safetensors", "--output=exported"],
        ["report", "runs/a-1"],
        ["compare", "runs/a-1", "runs/b-1"],
        ["explain", ckpt, image],
        ["embed", ckpt, image, "--output=f.npz"],
        ["similar", ckpt, image, "--in", root],
        ["suggest", ckpt, image],
        ["sample", "sample"],
    ]
    # Serving listens until it is stopped; tests/serving asks what it answers, on one machine.
    assert {call[0] for call in calls} == set(VERBS) - {"serve"}
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    script = [sys.executable, "-c", LISTENING, json.dumps(calls)]
    subprocess.run(script, env=environment, check=True, timeout=300)
    found = json.loads(Path("tried.json").read_text())
    assert not {call: tries for call, (_, *tries) in found.items() if tries}
    assert not [call for call, (code, *_) in found.items() if code != 0]
