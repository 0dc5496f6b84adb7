"""PyTorch's FlexAttention, causal over packed documents, timed for `cargo xtask bench --peers`.

Reads a JSON object a line, answers with one: {"name", "ms"} or {"error"}. Method as in the benchmark: random normal
data in [b, s, h, d], the block mask made beforehand, warm-up launches, then one pair of CUDA events around each launch.
"""

import json
import sys

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
compiled = torch.compile(flex_attention, dynamic=False)


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


def block_mask(documents, seq):
    lengths = torch.tensor(documents, device="cuda")
    document = torch.repeat_interleave(torch.arange(len(documents), device="cuda"), lengths)

    def visible(batch, head, row, column):
        return (row >= column) & (document[row] == document[column])

    return create_block_mask(visible, B=None, H=None, Q_LEN=seq, KV_LEN=seq, device="cuda", _compile=True)


def answer(request):
    if request["work"] != "causal-document":
        raise ValueError(f"no such work: {request['work']}")
    dtype, batch, seq, dim = DTYPES[request["dtype"]], request["batch"], request["seq_q"], request["head_dim"]
    backward = request["pass"] == "backward"

    def tensor(heads):
        """[b, s, h, d] in memory, [b, h, s, d] as PyTorch names it."""
        dense = torch.randn(batch, seq, heads, dim, device="cuda", dtype=dtype)
        return dense.transpose(1, 2).requires_grad_(backward)

    q = tensor(request["heads_q"])
    k, v = (tensor(request["heads_kv"]) for _ in range(2))
    mask = block_mask(request["documents"], seq)
    grouped = request["heads_q"] != request["heads_kv"]
    launch = lambda: compiled(q, k, v, block_mask=mask, enable_gqa=grouped)
    if backward:
        out = launch()
        dout = torch.randn_like(out)
        launch = lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
    ms = timed(launch, request)
    return {"name": f"FlexAttention (PyTorch {torch.__version__})", "ms": ms}


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
