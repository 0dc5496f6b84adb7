"""cuDNN's attention through PyTorch, and a cuBLAS matrix product, timed for `cargo xtask bench --peers`.

Reads a JSON object a line, answers with one: {"name", "ms"} or {"error"}. Method as in the benchmark: random normal
data in [b, s, h, d], warm-up launches, then one pair of CUDA events around each launch.
"""

import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def timed(launch, request):
    """Milliseconds of each launch, behind the warm-ups without a pause."""
    for _ in range(request["warmups"]):
        launch()
    pairs = []
    for _ in range(request["launches"]):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        launch()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def random(dtype, *sizes):
    return torch.randn(*sizes, device="cuda", dtype=dtype)


def matmul(request, dtype):
    size = request["size"]
    a, b = random(dtype, size, size), random(dtype, size, size)
    out = torch.empty_like(a)
    return "cuBLAS", timed(lambda: torch.matmul(a, b, out=out), request)


def cudnn(request, dtype):
    batch, dim = request["batch"], request["head_dim"]
    # [b, s, h, d] in memory, [b, h, s, d] as PyTorch names it.
    backward = request["pass"] == "backward"
    tensor = lambda seq, heads: random(dtype, batch, seq, heads, dim).transpose(1, 2).requires_grad_(backward)
    q = tensor(request["seq_q"], request["heads_q"])
    k, v = (tensor(request["seq_k"], request["heads_kv"]) for _ in range(2))
    grouped = request["heads_q"] != request["heads_kv"]
    name = f"cuDNN {torch.backends.cudnn.version()}"

    def launch():
        return attention(q, k, v, is_causal=request["causal"], enable_gqa=grouped)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        try:
            launch()
        except RuntimeError:
            if not grouped:
                raise
            # A build whose cuDNN path takes no groups: give it every query head its own keys.
            repeats = request["heads_q"] // request["heads_kv"]
            k, v = (x.repeat_interleave(repeats, dim=1).detach().requires_grad_(backward) for x in (k, v))
            grouped, name = False, name + ", K and V repeated"
        if not backward:
            return name, timed(launch, request)
        out = launch()
        dout = torch.randn_like(out)
        return name, timed(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), request)


def answer(request):
    work = {"matmul": matmul, "attention": cudnn}[request["work"]]
    name, ms = work(request, DTYPES[request["dtype"]])
    return {"name": f"{name} (PyTorch {torch.__version__})", "ms": ms}


def main():
    for line in sys.stdin:
        try:
            request = json.loads(line)
            with torch.set_grad_enabled(request.get("pass") == "backward"):
                reply = answer(request)
        except Exception as error:  # The benchmark prints it and goes on.
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
