"""The bundled helpdesk model behind `transformers serve`, and a copy of it that vLLM's build for CPUs can serve.

    OMP_NUM_THREADS=1 python benchmarks/servers.py --padded DIR

``--padded`` writes the model with heads of 32 instead of 24, which vLLM's kernels for CPUs do not have: the added
dimensions are zero, queries and rotary base are rescaled, so that logits are the same up to rounding.
`vllm_server.py` measures what runs behind these servers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spannerlm import bundled

TASK = bundled.load("helpdesk")


@contextmanager
def transformers_serve() -> Iterator[tuple[str, str]]:
    """(address, name) of the bundled model behind ``transformers serve``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(TASK.model_path), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(TASK.model_path)
    finally:
        process.terminate()
        process.wait()


def pad_heads(folder: Path, width: int = 32) -> None:
    """The helpdesk model with heads of another width, and the same logits."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(TASK.model_path, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    heads, old = config["num_attention_heads"], config["head_dim"]
    at = torch.cat([torch.arange(old // 2), width // 2 + torch.arange(old // 2)])  # rotary pairs are half a head apart
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            wide = torch.zeros(heads, width, value.shape[1])
            wide[:, at] = value.view(heads, old, -1) * ((width / old) ** 0.5 if "q_proj" in name else 1.0)
            weights[name] = wide.reshape(heads * width, -1)
        elif name.endswith("o_proj.weight"):
            wide = torch.zeros(value.shape[0], heads, width)
            wide[:, :, at] = value.view(-1, heads, old)
            weights[name] = wide.reshape(-1, heads * width)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    config["head_dim"] = width
    config["rope_parameters"]["rope_theta"] **= width / old
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--padded", type=Path, required=True, help="write the model with wider heads")
    pad_heads(parser.parse_args().padded)


if __name__ == "__main__":
    main()
