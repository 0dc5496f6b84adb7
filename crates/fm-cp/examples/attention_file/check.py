"""Checks attention_file against plain numpy in float64: pip install numpy safetensors; python check.py BINARY.

Makes a random problem with a four-column mask, runs BINARY on 3 ranks, and compares O, LSE and all gradients.
"""
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file


def reference(q, k, v, mask, dout, scale):
    """Dense attention, one head at a time. mask: [b, hm, s, 4] of LTS, LTE, UTS, UTE."""
    b, s, hq, d = q.shape
    hkv, hm = k.shape[2], mask.shape[1]
    out = {name: np.zeros_like(x) for name, x in (("o", q), ("dq", q), ("dk", k), ("dv", v))}
    out["lse"] = np.zeros((b, hq, s))
    row = np.arange(s)[:, None]
    for i in range(b):
        for h in range(hq):
            g = h // (hq // hkv)
            lts, lte, uts, ute = mask[i, h // (hq // hm)].T
            hidden = (lts <= row) & (row < lte) | (uts <= row) & (row < ute)
            scores = np.where(hidden, -np.inf, q[i, :, h] @ k[i, :, g].T * scale)
            with np.errstate(divide="ignore"):
                top = np.where(hidden.all(1), 0.0, scores.max(1, initial=-np.inf))[:, None]
                total = np.exp(scores - top).sum(1, keepdims=True)
                lse = top + np.log(total)
            p = np.where(hidden, 0.0, np.exp(scores - np.where(np.isfinite(lse), lse, 0.0)))
            o = p @ v[i, :, g]
            dp = dout[i, :, h] @ v[i, :, g].T
            ds = p * (dp - (dout[i, :, h] * o).sum(1, keepdims=True)) * scale
            out["o"][i, :, h], out["lse"][i, h] = o, lse[:, 0]
            out["dq"][i, :, h] = ds @ k[i, :, g]
            out["dk"][i, :, g] += ds.T @ q[i, :, h]
            out["dv"][i, :, g] += p.T @ dout[i, :, h]
    return out


def main(binary):
    rng = np.random.default_rng(7)
    b, s, hq, hkv, d = 2, 301, 6, 2, 24
    normal = lambda heads: rng.standard_normal((b, s, heads, d)).astype(np.float32)
    tensors = {"q": normal(hq), "k": normal(hkv), "v": normal(hkv), "dout": normal(hq)}
    mask = rng.integers(0, s + 1, (b, 3, s, 4), dtype=np.int32)
    mask[:, :, :, 0] = np.minimum(mask[:, :, :, 0], s - 9)
    mask[0, 0, :, :2] = (s - 9, s)  # the last rows of one head see nothing
    tensors["startend_row_indices"] = mask
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/in.safetensors")
        files = [f"{folder}/in.safetensors", f"{folder}/out.safetensors"]
        subprocess.run([binary, *files, "--ranks", "3", "--scale", "0.2"], check=True)
        got = load_file(files[1])
    q, k, v, dout = (tensors[name].astype(np.float64) for name in ("q", "k", "v", "dout"))
    want = reference(q, k, v, mask.astype(np.int64), dout, 0.2)
    worst = 0.0
    for name, expected in want.items():
        seen = np.isfinite(expected)
        assert (np.isfinite(got[name]) == seen).all(), f"{name}: other rows are empty"
        error = np.linalg.norm((got[name] - expected)[seen]) / np.linalg.norm(expected[seen])
        print(f"{name:4} relative error {error:.2e}")
        worst = max(worst, error)
    assert worst <= 2e-6, worst


if __name__ == "__main__":
    main(sys.argv[1])
