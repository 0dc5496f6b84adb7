"""Checks attention_file against plain numpy in float64: pip install numpy safetensors; python check.py BINARY [host|cuda].

Makes a random problem with a four-column mask, runs BINARY (host: on 3 ranks; cuda: on one Hopper GPU, forward), and
compares O, LSE and on the host all gradients.
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


def problem(head_dim, dtype):
    """A random problem with a four-column mask; the last rows of one head see nothing."""
    rng = np.random.default_rng(7)
    b, s, hq, hkv = 2, 301, 6, 2
    normal = lambda heads: rng.standard_normal((b, s, heads, head_dim)).astype(dtype)
    tensors = {"q": normal(hq), "k": normal(hkv), "v": normal(hkv), "dout": normal(hq)}
    mask = rng.integers(0, s + 1, (b, 3, s, 4), dtype=np.int32)
    mask[:, :, :, 0] = np.minimum(mask[:, :, :, 0], s - 9)
    mask[0, 0, :, :2] = (s - 9, s)
    tensors["startend_row_indices"] = mask
    return tensors


def main(binary, backend):
    # The host computes in float32. On a GPU P and O are float16: 2^-11 for each P, averaged over the row, and for O.
    head_dim, dtype, bounds = (24, np.float32, {}) if backend == "host" else (128, np.float16, {"o": 1e-3, "lse": 1e-5})
    tensors = problem(head_dim, dtype)
    given = {name: x for name, x in tensors.items() if backend == "host" or name != "dout"}
    options = ["--backend", backend, "--ranks", "3" if backend == "host" else "1", "--scale", "0.2"]
    with tempfile.TemporaryDirectory() as folder:
        save_file(given, f"{folder}/in.safetensors")
        files = [f"{folder}/in.safetensors", f"{folder}/out.safetensors"]
        subprocess.run([binary, *files, *options], check=True)
        got = load_file(files[1])
    q, k, v, dout = (tensors[name].astype(np.float64) for name in ("q", "k", "v", "dout"))
    want = reference(q, k, v, tensors["startend_row_indices"].astype(np.int64), dout, 0.2)
    assert set(got) == set(bounds or want), sorted(got)
    for name, result in got.items():
        expected = want[name]
        seen = np.isfinite(expected)
        assert (np.isfinite(result) == seen).all(), f"{name}: other rows are empty"
        error = np.linalg.norm(result[seen] - expected[seen]) / np.linalg.norm(expected[seen])
        print(f"{name:4} relative error {error:.2e}")
        assert error <= bounds.get(name, 2e-6), f"{name}: {error}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "host")
